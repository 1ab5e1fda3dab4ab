//! Tokens: every refusal, the bypasses that were published for others' verifiers by name, and that no bytes panic.

use aws_lc_rs::hmac;
use proptest::prelude::*;
use warren_proto::admin::{Selector, SelectorValue};
use warren_proto::reason::{Reason, Refusal};
use zeroize::Zeroizing;

use super::super::jwks::KeySet;
use super::super::{Attested, MAX_DOCUMENT, Presented, Rejected, attest, check_selectors, checked};
use super::*;
use crate::store::Revision;

const GITHUB: &str = "https://token.actions.githubusercontent.com";

fn judged(settings: &AttestorSettings, token: &str, now: UnixTime) -> Result<Attested, Rejected> {
    let presented = Presented::Document(Zeroizing::new(token.as_bytes().to_vec()));
    attest("cluster", Revision(7), settings, &presented, now)
}

fn refused(settings: &AttestorSettings, token: &str) -> Reason {
    judged(settings, token, NOW).expect_err("refused").refusal.reason
}

/// `claims` with one member replaced, or removed by null.
fn but(claims: &Value, pointer: &str, value: Value) -> Value {
    let mut changed = claims.clone();
    let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
    let parent = changed.pointer_mut(parent).and_then(Value::as_object_mut).expect("an object");
    if value.is_null() {
        parent.remove(name);
    } else {
        parent.insert(name.to_owned(), value);
    }
    changed
}

#[test]
fn a_pods_token_says_its_namespace_account_pod_and_node_and_nothing_else() {
    let signer = Signer::new("a");
    let attested = judged(&signer.kubernetes(), &signer.token(&pod_claims("shop", "web", "u1")), NOW).expect("good");
    assert_eq!(attested.subject(), "system:serviceaccount:shop:web");
    let says = |name: &str, value: &str| attested.says(&[Selector::text(name, value)]);
    assert!(
        says("k8s:ns", "shop") && says("k8s:sa", "web") && says("k8s:pod", "web-0") && says("k8s:node", "worker-1")
    );
    assert!(
        !says("k8s:ns", "bank") && !says("k8s:sa", "web-0") && !says("claim:sub", "system:serviceaccount:shop:web")
    );
    assert!(!attested.says(&[]), "nothing says nothing");
    assert!(!attested.says(&[Selector::text("k8s:ns", "shop"), Selector::text("k8s:sa", "api")]), "all, not any");
}

#[test]
fn every_claim_of_a_pods_token_is_needed_and_a_wrong_one_is_named() {
    let signer = Signer::new("a");
    let (settings, good) = (signer.kubernetes(), pod_claims("shop", "web", "u1"));
    let cases = [
        ("/iss", json!("https://other"), Reason::EvidenceIssuer, "claims.iss"),
        ("/iss", json!(format!("{ISSUER}/")), Reason::EvidenceIssuer, "claims.iss"),
        ("/iss", Value::Null, Reason::EvidenceMalformed, "claims.iss"),
        ("/aud", json!("vault"), Reason::EvidenceAudience, "claims.aud"),
        ("/aud", json!([AUDIENCE, "vault"]), Reason::EvidenceAudience, "claims.aud"),
        ("/aud", json!([]), Reason::EvidenceAudience, "claims.aud"),
        ("/aud", Value::Null, Reason::EvidenceAudience, "claims.aud"),
        ("/aud", json!({ "a": AUDIENCE }), Reason::EvidenceMalformed, "claims.aud"),
        ("/exp", json!(NOW.0 - 60), Reason::EvidenceExpired, "claims.exp"),
        ("/exp", Value::Null, Reason::EvidenceMalformed, "claims.exp"),
        ("/exp", json!(1.9e9), Reason::EvidenceMalformed, "claims.exp"),
        ("/exp", json!((NOW.0 + 60).to_string()), Reason::EvidenceMalformed, "claims.exp"),
        ("/exp", json!(-1), Reason::EvidenceMalformed, "claims.exp"),
        ("/exp", json!(u64::MAX), Reason::EvidenceMalformed, "claims.exp"),
        ("/exp", json!(NOW.0 - 600 + 3601), Reason::EvidenceExpired, "claims.exp"),
        ("/iat", Value::Null, Reason::EvidenceMalformed, "claims.iat"),
        ("/iat", json!(NOW.0 + 61), Reason::EvidenceNotYetValid, "claims.iat"),
        ("/nbf", json!(NOW.0 + 61), Reason::EvidenceNotYetValid, "claims.nbf"),
        ("/sub", Value::Null, Reason::EvidenceMalformed, "claims.sub"),
        ("/sub", json!("system:serviceaccount:bank:api"), Reason::EvidenceMalformed, "claims.sub"),
        ("/kubernetes.io", Value::Null, Reason::EvidenceMalformed, "kubernetes.io"),
        ("/kubernetes.io/namespace", json!("bank"), Reason::EvidenceMalformed, "claims.sub"),
        ("/kubernetes.io/serviceaccount", Value::Null, Reason::EvidenceMalformed, "serviceaccount"),
        ("/kubernetes.io/pod", Value::Null, Reason::EvidenceUnbound, "pod"),
        ("/kubernetes.io/pod", json!("web-0"), Reason::EvidenceMalformed, "pod"),
        ("/kubernetes.io/pod/uid", Value::Null, Reason::EvidenceMalformed, "uid"),
        ("/kubernetes.io/pod/uid", json!(""), Reason::EvidenceMalformed, "uid"),
        ("/kubernetes.io/node", json!([]), Reason::EvidenceMalformed, "node"),
    ];
    for (pointer, value, reason, named) in cases {
        let token = signer.token(&but(&good, pointer, value.clone()));
        let rejected = judged(&settings, &token, NOW).expect_err(pointer);
        assert_eq!(rejected.refusal.reason, reason, "{pointer} = {value}: {}", rejected.refusal);
        assert!(rejected.refusal.detail.contains(named), "{pointer} = {value}: {}", rejected.refusal);
        assert!(rejected.subject.is_some(), "its signature holds: worth a row of the audit log");
    }
    // Not every member is needed: older clusters name no node.
    judged(&settings, &signer.token(&but(&good, "/kubernetes.io/node", Value::Null)), NOW).expect("good");
    judged(&settings, &signer.token(&but(&good, "/nbf", Value::Null)), NOW).expect("good");
}

#[test]
fn a_token_is_good_until_its_end_and_a_minute_and_no_longer() {
    let signer = Signer::new("a");
    let (settings, token) = (signer.kubernetes(), signer.token(&pod_claims("shop", "web", "u1")));
    let at =
        |seconds: u64| judged(&settings, &token, UnixTime(NOW.0 + seconds)).map_err(|rejected| rejected.refusal.reason);
    assert!(at(3059).is_ok());
    assert_eq!(at(3060).expect_err("over"), Reason::EvidenceExpired);
}

/// spire 1.12.3: a token without `exp` was accepted for ever.
#[test]
fn a_token_without_an_end_is_refused() {
    let signer = Signer::new("a");
    let token = signer.token(&but(&pod_claims("shop", "web", "u1"), "/exp", Value::Null));
    assert_eq!(refused(&signer.kubernetes(), &token), Reason::EvidenceMalformed);
}

/// `alg: none`, in every spelling, and an empty signature.
#[test]
fn a_token_cannot_ask_to_go_unsigned() {
    let signer = Signer::new("a");
    let claims = pod_claims("shop", "web", "u1").to_string();
    for algorithm in ["none", "None", "NONE", "nOnE", ""] {
        for kid in [json!({ "alg": algorithm }), json!({ "alg": algorithm, "kid": "a" })] {
            let token = signer.with_header(&kid.to_string(), &claims);
            let unsigned = format!("{}.", token.rsplit_once('.').expect("three parts").0);
            assert_eq!(refused(&signer.kubernetes(), &token), Reason::EvidenceAlgorithm, "{kid}");
            assert_eq!(refused(&signer.kubernetes(), &unsigned), Reason::EvidenceAlgorithm, "{kid}");
        }
    }
    let empty = signer.token(&pod_claims("shop", "web", "u1"));
    let empty = format!("{}.", empty.rsplit_once('.').expect("three parts").0);
    assert_eq!(refused(&signer.kubernetes(), &empty), Reason::EvidenceSignature);
}

/// Algorithm confusion: a public key taken for an HMAC's secret.
#[test]
fn a_public_key_is_never_taken_for_a_secret() {
    let signer = Signer::new("a");
    let header = json!({ "alg": "HS256", "kid": "a" }).to_string();
    let claims = pod_claims("shop", "web", "u1").to_string();
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    for secret in [signer.jwks().into_bytes(), signer.key.public_key().as_ref().to_vec()] {
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &secret), signed.as_bytes());
        let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag.as_ref()));
        assert_eq!(refused(&signer.kubernetes(), &token), Reason::EvidenceAlgorithm);
    }
    let symmetric = json!({ "keys": [{ "kty": "oct", "kid": "a", "alg": "HS256", "k": "c2VjcmV0" }] }).to_string();
    assert_eq!(KeySet::parse(&symmetric).expect_err("refused").reason, Reason::InvalidField);
}

/// A key that comes with the token, by value or by address, or a header that changes how it is read.
#[test]
fn a_token_cannot_bring_its_own_key_or_its_own_rules() {
    let (signer, thief) = (Signer::new("a"), Signer::new("a"));
    let claims = pod_claims("shop", "web", "u1").to_string();
    for (name, value) in [
        ("jwk", thief.jwk()),
        ("jku", json!("https://evil.example/jwks")),
        ("x5u", json!("https://evil.example/chain")),
        ("x5c", json!(["MIIB"])),
        ("crit", json!(["exp"])),
        ("zip", json!("DEF")),
    ] {
        let mut header = json!({ "alg": "ES256", "kid": "a" });
        header[name] = value;
        let token = thief.with_header(&header.to_string(), &claims);
        let rejected = judged(&signer.kubernetes(), &token, NOW).expect_err(name);
        assert_eq!(rejected.refusal.reason, Reason::EvidenceMalformed, "{name}");
        assert!(rejected.refusal.detail.contains(name) && rejected.subject.is_none(), "{}", rejected.refusal);
    }
    let stolen = thief.token(&pod_claims("shop", "web", "u1"));
    let rejected = judged(&signer.kubernetes(), &stolen, NOW).expect_err("another's key");
    assert_eq!(rejected.refusal.reason, Reason::EvidenceSignature);
    assert!(rejected.subject.is_none(), "a stranger's claims stand in no audit log");
}

#[test]
fn the_key_is_found_by_its_id_and_not_by_trying() {
    let (one, other) = (Signer::new("one"), Signer::new("other"));
    let both = json!({ "keys": [one.jwk(), other.jwk()] }).to_string();
    let settings = AttestorSettings::Kubernetes(TokenIssuer { jwks: both, ..one.issuer(ISSUER) });
    let claims = pod_claims("shop", "web", "u1").to_string();
    let by = |kid: Value| {
        let mut header = json!({ "alg": "ES256", "typ": "JWT" });
        if !kid.is_null() {
            header["kid"] = kid;
        }
        other.with_header(&header.to_string(), &claims)
    };
    judged(&settings, &by(json!("other")), NOW).expect("its own");
    assert_eq!(refused(&settings, &by(json!("one"))), Reason::EvidenceSignature);
    assert_eq!(refused(&settings, &by(json!("third"))), Reason::EvidenceSignature);
    assert_eq!(refused(&settings, &by(json!(1))), Reason::EvidenceMalformed);
    assert_eq!(refused(&settings, &by(Value::Null)), Reason::EvidenceSignature, "with several keys it must say which");
    judged(&other.kubernetes(), &by(Value::Null), NOW).expect("with one key it need not");
}

#[test]
fn what_is_altered_cut_or_of_another_form_is_refused() {
    let signer = Signer::new("a");
    let settings = signer.kubernetes();
    let good = signer.token(&pod_claims("shop", "web", "u1"));
    let parts: Vec<&str> = good.split('.').collect();
    let forged = URL_SAFE_NO_PAD.encode(pod_claims("bank", "api", "u1").to_string());
    assert_eq!(refused(&settings, &format!("{}.{forged}.{}", parts[0], parts[2])), Reason::EvidenceSignature);
    for wrong in [
        String::new(),
        "..".to_owned(),
        parts[0].to_owned(),
        format!("{}.{}", parts[0], parts[1]),
        format!("{good}.{}", parts[2]),
        format!("{good}="),
        format!(" {good}"),
        good.replace('.', " . "),
        "x".repeat(MAX_DOCUMENT + 1),
    ] {
        assert_eq!(refused(&settings, &wrong), Reason::EvidenceMalformed, "{wrong:.60}");
    }
    for header in ["[]", "{}", "{\"alg\":1}", "{\"alg\":\"ES256\",\"typ\":\"at+jwt\"}", "{\"alg\":\"ES256\",\"typ\":7}"]
    {
        let token = signer.with_header(header, &pod_claims("shop", "web", "u1").to_string());
        assert_eq!(refused(&settings, &token), Reason::EvidenceMalformed, "{header}");
    }
    let relabelled = signer.with_header(&json!({ "alg": "RS256", "kid": "a" }).to_string(), "{}");
    assert_eq!(refused(&settings, &relabelled), Reason::EvidenceAlgorithm);
    let list = signer.with_header(&json!({ "alg": "ES256", "kid": "a" }).to_string(), "[]");
    assert_eq!(refused(&settings, &list), Reason::EvidenceMalformed);
}

/// Two readers of one token, of which one takes the first `sub` and the other the last.
#[test]
fn a_claim_or_a_header_that_stands_twice_is_refused() {
    let signer = Signer::new("a");
    let claims = pod_claims("shop", "web", "u1").to_string();
    let twice = format!("{{\"iss\":\"{ISSUER}\",{}", &claims[1..]);
    let token = signer.with_header(&json!({ "alg": "ES256", "kid": "a" }).to_string(), &twice);
    assert_eq!(refused(&signer.kubernetes(), &token), Reason::EvidenceMalformed);
    let token = signer.with_header(r#"{"alg":"none","kid":"a","alg":"ES256"}"#, &claims);
    assert_eq!(refused(&signer.kubernetes(), &token), Reason::EvidenceMalformed);
}

#[test]
fn a_pod_is_the_same_evidence_in_every_token_and_another_pod_is_not() {
    let signer = Signer::new("a");
    let evidence = |claims: &Value| *judged(&signer.kubernetes(), &signer.token(claims), NOW).expect("good").evidence();
    let first = pod_claims("shop", "web", "u1");
    let refreshed = but(&but(&first, "/jti", json!("later")), "/exp", json!(NOW.0 + 2999));
    assert_eq!(evidence(&first), evidence(&refreshed));
    assert_ne!(evidence(&first), evidence(&pod_claims("shop", "web", "u2")));
}

/// A signature that is altered and still verifies, as ECDSA allows (nebula GHSA-69x3-g4r3-p962), makes no other token.
#[test]
fn a_job_is_the_same_evidence_under_another_signature() {
    let signer = Signer::new("a");
    let settings = signer.oidc(GITHUB);
    let without = but(&job_claims(GITHUB), "/jti", Value::Null);
    for claims in [job_claims(GITHUB), without.clone()] {
        // Each call signs anew, with another random number.
        let (one, other) = (signer.token(&claims), signer.token(&claims));
        assert_ne!(one, other);
        let evidence = |token: &str| *judged(&settings, token, NOW).expect("good").evidence();
        assert_eq!(evidence(&one), evidence(&other));
    }
    let evidence = |claims: &Value| *judged(&settings, &signer.token(claims), NOW).expect("good").evidence();
    assert_ne!(evidence(&without), evidence(&but(&without, "/run_attempt", json!(2))));
    assert_ne!(evidence(&job_claims(GITHUB)), evidence(&but(&job_claims(GITHUB), "/jti", json!("job-2"))));
    for wrong in [json!(""), json!(7)] {
        assert_eq!(
            refused(&settings, &signer.token(&but(&job_claims(GITHUB), "/jti", wrong))),
            Reason::EvidenceMalformed
        );
    }
}

#[test]
fn claims_are_compared_with_their_types() {
    let signer = Signer::new("a");
    let attested = judged(&signer.oidc(GITHUB), &signer.token(&job_claims(GITHUB)), NOW).expect("good");
    let says = |text: &str| attested.says(&[text.parse().expect("selector")]);
    assert!(says("claim:repository_id=74") && says("claim:run_attempt:=1") && says("claim:protected:=true"));
    assert!(says("claim:/runner/pool=blue"));
    assert!(!says("claim:repository_id:=74") && !says("claim:run_attempt=1") && !says("claim:protected=true"));
    assert!(!says("claim:repository_id=7") && !says("claim:sub=repo:acme/shop:*"), "no prefix, no pattern");
    assert!(!says(&format!("claim:iss={GITHUB}")) && !says(&format!("claim:aud={AUDIENCE}")));
}

#[test]
fn a_registration_that_could_never_hold_or_holds_for_strangers_is_refused() {
    let signer = Signer::new("a");
    let check = |settings: &AttestorSettings, texts: &[&str]| {
        let selectors: Vec<Selector> = texts.iter().map(|text| text.parse().expect("selector")).collect();
        check_selectors(settings, &selectors).map_err(|refusal: Refusal| refusal.detail)
    };
    let kubernetes = signer.kubernetes();
    check(&kubernetes, &["k8s:ns=shop", "k8s:sa=web"]).expect("good");
    for (texts, named) in [
        (&[][..], "selectors"),
        (&["k8s:ns=shop"], "k8s:sa"),
        (&["k8s:ns=shop", "k8s:sa=web", "k8s:label=x"], "k8s:label"),
        (&["k8s:ns=shop", "k8s:sa:=1"], "k8s:sa"),
        (&["claim:sub=x"], "claim:sub"),
    ] {
        let detail = check(&kubernetes, texts).expect_err("refused");
        assert!(detail.contains(named), "{texts:?}: {detail}");
    }
    let (github, own) = (signer.oidc(GITHUB), signer.oidc("https://id.bank.example"));
    check(&github, &["claim:repository_id=74", "claim:ref=refs/heads/main"]).expect("good");
    check(&own, &["claim:role=builder"]).expect("good");
    assert!(check(&github, &["claim:ref=refs/heads/main"]).expect_err("anybody's").contains("repository_id"));
    for useless in ["claim:aud", "claim:exp", "claim:", "sub", "k8s:ns"] {
        assert!(check_selectors(&own, &[Selector::text(useless, "x")]).is_err(), "{useless}");
    }
    let long = Selector { name: "claim:x".into(), value: SelectorValue::Text("x".repeat(1025)) };
    assert!(check_selectors(&own, &[long]).is_err());
}

#[test]
fn a_key_set_keeps_what_is_used_and_refuses_what_has_no_place_in_it() {
    let signer = Signer::new("a");
    let rsa = rsa_key();
    let public = rsa.public_key();
    let (n, e) =
        (public.modulus().big_endian_without_leading_zero(), public.exponent().big_endian_without_leading_zero());
    let rsa_jwk = json!({ "kty": "RSA", "kid": "r", "n": URL_SAFE_NO_PAD.encode(n), "e": URL_SAFE_NO_PAD.encode(e),
        "x5c": ["MIIC"], "use": "sig" });
    let wide = json!({ "keys": [signer.jwk(), rsa_jwk,
        { "kty": "EC", "crv": "secp256k1", "kid": "k1", "x": "AA", "y": "AA" },
        { "kty": "RSA", "kid": "enc", "use": "enc", "n": "AQAB", "e": "AQAB" },
        { "kty": "RSA", "kid": "oaep", "alg": "RSA-OAEP", "n": "AQAB", "e": "AQAB" }] });
    let kept = KeySet::parse(&wide.to_string()).expect("good").kept();
    assert!(!kept.contains("x5c") && !kept.contains("k1"), "{kept}");
    assert_eq!(KeySet::parse(&kept).expect("what is kept reads back").kept(), kept);
    let header = json!({ "alg": "RS256", "kid": "r" }).to_string();
    let signed = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(header),
        URL_SAFE_NO_PAD.encode(pod_claims("shop", "web", "u1").to_string())
    );
    let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(rsa_sign(&rsa, signed.as_bytes())));
    let settings = AttestorSettings::Kubernetes(TokenIssuer { jwks: kept, ..signer.issuer(ISSUER) });
    judged(&settings, &token, NOW).expect("RS256 by default for RSA keys");

    let point = signer.jwk();
    for (wrong, named) in [
        (json!({ "keys": [but(&point, "/d", json!("AA"))] }), "private"),
        (json!({ "keys": [but(&point, "/k", json!("AA"))] }), "symmetric"),
        (json!({ "keys": [point, point] }), "kid"),
        (json!({ "keys": [but(&point, "/x", json!("AAAA"))] }), "x, y"),
        (json!({ "keys": [but(&point, "/x", json!(URL_SAFE_NO_PAD.encode([1; 32])))] }), "curve"),
        (json!({ "keys": [{ "kty": "RSA", "n": URL_SAFE_NO_PAD.encode([0xff; 128]), "e": "AQAB" }] }), "2048"),
        (json!({ "keys": [{ "kty": "RSA", "n": URL_SAFE_NO_PAD.encode([0xff; 1024]), "e": "AQAB" }] }), "4096"),
        (json!({ "keys": [{ "kty": "RSA", "n": URL_SAFE_NO_PAD.encode(n), "e": "AQ" }] }), "e:"),
        (json!({ "keys": [] }), "no key"),
        (json!({ "keys": {} }), "keys"),
        (json!([]), "object"),
        (json!({ "keys": vec![json!({ "kty": "EC" }); 33] }), "at most 32"),
    ] {
        let refusal = KeySet::parse(&wrong.to_string()).expect_err(named);
        assert_eq!(refusal.reason, Reason::InvalidField);
        assert!(refusal.detail.contains(named), "{named}: {refusal}");
    }
}

#[test]
fn settings_that_would_accept_too_much_are_refused() {
    let signer = Signer::new("a");
    let good = signer.issuer(ISSUER);
    for (wrong, named) in [
        (TokenIssuer { issuer: String::new(), ..good.clone() }, "issuer"),
        (TokenIssuer { audience: String::new(), ..good.clone() }, "audience"),
        (TokenIssuer { audience: "a\nb".into(), ..good.clone() }, "audience"),
        (TokenIssuer { max_lifetime_seconds: 86_401, ..good.clone() }, "max_lifetime_seconds"),
        (TokenIssuer { max_lifetime_seconds: 0, ..good.clone() }, "max_lifetime_seconds"),
        (TokenIssuer { jwks: "{}".into(), ..good }, "jwks"),
    ] {
        let refusal = checked(&AttestorSettings::Oidc(wrong), []).expect_err(named);
        assert!(refusal.reason == Reason::InvalidField && refusal.detail.starts_with(named), "{refusal}");
    }
}

proptest! {
    #[test]
    fn no_token_panics_and_none_is_believed(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let settings = Signer::new("a").kubernetes();
        let presented = Presented::Document(Zeroizing::new(bytes));
        prop_assert!(attest("cluster", Revision(1), &settings, &presented, NOW).is_err());
    }

    #[test]
    fn no_signed_claims_panic(text in "\\PC{0,200}", pod in "\\PC{0,20}") {
        let signer = Signer::new("a");
        let header = json!({ "alg": "ES256", "kid": "a" }).to_string();
        let token = signer.with_header(&header, &text);
        prop_assert!(judged(&signer.kubernetes(), &token, NOW).is_err());
        let claims = but(&pod_claims("shop", "web", "u1"), "/kubernetes.io/pod/uid", json!(pod));
        let _ = judged(&signer.kubernetes(), &signer.token(&claims), NOW);
        let _ = judged(&signer.oidc(ISSUER), &signer.token(&claims), NOW);
    }

    #[test]
    fn no_key_set_panics(text in "\\PC{0,200}", n in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = KeySet::parse(&text);
        let key = json!({ "keys": [{ "kty": "RSA", "n": URL_SAFE_NO_PAD.encode(&n), "e": "AQAB" },
            { "kty": "EC", "crv": "P-256", "x": URL_SAFE_NO_PAD.encode(&n), "y": URL_SAFE_NO_PAD.encode(&n) },
            { "kty": "OKP", "crv": "Ed25519", "kid": "o", "x": URL_SAFE_NO_PAD.encode(&n) }] });
        let _ = KeySet::parse(&key.to_string());
    }
}
