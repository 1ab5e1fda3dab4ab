//! Evidence of every kind, each way of being wrong, with keys made here.

mod aws;
mod certificates;
mod tokens;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use warren_proto::UnixTime;
use warren_proto::admin::{AttestorSettings, TokenIssuer};

/// When everything happens.
pub(crate) const NOW: UnixTime = UnixTime(1_800_000_000);
/// The cluster's issuer.
pub(crate) const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// Ours.
pub(crate) const AUDIENCE: &str = "warren.bank.example";

/// A token issuer with an ECDSA P-256 key.
pub(crate) struct Signer {
    key: EcdsaKeyPair,
    id: &'static str,
}

impl Signer {
    pub(crate) fn new(id: &'static str) -> Self {
        let document =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).expect("key");
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref()).expect("key");
        Self { key, id }
    }

    fn jwk(&self) -> Value {
        let (x, y) = self.key.public_key().as_ref()[1..].split_at(32);
        json!({ "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": self.id,
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y) })
    }

    /// Its JWK set.
    pub(crate) fn jwks(&self) -> String {
        json!({ "keys": [self.jwk()] }).to_string()
    }

    /// A token as it should be.
    pub(crate) fn token(&self, claims: &Value) -> String {
        self.with_header(&json!({ "alg": "ES256", "kid": self.id, "typ": "JWT" }).to_string(), &claims.to_string())
    }

    /// A token with these very texts inside.
    fn with_header(&self, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes()).expect("signature");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }

    pub(crate) fn kubernetes(&self) -> AttestorSettings {
        AttestorSettings::Kubernetes(self.issuer(ISSUER))
    }

    pub(crate) fn oidc(&self, issuer: &str) -> AttestorSettings {
        AttestorSettings::Oidc(self.issuer(issuer))
    }

    fn issuer(&self, issuer: &str) -> TokenIssuer {
        TokenIssuer {
            issuer: issuer.to_owned(),
            audience: AUDIENCE.to_owned(),
            jwks: self.jwks(),
            max_lifetime_seconds: 3600,
        }
    }
}

/// The claims of a pod's token, as the API server writes them.
pub(crate) fn pod_claims(namespace: &str, account: &str, pod: &str) -> Value {
    json!({
        "aud": [AUDIENCE], "iss": ISSUER, "iat": NOW.0 - 600, "nbf": NOW.0 - 600, "exp": NOW.0 + 3000,
        "jti": "5f2b0c1e", "sub": format!("system:serviceaccount:{namespace}:{account}"),
        "kubernetes.io": {
            "namespace": namespace,
            "node": { "name": "worker-1", "uid": "0d7e" },
            "pod": { "name": format!("{account}-0"), "uid": pod },
            "serviceaccount": { "name": account, "uid": "77aa" }
        }
    })
}

/// The claims of a CI job's token.
pub(crate) fn job_claims(issuer: &str) -> Value {
    json!({
        "aud": AUDIENCE, "iss": issuer, "iat": NOW.0 - 10, "exp": NOW.0 + 300, "jti": "job-1",
        "sub": "repo:acme/shop:environment:production", "repository_id": "74", "run_attempt": 1, "protected": true,
        "runner": { "pool": "blue" }
    })
}

/// An RSA key of 2048 bits, which takes a moment.
pub(crate) fn rsa_key() -> RsaKeyPair {
    RsaKeyPair::generate(KeySize::Rsa2048).expect("key")
}

/// An RSA PKCS #1 signature over SHA-256.
pub(crate) fn rsa_sign(key: &RsaKeyPair, message: &[u8]) -> Vec<u8> {
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature).expect("signature");
    signature
}
