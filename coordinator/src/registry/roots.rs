//! The steps by which the root and the intermediate are replaced: each one commit with its audit row. What is needed on
//! disk is there before the commit names it; what the commit asks for is done by whoever follows the store.

use std::sync::Arc;

use serde_json::json;
use warren_proto::UnixTime;
use warren_proto::admin::{NotReadyNode, RotationStep as Step};
use warren_proto::reason::{Reason, Refusal};

use super::{Caller, Entry, Plan, Registry, Transaction, ca_failed};
use crate::ca::rotation::{Event, TrustRoots};
use crate::state::{Key, State};

/// Nodes that a refusal names; the status shows all.
const NAMED: usize = 10;

/// A step and its terms.
pub(crate) struct Rotate<'a> {
    /// Which.
    pub(crate) step: Step,
    /// Also where nodes are missing.
    pub(crate) force: bool,
    /// Nodes that are not ready for the step that the stage leads to.
    pub(crate) missing: &'a (dyn Fn(&State, &TrustRoots, UnixTime) -> Vec<NotReadyNode> + Sync),
}

impl Registry {
    /// Takes a step, and answers with the roots as they are then.
    pub(crate) async fn rotate(self: &Arc<Self>, caller: &Caller, rotate: Rotate<'_>) -> Result<TrustRoots, Refusal> {
        let root = self.prepare(rotate.step, caller.dry_run).await?;
        self.change(caller, |state, now| {
            let authority = self.authority();
            let old = authority.trust();
            let event = match rotate.step {
                Step::Introduce => Event::Introduce(root.clone()),
                Step::Activate => Event::Activate(issuers(state, authority.issuer_certificate().key_id(), now)),
                Step::Retire => Event::Retire,
                Step::Abandon => Event::Abandon,
                Step::Intermediate => Event::Intermediate,
            };
            let new = old.after(event, now)?;
            let gated = matches!(rotate.step, Step::Activate | Step::Retire);
            let missing = if gated { (rotate.missing)(state, old, now) } else { Vec::new() };
            if !missing.is_empty() && !rotate.force {
                return Err(not_ready(rotate.step, &missing));
            }
            let mut transaction = Transaction::default();
            match &state.trust {
                Some(known) => transaction.replace(&Key::Trust, known.modified, &new)?,
                None => transaction.create(&Key::Trust, &new)?,
            }
            let mut after = shown(&new);
            after["forcedWithout"] = missing.iter().map(|node| node.id.to_string()).collect::<Vec<_>>().into();
            let entry = Entry {
                action: action(rotate.step),
                object: hex::encode(concerned(rotate.step, old, &new)),
                old: Some(shown(old)),
                new: Some(after),
            };
            Ok(Plan::Commit { transaction, entry, answer: new })
        })
        .await
    }

    /// What must be true or on disk before the step is committed: the new root's DER, or nothing.
    async fn prepare(self: &Arc<Self>, step: Step, dry_run: bool) -> Result<Vec<u8>, Refusal> {
        let (authority, now) = (self.authority(), self.now());
        match step {
            Step::Introduce => {
                // Refused before a key is made.
                authority.trust().after(Event::Introduce(Vec::new()), now)?;
                if dry_run {
                    return Ok(Vec::new());
                }
                tokio::task::spawn_blocking(move || authority.make_root(now))
                    .await
                    .map_err(|_| Refusal::new(Reason::Internal, "making the root crashed"))?
                    .map_err(ca_failed)
            }
            Step::Activate => {
                // What the second root needs to sign is there before the store says that it does.
                let Ok(trust) = authority.trust().after(Event::Activate(Vec::new()), now) else {
                    return Ok(Vec::new());
                };
                let open = move || match dry_run {
                    true => authority.rehearse(&trust, now),
                    false => authority.under(&trust, now).map(|_| ()),
                };
                let opened = tokio::task::spawn_blocking(open).await;
                opened.map_err(|_| Refusal::new(Reason::Internal, "opening the root crashed"))?.map_err(|error| {
                    Refusal::new(Reason::Conflict, format!("the second root cannot sign: {error}"))
                        .hint("put its key back, or give it up: warren ca rotate abandon")
                })?;
                Ok(Vec::new())
            }
            Step::Intermediate if !authority.holds_root_key() => Err(Refusal::new(
                Reason::Conflict,
                "the root's key is not there, and it must sign the new intermediate",
            )
            .hint("put ca/root/root.key back for as long as this takes")),
            _ => Ok(Vec::new()),
        }
    }
}

/// The issuers of every certificate that holds, and the one that issues now.
fn issuers(state: &State, present: &warren_proto::certificate::KeyId, now: UnixTime) -> Vec<String> {
    let nodes = state.nodes.iter().map(|(_, node)| &node.certificate);
    let nodes = nodes.filter(|held| held.not_after.plus(super::RENEWAL_GRACE) > now).map(|held| &held.issuer_key_id);
    let tunnels = state.instances.iter().flat_map(|(_, instance)| instance.certificates.iter());
    let tunnels = tunnels.filter(|held| held.not_after > now).map(|held| &held.issuer_key_id);
    let mut all: Vec<_> = nodes.chain(tunnels).map(hex::encode).collect();
    all.push(hex::encode(present.as_bytes()));
    all.sort();
    all.dedup();
    all
}

fn not_ready(step: Step, missing: &[NotReadyNode]) -> Refusal {
    let named: Vec<_> = missing
        .iter()
        .take(NAMED)
        .map(|node| format!("{} ({}) waits for {}", node.id, node.host_name, node.waits_for))
        .collect();
    let more = if missing.len() > NAMED { format!(" and {} more", missing.len() - NAMED) } else { String::new() };
    let consequence = match step {
        Step::Activate => {
            "with --force they are served under the root before until it is retired, and trust nobody's new certificate meanwhile"
        }
        _ => "with --force they are cut off and must enrol anew",
    };
    let detail = format!("{} nodes are not ready: {}{more}; {consequence}", missing.len(), named.join(", "));
    Refusal::new(Reason::Conflict, detail).hint("warren ca status shows all; --wait 60s waits for them")
}

fn action(step: Step) -> &'static str {
    match step {
        Step::Introduce => "ca.introduce-root",
        Step::Activate => "ca.activate-root",
        Step::Retire => "ca.retire-root",
        Step::Abandon => "ca.abandon-root",
        Step::Intermediate => "ca.rotate-intermediate",
    }
}

/// The root that the step is about.
fn concerned<'t>(step: Step, old: &'t TrustRoots, new: &'t TrustRoots) -> &'t [u8] {
    let last = |roots: &'t TrustRoots| roots.roots().last().map_or(&[][..], |root| &root.sha256.0);
    match step {
        Step::Introduce => last(new),
        Step::Activate | Step::Intermediate => new.signing(),
        Step::Retire => old.roots().first().map_or(&[][..], |root| &root.sha256.0),
        Step::Abandon => last(old),
    }
}

fn shown(roots: &TrustRoots) -> serde_json::Value {
    json!({
        "sequence": roots.sequence(),
        "stage": roots.stage(),
        "roots": roots.roots().iter().map(|root| root.sha256).collect::<Vec<_>>(),
        "signs": hex::encode(roots.signing()),
    })
}
