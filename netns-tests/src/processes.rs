//! The real binaries as processes of the lab: started in a host's namespace, waited for by the readiness
//! they announce (sd_notify), their output kept in a file.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host::Host;

/// How long a program may take to become ready, on a machine that is busy with other things.
pub const READY: Duration = Duration::from_secs(60);

static BINARIES: OnceLock<PathBuf> = OnceLock::new();

/// Says where the workspace's binaries are, where `WARREN_BIN_DIR` does not. The first word counts.
pub fn set_binary_directory(directory: PathBuf) {
    let _ = BINARIES.set(directory);
}

/// One of the workspace's binaries: in `WARREN_BIN_DIR`, where [`set_binary_directory`] said, or beside this program.
pub fn binary(name: &str) -> Result<PathBuf> {
    let told = std::env::var_os("WARREN_BIN_DIR").map(PathBuf::from).or_else(|| BINARIES.get().cloned());
    let directory = match told {
        Some(directory) => directory,
        None => {
            let own = std::env::current_exe().context("find this program")?;
            own.parent().map(Path::to_owned).ok_or_else(|| anyhow!("this program has no directory"))?
        }
    };
    let path = directory.join(name);
    if !path.is_file() {
        bail!("{} is not there; run `cargo build --workspace --bins` first", path.display());
    }
    Ok(path)
}

/// A program that runs until it is stopped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
    name: String,
}

impl Process {
    /// Starts `program` on `host` with its output in `<name>.log` of the host's directory, and waits until
    /// it says READY=1 or ends.
    pub fn start(
        host: &Host,
        name: &str,
        program: &Path,
        arguments: &[&OsStr],
        environment: &[(&str, OsString)],
    ) -> Result<Self> {
        let (mut process, notifications) = Self::launch(host, name, program, arguments, environment)?;
        let deadline = Instant::now() + READY;
        loop {
            let mut message = [0; 4096];
            if let Ok(length) = notifications.recv(&mut message)
                && message[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1")
            {
                return Ok(process);
            }
            if let Some(status) = process.child.try_wait()? {
                bail!("{name} ended with {status} before it was ready; its log:\n{}", process.log_text());
            }
            if Instant::now() > deadline {
                bail!("{name} was not ready after {READY:?}; its log:\n{}", process.log_text());
            }
        }
    }

    /// The same without waiting, for a program that is not to become ready.
    pub fn start_unready(
        host: &Host,
        name: &str,
        program: &Path,
        arguments: &[&OsStr],
        environment: &[(&str, OsString)],
    ) -> Result<Self> {
        // Nobody listens to what it announces.
        Self::launch(host, name, program, arguments, environment).map(|(process, _)| process)
    }

    fn launch(
        host: &Host,
        name: &str,
        program: &Path,
        arguments: &[&OsStr],
        environment: &[(&str, OsString)],
    ) -> Result<(Self, UnixDatagram)> {
        let log = host.directory.join(format!("{name}.log"));
        let output = File::options().create(true).append(true).open(&log).context("open the log")?;
        let socket = host.directory.join(format!("{name}.notify"));
        let _ = std::fs::remove_file(&socket);
        let notifications = UnixDatagram::bind(&socket).with_context(|| format!("bind {}", socket.display()))?;
        notifications.set_read_timeout(Some(Duration::from_millis(100)))?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .env("NOTIFY_SOCKET", &socket)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let child = host.namespace.spawn(&mut command)?;
        Ok((Self { child, log, name: name.to_owned() }, notifications))
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Where its output goes.
    #[must_use]
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Everything it has printed.
    #[must_use]
    pub fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether it has ended, and how.
    pub fn ended(&mut self) -> Result<Option<std::process::ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// SIGTERM, and its exit status; an error when it has not ended within ten seconds.
    pub fn stop(mut self) -> Result<std::process::ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(Duration::from_secs(10))
    }

    /// SIGKILL, as a crash or the kernel's memory killer would.
    pub fn kill(mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.wait(Duration::from_secs(10)).map(drop)
    }

    /// Waits for its end.
    pub fn wait(&mut self, patience: Duration) -> Result<std::process::ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("{} has not ended after {patience:?}; its log:\n{}", self.name, self.log_text());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let id = i32::try_from(self.child.id()).context("process id")?;
        kill(Pid::from_raw(id), signal).with_context(|| format!("send {signal} to {}", self.name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Asks `condition` until it says yes; an error, with `what`, after `patience`.
pub fn eventually(what: &str, patience: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        if condition()? {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("not within {patience:?}: {what}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
