//! The audit log: what was changed or issued, by whom and why, as a chain in which no entry can be altered, removed
//! or slipped in afterwards without the break showing.
//!
//! An entry is written in the same commit as the change it tells of, so neither exists without the other. It carries
//! the SHA-256 of the stored bytes of the entry before it. That the newest entries were not cut off is the store's to
//! show (its mark and digest), or an auditor's who noted an earlier [`Verified::head`].

mod tree;

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use warren_proto::{Reason, UnixTime, reason::Refusal};

use crate::store::{Compare, Read, Store, StoreError, Write};

pub use tree::{Proven, Tree, row};

/// Where entries lie: the prefix, then the number as eight bytes, big-endian.
pub const PREFIX: &[u8] = b"audit/";

/// The most entries of one [`page`].
pub const MAX_PAGE: usize = 500;

/// Values larger than this, as JSON, are kept as their digest: the object's own history has the rest.
const MAX_OBJECT: usize = 3 * 1024;

/// How long a verification of the same log is good for.
const VERIFIED_FOR: Duration = Duration::from_secs(60);

/// The longest `who`, `object` and `why`, in bytes; longer ones are cut. Escaped in JSON they may grow sixfold, and an
/// entry must fit the store.
const MAX_TEXT: usize = 300;

/// What has just been done, before it has a place in the chain.
#[derive(Debug, Clone, PartialEq)]
pub struct Draft {
    /// When.
    pub time: UnixTime,
    /// Who asked: an administrator's token, a node, or the coordinator itself. Never a secret.
    pub who: String,
    /// What was done, as `<kind>.<verb>`, for example `token.create`.
    pub action: String,
    /// To what: its name or id.
    pub object: String,
    /// How it was; none when it is new.
    pub old: Option<Value>,
    /// How it is now; none when it is gone.
    pub new: Option<Value>,
    /// The asker's reason; may be empty.
    pub why: String,
}

/// One link of the chain, as stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Counted from 1 without gaps.
    pub seq: u64,
    /// When.
    pub time: UnixTime,
    /// Who asked.
    pub who: String,
    /// What was done.
    pub action: String,
    /// To what.
    pub object: String,
    /// How it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old: Option<Value>,
    /// How it is now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new: Option<Value>,
    /// The asker's reason.
    pub why: String,
    /// SHA-256 of the stored bytes of the entry before, in hexadecimal; zeros for the first.
    pub previous: Hash,
}

/// SHA-256 of an entry's stored bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Hash([u8; 32]);

impl Hash {
    fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl std::fmt::Display for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl std::fmt::Debug for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Hash({self})")
    }
}

impl Serialize for Hash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut bytes = [0; 32];
        hex::decode_to_slice(&text, &mut bytes).map_err(serde::de::Error::custom)?;
        Ok(Self(bytes))
    }
}

/// The end of the chain, where the next entry goes. One task owns it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Chain {
    last: u64,
    head: Hash,
}

/// Entries with their place: put `compares` and `writes` into the change's commit, and when that is committed go on
/// with `tail`. A conflict on a compare of these means that another has appended: load the chain again.
#[derive(Debug, Clone, PartialEq)]
pub struct Appended {
    /// The places are still free.
    pub compares: Vec<Compare>,
    /// The entries.
    pub writes: Vec<Write>,
    /// The chain with them.
    pub tail: Chain,
}

impl Chain {
    /// Finds the end of the chain.
    ///
    /// # Errors
    /// When the store cannot be read or the last entry does not parse.
    pub async fn load(store: &dyn Store) -> Result<Self, Refusal> {
        let snapshot = store.snapshot(Read::newest(PREFIX, 1)).await?;
        match snapshot.entries.first() {
            None => Ok(Self::default()),
            Some(stored) => {
                let entry = parse(&stored.value)?;
                Ok(Self { last: entry.seq, head: Hash::of(&stored.value) })
            }
        }
    }

    /// Gives drafts their places.
    #[must_use]
    pub fn append(&self, drafts: impl IntoIterator<Item = Draft>) -> Appended {
        let mut appended = Appended { compares: Vec::new(), writes: Vec::new(), tail: *self };
        for draft in drafts {
            let tail = &mut appended.tail;
            let entry = Entry {
                seq: tail.last + 1,
                time: draft.time,
                who: cut(draft.who),
                action: cut(draft.action),
                object: cut(draft.object),
                old: draft.old.map(bounded),
                new: draft.new.map(bounded),
                why: cut(draft.why),
                previous: tail.head,
            };
            // An entry is made of strings, numbers and JSON values, all of which serialize.
            let bytes = serde_json::to_vec(&entry).unwrap_or_default();
            *tail = Self { last: entry.seq, head: Hash::of(&bytes) };
            let key = key(entry.seq);
            appended.compares.push(Compare::absent(key.clone()));
            appended.writes.push(Write::Put { key, value: bytes });
        }
        appended
    }
}

/// Part of the log, newest first.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    /// The entries.
    pub entries: Vec<Entry>,
    /// Where the next page begins; none at the end.
    pub next: Option<Cursor>,
}

/// A place in the log: the number of the last entry seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor(pub u64);

/// Reads at most `limit` (and at most [`MAX_PAGE`]) entries older than the cursor.
///
/// # Errors
/// When the store cannot be read or an entry does not parse.
pub async fn page(store: &dyn Store, before: Option<Cursor>, limit: usize) -> Result<Page, Refusal> {
    let mut read = Read::newest(PREFIX, limit.clamp(1, MAX_PAGE));
    read.after = before.map(|cursor| key(cursor.0));
    let snapshot = store.snapshot(read).await?;
    let entries = snapshot.entries.iter().map(|stored| parse(&stored.value)).collect::<Result<Vec<_>, _>>()?;
    let next = entries.last().filter(|_| snapshot.more).map(|entry| Cursor(entry.seq));
    Ok(Page { entries, next })
}

/// Reads at most [`MAX_PAGE`] rows behind the cursor as they are stored, oldest first, and says whether there are more.
///
/// # Errors
/// When the store cannot be read or a row is not text.
pub async fn rows(store: &dyn Store, after: Cursor) -> Result<(Vec<String>, Option<Cursor>), Refusal> {
    let after = (after.0 > 0).then(|| key(after.0));
    let read = Read { prefix: PREFIX.to_vec(), after, limit: MAX_PAGE, descending: false };
    let snapshot = store.snapshot(read).await?;
    let last = match snapshot.entries.last().filter(|_| snapshot.more) {
        Some(last) => Some(Cursor(parse(&last.value)?.seq)),
        None => None,
    };
    let text = |bytes: Vec<u8>| {
        String::from_utf8(bytes).map_err(|_| Refusal::new(Reason::StateCorrupt, "an audit entry is not text"))
    };
    let rows = snapshot.entries.into_iter().map(|stored| text(stored.value)).collect::<Result<_, _>>()?;
    Ok((rows, last))
}

/// An unbroken chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// How many entries.
    pub entries: u64,
    /// The number of the oldest; above 1 when older ones were retired.
    pub first: u64,
    /// The number of the newest.
    pub last: u64,
    /// Of the newest: note it down, and a later verification that passes through it shows that nothing before was changed.
    pub head: Hash,
}

/// Where a chain does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// A number is missing or out of place.
    #[error("entry {expected} is missing: entry {found} stands in its place")]
    Gap {
        /// The number that was due.
        expected: u64,
        /// The number that came.
        found: u64,
    },
    /// An entry does not name the one before it.
    #[error("entry {0} does not carry the hash of the entry before it: that entry, or this one, was changed")]
    Link(u64),
    /// An entry is not what this build writes.
    #[error("entry {0} does not parse")]
    Entry(u64),
    /// The log could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Verifies for whoever asks: one at a time, and no more often than a log that does not grow is worth.
#[derive(Debug, Default)]
pub struct Verifier(tokio::sync::Mutex<Option<(Instant, Verified)>>);

impl Verifier {
    /// As [`verify`]; while the log has the same head, a good outcome at most a minute old at `now` is given again. A break is
    /// looked for anew each time.
    ///
    /// # Errors
    /// The first break.
    pub async fn verify(&self, store: &dyn Store, now: Instant) -> Result<Verified, Broken> {
        let mut last = self.0.lock().await;
        if let Some((at, verified)) = &*last
            && now.saturating_duration_since(*at) < VERIFIED_FOR
            && let Ok(end) = Chain::load(store).await
            && (end.last, end.head) == (verified.last, verified.head)
        {
            return Ok(*verified);
        }
        *last = None;
        let verified = verify(store).await?;
        *last = Some((now, verified));
        Ok(verified)
    }
}

/// Reads the whole log, oldest first, and checks every link.
///
/// # Errors
/// The first break.
pub async fn verify(store: &dyn Store) -> Result<Verified, Broken> {
    let mut verified = Verified { entries: 0, first: 0, last: 0, head: Hash::default() };
    let mut read = Read { prefix: PREFIX.to_vec(), after: None, limit: MAX_PAGE, descending: false };
    loop {
        let snapshot = store.snapshot(read.clone()).await?;
        for stored in &snapshot.entries {
            check_link(&mut verified, &stored.key, &stored.value)?;
        }
        match snapshot.entries.last() {
            Some(last) if snapshot.more => read.after = Some(last.key.clone()),
            _ => return Ok(verified),
        }
    }
}

fn check_link(verified: &mut Verified, key_bytes: &[u8], value: &[u8]) -> Result<(), Broken> {
    let expected = verified.last + 1;
    let entry: Entry = serde_json::from_slice(value).map_err(|_| Broken::Entry(expected))?;
    let oldest = verified.entries == 0;
    if (entry.seq != expected && !oldest) || key_bytes != key(entry.seq) {
        return Err(Broken::Gap { expected, found: entry.seq });
    }
    // The oldest entry of a log whose beginning was retired has nothing to be compared with.
    if (!oldest || entry.seq == 1) && entry.previous != verified.head {
        return Err(Broken::Link(entry.seq));
    }
    if oldest {
        verified.first = entry.seq;
    }
    verified.entries += 1;
    verified.last = entry.seq;
    verified.head = Hash::of(value);
    Ok(())
}

fn key(seq: u64) -> Vec<u8> {
    [PREFIX, &seq.to_be_bytes()].concat()
}

fn parse(bytes: &[u8]) -> Result<Entry, Refusal> {
    serde_json::from_slice(bytes).map_err(|error| {
        Refusal::new(Reason::StateCorrupt, format!("an audit entry does not parse: {error}"))
            .hint("run `warren audit verify`")
    })
}

/// Cuts at a character boundary.
fn cut(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        let boundary = (0..=MAX_TEXT).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(boundary.unwrap_or(0));
    }
    text
}

fn bounded(value: Value) -> Value {
    let text = value.to_string();
    if text.len() <= MAX_OBJECT {
        return value;
    }
    serde_json::json!({ "sha256": Hash::of(text.as_bytes()).to_string(), "bytes": text.len() })
}

#[cfg(test)]
mod tests;
