//! The names of topics. The cluster's id is in every one: clusters may share a broker.
//!
//! ```text
//! sampan/<cluster>/master                     the master's boot id, retained
//! sampan/<cluster>/shared                     what has changed of what all nodes are told
//! sampan/<cluster>/node/<node>/up/<leaf>      what a node says
//! sampan/<cluster>/node/<node>/down/<leaf>    what it is told
//! sampan/<cluster>/join/<id>/up               what a board says that wants to become a node
//! sampan/<cluster>/join/<id>/down             what it is answered
//! ```
//! `<leaf>` is `control` (typed messages), `stream` (frames) or, up only, `will`.

/// The last part of a topic: what is in the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaf {
    Control,
    Stream,
    /// The node's Last Will.
    Will,
}

impl Leaf {
    fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Stream => "stream",
            Self::Will => "will",
        }
    }

    fn of(name: &str) -> Option<Self> {
        [Self::Control, Self::Stream, Self::Will].into_iter().find(|leaf| leaf.name() == name)
    }
}

/// The topic of the master's boot id.
pub fn master(cluster: &str) -> String {
    format!("sampan/{cluster}/master")
}

/// The topic of what all nodes are told.
pub fn shared(cluster: &str) -> String {
    format!("sampan/{cluster}/shared")
}

/// Whether the broker keeps the last message of a topic for those who subscribe later.
pub fn is_retained(topic: &str) -> bool {
    topic.ends_with("/master")
}

/// A topic that a node publishes to.
pub fn up(cluster: &str, node: &str, leaf: Leaf) -> String {
    format!("sampan/{cluster}/node/{node}/up/{}", leaf.name())
}

/// A topic that a node listens to.
pub fn down(cluster: &str, node: &str, leaf: Leaf) -> String {
    format!("sampan/{cluster}/node/{node}/down/{}", leaf.name())
}

/// The client id of a node; the cluster is in it, as clusters may share a broker.
pub fn node_client_id(cluster: &str, node: &str) -> String {
    format!("sampan-{cluster}-node-{node}")
}

/// Length of the hardware's part of a client id (hexadecimal characters).
pub const HARDWARE_LENGTH: usize = 16;

/// The client id of a node on a certain board: two boards with one identity (a copied memory card)
/// do not throw each other out of the broker, and the master can refuse the second one.
pub fn board_client_id(cluster: &str, node: &str, hardware: &str) -> String {
    format!("{}.{hardware}", node_client_id(cluster, node))
}

/// Whether a client id belongs to a node.
pub fn is_client_id_of(cluster: &str, node: &str, client_id: &str) -> bool {
    client_id.strip_prefix(&node_client_id(cluster, node)).is_some_and(|rest| {
        rest.is_empty()
            || rest.strip_prefix('.').is_some_and(|hardware| {
                hardware.len() == HARDWARE_LENGTH && hardware.bytes().all(|b| b.is_ascii_hexdigit())
            })
    })
}

/// The random part of a joining client's id (hexadecimal characters).
const JOIN_ID_LENGTH: usize = 32;

/// The client id of a board that joins; `id` comes from [`new_join_id`].
pub fn join_client_id(cluster: &str, id: &str) -> String {
    format!("sampan-{cluster}-join-{id}")
}

/// A fresh id for one attempt to join; nobody guesses it.
pub fn new_join_id() -> String {
    crate::ids::hex(&crate::ids::random_bytes::<{ JOIN_ID_LENGTH / 2 }>())
}

/// The id in the client id of a board that joins.
pub fn join_id<'a>(cluster: &str, client_id: &'a str) -> Option<&'a str> {
    let id = client_id.strip_prefix("sampan-")?.strip_prefix(cluster)?.strip_prefix("-join-")?;
    (id.len() == JOIN_ID_LENGTH && id.bytes().all(|b| b.is_ascii_hexdigit())).then_some(id)
}

/// The topic that a joining board publishes to.
pub fn join_up(cluster: &str, id: &str) -> String {
    format!("sampan/{cluster}/join/{id}/up")
}

/// The topic that a joining board listens to.
pub fn join_down(cluster: &str, id: &str) -> String {
    format!("sampan/{cluster}/join/{id}/down")
}

/// The id in a topic that the master receives from a board that joins.
pub fn parse_join_up(topic: &str) -> Option<&str> {
    let (id, leaf) = topic.splitn(3, '/').nth(2)?.strip_prefix("join/")?.split_once('/')?;
    (leaf == "up").then_some(id)
}

/// What a node subscribes to. No wildcards: a broker finds a topic's own subscribers at once, and compares
/// it with every filter that has one.
pub fn node_filters(cluster: &str, node: &str) -> Vec<String> {
    let own = [Leaf::Control, Leaf::Stream].map(|leaf| down(cluster, node, leaf));
    own.into_iter().chain([master(cluster), shared(cluster)]).collect()
}

/// What the master subscribes to.
pub fn master_filters(cluster: &str) -> Vec<String> {
    vec![format!("sampan/{cluster}/node/+/up/#"), join_up(cluster, "+")]
}

/// The node and leaf of a topic that the master receives.
pub fn parse_up(topic: &str) -> Option<(&str, Leaf)> {
    let mut parts = topic.split('/').skip(2);
    let (Some("node"), Some(node), Some("up"), Some(leaf), None) =
        (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    Leaf::of(leaf).map(|leaf| (node, leaf))
}

/// The leaf of a topic that a node receives; what all nodes are told are typed messages too. `None`
/// for the master's boot id.
pub fn parse_down(topic: &str) -> Option<Leaf> {
    let (rest, leaf) = topic.rsplit_once('/')?;
    match leaf {
        "shared" if !rest.contains("/node/") => Some(Leaf::Control),
        _ => rest.ends_with("/down").then(|| Leaf::of(leaf)).flatten(),
    }
}

/// Whether a node may publish to a topic.
pub fn node_may_publish(cluster: &str, node: &str, topic: &str) -> bool {
    topic.strip_prefix(&format!("sampan/{cluster}/node/{node}/up/")).is_some_and(|l| Leaf::of(l).is_some())
}

/// Whether a node may subscribe to a filter.
pub fn node_may_subscribe(cluster: &str, node: &str, filter: &str) -> bool {
    node_filters(cluster, node).iter().any(|allowed| allowed == filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_read_as_they_are_written() {
        assert_eq!(parse_up(&up("c", "n", Leaf::Stream)), Some(("n", Leaf::Stream)));
        assert_eq!(parse_down(&down("c", "n", Leaf::Control)), Some(Leaf::Control));
        assert_eq!(parse_down(&shared("c")), Some(Leaf::Control));
        assert_eq!(parse_down(&master("c")), None);
        for strange in [
            "sampan/c/master",
            "sampan/c/shared",
            "sampan/c/node/n/up/x",
            "sampan/c/node/n/up/will/x",
            "",
            "a/b/c",
        ] {
            assert_eq!(parse_up(strange), None, "{strange}");
        }
    }

    #[test]
    fn joining_topics_are_read_as_they_are_written() {
        let id = new_join_id();
        assert_eq!(join_id("c", &join_client_id("c", &id)), Some(id.as_str()));
        assert_eq!(join_id("d", &join_client_id("c", &id)), None);
        for strange in ["sampan-c-join-", "sampan-c-join-#", "sampan-c-node-a", "x"] {
            assert_eq!(join_id("c", strange), None, "{strange}");
        }
        assert_eq!(parse_join_up(&join_up("c", &id)), Some(id.as_str()));
        assert_eq!(parse_join_up(&join_down("c", &id)), None);
        assert_eq!(parse_join_up(&up("c", "n", Leaf::Control)), None);
        assert_eq!(parse_up(&join_up("c", &id)), None);
    }

    #[test]
    fn a_node_may_speak_for_itself_only() {
        assert!(node_may_publish("c", "n", "sampan/c/node/n/up/control"));
        for topic in [
            "sampan/c/node/m/up/control",
            "sampan/d/node/n/up/control",
            "sampan/c/node/n/down/control",
            "sampan/c/node/n/up/",
            "sampan/c/master",
            "sampan/c/shared",
        ] {
            assert!(!node_may_publish("c", "n", topic), "{topic}");
        }
        assert!(node_may_subscribe("c", "n", "sampan/c/node/n/down/control"));
        for filter in [
            "#",
            "sampan/c/node/n/down/#",
            "sampan/c/node/m/down/control",
            "sampan/#",
            "sampan/c/node/+/down/#",
            "sampan/c/node/m/down/#",
        ] {
            assert!(!node_may_subscribe("c", "n", filter), "{filter}");
        }
    }
}
