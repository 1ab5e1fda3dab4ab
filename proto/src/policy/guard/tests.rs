//! What an expression may cost, see and say.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

type Headers = BTreeMap<&'static str, &'static str>;

fn holds(text: &str, jwt: Option<BTreeMap<&'static str, Vec<&'static str>>>) -> Result<bool, GuardError> {
    let request = BTreeMap::from([("headers", Headers::from([("x-env", "prod")]))]);
    let source = Party { namespace: "shop", name: "web" };
    let destination = Party { namespace: "bank", name: "api" };
    Guard::compile(text).unwrap().holds(&Facts { request, jwt, source, destination })
}

#[test]
fn an_expression_sees_request_token_source_and_destination() {
    assert_eq!(holds("request.headers[\"x-env\"] == \"prod\"", None), Ok(true));
    assert_eq!(holds("source.namespace == 'shop' && destination.name.startsWith('a')", None), Ok(true));
    assert_eq!(holds("'teller' in jwt.roles", Some(BTreeMap::from([("roles", vec!["teller"])]))), Ok(true));
    assert_eq!(holds("has(request.headers) && size(request.headers) == 1", None), Ok(true));
}

#[test]
fn what_is_missing_or_not_true_or_false_is_an_error_and_not_false() {
    assert!(holds("jwt.roles == 'x'", None).is_err());
    assert!(holds("request.headers['none'] == 'x'", None).is_err());
    assert!(holds("request.headers['x-env']", None).is_err());
    assert!(holds("1 / 0 == 1", None).is_err());
}

#[test]
fn whatever_has_no_bound_on_its_cost_is_refused() {
    for text in [
        "[1, 2].all(x, x > 0)",
        "request.headers.exists(h, h == 'a')",
        "[1].map(x, x)",
        "[1].filter(x, x > 0)",
        "[1].exists_one(x, x > 0)",
        "[1,2].all(x, [1,2].all(y, [1,2].all(z, true)))",
    ] {
        assert_eq!(Guard::compile(text), Err(InvalidGuard::Comprehension), "{text}");
    }
    assert!(matches!(Guard::compile("request.path.matches('a+')"), Err(InvalidGuard::Function(_))));
    assert_eq!(Guard::compile(&format!("{}1{}", "(".repeat(30), ")".repeat(30))), Err(InvalidGuard::TooDeep));
    assert_eq!(Guard::compile(&format!("{}true", "!".repeat(100))), Err(InvalidGuard::TooDeep));
    assert!(Guard::compile(&vec!["true"; 200].join(" && ")).is_err());
    assert!(matches!(Guard::compile(&"a".repeat(MAX_LENGTH + 1)), Err(InvalidGuard::TooLong(_))));
}

#[test]
fn unknown_names_and_functions_are_refused_when_the_policy_is_read() {
    assert_eq!(Guard::compile("requst.path == '/'"), Err(InvalidGuard::Variable("requst".to_owned())));
    assert_eq!(Guard::compile("_f(1) == 1"), Err(InvalidGuard::Function("_f".to_owned())));
    assert!(matches!(Guard::compile("request."), Err(InvalidGuard::Syntax(_))));
    assert!(matches!(Guard::compile(""), Err(InvalidGuard::Syntax(_))));
}

proptest! {
    #[test]
    fn no_text_panics(text in "[a-z0-9 .()\\[\\]{}'\"!?:&|=<>+*/,-]{0,80}") {
        if let Ok(guard) = Guard::compile(&text) {
            let source = Party { namespace: "a", name: "b" };
            let facts: Facts<'_, _, Headers> = Facts { request: Headers::new(), jwt: None, source, destination: source };
            let _ = guard.holds(&facts);
        }
    }
}
