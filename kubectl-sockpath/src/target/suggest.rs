//! What to say of a name that is not there: what is.

use crate::inventory::{Inventory, Kind};

/// Says what is not there, and what is: the same name `beside` or as another kind, or close names of the same kind.
pub(super) async fn not_found(inventory: &impl Inventory, kind: Kind, namespace: &str, name: &str, beside: Option<&str>) -> anyhow::Error {
    let word = kind.word();
    let nowhere = if kind == Kind::Node { None } else { missing_namespace(inventory, namespace).await };
    if let Some(missing) = nowhere {
        return match kind {
            Kind::Pod if is_workload(namespace) => no_workload(inventory, namespace, name).await,
            _ => anyhow::anyhow!("{word} `{name}`: {missing}"),
        };
    }
    let mut text = match kind {
        Kind::Node => format!("there is no node `{name}`"),
        _ => format!("{word} `{name}` is not in namespace {namespace}"),
    };
    if let (Some(other), Some(prefix)) = (beside.filter(|other| *other != namespace), kind.prefix())
        && inventory.names(kind, other).await.unwrap_or_default().iter().any(|n| n == name)
    {
        text.push_str(&format!("; there is one in namespace {other}: use {other}/{prefix}/{name}"));
        return anyhow::anyhow!(text);
    }
    let names = inventory.names(kind, namespace).await.unwrap_or_default();
    let close = closest(name, &names);
    let other = match kind {
        Kind::Pod => Some(Kind::Service),
        Kind::Service => Some(Kind::Pod),
        _ => None,
    };
    if let Some((other, prefix)) = other.and_then(|other| Some((other, other.prefix()?)))
        && inventory.names(other, namespace).await.unwrap_or_default().iter().any(|n| n == name)
    {
        text.push_str(&format!("; there is a {} of that name: use {prefix}/{name}", other.word()));
    } else if !close.is_empty() {
        text.push_str(&format!("; did you mean {}?", close.join(" or ")));
    } else if names.is_empty() {
        let place = if kind == Kind::Node { "that you may list" } else { "in it, is the namespace correct (-n)?" };
        text.push_str(&format!("; there is no {word} {place}"));
    } else {
        let shown: Vec<&str> = names.iter().take(8).map(String::as_str).collect();
        text.push_str(&format!("; there are {}{}", shown.join(", "), if names.len() > shown.len() { ", ..." } else { "" }));
    }
    anyhow::anyhow!(text)
}

/// `cronjob/db` reads like a pod of a namespace; says what can be named instead.
async fn no_workload(inventory: &impl Inventory, kind: &str, name: &str) -> anyhow::Error {
    let mut pods = inventory.names(Kind::Pod, inventory.namespace()).await.unwrap_or_default();
    // Pods of workloads are called after them.
    pods.retain(|pod| pod.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('-')));
    pods.truncate(3);
    let such = if pods.is_empty() { String::new() } else { format!(", such as {}", pods.join(" or ")) };
    anyhow::anyhow!("`{kind}/{name}`: this kind has no pods; use one of its jobs (job/NAME) or pods{such}")
}

/// Says that a namespace does not exist, where that is so and the user may know.
pub(super) async fn missing_namespace(inventory: &impl Inventory, namespace: &str) -> Option<String> {
    let names = inventory.names(Kind::Namespace, namespace).await.ok().filter(|names| !names.is_empty())?;
    if names.iter().any(|n| n == namespace) {
        return None;
    }
    let close = closest(namespace, &names);
    let shown = if close.is_empty() {
        "kubectl get namespaces lists the existing ones".to_owned()
    } else {
        format!("did you mean {}?", close.join(" or "))
    };
    Some(format!("there is no namespace `{namespace}`; {shown}"))
}

/// What kubectl calls workloads that have no pods of their own.
fn is_workload(word: &str) -> bool {
    matches!(word.strip_suffix(".batch").unwrap_or(word), "cj" | "cronjob" | "cronjobs")
}

/// Names so close that a typing error is likely, best first, at most three.
#[must_use]
pub fn closest(name: &str, names: &[String]) -> Vec<String> {
    let limit = (name.len() / 3).clamp(1, 4);
    let score = |candidate: &String| {
        let prefix = candidate.starts_with(name) || name.starts_with(candidate.as_str());
        let distance = if prefix && name.len() >= 3 { 1 } else { edit_distance(name, candidate) };
        (distance <= limit).then_some(distance)
    };
    let mut scored: Vec<(usize, &String)> = names.iter().filter_map(|n| score(n).map(|s| (s, n))).collect();
    scored.sort();
    scored.into_iter().take(3).map(|(_, n)| n.clone()).collect()
}

/// Optimal string alignment distance: insertions, deletions, substitutions and swaps of neighbours each cost one.
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let substituted = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = substituted.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_names() {
        let names: Vec<String> = ["httpbin", "httpbin-remote", "curl", "web-6f9d"].map(str::to_owned).to_vec();
        assert_eq!(closest("htpbin", &names), ["httpbin"]);
        assert_eq!(closest("web", &names), ["web-6f9d"]);
        assert_eq!(closest("crul", &names), ["curl"]);
        assert!(closest("postgres", &names).is_empty());
    }
}
