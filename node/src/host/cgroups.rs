//! Where processes are among the cgroups of version 2: the ids that the kernel compares sockets with, found by path or by unit,
//! and notice of their coming and going. A cgroup that is made anew has another id, so that a unit that starts again is nobody
//! until it was looked for again; that its old id comes back is ruled out by the kernel.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use crate::selectors::CgroupTie;

/// Largest `/proc/self/mountinfo` that is read.
const MAX_MOUNTS: u64 = 4 << 20;
/// Most slices that units are looked for in.
const MAX_SLICES: usize = 1024;
/// Deepest nesting of slices.
const MAX_DEPTH: usize = 16;
/// Deepest cgroup that the kernel can compare with (`NFTA_SOCKET_LEVEL`).
const MAX_LEVEL: usize = 255;

/// One cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// How deep below the root it is; the root's own children are at 1.
    pub(super) level: u32,
    /// The kernel's number for it.
    pub(super) id: u64,
}

/// The hierarchy, as far as it concerns a tie.
pub(super) struct Cgroups {
    /// `None` where none is mounted: nobody is in any cgroup then.
    root: Option<PathBuf>,
    notices: Option<OwnedFd>,
}

impl Cgroups {
    /// Looks where the hierarchy is mounted.
    pub(super) fn open() -> Self {
        let mut mounts = String::new();
        let read =
            File::open("/proc/self/mountinfo").and_then(|file| file.take(MAX_MOUNTS).read_to_string(&mut mounts));
        // One may hide another: the last that shows itself as a root is the one that paths lead to.
        let shown = |point: &PathBuf| point.join("cgroup.procs").exists();
        let root = read.ok().and_then(|_| mount_points(&mounts).filter(shown).last());
        let notices = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok();
        Self { root, notices }
    }

    /// Where the hierarchy is mounted.
    pub(super) fn root(&self) -> Option<&Path> {
        self.root.as_deref()
    }

    /// The cgroups that are meant at this moment, with their directories; from now on a change of them is noticed.
    pub(super) fn find(&self, tie: &CgroupTie) -> Vec<(Place, PathBuf)> {
        let Some(root) = &self.root else { return Vec::new() };
        match tie {
            CgroupTie::Path(path) => {
                let relative = Path::new(path.trim_start_matches('/'));
                // What is above it says when it comes, so all that is there of its way is watched first.
                let mut above = root.clone();
                self.watch(&above);
                for part in relative.components() {
                    above.push(part);
                    if !self.watch(&above) {
                        return Vec::new();
                    }
                }
                place(&above, relative.components().count()).into_iter().collect()
            }
            CgroupTie::Unit(unit) => {
                let mut slices = vec![(root.clone(), 0)];
                let (mut looked_at, mut found) = (0, BTreeSet::new());
                while let Some((slice, level)) = slices.pop() {
                    looked_at += 1;
                    self.watch(&slice);
                    found.extend(place(&slice.join(unit), level + 1));
                    let below = fs::read_dir(&slice).into_iter().flatten().flatten();
                    let below = below.filter(|entry| entry.file_name().as_encoded_bytes().ends_with(b".slice"));
                    if level < MAX_DEPTH {
                        let room = MAX_SLICES.saturating_sub(looked_at + slices.len());
                        slices.extend(below.map(|entry| (entry.path(), level + 1)).take(room));
                    }
                }
                found.into_iter().collect()
            }
        }
    }

    /// Whether there is a directory to watch.
    fn watch(&self, directory: &Path) -> bool {
        let Some(notices) = &self.notices else { return directory.is_dir() };
        let flags = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVE | WatchFlags::ONLYDIR;
        match inotify::add_watch(notices, directory, flags) {
            Ok(_) => true,
            // Too many watches on this host: what changes is then found at the next look, and is closed until then.
            Err(_) => directory.is_dir(),
        }
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

fn place(directory: &Path, level: usize) -> Option<(Place, PathBuf)> {
    let metadata = fs::symlink_metadata(directory).ok()?;
    let level = (1..=MAX_LEVEL).contains(&level).then_some(u32::try_from(level).ok()?)?;
    metadata.is_dir().then(|| (Place { level, id: metadata.ino() }, directory.to_owned()))
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

    proptest! {
        #[test]
        fn arbitrary_mounts_never_panic(text in any::<String>()) {
            let _ = points(&text);
        }
    }
}
