//! The chosen pods as one helper gets them: those it serves, and those it only has to know.

use sockpath_protocol::accel::PodElsewhere;
use sockpath_protocol::pod::Pod;

/// The chosen pods, by whether one helper serves them.
#[derive(Debug, PartialEq)]
pub struct ByNode {
    /// Pods of its nodes.
    pub here: Vec<Pod>,
    /// The others: why connections with them are excluded.
    pub elsewhere: Vec<PodElsewhere>,
}

/// The chosen pods as the helper of these nodes sees them.
pub fn at(pods: &[Pod], nodes: &[String]) -> ByNode {
    let (here, elsewhere): (Vec<&Pod>, Vec<&Pod>) = pods.iter().partition(|p| nodes.contains(&p.node));
    ByNode { here: here.into_iter().cloned().collect(), elsewhere: elsewhere.into_iter().map(PodElsewhere::from).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, node: &str, ip: &str) -> Pod {
        let value = serde_json::json!({"namespace": "shop", "name": name, "uid": format!("uid-{name}"), "node": node, "ips": [ip],
            "locate": {"by": "uid"}});
        serde_json::from_value(value).unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn each_pod_is_served_by_one_helper_and_known_to_the_others() {
        let pods = [pod("a", "n1", "10.0.0.1"), pod("b", "n2", "10.0.1.1"), pod("c", "n1", "fd00::2")];
        let nodes = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let names = |pods: &ByNode| {
            let here: Vec<String> = pods.here.iter().map(|p| p.name.clone()).collect();
            (here.join(" "), pods.elsewhere.iter().map(|p| p.pod.to_string()).collect::<Vec<_>>().join(" "))
        };
        let first = at(&pods, &nodes(&["n1"]));
        assert_eq!(names(&first), ("a c".to_owned(), "shop/b".to_owned()));
        assert_eq!(first.elsewhere[0].ips, pods[1].ips);
        assert_eq!(names(&at(&pods, &nodes(&["n2"]))), ("b".to_owned(), "shop/a shop/c".to_owned()));
        // The lab's one helper serves all nodes; a node's name that begins like another's is not that one.
        assert_eq!(names(&at(&pods, &nodes(&["n1", "n2"]))), ("a b c".to_owned(), String::new()));
        assert_eq!(names(&at(&pods, &nodes(&["n"]))), (String::new(), "shop/a shop/b shop/c".to_owned()));
    }
}
