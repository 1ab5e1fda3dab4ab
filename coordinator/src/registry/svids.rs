//! Workload SVIDs: short-lived certificates that a node hands to the workloads of its host (SPIFFE Workload API).
//!
//! They are not registered one by one: nothing is distributed of them, and who may ask for one is what the node may hold.
//! What stays is the row of the audit log, and the key until it can do no more harm.

use std::time::Duration;

use warren_proto::certificate::CLOCK_SKEW;
use warren_proto::peer_map::{Subject, object_digest};
use warren_proto::reason::{Reason, Refusal};
use warren_proto::{NodeId, WorkloadName};

use super::instances::check_identity;
use super::nodes::{admitted_node, certificate_key, key_hash, key_in_use};
use super::{Caller, Entry, Plan, Registry, Standing, Transaction};
use crate::ca::RequesterKey;
use crate::state::Key;
use crate::state::records::{Hex32, KeyOwner, KeyUse};

/// How long a workload's SVID lives; less where tunnel certificates do.
pub const SVID_LIFETIME: Duration = Duration::from_secs(3600);

impl Registry {
    /// Issues an X.509-SVID of `workload` to `node`, whose possession of `key` is proven: DER, leaf first, the root left
    /// out. `standing` is asked of the state that it is planned on, as for a tunnel certificate. The key and the audit row are one commit, and the certificate leaves only after it.
    ///
    /// # Errors
    /// [`Reason::IdentityNotAllowed`] for an identity that the node may not hold, [`Reason::KeyInUse`] for a key that was
    /// certified before, [`Reason::Revoked`] where a revocation of the identity, the node or the issuer covers it.
    pub async fn issue_svid(
        &self,
        node: NodeId,
        workload: &WorkloadName,
        key: &RequesterKey,
        standing: Standing<'_>,
    ) -> Result<Vec<Vec<u8>>, Refusal> {
        let name = certificate_key(key_hash(key));
        let caller = Caller::new(format!("node:{node}"));
        self.change(&caller, |state, now| {
            let settings = state.settings()?;
            let holder = admitted_node(state, node)?;
            standing(state)?;
            check_identity(holder, workload)?;
            if state.keys.get(&name).is_some() {
                return Err(key_in_use("the certificate request's key"));
            }
            let tunnel_lifetime = Duration::from_secs(u64::from(settings.tunnel_certificate_lifetime));
            let issued = self.authority().issue_svid(key, workload, SVID_LIFETIME.min(tunnel_lifetime), now)?;
            let leaf = issued.certificate.leaf();
            let covered = state.revoked.covers(Subject {
                issuer_key_id: leaf.issuer_key_id().as_bytes(),
                serial: leaf.serial().as_bytes(),
                tunnel_key: None,
                instance: None,
                node: Some(node),
                spiffe_id: leaf.identity(),
                issued_at: leaf.not_before().plus(CLOCK_SKEW),
            });
            if let Some(what) = covered {
                return Err(Refusal::new(Reason::Revoked, format!("the {what} is revoked")));
            }
            let mut transaction = Transaction::default();
            transaction.depends_on(&Key::Node(node), holder.modified);
            let used = KeyUse { owner: KeyOwner::Svid(node), until: leaf.not_after() };
            transaction.create(&Key::PublicKey(name), &used)?;
            let entry = Entry {
                action: "svid.issue",
                object: workload.to_string(),
                old: None,
                new: Some(serde_json::json!({
                    "node": node,
                    "workload": workload,
                    "certificate_sha256": Hex32(object_digest(leaf.der())),
                    "serial": hex::encode(leaf.serial().as_bytes()),
                    "issuer_key_id": hex::encode(leaf.issuer_key_id().as_bytes()),
                    "not_after": leaf.not_after(),
                })),
            };
            Ok(Plan::Commit { transaction, entry, answer: issued.chain.clone() })
        })
        .await
    }
}
