//! Which processes of this host are which workload: the configuration's `workloads`, and the facts about a process that it
//! is held against.
//!
//! One entry is `<namespace>/<name> SELECTOR...`, and all its selectors must hold; entries for one workload add up. A
//! process that fits no entry is no workload.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use warren_proto::WorkloadName;
use warren_proto::spiffe::InvalidName;

/// Most entries of a configuration.
pub const MAX_ASSIGNMENTS: usize = 96;
/// Longest unit name that systemd takes (`UNIT_NAME_MAX`).
const MAX_UNIT: usize = 255;

/// One property of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// `uid=1001`: its effective user id when it connected.
    Uid(u32),
    /// `unit=web.service`: the system manager's unit of this name has it. A unit of the same name under a user's manager is
    /// another one.
    Unit(String),
    /// `cgroup=/path`: it is in this cgroup (version 2) or below it, for hosts without systemd.
    Cgroup(String),
    /// `netns=/run/netns/blue`: its network namespace is the one that this file stands for.
    Netns(PathBuf),
}

/// Who somebody is if all the selectors hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// The workload.
    pub workload: WorkloadName,
    /// At least one.
    pub selectors: Vec<Selector>,
}

/// Whose the addresses of an instance are, among the processes that share this host's overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Members {
    /// Whoever is no member by ties of another instance.
    Rest,
    /// Whoever fits one of these; never empty.
    Ties(Vec<Tie>),
}

/// What the kernel can tell of a packet's process, in one entry: all of it must hold, and some of it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tie {
    /// Its effective user.
    pub uid: Option<u32>,
    /// Where it is among the cgroups of version 2.
    pub cgroup: Option<CgroupTie>,
}

/// A place among the cgroups of version 2, with everything below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CgroupTie {
    /// The system manager's unit of this name, in whatever slice.
    Unit(String),
    /// This path.
    Path(String),
}

/// A network namespace by its file's device and inode.
pub type NetnsId = (u64, u64);

/// What is known of a process at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its number, in the daemon's PID namespace.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
    /// Its path in the cgroup hierarchy (version 2), from the root that the daemon sees; `None` where there is none.
    pub cgroup: Option<String>,
    /// Its network namespace; `None` where the daemon may not look (that takes root or CAP_SYS_PTRACE).
    pub netns: Option<NetnsId>,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} (uid {}, ", self.pid, self.uid)?;
        match &self.cgroup {
            Some(cgroup) => write!(f, "cgroup {cgroup})"),
            None => f.write_str("no cgroup of version 2)"),
        }
    }
}

impl Selector {
    /// Whether it holds for `process`. `netns` finds the namespace that a file stands for.
    #[must_use]
    pub fn holds(&self, process: &Process, netns: impl Fn(&PathBuf) -> Option<NetnsId>) -> bool {
        match self {
            Self::Uid(uid) => process.uid == *uid,
            Self::Unit(unit) => process.cgroup.as_deref().is_some_and(|path| is_of_unit(path, unit)),
            Self::Cgroup(wanted) => process.cgroup.as_deref().is_some_and(|path| is_below(path, wanted)),
            // Two unknowns are not the same.
            Self::Netns(file) => process.netns.is_some() && process.netns == netns(file),
        }
    }
}

impl Assignment {
    /// Whether all its selectors hold.
    #[must_use]
    pub fn fits(&self, process: &Process, netns: impl Fn(&PathBuf) -> Option<NetnsId>) -> bool {
        self.selectors.iter().all(|selector| selector.holds(process, &netns))
    }

    /// The entry as a packet filter can hold it: at most one user, and at most one unit or cgroup. `None` for any other, and for
    /// one with a network namespace, which has a node of its own.
    #[must_use]
    pub fn tie(&self) -> Option<Tie> {
        let mut tie = Tie { uid: None, cgroup: None };
        for selector in &self.selectors {
            let known_before = match selector {
                Selector::Uid(uid) => tie.uid.replace(*uid).is_some(),
                Selector::Unit(unit) => tie.cgroup.replace(CgroupTie::Unit(unit.clone())).is_some(),
                Selector::Cgroup(path) => tie.cgroup.replace(CgroupTie::Path(path.clone())).is_some(),
                Selector::Netns(_) => return None,
            };
            if known_before {
                return None;
            }
        }
        Some(tie)
    }
}

impl Tie {
    /// Whether it holds for `process`.
    #[must_use]
    pub fn holds(&self, process: &Process) -> bool {
        let cgroup = process.cgroup.as_deref();
        self.uid.is_none_or(|uid| process.uid == uid)
            && match &self.cgroup {
                None => true,
                Some(CgroupTie::Unit(unit)) => cgroup.is_some_and(|path| is_of_unit(path, unit)),
                Some(CgroupTie::Path(wanted)) => cgroup.is_some_and(|path| is_below(path, wanted)),
            }
    }
}

/// Whether the cgroup is that of the system manager's unit, or lies below it. Above it are slices alone: what a user's
/// manager or a container starts has a service or a scope above it, whatever name it gives itself.
fn is_of_unit(path: &str, unit: &str) -> bool {
    for part in path.split('/').filter(|part| !part.is_empty()) {
        if part == unit {
            return true;
        }
        if !part.ends_with(".slice") {
            return false;
        }
    }
    false
}

fn is_below(path: &str, wanted: &str) -> bool {
    path.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// What is wrong with an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAssignment {
    /// The workload's name.
    #[error("{0:?} is not a workload: {1}")]
    Workload(String, InvalidName),
    /// No selector at all: it would be every process of the host.
    #[error("{0} has no selector: add uid=, unit=, cgroup= or netns=")]
    NoSelector(WorkloadName),
    /// A selector that is not understood.
    #[error("{0:?} is not a selector: uid=NUMBER, unit=NAME.service, cgroup=/PATH or netns=/FILE")]
    Selector(String),
}

impl FromStr for Assignment {
    type Err = InvalidAssignment;

    fn from_str(text: &str) -> Result<Self, InvalidAssignment> {
        let mut words = text.split_whitespace();
        let name = words.next().unwrap_or_default();
        let workload: WorkloadName =
            name.parse().map_err(|error| InvalidAssignment::Workload(name.to_owned(), error))?;
        let selectors = words.map(Selector::from_str).collect::<Result<Vec<_>, _>>()?;
        if selectors.is_empty() {
            return Err(InvalidAssignment::NoSelector(workload));
        }
        Ok(Self { workload, selectors })
    }
}

impl FromStr for Selector {
    type Err = InvalidAssignment;

    fn from_str(text: &str) -> Result<Self, InvalidAssignment> {
        let known = text.split_once('=').and_then(|(kind, value)| match kind {
            "uid" => value.parse().ok().map(Self::Uid),
            "unit" => is_unit(value).then(|| Self::Unit(value.to_owned())),
            "cgroup" => is_path(value).then(|| Self::Cgroup(value.to_owned())),
            "netns" => is_path(value).then(|| Self::Netns(value.into())),
            _ => None,
        });
        known.ok_or_else(|| InvalidAssignment::Selector(text.to_owned()))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uid(uid) => write!(f, "uid={uid}"),
            Self::Unit(unit) => write!(f, "unit={unit}"),
            Self::Cgroup(path) => write!(f, "cgroup={path}"),
            Self::Netns(file) => write!(f, "netns={}", file.display()),
        }
    }
}

impl fmt::Display for Assignment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.workload)?;
        self.selectors.iter().try_for_each(|selector| write!(f, " {selector}"))
    }
}

/// A unit that has processes of its own, spelt as systemd spells its cgroup.
fn is_unit(name: &str) -> bool {
    let spelt = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b':' | b'-' | b'_' | b'.' | b'\\' | b'@');
    let kind = [".service", ".scope"].iter().any(|kind| name.strip_suffix(kind).is_some_and(|rest| !rest.is_empty()));
    kind && name.len() <= MAX_UNIT && name.bytes().all(spelt)
}

/// An absolute path in its shortest spelling, other than the root; commas part entries in the environment.
fn is_path(text: &str) -> bool {
    text.strip_prefix('/').is_some_and(|rest| rest.split('/').all(|part| !matches!(part, "" | "." | "..")))
        && !text.contains(',')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn process(cgroup: &str) -> Process {
        Process { pid: 7, uid: 1001, cgroup: Some(cgroup.to_owned()), netns: Some((4, 9)) }
    }

    fn fits(entry: &str, process: &Process) -> bool {
        let assignment: Assignment = entry.parse().expect("entry");
        assignment.fits(process, |file| (file.to_str() == Some("/run/netns/blue")).then_some((4, 9)))
    }

    #[test]
    fn a_unit_is_the_system_managers_and_no_other_of_its_name() {
        for path in [
            "/system.slice/web.service",
            "/system.slice/web.service/worker",
            "/web.service",
            "/prod.slice/prod-shop.slice/web.service",
        ] {
            assert!(fits("shop/web unit=web.service", &process(path)), "{path}");
        }
        for path in [
            "/user.slice/user-1001.slice/user@1001.service/app.slice/web.service",
            "/system.slice/other.service/web.service",
            "/system.slice/docker-1.scope/system.slice/web.service",
            "/system.slice/web.service.slice",
            "/system.slice/web.servicex",
            "/../web.service",
            "/",
        ] {
            assert!(!fits("shop/web unit=web.service", &process(path)), "{path}");
        }
        assert!(!fits("shop/web unit=web.service", &Process { cgroup: None, ..process("/") }));
    }

    #[test]
    fn every_selector_of_an_entry_must_hold() {
        let one = process("/system.slice/web.service");
        assert!(fits("shop/web unit=web.service uid=1001 netns=/run/netns/blue", &one));
        assert!(!fits("shop/web unit=web.service uid=1002", &one));
        assert!(!fits("shop/web uid=1001 netns=/run/netns/red", &one), "a namespace that is not there");
        assert!(!fits("shop/web netns=/run/netns/red", &Process { netns: None, ..one.clone() }));
        assert!(!fits("shop/web netns=/run/netns/blue", &Process { netns: None, ..one }));
    }

    #[test]
    fn a_cgroup_is_itself_and_what_lies_below_it() {
        for (path, holds) in [("/jobs/web", true), ("/jobs/web/1", true), ("/jobs/web2", false), ("/jobs", false)] {
            assert_eq!(fits("shop/web cgroup=/jobs/web", &process(path)), holds, "{path}");
        }
    }

    #[test]
    fn an_entry_of_one_user_and_one_cgroup_is_a_tie_and_holds_where_the_entry_does() {
        let tie = |entry: &str| entry.parse::<Assignment>().expect("entry").tie();
        for (entry, path) in [
            ("shop/web uid=1001", "/"),
            ("shop/web uid=1002", "/"),
            ("shop/web unit=web.service", "/system.slice/web.service"),
            ("shop/web unit=web.service", "/user.slice/web.slice/other.scope/web.service"),
            ("shop/web uid=1001 cgroup=/jobs/web", "/jobs/web/1"),
            ("shop/web uid=1001 cgroup=/jobs/web", "/jobs/web2"),
            ("shop/web uid=7 unit=web.service", "/system.slice/web.service"),
        ] {
            let process = process(path);
            assert_eq!(tie(entry).expect(entry).holds(&process), fits(entry, &process), "{entry} {path}");
        }
        let nowhere = Process { cgroup: None, ..process("/") };
        assert!(!tie("shop/web unit=web.service").expect("tie").holds(&nowhere));
        for none in [
            "shop/web netns=/run/netns/blue",
            "shop/web uid=1001 netns=/run/netns/blue",
            "shop/web uid=1 uid=2",
            "shop/web unit=a.service cgroup=/b",
        ] {
            assert_eq!(tie(none), None, "{none}");
        }
    }

    #[test]
    fn an_entry_that_would_mean_everybody_or_nothing_is_refused_by_name() {
        let wrong = |text: &str| text.parse::<Assignment>().expect_err("refused").to_string();
        assert!(wrong("shop/web").contains("has no selector"));
        assert!(wrong("").contains("is not a workload"));
        for selector in [
            "uid=",
            "uid=-1",
            "uid=root",
            "unit=web",
            "unit=.service",
            "unit=a/b.service",
            "cgroup=/",
            "cgroup=/a/../b",
        ] {
            assert!(wrong(&format!("shop/web {selector}")).contains("is not a selector"), "{selector}");
        }
        assert!(wrong("shop/web netns=relative").contains("is not a selector"));
        assert!(wrong("shop/web gid=7").contains("gid=7"));
    }

    proptest! {
        #[test]
        fn an_entry_reads_back_as_it_is_shown(text in "[a-z]{1,4}/[a-z]{1,4}( (uid=[1-9][0-9]{0,5}|unit=[a-z@]{1,4}\\.service|cgroup=/[a-z]{1,3}/[a-z]{1,3}|netns=/[a-z]{1,4})){1,3}") {
            let read: Assignment = text.parse().expect("entry");
            prop_assert_eq!(read.to_string(), text);
        }

        #[test]
        fn arbitrary_text_never_panics(text in any::<String>()) {
            let _ = text.parse::<Assignment>();
            let _ = is_of_unit(&text, "web.service");
        }
    }
}
