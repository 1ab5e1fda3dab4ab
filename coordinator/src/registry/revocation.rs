//! The end of trust before its time.

use std::time::Duration;

use warren_proto::certificate::CLOCK_SKEW;
use warren_proto::peer_map::{Revocation, RevocationTarget};
use warren_proto::reason::{Reason, Refusal};
use warren_proto::{InstanceId, NodeId, UnixTime, WorkloadName};

use super::peers::devices;
use super::{Caller, Entry, Plan, RENEWAL_GRACE, Registry, Transaction};
use crate::ca::ISSUING_LIFETIME;
use crate::state::records::{Instance, MeshSettings, Node};
use crate::state::{Key, State};

/// What an administrator revokes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Revoke {
    /// One certificate.
    Certificate {
        /// Subject key identifier of its issuer.
        issuer_key_id: Vec<u8>,
        /// Serial number, without leading zeros.
        serial: Vec<u8>,
    },
    /// One tunnel key, in whatever certificate.
    TunnelKey([u8; 32]),
    /// One instance: it never gets a certificate again.
    Instance(InstanceId),
    /// One node and every instance on it: it is cut off and must enrol anew.
    Node(NodeId),
    /// Every certificate of an identity issued until now; instances may get new ones.
    Identity(WorkloadName),
    /// Everything an issuing key has signed.
    Issuer(Vec<u8>),
}

impl Registry {
    /// Revokes. The answer leaves when the revocation is durable; nodes are told at once and acknowledge.
    pub async fn revoke(&self, caller: &Caller, what: Revoke) -> Result<Revocation, Refusal> {
        let id = hex::encode(rand::random::<[u8; 8]>());
        self.change(caller, |state, now| {
            let settings = state.settings()?;
            let target = target(state, settings, &what, now)?;
            if let Some((_, known)) = state.revocations.iter().find(|(_, known)| known.target == target) {
                return Ok(Plan::Answer(known.value.clone()));
            }
            let revocation = Revocation {
                id: id.clone(),
                target,
                revoked_at: now,
                expires_at: self.last_end(settings, &what, now),
                reason: caller.why.clone(),
            };
            let mut transaction = Transaction::default();
            transaction.create(&Key::Revocation(id.clone()), &revocation)?;
            mark(&mut transaction, state, &what, now)?;
            let entry = Entry {
                action: "revocation.create",
                object: described(&what),
                old: None,
                new: serde_json::to_value(&revocation).ok(),
            };
            Ok(Plan::Commit { transaction, entry, answer: revocation })
        })
        .await
    }

    /// When nothing is left that the revocation could concern.
    fn last_end(&self, settings: &MeshSettings, what: &Revoke, now: UnixTime) -> UnixTime {
        let longest = settings
            .max_certificate_lifetime
            .max(settings.tunnel_certificate_lifetime)
            .max(settings.node_certificate_lifetime);
        let leaves = now.plus(Duration::from_secs(u64::from(longest))).plus(CLOCK_SKEW);
        match what {
            // An ended node certificate still renews itself; a revoked one must not, however late.
            Revoke::Certificate { .. } => leaves.plus(RENEWAL_GRACE),
            // Whoever has the key signs new certificates until the issuer's own ends.
            Revoke::Issuer(id) => {
                let authority = self.authority();
                let root = authority.root_certificate();
                let ends = if root.key_id().as_bytes() == id { root.not_after() } else { now.plus(ISSUING_LIFETIME) };
                leaves.max(ends.plus(CLOCK_SKEW)).plus(RENEWAL_GRACE)
            }
            Revoke::TunnelKey(_) | Revoke::Instance(_) | Revoke::Node(_) | Revoke::Identity(_) => leaves,
        }
    }
}

fn target(state: &State, settings: &MeshSettings, what: &Revoke, now: UnixTime) -> Result<RevocationTarget, Refusal> {
    let not_found = |what: String| Refusal::new(Reason::NotFound, format!("there is no {what}"));
    let sized = |field: &str, bytes: &[u8], most: usize| {
        if (1..=most).contains(&bytes.len()) {
            return Ok(());
        }
        Err(Refusal::new(Reason::InvalidField, format!("{field}: {} bytes, expected 1 to {most}", bytes.len())))
    };
    Ok(match what {
        Revoke::Certificate { issuer_key_id, serial } => {
            sized("issuer_key_id", issuer_key_id, 64)?;
            sized("serial", serial, 32)?;
            RevocationTarget::Serial { issuer_key_id: issuer_key_id.clone(), serial: serial.clone() }
        }
        Revoke::TunnelKey(key) => RevocationTarget::TunnelKey(*key),
        Revoke::Instance(id) => {
            state.instances.get(id).ok_or_else(|| not_found(format!("instance {id}")))?;
            RevocationTarget::Instance(*id)
        }
        Revoke::Node(id) => {
            state.nodes.get(id).ok_or_else(|| not_found(format!("node {id}")))?;
            RevocationTarget::Node(*id)
        }
        // Certificates are dated in whole seconds: what was issued within this one is meant as well.
        Revoke::Identity(workload) => RevocationTarget::Identity {
            spiffe_id: workload.in_domain(&settings.trust_domain),
            issued_before: now.plus(Duration::from_secs(1)),
        },
        Revoke::Issuer(id) => {
            sized("issuer_key_id", id, 64)?;
            RevocationTarget::Issuer(id.clone())
        }
    })
}

/// A revocation is forgotten when the certificates have ended; that a node, an instance or a device was revoked is not.
fn mark(transaction: &mut Transaction, state: &State, what: &Revoke, now: UnixTime) -> Result<(), Refusal> {
    match what {
        Revoke::Node(id) => match state.nodes.get(id) {
            Some(known) if known.revoked_at.is_none() => {
                let node = Node { revoked_at: Some(now), ..known.value.clone() };
                transaction.replace(&Key::Node(*id), known.modified, &node)
            }
            _ => Ok(()),
        },
        Revoke::Instance(id) => match state.instances.get(id) {
            Some(known) if known.revoked_at.is_none() => {
                let instance = Instance { revoked_at: Some(now), ..known.value.clone() };
                transaction.replace(&Key::Instance(*id), known.modified, &instance)
            }
            _ => Ok(()),
        },
        Revoke::Certificate { .. } | Revoke::TunnelKey(_) | Revoke::Identity(_) => {
            for known in devices(state).filter(|known| is_meant(known, what)) {
                let instance = Instance { revoked_at: Some(now), ..known.value.clone() };
                transaction.replace(&Key::Instance(known.id), known.modified, &instance)?;
            }
            Ok(())
        }
        // A device's certificate is issued anew under another intermediate, as everybody's is.
        Revoke::Issuer(_) => Ok(()),
    }
}

/// A device proves nothing when its certificate is renewed, so what is revoked of it ends it until it is registered anew.
fn is_meant(device: &Instance, what: &Revoke) -> bool {
    device.standing_device().is_some_and(|standing| match what {
        Revoke::Certificate { issuer_key_id, serial } => device
            .certificates
            .iter()
            .any(|certificate| certificate.issuer_key_id == *issuer_key_id && certificate.serial == *serial),
        Revoke::TunnelKey(key) => standing.key.0 == *key,
        Revoke::Identity(workload) => device.workload == *workload,
        Revoke::Instance(_) | Revoke::Node(_) | Revoke::Issuer(_) => false,
    })
}

fn described(what: &Revoke) -> String {
    match what {
        Revoke::Certificate { serial, .. } => format!("certificate {}", hex::encode(serial)),
        Revoke::TunnelKey(key) => format!("tunnel key {}", hex::encode(key)),
        Revoke::Instance(id) => format!("instance {id}"),
        Revoke::Node(id) => format!("node {id}"),
        Revoke::Identity(workload) => format!("identity {workload}"),
        Revoke::Issuer(id) => format!("issuer {}", hex::encode(id)),
    }
}
