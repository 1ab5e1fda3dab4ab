//! Issuance: the registration's terms and one public key in, a certificate out.
//!
//! What comes out is parsed again by the same code that nodes use, so that a certificate they would refuse is never
//! handed out.

use std::time::Duration;

use warren_proto::certificate::{
    Capabilities, NodeCertificate, TunnelBinding, TunnelCertificate, WorkloadSvid, is_canonical, is_low_order,
};
use warren_proto::reason::Refusal;
use warren_proto::{InstanceId, NodeId, OverlayAddresses, Reason, SpiffeId, UnixTime, WorkloadName};

use super::authority::{Authority, MINIMUM_LIFETIME};
use super::request::RequesterKey;
use super::template::{self, Validity};

/// What the registration says a tunnel certificate is to hold.
#[derive(Debug, Clone)]
pub struct TunnelTerms {
    /// Whom it identifies.
    pub workload: WorkloadName,
    /// The running copy.
    pub instance: InstanceId,
    /// The node that holds the tunnel key.
    pub node: NodeId,
    /// The instance's overlay addresses.
    pub addresses: OverlayAddresses,
    /// X25519 public key, its possession proven.
    pub tunnel_key: [u8; 32],
    /// What the node can do.
    pub capabilities: Capabilities,
    /// How long it is to live; cut short where the issuer ends sooner.
    pub lifetime: Duration,
}

/// A tunnel certificate and what must be sent with it.
#[derive(Debug, Clone)]
pub struct IssuedTunnel {
    /// DER, leaf first, root left out.
    pub chain: Vec<Vec<u8>>,
    /// The leaf, as every node will read it.
    pub certificate: TunnelCertificate,
}

/// A node certificate and what must be sent with it.
#[derive(Debug, Clone)]
pub struct IssuedNode {
    /// DER, leaf first, root left out.
    pub chain: Vec<Vec<u8>>,
    /// The leaf, as the coordinator will read it.
    pub certificate: NodeCertificate,
}

/// A workload's own SVID and what must be sent with it.
#[derive(Debug, Clone)]
pub struct IssuedSvid {
    /// DER, leaf first, root left out.
    pub chain: Vec<Vec<u8>>,
    /// The leaf, as the node will read it.
    pub certificate: WorkloadSvid,
}

impl Authority {
    /// Issues a tunnel certificate to `key` on `terms`.
    ///
    /// # Errors
    /// [`Reason::KeyLowOrder`] and [`Reason::InvalidField`] for terms no node would admit,
    /// [`Reason::IssuerExpiring`] when the intermediate ends within five minutes.
    pub fn issue_tunnel(
        &self,
        key: &RequesterKey,
        terms: &TunnelTerms,
        now: UnixTime,
    ) -> Result<IssuedTunnel, Refusal> {
        if is_low_order(&terms.tunnel_key) {
            return Err(Refusal::new(Reason::KeyLowOrder, "tunnel_key: agreement with it gives zero"));
        }
        if !is_canonical(&terms.tunnel_key) {
            return Err(Refusal::new(Reason::InvalidField, "tunnel_key: not in its one canonical encoding"));
        }
        if let Some(outside) = terms.addresses.iter().find(|address| !self.overlay().contains(*address)) {
            return Err(Refusal::new(Reason::AddressOutsidePrefix, format!("addresses: {outside}")));
        }
        let validity = self.leaf_validity(terms.lifetime, now)?;
        let identity = terms.workload.in_domain(self.bundle().trust_domain());
        let binding = TunnelBinding {
            tunnel_key: terms.tunnel_key,
            instance: terms.instance,
            node: terms.node,
            capabilities: terms.capabilities,
        };
        let params = template::tunnel(&identity, terms.addresses, &binding, validity).map_err(internal)?;
        let leaf = params.signed_by(&key.key, self.issuer()).map_err(internal)?;
        let certificate = TunnelCertificate::parse(leaf.der())?;
        Ok(IssuedTunnel { chain: self.chain_of(leaf.der()), certificate })
    }

    /// Issues the certificate of `node` to `key`.
    ///
    /// # Errors
    /// [`Reason::IssuerExpiring`] when the intermediate ends within five minutes.
    pub fn issue_node(
        &self,
        key: &RequesterKey,
        node: NodeId,
        lifetime: Duration,
        now: UnixTime,
    ) -> Result<IssuedNode, Refusal> {
        let validity = self.leaf_validity(lifetime, now)?;
        let identity = SpiffeId::node(self.bundle().trust_domain(), node);
        let params = template::node(&identity, validity).map_err(internal)?;
        let leaf = params.signed_by(&key.key, self.issuer()).map_err(internal)?;
        let certificate = NodeCertificate::parse(leaf.der())?;
        Ok(IssuedNode { chain: self.chain_of(leaf.der()), certificate })
    }

    /// Issues an X.509-SVID of `workload` to `key`: what the workload itself is handed. It admits no tunnel.
    ///
    /// # Errors
    /// [`Reason::IssuerExpiring`] when the intermediate ends within five minutes.
    pub fn issue_svid(
        &self,
        key: &RequesterKey,
        workload: &WorkloadName,
        lifetime: Duration,
        now: UnixTime,
    ) -> Result<IssuedSvid, Refusal> {
        let validity = self.leaf_validity(lifetime, now)?;
        let identity = workload.in_domain(self.bundle().trust_domain());
        let params = template::svid(&identity, validity).map_err(internal)?;
        let leaf = params.signed_by(&key.key, self.issuer()).map_err(internal)?;
        let certificate = WorkloadSvid::parse(leaf.der())?;
        Ok(IssuedSvid { chain: self.chain_of(leaf.der()), certificate })
    }

    fn leaf_validity(&self, lifetime: Duration, now: UnixTime) -> Result<Validity, Refusal> {
        let ends = self.issuer_certificate().not_after();
        if now.until(ends) < MINIMUM_LIFETIME {
            return Err(Refusal::new(Reason::IssuerExpiring, format!("the issuing certificate ends at {ends}"))
                .hint("see the coordinator's log for why it was not renewed"));
        }
        if lifetime < MINIMUM_LIFETIME {
            return Err(Refusal::new(Reason::InvalidField, "lifetime: under five minutes"));
        }
        Ok(Validity::new(now, lifetime, Some(ends)))
    }

    fn chain_of(&self, leaf: &[u8]) -> Vec<Vec<u8>> {
        vec![leaf.to_vec(), self.issuer_certificate().der().to_vec()]
    }
}

fn internal(error: rcgen::Error) -> Refusal {
    Refusal::new(Reason::Internal, format!("building the certificate: {error}"))
}
