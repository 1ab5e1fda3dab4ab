//! Periodic work: what has ended for good is forgotten.

use std::time::Duration;

use warren_proto::UnixTime;
use warren_proto::reason::Refusal;

use super::instances::release;
use super::{Caller, Entry, Plan, Registry, Transaction};
use crate::state::records::Instance;
use crate::state::{Key, State};
use crate::store::Revision;

/// How long an ended token or instance stays listed, so that its late user is told "expired" and not "unknown".
const LISTED_AFTER_END: Duration = Duration::from_secs(24 * 3600);

/// Most writes that one forgotten object needs.
const WRITES_PER_OBJECT: usize = 4;

impl Registry {
    /// Forgets tokens, instances, quarantined addresses, keys and revocations that have ended, as much as one commit
    /// takes. True when there is more.
    pub async fn sweep(&self) -> Result<bool, Refusal> {
        self.change(&Caller::coordinator(), |state, now| {
            let mut transaction = Transaction::default();
            let more = forget(&mut transaction, state, now)?;
            if transaction.is_empty() {
                return Ok(Plan::Answer(false));
            }
            let new = Some(serde_json::json!({ "forgotten": transaction.writes.len() }));
            let entry = Entry { action: "sweep", object: "ended records".to_owned(), old: None, new };
            Ok(Plan::Commit { transaction, entry, answer: more })
        })
        .await
    }

    /// Lets the store forget its feed, and the ids of commits, but for the last `keep` revisions: both would grow with
    /// every renewal of every node, on disk and in memory.
    pub async fn trim_feed(&self, keep: u64) -> Result<(), Refusal> {
        let health = self.store.health();
        let upto = health.revision.0.saturating_sub(keep);
        if upto <= health.compacted.0 {
            return Ok(());
        }
        self.store.compact(Revision(upto)).await.map_err(|error| {
            if error.is_fatal() {
                self.fail(error.to_string());
            }
            error.into()
        })
    }
}

fn forget(transaction: &mut Transaction, state: &State, now: UnixTime) -> Result<bool, Refusal> {
    let longer_ago = now.minus(LISTED_AFTER_END);
    // A device stays until it is removed: a coordinator that was down for days must find it to renew its certificate.
    let ended = |instance: &Instance| instance.valid_until() <= longer_ago && instance.standing_device().is_none();
    for (_, instance) in state.instances.iter().filter(|(_, instance)| ended(instance)) {
        if !transaction.has_room(WRITES_PER_OBJECT) {
            return Ok(true);
        }
        release(transaction, state, instance, now)?;
    }
    let tokens = state.tokens.iter().filter(|(_, token)| token.expires_at <= longer_ago);
    let tokens = tokens.map(|(id, token)| (Key::Token(*id), token.modified));
    let evidence = state.evidence.iter().filter(|(_, used)| used.until <= now && state.nodes.get(&used.node).is_none());
    let evidence = evidence.map(|(digest, used)| (Key::Evidence(*digest), used.modified));
    let admin_tokens = state.admin_tokens.iter().filter(|(_, token)| token.expires_at <= longer_ago);
    let admin_tokens = admin_tokens.map(|(id, token)| (Key::AdminToken(id.clone()), token.modified));
    let addresses =
        state.addresses.iter().filter(|(_, lease)| lease.quarantined_until.is_some_and(|until| until <= now));
    let addresses = addresses.map(|(address, lease)| (Key::Address(*address), lease.modified));
    let keys = state.keys.iter().filter(|(_, used)| used.until <= longer_ago);
    let keys = keys.map(|(name, used)| (Key::PublicKey(*name), used.modified));
    let revocations = state.revocations.iter().filter(|(_, revocation)| revocation.expires_at <= now);
    let revocations = revocations.map(|(id, revocation)| (Key::Revocation(id.clone()), revocation.modified));
    for (key, modified) in tokens.chain(evidence).chain(admin_tokens).chain(addresses).chain(keys).chain(revocations) {
        if !transaction.has_room(WRITES_PER_OBJECT) {
            return Ok(true);
        }
        transaction.delete(&key, modified);
    }
    Ok(false)
}
