//! Every change of what the coordinator knows: one command, one commit, one row of the audit log.
//!
//! A command looks at the [`State`], plans writes that compare every record it read, and commits them together
//! with its audit row. The store's watch feed then brings the change back, this coordinator's own like
//! another's, and the next `State` is published; a command answers when its change is visible there. So there
//! is one way in which the picture changes, and an answer never runs ahead of it.

mod admin_tokens;
mod allocation;
mod attestation;
mod instances;
mod mesh;
mod nodes;
mod peers;
mod policy;
mod revocation;
mod roots;
mod svids;
mod sweep;
mod tokens;
mod transaction;

use std::fmt;
use std::sync::{Arc, PoisonError};

use arc_swap::ArcSwap;
use tokio::sync::{Mutex, broadcast, watch};
use warren_proto::UnixTime;
use warren_proto::reason::{Reason, Refusal};

use crate::audit::Chain;
use crate::ca::{Authority, CaError};
use crate::clock::WallClock;
use crate::state::{self, State, Touched};
use crate::store::{Commit, CommitId, Outcome, Read, Revision, Store, StoreError, WatchEnd};

pub(crate) use attestation::attestor_named;
pub use attestation::{NewRegistration, planned_registration};
pub use instances::TunnelRequest;
pub use mesh::{read_settings, read_trust};
pub use nodes::{EnrolledNode, Enrolment, Evidence, RENEWAL_GRACE};
pub(crate) use nodes::{admitted_node, node_with_workloads};
pub use peers::NewPeer;
pub(crate) use peers::registered_peer;
pub use policy::{Applied, PolicyRefused, Submission};
pub use revocation::Revoke;
pub(crate) use roots::Rotate;
pub use svids::SVID_LIFETIME;
pub use tokens::NewJoinToken;
pub(crate) use transaction::{Entry, Plan, Transaction};

/// How often a command is planned anew when another coordinator changed what it had read.
const ATTEMPTS: usize = 5;

/// Change notices held for a slow listener before it is told to look at everything.
const NOTICES: usize = 256;

/// Who gives a command, why, and under which idempotency key.
#[derive(Debug, Clone)]
pub struct Caller {
    /// For the audit log: `admin:<token name>`, `node:<id>`, `coordinator`.
    pub who: String,
    /// The caller's words; may be empty.
    pub why: String,
    /// A command repeated under the same id is done once.
    pub request: CommitId,
    /// Only asks: the command goes its whole way up to the commit, and answers as if it had been done.
    pub dry_run: bool,
}

impl Caller {
    /// A caller without words, under a fresh id.
    #[must_use]
    pub fn new(who: impl Into<String>) -> Self {
        Self { who: who.into(), why: String::new(), request: CommitId::random(), dry_run: false }
    }

    /// The coordinator itself, in its periodic work.
    #[must_use]
    pub fn coordinator() -> Self {
        Self::new("coordinator")
    }
}

/// What whoever asks for a certificate must still be in the very state that it is planned on.
pub type Standing<'a> = &'a (dyn Fn(&State) -> Result<(), Refusal> + Sync);

/// The handle to all commands and to the published state.
pub struct Registry {
    store: Arc<dyn Store>,
    authority: ArcSwap<Authority>,
    /// Taken by whoever puts another authority in place.
    authority_change: std::sync::Mutex<()>,
    authority_moved: watch::Sender<u64>,
    clock: Arc<WallClock>,
    advertised: Vec<String>,
    published: ArcSwap<State>,
    visible: watch::Sender<Revision>,
    notices: broadcast::Sender<Arc<Touched>>,
    writer: Mutex<Chain>,
    failure: watch::Sender<Option<String>>,
    judging: policy::Places,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("generation", &self.state().generation()).finish_non_exhaustive()
    }
}

impl Registry {
    /// Builds the picture from the store. [`Registry::follow`] must run for commands to be answered.
    /// `advertised` is where nodes reach coordinators, `host:port`.
    pub async fn open(
        store: Arc<dyn Store>,
        authority: Authority,
        clock: Arc<WallClock>,
        advertised: Vec<String>,
    ) -> Result<Arc<Self>, Refusal> {
        let state = load_state(&*store).await?;
        let chain = Chain::load(&*store).await?;
        let authority = match &state.trust {
            Some(trust) if trust.value != *authority.trust() => {
                authority.under(trust, clock.now()).map_err(ca_failed)?
            }
            _ => authority,
        };
        Ok(Arc::new(Self {
            visible: watch::Sender::new(state.revision),
            published: ArcSwap::from_pointee(state),
            notices: broadcast::Sender::new(NOTICES),
            writer: Mutex::new(chain),
            failure: watch::Sender::new(None),
            judging: policy::Places::default(),
            authority: ArcSwap::from_pointee(authority),
            authority_change: std::sync::Mutex::default(),
            authority_moved: watch::Sender::new(0),
            store,
            clock,
            advertised,
        }))
    }

    /// The picture now. It does not change; ask again for a newer one.
    #[must_use]
    pub fn state(&self) -> Arc<State> {
        self.published.load_full()
    }

    /// The wall clock above its floor.
    #[must_use]
    pub fn now(&self) -> UnixTime {
        self.clock.now()
    }

    /// The store, for reading what is not part of the state (the audit log).
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The certificate authority, whose own certificates are in date.
    #[must_use]
    pub fn authority(&self) -> Arc<Authority> {
        self.authority.load_full()
    }

    /// Takes an authority whose own certificates were renewed. One of roots that are no longer those in force is left.
    pub fn replace_authority(&self, authority: Authority) {
        let guard = self.authority_change.lock().unwrap_or_else(PoisonError::into_inner);
        if authority.trust() == self.authority().trust() {
            self.authority.store(Arc::new(authority));
        }
        drop(guard);
        self.authority_moved.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Completes when another authority was put in place since `seen` was marked.
    #[must_use]
    pub fn authority_moved(&self) -> watch::Receiver<u64> {
        self.authority_moved.subscribe()
    }

    /// Puts the authority in place that the roots of `state` ask for. It comes before the state does, and a command sees
    /// both or neither: nothing is issued under a root that the state does not know to sign.
    fn follow_roots(&self, state: &State) -> Result<(), CaError> {
        let Some(trust) = &state.trust else { return Ok(()) };
        let guard = self.authority_change.lock().unwrap_or_else(PoisonError::into_inner);
        let held = self.authority();
        if trust.value != *held.trust() {
            self.authority.store(Arc::new(held.under(trust, self.clock.now())?));
        }
        drop(guard);
        self.authority_moved.send_modify(|count| *count = count.wrapping_add(1));
        Ok(())
    }

    /// Where nodes reach coordinators, as join tokens carry it.
    #[must_use]
    pub fn advertised(&self) -> &[String] {
        &self.advertised
    }

    /// Notices of what changed, from now on. A listener that lags must treat everything as changed.
    #[must_use]
    pub fn notices(&self) -> broadcast::Receiver<Arc<Touched>> {
        self.notices.subscribe()
    }

    /// Completes when the store has failed and the process must end; says why.
    pub async fn failed(&self) -> String {
        let mut failure = self.failure.subscribe();
        loop {
            if let Some(why) = failure.borrow_and_update().clone() {
                return why;
            }
            if failure.changed().await.is_err() {
                return "the registry is gone".to_owned();
            }
        }
    }

    /// Takes the store's feed for as long as it lasts and publishes each next picture.
    ///
    /// A feed that lags is resumed; one that no longer reaches back is replaced by a whole snapshot, published
    /// only once it is complete: no interruption is ever taken for a deletion.
    pub async fn follow(&self) {
        loop {
            let after = self.state().revision;
            match self.store.watch(after).await {
                Ok(mut feed) => loop {
                    match feed.next().await {
                        Ok(batch) => {
                            if let Err(refusal) = self.take(&batch) {
                                return self.fail(refusal.to_string());
                            }
                        }
                        Err(WatchEnd::Lagged) => break,
                        Err(end) => return self.fail(end.to_string()),
                    }
                },
                Err(StoreError::Compacted(_)) => match load_state(&*self.store).await {
                    Ok(state) => {
                        if let Err(error) = self.follow_roots(&state) {
                            return self.fail(ca_failed(error).to_string());
                        }
                        self.publish(state, None);
                    }
                    Err(refusal) => return self.fail(refusal.to_string()),
                },
                Err(error) => return self.fail(error.to_string()),
            }
        }
    }

    fn take(&self, batch: &crate::store::Batch) -> Result<(), Refusal> {
        let current = self.state();
        if batch.revision <= current.revision {
            return Ok(());
        }
        let mut next = (*current).clone();
        let changes = batch
            .changes
            .iter()
            .map(|change| state::Change {
                key: change.key.clone(),
                value: change.value.clone().map(Into::into),
                modified: batch.revision,
            })
            .collect();
        let touched = next.apply(batch.revision, changes)?;
        if touched.trust {
            self.follow_roots(&next).map_err(ca_failed)?;
        }
        self.publish(next, Some(touched));
        Ok(())
    }

    /// `None` for a picture that was built anew: everything may have changed.
    fn publish(&self, state: State, touched: Option<Touched>) {
        let revision = state.revision;
        self.published.store(Arc::new(state));
        self.visible.send_replace(revision);
        // Nobody listens in commands of the command line; that is no error.
        let _ = self.notices.send(Arc::new(touched.unwrap_or_else(Touched::everything)));
    }

    fn fail(&self, why: String) {
        tracing::error!(error = %why, "the store has failed; the process ends");
        self.failure.send_replace(Some(why));
    }

    /// Plans a change on the picture as it is, commits it with its audit row, and waits until it is visible. For a caller who
    /// only asks it ends before the commit.
    ///
    /// `plan` may run several times: when another coordinator changed what it had read, it is asked again.
    pub(crate) async fn change<T>(
        &self,
        caller: &Caller,
        mut plan: impl FnMut(&State, UnixTime) -> Result<Plan<T>, Refusal> + Send,
    ) -> Result<T, Refusal> {
        let mut chain = self.writer.lock().await;
        for _ in 0..ATTEMPTS {
            let now = self.clock.now();
            let (transaction, entry, answer) = match plan(&self.state(), now)? {
                Plan::Answer(answer) => return Ok(answer),
                Plan::Commit { transaction, entry, answer } => (transaction, entry, answer),
            };
            if caller.dry_run {
                return Ok(answer);
            }
            let Transaction { mut compares, mut writes } = transaction;
            let appended = chain.append([entry.draft(caller, now)]);
            compares.extend(appended.compares);
            writes.extend(appended.writes);
            let outcome = self.store.commit(Commit { id: caller.request, compares, writes }).await;
            match outcome {
                Ok(Outcome::Committed { revision, .. }) => {
                    *chain = appended.tail;
                    self.wait_for(revision).await?;
                    return Ok(answer);
                }
                Ok(Outcome::Conflict { key, found }) => {
                    if key.starts_with(crate::audit::PREFIX) {
                        *chain = Chain::load(&*self.store).await?;
                    }
                    if let Some(revision) = found {
                        self.wait_for(revision).await?;
                    }
                }
                Err(error) => {
                    if error.is_fatal() {
                        self.fail(error.to_string());
                    }
                    return Err(error.into());
                }
            }
        }
        Err(Refusal::new(Reason::Conflict, "other coordinators keep changing the same records").hint("try again"))
    }

    /// Puts content-addressed records, which mean nothing until a later commit refers to them.
    pub(crate) async fn put_unreferenced(&self, mut writes: Vec<crate::store::Write>) -> Result<(), Refusal> {
        while !writes.is_empty() {
            let batch = transaction::take_batch(&mut writes);
            match self.store.commit(Commit::new(Vec::new(), batch)).await {
                Ok(Outcome::Committed { revision, .. }) => self.wait_for(revision).await?,
                Ok(Outcome::Conflict { .. }) => {
                    return Err(Refusal::new(Reason::Internal, "a commit without compares conflicted"));
                }
                Err(error) => {
                    if error.is_fatal() {
                        self.fail(error.to_string());
                    }
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    /// Takes every place for those who only ask what a policy would do.
    #[cfg(test)]
    pub(crate) fn hold_checks(&self) -> tokio::sync::OwnedSemaphorePermit {
        let checks = Arc::clone(&self.judging.checks);
        checks.try_acquire_many_owned(policy::CHECKS as u32).expect("nobody asks")
    }

    async fn wait_for(&self, revision: Revision) -> Result<(), Refusal> {
        let mut visible = self.visible.subscribe();
        let mut failure = self.failure.subscribe();
        tokio::select! {
            seen = visible.wait_for(|seen| *seen >= revision) => seen.map(|_| ()).map_err(|_| stopped()),
            _ = failure.wait_for(Option::is_some) => Err(stopped()),
        }
    }
}

fn ca_failed(error: CaError) -> Refusal {
    Refusal::new(Reason::StateCorrupt, format!("the certificate authority: {error}"))
}

fn stopped() -> Refusal {
    Refusal::new(Reason::StoreUnavailable, "the store has stopped; whether the change was taken is not known")
        .hint("repeat the request with the same Idempotency-Key once the coordinator is back")
}

/// The whole picture from a snapshot, prefix by prefix. Commits that happen meanwhile come again through the
/// feed, which begins at the first page's revision, and applying them twice changes nothing.
pub async fn load_state(store: &dyn Store) -> Result<State, Refusal> {
    let mut state = State::empty(store.epoch());
    let mut changes = Vec::new();
    let mut first = None;
    for prefix in state::PREFIXES {
        let snapshot = store.snapshot(Read::all(prefix.as_bytes())).await?;
        first.get_or_insert(snapshot.revision);
        changes.extend(snapshot.entries.into_iter().map(|entry| state::Change {
            key: entry.key,
            value: Some(entry.value.into()),
            modified: entry.modified,
        }));
    }
    state.apply(first.unwrap_or_default(), changes)?;
    Ok(state)
}

#[cfg(test)]
mod tests;
