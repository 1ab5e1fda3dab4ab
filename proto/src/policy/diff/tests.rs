//! What a change opens and closes.

use super::super::fixtures::{BANK, NOW, whole};
use super::*;

fn changes(from: &str, to: &str) -> Vec<String> {
    let result = diff(&whole(BANK), &whole(&BANK.replacen(from, to, 1)), NOW, 100);
    assert!(!result.truncated);
    let line = |c: &Change| format!("{} -> {} {}: {:?} -> {:?}", c.source, c.destination, c.ports, c.before, c.after);
    result.changes.iter().map(line).collect()
}

#[test]
fn a_new_caller_opens_its_port_and_nothing_else() {
    assert_eq!(
        changes("from: [shop/web-frontend]", "from: [shop/web-frontend, shop/cart]"),
        ["shop/cart -> bank/banking-api 8080/tcp: Denied -> Allowed"]
    );
}

#[test]
fn a_narrowed_range_closes_exactly_the_rest_of_it() {
    let list = changes("port: \"16384-32767\"", "port: \"16384-20000\"");
    assert_eq!(
        list,
        [
            "shop/cart -> bank/banking-api 20001-32767/udp: Allowed -> Denied",
            "shop/web-frontend -> bank/banking-api 20001-32767/udp: Allowed -> Denied",
        ]
    );
}

#[test]
fn leaving_audit_mode_shows_who_was_let_through_by_it() {
    let list = changes("audit: { until: \"2026-12-15\", ports: [db] }", "");
    assert!(list.contains(&"shop/cart -> bank/ledger 5432/tcp: Audited -> Denied".to_owned()), "{list:?}");
    assert!(!list.iter().any(|line| line.contains("dev/warehouse")), "{list:?}");
}

#[test]
fn a_comment_changes_nothing_and_a_long_list_is_cut() {
    assert_eq!(changes("kind: Mesh\n", "# a comment\nkind: Mesh\n"), Vec::<String>::new());
    let empty = whole("kind: Mesh\nname: bank.example\n");
    let cut = diff(&empty, &whole(BANK), NOW, 2);
    assert!(cut.truncated && cut.changes.len() == 2);
}
