//! What a node is sent, and what it is not. That it decides alike is a property test.

use super::super::fixtures::{BANK, NOW, documents, name, whole};
use super::super::{Kind, Mode};
use super::*;

fn sent(local: &[&str]) -> Vec<String> {
    let documents = documents(BANK);
    let local: Vec<_> = local.iter().map(|text| name(text)).collect();
    let list = slice(&documents, &whole(BANK), &local, NOW);
    let other = |object: &&&PolicyObject| !matches!(object.kind, Kind::Namespace | Kind::Mesh);
    list.iter().filter(other).map(|object| format!("{} {}", object.kind, object.name)).collect()
}

#[test]
fn a_node_is_sent_its_services_those_they_reach_and_what_their_rules_name() {
    assert_eq!(
        sent(&["bank/ledger"]),
        ["Group prod", "Group dev", "Rules ops/scrape", "Service bank/ledger"],
        "the caller's documents stay away"
    );
    assert_eq!(
        sent(&["risk/anonymiser"]),
        [
            "Group prod",
            "Group dev",
            "Rules ops/scrape",
            "Service bank/ledger",
            "Service risk/anonymiser",
            "Service dev/warehouse"
        ]
    );
    assert_eq!(sent(&["ops/unknown"]), ["Group prod", "Group dev"]);
}

#[test]
fn a_node_is_sent_a_device_that_its_service_may_call_for_nobody_else_judges_there() {
    let text = format!(
        "{BANK}---\nkind: Peer\nname: printer\nports: {{ ipp: {{ port: 631, protocol: tcp }} }}\nallow: {{ print: {{ from: [shop/cart], ports: [ipp] }} }}\n"
    );
    let documents = documents(&text);
    let is_sent = |local: &str| {
        let list = slice(&documents, &whole(&text), &[name(local)], NOW);
        list.iter().any(|object| (object.kind, object.name.as_str()) == (Kind::Peer, "printer"))
    };
    assert!(is_sent("shop/cart") && !is_sent("shop/web-frontend"));
}

#[test]
fn a_slice_that_lost_a_group_or_an_include_is_refused_whole() {
    let documents = documents(BANK);
    let list = slice(&documents, &whole(BANK), &[name("bank/ledger")], NOW);
    for lost in [Kind::Group, Kind::Rules] {
        let part: Vec<_> = list.iter().filter(|object| object.kind != lost).map(|object| (*object).clone()).collect();
        let part = Documents::from_objects(&part).unwrap();
        let list = CompiledPolicy::compile(&part, Mode::Slice).unwrap_err();
        assert!(list.iter().any(|finding| finding.code == super::super::Code::UnknownName), "{lost}");
    }
}
