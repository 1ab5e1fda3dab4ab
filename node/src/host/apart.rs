//! Keeping several instances apart: who is whose at this moment, the packet filter's table that says so, and the programs that help
//! it where the kernel lets them.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use warren_proto::overlay::{Overlay, OverlayAddresses};

use super::cgroups::{Level, Place, Survey};
use super::nftables::Table;
use super::separation::{self, Condition, Owner, Party, SEPARATION_TABLE};
use super::{Changes, Desired, Host, HostError, HostInstance, KernelError, programs};
use crate::selectors::{Members, Tie};

/// The program that looks at receivers, and for whom.
pub(super) type Receivers = (Vec<Party>, OwnedFd);

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

/// Whose the instances are at this moment.
struct Inhabitants {
    parties: Vec<Party>,
    /// Where those live who have cgroups to themselves.
    homes: Vec<Home>,
    /// The cgroups that were looked at, if any tell who is who.
    known: Vec<Level>,
}

impl Home {
    /// `None` where it has gone since it was seen, which will be noticed.
    fn choose_sources(&self, overlay: &Overlay) -> std::io::Result<Option<Vec<OwnedFd>>> {
        let attached = File::open(&self.directory)
            .and_then(|directory| programs::choose_sources(directory.as_fd(), overlay, &self.own));
        match attached {
            Err(_) if !self.directory.exists() => Ok(None),
            attached => attached.map(Some),
        }
    }
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
        let Some(Inhabitants { parties, homes, known }) = self.parties(desired)? else {
            self.remove_separation(changes)?;
            return Ok(false);
        };
        // Both look at receivers until the rules that take the one are there: no packet is left unjudged, however this ends.
        let receivers = self.judge_receivers(desired, &parties)?;
        self.choose_sources(&desired.overlay, &homes, changes);
        let wanted = separation::table(&parties, &desired.openings, &known);
        let followed = self.install_separation(desired, wanted, changes)?;
        if let Some(receivers) = receivers {
            self.receivers = receivers;
        }
        Ok(followed)
    }

    /// Puts the table in place; whether the only change is of what cgroups there are.
    fn install_separation(
        &mut self,
        desired: &Desired,
        wanted: Table,
        changes: &mut Changes,
    ) -> Result<bool, HostError> {
        let there = self.nftables.read(SEPARATION_TABLE).map_err(HostError::refused("read the separation"))?;
        let there = there.map(|there| there.table);
        if there.as_ref() == Some(&wanted) {
            self.separation = Some(wanted);
            return Ok(false);
        }
        let untouched = there == self.separation;
        if let Some(there) = there.filter(|there| there.is_but_for_ids(&wanted)) {
            self.nftables.exchange_ids(&there, &wanted).map_err(not_held)?;
            if !untouched {
                changes.made.push(format!("sets of nftables table {SEPARATION_TABLE} filled anew"));
            }
            self.separation = Some(wanted);
            return Ok(false);
        }
        let followed = untouched && self.applied.as_ref() == Some(desired);
        // What was counted is not to be forgotten with the table.
        self.refused_before = self.refused()?;
        self.nftables.install(&wanted).map_err(not_held)?;
        self.separation = Some(wanted);
        changes.made.push(format!("nftables table {SEPARATION_TABLE} installed"));
        Ok(followed)
    }

    pub(super) fn remove_separation(&mut self, changes: &mut Changes) -> Result<(), HostError> {
        if self.separation.is_some() {
            self.refused_before = self.refused()?;
        }
        self.separation = None;
        if self.nftables.remove(SEPARATION_TABLE).map_err(HostError::refused("remove the separation"))? {
            changes.made.push(format!("nftables table {SEPARATION_TABLE} removed"));
        }
        self.sources.clear();
        self.receivers = None;
        Ok(())
    }

    /// Whose the instances are at this moment; `None` where everybody is the only one.
    fn parties(&self, desired: &Desired) -> Result<Option<Inhabitants>, HostError> {
        if let [] | [HostInstance { members: Members::Rest, .. }] = desired.instances.as_slice() {
            return Ok(None);
        }
        let wanted: Vec<_> = ties(desired).filter_map(|tie| tie.cgroup.as_ref()).collect();
        let survey = if wanted.is_empty() {
            Survey::default()
        } else {
            self.cgroups.survey(&wanted).map_err(HostError::NoSeparation)?
        };
        // In the order of the ties that ask for one.
        let mut meant = survey.meant.into_iter();
        let mut homes: Vec<Home> = Vec::new();
        let mut parties = Vec::new();
        for HostInstance { addresses, members } in &desired.instances {
            let owner = match members {
                Members::Rest => Owner::Rest,
                Members::Ties(ties) => {
                    let mut conditions = Vec::new();
                    for tie in ties {
                        if tie.cgroup.is_none() {
                            conditions.push(Condition { user: tie.uid, place: None });
                            continue;
                        }
                        // None while its cgroup is not there.
                        for (place, directory) in meant.next().unwrap_or_default() {
                            conditions.push(Condition { user: tie.uid, place: Some(place) });
                            // Of two instances that a cgroup may be, the first is what it is unless it says otherwise.
                            if tie.uid.is_none() && homes.iter().all(|home| home.place != place) {
                                homes.push(Home { place, directory, own: *addresses });
                            }
                        }
                    }
                    Owner::Any(conditions)
                }
            };
            parties.push(Party { addresses: *addresses, owner });
        }
        Ok(Some(Inhabitants { parties, homes, known: survey.known }))
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
            let attached = match home.choose_sources(overlay) {
                Ok(Some(attached)) => attached,
                Ok(None) => continue,
                Err(error) => {
                    let note = format!(
                        "programs of {} must bind their own address: the kernel lets no program choose it ({error}); \
                         that takes root or CAP_BPF, and cgroup version 2",
                        home.own.v6
                    );
                    self.note(note, changes);
                    Vec::new()
                }
            };
            self.sources.insert(home.place.id, Sources { overlay: *overlay, own: home.own, _attached: attached });
        }
    }

    /// Has the sockets that receive looked at where that takes their user, once more than before; `None` where nothing changes. Where
    /// users are to be told apart and nobody may look, they are not: a packet filter sees no listener's user.
    fn judge_receivers(&self, desired: &Desired, parties: &[Party]) -> Result<Option<Option<Receivers>>, HostError> {
        if ties(desired).all(|tie| tie.uid.is_none()) {
            return Ok(Some(None));
        }
        if self.receivers.as_ref().is_some_and(|(judged, _)| judged == parties) {
            return Ok(None);
        }
        let root = self.cgroups.root().map_err(HostError::NoSeparation)?;
        let attached = File::open(root).and_then(|root| programs::judge_receivers(root.as_fd(), parties));
        let attached = attached.map_err(|error| match error.raw_os_error() {
            // For lack of memory, or because somebody else is at it.
            Some(errno @ (libc::ENOMEM | libc::EAGAIN | libc::EINTR | libc::EBUSY | libc::EMFILE | libc::ENFILE)) => {
                HostError::refused("attach the program that looks at receivers")(std::io::Error::from_raw_os_error(errno).into())
            }
            _ => HostError::NoSeparation(format!(
                "the kernel lets no program look at the user of who receives ({error}), and entries with uid= take that; run warren as \
                 root or with CAP_BPF and CAP_NET_ADMIN, on a kernel with CONFIG_CGROUP_BPF, or tie by unit= or cgroup= alone"
            )),
        })?;
        Ok(Some(Some((parties.to_vec(), attached))))
    }

    fn note(&mut self, note: String, changes: &mut Changes) {
        if self.noted.insert(note.clone()) {
            changes.notes.push(note);
        }
    }
}

/// Every tie, by instance.
fn ties(desired: &Desired) -> impl Iterator<Item = &Tie> {
    let ties = desired.instances.iter().filter_map(|instance| match &instance.members {
        Members::Ties(ties) => Some(ties),
        Members::Rest => None,
    });
    ties.flatten()
}

/// What it means that the kernel refuses the table: that it cannot hold it, or that it does not just now.
fn not_held(error: KernelError) -> HostError {
    match error.errno {
        libc::ENOENT | libc::EOPNOTSUPP | libc::EINVAL => HostError::NoSeparation(format!(
            "the kernel refuses the rules ({error}), which take nf_tables with `socket` and `reject` (modprobe nft_socket \
             nft_reject_inet) and cgroup version 2, kernel 5.13 or newer"
        )),
        libc::EMSGSIZE => HostError::NoSeparation(error.text),
        _ => HostError::refused(format!("install nftables table {SEPARATION_TABLE}"))(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_that_has_just_gone_is_nothing_to_complain_of() {
        let own = OverlayAddresses { v6: "fd00::1".parse().expect("address"), v4: None };
        let place = Place { level: 1, id: 7 };
        let home = |directory: PathBuf| Home { place, directory, own };
        let overlay = Overlay { v6: ("fd00::".parse().expect("prefix"), 48), v4: None };
        let there = tempfile::tempdir().expect("directory");
        let gone = home(there.path().join("gone")).choose_sources(&overlay);
        assert!(matches!(gone, Ok(None)), "{gone:?}");
        // No cgroup: nothing can be attached there, and that is said.
        assert!(home(there.path().to_owned()).choose_sources(&overlay).is_err());
    }

    #[test]
    fn only_what_the_kernel_cannot_hold_is_given_up_at_once() {
        let refused = |errno| not_held(KernelError { errno, request: 3, text: String::new() });
        for errno in [libc::ENOENT, libc::EOPNOTSUPP, libc::EINVAL, libc::EMSGSIZE] {
            assert!(matches!(refused(errno), HostError::NoSeparation(_)), "{errno}");
        }
        for errno in [libc::ENOMEM, libc::ENOBUFS, libc::EAGAIN, libc::EINTR, libc::EBUSY, libc::EMFILE] {
            assert!(matches!(refused(errno), HostError::Refused { .. }), "{errno}");
        }
        assert!(matches!(refused(libc::EPERM), HostError::NotPermitted));
    }
}
