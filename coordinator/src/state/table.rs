//! A map whose clones share what did not change.
//!
//! Readers hold whole pictures of the state while the next one is made. Splitting the map into shards, each
//! shared until it is written, makes the next picture cost one shard per change instead of the whole map.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash};
use std::sync::Arc;

/// With 100,000 entries a change copies about 200 pointers.
const SHARDS: usize = 512;

type Shard<K, V> = Arc<BTreeMap<K, Arc<V>>>;

/// A map from `K` to shared `V`.
#[derive(Debug)]
pub struct Table<K, V> {
    shards: Arc<Vec<Shard<K, V>>>,
    length: usize,
}

impl<K, V> Clone for Table<K, V> {
    fn clone(&self) -> Self {
        Self { shards: Arc::clone(&self.shards), length: self.length }
    }
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { shards: Arc::new(Vec::new()), length: 0 }
    }
}

impl<K: Hash + Ord + Clone, V> Table<K, V> {
    /// The value under `key`.
    #[must_use]
    pub fn get(&self, key: &K) -> Option<&Arc<V>> {
        self.shards.get(shard_of(key))?.get(key)
    }

    /// Entries in all.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Every entry, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &Arc<V>)> {
        self.shards.iter().flat_map(|shard| shard.iter())
    }

    /// Every entry in the order of the keys, for lists that people read.
    #[must_use]
    pub fn sorted(&self) -> Vec<(&K, &Arc<V>)> {
        let mut all: Vec<_> = self.iter().collect();
        all.sort_unstable_by(|left, right| left.0.cmp(right.0));
        all
    }

    pub(super) fn insert(&mut self, key: K, value: V) {
        let at = shard_of(&key);
        if self.shard_mut(at).is_some_and(|shard| shard.insert(key, Arc::new(value)).is_none()) {
            self.length += 1;
        }
    }

    pub(super) fn remove(&mut self, key: &K) {
        let at = shard_of(key);
        if self.get(key).is_some() && self.shard_mut(at).is_some_and(|shard| shard.remove(key).is_some()) {
            self.length -= 1;
        }
    }

    fn shard_mut(&mut self, at: usize) -> Option<&mut BTreeMap<K, Arc<V>>> {
        let shards = Arc::make_mut(&mut self.shards);
        if shards.is_empty() {
            let empty = Arc::new(BTreeMap::new());
            shards.resize_with(SHARDS, || Arc::clone(&empty));
        }
        shards.get_mut(at).map(Arc::make_mut)
    }
}

fn shard_of<K: Hash>(key: &K) -> usize {
    // Keys are random or the administrator's, never an attacker's choice, and the shard is not stored.
    let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(key);
    (hash % SHARDS as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_keeps_what_it_showed() {
        let mut table = Table::default();
        for key in 0..2000_u32 {
            table.insert(key, key);
        }
        let before = table.clone();
        table.insert(7, 70);
        table.remove(&8);
        table.remove(&9999);
        assert_eq!((before.len(), before.get(&7).map(|v| **v), before.get(&8).map(|v| **v)), (2000, Some(7), Some(8)));
        assert_eq!((table.len(), table.get(&7).map(|v| **v), table.get(&8)), (1999, Some(70), None));
        let keys: Vec<_> = table.sorted().into_iter().map(|(key, _)| *key).collect();
        assert!(keys.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
