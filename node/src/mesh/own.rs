//! What this node itself is: its instances with their keys, as far as their certificates hold.

use tracing::warn;
use warren_engine::mesh::{LocalKey, TunnelSecret};
use warren_proto::UnixTime;
use warren_proto::certificate::{CLOCK_SKEW, Chain, TunnelCertificate};
use warren_proto::control_trust::{Purpose, anchor};
use warren_proto::peer_map::Subject;

use super::{Mesh, Start};
use crate::certificates::key_store::Instance;
use crate::mesh_view::OwnInstance;

impl Mesh {
    /// Takes an instance's new certificates, or the instance that takes another's place.
    pub(super) fn take_instance(&mut self, instance: Instance) {
        let Start { workloads, instances, .. } = &mut self.start;
        workloads.insert(instance.workload.clone());
        match instances.iter_mut().find(|held| held.workload == instance.workload) {
            Some(held) => *held = instance,
            None => instances.push(instance),
        }
    }

    /// This node's tunnel keys whose certificates hold, of one instance the newest first; and the instances that have any.
    pub(super) fn locals(&self, now: UnixTime) -> (Vec<LocalKey>, Vec<OwnInstance>) {
        let mut all = Vec::with_capacity(2 * self.start.instances.len());
        let mut own = Vec::with_capacity(self.start.instances.len());
        for instance in &self.start.instances {
            let locals = self.keys_of(instance, now);
            if let Some(newest) = locals.first() {
                own.push(OwnInstance {
                    instance: instance.id,
                    workload: instance.workload.clone(),
                    addresses: instance.addresses,
                    tunnel_key: newest.secret.public_key(),
                    validity: (newest.certificate.leaf().not_before(), newest.valid_until),
                    revoked: locals.iter().all(|local| self.is_revoked(&local.certificate)),
                });
            }
            all.extend(locals);
        }
        (all, own)
    }

    fn keys_of(&self, instance: &Instance, now: UnixTime) -> Vec<LocalKey> {
        let bundle = self.bundle.borrow();
        let mut locals = Vec::with_capacity(instance.identities.len());
        for identity in &instance.identities {
            let judged = Chain::new(identity.chain.0.iter().map(Vec::as_slice)).and_then(|chain| {
                let certificate = TunnelCertificate::parse(chain.leaf())?;
                let path = anchor(certificate.leaf(), chain, &bundle, Purpose::Tunnel, now)?;
                Ok((certificate, path.valid_until()))
            });
            match judged {
                Ok((certificate, valid_until)) => locals.push(LocalKey {
                    secret: TunnelSecret::from_bytes(*identity.tunnel.secret()),
                    certificate,
                    valid_until,
                }),
                Err(refusal) => warn!(
                    workload = %instance.workload,
                    reason = refusal.reason.name(),
                    "own tunnel certificate unusable: {refusal}"
                ),
            }
        }
        locals
    }

    fn is_revoked(&self, certificate: &TunnelCertificate) -> bool {
        let (leaf, binding) = (certificate.leaf(), certificate.binding());
        let subject = Subject {
            issuer_key_id: leaf.issuer_key_id().as_bytes(),
            serial: leaf.serial().as_bytes(),
            tunnel_key: Some(&binding.tunnel_key),
            instance: Some(binding.instance),
            node: Some(binding.node),
            spiffe_id: leaf.identity(),
            issued_at: leaf.not_before().plus(CLOCK_SKEW),
        };
        self.seen.covers(subject).is_some()
    }
}
