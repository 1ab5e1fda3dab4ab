//! `/ca`: the certificate authority, and the steps by which its root and intermediate are replaced.

use axum::extract::State;
use warren_proto::UnixTime;
use warren_proto::admin::{CaCertificate, CaRoot, CaStatus, NotReadyNode, RotateCa, RotationStage, Versioned};
use warren_proto::certificate::{AuthorityCertificate, Leaf};

use super::problem::ApiError;
use super::request::{Answer, Body, Change, ChangeQuery};
use super::{Api, Authorized, CaAdmin, Viewer};
use crate::ca::pem;
use crate::ca::rotation::TrustRoots;
use crate::distribution::not_ready;
use crate::registry::Rotate;
use crate::state::State as Picture;

/// The roots, the intermediate, what this coordinator presents and signs with; where a rotation stands and for whom it
/// waits.
#[utoipa::path(get, path = "/ca", tag = "ca", security(("token" = [])),
    responses((status = 200, body = Versioned<CaStatus>)))]
pub(super) async fn get(State(api): State<Api>, _: Authorized<Viewer>) -> Result<Answer<CaStatus>, ApiError> {
    Ok(Answer::ok(status(&api)))
}

/// Takes a step of a rotation. Activating and retiring a root wait for nodes: where some are not ready the step is
/// refused, naming them, unless `force` says otherwise.
#[utoipa::path(post, path = "/ca/rotation", tag = "ca", request_body = RotateCa, params(ChangeQuery),
    security(("token" = [])), responses((status = 200, body = Versioned<CaStatus>)))]
pub(super) async fn rotate(
    State(api): State<Api>,
    admin: Authorized<CaAdmin>,
    change: Change,
    Body(RotateCa { step, force }): Body<RotateCa>,
) -> Result<Answer<CaStatus>, ApiError> {
    admin.may_change_mesh()?;
    let missing = |state: &Picture, roots: &TrustRoots, now: UnixTime| -> Vec<NotReadyNode> {
        not_ready(state, api.links(), roots, now)
    };
    let rotate = Rotate { step, force, missing: &missing };
    api.registry().rotate(&admin.caller(&change), rotate).await?;
    Ok(Answer::ok(status(&api)))
}

fn status(api: &Api) -> CaStatus {
    let (registry, now) = (api.registry(), api.registry().now());
    let (authority, state) = (registry.authority(), registry.state());
    let trust = authority.trust();
    let roots = authority.bundle().roots().zip(trust.roots()).map(|(certificate, trusted)| CaRoot {
        sha256: hex::encode(trusted.sha256.0),
        signs: trusted.sha256.0 == *trust.signing(),
        certificate: issuer(certificate),
        pem: pem(certificate.der()),
    });
    let replaced = trust.stage() == RotationStage::Activated;
    // Who made a token before the second root signed was given the first one's hash.
    let pins_first = |token: &crate::state::records::JoinTokenRecord| {
        replaced && token.created_at <= trust.renew_before() && token.expires_at > now && token.uses_left() > 0
    };
    let mut join_tokens: Vec<_> =
        state.tokens.iter().filter(|(_, token)| pins_first(token)).map(|(id, _)| id.to_string()).collect();
    join_tokens.sort();
    CaStatus {
        stage: trust.stage(),
        sequence: trust.sequence(),
        keys_sealed: authority.keys_are_sealed(),
        roots: roots.collect(),
        issuing: issuer(authority.issuer_certificate()),
        coordinator: leaf(authority.coordinator_certificate().leaf()),
        signer: leaf(authority.signer_certificate().leaf()),
        renew_before: (trust.renew_before() != UnixTime(0)).then(|| trust.renew_before().into()),
        next: trust.next_step(),
        missing: not_ready(&state, api.links(), trust, now),
        join_tokens,
    }
}

fn issuer(certificate: &AuthorityCertificate) -> CaCertificate {
    CaCertificate {
        key_id: hex::encode(certificate.key_id().as_bytes()),
        serial: hex::encode(certificate.serial().as_bytes()),
        not_before: certificate.not_before().into(),
        not_after: certificate.not_after().into(),
    }
}

fn leaf(leaf: &Leaf) -> CaCertificate {
    CaCertificate {
        key_id: String::new(),
        serial: hex::encode(leaf.serial().as_bytes()),
        not_before: leaf.not_before().into(),
        not_after: leaf.not_after().into(),
    }
}
