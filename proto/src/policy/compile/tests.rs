//! What does not compile, and how it is told.

use super::super::fixtures::{BANK, NOW, errors, whole};
use super::*;

/// The bank's mesh with one line replaced.
fn with(from: &str, to: &str) -> Vec<String> {
    assert!(BANK.contains(from), "{from}");
    errors(&BANK.replacen(from, to, 1))
}

#[track_caller]
fn refused(list: &[String], words: &str) {
    assert!(list.iter().any(|line| line.contains(words)), "{words:?} not in {list:#?}");
}

#[test]
fn unknown_names_are_errors_that_name_the_nearest_valid_word() {
    refused(
        &with("from: [group:prod]\n    to", "from: [group:prd]\n    to"),
        "there is no Group `prd` (did you mean `prod`?)",
    );
    refused(&with("from: [shop/web-frontend]", "from: [shop/web-fronted]"), "did you mean `shop/web-frontend`?");
    refused(&with("from: [shop/*,", "from: [shopp/*,"), "there is no Namespace `shopp` (did you mean `shop`?)");
    refused(&with("ports: [api]", "ports: [apy]"), "has no port `apy` (did you mean `api`?)");
    refused(&with("include: [ops/scrape]", "include: [ops/scrap]"), "did you mean `ops/scrape`?");
    refused(&with("labels: { env: dev }", "labels: { env: dve }"), "did you mean `dev`?");
    refused(&with("labels: { env: dev }", "labels: { enw: dev }"), "did you mean `env`?");
    refused(&with("name: ops\nlabels: { env: prod }", "name: ops"), "does not set the label `env`");
    refused(&with("name: shop/cart", "name: shoop/cart"), "the namespace `shoop` is not declared");
}

#[test]
fn an_error_tells_file_line_and_column() {
    let list = with("from: [shop/web-frontend]", "from: [shop/web-fronted]");
    let line = BANK.lines().position(|line| line.contains("desk-reads:")).unwrap() + 1;
    refused(&list, &format!("p.yaml:{line}:24: error: there is no Service `shop/web-fronted`"));
}

/// The bank's mesh with a laptop and a printer, both plain devices.
const DEVICES: &str = "---
kind: Peer
name: laptop
---
kind: Peer
name: printer
ports: { ipp: { port: 631, protocol: tcp } }
allow: { print: { from: [shop/cart, peer:laptop], ports: [ipp] } }
";

#[test]
fn a_device_is_judged_like_any_other_identity_as_caller_and_as_destination() {
    let text = format!("{}{DEVICES}", BANK.replacen("from: [shop/*,", "from: [peer:laptop, shop/*,", 1));
    let policy = whole(&text);
    let asked = |from: &str, to: &str, transport, port| {
        let decision = policy.evaluate(&from.parse().unwrap(), &to.parse().unwrap(), transport, port, NOW);
        (decision.is_allowed(), decision.rule.map(|rule| rule.id), decision.reason)
    };
    let by = |rule: &str| Some(rule.to_owned());
    assert_eq!(asked("shop/cart", "peer/printer", Transport::Tcp, 631), (true, by("peer/printer:print"), None));
    assert_eq!(asked("peer/laptop", "peer/printer", Transport::Tcp, 631), (true, by("peer/printer:print"), None));
    let no_rule = (false, None, Some(crate::Reason::NoRule));
    assert_eq!(asked("ops/prometheus", "peer/printer", Transport::Tcp, 631), no_rule);
    // A guardrail by label leaves out who has no label: the bank lets in `env: prod` only.
    let required = (false, by("bank:from-prod"), Some(crate::Reason::RequireFailed));
    assert_eq!(asked("peer/laptop", "bank/banking-api", Transport::Udp, 20_000), required);
    let no_service = (false, None, Some(crate::Reason::NoService));
    assert_eq!(asked("shop/cart", "peer/laptop", Transport::Tcp, 22), no_service);
}

#[test]
fn a_device_that_is_not_declared_is_an_unknown_name_and_known_to_nobody() {
    let list = with("from: [shop/*,", "from: [peer:laptop, shop/*,");
    refused(&list, "there is no Peer `laptop` (add kind: Peer, name: laptop)");
    let policy = whole(&format!("{BANK}{DEVICES}"));
    assert!(policy.leaves_out(&"peer/desktop".parse().unwrap()));
    assert!(!policy.leaves_out(&"peer/laptop".parse().unwrap()));
    assert!(whole(BANK).leaves_out(&"peer/laptop".parse().unwrap()), "also where there is no device at all");
}

#[test]
fn request_terms_that_would_reach_a_port_without_http_are_errors_at_every_layer() {
    let http = "http: [{ paths: [\"/admin/**\"] }]";
    refused(
        &with("deny:\n  no-dns: { from: [any], ports: [dns] }", &format!("deny:\n  d: {{ from: [any], {http} }}")),
        "reaches the port `rtp` of bank/banking-api, which is not http",
    );
    refused(
        &with(
            "deny:\n  no-dns: { from: [any], ports: [dns] }",
            &format!("deny:\n  d: {{ from: [any], ports: [dns], {http} }}"),
        ),
        "reaches the port `dns`",
    );
    refused(
        &with(
            "require:\n  from-prod: { must: { from: [group:prod] } }",
            &format!("require:\n  r: {{ must: {{ {http} }} }}"),
        ),
        "judges requests and reaches",
    );
    refused(
        &with(
            "deny:\n  prod-to-dev:\n",
            &format!("deny:\n  m: {{ from: [any], to: [any], {http} }}\n  prod-to-dev:\n"),
        ),
        "the rule `mesh:m` judges requests and reaches",
    );
    refused(&with("ports: [9100/tcp] }", &format!("ports: [9100/tcp], {http} }}")), "reaches 9100/tcp of");
    let scoped = BANK.replacen(
        "deny:\n  prod-to-dev:\n",
        &format!("deny:\n  m: {{ from: [any], to: [any], protocol: http, {http} }}\n  prod-to-dev:\n"),
        1,
    );
    assert_eq!(errors(&scoped), Vec::<String>::new());
}

#[test]
fn a_policy_with_request_terms_compiles_and_says_what_is_not_enforceable_yet() {
    let text = BANK.replacen(
        "from: [shop/web-frontend], ports: [api] }",
        "from: [shop/web-frontend], ports: [api], http: [{ methods: [GET] }] }",
        1,
    );
    let list = whole(&text).enforceable().unwrap_err();
    assert_eq!(list.len(), 1);
    assert!(list[0].message.starts_with("not enforceable yet: bank/banking-api:desk-reads needs http"), "{}", list[0]);
    assert_eq!(whole(BANK).enforceable(), Ok(()));
}

#[test]
fn the_digest_changes_with_any_text_and_not_with_the_order_of_documents() {
    let (mesh, space) = ("kind: Mesh\nname: m\n", "kind: Namespace\nname: a\n");
    let policy = |files: [&str; 2]| {
        let files: Vec<_> = files
            .iter()
            .map(|text| crate::policy::SourceFile { name: format!("{}.yaml", text.len()), text: (*text).to_owned() })
            .collect();
        CompiledPolicy::compile(&Documents::from_files(&files).unwrap(), Mode::Whole).unwrap().digest()
    };
    assert_eq!(policy([mesh, space]), policy([space, mesh]));
    assert_ne!(policy([mesh, space]), policy([mesh, "kind: Namespace\nname: b\n"]));
}

#[test]
fn the_next_date_is_the_first_after_a_moment_at_which_an_answer_changes_by_itself() {
    let policy = whole(BANK);
    let (audit_ends, except_ends) = (UnixTime(1_797_379_200), UnixTime(1_801_440_000));
    assert_eq!(policy.next_date(UnixTime(0)), Some(audit_ends));
    assert_eq!(policy.next_date(UnixTime(audit_ends.0 - 1)), Some(audit_ends));
    assert_eq!(policy.next_date(audit_ends), Some(except_ends));
    assert_eq!(policy.next_date(except_ends), None);
    let (stranger, ledger) = ("shop/cart".parse().unwrap(), "bank/ledger".parse().unwrap());
    assert!(policy.linked(&stranger, &ledger, UnixTime(audit_ends.0 - 1)), "audit mode is open");
    assert!(!policy.linked(&stranger, &ledger, audit_ends));
}

#[test]
fn a_compiled_policy_can_be_shared_between_threads() {
    fn shared<T: Send + Sync + 'static>() {}
    shared::<CompiledPolicy>();
    shared::<crate::policy::PortTable>();
    shared::<crate::policy::IdentityTable>();
}

#[test]
fn a_policy_without_exactly_one_mesh_does_not_compile() {
    refused(&errors("kind: Namespace\nname: a\n"), "there is no Mesh document");
    refused(&errors("kind: Mesh\nname: a\n---\nkind: Mesh\nname: b\n"), "a second Mesh, `b`");
}
