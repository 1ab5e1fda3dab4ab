//! Plain WireGuard devices: an administrator's word binds a public key to an identity that policy declares.
//!
//! A device has no node. It is an [`Instance`] that stands for itself, and its certificate, which only nodes read, is
//! renewed here for as long as the registration stands: there is nobody who could ask. Removing the registration, or
//! revoking anything of it, takes the certificate from every node's map, and with it the tunnel.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use warren_proto::certificate::{CLOCK_SKEW, Capabilities, is_canonical, is_low_order};
use warren_proto::reason::{Reason, Refusal};
use warren_proto::{InstanceId, NodeId, UnixTime, WorkloadName};

use super::instances::{add_certificate, check_not_revoked, release, shown, tunnel_key_name, write_instance};
use super::nodes::key_hash;
use super::tokens::check_match;
use super::{Caller, Entry, Plan, Registry, Transaction, allocation};
use crate::ca::{RequesterKey, TunnelTerms};
use crate::state::records::{Device, Hex32, Instance, KeyOwner, KeyUse, TunnelCertificate};
use crate::state::{Key, State, Stored};
use crate::store::Revision;

/// Most devices of a mesh: each is a record that every node linked with it holds, and a certificate to renew.
const MAX_DEVICES: usize = 10_000;
/// Longest note, in bytes.
const MAX_NOTE: usize = 512;
/// The key of a device that stands is bound for as long as it does.
const WITHOUT_END: UnixTime = UnixTime(u64::MAX);

/// A plain device to be registered.
#[derive(Debug, Clone)]
pub struct NewPeer {
    /// Its identity, `peer/<name>`.
    pub workload: WorkloadName,
    /// Its X25519 public key.
    pub key: [u8; 32],
    /// Where nodes are to reach it by themselves.
    pub endpoint: Option<SocketAddr>,
    /// What it is.
    pub note: String,
}

impl Registry {
    /// Registers a plain device: its address, its key, its certificate and the audit row are one commit. The same
    /// registration repeated is answered with what is there.
    pub async fn register_peer(&self, caller: &Caller, new: NewPeer) -> Result<Instance, Refusal> {
        let id = InstanceId::from_bytes(rand::random());
        let random: u64 = rand::random();
        self.change(caller, |state, now| {
            if let Some(known) = check_new_peer(state, &new, now)? {
                return Ok(Plan::Answer(known.value.clone()));
            }
            let settings = state.settings()?;
            let mut instance = Instance {
                id,
                node: NodeId::from_bytes(*id.as_bytes()),
                workload: new.workload.clone(),
                addresses: allocation::allocate(state, &settings.overlay, random, now)?,
                registered_at: now,
                certificates: Vec::new(),
                revoked_at: None,
                device: Some(Device {
                    key: Hex32(new.key),
                    endpoint: new.endpoint,
                    registered_by: caller.who.clone(),
                    note: new.note.clone(),
                }),
            };
            self.certify(state, &mut instance, new.key, now)?;
            let mut transaction = Transaction::default();
            write_instance(&mut transaction, state, None, &instance)?;
            let name = Key::PublicKey(tunnel_key_name(new.key));
            let used = KeyUse { owner: KeyOwner::Instance(id), until: WITHOUT_END };
            match state.keys.get(&tunnel_key_name(new.key)) {
                Some(ended) => transaction.replace(&name, ended.modified, &used)?,
                None => transaction.create(&name, &used)?,
            }
            let entry = Entry {
                action: "peer.register",
                object: new.workload.to_string(),
                old: None,
                new: Some(shown(&instance)),
            };
            Ok(Plan::Commit { transaction, entry, answer: instance })
        })
        .await
    }

    /// Removes a device: its certificate goes from every node's map, its addresses are quarantined, and its key is
    /// bound to nobody else until that certificate has ended.
    pub async fn remove_peer(
        &self,
        caller: &Caller,
        workload: &WorkloadName,
        if_match: Option<Revision>,
    ) -> Result<(), Refusal> {
        self.change(caller, |state, now| {
            let known = registered_peer(state, workload)?;
            check_match("the peer", known.modified, if_match)?;
            let mut transaction = Transaction::default();
            release(&mut transaction, state, known, now)?;
            let entry =
                Entry { action: "peer.remove", object: workload.to_string(), old: Some(shown(known)), new: None };
            Ok(Plan::Commit { transaction, entry, answer: () })
        })
        .await
    }

    /// Renews the certificates of the devices that stand, where they are due: past half of their life, under an issuer
    /// that is revoked, or where the roots ask for it. Each is a commit with a row of the audit log. Says how many were.
    ///
    /// # Errors
    /// The first refusal, after every device was tried.
    pub async fn renew_peers(&self) -> Result<usize, Refusal> {
        let due: Vec<_> = {
            let (state, now) = (self.state(), self.now());
            devices(&state).filter(|device| is_due(&state, device, now)).map(|device| device.id).collect()
        };
        let (mut renewed, mut failed) = (0, None);
        for id in due {
            match self.renew_peer(id).await {
                Ok(()) => renewed += 1,
                Err(refusal) => failed = failed.or(Some(refusal)),
            }
        }
        failed.map_or(Ok(renewed), Err)
    }

    async fn renew_peer(&self, id: InstanceId) -> Result<(), Refusal> {
        self.change(&Caller::coordinator(), |state, now| {
            let Some(known) = state.instances.get(&id).filter(|known| is_due(state, known, now)) else {
                return Ok(Plan::Answer(()));
            };
            let Some(device) = known.standing_device() else { return Ok(Plan::Answer(())) };
            let mut instance = known.value.clone();
            self.certify(state, &mut instance, device.key.0, now)?;
            let mut transaction = Transaction::default();
            write_instance(&mut transaction, state, Some(known), &instance)?;
            let entry =
                Entry { action: "certificate.issue", object: id.to_string(), old: None, new: Some(shown(&instance)) };
            Ok(Plan::Commit { transaction, entry, answer: () })
        })
        .await
    }

    /// Issues a certificate that binds `key` to the device, and puts it first.
    fn certify(&self, state: &State, instance: &mut Instance, key: [u8; 32], now: UnixTime) -> Result<(), Refusal> {
        let nobody = RequesterKey::of_nobody()?;
        let lifetime = state.settings()?.tunnel_certificate_lifetime;
        let terms = TunnelTerms {
            workload: instance.workload.clone(),
            instance: instance.id,
            node: instance.node,
            addresses: instance.addresses,
            tunnel_key: key,
            capabilities: Capabilities::PLAIN,
            lifetime: Duration::from_secs(u64::from(lifetime)),
        };
        let issued = self.authority().issue_tunnel(&nobody, &terms, now)?;
        check_not_revoked(state, instance, &key, issued.certificate.leaf())?;
        add_certificate(instance, issued, key, key_hash(&nobody), now);
        Ok(())
    }
}

/// The devices that are registered, revoked ones too until they are removed.
pub(super) fn devices(state: &State) -> impl Iterator<Item = &Arc<Stored<Instance>>> {
    let names = state.workloads().filter(|workload| workload.is_peer());
    names.flat_map(|name| state.instances_of(name)).filter(|instance| instance.device.is_some())
}

/// The device of an identity.
pub(crate) fn registered_peer<'s>(
    state: &'s State,
    workload: &WorkloadName,
) -> Result<&'s Arc<Stored<Instance>>, Refusal> {
    state.instances_of(workload).find(|instance| instance.device.is_some()).ok_or_else(|| {
        Refusal::new(Reason::NotFound, format!("no device is registered as {}", workload.name()))
            .hint("list them with `warren peer list`")
    })
}

/// Whether a device may be registered; `Some` when this very one is.
pub(crate) fn check_new_peer<'s>(
    state: &'s State,
    new: &NewPeer,
    now: UnixTime,
) -> Result<Option<&'s Arc<Stored<Instance>>>, Refusal> {
    let invalid = |detail: String| Err(Refusal::new(Reason::InvalidField, detail));
    let name = new.workload.name();
    if !new.workload.is_peer() {
        return invalid(format!("name: {} is not a device's identity", new.workload));
    }
    if new.note.len() > MAX_NOTE {
        return invalid(format!("note: {} bytes, at most {MAX_NOTE}", new.note.len()));
    }
    if is_low_order(&new.key) {
        return Err(Refusal::new(
            Reason::KeyLowOrder,
            "publicKey: a point of low order, which no device has as its key",
        )
        .hint("make a key pair with `wg genkey` and `wg pubkey`"));
    }
    if !is_canonical(&new.key) {
        return invalid("publicKey: not in its one canonical encoding".to_owned());
    }
    if let Some(endpoint) = new.endpoint
        && let Err(what) = reachable(state, endpoint)
    {
        return invalid(format!("endpoint: {endpoint} {what}"));
    }
    if state.policy.compiled().is_none_or(|policy| policy.service(&new.workload).is_none()) {
        return Err(Refusal::new(Reason::NotFound, format!("policy declares no Peer {name}")).hint(format!(
            "apply `kind: Peer`, `name: {name}` first: a device that policy does not know gets nowhere"
        )));
    }
    if let Some(known) = state.instances_of(&new.workload).find(|instance| instance.device.is_some()) {
        let same = known.standing_device().is_some_and(|device| {
            device.key.0 == new.key && device.endpoint == new.endpoint && device.note == new.note
        });
        if same {
            return Ok(Some(known));
        }
        let detail = format!("a device is registered as {name} already");
        return Err(Refusal::new(Reason::Conflict, detail).hint(format!("remove it first: warren peer remove {name}")));
    }
    check_key_is_free(state, &new.key, now)?;
    if devices(state).count() >= MAX_DEVICES {
        return Err(Refusal::new(Reason::RateLimited, format!("the mesh already has {MAX_DEVICES} devices")));
    }
    Ok(None)
}

/// A key that is or was somebody's is not a device's as well: of two certificates that claim one key nodes admit neither.
fn check_key_is_free(state: &State, key: &[u8; 32], now: UnixTime) -> Result<(), Refusal> {
    let Some(used) = state.keys.get(&tunnel_key_name(*key)).filter(|used| used.until > now) else { return Ok(()) };
    let owner = match used.owner {
        KeyOwner::Instance(id) => state.instances.get(&id),
        KeyOwner::Node(_) | KeyOwner::Svid(_) => None,
    };
    let detail = match owner {
        Some(owner) => format!("publicKey: it is already bound to {}", owner.workload),
        None => format!("publicKey: it was bound before, and that binding ends at {}", used.until),
    };
    Err(Refusal::new(Reason::KeyInUse, detail).hint("make a key pair for this device alone"))
}

fn reachable(state: &State, endpoint: SocketAddr) -> Result<(), &'static str> {
    let address = endpoint.ip().to_canonical();
    if endpoint.port() == 0 || address.is_unspecified() || address.is_multicast() {
        return Err("is no address that a datagram could be sent to");
    }
    if state.settings().is_ok_and(|settings| settings.overlay.contains(address)) {
        return Err("lies in the overlay itself");
    }
    Ok(())
}

/// Refuses identities of devices where a node would hold them.
pub(super) fn refuse_devices<'a>(workloads: impl IntoIterator<Item = &'a WorkloadName>) -> Result<(), Refusal> {
    match workloads.into_iter().find(|workload| workload.is_peer()) {
        None => Ok(()),
        Some(device) => {
            let detail = format!("workloads: {device} is a plain device's identity, which no node can hold");
            Err(Refusal::new(Reason::IdentityNotAllowed, detail)
                .hint(format!("register the device's key: warren peer add {}", device.name())))
        }
    }
}

/// Whether policy lets some registered device and `workload` talk.
pub(super) fn serves_devices(state: &State, workload: &WorkloadName, now: UnixTime) -> bool {
    devices(state).filter(|device| device.revoked_at.is_none()).any(|device| {
        state.policy.linked(&device.workload, workload, now) || state.policy.linked(workload, &device.workload, now)
    })
}

fn is_due(state: &State, device: &Instance, now: UnixTime) -> bool {
    if device.standing_device().is_none() {
        return false;
    }
    let Some(newest) = device.certificates.first() else { return true };
    let issued = newest.not_before.plus(CLOCK_SKEW);
    let past_half = now >= newest.not_before.plus(newest.not_before.until(newest.not_after) / 2);
    let asked_for = state.trust.as_ref().is_some_and(|trust| issued <= trust.renew_before());
    past_half || asked_for || is_revoked(state, device, newest)
}

fn is_revoked(state: &State, device: &Instance, certificate: &TunnelCertificate) -> bool {
    let Ok(settings) = state.settings() else { return false };
    device.revoked_by(certificate, &settings.trust_domain, &state.revoked).is_some()
}
