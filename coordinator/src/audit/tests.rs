//! The hash chain: it verifies, and a changed, removed or added row is found.

use super::*;
use crate::store::{Commit, Options, Outcome, Seams, SledStore};

pub(super) fn draft(object: &str) -> Draft {
    Draft {
        time: UnixTime(1_800_000_000),
        who: "token:first".into(),
        action: "node.revoke".into(),
        object: object.into(),
        old: Some(serde_json::json!({ "revoked": false })),
        new: Some(serde_json::json!({ "revoked": true })),
        why: "lost laptop".into(),
    }
}

pub(super) fn store(directory: &std::path::Path) -> SledStore {
    let options =
        Options { keep_free: 0, keep_free_percent: 0, ballast: 0, any_file_system: true, ..Options::new(directory) };
    SledStore::create(options, Seams::default()).unwrap()
}

pub(super) async fn append(store: &SledStore, chain: &mut Chain, drafts: Vec<Draft>) {
    let appended = chain.append(drafts);
    let outcome = store.commit(Commit::new(appended.compares, appended.writes)).await.unwrap();
    assert!(matches!(outcome, Outcome::Committed { .. }));
    *chain = appended.tail;
}

#[tokio::test]
async fn a_chain_verifies_and_its_pages_run_from_the_newest_to_the_oldest() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    assert_eq!(verify(&store).await.unwrap().entries, 0);
    let mut chain = Chain::load(&store).await.unwrap();
    for at in 0..6 {
        append(&store, &mut chain, vec![draft(&format!("a{at}")), draft(&format!("b{at}"))]).await;
    }
    assert_eq!(Chain::load(&store).await.unwrap(), chain);
    let verified = verify(&store).await.unwrap();
    assert_eq!((verified.entries, verified.first, verified.last), (12, 1, 12));

    let mut seen = Vec::new();
    let mut cursor = None;
    loop {
        let page = page(&store, cursor, 5).await.unwrap();
        seen.extend(page.entries.iter().map(|entry| entry.seq));
        let Some(next) = page.next else { break };
        cursor = Some(next);
    }
    assert_eq!(seen, (1..=12).rev().collect::<Vec<_>>());
}

#[tokio::test]
async fn a_changed_removed_or_inserted_entry_breaks_the_chain_where_it_happened() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let mut chain = Chain::default();
    append(&store, &mut chain, (1..=9).map(|at| draft(&at.to_string())).collect()).await;
    let kept = store.snapshot(Read::all(PREFIX)).await.unwrap().entries;
    let put = |write| store.commit(Commit::new(Vec::new(), vec![write]));

    let mut entry: Entry = serde_json::from_slice(&kept[4].value).unwrap();
    entry.why = "nothing to see".into();
    put(Write::put(key(5), serde_json::to_vec(&entry).unwrap())).await.unwrap();
    assert_eq!(verify(&store).await, Err(Broken::Link(6)));
    put(Write::put(key(5), kept[4].value.clone())).await.unwrap();
    assert!(verify(&store).await.is_ok());

    put(Write::delete(key(7))).await.unwrap();
    assert_eq!(verify(&store).await, Err(Broken::Gap { expected: 7, found: 8 }));
    put(Write::put(key(7), kept[7].value.clone())).await.unwrap();
    assert_eq!(verify(&store).await, Err(Broken::Gap { expected: 7, found: 8 }));
    put(Write::put(key(7), b"{}".as_slice())).await.unwrap();
    assert_eq!(verify(&store).await, Err(Broken::Entry(7)));
}

#[tokio::test]
async fn two_who_append_at_once_cannot_take_the_same_place() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let chain = Chain::default();
    let (first, second) = (chain.append([draft("one")]), chain.append([draft("two")]));
    let taken = store.commit(Commit::new(first.compares, first.writes)).await.unwrap();
    assert!(matches!(taken, Outcome::Committed { .. }));
    let refused = store.commit(Commit::new(second.compares, second.writes)).await.unwrap();
    assert_eq!(refused, Outcome::Conflict { key: key(1), found: Some(crate::store::Revision(1)) });
}

#[test]
fn an_entry_always_fits_the_store_whatever_it_tells_of() {
    let huge = "\u{1}\u{1F407}".repeat(100_000);
    let large = Value::String("\u{1}".repeat(400));
    let appended = Chain::default().append([Draft {
        time: UnixTime(0),
        who: huge.clone(),
        action: "policy.apply".into(),
        object: huge.clone(),
        old: Some(large),
        new: Some(Value::String(huge.clone())),
        why: huge,
    }]);
    let Some(Write::Put { value, .. }) = appended.writes.first() else { panic!("no entry") };
    assert!(value.len() <= crate::store::MAX_VALUE, "{}", value.len());
    let entry: Entry = serde_json::from_slice(value).unwrap();
    assert!(entry.why.len() <= MAX_TEXT && entry.new.unwrap().get("sha256").is_some());
}
