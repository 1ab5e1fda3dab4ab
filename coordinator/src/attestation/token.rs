//! Signed tokens: JSON Web Tokens in the compact form (RFC 7515, 7519) against one issuer's keys.
//!
//! Which key verifies is found by the token's `kid`; by which algorithm is the key's to say, and the header must agree. So
//! neither `none` nor a symmetric algorithm can be asked for, and no key comes with the token.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use warren_proto::UnixTime;
use warren_proto::admin::TokenIssuer;
use warren_proto::reason::{Reason, Refusal};

use super::json::{self, Json, Object, malformed};
use super::jwks::KeySet;
use super::{CLOCK_SKEW, Rejected};

/// Longest issuer and audience, in bytes.
const MAX_NAME: usize = 512;
/// Longest lifetime that a token may be let have: a day.
const MAX_LIFETIME: u64 = 24 * 3600;
/// Longest subject, in bytes.
const MAX_SUBJECT: usize = 1024;
/// Header members that would bring a key along, or change how the token is to be read.
const REFUSED_HEADERS: [&str; 6] = ["crit", "jku", "jwk", "x5c", "x5u", "zip"];

/// A token issuer as an attestor knows it.
#[derive(Debug)]
pub(super) struct Issuer {
    pub(super) name: String,
    audience: String,
    keys: KeySet,
    max_lifetime: u64,
}

/// A token whose signature, issuer, audience and times are in order.
#[derive(Debug)]
pub(super) struct Verified {
    pub(super) claims: Object,
    pub(super) subject: String,
    pub(super) expires: UnixTime,
}

impl Issuer {
    pub(super) fn new(settings: &TokenIssuer) -> Result<Self, Refusal> {
        let invalid = |detail: String| Refusal::new(Reason::InvalidField, detail);
        for (field, value) in [("issuer", &settings.issuer), ("audience", &settings.audience)] {
            if value.is_empty() || value.len() > MAX_NAME || value.chars().any(char::is_control) {
                return Err(invalid(format!("{field}: expected 1 to {MAX_NAME} bytes of text")));
            }
        }
        if !(60..=MAX_LIFETIME).contains(&settings.max_lifetime_seconds) {
            let detail =
                format!("max_lifetime_seconds: {}, expected 60 to {MAX_LIFETIME}", settings.max_lifetime_seconds);
            return Err(invalid(detail));
        }
        Ok(Self {
            name: settings.issuer.clone(),
            audience: settings.audience.clone(),
            keys: KeySet::parse(&settings.jwks)?,
            max_lifetime: settings.max_lifetime_seconds,
        })
    }

    /// The settings with no more of the key set than is used.
    pub(super) fn kept(&self, settings: &TokenIssuer) -> TokenIssuer {
        TokenIssuer { jwks: self.keys.kept(), ..settings.clone() }
    }

    /// Judges a token: form, key, algorithm, signature, then `iss`, `aud`, times, `sub`.
    pub(super) fn verify(&self, token: &[u8], now: UnixTime) -> Result<Verified, Rejected> {
        let claims = self.open(token)?;
        // From here on the token is known to be the issuer's.
        let subject = json::text(&claims, "claims", "sub").map(str::to_owned);
        let told = subject.as_deref().ok().map(super::printable);
        self.check(&claims, now)
            .and_then(|expires| Ok((subject?, expires)))
            .and_then(|(subject, expires)| {
                if subject.is_empty() || subject.len() > MAX_SUBJECT {
                    return Err(malformed(format!("claims.sub: empty or over {MAX_SUBJECT} bytes")));
                }
                Ok((subject, expires))
            })
            .map_err(|refusal| Rejected { refusal, subject: Some(told.unwrap_or_default()) })
            .map(|(subject, expires)| Verified { claims, subject, expires })
    }

    /// The claims of a token that is signed by one of the keys.
    fn open(&self, token: &[u8]) -> Result<Object, Refusal> {
        let text = std::str::from_utf8(token).map_err(|_| malformed("token: not text"))?;
        let parts: Vec<&str> = text.splitn(4, '.').collect();
        let [header, payload, signature] = parts[..] else {
            return Err(malformed("token: not three parts with dots between (a compact JWS)"));
        };
        let decoded = |what: &str, part: &str| {
            URL_SAFE_NO_PAD
                .decode(part)
                .map_err(|_| malformed(format!("token: its {what} is not base64url without padding")))
        };
        let parsed = json::object("header", &decoded("header", header)?)?;
        if let Some(name) = REFUSED_HEADERS.into_iter().find(|name| parsed.contains_key(*name)) {
            return Err(malformed(format!(
                "header.{name}: not accepted; keys are configured and never come with a token"
            )));
        }
        if let Some(kind) =
            json::optional_text(&parsed, "header", "typ")?.filter(|kind| !kind.eq_ignore_ascii_case("JWT"))
        {
            return Err(malformed(format!("header.typ: {:?}, expected JWT", super::printable(kind))));
        }
        let algorithm = json::text(&parsed, "header", "alg")?;
        let id = json::optional_text(&parsed, "header", "kid")?;
        let key = self.keys.find(id).ok_or_else(|| {
            let which = match id {
                Some(id) => format!("header.kid: {:?} is none of the attestor's keys", super::printable(id)),
                None => "header.kid: missing, and the attestor has several keys".to_owned(),
            };
            Refusal::new(Reason::EvidenceSignature, which)
                .hint("if the issuer changed its keys: set the attestor anew with the present JWK set")
        })?;
        if algorithm != key.algorithm() {
            let detail =
                format!("header.alg: {:?}, but the key is for {}", super::printable(algorithm), key.algorithm());
            return Err(Refusal::new(Reason::EvidenceAlgorithm, detail));
        }
        let signed = &text[..header.len() + 1 + payload.len()];
        if !key.verifies(signed.as_bytes(), &decoded("signature", signature)?) {
            return Err(Refusal::new(Reason::EvidenceSignature, "token: its signature does not verify"));
        }
        json::object("claims", &decoded("payload", payload)?)
    }

    /// `iss`, `aud`, `exp`, `nbf`, `iat`; gives the moment of `exp`.
    fn check(&self, claims: &Object, now: UnixTime) -> Result<UnixTime, Refusal> {
        let issuer = json::text(claims, "claims", "iss")?;
        if issuer != self.name {
            let detail = format!("claims.iss: {:?}, expected {:?}", super::printable(issuer), self.name);
            return Err(Refusal::new(Reason::EvidenceIssuer, detail));
        }
        self.check_audience(claims)?;
        let moment = |name: &str| match claims.get(name) {
            None => Ok(None),
            Some(Json::Number(seconds)) => u64::try_from(*seconds)
                .map(|seconds| Some(UnixTime(seconds)))
                .map_err(|_| malformed(format!("claims.{name}: before 1970"))),
            Some(_) => Err(malformed(format!("claims.{name}: not a whole number of seconds"))),
        };
        let required = |name: &str| moment(name)?.ok_or_else(|| malformed(format!("claims.{name}: missing")));
        let (expires, issued, not_before) = (required("exp")?, required("iat")?, moment("nbf")?);
        if expires <= issued || issued.until(expires).as_secs() > self.max_lifetime {
            let detail = format!(
                "claims.exp: {expires} is not within {} s of claims.iat, {issued}; the attestor accepts no longer life",
                self.max_lifetime
            );
            return Err(
                Refusal::new(Reason::EvidenceExpired, detail).hint("ask the issuer for a token of a shorter life")
            );
        }
        if expires.plus(CLOCK_SKEW) <= now {
            let detail = format!("claims.exp: the token ended at {expires}; it is now {now}");
            return Err(Refusal::new(Reason::EvidenceExpired, detail).hint("enrol with a fresh token"));
        }
        let earliest = not_before.unwrap_or(issued).max(issued);
        if earliest > now.plus(CLOCK_SKEW) {
            let detail = format!("claims.nbf, claims.iat: the token begins at {earliest}; it is now {now}");
            return Err(Refusal::new(Reason::EvidenceNotYetValid, detail));
        }
        Ok(expires)
    }

    /// The one audience, and no other: a token that somebody else is shown as well could be handed on by them.
    fn check_audience(&self, claims: &Object) -> Result<(), Refusal> {
        let only = match claims.get("aud") {
            Some(Json::Text(audience)) => Some(audience),
            Some(Json::List(audiences)) => match audiences.as_slice() {
                [Json::Text(audience)] => Some(audience),
                _ => None,
            },
            Some(_) => return Err(malformed("claims.aud: neither text nor a list of texts")),
            None => return Err(Refusal::new(Reason::EvidenceAudience, "claims.aud: missing")),
        };
        match only {
            Some(audience) if *audience == self.audience => Ok(()),
            Some(audience) => {
                let detail = format!("claims.aud: {:?}, expected {:?}", super::printable(audience), self.audience);
                Err(Refusal::new(Reason::EvidenceAudience, detail)
                    .hint("ask the issuer for a token with the attestor's audience"))
            }
            None => {
                let detail = format!("claims.aud: not {:?} alone", self.audience);
                Err(Refusal::new(Reason::EvidenceAudience, detail)
                    .hint("a token for several audiences could be handed on by each"))
            }
        }
    }
}
