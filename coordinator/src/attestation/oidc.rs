//! Tokens of an OpenID Connect issuer: of a CI runner, or of a cloud's workload identity. Each makes one node.

use warren_proto::UnixTime;
use warren_proto::admin::Selector;
use warren_proto::reason::{Reason, Refusal};

use super::json::{self, Json};
use super::token::Issuer;
use super::{Findings, Rejected};

/// Claims that say nothing about whom a token is for: the same for all of an issuer's, or different in each.
pub(super) const NOT_SELECTABLE: [&str; 6] = ["iss", "aud", "exp", "nbf", "iat", "jti"];

/// Issuers that sign for everybody in the world, and the claims of which a registration must name at least one: any other
/// claim is in a stranger's hand.
const PUBLIC_ISSUERS: [(&str, &[&str]); 3] = [
    (
        "https://token.actions.githubusercontent.com",
        &[
            "claim:sub",
            "claim:repository_id",
            "claim:repository_owner_id",
            "claim:repository",
            "claim:repository_owner",
        ],
    ),
    ("https://gitlab.com", &["claim:sub", "claim:project_id", "claim:namespace_id", "claim:project_path"]),
    ("https://accounts.google.com", &["claim:sub"]),
];

pub(super) fn attest(issuer: &Issuer, token: &[u8], now: UnixTime) -> Result<Findings, Rejected> {
    let verified = issuer.verify(token, now)?;
    let told = super::printable(&verified.subject);
    // Not the signature: ECDSA's can be altered and still verify, and the same token would count as another.
    let own = match verified.claims.get("jti") {
        None => token.rsplitn(2, |byte| *byte == b'.').last().unwrap_or_default().to_vec(),
        Some(Json::Text(id)) if !id.is_empty() => id.as_bytes().to_vec(),
        Some(_) => {
            let refusal = json::malformed("claims.jti: not text, or empty");
            return Err(Rejected { refusal, subject: Some(told) });
        }
    };
    Ok(Findings {
        facts: json::facts(&verified.claims, &NOT_SELECTABLE),
        subject: told,
        unique: vec![issuer.name.as_bytes().to_vec(), own],
        until: verified.expires,
    })
}

/// Refuses selectors that a stranger's token of a public issuer could meet.
pub(super) fn check_selectors(issuer: &str, selectors: &[Selector]) -> Result<(), Refusal> {
    let Some((_, needed)) = PUBLIC_ISSUERS.iter().find(|(public, _)| issuer.trim_end_matches('/') == *public) else {
        return Ok(());
    };
    if selectors.iter().any(|selector| needed.contains(&selector.name.as_str())) {
        return Ok(());
    }
    let detail = format!("selectors: {issuer} signs for everybody; at least one of {} is needed", needed.join(", "));
    Err(Refusal::new(Reason::InvalidField, detail))
}
