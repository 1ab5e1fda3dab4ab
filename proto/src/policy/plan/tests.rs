//! Ownership, and deletions that nobody meant.

use super::super::fixtures::documents;
use super::*;

const PLATFORM: &str =
    "kind: Set\nname: platform\nowns: [mesh, ops, peer]\n---\nkind: Mesh\nname: m\n---\nkind: Namespace\nname: ops\n";
const BANK: &str = "kind: Set\nname: bank\nowns: [bank]\n---\nkind: Namespace\nname: bank\n---\nkind: Service\nname: bank/a\n---\nkind: Service\nname: bank/b\n---\nkind: Tests\nname: bank-tests\ncases: { c: { from: bank/a, to: bank/b, connect: 1/tcp, expect: { verdict: deny } } }\n";

fn applied(current: &[OwnedObject], text: &str) -> Result<Plan, Refusal> {
    plan(current, &documents(text), 0)
}

fn both() -> Vec<OwnedObject> {
    let first = applied(&[], PLATFORM).unwrap();
    applied(&first.result, BANK).unwrap().result
}

fn names(list: &[ObjectName]) -> Vec<String> {
    list.iter().map(|object| format!("{} {}", object.kind, object.name)).collect()
}

#[test]
fn a_set_replaces_what_it_owns_and_nothing_else() {
    let current = both();
    assert_eq!(current.len(), 8);
    let text = BANK
        .replace("bank/a\n", "bank/a\nports: { p: { port: 1, protocol: tcp } }\n")
        .replace("---\nkind: Tests", "---\nkind: Service\nname: bank/c\n---\nkind: Tests");
    let plan = applied(&current, &text).unwrap();
    assert_eq!(names(&plan.added), ["Service bank/c"]);
    assert_eq!(names(&plan.changed), ["Service bank/a"]);
    assert!(plan.removed.is_empty());
    assert_eq!(plan.result.len(), 9);
    assert_eq!(plan.result.iter().filter(|owned| owned.set == "platform").count(), 3);
}

#[test]
fn applying_the_same_again_changes_nothing() {
    let current = both();
    let plan = applied(&current, BANK).unwrap();
    assert!(plan.added.is_empty() && plan.changed.is_empty() && plan.removed.is_empty());
    assert_eq!(plan.result, current);
}

#[test]
fn a_namespace_that_another_set_owns_is_refused_by_name() {
    let refusal =
        applied(&both(), "kind: Set\nname: rogue\nowns: [bank]\n---\nkind: Service\nname: bank/c\n").unwrap_err();
    assert_eq!(refusal.reason, Reason::NamespaceOwned);
    assert!(refusal.detail.contains("the Set bank"), "{refusal}");
}

#[test]
fn an_object_outside_of_what_its_set_owns_is_refused_with_its_owner_and_place() {
    for (extra, realm) in [
        ("kind: Service\nname: ops/x\n", "ops"),
        ("kind: Rules\nname: ops/x\nallow: { a: { from: [any], ports: [1/tcp] } }\n", "ops"),
        ("kind: Group\nname: g\nmembers: [bank/a]\n", "mesh"),
        ("kind: Mesh\nname: other\n", "mesh"),
        ("kind: Namespace\nname: ops\n", "ops"),
        ("kind: Peer\nname: laptop\n", "peer"),
    ] {
        let refusal = applied(&both(), &format!("{BANK}---\n{extra}")).unwrap_err();
        assert_eq!(refusal.reason, Reason::NamespaceOwned, "{extra}");
        assert!(refusal.detail.contains(&format!("part of `{realm}`, which belongs to the Set platform")), "{refusal}");
        assert!(refusal.detail.starts_with("policy/test.yaml:"), "{refusal}");
    }
}

#[test]
fn tests_of_another_set_cannot_be_taken_over() {
    let text = "kind: Set\nname: shop\nowns: [shop]\n---\nkind: Tests\nname: bank-tests\nnever: { never: { from: [any], to: [any] } }\n";
    assert_eq!(applied(&both(), text).unwrap_err().reason, Reason::NamespaceOwned);
}

#[test]
fn an_apply_that_deletes_more_than_allowed_is_refused_and_says_how_many() {
    let text = BANK.replace("---\nkind: Service\nname: bank/b\n", "");
    let refusal = applied(&both(), &text).unwrap_err();
    assert_eq!(refusal.reason, Reason::DeletesTooMuch);
    assert!(refusal.hint.contains("--allow-delete 1"), "{}", refusal.hint);
    let plan = plan(&both(), &documents(&text), 1).unwrap();
    assert_eq!(names(&plan.removed), ["Service bank/b"]);
}

#[test]
fn an_apply_that_would_empty_its_set_is_refused_whatever_is_allowed() {
    let refusal = plan(&both(), &documents("kind: Set\nname: bank\nowns: [bank]\n"), 1000).unwrap_err();
    assert_eq!(refusal.reason, Reason::DeletesTooMuch);
}

#[test]
fn an_apply_has_exactly_one_set() {
    assert_eq!(applied(&[], "kind: Mesh\nname: m\n").unwrap_err().reason, Reason::InvalidField);
    let two = format!("{PLATFORM}---\nkind: Set\nname: other\nowns: [x]\n");
    assert_eq!(applied(&[], &two).unwrap_err().reason, Reason::InvalidField);
}
