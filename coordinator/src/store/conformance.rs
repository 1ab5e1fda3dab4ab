//! What every store must do, whatever lies underneath. Each implementation's tests run all of it on an empty store.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::{
    Commit, CommitId, Compare, Entry, Health, Lease, LeaseRequest, MAX_COMMIT_BYTES, MAX_KEY, MAX_OPERATIONS,
    MAX_VALUE, Outcome, Read, Revision, Store, StoreError, Write, lease_key,
};

/// How the suite moves the store's clock, in which leases end.
pub(crate) trait Advance: Fn(Duration) + Send + Sync {}
impl<F: Fn(Duration) + Send + Sync> Advance for F {}

/// Runs every claim on one store, which must be empty at the start.
pub(crate) async fn run(store: Arc<dyn Store>, advance: &dyn Advance) {
    a_new_store_is_empty(&*store).await;
    what_was_committed_is_read_back_with_its_revision(&*store).await;
    a_commit_is_done_whole_or_not_at_all(&*store).await;
    a_repeated_id_is_answered_and_not_done_twice(&*store).await;
    pages_join_to_the_whole_in_both_directions(&*store).await;
    a_prefix_ends_where_the_next_begins(&*store).await;
    a_watcher_sees_every_commit_once_and_in_order(&*store).await;
    of_racing_commits_exactly_one_passes(&store).await;
    a_lease_has_one_holder_and_its_token_fences(&*store, advance).await;
    what_is_over_a_limit_is_refused_and_changes_nothing(&*store).await;
    arbitrary_commits_leave_what_a_plain_map_would_hold(&*store).await;
    a_compacted_feed_says_so(&*store).await;
}

async fn commit(store: &dyn Store, compares: Vec<Compare>, writes: Vec<Write>) -> Outcome {
    store.commit(Commit::new(compares, writes)).await.unwrap()
}

async fn put(store: &dyn Store, key: &[u8], value: &[u8]) -> Revision {
    revision(commit(store, Vec::new(), vec![Write::put(key, value)]).await)
}

fn revision(outcome: Outcome) -> Revision {
    match outcome {
        Outcome::Committed { revision, .. } => revision,
        Outcome::Conflict { key, found } => panic!("conflict on {}: {found:?}", key.escape_ascii()),
    }
}

async fn all(store: &dyn Store, prefix: &[u8]) -> Vec<Entry> {
    store.snapshot(Read::all(prefix)).await.unwrap().entries
}

async fn a_new_store_is_empty(store: &dyn Store) {
    assert!(store.epoch().0 > 0);
    let snapshot = store.snapshot(Read::all(b"")).await.unwrap();
    assert!(snapshot.entries.is_empty() && !snapshot.more);
    let health = store.health();
    assert_eq!((health.epoch, health.revision, health.fault), (store.epoch(), snapshot.revision, None));
    assert!(health.writable);
}

async fn what_was_committed_is_read_back_with_its_revision(store: &dyn Store) {
    let first = put(store, b"read/a", b"1").await;
    let second = put(store, b"read/b", b"").await;
    let third = put(store, b"read/a", b"3").await;
    assert!(first < second && second < third);
    let snapshot = store.snapshot(Read::all(b"read/")).await.unwrap();
    assert_eq!(snapshot.revision, third);
    assert_eq!(
        snapshot.entries,
        [
            Entry { key: b"read/a".into(), value: b"3".into(), modified: third },
            Entry { key: b"read/b".into(), value: b"".into(), modified: second },
        ]
    );
    commit(store, Vec::new(), vec![Write::delete(b"read/a"), Write::delete(b"read/absent")]).await;
    assert_eq!(all(store, b"read/a").await, []);
}

async fn a_commit_is_done_whole_or_not_at_all(store: &dyn Store) {
    let seen = put(store, b"atomic/a", b"1").await;
    // The file system's free space is everybody's: not what a refused commit leaves alone.
    let unchanged = || Health { space: None, ..store.health() };
    let before = unchanged();
    let refused = |compare| {
        commit(
            store,
            vec![Compare::unchanged(b"atomic/a", seen), compare],
            vec![Write::put(b"atomic/a", b"2"), Write::put(b"atomic/b", b"2")],
        )
    };
    let wrong = Revision(seen.0 + 1000);
    let (key, found) = (b"atomic/a".to_vec(), Some(seen));
    assert_eq!(refused(Compare::absent(b"atomic/a")).await, Outcome::Conflict { key: key.clone(), found });
    assert_eq!(refused(Compare::unchanged(b"atomic/a", wrong)).await, Outcome::Conflict { key, found });
    let absent = Outcome::Conflict { key: b"atomic/b".into(), found: None };
    assert_eq!(refused(Compare::unchanged(b"atomic/b", seen)).await, absent);
    assert_eq!(unchanged(), before);
    revision(refused(Compare::absent(b"atomic/b")).await);
    assert_eq!(all(store, b"atomic/").await.len(), 2);
}

async fn a_repeated_id_is_answered_and_not_done_twice(store: &dyn Store) {
    let once = Commit {
        id: CommitId([7; 16]),
        compares: vec![Compare::absent(b"repeat/a")],
        writes: vec![Write::put(b"repeat/a", b"1")],
    };
    let first = revision(store.commit(once.clone()).await.unwrap());
    put(store, b"repeat/b", b"").await;
    let again = store.commit(once.clone()).await.unwrap();
    assert_eq!(again, Outcome::Committed { revision: first, repeated: true });
    let other = Commit { writes: vec![Write::put(b"repeat/a", b"2")], ..once };
    assert_eq!(store.commit(other).await, Err(StoreError::Repeated));
    let refused = Commit {
        id: CommitId([8; 16]),
        compares: vec![Compare::absent(b"repeat/a")],
        writes: vec![Write::put(b"repeat/c", b"")],
    };
    for _ in 0..2 {
        assert!(matches!(store.commit(refused.clone()).await.unwrap(), Outcome::Conflict { .. }));
    }
    assert_eq!(all(store, b"repeat/a").await[0].modified, first);
}

async fn pages_join_to_the_whole_in_both_directions(store: &dyn Store) {
    for at in 0..10_u8 {
        put(store, &[b"page/".as_slice(), &[at]].concat(), &[at]).await;
    }
    let whole = all(store, b"page/").await;
    for descending in [false, true] {
        let mut joined = Vec::new();
        let mut after = None;
        loop {
            let read = Read { prefix: b"page/".into(), after: after.take(), limit: 3, descending };
            let page = store.snapshot(read).await.unwrap();
            assert!(page.entries.len() <= 3);
            joined.extend(page.entries);
            if !page.more {
                break;
            }
            after = joined.last().map(|entry: &Entry| entry.key.clone());
        }
        if descending {
            joined.reverse();
        }
        assert_eq!(joined, whole);
    }
}

async fn a_prefix_ends_where_the_next_begins(store: &dyn Store) {
    for key in [b"px".as_slice(), b"px\xff", b"px\xff\xff1", b"py", b"p"] {
        put(store, key, b"").await;
    }
    let keys = |entries: Vec<Entry>| entries.into_iter().map(|entry| entry.key).collect::<Vec<_>>();
    assert_eq!(keys(all(store, b"px").await), [b"px".to_vec(), b"px\xff".to_vec(), b"px\xff\xff1".to_vec()]);
    assert_eq!(keys(all(store, b"px\xff").await), [b"px\xff".to_vec(), b"px\xff\xff1".to_vec()]);
    assert_eq!(keys(all(store, b"\xff").await), Vec::<Vec<u8>>::new());
    let outside = Read { after: Some(b"a".into()), ..Read::all(b"px") };
    assert_eq!(store.snapshot(outside).await.unwrap().entries.len(), 3);
    let beyond = Read { after: Some(b"q".into()), ..Read::all(b"px") };
    assert_eq!(store.snapshot(beyond).await.unwrap().entries.len(), 0);
}

async fn a_watcher_sees_every_commit_once_and_in_order(store: &dyn Store) {
    let start = store.health().revision;
    let first = put(store, b"watch/a", b"1").await;
    let mut watch = store.watch(start).await.unwrap();
    let second = revision(
        commit(
            store,
            Vec::new(),
            vec![Write::put(b"watch/b", b"2"), Write::delete(b"watch/a"), Write::delete(b"watch/z")],
        )
        .await,
    );
    let batch = watch.next().await.unwrap();
    assert_eq!(batch.revision, first);
    assert_eq!(batch.changes.len(), 1);
    let batch = watch.next().await.unwrap();
    assert_eq!(batch.revision, second);
    let changes: Vec<_> = batch.changes.iter().map(|change| (change.key.as_slice(), change.value.as_deref())).collect();
    assert_eq!(changes, [(b"watch/b".as_slice(), Some(b"2".as_slice())), (b"watch/a", None)]);
    let mut late = store.watch(second).await.unwrap();
    let third = put(store, b"watch/c", b"3").await;
    assert_eq!(late.next().await.unwrap().revision, third);
    let future = Revision(store.health().revision.0 + 1000);
    assert!(matches!(store.watch(future).await, Err(StoreError::Invalid(_))));
}

async fn of_racing_commits_exactly_one_passes(store: &Arc<dyn Store>) {
    let tasks: Vec<_> = (0..50_u8)
        .map(|at| {
            let store = Arc::clone(store);
            tokio::spawn(async move {
                let writes =
                    vec![Write::put(b"race/token", [at]), Write::put([b"race/".as_slice(), &[at]].concat(), b"")];
                commit(&*store, vec![Compare::absent(b"race/token")], writes).await
            })
        })
        .collect();
    let mut passed = 0;
    for task in tasks {
        passed += usize::from(matches!(task.await.unwrap(), Outcome::Committed { .. }));
    }
    assert_eq!(passed, 1);
    assert_eq!(all(&**store, b"race/").await.len(), 2);
}

async fn a_lease_has_one_holder_and_its_token_fences(store: &dyn Store, advance: &dyn Advance) {
    let ask = |holder: u8, seconds| {
        let ttl = Duration::from_secs(seconds);
        store.lease(LeaseRequest { name: "sweep".into(), holder: [holder; 16], ttl })
    };
    let Ok(Lease::Held { token }) = ask(1, 10).await else { panic!("a free lease was not given") };
    assert_eq!(ask(2, 10).await, Ok(Lease::Elsewhere));
    advance(Duration::from_secs(6));
    assert_eq!(ask(1, 10).await, Ok(Lease::Held { token }), "renewal keeps the token");
    advance(Duration::from_secs(6));
    assert_eq!(ask(2, 10).await, Ok(Lease::Elsewhere));
    let fenced =
        |token| commit(store, vec![Compare::unchanged(lease_key("sweep"), token)], vec![Write::put(b"fenced", b"")]);
    revision(fenced(token).await);

    advance(Duration::from_secs(11));
    assert!(matches!(fenced(token).await, Outcome::Conflict { .. }), "an expired lease still fences");
    let Ok(Lease::Held { token: next }) = ask(2, 10).await else { panic!("an expired lease was not given on") };
    assert!(next > token);
    assert!(matches!(fenced(token).await, Outcome::Conflict { .. }), "the old holder can still write");
    revision(fenced(next).await);

    assert_eq!(ask(1, 0).await, Ok(Lease::Free));
    assert_eq!(ask(1, 10).await, Ok(Lease::Elsewhere), "somebody else's release freed the lease");
    assert_eq!(ask(2, 0).await, Ok(Lease::Free));
    assert!(matches!(fenced(next).await, Outcome::Conflict { .. }));
    assert!(matches!(ask(1, 10).await, Ok(Lease::Held { .. })));
}

async fn what_is_over_a_limit_is_refused_and_changes_nothing(store: &dyn Store) {
    let many = |count: usize, size: usize| {
        (0..count).map(|at| Write::put(format!("limit/{at}"), vec![0; size])).collect::<Vec<_>>()
    };
    let too_large = MAX_COMMIT_BYTES / MAX_VALUE + 1;
    let refused = [
        (vec![], vec![]),
        (vec![], vec![Write::put(b"", b"")]),
        (vec![], vec![Write::put(vec![b'k'; MAX_KEY + 1], b"")]),
        (vec![], vec![Write::delete(b"")]),
        (vec![], many(1, MAX_VALUE + 1)),
        (vec![], many(MAX_OPERATIONS + 1, 1)),
        (vec![], many(too_large, MAX_VALUE)),
        (vec![], vec![Write::put(b"limit/a", b""), Write::delete(b"limit/a")]),
        (vec![], vec![Write::put(lease_key("sweep"), b"")]),
        (vec![Compare::absent(b"")], many(1, 1)),
        (vec![Compare::absent(b"limit/x"); MAX_OPERATIONS + 1], many(1, 1)),
    ];
    let before = store.health();
    for (compares, writes) in refused {
        let answer = store.commit(Commit::new(compares, writes)).await;
        assert!(matches!(answer, Err(StoreError::Invalid(_))), "{answer:?}");
    }
    for name in [String::new(), "n".repeat(65)] {
        let request = LeaseRequest { name, holder: [0; 16], ttl: Duration::from_secs(1) };
        assert!(matches!(store.lease(request).await, Err(StoreError::Invalid(_))));
    }
    assert_eq!(store.health(), before);
    // The limits themselves are allowed, and values of the full size stay where they are durable.
    for round in 0..4 {
        let key = |at: usize| [format!("limit/{round}/{at}/").as_bytes(), &vec![b'k'; MAX_KEY - 16]].concat();
        let fitting = MAX_COMMIT_BYTES / (MAX_VALUE + MAX_KEY);
        let writes = (0..fitting).map(|at| Write::put(key(at), vec![b'v'; MAX_VALUE])).collect();
        commit(store, Vec::new(), writes).await;
    }
    commit(store, Vec::new(), many(MAX_OPERATIONS, 1)).await;
    assert_eq!(store.health().fault, None);
}

/// A fixed generator is enough: the claim is about the sequence, not about its randomness.
async fn arbitrary_commits_leave_what_a_plain_map_would_hold(store: &dyn Store) {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    let mut model: BTreeMap<Vec<u8>, (Vec<u8>, Revision)> = BTreeMap::new();
    for _ in 0..300 {
        let key = |number: u64| format!("model/{number:02}").into_bytes();
        let mut writes = BTreeMap::new();
        for _ in 0..=random(4) {
            let (key, length) = (key(random(20)), usize::try_from(random(200)).unwrap());
            let byte = u8::try_from(random(256)).unwrap();
            writes.insert(
                key.clone(),
                match random(3) {
                    0 => Write::delete(key),
                    _ => Write::put(key, vec![byte; length]),
                },
            );
        }
        let guard = key(random(20));
        let known = model.get(&guard).map(|(_, modified)| *modified);
        let holds = random(3) > 0;
        let compare = match (known, holds) {
            (Some(modified), true) => Compare::unchanged(guard, modified),
            (Some(_), false) | (None, true) => Compare::absent(guard),
            (None, false) => Compare::unchanged(guard, Revision(1)),
        };
        let writes: Vec<_> = writes.into_values().collect();
        match commit(store, vec![compare], writes.clone()).await {
            Outcome::Conflict { found, .. } => {
                assert!(!holds);
                assert_eq!(found, known);
            }
            Outcome::Committed { revision, .. } => {
                assert!(holds);
                for write in writes {
                    match write {
                        Write::Put { key, value } => drop(model.insert(key, (value, revision))),
                        Write::Delete { key } => drop(model.remove(&key)),
                    }
                }
            }
        }
    }
    let found: BTreeMap<_, _> =
        all(store, b"model/").await.into_iter().map(|entry| (entry.key, (entry.value, entry.modified))).collect();
    assert_eq!(found, model);
}

async fn a_compacted_feed_says_so(store: &dyn Store) {
    let last = put(store, b"compact/a", b"1").await;
    let digest = store.health().digest;
    let mut open = store.watch(last).await.unwrap();
    store.compact(last).await.unwrap();
    store.compact(last).await.unwrap();
    let health = store.health();
    assert_eq!((health.compacted, health.revision, health.digest), (last, last, digest));
    let early = Revision(last.0 - 1);
    assert!(matches!(store.watch(early).await, Err(StoreError::Compacted(oldest)) if oldest == last));
    let next = put(store, b"compact/b", b"2").await;
    assert_eq!(open.next().await.unwrap().revision, next, "an open watch outlives a compaction");
    assert_eq!(store.watch(last).await.unwrap().next().await.unwrap().revision, next);
    assert!(matches!(store.compact(Revision(next.0 + 1)).await, Err(StoreError::Invalid(_))));
}
