//! Network namespaces: entering our own before any thread exists, and opening more from threads.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{getegid, geteuid, sethostname};

/// Moves the calling process into network, mount and (unless it is root) user namespaces of its own.
///
/// Must be called first in `main`: the kernel refuses a new user namespace to a process with threads, and a
/// thread started earlier would stay outside.
pub fn enter() -> Result<()> {
    let (user, group) = (geteuid(), getegid());
    if user.is_root() {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).context("unshare network and mount namespaces")?;
    } else {
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).with_context(|| {
            "unshare a user namespace: this system forbids it to ordinary users; \
             see `sysctl kernel.apparmor_restrict_unprivileged_userns user.max_user_namespaces`, or run as root"
        })?;
        fs::write("/proc/self/setgroups", "deny").context("write /proc/self/setgroups")?;
        fs::write("/proc/self/uid_map", format!("0 {user} 1")).context("write /proc/self/uid_map")?;
        fs::write("/proc/self/gid_map", format!("0 {group} 1")).context("write /proc/self/gid_map")?;
    }
    // Our mounts must not travel back to the machine.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .context("make mounts private")?;
    // /sys shows the network devices of the namespace that mounted it.
    let _ = mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), None::<&str>);
    // That hid the cgroups. Only root may have them back.
    let _ = mount(Some("cgroup2"), crate::cgroup::MOUNT, Some("cgroup2"), MsFlags::empty(), None::<&str>);
    check_tun()
}

/// Whether this process is root only in a user namespace of its own: some programs notice the difference.
pub fn is_user_namespace() -> Result<bool> {
    let map = fs::read_to_string("/proc/self/uid_map").context("read /proc/self/uid_map")?;
    Ok(map.split_whitespace().last() == Some("1"))
}

/// The one thing an ordinary user may lack: leave to open the TUN device.
fn check_tun() -> Result<()> {
    match fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => bail!(
            "/dev/net/tun may be opened by root only here; most systems give it mode 0666: \
             run `sudo chmod 0666 /dev/net/tun`, or run this as root"
        ),
        Err(error) => Err(error).context("open /dev/net/tun (try `sudo modprobe tun`)"),
    }
}

/// A network namespace and a host name of its own, kept alive by their descriptors.
#[derive(Debug)]
pub struct Namespace {
    descriptor: OwnedFd,
    name: OwnedFd,
}

impl Namespace {
    /// A new, empty one with its loopback device still down, called `name`.
    pub fn new(name: &str) -> Result<Self> {
        let open = |kind: &str| -> Result<OwnedFd> {
            let path = format!("/proc/thread-self/ns/{kind}");
            Ok(fs::File::open(&path).with_context(|| format!("open {path}"))?.into())
        };
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS)
                        .context("unshare network and host name")?;
                    sethostname(name).context("set the host name")?;
                    Ok(Self { descriptor: open("net")?, name: open("uts")? })
                })
                .join()
                .unwrap_or_else(|_| bail!("the namespace's thread panicked"))
        })
    }

    /// The descriptor, for moving network devices in.
    #[must_use]
    pub fn descriptor(&self) -> &OwnedFd {
        &self.descriptor
    }

    /// Runs `work` on a thread of its own inside the namespace and gives back its result. Sockets made and
    /// processes started by `work` belong to the namespace for good.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(self.descriptor.as_fd(), CloneFlags::CLONE_NEWNET).context("enter the network namespace")?;
                    setns(self.name.as_fd(), CloneFlags::CLONE_NEWUTS).context("enter the host name's namespace")?;
                    work()
                })
                .join()
                .unwrap_or_else(|_| bail!("the thread in the namespace panicked"))
        })
    }

    /// Like [`Self::run`], on a runtime, for netlink.
    pub fn run_async<T: Send, F: Future<Output = Result<T>>>(&self, work: impl FnOnce() -> F + Send) -> Result<T> {
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(work())
        })
    }

    /// Starts `command` inside the namespace.
    pub fn spawn(&self, command: &mut Command) -> Result<std::process::Child> {
        let name = command.get_program().to_string_lossy().into_owned();
        self.run(|| command.spawn().with_context(|| format!("start {name}")))
    }
}

/// A disk of 1 MiB at `directory`, for as long as the value lives.
pub fn small_disk(directory: &Path) -> Result<SmallDisk> {
    mount(Some("tmpfs"), directory, Some("tmpfs"), MsFlags::empty(), Some("size=1m,mode=0700"))
        .with_context(|| format!("mount a small disk at {}", directory.display()))?;
    Ok(SmallDisk { directory: directory.to_owned() })
}

/// See [`small_disk`].
#[derive(Debug)]
pub struct SmallDisk {
    directory: PathBuf,
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(&self.directory, MntFlags::MNT_DETACH);
    }
}
