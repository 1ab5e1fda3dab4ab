//! SPIFFE ids: the standard's limits, and a round trip.

use proptest::prelude::*;

use super::*;

#[test]
fn the_forms_of_warren_are_told_apart_and_print_as_they_were_read() {
    for text in [
        "spiffe://bank.example/ns/bank/sa/banking-api",
        "spiffe://bank.example/node/000102030405060708090a0b0c0d0e0f",
        "spiffe://bank.example/coordinator/c1",
        "spiffe://bank.example/signer/c1",
        "spiffe://bank.example",
        "spiffe://bank.example/some/Other.path_1",
    ] {
        let id: SpiffeId = text.parse().expect(text);
        assert_eq!(id.to_string(), text);
    }
    let id: SpiffeId = "spiffe://bank.example/ns/bank/sa/banking-api".parse().expect("valid");
    assert_eq!(id.workload().map(WorkloadName::as_str), Some("bank/banking-api"));
}

#[test]
fn names_outside_the_standard_are_refused() {
    let long = format!("spiffe://td/{}", "a".repeat(MAX_ID_LENGTH));
    for text in [
        "",
        "spiffe:/td",
        "SPIFFE://td/a",
        "http://td/a",
        "spiffe://",
        "spiffe:///a",
        "spiffe://TD/a",
        "spiffe://td/",
        "spiffe://td//a",
        "spiffe://td/a/",
        "spiffe://td/./a",
        "spiffe://td/../a",
        "spiffe://td/a%20b",
        "spiffe://td/a?q",
        "spiffe://td/a#f",
        "spiffe://user@td/a",
        "spiffe://td:1/a",
        "spiffe://td/\u{e9}",
        "spiffe://td/a\0b",
        " spiffe://td/a",
        long.as_str(),
    ] {
        assert!(text.parse::<SpiffeId>().is_err(), "accepted {text:?}");
    }
}

#[test]
fn an_id_that_only_resembles_a_workload_is_no_workload() {
    for text in [
        "spiffe://td/ns/Bank/sa/api",
        "spiffe://td/ns/bank/sa/api/x",
        "spiffe://td/ns/bank",
        "spiffe://td/sa/api/ns/bank",
    ] {
        let id: SpiffeId = text.parse().expect("valid SPIFFE ID");
        assert!(matches!(id.subject(), Subject::Other(_)), "{text}");
    }
}

proptest! {
    #[test]
    fn parsing_never_panics_and_what_parses_prints_back(text in "\\PC{0,80}") {
        if let Ok(id) = text.parse::<SpiffeId>() {
            prop_assert_eq!(id.to_string(), text);
        }
    }

    #[test]
    fn ids_survive_a_round_trip(ns in "[a-z][a-z0-9-]{0,20}", name in "[a-z][a-z0-9-]{0,20}", td in "[a-z0-9.-]{1,30}") {
        let id = WorkloadName::new(&ns, &name).expect("names").in_domain(&td.parse().expect("domain"));
        prop_assert_eq!(id.to_string().parse::<SpiffeId>().expect("parses"), id);
    }
}
