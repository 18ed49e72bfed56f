//! What in netfilter dropped a packet, in words.

use sockpath_protocol::packet::{Drop, Mechanism, Rule};

/// What is known of a drop by netfilter; `None` when nothing is.
pub(super) fn detail(drop: &Drop) -> Option<String> {
    if let Some(rule) = &drop.rule {
        return Some(named(rule));
    }
    let cause = drop.cause.as_ref()?;
    Some(match cause.mechanism {
        Mechanism::Rule | Mechanism::Rules | Mechanism::Policy if cause.candidates.is_empty() => "by a rule that is not known".to_owned(),
        Mechanism::Rule | Mechanism::Rules | Mechanism::Policy => {
            let candidates: Vec<String> = cause.candidates.iter().map(candidate).collect();
            format!("which rule did it is not certain: {}", candidates.join("; or "))
        }
        Mechanism::Confirmation => {
            "not by a rule: conntrack did not enter the connection into its table, because another one has its addresses and ports: there was no \
             free port to translate it to"
                .to_owned()
        }
        Mechanism::Clash => {
            "not by a rule: conntrack did not enter the connection, because another first packet of the same socket had entered it a moment before"
                .to_owned()
        }
        Mechanism::ChainTooLong => "not by a rule: conntrack did not enter the connection, because a chain of its table is too long".to_owned(),
        Mechanism::TableFull => "not by a rule: conntrack's table is full".to_owned(),
        Mechanism::Unknown => "by no rule that can be read".to_owned(),
        mechanism => mechanism.row().title.to_lowercase(),
    })
}

fn named(rule: &Rule) -> String {
    let via = if rule.via.is_empty() { String::new() } else { format!(", via {}", rule.path()) };
    let but = if rule.policy { "; no rule did it" } else { "" };
    format!("by {rule}{via}{but}")
}

fn candidate(rule: &Rule) -> String {
    match rule.counter {
        Some(counter) => format!("{rule}, counter {}", counter.after),
        None => format!("{rule}, without counter"),
    }
}

#[cfg(test)]
mod tests {
    use sockpath_protocol::packet::{Cause, Certainty, Counter};
    use sockpath_protocol::stage::StageId;

    use super::*;

    fn rule(handle: Option<u64>, via: &[&str]) -> Rule {
        Rule {
            table: "ip filter".to_owned(),
            chain: "cali-tw-x".to_owned(),
            handle,
            comment: handle.map(|_| "no policy passed".to_owned()),
            via: via.iter().map(|v| (*v).to_owned()).collect(),
            policy: handle.is_none(),
            legacy: false,
            element: None,
            counter: Some(Counter { before: Some(1), after: 3 }),
        }
    }

    fn drop(rule: Option<Rule>, mechanism: Mechanism, candidates: Vec<Rule>) -> Drop {
        let cause = Cause { mechanism, certainty: Certainty::Inferred, evidence: Vec::new(), candidates };
        Drop {
            reason: "NETFILTER_DROP".to_owned(),
            location: None,
            place: 0,
            stage: StageId::NodeForward,
            socket: None,
            detail: None,
            rule: rule.map(Box::new),
            cause: Some(Box::new(cause)),
        }
    }

    #[test]
    fn a_rule_is_named_with_the_chains_that_lead_there() {
        let named = rule(Some(22), &["FORWARD", "cali-FORWARD"]);
        assert_eq!(
            detail(&drop(Some(named), Mechanism::Rule, Vec::new())).as_deref(),
            Some("by chain cali-tw-x of table ip filter, handle 22 (no policy passed), via FORWARD > cali-FORWARD > cali-tw-x")
        );
        assert_eq!(
            detail(&drop(Some(rule(None, &[])), Mechanism::Policy, Vec::new())).as_deref(),
            Some("by the policy of chain cali-tw-x, table ip filter; no rule did it")
        );
    }

    #[test]
    fn what_is_not_certain_is_listed() {
        let text = detail(&drop(None, Mechanism::Rules, vec![rule(Some(1), &[]), rule(Some(2), &[])])).expect("a detail");
        assert!(text.contains("not certain") && text.contains("handle 1") && text.contains("handle 2, ") || text.contains("counter 3"));
        assert!(detail(&drop(None, Mechanism::Confirmation, Vec::new())).is_some_and(|t| t.contains("not by a rule")));
    }
}
