use std::sync::atomic::Ordering;

use time::Duration;

use super::world::*;
use crate::vending::{AddressCheck, Node};

fn world(check: AddressCheck) -> World {
    let w = World::with(|c| (c.addresses.check, c.addresses.decided) = (check, true));
    w.slurm.run(7, "alice", "genomics", &["n1", "n2"]);
    w.slurm.addresses.lock().unwrap().insert("n1".parse().unwrap(), "10.77.0.11".into());
    w.slurm.addresses.lock().unwrap().insert("n2".parse().unwrap(), "10.77.0.12".into());
    w
}

#[tokio::test]
async fn a_node_elsewhere_is_refused_or_let_pass_as_configured() {
    let w = world(AddressCheck::Require);
    let session = w.open(7).await.session;
    // Everything here comes from n1's address.
    let (code, retry, why) = refused(w.try_open("n2", 7).await);
    assert!(code == "WrongAddress" && retry && why.contains("10.77.0.11") && why.contains("10.77.0.12"), "{why}");
    assert_eq!(refused(w.credentials("n2", session).await).0, "WrongAddress");
    assert_eq!(refused(w.vending.leave(&node("n2"), session).await).0, "WrongAddress");
    assert_eq!(refused(w.vending.may_listen(&node("n2")).await).0, "WrongAddress");
    w.vending.may_listen(&node("n1")).await.unwrap();
    assert_eq!(refused(w.try_open("n3", 7).await).0, "WrongAddress", "Slurm knows no n3");
    let hidden = Node { peer: None, ..node("n1") };
    assert_eq!(refused(w.vending.open_for_node(&hidden, &w.record(7)).await).0, "WrongAddress");
    for check in [AddressCheck::Warn, AddressCheck::Off] {
        let w = world(check);
        w.try_open("n2", 7).await.unwrap();
        w.vending.may_listen(&node("n2")).await.unwrap();
        assert_eq!(w.slurm.asked_address.load(Ordering::SeqCst), usize::from(check == AddressCheck::Warn));
    }
}

#[tokio::test]
async fn addresses_are_asked_for_anew_after_a_while() {
    let w = world(AddressCheck::Require);
    w.open(7).await;
    w.open(7).await;
    assert_eq!(w.slurm.asked_address.load(Ordering::SeqCst), 1);
    w.slurm.addresses.lock().unwrap().insert("n1".parse().unwrap(), "10.77.0.99".into());
    w.open(7).await;
    w.clock.advance(Duration::seconds(31));
    assert_eq!(refused(w.try_open("n1", 7).await).0, "WrongAddress");
}

#[tokio::test]
async fn names_resolve_and_mapped_addresses_are_the_same() {
    let w = world(AddressCheck::Require);
    w.slurm.addresses.lock().unwrap().insert("n1".parse().unwrap(), "localhost".into());
    let at = |ip: &str| Node { peer: Some(ip.parse().unwrap()), ..node("n1") };
    w.vending.open_for_node(&at("127.0.0.1"), &w.record(7)).await.unwrap();
    w.vending.open_for_node(&at("::ffff:127.0.0.1"), &w.record(7)).await.unwrap();
    assert_eq!(refused(w.vending.open_for_node(&at("127.0.0.2"), &w.record(7)).await).0, "WrongAddress");
}

#[tokio::test]
async fn without_slurms_word_require_refuses_and_warn_does_not() {
    let w = world(AddressCheck::Require);
    w.slurm.silent();
    let (code, retry, _) = refused(w.try_open("n1", 7).await);
    assert_eq!((code, retry), ("Unavailable", true));
}

#[tokio::test]
async fn many_nodes_cost_one_question_about_addresses() {
    let w = World::with(|c| c.addresses.check = AddressCheck::Require);
    let nodes: Vec<String> = (1..=300).map(|n| format!("n{n}")).collect();
    let list: Vec<&str> = nodes.iter().map(String::as_str).collect();
    w.slurm.run(7, "alice", "genomics", &list);
    for node in &nodes {
        w.slurm.addresses.lock().unwrap().insert(node.parse().unwrap(), "10.77.0.11".into());
    }
    for node in &nodes {
        w.try_open(node, 7).await.unwrap();
    }
    // Names that Slurm does not know are no way to make it answer all day; a new node is known in a moment.
    for n in 0..20 {
        assert_eq!(refused(w.try_open(&format!("x{n}"), 7).await).0, "WrongAddress");
    }
    assert_eq!(w.slurm.asked_address.load(Ordering::SeqCst), 1);
    w.slurm.addresses.lock().unwrap().insert("x1".parse().unwrap(), "10.77.0.11".into());
    w.clock.advance(Duration::seconds(2));
    assert_eq!(refused(w.try_open("x1", 7).await).0, "NotOnNode");
    assert_eq!(w.slurm.asked_address.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_certificate_or_an_address_of_the_configurations_suffices() {
    let more = [("n2".parse().unwrap(), vec!["10.77.0.11".parse().unwrap()])];
    let w = World::with(|c| {
        c.addresses.check = AddressCheck::Require;
        c.addresses.more = more.into();
    });
    w.slurm.run(7, "alice", "genomics", &["n1", "n2", "n3"]);
    for (node, address) in [("n1", "10.77.0.11"), ("n2", "10.77.0.12"), ("n3", "10.77.0.13")] {
        w.slurm.addresses.lock().unwrap().insert(node.parse().unwrap(), address.into());
    }
    w.try_open("n2", 7).await.unwrap();
    assert_eq!(refused(w.try_open("n3", 7).await).0, "WrongAddress");
    let certified = Node { certified: true, ..node("n3") };
    w.vending.open_for_node(&certified, &w.record(7)).await.unwrap();
    w.vending.may_listen(&certified).await.unwrap();
}

#[tokio::test]
async fn a_name_alone_does_not_say_where_a_node_is() {
    for (check, suffices) in [(AddressCheck::Off, false), (AddressCheck::Warn, false), (AddressCheck::Require, true)] {
        let w = world(check);
        assert_eq!(w.vending.is_where_it_says(&node("n1")), suffices);
        assert!(w.vending.is_where_it_says(&Node { certified: true, ..node("n1") }));
    }
}

#[tokio::test]
async fn for_as_long_as_addresses_need_not_agree_status_says_so_and_names_who_would_be_refused() {
    let warned = |w: &World| w.vending.warnings().into_iter().find(|text| text.contains("node-address-check"));
    let w = world(AddressCheck::Warn);
    assert!(warned(&w).unwrap().contains("would refuse no node"), "{:?}", warned(&w));
    w.try_open("n2", 7).await.unwrap();
    assert_eq!(refused(w.try_open("x9", 7).await).0, "NotOnNode");
    let text = warned(&w).unwrap();
    for part in
        ["n2 (connects from 10.77.0.11; Slurm: 10.77.0.12)", "node-addresses", "\"warn\"", "another node's name"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("n1 ("), "{text}");
    assert!(!text.contains("x9"), "Slurm does not know it: {text}");
    w.vending.look_at_gauges();
    let page = w.vending.metrics().text();
    for line in ["credvend_node_addresses_unchecked{cluster=\"lab\"} 1", "credvend_nodes_elsewhere{cluster=\"lab\"} 1"]
    {
        assert!(page.contains(line), "{page}");
    }
    // Put right, it is not listed any more.
    w.slurm.addresses.lock().unwrap().insert("n2".parse().unwrap(), "10.77.0.11".into());
    w.clock.advance(Duration::minutes(1));
    w.try_open("n2", 7).await.unwrap();
    assert!(warned(&w).unwrap().contains("no node"), "{:?}", warned(&w));

    let undecided = World::with(|c| {
        c.addresses.check = AddressCheck::Warn;
        c.addresses.decided = false;
    });
    assert!(warned(&undecided).unwrap().contains("unset"), "{:?}", warned(&undecided));
    assert!(warned(&world(AddressCheck::Off)).unwrap().contains("\"off\""));
    let w = world(AddressCheck::Require);
    w.open(7).await;
    assert_eq!(warned(&w), None);
    w.try_open("n2", 7).await.unwrap_err();
    assert!(warned(&w).unwrap().contains("refuses 1 node: n2"), "{:?}", warned(&w));
}
