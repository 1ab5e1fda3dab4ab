//! The Merkle tree over the log's rows, as stored: what a head is signed of and proofs are made from.
//!
//! Rows never change, so the tree is no record of its own: whoever first asks has it made from the log, and from then on only
//! the rows behind the last one are read. Kept are the roots of its complete subtrees of 256 rows and more, 32 bytes for each
//! 256 rows; what lies below is made from the rows again, at most three blocks of them for a proof.

use std::collections::HashMap;

use tokio::sync::{Mutex, Semaphore};
use warren_proto::merkle::{self, Complete, Frontier, Hash, Subtrees, leaf_hash};
use warren_proto::reason::{Reason, Refusal};
use warren_proto::tree_head::Issuance;

use super::{Cursor, MAX_PAGE, PREFIX, key, page};
use crate::store::{Read, Store};

/// The subtrees that are kept have 2^8 rows and more.
const BLOCK: u32 = 8;

/// The tree, brought up to the log's end by whoever asks, one at a time.
#[derive(Debug)]
pub struct Tree {
    grown: Mutex<Grown>,
    /// A search reads the log from its end: one at a time.
    search: Semaphore,
}

impl Default for Tree {
    fn default() -> Self {
        Self { grown: Mutex::default(), search: Semaphore::new(1) }
    }
}

#[derive(Debug, Default)]
struct Grown {
    frontier: Frontier,
    /// Complete subtrees from level [`BLOCK`] up, by level, from left to right.
    levels: Vec<Vec<Hash>>,
}

/// What was asked of the tree, all of it as it was at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proven {
    /// How many rows there were.
    pub size: u64,
    /// The root over them.
    pub root: Hash,
    /// That the row is among them.
    pub inclusion: Option<Vec<Hash>>,
    /// That the earlier log is their beginning.
    pub consistency: Option<Vec<Hash>>,
}

impl Tree {
    /// The tree's root now, the proof that row `seq` (counted from 1) is in it, and the proof that the log of the first `since`
    /// rows is its beginning.
    ///
    /// # Errors
    /// [`Reason::NotFound`] for a row that there is not, [`Reason::Conflict`] for an earlier log that was longer than this one,
    /// [`Reason::StateCorrupt`] for a log with a gap.
    pub async fn prove(&self, store: &dyn Store, seq: Option<u64>, since: Option<u64>) -> Result<Proven, Refusal> {
        let mut grown = self.grown.lock().await;
        grown.catch_up(store).await?;
        let size = grown.frontier.size();
        let index = match seq {
            Some(seq) if seq == 0 || seq > size => {
                return Err(Refusal::new(Reason::NotFound, format!("there is no row {seq}; the log has {size}")));
            }
            seq => seq.map(|seq| seq - 1),
        };
        if let Some(since) = since.filter(|since| *since > size) {
            let detail = format!("since: the log has {size} rows, and had {since} when that head was signed");
            return Err(Refusal::new(Reason::Conflict, detail)
                .hint("rows are gone: was an old backup put back? keep that head, it proves it"));
        }
        // Every subtree that a proof names and that is not kept lies beside the row, or at one of the two ends.
        let mut below = HashMap::new();
        for row in [index, since, Some(size)].into_iter().flatten() {
            below.extend(block(store, row >> BLOCK, size).await?);
        }
        let subtrees = AtHand { levels: &grown.levels, below };
        let missing = || Refusal::new(Reason::Internal, "a subtree of the audit log is not at hand");
        let inclusion = index.map(|index| merkle::inclusion(&subtrees, index, size).ok_or_else(missing)).transpose()?;
        let since = since.map(|since| merkle::consistency(&subtrees, since, size).ok_or_else(missing)).transpose()?;
        Ok(Proven { size, root: grown.frontier.root(), inclusion, consistency: since })
    }

    /// The newest row that issued a certificate with this serial number, hexadecimal. It is looked for from the newest back, by one
    /// caller at a time.
    ///
    /// # Errors
    /// [`Reason::NotFound`] when there is none, [`Reason::RateLimited`] while another search is under way.
    pub async fn find_issuance(&self, store: &dyn Store, serial: &str) -> Result<u64, Refusal> {
        let _place = self.search.try_acquire().map_err(|_| {
            Refusal::new(Reason::RateLimited, "the log is being searched for another serial number")
                .hint("try again in a few seconds; with the row's number (`--row`) nothing is searched")
        })?;
        let mut before: Option<Cursor> = None;
        loop {
            let part = page(store, before, MAX_PAGE).await?;
            let issued = |entry: &&super::Entry| {
                let issued = entry.new.as_ref().and_then(|new| Issuance::of(&entry.action, new));
                issued.is_some_and(|issued| issued.serial.eq_ignore_ascii_case(serial))
            };
            if let Some(entry) = part.entries.iter().find(issued) {
                return Ok(entry.seq);
            }
            before = Some(part.next.ok_or_else(|| {
                Refusal::new(Reason::NotFound, format!("no row issued a certificate with serial number {serial}"))
                    .hint("it was not issued here: whoever shows it has another issuer, or its key")
            })?);
        }
    }
}

impl Grown {
    /// Takes the rows that were appended since the last time.
    async fn catch_up(&mut self, store: &dyn Store) -> Result<(), Refusal> {
        loop {
            let (rows, more) = read(store, self.frontier.size(), MAX_PAGE).await?;
            for row in &rows {
                for (subtree, root) in self.frontier.append(leaf_hash(row)) {
                    let Some(level) = subtree.level.checked_sub(BLOCK) else { continue };
                    let level = level as usize;
                    if self.levels.len() <= level {
                        self.levels.push(Vec::new());
                    }
                    self.levels[level].push(root);
                }
            }
            if !more {
                return Ok(());
            }
        }
    }
}

struct AtHand<'a> {
    levels: &'a [Vec<Hash>],
    below: HashMap<Complete, Hash>,
}

impl Subtrees for AtHand<'_> {
    fn root(&self, of: Complete) -> Option<Hash> {
        match of.level.checked_sub(BLOCK) {
            Some(level) => self.levels.get(level as usize)?.get(usize::try_from(of.index).ok()?).copied(),
            None => self.below.get(&of).copied(),
        }
    }
}

/// The complete subtrees within one block of rows, of those before `size`.
async fn block(store: &dyn Store, number: u64, size: u64) -> Result<Vec<(Complete, Hash)>, Refusal> {
    let first = number << BLOCK;
    let count = size.saturating_sub(first).min(1 << BLOCK);
    if count == 0 {
        return Ok(Vec::new());
    }
    let (rows, _) = read(store, first, count as usize).await?;
    let mut frontier = Frontier::default();
    let within = rows.iter().flat_map(|row| frontier.append(leaf_hash(row)).collect::<Vec<_>>());
    // A block begins at a multiple of its size, so its subtrees are the whole tree's.
    Ok(within
        .map(|(Complete { level, index }, root)| (Complete { level, index: index + (first >> level) }, root))
        .collect())
}

/// At most `limit` rows behind the first `after`, and whether there are more.
async fn read(store: &dyn Store, after: u64, limit: usize) -> Result<(Vec<Vec<u8>>, bool), Refusal> {
    let read = Read { prefix: PREFIX.to_vec(), after: (after > 0).then(|| key(after)), limit, descending: false };
    let snapshot = store.snapshot(read).await?;
    for (row, expected) in snapshot.entries.iter().zip(after + 1..) {
        if row.key != key(expected) {
            let detail = format!("row {expected} of the audit log is missing");
            return Err(Refusal::new(Reason::StateCorrupt, detail).hint("run `warren audit verify`"));
        }
    }
    Ok((snapshot.entries.into_iter().map(|row| row.value).collect(), snapshot.more))
}

/// The row with this number, as it is stored.
///
/// # Errors
/// [`Reason::NotFound`] when there is none.
pub async fn row(store: &dyn Store, seq: u64) -> Result<String, Refusal> {
    let none = || Refusal::new(Reason::NotFound, format!("there is no row {seq}")).hint("warren audit list");
    let (rows, _) = read(store, seq.checked_sub(1).ok_or_else(none)?, 1).await?;
    let bytes = rows.into_iter().next().ok_or_else(none)?;
    String::from_utf8(bytes).map_err(|_| Refusal::new(Reason::StateCorrupt, "an audit entry is not text"))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{append, draft, store};
    use super::super::{Chain, rows};
    use super::*;
    use warren_proto::merkle::{verify_consistency, verify_inclusion};

    /// The root that somebody else would make of the first `size` rows.
    fn root_of(rows: &[String], size: usize) -> Hash {
        let mut frontier = Frontier::default();
        for row in &rows[..size] {
            let _ = frontier.append(leaf_hash(row.as_bytes()));
        }
        frontier.root()
    }

    #[tokio::test]
    async fn every_row_and_every_earlier_log_is_proven_while_the_log_grows_over_blocks() {
        let directory = tempfile::tempdir().unwrap();
        let (store, tree, mut chain) = (store(directory.path()), Tree::default(), Chain::default());
        let empty = tree.prove(&store, None, None).await.unwrap();
        assert_eq!((empty.size, empty.root), (0, Frontier::default().root()));
        let mut heads = vec![(0, empty.root)];
        for size in [1_u64, 2, 255, 256, 257, 511, 512, 513, 700] {
            let more = size - heads.last().unwrap().0;
            for part in (0..more).collect::<Vec<_>>().chunks(50) {
                append(&store, &mut chain, part.iter().map(|at| draft(&format!("{size}.{at}"))).collect()).await;
            }
            let mut stored = Vec::new();
            let mut after = Cursor(0);
            loop {
                let (part, next) = rows(&store, after).await.unwrap();
                stored.extend(part);
                let Some(next) = next else { break };
                after = next;
            }
            let root = root_of(&stored, size as usize);
            for seq in [1, 2, size / 2, size - 1, size].into_iter().filter(|seq| (1..=size).contains(seq)) {
                let proven = tree.prove(&store, Some(seq), None).await.unwrap();
                assert_eq!((proven.size, proven.root), (size, root));
                let leaf = leaf_hash(row(&store, seq).await.unwrap().as_bytes());
                assert!(verify_inclusion(&leaf, seq - 1, size, &proven.inclusion.unwrap(), &root), "{seq} of {size}");
            }
            for (earlier, before) in &heads {
                let proven = tree.prove(&store, None, Some(*earlier)).await.unwrap();
                let path = proven.consistency.unwrap();
                assert!(verify_consistency(*earlier, before, size, &root, &path), "{earlier} in {size}");
            }
            heads.push((size, root));
        }
        let fresh = Tree::default().prove(&store, Some(700), Some(257)).await.unwrap();
        assert_eq!(fresh, tree.prove(&store, Some(700), Some(257)).await.unwrap(), "made anew after a restart");
        assert_eq!(tree.prove(&store, Some(701), None).await.unwrap_err().reason, Reason::NotFound);
        assert_eq!(tree.prove(&store, Some(0), None).await.unwrap_err().reason, Reason::NotFound);
        assert_eq!(tree.prove(&store, None, Some(701)).await.unwrap_err().reason, Reason::Conflict);
    }

    #[tokio::test]
    async fn one_search_at_a_time_and_whoever_comes_meanwhile_is_told_to_wait() {
        let directory = tempfile::tempdir().unwrap();
        let (store, tree) = (store(directory.path()), Tree::default());
        let under_way = tree.search.try_acquire().unwrap();
        assert_eq!(tree.find_issuance(&store, "4a").await.unwrap_err().reason, Reason::RateLimited);
        drop(under_way);
        for _ in 0..2 {
            assert_eq!(tree.find_issuance(&store, "4a").await.unwrap_err().reason, Reason::NotFound);
        }
    }

    #[tokio::test]
    async fn a_log_with_a_gap_is_proven_nothing_of() {
        let directory = tempfile::tempdir().unwrap();
        let (store, mut chain) = (store(directory.path()), Chain::default());
        append(&store, &mut chain, (0..9).map(|at| draft(&at.to_string())).collect()).await;
        let removed = crate::store::Write::delete(key(4));
        store.commit(crate::store::Commit::new(Vec::new(), vec![removed])).await.unwrap();
        let refusal = Tree::default().prove(&store, None, None).await.unwrap_err();
        assert!(refusal.reason == Reason::StateCorrupt && refusal.detail.contains("row 4"), "{refusal}");
    }
}
