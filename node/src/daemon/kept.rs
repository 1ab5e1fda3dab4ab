//! The host's network state, kept as this node last knew it had to be: whose each address is, and what the instances of this
//! host may open towards each other.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::task::spawn_blocking;
use tracing::{info, warn};
use warren_proto::reason::{Reason, Refusal};
use warren_proto::{OverlayAddresses, WorkloadName};

use crate::host::{Allows, Changes, Desired, Host, HostError, HostEvent, HostInstance, Keeper, LocalOpening, Refused};
use crate::mesh_view::{LocalOpenings, MeshView};
use crate::placement::Placement;

/// The addresses that each instance has or last had.
pub(super) type Addresses = BTreeMap<WorkloadName, OverlayAddresses>;

/// A host that is closed for the overlay as it last had to be, with nobody to keep it so.
pub(super) struct Left {
    pub(super) host: Host,
    pub(super) desired: Desired,
    pub(super) addresses: Addresses,
}

/// The host's network state, kept as this node last knew it had to be.
pub(super) struct Kept {
    keeper: Keeper,
    pub(super) events: mpsc::UnboundedReceiver<HostEvent>,
    desired: Desired,
    placement: Arc<Placement>,
    /// The addresses that each instance has or last had.
    addresses: Addresses,
}

impl Kept {
    /// Takes care of a host that is as `Left` says, or closed.
    pub(super) async fn start(left: Left, placement: Arc<Placement>) -> Result<Self, Refusal> {
        let Left { host, desired, addresses } = left;
        let (tell, events) = mpsc::unbounded_channel();
        let first = desired.clone();
        let (keeper, changes) = blocking(move || Keeper::start(host, first, move |event| drop(tell.send(event))))
            .await?
            .map_err(not_taken)?;
        tell_changes(&changes);
        Ok(Self { keeper, events, desired, placement, addresses })
    }

    /// Keeps the host closed until this node has an instance, then gives it the addresses.
    pub(super) async fn until_known(
        &mut self,
        view: &mut watch::Receiver<Option<Arc<MeshView>>>,
    ) -> Result<(), Refusal> {
        loop {
            let known = view.borrow_and_update().clone();
            if let Some(known) = known {
                self.follow(&known).await?;
                if !known.own.is_empty() {
                    return Ok(());
                }
            }
            tokio::select! {
                Some(event) = self.events.recv() => handle_host(event)?,
                changed = view.changed() => changed.map_err(|_| stopping())?,
            }
        }
    }

    /// Brings the host to what `view` says. An instance whose certificate has ended keeps its addresses: programs are
    /// bound to them, and nothing passes.
    pub(super) async fn follow(&mut self, view: &MeshView) -> Result<(), Refusal> {
        self.addresses.extend(view.own.iter().map(|own| (own.workload.clone(), own.addresses)));
        let (instances, openings) = inhabitants(&self.placement, &self.addresses, &view.openings);
        let overlay = view.knowledge.manifest.overlay;
        let desired = Desired { overlay, instances, openings, ..self.desired.clone() };
        if desired != self.desired {
            let ordered = self.keeper.order(desired.clone());
            let changes = blocking(move || ordered.wait()).await?.map_err(not_taken)?;
            tell_changes(&changes);
            self.desired = desired;
        }
        Ok(())
    }

    /// Asks how many packets were refused because their program is not the instance's ([`Host::refused`]).
    pub(super) fn refused(&self) -> Refused {
        self.keeper.refused()
    }

    pub(super) async fn stop(self) -> Result<(), Refusal> {
        let Self { keeper, .. } = self;
        blocking(move || keeper.stop()).await?.map_err(still_there)
    }

    /// Keeps it no longer, and changes nothing.
    pub(super) async fn release(self) -> Result<Left, Refusal> {
        let Self { keeper, desired, addresses, .. } = self;
        let host = blocking(move || keeper.release()).await?.map_err(not_taken)?;
        Ok(Left { host, desired, addresses })
    }
}

/// Whose each address of this host is, and what the instances may open towards each other.
fn inhabitants(
    placement: &Placement,
    addresses: &Addresses,
    between: &[LocalOpenings],
) -> (Vec<HostInstance>, Vec<LocalOpening>) {
    let mut placed: Vec<_> = addresses
        .iter()
        .filter_map(|(workload, addresses)| {
            let members = placement.members(workload)?;
            Some((workload, HostInstance { addresses: *addresses, members }))
        })
        .collect();
    placed.sort_by_key(|(workload, _)| placement.position(workload));
    let place = |workload: &WorkloadName| placed.iter().position(|(placed, _)| *placed == workload);
    let mut openings = Vec::new();
    for opening in between {
        let (Some(from), Some(to)) = (place(&opening.from), place(&opening.to)) else { continue };
        let tcp = opening.allows.tcp.iter().cloned().map(Allows::Tcp);
        let udp = opening.allows.udp.iter().cloned().map(Allows::Udp);
        let echo = opening.allows.echo.then_some(Allows::Echo);
        openings.extend(tcp.chain(udp).chain(echo).map(|allows| LocalOpening { from, to, allows }));
    }
    (placed.into_iter().map(|(_, instance)| instance).collect(), openings)
}

fn tell_changes(changes: &Changes) {
    for change in &changes.made {
        info!("host: {change}");
    }
    for note in &changes.notes {
        warn!("host: {note}");
    }
}

pub(super) fn still_there(error: HostError) -> Refusal {
    Refusal::new(Reason::Internal, format!("the host keeps something of the overlay: {error}"))
}

pub(super) fn not_taken(error: HostError) -> Refusal {
    Refusal::new(Reason::Internal, format!("the host does not take the overlay: {error}"))
}

pub(super) fn stopping() -> Refusal {
    Refusal::new(Reason::ShuttingDown, "the node is stopping")
}

pub(super) fn handle_host(event: HostEvent) -> Result<(), Refusal> {
    match event {
        HostEvent::Repaired(changes) => {
            warn!("something changed the host's overlay; repaired: {}", changes.join("; "));
            Ok(())
        }
        HostEvent::Followed => {
            info!("a workload's unit or cgroup came, went or was made anew; its tie follows");
            Ok(())
        }
        HostEvent::Failed(error) => Err(Refusal::new(Reason::Internal, format!("the host's overlay is lost: {error}"))),
    }
}

pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
    spawn_blocking(work)
        .await
        .map_err(|error| Refusal::new(Reason::Internal, format!("a part of the data plane crashed: {error}")))
}

#[cfg(test)]
mod tests {
    use warren_proto::policy::Openings;

    use super::*;
    use crate::selectors::Members;

    fn name(text: &str) -> WorkloadName {
        text.parse().expect("name")
    }

    #[test]
    fn instances_stand_in_the_configurations_order_the_rest_last_and_openings_name_their_places() {
        let entries: Vec<_> =
            ["shop/web uid=1", "bank/api uid=2"].iter().map(|entry| entry.parse().expect("entry")).collect();
        let placement = Placement::of(Some(&name("a/host")), &entries);
        let address = |last: u16| OverlayAddresses { v6: [0xfd00, 0, 0, 0, 0, 0, 0, last].into(), v4: None };
        let addresses = Addresses::from([
            (name("a/host"), address(1)),
            (name("bank/api"), address(2)),
            (name("shop/web"), address(3)),
        ]);
        let opening = |from: &str, to: &str, allows| LocalOpenings { from: name(from), to: name(to), allows };
        let between = [
            opening("shop/web", "bank/api", Openings { tcp: vec![80..=80, 90..=99], udp: vec![53..=53], echo: true }),
            opening("bank/api", "a/host", Openings { tcp: vec![1..=1], udp: Vec::new(), echo: false }),
            opening("gone/away", "a/host", Openings { tcp: vec![1..=1], udp: Vec::new(), echo: false }),
        ];
        let (instances, openings) = inhabitants(&placement, &addresses, &between);
        assert_eq!(instances.iter().map(|one| one.addresses).collect::<Vec<_>>(), [address(3), address(2), address(1)]);
        assert_eq!(instances.last().map(|one| &one.members), Some(&Members::Rest));
        let told: Vec<_> = openings.into_iter().map(|one| (one.from, one.to, one.allows)).collect();
        let expected = [
            (0, 1, Allows::Tcp(80..=80)),
            (0, 1, Allows::Tcp(90..=99)),
            (0, 1, Allows::Udp(53..=53)),
            (0, 1, Allows::Echo),
            (1, 2, Allows::Tcp(1..=1)),
        ];
        assert_eq!(told, expected);
    }
}
