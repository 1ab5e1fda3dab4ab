//! What lies in the engine's three trees, and the check of all of it at start.
//!
//! `kv`: key -> framed value. `log`: revision (u64) and part (u32), big-endian -> framed record; part 0 names the
//! commit, part n its n-th change. `meta`: one record with the epoch, the revision and the digest, written in the
//! transaction of every commit.

use std::collections::HashMap;

use sha2::{Digest as _, Sha256};
use sled::Tree;
use sled::transaction::TransactionalTree;

use crate::store::frame::{self, FrameError};
use crate::store::{Change, Commit, CommitId, Digest, Epoch, Expect, Revision, Write};

pub(super) const META_KEY: &[u8] = b"state";

/// The one record of `meta`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct State {
    pub epoch: Epoch,
    pub revision: Revision,
    pub compacted: Revision,
    pub entries: u64,
    pub digest: Digest,
}

/// Something in the engine is not as it was written.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum Damage {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("{0}")]
    Inconsistent(String),
    #[error("the engine failed: {0}")]
    Engine(#[from] sled::Error),
}

impl Damage {
    pub(super) fn inconsistent(text: impl Into<String>) -> Self {
        Self::Inconsistent(text.into())
    }
}

impl State {
    pub(super) const fn empty(epoch: Epoch) -> Self {
        Self { epoch, revision: Revision(0), compacted: Revision(0), entries: 0, digest: Digest::from_zero() }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut payload = Vec::with_capacity(4 * 8 + Digest::LENGTH);
        for number in [self.epoch.0, self.revision.0, self.compacted.0, self.entries] {
            payload.extend_from_slice(&number.to_be_bytes());
        }
        payload.extend_from_slice(&self.digest.to_bytes());
        frame::encode(META_KEY, self.revision, &payload)
    }

    pub(super) fn decode(framed: &[u8]) -> Result<Self, Damage> {
        let (_, payload) = frame::decode(META_KEY, framed)?;
        let short = || Damage::inconsistent("the record of the store's state has a wrong length");
        let (numbers, digest) = payload.split_at_checked(32).ok_or_else(short)?;
        let (numbers, _) = numbers.as_chunks::<8>();
        let digest: &[u8; Digest::LENGTH] = digest.try_into().map_err(|_| short())?;
        let &[epoch, revision, compacted, entries] = numbers else { return Err(short()) };
        Ok(Self {
            epoch: Epoch(u64::from_be_bytes(epoch)),
            revision: Revision(u64::from_be_bytes(revision)),
            compacted: Revision(u64::from_be_bytes(compacted)),
            entries: u64::from_be_bytes(entries),
            digest: Digest::from_bytes(digest),
        })
    }
}

/// The first record of a commit in `log`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub id: CommitId,
    pub content: [u8; 32],
    pub parts: u32,
}

impl Header {
    fn encode(&self) -> Vec<u8> {
        [self.id.0.as_slice(), &self.content, &self.parts.to_be_bytes()].concat()
    }

    fn decode(payload: &[u8]) -> Result<Self, Damage> {
        let short = || Damage::inconsistent("a commit's record in the log has a wrong length");
        let (id, rest) = payload.split_first_chunk().ok_or_else(short)?;
        let (content, rest) = rest.split_first_chunk().ok_or_else(short)?;
        let parts = rest.try_into().map_err(|_| short())?;
        Ok(Self { id: CommitId(*id), content: *content, parts: u32::from_be_bytes(parts) })
    }
}

pub(super) fn log_key(revision: Revision, part: u32) -> [u8; 12] {
    let mut key = [0; 12];
    let (high, low) = key.split_at_mut(8);
    high.copy_from_slice(&revision.0.to_be_bytes());
    low.copy_from_slice(&part.to_be_bytes());
    key
}

pub(super) fn read_log_key(key: &[u8]) -> Result<(Revision, u32), Damage> {
    let wrong = || Damage::inconsistent("a key in the log has a wrong length");
    let (revision, part) = key.split_first_chunk::<8>().ok_or_else(wrong)?;
    let part: &[u8; 4] = part.try_into().map_err(|_| wrong())?;
    Ok((Revision(u64::from_be_bytes(*revision)), u32::from_be_bytes(*part)))
}

fn encode_change(change: &Change) -> Vec<u8> {
    let length = u16::try_from(change.key.len()).unwrap_or(u16::MAX);
    let kind = u8::from(change.value.is_some());
    let value = change.value.as_deref().unwrap_or_default();
    [&[kind], length.to_be_bytes().as_slice(), &change.key, value].concat()
}

pub(super) fn decode_change(payload: &[u8]) -> Result<Change, Damage> {
    let wrong = || Damage::inconsistent("a change in the log does not parse");
    let (&[kind, l0, l1], rest) = payload.split_first_chunk::<3>().ok_or_else(wrong)?;
    let (key, value) = rest.split_at_checked(usize::from(u16::from_be_bytes([l0, l1]))).ok_or_else(wrong)?;
    let value = match kind {
        0 if value.is_empty() => None,
        1 => Some(value.to_vec()),
        _ => return Err(wrong()),
    };
    Ok(Change { key: key.to_vec(), value })
}

/// What a commit asks for, so that an id used again for something else is noticed.
pub(super) fn content_hash(commit: &Commit) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut field = |tag: u8, bytes: &[u8]| {
        hash.update([tag]);
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    };
    for compare in &commit.compares {
        field(1, &compare.key);
        match compare.expect {
            Expect::Absent => field(2, b""),
            Expect::Revision(revision) => field(3, &revision.0.to_be_bytes()),
        }
    }
    for write in &commit.writes {
        field(4, write.key());
        match write {
            Write::Put { value, .. } => field(5, value),
            Write::Delete { .. } => field(6, b""),
        }
    }
    hash.finalize().into()
}

/// Writes a commit's changes into the feed.
pub(super) fn append_log(
    log: &TransactionalTree,
    revision: Revision,
    header: Header,
    changes: &[Change],
) -> Result<(), sled::transaction::UnabortableTransactionError> {
    let key = log_key(revision, 0);
    log.insert(&key, frame::encode(&key, revision, &header.encode()))?;
    for (part, change) in (1..).zip(changes) {
        let key = log_key(revision, part);
        log.insert(&key, frame::encode(&key, revision, &encode_change(change)))?;
    }
    Ok(())
}

/// The ids of the commits still in the feed, with what they did.
pub(super) type Ids = HashMap<CommitId, (Revision, [u8; 32])>;

/// Reads everything once: every checksum, the digest, the number of entries, and a feed without gaps.
pub(super) fn verify(kv: &Tree, log: &Tree, meta: &Tree) -> Result<(State, Ids), Damage> {
    let state = meta
        .get(META_KEY)?
        .ok_or_else(|| Damage::inconsistent("the record of the store's state is missing"))
        .and_then(|framed| State::decode(&framed))?;

    let (mut digest, mut entries) = (Digest::default(), 0);
    for item in kv {
        let (key, framed) = item?;
        let (modified, _) = frame::decode(&key, &framed)?;
        if modified > state.revision {
            let name = key.escape_ascii();
            return Err(Damage::inconsistent(format!("{name} is of revision {modified}, beyond {}", state.revision)));
        }
        digest.add(&key, &framed);
        entries += 1;
    }
    if (digest, entries) != (state.digest, state.entries) {
        return Err(Damage::inconsistent(format!(
            "{entries} entries with digest {digest} were found, {} with digest {} were stored",
            state.entries, state.digest
        )));
    }

    let mut ids = Ids::new();
    let mut last = state.compacted;
    let mut parts_left = 0;
    for item in log {
        let (key, framed) = item?;
        let (revision, part) = read_log_key(&key)?;
        let (_, payload) = frame::decode(&key, &framed)?;
        let gap = || Damage::inconsistent(format!("the feed has a gap at revision {revision}, part {part}"));
        if part == 0 {
            if parts_left != 0 || revision.0 != last.0.wrapping_add(1) {
                return Err(gap());
            }
            let header = Header::decode(payload)?;
            (last, parts_left) = (revision, header.parts);
            ids.insert(header.id, (revision, header.content));
        } else {
            if revision != last || parts_left == 0 {
                return Err(gap());
            }
            decode_change(payload)?;
            parts_left -= 1;
        }
    }
    if parts_left != 0 || last != state.revision {
        return Err(Damage::inconsistent(format!(
            "the feed ends at revision {last}, the state is at {}",
            state.revision
        )));
    }
    Ok((state, ids))
}

/// The header of a commit in the feed.
pub(super) fn read_header(key: &[u8], framed: &[u8]) -> Result<Header, Damage> {
    Header::decode(frame::decode(key, framed)?.1)
}
