//! Real packets beside other programs' firewalls: what each stops with its own defaults, and that
//! what `sampan check` says to do lets all pass. Needs root and `nft`; leaves nothing behind.

#[path = "net_lab/mod.rs"]
mod lab;

use std::{thread, time::Instant};

use lab::{
    PATIENCE, Server,
    two::{Lab, NODE_A, NODE_PORT, OUTSIDER, POD_A, POD_B, VIP, bridged, lab},
};
use sampan::net::ClosedChains;

/// Where the node and the outsider themselves serve.
const OWN: u16 = 9090;

const ALL: [&str; 9] = [
    "pod to pod",
    "pod to the other node's pod",
    "the other node's pod to pod",
    "pod to service",
    "outside to node port",
    "pod to outside",
    "pod to its node",
    "node to pod",
    "the other node to the node",
];

/// Which of [`ALL`] arrive at a service's only pod, which is on the first node, and elsewhere.
fn arriving(lab: &Lab) -> Vec<&'static str> {
    lab.serve(&[POD_A], |_| {});
    let _own = [Server::new(&lab.a.ns, "node", OWN), Server::new(&lab.outside, "outside", OWN)];
    let ways = [
        (&lab.pod_a2, (POD_A, 8080)),
        (&lab.pod_a2, (POD_B, 8080)),
        (&lab.pod_b, (POD_A, 8080)),
        (&lab.pod_a2, (VIP, 80)),
        (&lab.outside, (NODE_A, NODE_PORT)),
        (&lab.pod_a2, (OUTSIDER, OWN)),
        (&lab.pod_a2, (NODE_A, OWN)),
        (&lab.a.ns, (POD_A, 8080)),
        (&lab.b.ns, (NODE_A, OWN)),
    ];
    // All at once: what is dropped is found out by waiting.
    thread::scope(|scope| {
        let asking = ways.map(|(from, to)| scope.spawn(move || from.ask(to).is_ok()));
        let arrived = asking.map(|asking| asking.join().unwrap());
        ALL.into_iter().zip(arrived).filter(|(_, arrived)| *arrived).map(|(way, _)| way).collect()
    })
}

/// Waits until exactly these of [`ALL`] arrive: on a busy machine an answer may come too late at first.
fn wait_for(lab: &Lab, expected: &[&str]) {
    let begin = Instant::now();
    loop {
        let arrived = arriving(lab);
        if arrived == expected {
            break;
        }
        assert!(begin.elapsed() < PATIENCE * 12, "arrived in the end: {arrived:?}, not {expected:?}");
    }
}

fn nft(lab: &Lab, text: &str) {
    lab.a.ns.command("nft", &[text]);
}

fn found(lab: &Lab) -> ClosedChains {
    lab.a.ns.run(|| sampan::net::closed_chains().unwrap())
}

fn closed(forward: &[&str], input: &[&str]) -> ClosedChains {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    ClosedChains { forward: owned(forward), input: owned(input) }
}

#[test]
fn docker_stops_what_is_forwarded_until_its_users_chain_lets_pods_pass() {
    let lab = lab();
    wait_for(&lab, &ALL);
    nft(&lab, include_str!("net_lab/docker.nft"));
    assert_eq!(found(&lab), closed(&["ip filter FORWARD"], &[]));
    wait_for(&lab, &["pod to its node", "node to pod", "the other node to the node"]);
    for direction in ["saddr", "daddr"] {
        nft(&lab, &format!("insert rule ip filter DOCKER-USER ip {direction} 10.42.0.0/16 counter accept"));
    }
    wait_for(&lab, &ALL);
}

#[test]
fn ufw_stops_all_but_the_node_itself_until_it_allows_pods() {
    let lab = lab();
    nft(&lab, include_str!("net_lab/ufw.nft"));
    assert_eq!(found(&lab), closed(&["ip filter FORWARD"], &["ip filter INPUT"]));
    wait_for(&lab, &["node to pod"]);
    // `ufw route allow from|to 10.42.0.0/16`, `ufw allow from 10.42.0.0/16`, `ufw allow …/tcp`.
    for rule in [
        "ufw-user-forward ip saddr 10.42.0.0/16 counter accept",
        "ufw-user-forward ip daddr 10.42.0.0/16 counter accept",
        "ufw-user-input ip saddr 10.42.0.0/16 counter accept",
        "ufw-user-input meta l4proto tcp tcp dport { 9090 } counter accept",
    ] {
        nft(&lab, &format!("add rule ip filter {rule}"));
    }
    wait_for(&lab, &ALL);
}

#[test]
fn firewalld_lets_services_pass_and_the_rest_when_pods_are_trusted() {
    let lab = lab();
    nft(&lab, include_str!("net_lab/firewalld.nft"));
    assert_eq!(found(&lab), closed(&["inet firewalld filter_FORWARD"], &["inet firewalld filter_INPUT"]));
    wait_for(&lab, &["pod to service", "outside to node port", "node to pod"]);
    // `--zone=trusted --add-source=10.42.0.0/16`, `--add-port`.
    for rule in [
        "insert rule inet firewalld filter_INPUT_ZONES ip saddr 10.42.0.0/16 goto filter_IN_trusted",
        "insert rule inet firewalld filter_FORWARD_ZONES ip saddr 10.42.0.0/16 goto filter_FWD_trusted",
        "add rule inet firewalld filter_IN_public_allow tcp dport 9090 accept",
    ] {
        nft(&lab, rule);
    }
    wait_for(&lab, &ALL);
}

/// Bridged packets go through all chains too, as Docker and libvirt want it, and the node's own link is
/// a bridge: the same packet comes by twice.
#[test]
fn br_netfilter_changes_nothing() {
    const SETTING: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";
    let lab = bridged();
    let there = lab.a.ns.run(|| std::fs::exists(SETTING)).unwrap();
    if !there {
        eprintln!("this kernel has no br_netfilter: nothing was tried");
        return;
    }
    for value in ["1", "0"] {
        lab.a.ns.run(|| std::fs::write(SETTING, value)).unwrap();
        wait_for(&lab, &ALL);
    }
}
