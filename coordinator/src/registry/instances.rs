//! Instances: what runs where, with which address, key and certificates.

use std::net::IpAddr;
use std::time::Duration;

use warren_proto::certificate::{CLOCK_SKEW, Capabilities};
use warren_proto::peer_map::{Subject, object_digest};
use warren_proto::reason::{Reason, Refusal};
use warren_proto::{InstanceId, NodeId, UnixTime, WorkloadName};

use super::nodes::{admitted_node, certificate_key, key_hash, key_in_use};
use super::peers::{refuse_devices, serves_devices};
use super::tokens::check_match;
use super::{Caller, Entry, Plan, Registry, Standing, Transaction, allocation};
use crate::ca::{IssuedTunnel, RequesterKey, TunnelTerms};
use crate::state::records::{
    AddressLease, Der, Hex32, Instance, KeyOwner, KeyUse, MeshSettings, Node, TunnelCertificate,
};
use crate::state::{Key, KeyKind, KeyName, State, Stored};
use crate::store::Revision;

/// Most instances of one node.
const MAX_INSTANCES: usize = 1_024;
/// Certificates of an instance that are live at once: the present one and the one it takes over from.
const MAX_CERTIFICATES: usize = 2;

/// What a node asks a tunnel certificate for, its possession of both keys proven.
#[derive(Debug)]
pub struct TunnelRequest {
    /// The node that asks, from its certificate.
    pub node: NodeId,
    /// The identity.
    pub workload: WorkloadName,
    /// The instance to renew; none for a new one.
    pub instance: Option<InstanceId>,
    /// The certificate's key.
    pub key: RequesterKey,
    /// The X25519 key to bind.
    pub tunnel_key: [u8; 32],
    /// What the node says it can do.
    pub capabilities: Capabilities,
}

pub(super) const fn tunnel_key_name(key: [u8; 32]) -> KeyName {
    KeyName { kind: KeyKind::Tunnel, value: key }
}

impl Registry {
    /// Issues a tunnel certificate: the instance, its addresses, its keys and the audit row are one commit, and the
    /// certificate leaves only after it.
    ///
    /// The same request repeated (same keys; the answer may have been lost) is answered with the same certificate.
    /// `standing` is asked of the state that the certificate is planned on: whoever asks must not be revoked by then.
    pub async fn issue_tunnel(&self, request: TunnelRequest, standing: Standing<'_>) -> Result<Instance, Refusal> {
        let fresh = InstanceId::from_bytes(rand::random());
        let random: u64 = rand::random();
        let key_sha256 = key_hash(&request.key);
        let caller = Caller::new(format!("node:{}", request.node));
        self.change(&caller, |state, now| {
            let settings = state.settings()?;
            let node = admitted_node(state, request.node)?;
            standing(state)?;
            check_identity(node, &request.workload)?;
            refuse_devices([&request.workload])?;
            if let Some(same) = issued_before(state, &request, key_sha256, now) {
                return Ok(Plan::Answer(same.value.clone()));
            }
            let kept = check_keys(state, &request, key_sha256, now)?;
            let mut transaction = Transaction::default();
            transaction.depends_on(&Key::Node(node.id), node.modified);
            let (known, mut instance) = match request.instance {
                Some(id) => {
                    let known = own_instance(state, &request, id)?;
                    (Some(known), known.value.clone())
                }
                None => (None, new_instance(state, settings, &request, fresh, random, now)?),
            };
            let issued = self.authority().issue_tunnel(
                &request.key,
                &TunnelTerms {
                    workload: instance.workload.clone(),
                    instance: instance.id,
                    node: request.node,
                    addresses: instance.addresses,
                    tunnel_key: request.tunnel_key,
                    capabilities: request.capabilities,
                    lifetime: Duration::from_secs(u64::from(settings.tunnel_certificate_lifetime)),
                },
                now,
            )?;
            let leaf = issued.certificate.leaf();
            check_not_revoked(state, &instance, &request.tunnel_key, leaf)?;
            let until = leaf.not_after();
            add_certificate(&mut instance, issued, request.tunnel_key, key_sha256, now);
            write_instance(&mut transaction, state, known, &instance)?;
            let used = KeyUse { owner: KeyOwner::Instance(instance.id), until };
            let tunnel_key = Key::PublicKey(tunnel_key_name(request.tunnel_key));
            match kept {
                Some(modified) => transaction.replace(&tunnel_key, modified, &used)?,
                None => transaction.create(&tunnel_key, &used)?,
            }
            transaction.create(&Key::PublicKey(certificate_key(key_sha256)), &used)?;
            let entry = Entry {
                action: "certificate.issue",
                object: instance.id.to_string(),
                old: None,
                new: Some(shown(&instance)),
            };
            Ok(Plan::Commit { transaction, entry, answer: instance })
        })
        .await
    }

    /// Removes an instance that was revoked or whose certificates have all ended. Its addresses are quarantined.
    pub async fn forget_instance(
        &self,
        caller: &Caller,
        id: InstanceId,
        if_match: Option<Revision>,
    ) -> Result<(), Refusal> {
        self.change(caller, |state, now| forget(state, forgettable_instance(state, id, if_match, now)?, now)).await
    }

    pub(super) async fn remove_instance(&self, caller: &Caller, id: InstanceId) -> Result<(), Refusal> {
        self.change(caller, |state, now| match state.instances.get(&id) {
            Some(known) => forget(state, known, now),
            None => Ok(Plan::Answer(())),
        })
        .await
    }
}

/// The instance, if it may be forgotten: it or its node was revoked, or nothing that it holds is in date.
pub(crate) fn forgettable_instance(
    state: &State,
    id: InstanceId,
    if_match: Option<Revision>,
    now: UnixTime,
) -> Result<&Stored<Instance>, Refusal> {
    let instance = state.instances.get(&id).ok_or_else(|| unknown(id))?;
    check_match("the instance", instance.modified, if_match)?;
    let node = state.nodes.get(&instance.node);
    let trusted_node = instance.device.is_some() || node.is_some_and(|node| node.revoked_at.is_none());
    if instance.revoked_at.is_none() && trusted_node && instance.valid_until() > now {
        return Err(Refusal::new(Reason::Conflict, format!("instance {id} is still trusted"))
            .hint("revoke it first; a node that is revoked takes its instances with it"));
    }
    Ok(instance)
}

fn forget(state: &State, known: &Stored<Instance>, now: UnixTime) -> Result<Plan<()>, Refusal> {
    let mut transaction = Transaction::default();
    release(&mut transaction, state, known, now)?;
    let entry = Entry { action: "instance.forget", object: known.id.to_string(), old: Some(shown(known)), new: None };
    Ok(Plan::Commit { transaction, entry, answer: () })
}

/// Deletes an instance and puts its addresses into quarantine until no certificate alive can name them.
pub(super) fn release(
    transaction: &mut Transaction,
    state: &State,
    known: &Stored<Instance>,
    now: UnixTime,
) -> Result<(), Refusal> {
    let lifetime = Duration::from_secs(u64::from(state.settings()?.max_certificate_lifetime));
    transaction.delete(&Key::Instance(known.id), known.modified);
    if let Some(device) = &known.device {
        // Until now it was bound without an end.
        let name = tunnel_key_name(device.key.0);
        if let Some(used) = state.keys.get(&name).filter(|used| used.owner == KeyOwner::Instance(known.id)) {
            let until = KeyUse { owner: used.owner, until: known.valid_until() };
            transaction.replace(&Key::PublicKey(name), used.modified, &until)?;
        }
    }
    for address in known.addresses.iter() {
        if let Some(lease) = state.addresses.get(&address).filter(|lease| lease.instance == known.id) {
            let quarantined =
                AddressLease { instance: known.id, quarantined_until: Some(now.plus(lifetime).plus(CLOCK_SKEW)) };
            transaction.replace(&Key::Address(address), lease.modified, &quarantined)?;
        }
    }
    Ok(())
}

pub(super) fn check_identity(node: &Node, workload: &WorkloadName) -> Result<(), Refusal> {
    if node.workloads.contains(workload) {
        return Ok(());
    }
    let allowed: Vec<_> = node.workloads.iter().map(WorkloadName::as_str).collect();
    let detail = format!("node {} may not hold {workload}; it may hold {}", node.id, allowed.join(", "));
    Err(Refusal::new(Reason::IdentityNotAllowed, detail)
        .hint(format!("enrol the machine with a token for it: `warren token create --for {workload}`")))
}

/// The instance that this very request, or one with the same keys, was answered with.
fn issued_before<'s>(
    state: &'s State,
    request: &TunnelRequest,
    key_sha256: [u8; 32],
    now: UnixTime,
) -> Option<&'s Stored<Instance>> {
    let KeyOwner::Instance(id) = state.keys.get(&tunnel_key_name(request.tunnel_key))?.owner else { return None };
    let instance = state.instances.get(&id)?;
    let newest = instance.certificates.first()?;
    let same = instance.node == request.node
        && instance.workload == request.workload
        && request.instance.is_none_or(|asked| asked == id)
        && newest.tunnel_key.0 == request.tunnel_key
        && newest.key_sha256.0 == key_sha256
        && newest.not_after > now
        && instance.revoked_at.is_none();
    same.then_some(instance)
}

/// That both keys are new. One case is not: a plain device has its node's tunnel key in its configuration, so an instance
/// that devices talk to keeps it over renewals; the revision of its record is the answer then.
fn check_keys(
    state: &State,
    request: &TunnelRequest,
    key_sha256: [u8; 32],
    now: UnixTime,
) -> Result<Option<Revision>, Refusal> {
    if state.keys.get(&certificate_key(key_sha256)).is_some() {
        return Err(key_in_use("the certificate request's key"));
    }
    let Some(known) = state.keys.get(&tunnel_key_name(request.tunnel_key)) else { return Ok(None) };
    let newest = request.instance.and_then(|id| state.instances.get(&id)?.certificates.first());
    let is_own = request.instance.is_some_and(|id| known.owner == KeyOwner::Instance(id))
        && newest.is_some_and(|certificate| certificate.tunnel_key.0 == request.tunnel_key);
    if is_own && serves_devices(state, &request.workload, now) {
        return Ok(Some(known.modified));
    }
    Err(key_in_use("the tunnel key"))
}

/// Puts a certificate that was issued before those that an instance has.
pub(super) fn add_certificate(
    instance: &mut Instance,
    issued: IssuedTunnel,
    tunnel_key: [u8; 32],
    key_sha256: [u8; 32],
    now: UnixTime,
) {
    let leaf = issued.certificate.leaf();
    let certificate = TunnelCertificate {
        chain: issued.chain.into_iter().map(|der| Der(der.into())).collect(),
        serial: leaf.serial().as_bytes().to_vec(),
        issuer_key_id: leaf.issuer_key_id().as_bytes().to_vec(),
        tunnel_key: Hex32(tunnel_key),
        key_sha256: Hex32(key_sha256),
        not_before: leaf.not_before(),
        not_after: leaf.not_after(),
    };
    instance.certificates.insert(0, certificate);
    instance.certificates.retain(|certificate| certificate.not_after > now);
    instance.certificates.truncate(MAX_CERTIFICATES);
}

fn own_instance<'s>(
    state: &'s State,
    request: &TunnelRequest,
    id: InstanceId,
) -> Result<&'s Stored<Instance>, Refusal> {
    // An instance of another node is answered like one that does not exist.
    let instance = state
        .instances
        .get(&id)
        .filter(|instance| instance.node == request.node)
        .ok_or_else(|| unknown(id).hint("ask for a new instance: leave instance_id empty"))?;
    if instance.workload != request.workload {
        let detail = format!("instance {id} is {}, not {}", instance.workload, request.workload);
        return Err(Refusal::new(Reason::IdentityNotAllowed, detail));
    }
    match instance.revoked_at {
        Some(at) => Err(Refusal::new(Reason::Revoked, format!("instance {id} was revoked at {at}"))),
        None => Ok(instance),
    }
}

fn new_instance(
    state: &State,
    settings: &MeshSettings,
    request: &TunnelRequest,
    id: InstanceId,
    random: u64,
    now: UnixTime,
) -> Result<Instance, Refusal> {
    if state.instances_on(request.node).count() >= MAX_INSTANCES {
        return Err(Refusal::new(Reason::RateLimited, format!("the node already has {MAX_INSTANCES} instances"))
            .hint("instances whose certificates have ended are forgotten after a day"));
    }
    Ok(Instance {
        id,
        node: request.node,
        workload: request.workload.clone(),
        addresses: allocation::allocate(state, &settings.overlay, random, now)?,
        registered_at: now,
        certificates: Vec::new(),
        revoked_at: None,
        device: None,
    })
}

/// A revocation that names the key or the issuer holds for what is issued after it, too.
pub(super) fn check_not_revoked(
    state: &State,
    instance: &Instance,
    tunnel_key: &[u8; 32],
    leaf: &warren_proto::certificate::Leaf,
) -> Result<(), Refusal> {
    let covered = state.revoked.covers(Subject {
        issuer_key_id: leaf.issuer_key_id().as_bytes(),
        serial: leaf.serial().as_bytes(),
        tunnel_key: Some(tunnel_key),
        instance: Some(instance.id),
        node: Some(instance.node),
        spiffe_id: leaf.identity(),
        issued_at: leaf.not_before().plus(CLOCK_SKEW),
    });
    match covered {
        None => Ok(()),
        Some(what) => Err(Refusal::new(Reason::Revoked, format!("the {what} is revoked"))),
    }
}

pub(super) fn write_instance(
    transaction: &mut Transaction,
    state: &State,
    known: Option<&Stored<Instance>>,
    instance: &Instance,
) -> Result<(), Refusal> {
    let key = Key::Instance(instance.id);
    if let Some(known) = known {
        return transaction.replace(&key, known.modified, instance);
    }
    transaction.create(&key, instance)?;
    let lease = AddressLease { instance: instance.id, quarantined_until: None };
    for address in instance.addresses.iter() {
        let key = Key::Address(address);
        match state.addresses.get(&address) {
            // Its quarantine is over, or allocation would not have given it.
            Some(old) if matches!(address, IpAddr::V4(_)) => transaction.replace(&key, old.modified, &lease)?,
            _ => transaction.create(&key, &lease)?,
        }
    }
    Ok(())
}

fn unknown(id: InstanceId) -> Refusal {
    Refusal::new(Reason::NotFound, format!("there is no instance {id}"))
}

pub(super) fn shown(instance: &Instance) -> serde_json::Value {
    let newest = instance.certificates.first();
    serde_json::json!({
        "node": instance.node,
        "workload": instance.workload,
        "addresses": instance.addresses.iter().collect::<Vec<_>>(),
        "certificate_sha256": newest.and_then(|certificate| certificate.chain.first()).map(|leaf| Hex32(object_digest(&leaf.0))),
        "serial": newest.map(|certificate| hex::encode(&certificate.serial)),
        "issuer_key_id": newest.map(|certificate| hex::encode(&certificate.issuer_key_id)),
        "tunnel_key": newest.map(|certificate| certificate.tunnel_key),
        "not_after": newest.map(|certificate| certificate.not_after),
    })
}
