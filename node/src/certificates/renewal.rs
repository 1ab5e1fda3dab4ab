//! Keeps this node's certificates in date, and is the one writer of its identity files.
//!
//! A tunnel certificate is asked for as soon as there is a link and no usable one, and renewed at half its life with two
//! new keys; the one before it is kept beside it until it ends. Where plain devices talk to this node the tunnel's key stays,
//! for they have it in their configuration. A failed try is repeated with growing waits, and at once when the link comes
//! back.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};
use warren_proto::certificate::{CLOCK_SKEW, Capabilities, TunnelCertificate};
use warren_proto::reason::{Reason, Refusal};
use warren_proto::{TrustBundle, UnixTime, WorkloadName};

use super::key_store::{Instance, KeyStore, NodeIdentity, StoredBundle, TunnelIdentity, TunnelKey};
use super::rotator::{Validity, retry_after};
use crate::clock::Clock;
use crate::config::SuiteChoice;
use crate::control_client::issue::{Issued, TunnelRequest, node_validity};
use crate::control_client::session::{LinkState, Wanted};
use crate::mesh::MeshHandle;
use crate::state_dir::{StateDir, StateError};
use crate::stop::Stop;

/// At least so long between two looks at what is due.
pub(super) const SHORTEST: Duration = Duration::from_secs(1);
/// Never longer, so that a clock that was set is noticed.
pub(super) const LONGEST: Duration = Duration::from_secs(60);

/// What keeps certificates in date.
#[derive(Debug)]
pub struct Renewal {
    /// Where identity files are.
    pub state: Arc<StateDir>,
    /// The identity asked for in the configuration.
    pub workload: Option<WorkloadName>,
    /// What this node's tunnel certificates are to say of it.
    pub capabilities: Capabilities,
    /// This namespace's instance, from disk.
    pub instance: Option<Instance>,
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
        let held = self.instance.as_ref().filter(|instance| names(instance, self.capabilities)).and_then(newest);
        let mut tunnel = held.map_or_else(Due::now, Due::at);
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
            for due in [&mut tunnel, &mut node] {
                due.hasten(roots.renew_before(), spread.unwrap_or_default(), rand::random(), now);
            }
            if up && tunnel.at <= now {
                match self.renew_tunnel().await {
                    Ok(validity) => tunnel = tunnel.renewed(validity),
                    Err(refusal) => {
                        warn!(
                            reason = refusal.reason.name(),
                            next = refusal.hint,
                            "tunnel certificate not issued: {refusal}"
                        );
                        tunnel.failed(now);
                    }
                }
            }
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
            let next = if up { now.until(tunnel.at.min(node.at)).clamp(SHORTEST, LONGEST) } else { LONGEST };
            tokio::select! {
                () = tokio::time::sleep(next) => {}
                changed = self.link.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // A link that came back is a reason to try again at once.
                    for due in [&mut tunnel, &mut node] {
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

    async fn renew_tunnel(&mut self) -> Result<Validity, Refusal> {
        let workload = self.choose_workload()?;
        let held = self.instance.take_if(|instance| instance.workload != workload);
        if let Some(other) = held {
            warn!(was = %other.workload, is = %workload, "this node runs another workload now: it gets a new instance");
        }
        let issued = match self.ask_tunnel(&workload).await {
            // A host that was away for longer than its certificates and a day: the coordinator has forgotten its instance.
            Err(refusal) if refusal.reason == Reason::NotFound && self.instance.take().is_some() => {
                warn!(%refusal, "the coordinator knows this node's instance no more: it gets a new one");
                self.ask_tunnel(&workload).await?
            }
            answer => answer?,
        };
        let now = self.clock.now().unix;
        let earlier = self.instance.as_ref().map(|instance| instance.identities.clone()).unwrap_or_default();
        let still_good =
            |identity: &TunnelIdentity| validity_of(identity).is_some_and(|validity| validity.not_after > now);
        let identities =
            std::iter::once(issued.identity).chain(earlier.into_iter().filter(still_good)).take(2).collect();
        let instance = Instance { id: issued.instance, workload, addresses: issued.addresses, identities };
        let validity = newest(&instance)
            .ok_or_else(|| Refusal::new(Reason::CertificateMalformed, "the certificate issued does not parse"))?;
        // First on disk, then in use: a key that peers learn of must survive a restart.
        let stored = instance.clone();
        self.keep(move |store| store.save_instance(&stored)).await?;
        info!(workload = %instance.workload, instance = %instance.id, until = %validity.not_after, "tunnel certificate issued");
        self.instance = Some(instance.clone());
        self.mesh.instance(instance).await;
        Ok(validity)
    }

    async fn ask_tunnel(&mut self, workload: &WorkloadName) -> Result<Issued, Refusal> {
        let request = TunnelRequest {
            workload: workload.clone(),
            instance: self.instance.as_ref().map(|instance| instance.id),
            capabilities: self.capabilities,
            keep: self.key_of_devices(),
        };
        let (answer, receive) = oneshot::channel();
        self.ask(Wanted::Tunnel(request, answer), receive).await
    }

    /// The tunnel key that plain devices have in their configuration: with a new one they would be cut off.
    fn key_of_devices(&self) -> Option<TunnelKey> {
        let newest = self.instance.as_ref()?.identities.first()?;
        self.mesh.serves_devices().then(|| newest.tunnel.clone())
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

    fn choose_workload(&self) -> Result<WorkloadName, Refusal> {
        if let Some(workload) = &self.workload {
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

    #[test]
    fn the_only_identity_is_taken_and_several_must_be_named() {
        let name = |text: &str| text.parse::<WorkloadName>().expect("name");
        assert_eq!(choose(vec![name("a/b")]), Ok(name("a/b")));
        assert_eq!(choose(vec![name("a/b"), name("a/c")]).expect_err("several").reason, Reason::InvalidField);
        assert_eq!(choose(Vec::new()).expect_err("none").reason, Reason::IdentityNotAllowed);
    }
}
