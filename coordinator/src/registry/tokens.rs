//! Join tokens: made, and taken back.

use std::time::Duration;

use warren_proto::WorkloadName;
use warren_proto::join_token::{JoinSecret, JoinToken, JoinTokenId};
use warren_proto::reason::{Reason, Refusal};
use zeroize::Zeroizing;

use super::peers::refuse_devices;
use super::{Caller, Entry, Plan, Registry, Transaction};
use crate::state::Key;
use crate::state::records::{Hex32, JoinTokenRecord};
use crate::store::Revision;

/// Longest life of a join token (30 days): it is for machines that are about to start.
const MAX_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);
/// Most uses of one token.
const MAX_USES: u32 = 10_000;
/// Most identities one token allows.
const MAX_WORKLOADS: usize = 64;
/// Longest note, in bytes.
const MAX_NOTE: usize = 512;

/// A join token to be made.
#[derive(Debug, Clone)]
pub struct NewJoinToken {
    /// From now.
    pub lifetime: Duration,
    /// How many machines may join with it.
    pub uses: u32,
    /// The identities that those machines may hold.
    pub workloads: Vec<WorkloadName>,
    /// What it is for.
    pub note: String,
}

impl NewJoinToken {
    fn check(&self) -> Result<(), Refusal> {
        let invalid = |detail: String| Err(Refusal::new(Reason::InvalidField, detail));
        if self.lifetime.is_zero() || self.lifetime > MAX_LIFETIME {
            return invalid(format!("lifetime: {} s, expected 1 s to 30 days", self.lifetime.as_secs()));
        }
        if !(1..=MAX_USES).contains(&self.uses) {
            return invalid(format!("uses: {}, expected 1 to {MAX_USES}", self.uses));
        }
        if !(1..=MAX_WORKLOADS).contains(&self.workloads.len()) {
            return invalid(format!("workloads: {}, expected 1 to {MAX_WORKLOADS}", self.workloads.len()));
        }
        if self.note.len() > MAX_NOTE {
            return invalid(format!("note: {} bytes, at most {MAX_NOTE}", self.note.len()));
        }
        Ok(())
    }
}

impl Registry {
    /// Makes a join token. The string is the only copy of its secret.
    pub async fn create_join_token(
        &self,
        caller: &Caller,
        new: NewJoinToken,
    ) -> Result<(JoinTokenRecord, Zeroizing<String>), Refusal> {
        new.check()?;
        refuse_devices(&new.workloads)?;
        let secret = JoinSecret::from_bytes(rand::random());
        let id = JoinTokenId::from_bytes(rand::random());
        let secret_sha256 = Hex32(secret.hash());
        let token = JoinToken {
            id,
            secret,
            root_sha256: warren_proto::peer_map::object_digest(self.authority().root_der()),
            addresses: self.advertised.clone(),
        };
        let text = token.format()?;
        let mut workloads = new.workloads.clone();
        workloads.sort();
        workloads.dedup();
        let made = self
            .change(caller, |_, now| {
                let record = JoinTokenRecord {
                    id,
                    secret_sha256,
                    created_at: now,
                    expires_at: now.plus(new.lifetime),
                    uses: new.uses,
                    used: 0,
                    workloads: workloads.clone(),
                    created_by: caller.who.clone(),
                    note: new.note.clone(),
                };
                let mut transaction = Transaction::default();
                transaction.create(&Key::Token(id), &record)?;
                let entry = Entry { action: "token.create", object: id.to_string(), old: None, new: shown(&record) };
                Ok(Plan::Commit { transaction, entry, answer: record })
            })
            .await?;
        Ok((made, text))
    }

    /// Takes a join token back: nobody joins with it any more.
    pub async fn delete_join_token(
        &self,
        caller: &Caller,
        id: JoinTokenId,
        if_match: Option<Revision>,
    ) -> Result<(), Refusal> {
        self.change(caller, |state, _| {
            let stored = state.tokens.get(&id).ok_or_else(|| gone(id))?;
            check_match("the token", stored.modified, if_match)?;
            let mut transaction = Transaction::default();
            transaction.delete(&Key::Token(id), stored.modified);
            let entry = Entry { action: "token.delete", object: id.to_string(), old: shown(&stored.value), new: None };
            Ok(Plan::Commit { transaction, entry, answer: () })
        })
        .await
    }
}

/// A token for the audit log: who could read its hash could not use it, and still need not see it.
fn shown(record: &JoinTokenRecord) -> Option<serde_json::Value> {
    Some(serde_json::json!({
        "expires_at": record.expires_at,
        "uses": record.uses,
        "used": record.used,
        "workloads": record.workloads,
        "note": record.note,
    }))
}

fn gone(id: JoinTokenId) -> Refusal {
    Refusal::new(Reason::NotFound, format!("there is no join token {id}")).hint("list them with `warren token list`")
}

/// Refuses a change of something that is no longer as the caller read it.
pub(super) fn check_match(what: &str, modified: Revision, if_match: Option<Revision>) -> Result<(), Refusal> {
    match if_match {
        Some(expected) if expected != modified => {
            let detail = format!("{what} was changed at revision {modified}, after revision {expected} that you read");
            Err(Refusal::new(Reason::Conflict, detail).hint("read it again and repeat the change"))
        }
        _ => Ok(()),
    }
}
