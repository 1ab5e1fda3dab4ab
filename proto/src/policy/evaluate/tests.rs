//! What the evaluator decides, rule by rule, on the bank's mesh.

use super::super::fixtures::{BANK, NOW, name, whole};
use super::*;
use crate::policy::CompiledPolicy;

const AFTER_AUDIT: UnixTime = UnixTime(1_797_292_800); // 2026-12-15T00:00:00Z
const DAY: u64 = 86_400;

fn ask(policy: &CompiledPolicy, from: &str, to: &str, port: u16, now: UnixTime) -> Decision {
    policy.evaluate(&name(from), &name(to), Transport::Tcp, port, now)
}

fn rule(decision: &Decision) -> &str {
    decision.rule.as_ref().map_or("", |rule| rule.id.as_str())
}

#[test]
fn an_allow_lets_its_caller_in_and_names_itself_with_file_and_line() {
    let decision = ask(&whole(BANK), "shop/web-frontend", "bank/banking-api", 8080, NOW);
    assert!(decision.is_allowed());
    assert_eq!(rule(&decision), "bank/banking-api:desk-reads");
    assert_eq!(decision.layer, Some(Layer::Service));
    assert_eq!(decision.port_name.as_deref(), Some("api"));
    let found = decision.rule.unwrap();
    let line = BANK.lines().nth(found.line as usize - 1).unwrap();
    assert_eq!(found.file, "policy/test.yaml");
    assert!(line.trim_start().starts_with("desk-reads:"), "{line}");
}

#[test]
fn what_no_rule_admits_is_denied_with_the_nearest_rule_and_its_first_failed_term() {
    let policy = whole(BANK);
    let other_caller = ask(&policy, "shop/cart", "bank/banking-api", 8080, NOW);
    assert_eq!(other_caller.reason, Some(Reason::NoRule));
    let nearest = other_caller.nearest.unwrap();
    assert_eq!((nearest.rule.id.as_str(), nearest.failed.as_str()), ("bank/banking-api:media", "ports"));
    let other_port = ask(&policy, "bank/ledger", "bank/banking-api", 8080, NOW);
    let nearest = other_port.nearest.unwrap();
    assert_eq!((nearest.rule.id.as_str(), nearest.failed.as_str()), ("bank/banking-api:desk-reads", "from"));
}

#[test]
fn an_undeclared_port_is_no_service() {
    let decision = ask(&whole(BANK), "shop/web-frontend", "bank/banking-api", 22, NOW);
    assert_eq!(decision.reason, Some(Reason::NoService));
    let nowhere = ask(&whole(BANK), "shop/web-frontend", "bank/none", 22, NOW);
    assert_eq!(nowhere.reason, Some(Reason::NoService));
}

#[test]
fn an_included_rule_opens_its_number_for_every_service_of_the_namespace() {
    let policy = whole(BANK);
    let scraped = ask(&policy, "ops/prometheus", "bank/ledger", 9100, NOW);
    assert_eq!((rule(&scraped), scraped.layer), ("ops/scrape:scrape", Some(Layer::Namespace)));
    let other = ask(&policy, "shop/cart", "bank/ledger", 9100, NOW);
    assert_eq!(other.reason, Some(Reason::NoRule));
}

#[test]
fn a_deny_of_the_mesh_wins_over_an_allow_of_the_service_but_for_its_exception_until_its_date() {
    let policy = whole(BANK);
    let denied = ask(&policy, "shop/cart", "dev/warehouse", 5432, NOW);
    assert_eq!((rule(&denied), denied.reason), ("mesh:prod-to-dev", Some(Reason::DeniedByRule)));
    assert_eq!(denied.layer, Some(Layer::Mesh));
    assert!(ask(&policy, "risk/anonymiser", "dev/warehouse", 5432, NOW).is_allowed());
    let last_moment = UnixTime(1_801_440_000 - 1); // 2027-01-31T23:59:59Z
    assert!(ask(&policy, "risk/anonymiser", "dev/warehouse", 5432, last_moment).is_allowed());
    let ended = ask(&policy, "risk/anonymiser", "dev/warehouse", 5432, UnixTime(1_801_440_000));
    assert_eq!(rule(&ended), "mesh:prod-to-dev");
}

#[test]
fn an_exception_holds_for_its_own_destination_only() {
    let elsewhere = BANK.replace("to: [dev/warehouse], ports: [5432/tcp]", "to: [bank/*], ports: [5432/tcp]");
    assert_ne!(elsewhere, BANK);
    let decision = ask(&whole(&elsewhere), "risk/anonymiser", "dev/warehouse", 5432, NOW);
    assert_eq!((rule(&decision), decision.reason), ("mesh:prod-to-dev", Some(Reason::DeniedByRule)));
}

#[test]
fn a_require_refuses_callers_outside_its_must_even_where_an_allow_names_them() {
    let decision = whole(BANK).evaluate(&name("dev/warehouse"), &name("bank/banking-api"), Transport::Udp, 20_000, NOW);
    assert_eq!((rule(&decision), decision.reason), ("bank:from-prod", Some(Reason::RequireFailed)));
}

#[test]
fn a_deny_of_the_service_itself_wins_over_its_allow() {
    let decision = ask(&whole(BANK), "shop/web-frontend", "bank/banking-api", 53, NOW);
    assert_eq!(rule(&decision), "bank/banking-api:no-dns");
}

#[test]
fn audit_mode_lets_through_no_rule_only_on_its_ports_until_the_end_of_its_day() {
    let policy = whole(BANK);
    let audited = ask(&policy, "shop/cart", "bank/ledger", 5432, NOW);
    assert!(audited.is_allowed() && audited.audit);
    assert_eq!(audited.reason, Some(Reason::NoRule));
    assert_eq!(ask(&policy, "shop/cart", "bank/ledger", 5433, NOW).reason, Some(Reason::NoRule));
    assert_eq!(ask(&policy, "shop/cart", "bank/ledger", 1, NOW).reason, Some(Reason::NoService));
    let required = ask(&policy, "dev/warehouse", "bank/ledger", 5432, NOW);
    assert_eq!(required.reason, Some(Reason::RequireFailed));
    assert!(ask(&policy, "shop/cart", "bank/ledger", 5432, UnixTime(AFTER_AUDIT.0 + DAY - 1)).is_allowed());
    assert!(!ask(&policy, "shop/cart", "bank/ledger", 5432, UnixTime(AFTER_AUDIT.0 + DAY)).is_allowed());
}

#[test]
fn echo_is_let_in_from_whom_some_rule_admits_on_any_port() {
    let policy = whole(BANK);
    let echo = |from: &str, to: &str| policy.evaluate_echo(&name(from), &name(to), NOW);
    assert!(echo("shop/cart", "bank/banking-api").is_allowed());
    assert!(echo("ops/prometheus", "bank/ledger").is_allowed());
    assert_eq!(echo("bank/ledger", "bank/banking-api").reason, Some(Reason::NoRule));
    // Audit mode is no rule.
    assert!(!echo("shop/cart", "bank/ledger").is_allowed());
    assert!(!echo("shop/cart", "dev/warehouse").is_allowed());
}

#[test]
fn an_identity_that_the_policy_does_not_know_is_denied_even_by_any() {
    let policy = whole(BANK);
    for (from, to) in [("dev/stranger", "dev/warehouse"), ("nowhere/stranger", "dev/warehouse")] {
        assert!(!ask(&policy, from, to, 5432, NOW).is_allowed());
        assert!(!policy.linked(&name(from), &name(to), NOW));
    }
    assert!(!ask(&policy, "shop/stranger", "bank/ledger", 5432, NOW).is_allowed());
}

#[test]
fn linked_follows_rules_denies_requires_and_audit() {
    let policy = whole(BANK);
    let linked = |from: &str, to: &str, now| policy.linked(&name(from), &name(to), now);
    assert!(linked("shop/cart", "bank/banking-api", NOW));
    assert!(!linked("dev/warehouse", "bank/banking-api", NOW), "a require fails on every port");
    assert!(!linked("shop/cart", "dev/warehouse", NOW), "a deny holds on every port");
    assert!(linked("shop/cart", "bank/ledger", NOW), "audit mode counts as open");
    assert!(!linked("shop/cart", "bank/ledger", UnixTime(AFTER_AUDIT.0 + DAY)));
    assert!(!linked("shop/cart", "shop/web-frontend", NOW));
    assert_eq!(policy.callers(&name("dev/warehouse"), NOW), [name("dev/warehouse"), name("risk/anonymiser")]);
    assert_eq!(policy.callees(&name("risk/anonymiser"), NOW), [name("bank/ledger"), name("dev/warehouse")]);
}

#[test]
fn a_decision_reads_back_from_its_json_and_the_json_keeps_its_names() {
    let decision = ask(&whole(BANK), "shop/cart", "dev/warehouse", 5432, NOW);
    let json = serde_json::to_value(&decision).unwrap();
    assert_eq!(json["verdict"], "deny");
    assert_eq!(json["reason"], "denied-by-rule");
    assert_eq!(json["layer"], "mesh");
    assert_eq!(json["rule"]["id"], "mesh:prod-to-dev");
    assert_eq!(json["source"], "shop/cart");
    assert_eq!(serde_json::from_value::<Decision>(json).unwrap(), decision);
}
