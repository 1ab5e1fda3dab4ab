//! The coordinator's records as the API shows them: everything but secrets.

use warren_proto::admin;
use warren_proto::peer_map::{self, Generation, RevocationTarget};
use warren_proto::{Overlay, UnixTime, WorkloadName};

use crate::distribution::{LinkStatus, Links};
use crate::state::State;
use crate::state::records::{AdminToken, Attestor, Instance, JoinTokenRecord, Node, Registration};

pub(super) fn generation(generation: Generation) -> admin::Generation {
    admin::Generation { epoch: generation.epoch, revision: generation.revision }
}

pub(super) fn overlay(overlay: &Overlay) -> Vec<String> {
    let v6 = format!("{}/{}", overlay.v6.0, overlay.v6.1);
    let v4 = overlay.v4.map(|(first, length)| format!("{first}/{length}"));
    std::iter::once(v6).chain(v4).collect()
}

pub(super) fn join_token(token: &JoinTokenRecord, now: UnixTime) -> admin::JoinToken {
    let state = match token {
        token if token.expires_at <= now => "expired",
        token if token.uses_left() == 0 => "used-up",
        _ => "valid",
    };
    admin::JoinToken {
        id: token.id.to_string(),
        workloads: token.workloads.clone(),
        uses: token.uses,
        used: token.used,
        created_at: token.created_at.into(),
        expires_at: token.expires_at.into(),
        created_by: token.created_by.clone(),
        note: token.note.clone(),
        state: state.to_owned(),
    }
}

pub(super) fn attestor(state: &State, attestor: &Attestor) -> admin::Attestor {
    admin::Attestor {
        name: attestor.name.clone(),
        settings: attestor.settings.clone(),
        registrations: state.registrations.iter().filter(|(_, of)| of.attestor == attestor.name).count(),
        changed_at: attestor.changed_at.into(),
        changed_by: attestor.changed_by.clone(),
        note: attestor.note.clone(),
    }
}

pub(super) fn registration(registration: &Registration) -> admin::Registration {
    admin::Registration {
        name: registration.name.clone(),
        attestor: registration.attestor.clone(),
        selectors: registration.selectors.clone(),
        workloads: registration.workloads.clone(),
        created_at: registration.created_at.into(),
        created_by: registration.created_by.clone(),
        note: registration.note.clone(),
    }
}

pub(super) fn node(state: &State, links: &Links, node: &Node, now: UnixTime) -> admin::Node {
    let mut instances: Vec<_> = state.instances_on(node.id).map(|stored| instance(stored, now)).collect();
    instances.sort_by(|one, other| (&one.workload, one.id).cmp(&(&other.workload, other.id)));
    admin::Node {
        id: node.id,
        host_name: node.host_name.clone(),
        workloads: node.workloads.clone(),
        enrolled_at: node.enrolled_at.into(),
        enrolled_from: node.enrolled_from.to_string(),
        join_token: node.token.map(|token| token.to_string()).unwrap_or_default(),
        attestation: node.attested.as_ref().map(|attested| admin::NodeAttestation {
            attestor: attested.attestor.clone(),
            registration: attested.registration.clone(),
            subject: attested.subject.clone(),
        }),
        certificate_expires_at: node.certificate.not_after.into(),
        revoked_at: node.revoked_at.map(Into::into),
        cloned: links.cloned(node.id).map(|clone| admin::ClonedNode {
            at: clone.at.into(),
            remotes: clone.remotes.iter().map(ToString::to_string).collect(),
        }),
        link: links.get(node.id).map(|status| link(&status)),
        instances,
    }
}

fn link(status: &LinkStatus) -> admin::NodeLink {
    let mut refused = Vec::new();
    if let Some(update) = &status.refused {
        refused.extend(update.refusal.as_ref().map(ToString::to_string));
        refused.extend(update.items.iter().map(|(instance, refusal)| format!("{instance}: {refusal}")));
    }
    admin::NodeLink {
        since: status.since.into(),
        remote: status.remote.to_string(),
        software: status.software.clone(),
        told: generation(status.told),
        acknowledged: generation(status.acknowledged),
        clock_skew_ms: status.clock_skew_ms,
        refused,
    }
}

pub(super) fn instance(instance: &Instance, now: UnixTime) -> admin::Instance {
    let live = instance.certificates.iter().filter(|certificate| certificate.not_after > now);
    admin::Instance {
        id: instance.id,
        workload: instance.workload.clone(),
        node: instance.node,
        addresses: instance.addresses.iter().map(|address| address.to_string()).collect(),
        registered_at: instance.registered_at.into(),
        certificate_expires_at: instance.valid_until().into(),
        tunnel_keys: live.map(|certificate| hex::encode(certificate.tunnel_key.0)).collect(),
        revoked_at: instance.revoked_at.map(Into::into),
    }
}

/// The instances of an identity, oldest first.
pub(super) fn instances_of(state: &State, workload: &WorkloadName, now: UnixTime) -> Vec<admin::Instance> {
    let mut instances: Vec<_> = state.instances_of(workload).map(|stored| instance(stored, now)).collect();
    instances.sort_by_key(|instance| (instance.registered_at, instance.id));
    instances
}

pub(super) fn revocation(revocation: &peer_map::Revocation) -> admin::Revocation {
    let target = match &revocation.target {
        RevocationTarget::Serial { issuer_key_id, serial } => {
            format!("certificate {} of issuer {}", hex::encode(serial), hex::encode(issuer_key_id))
        }
        RevocationTarget::TunnelKey(key) => format!("tunnel key {}", hex::encode(key)),
        RevocationTarget::Instance(id) => format!("instance {id}"),
        RevocationTarget::Node(id) => format!("node {id}"),
        RevocationTarget::Identity { spiffe_id, issued_before } => {
            format!("certificates of {spiffe_id} issued before {issued_before}")
        }
        RevocationTarget::Issuer(key_id) => format!("issuer {}", hex::encode(key_id)),
    };
    admin::Revocation {
        id: revocation.id.clone(),
        target,
        revoked_at: revocation.revoked_at.into(),
        expires_at: revocation.expires_at.into(),
        why: revocation.reason.clone(),
        generation: None,
    }
}

pub(super) fn admin_token(token: &AdminToken) -> admin::AdminToken {
    admin::AdminToken {
        id: token.id.clone(),
        name: token.name.clone(),
        role: token.role,
        namespaces: token.namespaces.clone(),
        created_at: token.created_at.into(),
        expires_at: token.expires_at.into(),
        created_by: token.created_by.clone(),
        first_run: token.first_run,
    }
}
