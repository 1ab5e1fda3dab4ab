//! Policy: a Set is applied whole, as one numbered revision, or not at all.

use std::collections::BTreeMap;
use std::sync::Arc;

use warren_proto::UnixTime;
use warren_proto::policy::cases::{TestResult, run_tests};
use warren_proto::policy::diff::{Diff, diff};
use warren_proto::policy::lint::lint;
use warren_proto::policy::plan::{OwnedObject, plan};
use warren_proto::policy::{CompiledPolicy, Diagnostic, Documents, Mode, SourceFile};
use warren_proto::reason::{Reason, Refusal};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Caller, Entry, Plan, Registry, Transaction};
use crate::policy::PolicyInForce;
use crate::state::records::{
    Hex32, PolicyCause, PolicyCounts, PolicyHead, PolicyRef, PolicyRevision, PolicyTree, StoredPolicy,
};
use crate::state::{Key, State, encode};
use crate::store::{MAX_VALUE, Write};

/// Digests in one part of a revision's list of objects; 68 bytes each as JSON.
const OBJECTS_PER_TREE: usize = 200;
/// Names of each sort kept with a revision for the history; the record must fit the store's limit.
const NAMES_KEPT: usize = 20;
/// Pairs named in a difference before the rest is only counted.
const DIFFERENCES: usize = 1_000;

/// Policies that are judged at once for those who only ask. A large one takes a processor for seconds.
pub(super) const CHECKS: usize = 4;
/// The same for those who change it: who only asks must not keep them waiting.
pub(super) const CHANGES: usize = 4;

/// Who may have a policy judged now.
#[derive(Debug)]
pub(super) struct Places {
    pub(super) checks: Arc<Semaphore>,
    pub(super) changes: Arc<Semaphore>,
}

impl Default for Places {
    fn default() -> Self {
        Self { checks: Arc::new(Semaphore::new(CHECKS)), changes: Arc::new(Semaphore::new(CHANGES)) }
    }
}

impl Places {
    /// Who only asks is turned away when every place is taken; a change waits for its turn, for as long as its request may.
    async fn take(&self, dry_run: bool) -> Result<OwnedSemaphorePermit, Refusal> {
        if dry_run {
            return Arc::clone(&self.checks).try_acquire_owned().map_err(|_| {
                Refusal::new(Reason::RateLimited, format!("{CHECKS} policies are being judged, as many as are at once"))
                    .hint("try again in a few seconds; `warren policy check` judges files without the coordinator")
            });
        }
        let closed = |_| Refusal::new(Reason::ShuttingDown, "policies are judged no more");
        Arc::clone(&self.changes).acquire_owned().await.map_err(closed)
    }
}

/// A Set as somebody wants it.
#[derive(Debug, Clone)]
pub struct Submission {
    /// Every file of the Set.
    pub files: Vec<SourceFile>,
    /// How many objects may go with it.
    pub allow_delete: usize,
    /// The number of the revision that the author looked at.
    pub if_match: Option<u64>,
    /// Everything but the commit.
    pub dry_run: bool,
}

/// What applying did, or would do.
#[derive(Debug, Clone)]
pub struct Applied {
    /// The revision now in force; with a dry run the one that is in force still.
    pub number: u64,
    /// Whether a new revision was made. False for a dry run and when nothing differs.
    pub committed: bool,
    /// How many objects differ.
    pub counts: PolicyCounts,
    /// New objects.
    pub added: Vec<PolicyRef>,
    /// Objects with another text.
    pub changed: Vec<PolicyRef>,
    /// Objects that go.
    pub removed: Vec<PolicyRef>,
    /// Findings that do not prevent the change.
    pub warnings: Vec<Diagnostic>,
    /// Which (source, service, port) change.
    pub diff: Diff,
}

/// Why nothing was changed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{refusal}")]
pub struct PolicyRefused {
    /// The reason in short.
    pub refusal: Refusal,
    /// Every error, with file, line and column.
    pub diagnostics: Vec<Diagnostic>,
    /// The policy's own tests that failed.
    pub failed_tests: Vec<TestResult>,
}

impl From<Refusal> for PolicyRefused {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, diagnostics: Vec::new(), failed_tests: Vec::new() }
    }
}

/// A policy that passed every check, with what it changes.
struct Candidate {
    cause: PolicyCause,
    base: u64,
    objects: Vec<StoredPolicy>,
    added: Vec<PolicyRef>,
    changed: Vec<PolicyRef>,
    removed: Vec<PolicyRef>,
    warnings: Vec<Diagnostic>,
    diff: Diff,
}

impl Registry {
    /// Checks a Set together with everything else that is in force (names, tests, enforceability) and puts the
    /// whole into force as the next revision.
    pub async fn apply_policy(&self, caller: &Caller, submission: Submission) -> Result<Applied, PolicyRefused> {
        let dry_run = submission.dry_run;
        // The place first: what is judged is what is in force when its turn has come.
        let place = self.judging.take(dry_run).await?;
        let (state, now) = (self.state(), self.now());
        check_base(&state, submission.if_match)?;
        let candidate = blocking(place, move || {
            let documents = Documents::from_files(&submission.files).map_err(invalid)?;
            let current: Vec<_> = state.policy.objects.iter().map(|stored| owned(stored)).collect();
            let planned = plan(&current, &documents, submission.allow_delete)?;
            let objects = planned.result.into_iter().map(|owned| StoredPolicy { set: owned.set, object: owned.object });
            judge(&state, PolicyCause::Apply(planned.set), objects.collect(), now)
        })
        .await?;
        self.put_in_force(caller, candidate, dry_run).await
    }

    /// Puts an earlier revision back into force, as a new revision.
    pub async fn rollback_policy(
        &self,
        caller: &Caller,
        to: u64,
        if_match: Option<u64>,
        dry_run: bool,
    ) -> Result<Applied, PolicyRefused> {
        let place = self.judging.take(dry_run).await?;
        let (state, now) = (self.state(), self.now());
        check_base(&state, if_match)?;
        let objects = state.policy_at(to).ok_or_else(|| {
            Refusal::new(Reason::NotFound, format!("policy revision {to} is not kept"))
                .hint("list revisions with `warren policy history`")
        })?;
        let candidate = blocking(place, move || {
            let objects = objects.iter().map(|stored| (**stored).clone()).collect();
            judge(&state, PolicyCause::Rollback(to), objects, now)
        })
        .await?;
        self.put_in_force(caller, candidate, dry_run).await
    }

    async fn put_in_force(
        &self,
        caller: &Caller,
        candidate: Candidate,
        dry_run: bool,
    ) -> Result<Applied, PolicyRefused> {
        let counts = PolicyCounts {
            added: candidate.added.len(),
            changed: candidate.changed.len(),
            removed: candidate.removed.len(),
            total: candidate.objects.len(),
        };
        let mut applied = Applied {
            number: candidate.base,
            committed: false,
            counts,
            added: candidate.added,
            changed: candidate.changed,
            removed: candidate.removed,
            warnings: candidate.warnings,
            diff: candidate.diff,
        };
        let (trees, writes) = texts(&self.state(), &candidate.objects)?;
        if dry_run || counts.added + counts.changed + counts.removed == 0 {
            return Ok(applied);
        }
        let number = candidate.base + 1;
        self.put_unreferenced(writes).await?;
        let names = |refs: &[PolicyRef]| refs.iter().take(NAMES_KEPT).cloned().collect::<Vec<_>>();
        self.change(caller, |state, now| {
            check_base(state, Some(candidate.base))?;
            let revision = PolicyRevision {
                number,
                at: now,
                who: caller.who.clone(),
                why: caller.why.clone(),
                cause: candidate.cause.clone(),
                counts,
                added: names(&applied.added),
                changed: names(&applied.changed),
                removed: names(&applied.removed),
                trees: trees.clone(),
            };
            let head = PolicyHead { number, trees: trees.clone() };
            let mut transaction = Transaction::default();
            transaction.create(&Key::PolicyRevision(number), &revision)?;
            match candidate.base {
                0 => transaction.create(&Key::PolicyHead, &head)?,
                _ => transaction.replace(&Key::PolicyHead, state.policy.modified, &head)?,
            }
            let entry = Entry {
                action: match candidate.cause {
                    PolicyCause::Apply(_) => "policy.apply",
                    PolicyCause::Rollback(_) => "policy.rollback",
                },
                object: match &candidate.cause {
                    PolicyCause::Apply(set) => set.clone(),
                    PolicyCause::Rollback(to) => format!("revision {to}"),
                },
                old: Some(serde_json::json!({ "revision": candidate.base })),
                new: serde_json::to_value(&revision).ok(),
            };
            Ok(Plan::Commit { transaction, entry, answer: () })
        })
        .await?;
        applied.number = number;
        applied.committed = true;
        Ok(applied)
    }
}

/// The lists that name the objects, and what is to be stored for them: the texts that are new and the lists, under their
/// digests. They mean nothing until the head names them.
fn texts(state: &State, objects: &[StoredPolicy]) -> Result<(Vec<Hex32>, Vec<Write>), Refusal> {
    let mut digests = Vec::with_capacity(objects.len());
    let mut writes = BTreeMap::new();
    for object in objects {
        let value = encode(object)?;
        let digest = warren_proto::peer_map::object_digest(&value);
        digests.push(Hex32(digest));
        if state.has_policy_text(&digest) {
            continue;
        }
        if value.len() > MAX_VALUE {
            let object = &object.object;
            let detail = format!(
                "{}:{}: {} {:?} has {} bytes; an object may have about {}",
                object.file,
                object.line,
                object.kind,
                object.name,
                object.text.len(),
                MAX_VALUE - 1024
            );
            return Err(
                Refusal::new(Reason::RequestTooLarge, detail).hint("split it: rules can be shared with kind: Rules")
            );
        }
        writes.insert(digest, Write::put(Key::PolicyText(digest).to_bytes(), value));
    }
    let mut trees = Vec::new();
    for part in digests.chunks(OBJECTS_PER_TREE) {
        let value = encode(&PolicyTree { objects: part.to_vec() })?;
        let digest = warren_proto::peer_map::object_digest(&value);
        trees.push(Hex32(digest));
        writes.insert(digest, Write::put(Key::PolicyTree(digest).to_bytes(), value));
    }
    Ok((trees, writes.into_values().collect()))
}

/// Reading megabytes of documents, and proofs over all identities and ports, take a while; sessions must not wait for them.
async fn blocking(
    place: OwnedSemaphorePermit,
    work: impl FnOnce() -> Result<Candidate, PolicyRefused> + Send + 'static,
) -> Result<Candidate, PolicyRefused> {
    // Whoever asked may hang up; the work goes on, and its place is taken until it ends.
    let work = move || {
        let _place = place;
        work()
    };
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Refusal::new(Reason::Internal, "checking the policy failed; see the coordinator's log"))?
}

fn judge(
    state: &State,
    cause: PolicyCause,
    objects: Vec<StoredPolicy>,
    now: UnixTime,
) -> Result<Candidate, PolicyRefused> {
    let plain: Vec<_> = objects.iter().map(|stored| stored.object.clone()).collect();
    let documents = Documents::from_objects(&plain).map_err(invalid)?;
    let compiled = CompiledPolicy::compile(&documents, Mode::Whole).map_err(invalid)?;
    check_trust_domain(state, &compiled)?;
    compiled.enforceable().map_err(|diagnostics| PolicyRefused {
        refusal: Refusal::new(Reason::UnenforceablePolicy, "the policy needs terms that nodes cannot enforce yet")
            .hint("take the named terms out; nothing is let through in their stead"),
        diagnostics,
        failed_tests: Vec::new(),
    })?;
    let failed_tests: Vec<_> = run_tests(&compiled, now).into_iter().filter(|result| !result.passed).collect();
    if !failed_tests.is_empty() {
        let detail = format!("{} of the policy's own tests failed", failed_tests.len());
        let refusal = Refusal::new(Reason::TestsFailed, detail).hint("see `warren policy test`");
        return Err(PolicyRefused { refusal, diagnostics: Vec::new(), failed_tests });
    }
    let (added, changed, removed) = differences(&state.policy, &objects);
    let empty;
    let before = match state.policy.compiled() {
        Some(policy) => policy,
        None => {
            let text = format!("kind: Mesh\nname: {}\n", compiled.trust_domain());
            let nothing = Documents::from_files(&[SourceFile { name: "(empty)".to_owned(), text }]).map_err(invalid)?;
            empty = CompiledPolicy::compile(&nothing, Mode::Slice).map_err(invalid)?;
            &empty
        }
    };
    Ok(Candidate {
        cause,
        base: state.policy.number,
        added,
        changed,
        removed,
        warnings: lint(&documents, &compiled, now),
        diff: diff(before, &compiled, now, DIFFERENCES),
        objects,
    })
}

fn check_base(state: &State, if_match: Option<u64>) -> Result<(), Refusal> {
    match if_match {
        Some(expected) if expected != state.policy.number => {
            let detail = format!("policy is at revision {}, not {expected} that you read", state.policy.number);
            Err(Refusal::new(Reason::Conflict, detail).hint("look at `warren policy diff` and apply again"))
        }
        _ => Ok(()),
    }
}

fn check_trust_domain(state: &State, compiled: &CompiledPolicy) -> Result<(), Refusal> {
    let ours = &state.settings()?.trust_domain;
    if compiled.trust_domain() == ours {
        return Ok(());
    }
    let detail = format!("kind: Mesh names {}, but this mesh is {ours}", compiled.trust_domain());
    Err(Refusal::new(Reason::PolicyInvalid, detail).hint(format!("write `name: {ours}`")))
}

fn invalid(diagnostics: Vec<Diagnostic>) -> PolicyRefused {
    let detail = match diagnostics.as_slice() {
        [] => "the policy documents do not compile".to_owned(),
        [one] => one.to_string(),
        [first, rest @ ..] => format!("{first} (and {} more)", rest.len()),
    };
    let refusal = Refusal::new(Reason::PolicyInvalid, detail).hint("check with `warren policy check DIR`");
    PolicyRefused { refusal, diagnostics, failed_tests: Vec::new() }
}

fn owned(stored: &StoredPolicy) -> OwnedObject {
    OwnedObject { set: stored.set.clone(), object: stored.object.clone() }
}

type Differences = (Vec<PolicyRef>, Vec<PolicyRef>, Vec<PolicyRef>);

fn differences(before: &PolicyInForce, after: &[StoredPolicy]) -> Differences {
    let before: BTreeMap<_, _> =
        before.objects.iter().map(|stored| (PolicyRef::of(&stored.object), &**stored)).collect();
    let after: BTreeMap<_, _> = after.iter().map(|stored| (PolicyRef::of(&stored.object), stored)).collect();
    let added = after.keys().filter(|name| !before.contains_key(*name)).cloned().collect();
    let changed = after
        .iter()
        .filter(|(name, stored)| before.get(*name).is_some_and(|old| old != *stored))
        .map(|(name, _)| name.clone())
        .collect();
    let removed = before.keys().filter(|name| !after.contains_key(*name)).cloned().collect();
    (added, changed, removed)
}
