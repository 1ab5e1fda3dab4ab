//! JWK sets (RFC 7517): the public keys of a token issuer, checked when an attestor is set. Which algorithm a key verifies
//! is the key's to say, once and for all: a token has no say in it.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256, RsaParameters,
    RsaPublicKeyComponents, VerificationAlgorithm,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use warren_proto::reason::{Reason, Refusal};

use super::json::{self, Json, Object};

/// Largest set that is read; the largest public issuers' have some 20 KiB.
const MAX_SET: usize = 256 * 1024;
/// Most keys of one set.
const MAX_KEYS: usize = 32;
/// Longest key id, in bytes.
const MAX_ID: usize = 256;
/// RSA moduli, in bytes: 2048 to 4096 bits.
const MODULUS: std::ops::RangeInclusive<usize> = 256..=512;

/// The keys of one issuer.
#[derive(Debug)]
pub(super) struct KeySet(Vec<Key>);

/// A public key with the one algorithm it is for.
#[derive(Debug)]
pub(super) struct Key {
    id: Option<String>,
    /// As JWS spells it (RFC 7518, 3.1).
    algorithm: &'static str,
    public: Public,
}

enum Public {
    Rsa { parameters: &'static RsaParameters, modulus: Vec<u8>, exponent: Vec<u8> },
    Other { bytes: Vec<u8>, parsed: ParsedPublicKey },
}

impl std::fmt::Debug for Public {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Public(..)")
    }
}

fn invalid(detail: impl std::fmt::Display) -> Refusal {
    Refusal::new(Reason::InvalidField, format!("jwks: {detail}"))
}

impl KeySet {
    /// Reads a set. Keys for encryption and of types not known here are left out, as RFC 7517 has it; a private or a
    /// symmetric key has no place in it and is refused.
    pub(super) fn parse(text: &str) -> Result<Self, Refusal> {
        if text.len() > MAX_SET {
            return Err(invalid(format!("{} bytes, at most {MAX_SET}", text.len())));
        }
        let set = json::object("jwks", text.as_bytes())
            .map_err(|refusal| Refusal::new(Reason::InvalidField, refusal.detail))?;
        let Some(Json::List(listed)) = set.get("keys") else {
            return Err(invalid("no list of keys; expected a JWK set"));
        };
        if listed.len() > MAX_KEYS {
            return Err(invalid(format!("{} keys, at most {MAX_KEYS}", listed.len())));
        }
        let mut keys: Vec<Key> = Vec::new();
        for (index, key) in listed.iter().enumerate() {
            let Json::Object(key) = key else { return Err(invalid(format!("keys[{index}]: not an object"))) };
            let Some(key) = Key::parse(key).map_err(|what| invalid(format!("keys[{index}]: {what}")))? else {
                continue;
            };
            if keys.iter().any(|known| known.id == key.id) {
                return Err(invalid(format!("keys[{index}]: its kid is another key's as well")));
            }
            keys.push(key);
        }
        if keys.is_empty() {
            return Err(invalid("no key for signatures of a type known here")
                .hint("RSA of 2048 to 4096 bits, P-256, P-384 and Ed25519 are"));
        }
        Ok(Self(keys))
    }

    /// What is kept of the set: the keys that are used, with what is used of them.
    pub(super) fn kept(&self) -> String {
        let keys: Vec<_> = self.0.iter().map(Key::kept).collect();
        serde_json::json!({ "keys": keys }).to_string()
    }

    /// The key of that id; without an id, the only key there is.
    pub(super) fn find(&self, id: Option<&str>) -> Option<&Key> {
        match (id, self.0.as_slice()) {
            (Some(id), keys) => keys.iter().find(|key| key.id.as_deref() == Some(id)),
            (None, [only]) => Some(only),
            (None, _) => None,
        }
    }
}

impl Key {
    /// `None` for a key that is not used here.
    fn parse(key: &Object) -> Result<Option<Self>, String> {
        let text = |name: &str| match key.get(name) {
            None => Ok(None),
            Some(Json::Text(text)) => Ok(Some(text.as_str())),
            Some(_) => Err(format!("{name}: not text")),
        };
        let kind = text("kty")?.ok_or("kty: missing")?;
        if kind == "oct" || key.contains_key("k") {
            return Err("a symmetric key: whoever can verify with it can sign with it".to_owned());
        }
        if key.contains_key("d") {
            return Err("a private key: give the public half only".to_owned());
        }
        let operations = match key.get("key_ops") {
            None => true,
            Some(Json::List(operations)) => operations.contains(&Json::Text("verify".to_owned())),
            Some(_) => return Err("key_ops: not a list".to_owned()),
        };
        if !operations || text("use")?.is_some_and(|wanted| wanted != "sig") {
            return Ok(None);
        }
        let id = text("kid")?.map(str::to_owned);
        if id.as_ref().is_some_and(|id| id.is_empty() || id.len() > MAX_ID) {
            return Err(format!("kid: empty or over {MAX_ID} bytes"));
        }
        let bytes = |name: &str| {
            let encoded = text(name)?.ok_or_else(|| format!("{name}: missing"))?;
            URL_SAFE_NO_PAD.decode(encoded).map_err(|_| format!("{name}: not base64url without padding"))
        };
        let (algorithm, public) = match (kind, text("crv")?, text("alg")?) {
            ("RSA", _, algorithm) => match rsa(algorithm.unwrap_or("RS256")) {
                Some((name, parameters)) => (name, Public::rsa(parameters, bytes("n")?, bytes("e")?)?),
                None => return Ok(None),
            },
            ("EC", Some("P-256"), None | Some("ES256")) => {
                ("ES256", Public::point(&ECDSA_P256_SHA256_FIXED, 32, &bytes("x")?, &bytes("y")?)?)
            }
            ("EC", Some("P-384"), None | Some("ES384")) => {
                ("ES384", Public::point(&ECDSA_P384_SHA384_FIXED, 48, &bytes("x")?, &bytes("y")?)?)
            }
            ("OKP", Some("Ed25519"), None | Some("EdDSA")) => ("EdDSA", Public::other(&ED25519, bytes("x")?)?),
            _ => return Ok(None),
        };
        Ok(Some(Self { id, algorithm, public }))
    }

    fn kept(&self) -> serde_json::Value {
        let encoded = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let mut kept = match (&self.public, self.algorithm) {
            (Public::Rsa { modulus, exponent, .. }, _) => {
                serde_json::json!({ "kty": "RSA", "n": encoded(modulus), "e": encoded(exponent) })
            }
            (Public::Other { bytes, .. }, "EdDSA") => {
                serde_json::json!({ "kty": "OKP", "crv": "Ed25519", "x": encoded(bytes) })
            }
            (Public::Other { bytes, .. }, algorithm) => {
                let curve = if algorithm == "ES256" { "P-256" } else { "P-384" };
                // Behind the one byte that says "uncompressed" the two coordinates have the same length.
                let (x, y) = bytes.get(1..).unwrap_or_default().split_at(bytes.len() / 2);
                serde_json::json!({ "kty": "EC", "crv": curve, "x": encoded(x), "y": encoded(y) })
            }
        };
        kept["alg"] = self.algorithm.into();
        if let Some(id) = &self.id {
            kept["kid"] = id.as_str().into();
        }
        kept
    }

    /// The one algorithm that the key verifies.
    pub(super) const fn algorithm(&self) -> &'static str {
        self.algorithm
    }

    /// Whether `signature`, as JWS carries it, over `message` is by this key.
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.public {
            Public::Rsa { parameters, modulus, exponent } => {
                RsaPublicKeyComponents { n: modulus, e: exponent }.verify(parameters, message, signature).is_ok()
            }
            Public::Other { parsed, .. } => parsed.verify_sig(message, signature).is_ok(),
        }
    }
}

fn rsa(algorithm: &str) -> Option<(&'static str, &'static RsaParameters)> {
    match algorithm {
        "RS256" => Some(("RS256", &RSA_PKCS1_2048_8192_SHA256)),
        "RS384" => Some(("RS384", &RSA_PKCS1_2048_8192_SHA384)),
        "RS512" => Some(("RS512", &RSA_PKCS1_2048_8192_SHA512)),
        "PS256" => Some(("PS256", &RSA_PSS_2048_8192_SHA256)),
        _ => None,
    }
}

impl Public {
    fn rsa(parameters: &'static RsaParameters, modulus: Vec<u8>, exponent: Vec<u8>) -> Result<Self, String> {
        if !MODULUS.contains(&modulus.len()) || modulus.first().is_none_or(|first| *first < 0x80) {
            return Err("n: not a modulus of 2048 to 4096 bits".to_owned());
        }
        let odd = exponent.last().is_some_and(|last| last & 1 == 1);
        let value = exponent.iter().fold(0_u64, |value, byte| value.wrapping_shl(8) | u64::from(*byte));
        if exponent.len() > 4 || exponent.first() == Some(&0) || !odd || value < 3 {
            return Err("e: not an odd number of at least 3 in at most 4 bytes".to_owned());
        }
        Ok(Self::Rsa { parameters, modulus, exponent })
    }

    fn point(algorithm: &'static dyn VerificationAlgorithm, length: usize, x: &[u8], y: &[u8]) -> Result<Self, String> {
        if x.len() != length || y.len() != length {
            return Err(format!("x, y: not {length} bytes each"));
        }
        Self::other(algorithm, [&[4], x, y].concat())
    }

    fn other(algorithm: &'static dyn VerificationAlgorithm, bytes: Vec<u8>) -> Result<Self, String> {
        let parsed = ParsedPublicKey::new(algorithm, &bytes).map_err(|_| "not a point of its curve".to_owned())?;
        Ok(Self::Other { bytes, parsed })
    }
}
