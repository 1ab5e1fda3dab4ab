//! Tests that pass, tests that fail and say why, proofs with their counter-example.

use super::super::fixtures::{BANK, NOW, whole};
use super::*;

fn run(tests: &str) -> Vec<TestResult> {
    run_tests(&whole(&format!("{BANK}---\nkind: Tests\nname: t\n{tests}")), NOW)
}

#[test]
fn cases_are_judged_by_verdict_rule_reason_and_date() {
    let results = run(
        "cases:
  ok: { from: shop/web-frontend, to: bank/banking-api, connect: 8080/tcp, expect: { verdict: allow, rule: \"bank/banking-api:desk-reads\" } }
  denied: { from: shop/cart, to: dev/warehouse, connect: 5432/tcp, expect: { verdict: deny, reason: denied-by-rule, rule: \"mesh:prod-to-dev\" } }
  echo: { from: shop/cart, to: bank/banking-api, connect: echo, expect: { verdict: allow } }
  later: { from: risk/anonymiser, to: dev/warehouse, connect: 5432/tcp, at: \"2027-02-01\", expect: { verdict: deny } }
  on-the-day: { from: risk/anonymiser, to: dev/warehouse, connect: 5432/tcp, at: \"2027-01-31\", expect: { verdict: allow } }
",
    );
    for result in &results {
        assert!(result.passed, "{}: {}", result.name, result.message);
    }
    assert_eq!(results.len(), 5);
}

#[test]
fn a_failed_case_says_what_happened_instead() {
    let results = run(
        "cases:
  wrong: { from: shop/cart, to: bank/banking-api, connect: 8080/tcp, expect: { verdict: allow } }
  other-rule: { from: shop/web-frontend, to: bank/banking-api, connect: 8080/tcp, expect: { verdict: allow, rule: \"bank/banking-api:media\" } }
  other-reason: { from: shop/cart, to: bank/banking-api, connect: 22/tcp, expect: { verdict: deny, reason: no-rule } }
",
    );
    let messages: Vec<_> = results.iter().map(|result| result.message.as_str()).collect();
    assert_eq!(messages[0], "expected allow, but shop/cart -> bank/banking-api tcp port 8080 is refused (no-rule)");
    assert!(messages[1].starts_with("expected the rule bank/banking-api:media to decide, but"), "{}", messages[1]);
    assert!(messages[2].ends_with("is refused (no-service)"), "{}", messages[2]);
}

#[test]
fn a_proof_looks_at_every_identity_and_port_and_shows_what_breaks_it() {
    let results = run(
        "never:\n  dev-to-prod: { from: [group:dev], to: [group:prod] }\n  to-ledger: { from: [any], to: [bank/ledger], ports: [5432/tcp] }\n  high: { from: [any], to: [bank/banking-api], ports: [20000/udp] }\n  low: { from: [any], to: [bank/banking-api], ports: [100-16383/udp] }\n",
    );
    let passed: Vec<_> = results.iter().map(|result| (result.name.as_str(), result.passed)).collect();
    assert_eq!(passed, [("t:dev-to-prod", true), ("t:to-ledger", false), ("t:high", false), ("t:low", true)]);
    assert!(results[2].message.contains("port 20000 is let in by bank/banking-api:media"), "{}", results[2].message);
    assert_eq!(results[2].line as usize, BANK.lines().count() + 7);
}

#[test]
fn tests_that_name_what_does_not_exist_do_not_compile() {
    let list = super::super::fixtures::errors(&format!(
        "{BANK}---\nkind: Tests\nname: t\ncases:\n  a: {{ from: shop/cat, to: bank/ledger, connect: 1/tcp, expect: {{ verdict: deny, rule: \"bank/ledger:apy\" }} }}\n"
    ));
    assert!(list.iter().any(|line| line.contains("did you mean `shop/cart`?")), "{list:?}");
    assert!(list.iter().any(|line| line.contains("did you mean `bank/ledger:api`?")), "{list:?}");
}
