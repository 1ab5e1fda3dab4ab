//! Keeps this node's certificates in date, and is the one writer of its identity files.
//!
//! Each instance of this host has a tunnel certificate of its own. It is asked for as soon as there is a link and no usable one,
//! and renewed at half its life with two new keys; the one before it is kept beside it until it ends. What fails for one
//! instance holds up no other. Where plain devices talk to this node the tunnel's key stays,
//! for they have it in their configuration. A failed try is repeated with growing waits, and at once when the link comes
//! back.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};
use warren_proto::certificate::{CLOCK_SKEW, Capabilities, TunnelCertificate};
use warren_proto::reason::{Reason, Refusal};
use warren_proto::{TrustBundle, UnixTime, WorkloadName};

use super::key_store::{Instance, KeyStore, NodeIdentity, Place, StoredBundle, TunnelIdentity, TunnelKey};
use super::rotator::{Validity, retry_after};
use crate::clock::Clock;
use crate::config::SuiteChoice;
use crate::control_client::issue::{Issued, TunnelRequest, node_validity};
use crate::control_client::session::{LinkState, Wanted};
use crate::mesh::MeshHandle;
use crate::placement::{Placement, Rest};
use crate::state_dir::{StateDir, StateError};
use crate::stop::Stop;

/// At least so long between two looks at what is due.
pub(super) const SHORTEST: Duration = Duration::from_secs(1);
/// Never longer, so that a clock that was set, or a machine that slept, is noticed: a short-lived certificate has not much
/// more time than this after the moment it is due.
pub(super) const LONGEST: Duration = Duration::from_secs(5);
/// So long a node that has an instance waits for the first certificate of another before it says that it is ready.
const PATIENCE: Duration = Duration::from_secs(15);

/// What keeps certificates in date.
#[derive(Debug)]
pub struct Renewal {
    /// Where identity files are.
    pub state: Arc<StateDir>,
    /// What this node's tunnel certificates are to say of it.
    pub capabilities: Capabilities,
    /// The instances that this host is to have.
    pub slots: Vec<Slot>,
    /// Told how far they are.
    pub standing: watch::Sender<Standing>,
    /// Who this node is.
    pub identity: watch::Sender<Arc<NodeIdentity>>,
    /// Asks over the control link.
    pub wanted: mpsc::Sender<Wanted>,
    /// How the link is doing.
    pub link: watch::Receiver<LinkState>,
    /// Told of new certificates.
    pub mesh: MeshHandle,
    /// The time.
    pub clock: Arc<Clock>,
    /// Ends it.
    pub stop: Stop,
}

/// An instance that this host is to have.
#[derive(Debug)]
pub struct Slot {
    /// Where it is kept.
    place: Place,
    /// Whose copy it is; `None` for the only identity granted, whichever that is.
    workload: Option<WorkloadName>,
    /// What it is now.
    held: Option<Instance>,
    due: Due,
    /// Why the last try failed.
    refusal: Option<Refusal>,
}

impl Slot {
    /// One for each instance that `placement` means, the rest first, with what is `stored` of it. `granted` are the
    /// identities that enrolment told.
    #[must_use]
    pub fn of(placement: &Placement, granted: &[WorkloadName], stored: &[(Place, Instance)]) -> Vec<Self> {
        let rest = match placement.rest() {
            Rest::Workload(workload) => Some(Some(workload.clone())),
            Rest::OnlyGranted => Some(None),
            Rest::Nobody => None,
        };
        let rest = rest.map(|workload| (Place::Rest, workload));
        let tied = placement.tied().map(|workload| (Place::Tied(workload.clone()), Some(workload.clone())));
        let slot = |(place, workload): (Place, Option<WorkloadName>)| {
            let wanted = workload.as_ref().or(match granted {
                [only] => Some(only),
                _ => None,
            });
            // One of another workload is not this one's: it gets a new one. One that the configuration has moved is.
            let its = |(_, instance): &&(Place, Instance)| wanted.is_none_or(|wanted| instance.workload == *wanted);
            let mut candidates: Vec<_> = stored.iter().filter(its).collect();
            candidates.sort_by_key(|(kept, _)| *kept != place);
            let held = candidates.first().map(|(_, instance)| instance.clone());
            Self { place, workload, held, due: Due::now(), refusal: None }
        };
        rest.into_iter().chain(tied).map(slot).collect()
    }

    /// What it is now.
    #[must_use]
    pub const fn held(&self) -> Option<&Instance> {
        self.held.as_ref()
    }

    /// Whose copy it is, as far as that is known.
    #[must_use]
    pub fn workload(&self) -> Option<&WorkloadName> {
        self.workload.as_ref().or(self.held.as_ref().map(|held| &held.workload))
    }
}

/// How far this node's instances are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Standing {
    /// Each has been asked for once, or there is nobody to ask: who waits for them need wait no longer.
    pub settled: bool,
    /// Those without a certificate, with why the last try failed.
    pub missing: Vec<(Option<WorkloadName>, Option<Refusal>)>,
}

/// One certificate's next try.
#[derive(Debug)]
pub(super) struct Due {
    at: UnixTime,
    failures: u32,
    /// When the present certificate was issued; `None` without one.
    issued: Option<UnixTime>,
    /// The word to renew early that was taken already.
    hastened: UnixTime,
}

impl Due {
    pub(super) fn now() -> Self {
        Self { at: UnixTime(0), failures: 0, issued: None, hastened: UnixTime(0) }
    }

    fn at(validity: Validity) -> Self {
        let issued = validity.not_before.plus(CLOCK_SKEW);
        Self { at: validity.renew_at(rand::random()), failures: 0, issued: Some(issued), hastened: UnixTime(0) }
    }

    /// What has taken its place. The word that it was renewed at has been followed, even if the new one was issued within the
    /// same second.
    pub(super) fn renewed(&self, validity: Validity) -> Self {
        Self { hastened: self.hastened, ..Self::at(validity) }
    }

    /// The coordinator says that whatever was issued until `before` is to be renewed now. All nodes hear it at once, so
    /// each waits a part of `spread`, which `random` in `0.0..1.0` draws.
    pub(super) fn hasten(&mut self, before: UnixTime, spread: Duration, random: f64, now: UnixTime) {
        if self.hastened >= before || self.issued.is_none_or(|issued| issued > before) {
            return;
        }
        self.hastened = before;
        self.at = self.at.min(now.plus(spread.mul_f64(random.clamp(0.0, 1.0))));
    }

    pub(super) fn failed(&mut self, now: UnixTime) {
        self.at = now.plus(retry_after(self.failures, rand::random()));
        self.failures = self.failures.saturating_add(1);
    }

    /// When to try.
    pub(super) fn when(&self) -> UnixTime {
        self.at
    }

    /// Whatever the last tries failed for has changed.
    pub(super) fn try_again_now(&mut self) {
        if self.failures > 0 {
            self.at = UnixTime(0);
        }
    }

    /// Waits no longer than `most` after a failed try: somebody asks.
    pub(super) fn try_again_within(&mut self, now: UnixTime, most: Duration) {
        if self.failures > 0 {
            self.at = self.at.min(now.plus(most));
        }
    }
}

impl Renewal {
    /// Works until told to stop.
    pub async fn run(mut self) {
        for slot in &mut self.slots {
            let held = slot.held.as_ref().filter(|instance| names(instance, self.capabilities)).and_then(newest);
            slot.due = held.map_or_else(Due::now, Due::at);
        }
        // A node that was this far before works with the coordinator away: whoever waits for a new instance waits a while.
        let worked_before = self.slots.iter().any(|slot| slot.held.is_some());
        let patience = tokio::time::sleep(PATIENCE);
        tokio::pin!(patience);
        let mut settled = false;
        self.settle_files().await;
        let chain = self.identity.borrow().chain.clone();
        let mut node = node_validity(&chain)
            .map_or_else(|_| Due::now(), |(not_before, not_after)| Due::at(Validity { not_before, not_after }));
        let mut bundle = self.mesh.bundle();
        let stop = self.stop.clone();
        loop {
            let now = self.clock.now().unix;
            let roots = bundle.borrow_and_update().clone();
            // Again with every round: one that could not be written is written as soon as it can be.
            self.keep_bundle(&roots).await;
            let spread = match &*self.link.borrow_and_update() {
                LinkState::Up { spread, .. } => Some(*spread),
                LinkState::Down { .. } => None,
            };
            let up = spread.is_some();
            for due in self.slots.iter_mut().map(|slot| &mut slot.due).chain([&mut node]) {
                due.hasten(roots.renew_before(), spread.unwrap_or_default(), rand::random(), now);
            }
            for number in 0..self.slots.len() {
                if up && self.slots.get(number).is_some_and(|slot| slot.due.at <= now) {
                    self.renew_slot(number, now).await;
                }
            }
            settled |= self.slots.iter().all(|slot| slot.held.is_some() || slot.refusal.is_some());
            self.tell(settled);
            if up && node.at <= now {
                match self.renew_node().await {
                    Ok(validity) => node = node.renewed(validity),
                    Err(refusal) => {
                        warn!(
                            reason = refusal.reason.name(),
                            next = refusal.hint,
                            "node certificate not renewed: {refusal}"
                        );
                        node.failed(now);
                    }
                }
            }
            let due = self.slots.iter().map(|slot| slot.due.at).chain([node.at]).min().unwrap_or(node.at);
            let next = if up { now.until(due).clamp(SHORTEST, LONGEST) } else { LONGEST };
            tokio::select! {
                () = tokio::time::sleep(next) => {}
                () = &mut patience, if worked_before && !settled => settled = true,
                changed = self.link.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // A link that came back is a reason to try again at once.
                    for due in self.slots.iter_mut().map(|slot| &mut slot.due).chain([&mut node]) {
                        due.try_again_now();
                    }
                }
                changed = bundle.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = stop.stopped() => return,
            }
        }
    }

    /// Asks for a certificate of one instance; what comes of it stands in its slot.
    async fn renew_slot(&mut self, number: usize, now: UnixTime) {
        let outcome = self.renew_tunnel(number).await;
        let Some(slot) = self.slots.get_mut(number) else { return };
        match outcome {
            Ok(validity) => {
                slot.due = slot.due.renewed(validity);
                slot.refusal = None;
                self.settle_files().await;
            }
            Err(refusal) => {
                let workload = slot.workload().map(ToString::to_string);
                warn!(
                    workload,
                    reason = refusal.reason.name(),
                    next = refusal.hint,
                    "tunnel certificate not issued: {refusal}"
                );
                slot.due.failed(now);
                slot.refusal = Some(refusal);
            }
        }
    }

    async fn renew_tunnel(&mut self, number: usize) -> Result<Validity, Refusal> {
        let gone = || Refusal::new(Reason::Internal, "there is no such instance");
        let slot = self.slots.get(number).ok_or_else(gone)?;
        let (place, workload) = (slot.place.clone(), self.choose_workload(slot)?);
        let mut held = slot.held.clone();
        if let Some(other) = held.take_if(|instance| instance.workload != workload) {
            warn!(was = %other.workload, is = %workload, "this node runs another workload now: it gets a new instance");
        }
        let issued = match self.ask_tunnel(&workload, held.as_ref()).await {
            // A host that was away for longer than its certificates and a day: the coordinator has forgotten its instance.
            Err(refusal) if refusal.reason == Reason::NotFound && held.take().is_some() => {
                warn!(%workload, %refusal, "the coordinator knows this node's instance no more: it gets a new one");
                self.ask_tunnel(&workload, None).await?
            }
            answer => answer?,
        };
        let now = self.clock.now().unix;
        let earlier = held.map(|instance| instance.identities).unwrap_or_default();
        let still_good =
            |identity: &TunnelIdentity| validity_of(identity).is_some_and(|validity| validity.not_after > now);
        let identities =
            std::iter::once(issued.identity).chain(earlier.into_iter().filter(still_good)).take(2).collect();
        let instance = Instance { id: issued.instance, workload, addresses: issued.addresses, identities };
        let validity = newest(&instance)
            .ok_or_else(|| Refusal::new(Reason::CertificateMalformed, "the certificate issued does not parse"))?;
        // First on disk, then in use: a key that peers learn of must survive a restart.
        let stored = instance.clone();
        self.keep(move |store| store.save_instance(&place, &stored)).await?;
        info!(workload = %instance.workload, instance = %instance.id, until = %validity.not_after, "tunnel certificate issued");
        self.slots.get_mut(number).ok_or_else(gone)?.held = Some(instance.clone());
        self.mesh.instance(instance).await;
        Ok(validity)
    }

    async fn ask_tunnel(&self, workload: &WorkloadName, held: Option<&Instance>) -> Result<Issued, Refusal> {
        let request = TunnelRequest {
            workload: workload.clone(),
            instance: held.map(|instance| instance.id),
            capabilities: self.capabilities,
            keep: self.key_of_devices(held),
        };
        let (answer, receive) = oneshot::channel();
        self.ask(Wanted::Tunnel(request, answer), receive).await
    }

    /// The tunnel key that plain devices have in their configuration: with a new one they would be cut off.
    fn key_of_devices(&self, held: Option<&Instance>) -> Option<TunnelKey> {
        let newest = held?.identities.first()?;
        self.mesh.serves_devices(&held?.workload, self.clock.now().unix).then(|| newest.tunnel.clone())
    }

    /// Puts what the configuration has moved where it belongs, and removes the keys of instances that it means no more: those
    /// only once each that it means is there, so that a name that was misspelt costs no other instance its address.
    async fn settle_files(&self) {
        let complete = self.slots.iter().all(|slot| slot.held.is_some());
        let held: Vec<_> =
            self.slots.iter().filter_map(|slot| Some((slot.place.clone(), slot.held.clone()?))).collect();
        let settled = self.keep(move |store| {
            let stored = store.instances()?;
            // The rest stands first and is written last: what it takes the place of may have moved to another.
            for (place, instance) in held.iter().rev() {
                if !stored.iter().any(|(kept, of)| kept == place && of.workload == instance.workload) {
                    store.save_instance(place, instance)?;
                }
            }
            let places: Vec<_> = held.into_iter().map(|(place, _)| place).collect();
            for place in if complete { store.release_instances(&places)? } else { Vec::new() } {
                info!(?place, "the keys of an instance that the configuration means no more are removed");
            }
            Ok(())
        });
        if let Err(failure) = settled.await {
            error!(next = failure.hint, "instances are not stored as they are: {failure}");
        }
    }

    /// Tells how far the instances are.
    fn tell(&self, settled: bool) {
        let missing = self.slots.iter().filter(|slot| slot.held.is_none());
        let missing = missing.map(|slot| (slot.workload.clone(), slot.refusal.clone())).collect();
        let standing = Standing { settled, missing };
        self.standing.send_if_modified(|told| {
            let changed = *told != standing;
            *told = standing;
            changed
        });
    }

    async fn renew_node(&mut self) -> Result<Validity, Refusal> {
        let (answer, receive) = oneshot::channel();
        let (key, chain) = self.ask(Wanted::Node(answer), receive).await?;
        let (not_before, not_after) = node_validity(&chain)?;
        let identity = Arc::new(NodeIdentity { key, chain, ..NodeIdentity::clone(&self.identity.borrow()) });
        let stored = identity.clone();
        self.keep(move |store| store.save_node(&stored)).await?;
        info!(until = %not_after, "node certificate renewed");
        self.identity.send_replace(identity);
        Ok(Validity { not_before, not_after })
    }

    /// The roots have changed: the next start must trust the new ones.
    ///
    /// Only then is the update acknowledged that brought them: what this node says that it trusts, it trusts after a crash.
    async fn keep_bundle(&mut self, bundle: &TrustBundle) {
        let held = self.identity.borrow().clone();
        let stored = StoredBundle::from(bundle);
        if held.bundle == stored {
            return self.mesh.bundle_kept(bundle.sequence()).await;
        }
        let identity = Arc::new(NodeIdentity { bundle: stored, ..NodeIdentity::clone(&held) });
        let stored = identity.clone();
        match self.keep(move |store| store.save_node(&stored)).await {
            Ok(()) => {
                info!(sequence = bundle.sequence(), "trust bundle stored");
                self.identity.send_replace(identity);
                self.mesh.bundle_kept(bundle.sequence()).await;
            }
            Err(failure) => error!(next = failure.hint, "the trust bundle is not stored: {failure}"),
        }
    }

    /// Writes to the key store where no other task waits for the disk.
    async fn keep(
        &self,
        write: impl FnOnce(KeyStore<'_>) -> Result<(), StateError> + Send + 'static,
    ) -> Result<(), Refusal> {
        let state = self.state.clone();
        let written = tokio::task::spawn_blocking(move || write(KeyStore::new(&state))).await;
        let crashed =
            |error| Refusal::new(Reason::Internal, format!("writing to the state directory crashed: {error}"));
        Ok(written.map_err(crashed)??)
    }

    fn choose_workload(&self, slot: &Slot) -> Result<WorkloadName, Refusal> {
        if let Some(workload) = &slot.workload {
            return Ok(workload.clone());
        }
        // What the coordinator says now is newer than what enrolment said.
        let told = match &*self.link.borrow() {
            LinkState::Up { workloads, .. } => workloads.iter().filter_map(|name| name.parse().ok()).collect(),
            LinkState::Down { .. } => Vec::new(),
        };
        let may_hold = if told.is_empty() { self.identity.borrow().workloads.clone() } else { told };
        choose(may_hold)
    }

    async fn ask<T>(&self, wanted: Wanted, answer: oneshot::Receiver<Result<T, Refusal>>) -> Result<T, Refusal> {
        let gone = || Refusal::new(Reason::CoordinatorUnreachable, "the control link was lost");
        self.wanted.send(wanted).await.map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }
}

/// The only identity a node may hold; more than one needs naming.
fn choose(mut may_hold: Vec<WorkloadName>) -> Result<WorkloadName, Refusal> {
    match (may_hold.pop(), may_hold.is_empty()) {
        (Some(only), true) => Ok(only),
        (Some(_), false) => Err(Refusal::new(
            Reason::InvalidField,
            "workload: this node may hold several identities and none is configured",
        )
        .hint("set workload in warren.yaml, or WARREN_WORKLOAD, to one of them")),
        (None, _) => Err(Refusal::new(Reason::IdentityNotAllowed, "this node may hold no identity yet")
            .hint("enrol this host with a token for it: warren token create --for <namespace>/<name>")),
    }
}

/// What this host's processor and this build can do, less what the configuration leaves unused.
#[must_use]
pub fn capabilities(suite: SuiteChoice) -> Capabilities {
    #[cfg(target_arch = "x86_64")]
    let aes = std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    let aes = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let aes = false;
    match suite {
        SuiteChoice::Auto if aes => Capabilities::ML_KEM.with(Capabilities::AES),
        SuiteChoice::Auto | SuiteChoice::ChaCha20Poly1305 => Capabilities::ML_KEM,
    }
}

/// Whether the newest certificate says `capabilities` and nothing else: a configuration or a processor that changed
/// while the node was down wants another.
fn names(instance: &Instance, capabilities: Capabilities) -> bool {
    let leaf = instance.identities.first().and_then(|identity| identity.chain.0.first());
    leaf.and_then(|der| TunnelCertificate::parse(der).ok())
        .is_some_and(|certificate| certificate.binding().capabilities == capabilities)
}

fn validity_of(identity: &TunnelIdentity) -> Option<Validity> {
    let certificate = TunnelCertificate::parse(identity.chain.0.first()?).ok()?;
    Some(Validity { not_before: certificate.leaf().not_before(), not_after: certificate.leaf().not_after() })
}

fn newest(instance: &Instance) -> Option<Validity> {
    instance.identities.first().and_then(validity_of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_that_is_to_be_replaced_is_renewed_within_the_spread_and_a_younger_one_is_left() {
        let (now, spread) = (UnixTime(10_000), Duration::from_secs(60));
        let issued_at = |issued: u64| {
            let not_before = UnixTime(issued).minus(CLOCK_SKEW);
            Due::at(Validity { not_before, not_after: UnixTime(issued + 86_400) })
        };
        let mut old = issued_at(9_000);
        old.hasten(UnixTime(9_000), spread, 0.5, now);
        assert_eq!(old.at, UnixTime(10_030));
        old.at = UnixTime(20_000);
        old.hasten(UnixTime(9_000), spread, 0.5, now);
        assert_eq!(old.at, UnixTime(20_000), "a word counts once: a failed try keeps its growing wait");
        old.hasten(UnixTime(9_500), spread, 0.0, now);
        assert_eq!(old.at, now, "a later word counts again");
        let mut young = issued_at(9_001);
        let due = young.at;
        young.hasten(UnixTime(9_000), spread, 0.5, now);
        assert_eq!(young.at, due);
        let validity = |issued: u64| Validity {
            not_before: UnixTime(issued).minus(CLOCK_SKEW),
            not_after: UnixTime(issued + 86_400),
        };
        let mut renewed = old.renewed(validity(9_500));
        let due = renewed.at;
        renewed.hasten(UnixTime(9_500), spread, 0.0, now);
        assert_eq!(renewed.at, due, "what was issued at that word, within its second, is not renewed again");
        let mut none = Due::now();
        none.hasten(UnixTime(9_000), spread, 0.5, now);
        assert_eq!(none.at, UnixTime(0), "one that is wanted at once is not put off");
    }

    #[test]
    fn a_node_told_to_use_chacha_does_not_claim_aes() {
        let claimed = capabilities(SuiteChoice::ChaCha20Poly1305);
        assert!(claimed.contains(Capabilities::ML_KEM) && !claimed.contains(Capabilities::AES), "{claimed:?}");
        assert!(capabilities(SuiteChoice::Auto).contains(claimed));
    }

    /// Each slot's place and workload, and the place of what it holds.
    fn slots(placement: &Placement, stored: &[(Place, Instance)]) -> Vec<(Place, Option<WorkloadName>, bool)> {
        let slots = Slot::of(placement, &[], stored);
        slots.into_iter().map(|slot| (slot.place, slot.workload, slot.held.is_some())).collect()
    }

    #[test]
    fn what_is_stored_is_found_again_by_its_workload_also_where_the_configuration_has_moved_it() {
        let name = |text: &str| text.parse::<WorkloadName>().expect("name");
        let entries = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("entry")).collect::<Vec<_>>();
        let stored = |place: Place, workload: &str| {
            let addresses = warren_proto::OverlayAddresses { v6: "fd00::1".parse().expect("v6"), v4: None };
            let id = warren_proto::InstanceId::from_bytes([1; 16]);
            (place, Instance { id, workload: name(workload), addresses, identities: Vec::new() })
        };
        let tied = |text: &str| Place::Tied(name(text));
        let all = [stored(Place::Rest, "shop/a"), stored(tied("shop/b"), "shop/b"), stored(tied("shop/c"), "shop/c")];
        let as_it_was = Placement::of(Some(&name("shop/a")), &entries(&["shop/b uid=1", "shop/c uid=2"]));
        let expected = [
            (Place::Rest, Some(name("shop/a")), true),
            (tied("shop/b"), Some(name("shop/b")), true),
            (tied("shop/c"), Some(name("shop/c")), true),
        ];
        assert_eq!(slots(&as_it_was, &all), expected);
        let moved = Placement::of(Some(&name("shop/b")), &entries(&["shop/a uid=1", "shop/new uid=2"]));
        let expected = [
            (Place::Rest, Some(name("shop/b")), true),
            (tied("shop/a"), Some(name("shop/a")), true),
            (tied("shop/new"), Some(name("shop/new")), false),
        ];
        assert_eq!(slots(&moved, &all), expected);
        let nobody = Placement::of(None, &entries(&["shop/c uid=2"]));
        assert_eq!(slots(&nobody, &all), [(tied("shop/c"), Some(name("shop/c")), true)]);
    }

    #[test]
    fn the_only_identity_is_taken_and_several_must_be_named() {
        let name = |text: &str| text.parse::<WorkloadName>().expect("name");
        assert_eq!(choose(vec![name("a/b")]), Ok(name("a/b")));
        assert_eq!(choose(vec![name("a/b"), name("a/c")]).expect_err("several").reason, Reason::InvalidField);
        assert_eq!(choose(Vec::new()).expect_err("none").reason, Reason::IdentityNotAllowed);
    }
}
