//! Nodes: enrolled with a join token or other evidence, renewed with their own key, changed and forgotten by administrators.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use subtle::ConstantTimeEq;
use warren_proto::join_token::{JoinSecret, JoinTokenId};
use warren_proto::reason::{Reason, Refusal};
use warren_proto::{NodeId, UnixTime, WorkloadName};

use super::peers::refuse_devices;
use super::tokens::check_match;
use super::{Caller, Entry, Plan, Registry, Standing, Transaction};
use crate::attestation::Attested;
use crate::ca::{IssuedNode, RequesterKey};
use crate::state::records::{
    Hex32, JoinTokenRecord, KeyOwner, KeyUse, Node, NodeAttestation, NodeCertificate, NodeCertificateKey,
};
use crate::state::{Key, KeyKind, KeyName, State, Stored};
use crate::store::Revision;

/// How long after its certificate's end a node may still renew it, with the same key.
pub const RENEWAL_GRACE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Longest host name that is kept, in bytes.
const MAX_HOST_NAME: usize = 255;
/// Most identities of one node.
const MAX_WORKLOADS: usize = 96;

/// What a machine shows to be let in.
#[derive(Debug)]
pub enum Evidence {
    /// A join token.
    JoinToken {
        /// Its public name.
        id: JoinTokenId,
        /// Its secret.
        secret: JoinSecret,
    },
    /// Somebody else's word, judged.
    Attested(Attested),
}

/// A machine that wants to join, its possession of `key` proven.
#[derive(Debug)]
pub struct Enrolment {
    /// What it shows.
    pub evidence: Evidence,
    /// The key of the node certificate to be.
    pub key: RequesterKey,
    /// What its operator calls it.
    pub host_name: String,
    /// Where it enrols from.
    pub from: IpAddr,
}

/// What evidence comes to.
pub(super) enum Grant {
    /// This very key became this node before: the answer may have been lost.
    Again {
        known: Arc<Stored<Node>>,
        /// What vouches for it now, where it was not a join token.
        attested: Option<NodeAttestation>,
        transaction: Transaction,
    },
    /// A node of its own.
    New {
        workloads: Vec<WorkloadName>,
        token: Option<JoinTokenId>,
        attested: Option<NodeAttestation>,
        /// That the evidence is used, and what was read to find that out.
        transaction: Transaction,
    },
}

/// A node that was let in.
#[derive(Debug)]
pub struct EnrolledNode {
    /// Its record.
    pub node: Node,
    /// Its certificate, leaf first, the root left out.
    pub chain: Vec<Vec<u8>>,
}

impl Registry {
    /// Lets a machine in. The evidence's use, the node, its key and the audit row are one commit, so that of any number of
    /// simultaneous uses exactly as many succeed as the evidence allows. The same key may ask again while the evidence lasts (its
    /// answer may have been lost) and is the same node.
    pub async fn enrol(&self, enrolment: Enrolment) -> Result<EnrolledNode, Refusal> {
        let fresh = NodeId::from_bytes(rand::random());
        let key_sha256 = key_hash(&enrolment.key);
        let host_name = printable(&enrolment.host_name);
        let caller = Caller::new(match &enrolment.evidence {
            Evidence::JoinToken { id, .. } => format!("token:{id}"),
            Evidence::Attested(attested) => format!("attestor:{}", attested.attestor()),
        });
        self.change(&caller, |state, now| {
            let grant = match &enrolment.evidence {
                Evidence::JoinToken { id, secret } => by_token(state, *id, secret, key_sha256, now)?,
                Evidence::Attested(attested) => super::attestation::by_word(state, attested, key_sha256, fresh, now)?,
            };
            let (workloads, token, attested, mut transaction) = match grant {
                Grant::Again { known, attested, mut transaction } => {
                    let issued = self.sign_node(state, &enrolment.key, known.id, now)?;
                    let mut node = known.value.clone();
                    node.certificate = remembered(&issued, key_sha256);
                    node.attested = attested;
                    (node.asked_with, node.superseded) = (None, None);
                    transaction.replace(&Key::Node(node.id), known.modified, &node)?;
                    keep_key(&mut transaction, state, key_sha256, &node)?;
                    let entry = issued_entry("node.enrol-again", None, &node, &issued);
                    return Ok(Plan::Commit { transaction, entry, answer: EnrolledNode { node, chain: issued.chain } });
                }
                Grant::New { workloads, token, attested, transaction } => (workloads, token, attested, transaction),
            };
            if state.keys.get(&certificate_key(key_sha256)).is_some() {
                return Err(key_in_use("the certificate request's key"));
            }
            let issued = self.sign_node(state, &enrolment.key, fresh, now)?;
            let node = Node {
                id: fresh,
                host_name: host_name.clone(),
                workloads,
                enrolled_at: now,
                enrolled_from: enrolment.from,
                token,
                attested,
                certificate: remembered(&issued, key_sha256),
                asked_with: None,
                superseded: None,
                revoked_at: None,
            };
            transaction.create(&Key::Node(fresh), &node)?;
            keep_key(&mut transaction, state, key_sha256, &node)?;
            let entry = issued_entry("node.enrol", None, &node, &issued);
            Ok(Plan::Commit { transaction, entry, answer: EnrolledNode { node, chain: issued.chain } })
        })
        .await
    }

    /// A new certificate for a node that has shown one at its link. With one that has ended, only its own key is renewed, and
    /// only that of the newest: the key of a certificate long superseded opens nothing. Until the node has shown the newest
    /// ([`Registry::note_shown`]) the one that it asked for it with and the one that was the newest before count as well, for the
    /// answer may have been lost. `standing` is asked of the state that the new certificate is planned on: what was revoked
    /// meanwhile renews nothing, however early it began to ask.
    pub async fn renew_node(
        &self,
        id: NodeId,
        shown: NodeCertificateKey,
        key: &RequesterKey,
        standing: Standing<'_>,
    ) -> Result<EnrolledNode, Refusal> {
        let key_sha256 = key_hash(key);
        let caller = Caller::new(format!("node:{id}"));
        self.change(&caller, |state, now| {
            let known = admitted_node(state, id)?;
            standing(state)?;
            let newest = key_sha256 == known.certificate.key_sha256.0;
            // A link outlives a renewal: what it was made with and what the node holds may be two certificates.
            let lost = [known.asked_with, known.superseded]
                .into_iter()
                .flatten()
                .find(|before| !newest && *before == shown && before.key_sha256.0 == key_sha256);
            let ended = shown.not_after <= now || known.certificate.not_after <= now;
            if ended && lost.is_none() && !newest {
                return Err(Refusal::new(
                    Reason::RenewalTooLate,
                    "a node certificate that has ended is renewed with its own key only",
                )
                .hint("enrol the node anew with a join token"));
            }
            let ends = lost.map_or(known.certificate.not_after, |before| before.not_after);
            if ends.plus(RENEWAL_GRACE) <= now {
                let detail = format!("the node certificate ended at {ends}");
                return Err(Refusal::new(Reason::RenewalTooLate, detail).hint("enrol the node anew with a join token"));
            }
            let issued = self.sign_node(state, key, id, now)?;
            let mut node = known.value.clone();
            node.certificate = remembered(&issued, key_sha256);
            node.asked_with = Some(shown);
            let superseded = known.certificate.as_shown();
            node.superseded = (superseded != shown).then_some(superseded);
            let mut transaction = Transaction::default();
            transaction.replace(&Key::Node(id), known.modified, &node)?;
            keep_key(&mut transaction, state, key_sha256, &node)?;
            let entry = issued_entry("node.renew", Some(known), &node, &issued);
            Ok(Plan::Commit { transaction, entry, answer: EnrolledNode { node, chain: issued.chain } })
        })
        .await
    }

    /// The node has shown a certificate at its link. If it is the newest, its answer was not lost, and the one before is over.
    pub async fn note_shown(&self, id: NodeId, shown: NodeCertificateKey) -> Result<(), Refusal> {
        let is_news = |node: &Node| {
            node.asked_with.is_some()
                && node.certificate.key_sha256 == shown.key_sha256
                && ![node.asked_with, node.superseded].contains(&Some(shown))
        };
        if !self.state().nodes.get(&id).is_some_and(|known| is_news(known)) {
            return Ok(());
        }
        self.change(&Caller::new(format!("node:{id}")), |state, _| {
            let Some(known) = state.nodes.get(&id).filter(|known| is_news(known)) else { return Ok(Plan::Answer(())) };
            let node = Node { asked_with: None, superseded: None, ..known.value.clone() };
            let mut transaction = Transaction::default();
            transaction.replace(&Key::Node(id), known.modified, &node)?;
            Ok(Plan::Commit { transaction, entry: entry("node.renewed", Some(known), &node), answer: () })
        })
        .await
    }

    /// Sets the identities that a node may hold. Instances of identities taken away keep their certificates until
    /// those end; revoke them to end them at once.
    pub async fn set_node_workloads(
        &self,
        caller: &Caller,
        id: NodeId,
        workloads: Vec<WorkloadName>,
        if_match: Option<Revision>,
    ) -> Result<Arc<Stored<Node>>, Refusal> {
        self.change(caller, |state, _| {
            let (known, node) = node_with_workloads(state, id, workloads.clone(), if_match)?;
            if node.workloads == known.workloads {
                return Ok(Plan::Answer(()));
            }
            let mut transaction = Transaction::default();
            transaction.replace(&Key::Node(id), known.modified, &node)?;
            Ok(Plan::Commit { transaction, entry: entry("node.set-workloads", Some(known), &node), answer: () })
        })
        .await?;
        self.state().nodes.get(&id).cloned().ok_or_else(|| unknown(id))
    }

    /// Removes a node that was revoked, or whose certificate ended longer ago than it could renew, with all its
    /// instances.
    pub async fn forget_node(&self, caller: &Caller, id: NodeId, if_match: Option<Revision>) -> Result<(), Refusal> {
        let check = |state: &State, now: UnixTime| {
            let node = state.nodes.get(&id).cloned().ok_or_else(|| unknown(id))?;
            check_match("the node", node.modified, if_match)?;
            if node.revoked_at.is_none() && node.certificate.not_after.plus(RENEWAL_GRACE) > now {
                return Err(Refusal::new(Reason::Conflict, format!("node {id} is still trusted"))
                    .hint(format!("revoke it first: `warren node revoke {id}`")));
            }
            Ok(node)
        };
        check(&self.state(), self.now())?;
        let instances: Vec<_> = self.state().instances_on(id).map(|instance| instance.id).collect();
        for instance in instances {
            self.remove_instance(&Caller { request: crate::store::CommitId::random(), ..caller.clone() }, instance)
                .await?;
        }
        self.change(caller, |state, now| {
            let known = check(state, now)?;
            let mut transaction = Transaction::default();
            transaction.delete(&Key::Node(id), known.modified);
            let entry = Entry { action: "node.forget", object: id.to_string(), old: shown(&known), new: None };
            Ok(Plan::Commit { transaction, entry, answer: () })
        })
        .await
    }

    /// Puts into the audit log that two processes use the identity of `node`.
    pub(crate) async fn report_clone(&self, node: NodeId, remotes: [IpAddr; 2]) -> Result<(), Refusal> {
        self.change(&Caller::coordinator(), |_, _| {
            let new = Some(serde_json::json!({ "remotes": remotes }));
            let entry = Entry { action: "node.cloned", object: node.to_string(), old: None, new };
            Ok(Plan::Commit { transaction: Transaction::default(), entry, answer: () })
        })
        .await
    }

    fn sign_node(&self, state: &State, key: &RequesterKey, id: NodeId, now: UnixTime) -> Result<IssuedNode, Refusal> {
        let lifetime = Duration::from_secs(u64::from(state.settings()?.node_certificate_lifetime));
        self.authority().issue_node(key, id, lifetime, now)
    }
}

/// A node as it is, and as it would be with these identities.
pub(crate) fn node_with_workloads(
    state: &State,
    id: NodeId,
    mut workloads: Vec<WorkloadName>,
    if_match: Option<Revision>,
) -> Result<(&Arc<Stored<Node>>, Node), Refusal> {
    workloads.sort();
    workloads.dedup();
    if workloads.len() > MAX_WORKLOADS {
        let detail = format!("workloads: {}, at most {MAX_WORKLOADS}", workloads.len());
        return Err(Refusal::new(Reason::InvalidField, detail));
    }
    refuse_devices(&workloads)?;
    let known = admitted_node(state, id)?;
    check_match("the node", known.modified, if_match)?;
    Ok((known, Node { workloads, ..known.value.clone() }))
}

/// The node's registration, when it may be served: known, and not revoked.
pub(crate) fn admitted_node(state: &State, id: NodeId) -> Result<&Arc<Stored<Node>>, Refusal> {
    let node = state.nodes.get(&id).ok_or_else(|| unknown(id))?;
    match node.revoked_at {
        None => Ok(node),
        Some(at) => Err(Refusal::new(Reason::NodeRevoked, format!("node {id} was revoked at {at}"))
            .hint("enrol the machine anew, if it is to be trusted again")),
    }
}

pub(super) fn unknown(id: NodeId) -> Refusal {
    Refusal::new(Reason::NodeUnknown, format!("node {id} is not registered")).hint("list nodes with `warren node list`")
}

pub(super) fn key_hash(key: &RequesterKey) -> [u8; 32] {
    warren_proto::peer_map::object_digest(key.spki())
}

pub(super) const fn certificate_key(sha256: [u8; 32]) -> KeyName {
    KeyName { kind: KeyKind::Certificate, value: sha256 }
}

pub(super) fn key_in_use(what: &str) -> Refusal {
    Refusal::new(Reason::KeyInUse, format!("{what} is already bound to another certificate"))
        .hint("make a new key pair for every certificate")
}

/// Binds the key of a node's newest certificate to the node, for as long as that certificate lasts.
fn keep_key(transaction: &mut Transaction, state: &State, key_sha256: [u8; 32], node: &Node) -> Result<(), Refusal> {
    let name = certificate_key(key_sha256);
    let used = KeyUse { owner: KeyOwner::Node(node.id), until: node.certificate.not_after };
    match state.keys.get(&name) {
        Some(by) if by.owner == used.owner => transaction.replace(&Key::PublicKey(name), by.modified, &used),
        Some(_) => Err(key_in_use("the certificate request's key")),
        None => transaction.create(&Key::PublicKey(name), &used),
    }
}

/// What a join token grants.
fn by_token(
    state: &State,
    id: JoinTokenId,
    secret: &JoinSecret,
    key_sha256: [u8; 32],
    now: UnixTime,
) -> Result<Grant, Refusal> {
    let token = usable_token(state, id, secret, now)?;
    if let Some(known) = holder(state, key_sha256).filter(|node| node.token == Some(id)) {
        return Ok(Grant::Again { known, attested: None, transaction: Transaction::default() });
    }
    if token.uses_left() == 0 {
        let detail = format!("join token {} was used {} times", token.id, token.used);
        return Err(Refusal::new(Reason::TokenUsed, detail).hint("make a new one with `warren token create`"));
    }
    let mut transaction = Transaction::default();
    let used = JoinTokenRecord { used: token.used + 1, ..token.value.clone() };
    transaction.replace(&Key::Token(id), token.modified, &used)?;
    Ok(Grant::New { workloads: token.workloads.clone(), token: Some(id), attested: None, transaction })
}

fn usable_token<'s>(
    state: &'s State,
    id: JoinTokenId,
    secret: &JoinSecret,
    now: UnixTime,
) -> Result<&'s Arc<Stored<JoinTokenRecord>>, Refusal> {
    let unknown = || {
        Refusal::new(Reason::TokenUnknown, format!("there is no join token {id} with this secret"))
            .hint("make a new one with `warren token create`")
    };
    let token = state.tokens.get(&id).ok_or_else(unknown)?;
    if !bool::from(secret.hash().ct_eq(&token.secret_sha256.0)) {
        return Err(unknown());
    }
    if token.expires_at <= now {
        let detail = format!("join token {} ended at {}; it is now {now}", token.id, token.expires_at);
        return Err(Refusal::new(Reason::TokenExpired, detail).hint("make a new one with `warren token create`"));
    }
    Ok(token)
}

/// The trusted node whose newest certificate is this very key's.
pub(super) fn holder(state: &State, key_sha256: [u8; 32]) -> Option<Arc<Stored<Node>>> {
    let KeyOwner::Node(id) = state.keys.get(&certificate_key(key_sha256))?.owner else { return None };
    let node = state.nodes.get(&id)?;
    let same = node.certificate.key_sha256.0 == key_sha256 && node.revoked_at.is_none();
    same.then(|| Arc::clone(node))
}

fn remembered(issued: &IssuedNode, key_sha256: [u8; 32]) -> NodeCertificate {
    let leaf = issued.certificate.leaf();
    NodeCertificate {
        serial: leaf.serial().as_bytes().to_vec(),
        issuer_key_id: leaf.issuer_key_id().as_bytes().to_vec(),
        key_sha256: Hex32(key_sha256),
        not_before: leaf.not_before(),
        not_after: leaf.not_after(),
    }
}

fn entry(action: &'static str, old: Option<&Stored<Node>>, new: &Node) -> Entry {
    Entry { action, object: new.id.to_string(), old: old.and_then(|old| shown(old)), new: shown(new) }
}

/// The row of a certificate that was issued: by the hash it is told from any other, which a serial number alone is not.
fn issued_entry(action: &'static str, old: Option<&Stored<Node>>, new: &Node, issued: &IssuedNode) -> Entry {
    let mut entry = entry(action, old, new);
    if let Some(serde_json::Value::Object(new)) = &mut entry.new {
        let sha256 = warren_proto::peer_map::object_digest(issued.certificate.leaf().der());
        new.insert("certificate_sha256".to_owned(), hex::encode(sha256).into());
    }
    entry
}

fn shown(node: &Node) -> Option<serde_json::Value> {
    serde_json::to_value(node).ok()
}

/// A name from outside as it may be shown: without control characters, and not too long.
fn printable(name: &str) -> String {
    let mut shown: String = name.chars().filter(|c| !c.is_control()).take(MAX_HOST_NAME).collect();
    while shown.len() > MAX_HOST_NAME {
        shown.pop();
    }
    shown
}
