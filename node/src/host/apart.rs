//! Keeping several instances apart: who is whose at this moment, the packet filter's table that says so, and the programs that help
//! it where the kernel lets them.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use warren_proto::overlay::{Overlay, OverlayAddresses};

use super::cgroups::Place;
use super::separation::{self, Condition, Owner, Party, SEPARATION_TABLE};
use super::{Changes, Desired, Host, HostError, HostInstance, programs};
use crate::selectors::{Members, Tie};

/// One cgroup's programs that choose a source.
pub(super) struct Sources {
    overlay: Overlay,
    own: OverlayAddresses,
    /// They go with these; none where they could not be had.
    _attached: Vec<OwnedFd>,
}

/// A cgroup whose programs are an instance's.
struct Home {
    place: Place,
    directory: PathBuf,
    own: OverlayAddresses,
}

impl Host {
    /// How many packets were refused so far because their program is not the instance's whose address they bore or were for,
    /// by that instance.
    pub fn refused(&mut self) -> Result<Vec<(OverlayAddresses, u64)>, HostError> {
        let mut refused = self.refused_before.clone();
        let standing = self.nftables.read(SEPARATION_TABLE);
        let standing = standing.map_err(HostError::refused("read the separation of instances"))?;
        for (chain, packets) in standing.into_iter().flat_map(|standing| standing.counts) {
            let number = separation::instance_of(&chain);
            let instances = self.applied.as_ref().map_or(&[][..], |applied| &applied.instances);
            let Some(instance) = number.and_then(|number| instances.get(number)) else { continue };
            match refused.iter_mut().find(|(addresses, _)| *addresses == instance.addresses) {
                Some((_, sum)) => *sum = sum.saturating_add(packets),
                None => refused.push((instance.addresses, packets)),
            }
        }
        Ok(refused)
    }

    /// Keeps the instances apart; whether the only change is of what cgroups there are.
    pub(super) fn apply_separation(&mut self, desired: &Desired, changes: &mut Changes) -> Result<bool, HostError> {
        let Some((parties, homes)) = self.parties(desired) else {
            self.remove_separation(changes)?;
            return Ok(false);
        };
        let by_program = self.judge_receivers(&parties, changes);
        self.choose_sources(&desired.overlay, &homes, changes);
        let wanted = separation::table(&parties, &desired.openings, by_program);
        let there = self.nftables.read(SEPARATION_TABLE).map_err(HostError::refused("read the separation"))?;
        let there = there.map(|there| there.table);
        if there.as_ref() == Some(&wanted) {
            return Ok(false);
        }
        let followed = there == self.separation && self.applied.as_ref() == Some(desired);
        // What was counted is not to be forgotten with the table.
        self.refused_before = self.refused()?;
        self.nftables.install(&wanted).map_err(|error| match error.errno {
            libc::EPERM | libc::EACCES => HostError::NotPermitted,
            _ => HostError::NoSeparation(error),
        })?;
        self.separation = Some(wanted);
        changes.made.push(format!("nftables table {SEPARATION_TABLE} installed"));
        Ok(followed)
    }

    pub(super) fn remove_separation(&mut self, changes: &mut Changes) -> Result<(), HostError> {
        if self.separation.is_some() {
            self.refused_before = self.refused()?;
        }
        self.separation = None;
        self.sources.clear();
        self.receivers = None;
        if self.nftables.remove(SEPARATION_TABLE).map_err(HostError::refused("remove the separation"))? {
            changes.made.push(format!("nftables table {SEPARATION_TABLE} removed"));
        }
        Ok(())
    }

    /// Whose the instances are at this moment, and where those live who have cgroups to themselves; `None` where everybody is the
    /// only one.
    fn parties(&self, desired: &Desired) -> Option<(Vec<Party>, Vec<Home>)> {
        if let [] | [HostInstance { members: Members::Rest, .. }] = desired.instances.as_slice() {
            return None;
        }
        let mut homes: Vec<Home> = Vec::new();
        let mut parties = Vec::new();
        for HostInstance { addresses, members } in &desired.instances {
            let owner = match members {
                Members::Rest => Owner::Rest,
                Members::Ties(ties) => {
                    Owner::Any(ties.iter().flat_map(|tie| self.conditions(tie, *addresses, &mut homes)).collect())
                }
            };
            parties.push(Party { addresses: *addresses, owner });
        }
        Some((parties, homes))
    }

    /// What a tie means at this moment: nothing while its cgroup is not there.
    fn conditions(&self, tie: &Tie, own: OverlayAddresses, homes: &mut Vec<Home>) -> Vec<Condition> {
        let Some(cgroup) = &tie.cgroup else { return vec![Condition { user: tie.uid, place: None }] };
        let mut conditions = Vec::new();
        for (place, directory) in self.cgroups.find(cgroup) {
            conditions.push(Condition { user: tie.uid, place: Some(place) });
            // Of two instances that a cgroup may be, the first is what it is unless it says otherwise.
            if tie.uid.is_none() && homes.iter().all(|home| home.place != place) {
                homes.push(Home { place, directory, own });
            }
        }
        conditions
    }

    /// Has the programs in each home use its own source where they name none. Where that cannot be had they have to name it.
    fn choose_sources(&mut self, overlay: &Overlay, homes: &[Home], changes: &mut Changes) {
        let wanted = |id: &u64| homes.iter().find(|home| home.place.id == *id);
        self.sources.retain(|id, sources| {
            wanted(id).is_some_and(|home| home.own == sources.own && sources.overlay == *overlay)
        });
        for home in homes {
            if self.sources.contains_key(&home.place.id) {
                continue;
            }
            let attached = File::open(&home.directory)
                .and_then(|directory| programs::choose_sources(directory.as_fd(), overlay, &home.own))
                .unwrap_or_else(|error| {
                    let note = format!(
                        "programs of {} must bind their own address: the kernel lets no program choose it ({error}); \
                         that takes root or CAP_BPF, and cgroup version 2",
                        home.own.v6
                    );
                    self.note(note, changes);
                    Vec::new()
                });
            self.sources.insert(home.place.id, Sources { overlay: *overlay, own: home.own, _attached: attached });
        }
    }

    /// Has the sockets that receive looked at where that takes their user; whether they are.
    fn judge_receivers(&mut self, parties: &[Party], changes: &mut Changes) -> bool {
        if !programs::by_user(parties) {
            self.receivers = None;
            return false;
        }
        if self.receivers.as_ref().is_some_and(|(judged, _)| judged == parties) {
            return true;
        }
        let root = self.cgroups.root().map(File::open);
        let root = root.unwrap_or_else(|| Err(std::io::ErrorKind::NotFound.into()));
        match root.and_then(|root| programs::judge_receivers(root.as_fd(), parties)) {
            // The one before it goes only now: no packet is left unjudged.
            Ok(attached) => self.receivers = Some((parties.to_vec(), attached)),
            Err(error) => {
                self.receivers = None;
                let note = format!(
                    "instances told by uid= hear only what they asked for: the kernel lets no program look at receivers \
                     ({error}); that takes root or CAP_BPF, and cgroup version 2"
                );
                self.note(note, changes);
            }
        }
        self.receivers.is_some()
    }

    fn note(&mut self, note: String, changes: &mut Changes) {
        if self.noted.insert(note.clone()) {
            changes.notes.push(note);
        }
    }
}
