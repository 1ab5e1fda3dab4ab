//! Which workloads have a tunnel instance of their own on this host, and whose processes each instance is: what the
//! configuration's `workload` and those entries of `workloads` mean that a packet filter can hold.
//!
//! `workload` is the instance of everybody who is nobody else. Each other workload with an entry of users, units or cgroups
//! has an instance that belongs to the processes of those entries alone. A host with neither has one instance, of the only
//! identity that its node was granted, for everybody.

use std::fmt;

use warren_proto::WorkloadName;

use crate::selectors::{Assignment, CgroupTie, Members, Process, Tie};

/// Most instances of one node: each has keys, certificates and a renewal of its own.
pub const MAX_INSTANCES: usize = 64;

/// Whose the processes are that fit no entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rest {
    /// This workload's.
    Workload(WorkloadName),
    /// Those of the only identity granted; more than one, or none, is refused.
    OnlyGranted,
    /// Nobody's: they have no overlay address.
    Nobody,
}

/// The instances that this host is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    rest: Rest,
    tied: Vec<(WorkloadName, Vec<Tie>)>,
}

impl Placement {
    /// What `workload` and `workloads` mean.
    #[must_use]
    pub fn of(workload: Option<&WorkloadName>, entries: &[Assignment]) -> Self {
        let mut tied: Vec<(WorkloadName, Vec<Tie>)> = Vec::new();
        for entry in entries.iter().filter(|entry| workload != Some(&entry.workload)) {
            let Some(tie) = entry.tie() else { continue };
            match tied.iter_mut().find(|(name, _)| *name == entry.workload) {
                Some((_, ties)) => ties.push(tie),
                None => tied.push((entry.workload.clone(), vec![tie])),
            }
        }
        let rest = match workload {
            Some(workload) => Rest::Workload(workload.clone()),
            None if tied.is_empty() => Rest::OnlyGranted,
            None => Rest::Nobody,
        };
        Self { rest, tied }
    }

    /// Whose the processes are that fit no entry.
    #[must_use]
    pub const fn rest(&self) -> &Rest {
        &self.rest
    }

    /// The workloads whose instances have members by ties, in the configuration's order.
    pub fn tied(&self) -> impl Iterator<Item = &WorkloadName> {
        self.tied.iter().map(|(workload, _)| workload)
    }

    /// How many instances these are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tied.len() + usize::from(self.rest != Rest::Nobody)
    }

    /// Whether these are none, which no configuration means.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the instance of `workload` stands in the configuration: entries in their order, the rest last.
    #[must_use]
    pub fn position(&self, workload: &WorkloadName) -> usize {
        self.tied().position(|tied| tied == workload).unwrap_or(self.tied.len())
    }

    /// Whose the addresses of `workload`'s instance are; `None` for one that this host is not to have.
    #[must_use]
    pub fn members(&self, workload: &WorkloadName) -> Option<Members> {
        if let Some((_, ties)) = self.tied.iter().find(|(tied, _)| tied == workload) {
            return Some(Members::Ties(ties.clone()));
        }
        let rest = match &self.rest {
            Rest::Workload(rest) => rest == workload,
            Rest::OnlyGranted => true,
            Rest::Nobody => false,
        };
        rest.then_some(Members::Rest)
    }

    /// Why `process` may use the addresses of `workload`'s instance, in words; `None` where it may not.
    #[must_use]
    pub fn because(&self, workload: &WorkloadName, process: &Process) -> Option<String> {
        match self.members(workload)? {
            Members::Ties(ties) => {
                let tie = ties.iter().find(|tie| tie.holds(process))?;
                Some(format!("{process} fits \"{workload} {tie}\" of workloads"))
            }
            Members::Rest if self.tied.is_empty() => {
                Some(format!("{process}, as every process of this network namespace"))
            }
            Members::Rest => {
                let of_another = self.tied.iter().any(|(_, ties)| ties.iter().any(|tie| tie.holds(process)));
                (!of_another).then(|| format!("{process} fits no entry of workloads that has an instance of its own"))
            }
        }
    }
}

impl fmt::Display for Tie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut space = "";
        if let Some(uid) = self.uid {
            write!(f, "uid={uid}")?;
            space = " ";
        }
        match &self.cgroup {
            Some(CgroupTie::Unit(unit)) => write!(f, "{space}unit={unit}"),
            Some(CgroupTie::Path(path)) => write!(f, "{space}cgroup={path}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> WorkloadName {
        text.parse().expect("name")
    }

    fn placement(workload: Option<&str>, entries: &[&str]) -> Placement {
        let entries: Vec<Assignment> = entries.iter().map(|entry| entry.parse().expect("entry")).collect();
        Placement::of(workload.map(name).as_ref(), &entries)
    }

    fn process(uid: u32, cgroup: &str) -> Process {
        Process { pid: 7, uid, cgroup: Some(cgroup.to_owned()), netns: None }
    }

    #[test]
    fn each_workload_with_users_units_or_cgroups_has_an_instance_and_the_rest_is_the_configured_one() {
        let placement = placement(
            Some("shop/host"),
            &["shop/web unit=web.service", "shop/reports uid=1001", "shop/far netns=/run/netns/far", "shop/web uid=7"],
        );
        assert_eq!(placement.tied().collect::<Vec<_>>(), [&name("shop/web"), &name("shop/reports")]);
        assert_eq!((placement.rest(), placement.len()), (&Rest::Workload(name("shop/host")), 3));
        assert_eq!(["shop/web", "shop/reports", "shop/host"].map(|one| placement.position(&name(one))), [0, 1, 2]);
        let Some(Members::Ties(ties)) = placement.members(&name("shop/web")) else { panic!("ties") };
        assert_eq!(ties.iter().map(ToString::to_string).collect::<Vec<_>>(), ["unit=web.service", "uid=7"]);
        assert_eq!(placement.members(&name("shop/host")), Some(Members::Rest));
        assert_eq!(placement.members(&name("shop/far")), None, "its namespace has a node of its own");
    }

    #[test]
    fn a_process_may_use_what_it_fits_and_the_rest_only_where_it_fits_nothing() {
        let placement = placement(Some("shop/host"), &["shop/web unit=web.service", "shop/reports uid=1001"]);
        let may = |uid, cgroup: &str| {
            let process = process(uid, cgroup);
            ["shop/web", "shop/reports", "shop/host"].map(|one| placement.because(&name(one), &process).is_some())
        };
        assert_eq!(may(0, "/system.slice/web.service"), [true, false, false]);
        assert_eq!(may(1001, "/"), [false, true, false]);
        assert_eq!(may(1001, "/web.service"), [true, true, false]);
        assert_eq!(may(0, "/"), [false, false, true]);
        let because = placement.because(&name("shop/reports"), &process(1001, "/")).expect("may");
        assert!(because.contains("uid 1001") && because.contains("\"shop/reports uid=1001\""), "{because}");
    }

    #[test]
    fn without_a_configured_workload_a_process_that_fits_nothing_is_nobody() {
        let placement = placement(None, &["shop/web uid=1001"]);
        assert_eq!((placement.rest(), placement.len()), (&Rest::Nobody, 1));
        assert_eq!(placement.because(&name("shop/web"), &process(0, "/")), None);
        assert_eq!(placement.members(&name("shop/host")), None);
    }

    #[test]
    fn a_host_without_entries_of_its_own_has_one_instance_for_everybody() {
        for (workload, entries) in [
            (None, vec![]),
            (Some("shop/web"), vec![]),
            (None, vec!["shop/far netns=/run/netns/far"]),
            (Some("shop/web"), vec!["shop/web unit=web.service", "shop/web uid=7"]),
        ] {
            let placement = placement(workload, &entries);
            assert_eq!(placement.len(), 1, "{entries:?}");
            assert!(placement.because(&name("shop/web"), &process(5, "/")).is_some(), "{entries:?}");
        }
    }
}
