//! What a command wants written, compared record by record.

use serde_json::Value;
use warren_proto::UnixTime;
use warren_proto::reason::Refusal;

use super::Caller;
use crate::audit::Draft;
use crate::state::records::Record;
use crate::state::{Key, encode};
use crate::store::{Compare, MAX_COMMIT_BYTES, MAX_OPERATIONS, Revision, Write};

/// Writes, and the revisions of every record that was read to plan them.
#[derive(Debug, Default)]
pub(crate) struct Transaction {
    pub(super) compares: Vec<Compare>,
    pub(super) writes: Vec<Write>,
}

impl Transaction {
    /// Writes a record that must not exist yet.
    pub(crate) fn create<T: Record>(&mut self, key: &Key, record: &T) -> Result<(), Refusal> {
        self.compares.push(Compare::absent(key.to_bytes()));
        self.writes.push(Write::put(key.to_bytes(), encode(record)?));
        Ok(())
    }

    /// Writes a record over the one that was read at `modified`.
    pub(crate) fn replace<T: Record>(&mut self, key: &Key, modified: Revision, record: &T) -> Result<(), Refusal> {
        self.compares.push(Compare::unchanged(key.to_bytes(), modified));
        self.writes.push(Write::put(key.to_bytes(), encode(record)?));
        Ok(())
    }

    /// Removes the record that was read at `modified`.
    pub(crate) fn delete(&mut self, key: &Key, modified: Revision) {
        self.compares.push(Compare::unchanged(key.to_bytes(), modified));
        self.writes.push(Write::delete(key.to_bytes()));
    }

    /// The plan depends on a record that it does not write.
    pub(crate) fn depends_on(&mut self, key: &Key, modified: Revision) {
        self.compares.push(Compare::unchanged(key.to_bytes(), modified));
    }

    /// Whether `more` further writes still fit, the audit row counted.
    pub(crate) fn has_room(&self, more: usize) -> bool {
        self.writes.len() + more < MAX_OPERATIONS && self.compares.len() + more < MAX_OPERATIONS
    }

    /// Whether nothing is to be written.
    pub(crate) fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }
}

/// The audit row of a change, as far as the command knows it.
#[derive(Debug)]
pub(crate) struct Entry {
    /// A verb and a noun, `token.create` for example.
    pub(crate) action: &'static str,
    /// What it is about, as a person would name it.
    pub(crate) object: String,
    /// The record before, without secrets.
    pub(crate) old: Option<Value>,
    /// The record after, without secrets.
    pub(crate) new: Option<Value>,
}

impl Entry {
    pub(super) fn draft(self, caller: &Caller, time: UnixTime) -> Draft {
        Draft {
            time,
            who: caller.who.clone(),
            action: self.action.to_owned(),
            object: self.object,
            old: self.old,
            new: self.new,
            why: caller.why.clone(),
        }
    }
}

/// What a command decided.
#[derive(Debug)]
pub(crate) enum Plan<T> {
    /// Nothing is to be changed: the answer is known.
    Answer(T),
    /// This is to be committed; then the answer holds.
    Commit {
        /// What is written.
        transaction: Transaction,
        /// Its audit row.
        entry: Entry,
        /// The answer.
        answer: T,
    },
}

/// As many of `writes` as one commit takes.
pub(super) fn take_batch(writes: &mut Vec<Write>) -> Vec<Write> {
    let mut bytes = 0;
    let mut count = 0;
    for write in writes.iter().take(MAX_OPERATIONS) {
        bytes += write.key().len() + if let Write::Put { value, .. } = write { value.len() } else { 0 };
        if bytes > MAX_COMMIT_BYTES && count > 0 {
            break;
        }
        count += 1;
    }
    writes.drain(..count).collect()
}
