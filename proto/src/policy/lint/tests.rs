//! Warnings, each shown by a policy that earns it and by one that does not.

use super::super::fixtures::{BANK, NOW, documents, whole};
use super::*;

fn warnings(text: &str, now: UnixTime) -> Vec<String> {
    lint(&documents(text), &whole(text), now).iter().map(ToString::to_string).collect()
}

#[track_caller]
fn warned(from: &str, to: &str, words: &str) {
    assert!(BANK.contains(from), "{from}");
    let list = warnings(&BANK.replacen(from, to, 1), NOW);
    assert!(list.iter().any(|line| line.contains(words)), "{words:?} not in {list:#?}");
}

#[test]
fn the_banks_policy_has_no_warnings_but_for_the_port_it_denies_to_all() {
    assert_eq!(warnings(BANK, NOW), Vec::<String>::new());
}

#[test]
fn unused_objects_are_named() {
    warned("include: [ops/scrape]\n", "", "nothing includes the Rules ops/scrape");
    warned(
        "kind: Group\nname: prod",
        "kind: Group\nname: idle\nmembers: [shop/*]\n---\nkind: Group\nname: prod",
        "no rule uses the Group idle",
    );
}

#[test]
fn a_rule_that_another_makes_superfluous_is_named() {
    warned(
        "desk-reads: { from: [shop/web-frontend], ports: [api] }",
        "desk-reads: { from: [shop/web-frontend], ports: [api] }\n  all: { from: [shop/*], ports: [api, rtp] }",
        "the rule bank/banking-api:desk-reads admits nothing that bank/banking-api:all does not",
    );
}

#[test]
fn a_rule_that_never_matches_is_named() {
    warned(
        "desk-reads: { from: [shop/web-frontend], ports: [api] }",
        "desk-reads: { from: [shop/web-frontend], ports: [dns] }",
        "the deny bank/banking-api:no-dns overrules the rule bank/banking-api:desk-reads everywhere",
    );
    warned(
        "namespaces: { env: dev }",
        "members: [dev/warehouse]\n---\nkind: Namespace\nname: void\nlabels: { env: dev }\n---\nkind: Rules\nname: void/r\nallow: { r: { from: [void/*], ports: [1/tcp] } }\n---\nkind: Namespace\nname: user\nlabels: { env: dev }\ninclude: [void/r]",
        "names callers of whom none is declared",
    );
}

#[test]
fn dates_that_have_passed_are_named() {
    let list = warnings(BANK, UnixTime(1_801_440_000));
    assert!(list.iter().any(|line| line.contains("the audit mode of bank/ledger has ended")), "{list:#?}");
    assert!(list.iter().any(|line| line.contains("an exception of the rule `prod-to-dev` has ended")), "{list:#?}");
}
