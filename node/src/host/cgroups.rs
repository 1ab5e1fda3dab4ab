//! Where processes are among the cgroups of version 2: the ids that the kernel compares sockets with, found by path or by unit,
//! and notice of their coming and going. A cgroup that is made anew has another id, so that a unit that starts again is nobody
//! until it was looked for again; that its old id comes back is ruled out by the kernel. Those beside the tied ones are known by
//! their ids too: what was not yet looked at may be anybody, and is not taken for one of the others.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use crate::selectors::CgroupTie;

/// Largest `/proc/self/mountinfo` that is read.
const MAX_MOUNTS: u64 = 4 << 20;
/// Most cgroups whose children are looked at.
const MAX_WATCHED: usize = 1024;
/// Most cgroups beside the tied ones that are known.
const MAX_KNOWN: usize = 1 << 16;
/// What the depth of a look is rounded up to.
const LEVELS: usize = 4;
/// Deepest cgroup that is looked for; the kernel can compare with the first 255 (`NFTA_SOCKET_LEVEL`).
const MAX_DEPTH: usize = 32;

/// One cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// How deep below the root it is; the root's own children are at 1.
    pub(super) level: u32,
    /// The kernel's number for it.
    pub(super) id: u64,
}

/// The cgroups at one depth, by their ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Level {
    /// Those whose children are looked at in turn.
    pub(super) above: BTreeSet<u64>,
    /// All others: whatever lies below them is like them.
    pub(super) others: BTreeSet<u64>,
}

/// What was seen of the hierarchy, in one look at each directory.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Survey {
    /// For each tie asked for, the cgroups that are meant at this moment, with their directories.
    pub(super) meant: Vec<Vec<(Place, PathBuf)>>,
    /// What there is from depth 1 on, as far down as ties may lead. A process whose cgroup at one of these depths is not here came to
    /// be in it after the look.
    pub(super) known: Vec<Level>,
}

/// The hierarchy, as far as it concerns a tie.
pub(super) struct Cgroups {
    /// `None` where none is mounted, or a part of it only.
    root: Option<PathBuf>,
    notices: Option<OwnedFd>,
}

impl Cgroups {
    /// Looks where the hierarchy is mounted.
    pub(super) fn open() -> Self {
        let mut mounts = String::new();
        let read = File::open("/proc/thread-self/mountinfo")
            .and_then(|file| file.take(MAX_MOUNTS).read_to_string(&mut mounts));
        // One may hide another: the last that shows itself as a root is the one that paths lead to.
        let root = read.ok().and_then(|_| mount_points(&mounts).filter(|point| is_whole(point)).last());
        let notices = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok();
        Self { root, notices }
    }

    /// Where the whole hierarchy is mounted, or why nobody's place in it can be told.
    pub(super) fn root(&self) -> Result<&Path, String> {
        self.root.as_deref().ok_or_else(|| {
            "the hierarchy of cgroups version 2 is not mounted here as a whole; mount it (mount -t cgroup2 none /sys/fs/cgroup), and \
             run warren in the host's cgroup namespace (containers: --cgroupns host)"
                .to_owned()
        })
    }

    /// What there is at this moment, as far as it concerns these ties; from now on a change of it is noticed. An error names what
    /// keeps it from being told.
    pub(super) fn survey(&self, ties: &[&CgroupTie]) -> Result<Survey, String> {
        let units = ties.iter().any(|tie| matches!(tie, CgroupTie::Unit(_)));
        let ways: Vec<(usize, PathBuf)> = ties
            .iter()
            .enumerate()
            .filter_map(|(number, tie)| match tie {
                CgroupTie::Path(path) => Some((number, PathBuf::from(path.trim_start_matches('/')))),
                CgroupTie::Unit(_) => None,
            })
            .collect();
        let mut survey = Survey { meant: vec![Vec::new(); ties.len()], known: Vec::new() };
        let (mut looked_at, mut known) = (0, 0);
        // Each with its way from the root, and whether units may be in it.
        let mut left = vec![(self.root()?.to_owned(), PathBuf::new(), units)];
        while let Some((directory, way, in_slices)) = left.pop() {
            looked_at += 1;
            let level = way.components().count() + 1;
            let too_deep = level > MAX_DEPTH || ways.iter().any(|(_, way)| way.components().count() > MAX_DEPTH);
            if looked_at > MAX_WATCHED || known > MAX_KNOWN || too_deep {
                return Err(format!(
                    "there are more cgroups than can be told apart (up to {MAX_WATCHED} slices, {MAX_KNOWN} cgroups, {MAX_DEPTH} levels); \
                     tie by uid=, or by cgroup= to a path near the root"
                ));
            }
            let place_level = u32::try_from(level).unwrap_or(u32::MAX);
            // Before it is read: what comes later is noticed.
            self.watch(&directory);
            if survey.known.len() < level {
                survey.known.resize_with(level, Level::default);
            }
            for (name, id) in children(&directory) {
                known += 1;
                let (child, way) = (directory.join(&name), way.join(&name));
                let place = Place { level: place_level, id };
                for (number, tie) in ties.iter().enumerate() {
                    let meant = match tie {
                        CgroupTie::Unit(unit) => in_slices && *name == **unit,
                        CgroupTie::Path(_) => ways.iter().any(|(of, wanted)| *of == number && *wanted == way),
                    };
                    if let (true, Some(found)) = (meant, survey.meant.get_mut(number)) {
                        found.push((place, child.clone()));
                    }
                }
                let slices = in_slices && name.as_encoded_bytes().ends_with(b".slice");
                let watched = slices || ways.iter().any(|(_, wanted)| wanted.starts_with(&way) && *wanted != way);
                let Some(here) = survey.known.get_mut(level - 1) else { continue };
                if watched {
                    here.above.insert(id);
                    left.push((child, way, slices));
                } else {
                    here.others.insert(id);
                }
            }
        }
        // Rules go by the depth: they stay as they are when a slice comes or goes.
        survey.known.resize_with(survey.known.len().next_multiple_of(LEVELS), Level::default);
        Ok(survey)
    }

    /// Has what comes and goes in the directory noticed.
    fn watch(&self, directory: &Path) {
        let Some(notices) = &self.notices else { return };
        let flags = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVE | WatchFlags::ONLYDIR;
        // Gone meanwhile, or too many watches on this host: what changes is then found at the next look, and is closed until then.
        let _ = inotify::add_watch(notices, directory, flags);
    }

    /// What becomes readable when a cgroup has come or gone.
    pub(super) fn notices(&self) -> Option<BorrowedFd<'_>> {
        self.notices.as_ref().map(AsFd::as_fd)
    }

    /// Takes away the notices that wait; whether there were any.
    pub(super) fn drain(&self) -> bool {
        let mut any = false;
        let mut buffer = [0_u8; 4096];
        while let Some(notices) = &self.notices {
            match rustix::io::read(notices, &mut buffer) {
                Ok(1..) => any = true,
                Err(rustix::io::Errno::INTR) => {}
                Ok(0) | Err(_) => break,
            }
        }
        any
    }
}

/// The cgroups right below one, by their names, and their ids; none of one that has gone meanwhile.
fn children(directory: &Path) -> BTreeMap<OsString, u64> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let directories = entries.filter_map(|entry| {
        let metadata = entry.metadata().ok()?;
        metadata.is_dir().then(|| (entry.file_name(), metadata.ino()))
    });
    directories.collect()
}

/// Whether the mount point shows the root of the hierarchy itself. In a cgroup namespace another cgroup passes for it; that one has a
/// type, as all have but the root.
fn is_whole(point: &Path) -> bool {
    point.join("cgroup.procs").exists() && !point.join("cgroup.type").exists()
}

/// Where the whole hierarchy of version 2 is mounted, beside those of version 1 or alone, by `mountinfo` (proc(5)).
fn mount_points(mounts: &str) -> impl Iterator<Item = PathBuf> {
    mounts.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        // A blank in a path is written in octal; such a mount point is not the system's.
        (after.starts_with("cgroup2 ") && root == "/" && !point.contains('\\')).then(|| PathBuf::from(point))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn points(mounts: &str) -> Vec<PathBuf> {
        mount_points(mounts).collect()
    }

    #[test]
    fn the_hierarchy_is_found_alone_and_beside_version_1() {
        let alone = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(points(alone), [Path::new("/sys/fs/cgroup")]);
        let both = "30 29 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                    31 29 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert_eq!(points(both), [Path::new("/sys/fs/cgroup/unified")]);
        let part_of_it = "31 29 0:28 /jobs /mnt rw - cgroup2 cgroup2 rw\n";
        assert!(points(part_of_it).is_empty());
    }

    fn here(root: &Path) -> Cgroups {
        Cgroups { root: Some(root.to_owned()), notices: None }
    }

    #[test]
    fn the_root_of_a_cgroup_namespace_is_not_taken_for_the_whole() {
        let directory = tempfile::tempdir().expect("directory");
        assert!(!is_whole(directory.path()));
        fs::write(directory.path().join("cgroup.procs"), "").expect("write");
        assert!(is_whole(directory.path()));
        fs::write(directory.path().join("cgroup.type"), "domain").expect("write");
        assert!(!is_whole(directory.path()));
        let none = Cgroups { root: None, notices: None };
        assert!(none.survey(&[]).is_err_and(|error| error.contains("--cgroupns host")));
    }

    #[test]
    fn a_look_finds_what_is_meant_and_all_that_is_beside_it() {
        let directory = tempfile::tempdir().expect("directory");
        let root = directory.path();
        let ways = [
            "a.slice/b.slice/web.service/x",
            "a.slice/other.service",
            "jobs/web.service",
            "jobs/one/two",
            "jobs/one/three",
        ];
        ways.iter().for_each(|way| fs::create_dir_all(root.join(way)).expect("make"));
        let id = |way: &str| fs::metadata(root.join(way)).expect("there").ino();
        let ids = |ways: &[&str]| ways.iter().map(|way| id(way)).collect::<BTreeSet<_>>();
        let unit = CgroupTie::Unit("web.service".into());
        let path = CgroupTie::Path("/jobs/one/two".into());
        let survey = here(root).survey(&[&unit, &path]).expect("a look");
        let places: Vec<Vec<_>> =
            survey.meant.iter().map(|meant| meant.iter().map(|(place, _)| (place.level, place.id)).collect()).collect();
        // Only slices are above a unit of the system manager.
        assert_eq!(places, [[(3, id("a.slice/b.slice/web.service"))], [(3, id("jobs/one/two"))]]);
        let levels = [
            Level { above: ids(&["a.slice", "jobs"]), others: BTreeSet::new() },
            Level {
                above: ids(&["a.slice/b.slice", "jobs/one"]),
                others: ids(&["a.slice/other.service", "jobs/web.service"]),
            },
            Level {
                above: BTreeSet::new(),
                others: ids(&["a.slice/b.slice/web.service", "jobs/one/two", "jobs/one/three"]),
            },
        ];
        assert_eq!(survey.known[..3], levels);
        assert_eq!(survey.known[3..], [Level::default()]);
    }

    #[test]
    fn what_is_too_deep_is_refused_and_not_passed_over() {
        let directory = tempfile::tempdir().expect("directory");
        let deep: PathBuf = (0..=MAX_DEPTH).map(|_| "s.slice").collect();
        fs::create_dir_all(directory.path().join(&deep)).expect("make");
        for tie in [CgroupTie::Unit("web.service".into()), CgroupTie::Path(format!("/{}/web", deep.display()))] {
            assert!(here(directory.path()).survey(&[&tie]).is_err_and(|error| error.contains("levels")), "{tie:?}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_mounts_never_panic(text in any::<String>()) {
            let _ = points(&text);
        }
    }
}
