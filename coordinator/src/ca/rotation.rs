//! Replacing the root: which roots are trusted, which signs, and by which steps that changes. Pure.
//!
//! ```text
//!            introduce                activate                retire
//!   steady ------------> introduced ------------> activated ----------> steady (the later root alone)
//!      ^                     |
//!      +------- abandon -----+
//! ```
//!
//! Introduced: nodes trust both roots, the first signs. Activated: both are still trusted, the second signs, and whatever
//! was issued before is renewed. So at every step a node accepts what the step before and the step after present.
//! [`TrustRoots`] is the store's record of it, and the only one: a step is one commit.

use serde::{Deserialize, Serialize};
use warren_proto::admin::{RotationStage as Stage, RotationStep as Step};
use warren_proto::certificate::{AuthorityCertificate, CLOCK_SKEW};
use warren_proto::peer_map::object_digest;
use warren_proto::reason::{Reason, Refusal};
use warren_proto::{TrustBundle, TrustDomain, UnixTime};

use crate::state::records::{Der, Hex32};

/// Retired roots that are remembered, so that what is left of their files is deleted.
const REMEMBERED: usize = 16;

/// Issuers under them that are remembered: an intermediate lives 30 days and is renewed at half of that, a certificate
/// lives 90 days at most.
const REMEMBERED_ISSUERS: usize = 128;

/// The roots of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustRoots {
    /// Rises with every change that nodes are told.
    sequence: u64,
    /// In the order of their introduction: one, or two while the root is replaced.
    roots: Vec<TrustedRoot>,
    /// Whether the last of two signs; of one, it does in any case.
    last_signs: bool,
    /// Certificates issued at this moment or before are to be renewed.
    renew_before: UnixTime,
    /// The intermediate must not be older than this.
    issuing_after: UnixTime,
    /// Key identifiers, hexadecimal, of the issuers of certificates that a root to be retired has signed.
    superseded: Vec<String>,
    /// The same of roots that were retired, the last ones: peers are not sent what they could not trust.
    untrusted: Vec<String>,
    /// SHA-256 of the roots whose files are to be deleted, the last ones.
    retired: Vec<Hex32>,
}

/// A root that nodes trust.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustedRoot {
    /// SHA-256 of the certificate.
    pub sha256: Hex32,
    /// The certificate.
    pub certificate: Der,
    /// Since when nodes are told of it.
    pub introduced_at: UnixTime,
}

/// What a step takes besides the record.
#[derive(Debug, Clone)]
pub enum Event {
    /// A second root, made and on disk.
    Introduce(Vec<u8>),
    /// With the issuers, hexadecimal key identifiers, of every certificate that holds now.
    Activate(Vec<String>),
    /// See [`Step::Retire`].
    Retire,
    /// See [`Step::Abandon`].
    Abandon,
    /// See [`Step::Intermediate`].
    Intermediate,
}

impl TrustRoots {
    /// A mesh whose root was never replaced.
    #[must_use]
    pub fn first(root: &AuthorityCertificate, now: UnixTime) -> Self {
        let introduced_at = root.not_before().plus(CLOCK_SKEW).min(now);
        Self {
            sequence: 1,
            roots: vec![TrustedRoot::new(root.der(), introduced_at)],
            last_signs: false,
            renew_before: UnixTime(0),
            issuing_after: UnixTime(0),
            superseded: Vec::new(),
            untrusted: Vec::new(),
            retired: Vec::new(),
        }
    }

    /// Where the replacement stands.
    #[must_use]
    pub fn stage(&self) -> Stage {
        match (self.roots.len(), self.last_signs) {
            (0 | 1, _) => Stage::Steady,
            (_, false) => Stage::Introduced,
            (_, true) => Stage::Activated,
        }
    }

    /// The record after `event`; every pair of stage and event stands here.
    ///
    /// # Errors
    /// [`Reason::Conflict`] for a step that the stage does not lead to, with the one that it does.
    pub fn after(&self, event: Event, now: UnixTime) -> Result<Self, Refusal> {
        let out_of_place = |what: &str, hint: &str| Err(Refusal::new(Reason::Conflict, what).hint(hint));
        let mut next = self.clone();
        match (self.stage(), event) {
            (Stage::Steady, Event::Introduce(root)) => next.roots.push(TrustedRoot::new(&root, now)),
            (Stage::Introduced, Event::Activate(issuers)) => {
                next.last_signs = true;
                next.renew_before = now;
                next.superseded = issuers;
            }
            (Stage::Activated, Event::Retire) => {
                next.retire(0);
                next.last_signs = false;
                next.untrusted.append(&mut next.superseded);
                let surplus = next.untrusted.len().saturating_sub(REMEMBERED_ISSUERS);
                next.untrusted.drain(..surplus);
            }
            (Stage::Introduced, Event::Abandon) => next.retire(1),
            (Stage::Steady, Event::Intermediate) => {
                next.issuing_after = now;
                next.renew_before = now;
            }
            (Stage::Introduced, Event::Introduce(_)) => {
                return out_of_place("a second root is introduced already", "warren ca rotate activate");
            }
            (Stage::Activated, Event::Introduce(_)) => {
                return out_of_place("the root before is not retired yet", "warren ca rotate retire");
            }
            (Stage::Steady, Event::Activate(_)) => {
                return out_of_place("no second root is introduced", "warren ca rotate introduce");
            }
            (Stage::Activated, Event::Activate(_)) => {
                return out_of_place("the second root signs already", "warren ca rotate retire");
            }
            (Stage::Steady, Event::Retire) => {
                return out_of_place("there is one root, and it signs", "warren ca rotate introduce");
            }
            (Stage::Introduced, Event::Retire) => {
                return out_of_place("the first root still signs", "warren ca rotate activate");
            }
            (Stage::Steady, Event::Abandon) => {
                return out_of_place("no second root is introduced", "warren ca status");
            }
            (Stage::Activated, Event::Abandon) => {
                return out_of_place(
                    "the second root signs: certificates under it are in use",
                    "retire the first, then introduce another: warren ca rotate retire",
                );
            }
            (Stage::Introduced | Stage::Activated, Event::Intermediate) => {
                return out_of_place(
                    "a root is being replaced, and the intermediate with it",
                    "finish that first: warren ca status",
                );
            }
        }
        next.sequence += 1;
        Ok(next)
    }

    /// The step that the stage leads to.
    #[must_use]
    pub fn next_step(&self) -> Step {
        match self.stage() {
            Stage::Steady => Step::Introduce,
            Stage::Introduced => Step::Activate,
            Stage::Activated => Step::Retire,
        }
    }

    fn retire(&mut self, index: usize) {
        let gone = self.roots.remove(index);
        self.retired.push(gone.sha256);
        let surplus = self.retired.len().saturating_sub(REMEMBERED);
        self.retired.drain(..surplus);
    }

    /// As nodes are told.
    ///
    /// # Errors
    /// When a root is not fit to be one of `trust_domain`.
    pub fn bundle(&self, trust_domain: &TrustDomain) -> Result<TrustBundle, Refusal> {
        let roots = self.roots.iter().map(|root| root.certificate.0.as_ref());
        Ok(TrustBundle::new(trust_domain.clone(), self.sequence, roots)?.renewing_before(self.renew_before))
    }

    /// Rises with every change that nodes are told.
    #[must_use]
    pub const fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The roots, in the order of their introduction.
    #[must_use]
    pub fn roots(&self) -> &[TrustedRoot] {
        &self.roots
    }

    /// SHA-256 of the root that signs.
    #[must_use]
    pub fn signing(&self) -> &[u8; 32] {
        const NONE: &[u8; 32] = &[0; 32];
        let root = if self.last_signs { self.roots.last() } else { self.roots.first() };
        root.map_or(NONE, |root| &root.sha256.0)
    }

    /// Certificates issued at this moment or before are to be renewed; 1970 for none.
    #[must_use]
    pub const fn renew_before(&self) -> UnixTime {
        self.renew_before
    }

    /// The intermediate must not be older than this.
    #[must_use]
    pub const fn issuing_after(&self) -> UnixTime {
        self.issuing_after
    }

    /// Whether certificates of this issuer end with the root that is to be retired.
    #[must_use]
    pub fn is_superseded(&self, issuer_key_id: &[u8]) -> bool {
        let name = hex::encode(issuer_key_id);
        self.superseded.contains(&name)
    }

    /// Whether certificates of this issuer ended with a root that was retired.
    #[must_use]
    pub fn is_untrusted(&self, issuer_key_id: &[u8]) -> bool {
        !self.untrusted.is_empty() && self.untrusted.contains(&hex::encode(issuer_key_id))
    }

    /// SHA-256 of the roots whose files are to be deleted.
    pub fn retired(&self) -> impl Iterator<Item = &[u8; 32]> {
        self.retired.iter().map(|sha256| &sha256.0)
    }
}

impl TrustedRoot {
    fn new(der: &[u8], introduced_at: UnixTime) -> Self {
        Self { sha256: Hex32(object_digest(der)), certificate: Der(der.to_vec().into()), introduced_at }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);
    const LATER: UnixTime = UnixTime(1_800_000_100);

    fn steady() -> TrustRoots {
        TrustRoots {
            sequence: 1,
            roots: vec![TrustedRoot::new(b"first", NOW)],
            last_signs: false,
            renew_before: UnixTime(0),
            issuing_after: UnixTime(0),
            superseded: Vec::new(),
            untrusted: Vec::new(),
            retired: Vec::new(),
        }
    }

    fn events() -> [(Step, Event); 5] {
        [
            (Step::Introduce, Event::Introduce(b"second".to_vec())),
            (Step::Activate, Event::Activate(vec!["0a".to_owned()])),
            (Step::Retire, Event::Retire),
            (Step::Abandon, Event::Abandon),
            (Step::Intermediate, Event::Intermediate),
        ]
    }

    #[test]
    fn a_stage_takes_its_own_steps_and_refuses_every_other_without_a_change() {
        let introduced = steady().after(Event::Introduce(b"second".to_vec()), NOW).expect("introduced");
        let activated = introduced.after(Event::Activate(vec!["0a".to_owned()]), NOW).expect("activated");
        let takes = |from: &TrustRoots| -> Vec<(Step, Stage)> {
            let taken = |(step, event)| from.after(event, LATER).ok().map(|next| (step, next.stage()));
            events().into_iter().filter_map(taken).collect()
        };
        assert_eq!(takes(&steady()), [(Step::Introduce, Stage::Introduced), (Step::Intermediate, Stage::Steady)]);
        assert_eq!(takes(&introduced), [(Step::Activate, Stage::Activated), (Step::Abandon, Stage::Steady)]);
        assert_eq!(takes(&activated), [(Step::Retire, Stage::Steady)]);
        for from in [steady(), introduced, activated] {
            for (step, event) in events() {
                match from.after(event, LATER) {
                    Ok(next) => assert_eq!(next.sequence, from.sequence + 1, "{step:?}"),
                    Err(refusal) => {
                        assert_eq!(refusal.reason, Reason::Conflict, "{step:?}");
                        assert!(!refusal.hint.is_empty(), "{step:?}");
                    }
                }
            }
            assert!(from.after(events()[from.next_step() as usize].1.clone(), LATER).is_ok(), "the next step is taken");
        }
    }

    #[test]
    fn the_root_that_signs_is_trusted_at_every_stage_and_by_the_stage_before() {
        let mut before = steady();
        for event in [Event::Introduce(b"second".to_vec()), Event::Activate(vec!["0a".to_owned()]), Event::Retire] {
            let after = before.after(event, LATER).expect("step");
            let trusted = |record: &TrustRoots, sha256| record.roots.iter().any(|root| root.sha256.0 == sha256);
            assert!(trusted(&after, *after.signing()), "what signs is trusted");
            assert!(
                trusted(&before, *after.signing()) || after.stage() == Stage::Introduced,
                "and was before it signed"
            );
            assert!(
                trusted(&after, *before.signing()) || after.stage() == Stage::Steady,
                "and stays until it is retired"
            );
            before = after;
        }
        assert_eq!(before.signing(), &object_digest(b"second"));
        assert_eq!(before.retired().collect::<Vec<_>>(), [&object_digest(b"first")]);
        assert_eq!(before.renew_before(), LATER);
        assert!(before.is_untrusted(&[0x0a]) && !before.is_superseded(&[0x0a]), "what the retired root signed is over");
    }

    #[test]
    fn giving_up_an_introduced_root_leaves_the_first_and_forgets_the_second() {
        let introduced = steady().after(Event::Introduce(b"second".to_vec()), NOW).expect("introduced");
        let back = introduced.after(Event::Abandon, LATER).expect("back");
        assert_eq!((back.signing(), back.roots().len()), (&object_digest(b"first"), 1));
        assert_eq!(back.retired().collect::<Vec<_>>(), [&object_digest(b"second")]);
        assert_eq!(back.renew_before(), UnixTime(0), "nothing is renewed for it");
    }
}
