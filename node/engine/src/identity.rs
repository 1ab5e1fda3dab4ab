//! Admission: from a record that anybody may have handed over to a peer that a trusted authority vouches for.
//!
//! [`verify`] is one pure function, run by every node for every certificate it is sent. Only its result, a
//! [`VerifiedPeer`], can become a handshake tunnel; nothing else constructs one. [`verify_all`] judges a whole
//! scope, where two records that claim one address or key refute each other. [`verify_signed_object`] does for
//! manifests and heartbeats what admission does for keys. Whoever distributes records can therefore delay or
//! drop, but not inject.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use warren_proto::certificate::{
    CLOCK_SKEW, Capabilities, Chain, KeyId, Leaf, SerialNumber, TunnelBinding, TunnelCertificate, is_canonical,
    is_low_order,
};
use warren_proto::control_trust::{AnchoredPath, Purpose, anchor};
use warren_proto::peer_map::{PeerRecord, RevocationSet, Subject};
use warren_proto::reason::Refusal;
use warren_proto::{
    InstanceId, NodeId, Overlay, OverlayAddresses, Reason, SpiffeId, TrustBundle, UnixTime, WorkloadName,
};

mod signed_object;

pub use signed_object::{VerifiedBody, verify_signed_object};

/// What this node holds against a record: its mesh, itself, and what policy says.
#[derive(Clone, Copy)]
pub struct LocalView<'a> {
    /// The prefixes that overlay addresses come from.
    pub overlay: &'a Overlay,
    /// The longest lifetime a tunnel certificate may have, without the moment it is dated back by.
    pub max_certificate_lifetime: Duration,
    /// Overlay addresses of this node's own instances.
    pub local_addresses: &'a HashSet<IpAddr>,
    /// This node's own tunnel keys.
    pub local_keys: &'a HashSet<[u8; 32]>,
    /// What is no longer trusted.
    pub revocations: &'a RevocationSet,
    /// When the last signed heartbeat becomes too old to admit a peer that was not admitted before.
    pub fresh_until: UnixTime,
    /// Whether an instance was admitted before, in this run or by the scope that the node started from.
    pub admitted: &'a dyn Fn(InstanceId) -> bool,
    /// Whether policy lets a local workload and this one talk in some direction.
    pub linked: &'a dyn Fn(&WorkloadName) -> bool,
}

/// A tunnel key that a trusted authority binds to an identity, as of the moment it was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedPeer {
    certificate: Arc<TunnelCertificate>,
    path: Arc<AnchoredPath>,
}

impl VerifiedPeer {
    /// The full SPIFFE ID.
    #[must_use]
    pub fn identity(&self) -> &SpiffeId {
        self.certificate.leaf().identity()
    }

    /// `<namespace>/<name>`.
    #[must_use]
    pub fn workload(&self) -> &WorkloadName {
        self.certificate.workload()
    }

    /// The running copy.
    #[must_use]
    pub fn instance(&self) -> InstanceId {
        self.binding().instance
    }

    /// The node that holds the key.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.binding().node
    }

    /// X25519 public key, the static key of its handshakes.
    #[must_use]
    pub fn tunnel_key(&self) -> &[u8; 32] {
        &self.certificate.binding().tunnel_key
    }

    /// Its overlay addresses: the only inner sources accepted from it.
    #[must_use]
    pub fn addresses(&self) -> OverlayAddresses {
        self.certificate.addresses()
    }

    /// What the certificate says the peer can do.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        self.binding().capabilities
    }

    /// A plain WireGuard device: application packets go through its handshake tunnel.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.certificate.is_plain()
    }

    /// First moment of validity: of two certificates of one instance, the later is the newer.
    #[must_use]
    pub fn not_before(&self) -> UnixTime {
        self.certificate.leaf().not_before()
    }

    /// Sessions end here: the earliest end on the path from the certificate to its root.
    #[must_use]
    pub fn valid_until(&self) -> UnixTime {
        self.path.valid_until()
    }

    /// With [`VerifiedPeer::serial`], names the certificate.
    #[must_use]
    pub fn issuer_key_id(&self) -> &KeyId {
        self.certificate.leaf().issuer_key_id()
    }

    /// With [`VerifiedPeer::issuer_key_id`], names the certificate.
    #[must_use]
    pub fn serial(&self) -> &SerialNumber {
        self.certificate.leaf().serial()
    }

    fn binding(&self) -> &TunnelBinding {
        self.certificate.binding()
    }

    /// Whether the path that was found once still ends in a root of `bundle` and is in date. Its signatures
    /// cannot have changed.
    fn is_still_anchored(&self, bundle: &TrustBundle, now: UnixTime) -> bool {
        let root = self.path.authorities().last();
        self.identity().trust_domain() == bundle.trust_domain()
            && bundle.roots().any(|held| Some(held) == root)
            && self.not_before() <= now.plus(CLOCK_SKEW)
            && now < self.valid_until()
    }
}

/// A certificate of a record, or the whole record, that was not admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedRecord {
    /// Whose record.
    pub instance: InstanceId,
    /// Why.
    pub refusal: Refusal,
}

/// What became of a set of records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Admission {
    /// By instance, and of one instance the newer certificate first; at most two each.
    pub peers: Vec<VerifiedPeer>,
    /// One entry for each certificate not admitted.
    pub refused: Vec<RefusedRecord>,
}

/// Judges one certificate of the record of `instance`: `chain` is DER, leaf first, root left out.
///
/// In this order: sizes · profile, with exactly one SPIFFE ID · trust domain · path to one of its roots, dates
/// on it · lifetime · addresses · tunnel key · binding · revocation · age of the mesh's state · policy.
///
/// # Errors
/// A [`Refusal`] whose reason is of the record stage.
pub fn verify(
    instance: InstanceId,
    chain: &[Bytes],
    bundle: &TrustBundle,
    view: &LocalView<'_>,
    now: UnixTime,
) -> Result<VerifiedPeer, Refusal> {
    let chain = Chain::new(chain.iter().map(AsRef::as_ref))?;
    let certificate = TunnelCertificate::parse(chain.leaf())?;
    let path = anchor(certificate.leaf(), chain, bundle, Purpose::Tunnel, now)?;
    judge(instance, VerifiedPeer { certificate: certificate.into(), path: path.into() }, view, now)
}

/// The part of [`verify`] that follows on form and path, and that changes with what the node knows.
fn judge(
    instance: InstanceId,
    peer: VerifiedPeer,
    view: &LocalView<'_>,
    now: UnixTime,
) -> Result<VerifiedPeer, Refusal> {
    let VerifiedPeer { certificate, path } = &peer;
    check_lifetime(certificate.leaf(), view)?;
    check_addresses(certificate.addresses(), view)?;
    check_tunnel_key(&certificate.binding().tunnel_key, view)?;
    let named = certificate.binding().instance;
    if named != instance {
        let detail = format!("certificate of instance {named} in the record of instance {instance}");
        return Err(Refusal::new(Reason::BindingMismatch, detail));
    }
    check_revocation(certificate, path, view)?;
    if now > view.fresh_until && !(view.admitted)(instance) {
        let detail = format!("the last heartbeat was good until {}, now it is {now}", view.fresh_until);
        return Err(Refusal::new(Reason::MeshStale, detail).hint("the control link is down: see warren status"));
    }
    if !(view.linked)(certificate.workload()) {
        let detail = format!("no rule lets a workload of this node and {} talk", certificate.workload());
        return Err(Refusal::new(Reason::NotLinked, detail));
    }
    Ok(peer)
}

/// Judges every certificate of every record, then the records against each other.
///
/// A certificate that fails alone makes no claim: a forged record cannot push out a good one. Among those that
/// stand, two instances claiming one address or one key are refused, both. Certificates of one instance must
/// agree in everything but key and dates.
#[must_use]
pub fn verify_all<'r>(
    records: impl IntoIterator<Item = &'r PeerRecord>,
    bundle: &TrustBundle,
    view: &LocalView<'_>,
    now: UnixTime,
) -> Admission {
    verify_all_after(&[], records, bundle, view, now)
}

/// [`verify_all`] for a set of which `earlier` came of before: of a certificate that stands there, byte for
/// byte, the signatures are not checked again, everything else is. A path costs some 0.4 ms, the rest some
/// microseconds.
#[must_use]
pub fn verify_all_after<'r>(
    earlier: &[VerifiedPeer],
    records: impl IntoIterator<Item = &'r PeerRecord>,
    bundle: &TrustBundle,
    view: &LocalView<'_>,
    now: UnixTime,
) -> Admission {
    let known: HashMap<&[u8], &VerifiedPeer> = earlier
        .iter()
        .filter(|peer| peer.is_still_anchored(bundle, now))
        .map(|peer| (peer.certificate.leaf().der().as_ref(), peer))
        .collect();
    let judge_one = |instance, chain: &[Bytes]| match chain.first().and_then(|leaf| known.get(&**leaf)) {
        Some(peer) => judge(instance, (*peer).clone(), view, now),
        None => verify(instance, chain, bundle, view, now),
    };
    let mut admission = Admission::default();
    for record in records {
        let mut peers = Vec::with_capacity(record.chains.len());
        for chain in &record.chains {
            match judge_one(record.instance, chain) {
                Ok(peer) => peers.push(peer),
                Err(refusal) => admission.refused.push(RefusedRecord { instance: record.instance, refusal }),
            }
        }
        match agree(peers) {
            Ok(peers) => admission.peers.extend(peers),
            Err(refusal) => admission.refused.push(RefusedRecord { instance: record.instance, refusal }),
        }
    }
    admission.refuse_shared(
        |peer| peer.addresses().iter().collect(),
        |address| Refusal::new(Reason::AddressClaimedTwice, format!("address {address} is claimed by another record")),
    );
    admission.refuse_shared(
        |peer| vec![*peer.tunnel_key()],
        |_| Refusal::new(Reason::KeyClaimedTwice, "the tunnel key is claimed by another record"),
    );
    admission.peers.sort_by_key(|peer| (peer.instance(), std::cmp::Reverse(peer.not_before())));
    admission
}

impl Admission {
    /// Moves every peer that claims what another instance claims too from `peers` to `refused`.
    fn refuse_shared<C: Eq + Hash>(
        &mut self,
        claims: impl Fn(&VerifiedPeer) -> Vec<C>,
        refusal: impl Fn(&C) -> Refusal,
    ) {
        let mut claimants: HashMap<C, HashSet<InstanceId>> = HashMap::new();
        for peer in &self.peers {
            for claim in claims(peer) {
                claimants.entry(claim).or_default().insert(peer.instance());
            }
        }
        claimants.retain(|_, instances| instances.len() > 1);
        if claimants.is_empty() {
            return;
        }
        for peer in std::mem::take(&mut self.peers) {
            match claims(&peer).iter().find(|claim| claimants.contains_key(claim)) {
                Some(claim) => {
                    self.refused.push(RefusedRecord { instance: peer.instance(), refusal: refusal(claim) });
                }
                None => self.peers.push(peer),
            }
        }
    }
}

/// Of one record's certificates, those that stand beside each other. Two with the same key count once, the
/// later: only a plain device keeps its key.
fn agree(mut peers: Vec<VerifiedPeer>) -> Result<Vec<VerifiedPeer>, Refusal> {
    peers.sort_by_key(|peer| std::cmp::Reverse((peer.not_before(), peer.valid_until())));
    if let [newer, older] = peers.as_slice() {
        let same = newer.identity() == older.identity()
            && newer.node() == older.node()
            && newer.addresses() == older.addresses()
            && newer.is_plain() == older.is_plain();
        if !same {
            return Err(Refusal::new(
                Reason::BindingMismatch,
                "the two certificates differ in identity, node, addresses or kind",
            ));
        }
        if newer.tunnel_key() == older.tunnel_key() {
            peers.truncate(1);
        }
    }
    Ok(peers)
}

fn check_lifetime(leaf: &Leaf, view: &LocalView<'_>) -> Result<(), Refusal> {
    let lifetime = leaf.not_before().until(leaf.not_after());
    let most = view.max_certificate_lifetime.saturating_add(CLOCK_SKEW);
    if lifetime > most {
        let detail = format!("certificate: it lives {} s, the mesh allows {} s", lifetime.as_secs(), most.as_secs());
        return Err(Refusal::new(Reason::CertificateLifetime, detail));
    }
    Ok(())
}

fn check_addresses(addresses: OverlayAddresses, view: &LocalView<'_>) -> Result<(), Refusal> {
    for address in addresses.iter() {
        if !view.overlay.contains(address) {
            let detail = format!("address {address} lies outside the overlay's prefixes");
            return Err(Refusal::new(Reason::AddressOutsidePrefix, detail));
        }
        if view.local_addresses.contains(&address) {
            return Err(Refusal::new(Reason::AddressIsLocal, format!("address {address} is this node's own")));
        }
    }
    Ok(())
}

fn check_tunnel_key(key: &[u8; 32], view: &LocalView<'_>) -> Result<(), Refusal> {
    if is_low_order(key) {
        return Err(Refusal::new(Reason::KeyLowOrder, "tunnel key: agreement with it gives zero"));
    }
    if !is_canonical(key) {
        return Err(Refusal::new(Reason::CertificateProfile, "tunnel key: not in its one canonical encoding"));
    }
    if view.local_keys.contains(key) {
        return Err(Refusal::new(Reason::KeyIsLocal, "tunnel key: it is this node's own"));
    }
    Ok(())
}

fn check_revocation(certificate: &TunnelCertificate, path: &AnchoredPath, view: &LocalView<'_>) -> Result<(), Refusal> {
    let leaf = certificate.leaf();
    let binding = certificate.binding();
    let of_leaf = Subject {
        issuer_key_id: leaf.issuer_key_id().as_bytes(),
        serial: leaf.serial().as_bytes(),
        tunnel_key: Some(&binding.tunnel_key),
        instance: Some(binding.instance),
        node: Some(binding.node),
        spiffe_id: leaf.identity(),
        // Issuers date back by the skew; this is the moment of issue that a cutoff is meant for.
        issued_at: leaf.not_before().plus(CLOCK_SKEW),
    };
    // An issuer, a root too, is revoked by its key; an intermediate also by its own certificate.
    let authorities = path.authorities();
    let by_key = authorities.iter().map(|issuer| (issuer.key_id(), leaf.serial()));
    let by_certificate = authorities.windows(2).filter_map(|pair| match pair {
        [authority, issuer] => Some((issuer.key_id(), authority.serial())),
        _ => None,
    });
    let of_path = by_key.chain(by_certificate).map(|(issuer, serial)| Subject {
        issuer_key_id: issuer.as_bytes(),
        serial: serial.as_bytes(),
        tunnel_key: None,
        instance: None,
        node: None,
        ..of_leaf
    });
    match std::iter::once(of_leaf).chain(of_path).find_map(|subject| view.revocations.covers(subject)) {
        Some(kind) => Err(Refusal::new(Reason::Revoked, format!("revoked by {kind}"))),
        None => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod test_mesh;
#[cfg(test)]
mod tests;
