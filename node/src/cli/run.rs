//! `warren run -- CMD`: the entrypoint wrapper. It starts a node, waits until that lets packets through as policy says,
//! starts the program, and stays between the two and whoever started it: signals go to the program, orphans are
//! reaped, the program's exit code is handed on, and the tunnel stands until the program is gone.
//!
//! ```text
//!   warren run (PID 1, or a subreaper) ── warren up          the node: capabilities, keys
//!                                     └── warren launch ──>  CMD: its own process group, no capability, nothing of ours
//! ```

mod children;
pub(super) mod launch;
mod network;
mod signals;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, getpgrp, getpid, kill_process, kill_process_group, set_child_subreaper};
use rustix::termios::{tcgetpgrp, tcsetpgrp};
use tokio::time::{Instant, sleep_until};
use warren_proto::WorkloadName;

use super::{Context, Exit, Failure, Outcome, config};
use crate::certificates::key_store::KeyStore;
use crate::local_api::client::ask_once;
use crate::local_api::types::{Request, Status};
use crate::state_dir::StateDir;
use children::{Children, Ended};
use launch::User;
use network::{Network, Private};
use signals::Signals;

/// The wrapper failed itself, and the program did not run or was cut off: as `docker run` and `env` say it.
const OWN_FAILURE: Exit = Exit::Program(125);
/// How often the node is asked whether it is ready.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// What the program leaves behind has this long to end by itself.
const LEFTOVERS: Duration = Duration::from_secs(2);
/// The node stops within this, or is killed: its own limit and some more.
const NODE_STOPS: Duration = Duration::from_secs(20);

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The program starts when packets are let through as policy says, and not at all when that takes longer than --wait. It runs in a process group of its own, without capabilities, and without any WARREN_ variable. Programs of the same user may read what this user may read: give --user where the node runs as root, so that its keys stay its own.

With --network private the program gets a network namespace of its own that only the overlay leads out of: no other network is routed to it, and nothing but the overlay reaches it. What it may open by path, the sockets of other programs among it, it may still open: give --user. The tunnel's UDP port and the control link stay where warren was started. It takes CAP_SYS_ADMIN.

SIGTERM goes to the program's group; a second one, or --grace, kills it. What the program leaves running is ended with it; then the node says goodbye. Should the node end first, the program is ended, too.

Exit code: the program's; 128+n when signal n ended it; 125 when warren itself failed (not ready, node ended); 126 when the program cannot be executed, 127 when it is not there.

Examples:
  warren run -- nginx -g 'daemon off;'
  warren run --identity shop/web-frontend --user 1000:1000 -- ./server
  warren run --network private -- ./server
  warren run --token-file /run/secrets/warren --wait 60s -- ./server
  warren run --attestor cluster-a --evidence-file /var/run/secrets/warren/token --root /etc/warren/root.pem -- ./server")]
pub(super) struct Arguments {
    /// The identity, `<namespace>/<name>`, in place of `workload` in the configuration.
    #[arg(long, value_name = "WORKLOAD")]
    identity: Option<WorkloadName>,
    /// Enrol with the join token in this file first, where this host is not enrolled.
    #[arg(long, value_name = "FILE", env = "WARREN_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    by_attestor: super::enrol::evidence::ByAttestor,
    /// How long the node may take to become ready: 30s, 500ms.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = super::top::parse_time)]
    wait: Duration,
    /// How long the program may take to end after SIGTERM before it is killed.
    #[arg(long, value_name = "TIME", default_value = "25s", value_parser = super::top::parse_time)]
    grace: Duration,
    /// Run the program as this user and group, by number: UID or UID:GID.
    #[arg(long, value_name = "UID[:GID]")]
    user: Option<User>,
    /// The network namespace that the program runs in.
    #[arg(long, value_enum, default_value_t = Network::Host)]
    network: Network,
    /// The program and its arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

pub(super) fn run(arguments: Arguments, context: &Context) -> Outcome {
    super::block_on(async move {
        let mut supervisor = Supervisor::new(&arguments, context)?;
        let outcome = supervisor.run().await;
        supervisor.stop_node().await;
        outcome
    })
    .map_err(|failure| failure.ending_with(OWN_FAILURE))
}

/// Everything that is to be watched.
struct Supervisor<'a> {
    arguments: &'a Arguments,
    context: &'a Context,
    program: PathBuf,
    socket: PathBuf,
    state_dir: PathBuf,
    signals: Signals,
    children: Children,
    node: Option<Pid>,
    private: Option<Private>,
}

fn failed(what: &str) -> impl FnOnce(std::io::Error) -> Failure {
    move |error| Failure::new(OWN_FAILURE, what).cause(&error)
}

impl<'a> Supervisor<'a> {
    fn new(arguments: &'a Arguments, context: &'a Context) -> Result<Self, Failure> {
        let config = config::load(context)?.config;
        // Before anything is started: PID 1 ignores every signal that nobody waits for.
        let signals = Signals::new().map_err(failed("signals cannot be taken"))?;
        if getpid().as_raw_nonzero().get() != 1 {
            set_child_subreaper(Some(getpid())).map_err(|errno| failed("orphans cannot be adopted")(errno.into()))?;
        }
        let program = std::env::current_exe().map_err(failed("this program's own file cannot be found"))?;
        let (socket, state_dir) = (config.socket, config.state_dir);
        let private = match arguments.network {
            Network::Host => None,
            Network::Private => Some(Private::new()?),
        };
        let children = Children::new();
        Ok(Self { arguments, context, program, socket, state_dir, signals, children, node: None, private })
    }

    async fn run(&mut self) -> Outcome {
        if let Some(exit) = self.enrol().await? {
            return Ok(exit);
        }
        let mut up = self.command(&["up", "--until-parent-ends", &std::process::id().to_string()]);
        if let Some(private) = &self.private {
            network::hand_to(
                &mut up,
                private.descriptor().map_err(failed("the network namespace cannot be handed on"))?,
            );
        }
        self.node = Some(start(&mut up).map_err(failed("the node cannot be started"))?);
        if let Some(exit) = self.ready().await? {
            return Ok(exit);
        }
        let group = self.start_program()?;
        self.supervise(group).await
    }

    /// One of our own commands as a child that a person's Ctrl-C does not reach. What it says goes to stderr.
    fn command(&self, arguments: &[impl AsRef<std::ffi::OsStr>]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).stdin(Stdio::null()).process_group(0);
        command.stdout(Stdio::from(std::io::stderr()));
        // We are what the supervisor knows; nobody waits for the node's word.
        command.env_remove("NOTIFY_SOCKET").env_remove("WATCHDOG_USEC").env_remove("WATCHDOG_PID");
        if let Some(config) = &self.context.config {
            command.env("WARREN_CONFIG", config);
        }
        if let Some(identity) = &self.arguments.identity {
            command.env("WARREN_WORKLOAD", identity.to_string());
        }
        command
    }

    /// How this host is to enrol, as arguments of `warren enrol`; empty when nothing says so.
    fn enrolment(&self) -> Vec<&std::ffi::OsStr> {
        let by = &self.arguments.by_attestor;
        let Some(attestor) = &by.attestor else {
            let token = self.arguments.token_file.iter();
            return token.flat_map(|file| ["--token-file".as_ref(), file.as_os_str()]).collect();
        };
        let files = [
            ("--evidence-file", &by.evidence_file),
            ("--evidence-key-file", &by.evidence_key_file),
            ("--root", &by.root),
        ];
        let files = files.into_iter().filter_map(|(name, file)| Some([name.as_ref(), file.as_ref()?.as_os_str()]));
        ["--attestor".as_ref(), attestor.as_ref()].into_iter().chain(files.flatten()).collect()
    }

    /// Enrols where there is something to enrol with and this host is no node yet. `Some` when a signal came first.
    async fn enrol(&mut self) -> Result<Option<Exit>, Failure> {
        let by = self.enrolment();
        if by.is_empty() {
            return Ok(None);
        }
        let enrolled = {
            let state =
                StateDir::open(&self.state_dir).map_err(|error| Failure::new(OWN_FAILURE, error.to_string()))?;
            KeyStore::new(&state).node().map_err(|error| Failure::new(OWN_FAILURE, error.to_string()))?.is_some()
        };
        if enrolled {
            return Ok(None);
        }
        let arguments: Vec<_> = std::iter::once("enrol".as_ref()).chain(by).collect();
        let enrolling = start(&mut self.command(&arguments)).map_err(failed("the enrolment cannot be started"))?;
        let deadline = Instant::now() + self.arguments.wait;
        loop {
            tokio::select! {
                ended = self.children.next() => if ended.pid == enrolling {
                    return match ended.code {
                        0 => Ok(None),
                        code => Err(Failure::new(OWN_FAILURE, format!("enrolment ended with {code}; the program was not started"))),
                    };
                },
                signal = self.signals.next() => {
                    // A terminal's new size, for one, ends nothing.
                    if let Some(exit) = ends(signal) {
                        let _ = kill_process(enrolling, Signal::TERM);
                        return Ok(Some(exit));
                    }
                }
                () = sleep_until(deadline) => {
                    let _ = kill_process(enrolling, Signal::KILL);
                    return Err(self.late("to enrol"));
                }
            }
        }
    }

    /// Waits until packets are let through as policy says. `Some` when a signal came first.
    async fn ready(&mut self) -> Result<Option<Exit>, Failure> {
        let deadline = Instant::now() + self.arguments.wait;
        let mut waits_for = "its daemon to answer".to_owned();
        let mut next = Instant::now();
        loop {
            tokio::select! {
                ended = self.children.next() => if Some(ended.pid) == self.node {
                    self.node = None;
                    let what = format!("the node ended with {}; the program was not started", ended.code);
                    return Err(Failure::new(OWN_FAILURE, what).next("what it said stands above"));
                },
                signal = self.signals.next() => if let Some(exit) = ends(signal) {
                    return Ok(Some(exit));
                },
                () = sleep_until(deadline) => return Err(self.late(&waits_for)),
                () = sleep_until(next) => {
                    if let Ok(status) = ask_once::<Status>(&self.socket, &Request::Status).await {
                        if status.ready {
                            return Ok(None);
                        }
                        waits_for = status.waiting_for.join(" and ");
                    }
                    next = Instant::now() + ASK_EVERY;
                }
            }
        }
    }

    fn late(&self, waits_for: &str) -> Failure {
        let waited = self.arguments.wait;
        Failure::new(OWN_FAILURE, format!("not ready within {waited:?}, so the program was not started"))
            .because(format!("the node waits for {waits_for}"))
            .next("warren check says what is wrong; --wait gives it longer")
    }

    /// Starts the program in a process group of its own, with the terminal if we have it.
    fn start_program(&self) -> Result<Pid, Failure> {
        let mut command = Command::new(&self.program);
        command.args(["launch", "--parent", &std::process::id().to_string()]).process_group(0);
        if let Some(user) = &self.arguments.user {
            command.arg("--user").arg(user.to_string());
        }
        command.arg("--").args(&self.arguments.command);
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_ours(name)) {
            command.env_remove(name);
        }
        self.warn_of_shared_secrets();
        let started = match &self.private {
            Some(private) => private.start(command),
            None => start(&mut command),
        };
        let group = started.map_err(failed("the program cannot be started"))?;
        let stdin = std::io::stdin();
        if stdin.is_terminal() && tcgetpgrp(&stdin).is_ok_and(|foreground| foreground == getpgrp()) {
            // It may have asked for input before it had the terminal, and have been stopped for it.
            let _ = tcsetpgrp(&stdin, group);
            let _ = kill_process_group(group, Signal::CONT);
        }
        Ok(group)
    }

    /// Keys are kept from other users by the file system; a program of the same user needs to be told apart.
    fn warn_of_shared_secrets(&self) {
        use std::os::unix::fs::MetadataExt;
        let owner = std::fs::metadata(&self.state_dir).map(|found| found.uid());
        let runs_as = self.arguments.user.map_or_else(|| rustix::process::geteuid().as_raw(), User::uid);
        if owner.is_ok_and(|owner| owner == runs_as) {
            self.context.output.say(format!(
                "warren: the program runs as the owner of {}, and may read the node's keys; --user keeps them apart",
                self.state_dir.display()
            ));
        }
    }

    /// Between the program and the world, until the program and what it left behind are gone.
    async fn supervise(&mut self, group: Pid) -> Outcome {
        let mut kill_at: Option<Instant> = None;
        let mut lost_node = false;
        loop {
            let deadline = kill_at;
            tokio::select! {
                ended = self.children.next() => {
                    if ended.pid == group {
                        self.end_leftovers(group).await;
                        return if lost_node { Err(node_lost()) } else { Ok(Exit::Program(ended.code)) };
                    }
                    if Some(ended.pid) == self.node {
                        self.node = None;
                        lost_node = true;
                        self.context.output.say("warren: the node has ended; the program is ended, too");
                        let _ = kill_process_group(group, Signal::TERM);
                        kill_at.get_or_insert(Instant::now() + self.arguments.grace);
                    }
                }
                signal = self.signals.next() => {
                    let again = signal == Signal::TERM && kill_at.is_some();
                    let _ = kill_process_group(group, if again { Signal::KILL } else { signal });
                    if signal == Signal::TERM {
                        kill_at.get_or_insert(Instant::now() + self.arguments.grace);
                    }
                }
                () = async { sleep_until(deadline.unwrap_or_else(Instant::now)).await }, if deadline.is_some() => {
                    let _ = kill_process_group(group, Signal::KILL);
                    // Killed once; what is left is waiting for the kernel.
                    kill_at = Some(Instant::now() + self.arguments.grace.max(Duration::from_secs(1)));
                }
            }
        }
    }

    /// Ends what outlived the program: its group, and the orphans that fell to us.
    async fn end_leftovers(&mut self, group: Pid) {
        let deadline = Instant::now() + LEFTOVERS;
        let _ = kill_process_group(group, Signal::TERM);
        let mut strongest = Signal::TERM;
        let mut told: Vec<Pid> = Vec::new();
        loop {
            let left = self.children.living(self.node);
            if left.is_empty() {
                return;
            }
            if Instant::now() >= deadline && strongest != Signal::KILL {
                strongest = Signal::KILL;
                told.clear();
            }
            // Each once: what one of them forks on its way out is told next time round.
            for pid in left {
                if !told.contains(&pid) {
                    let _ = kill_process(pid, strongest);
                    told.push(pid);
                }
            }
            if Instant::now() >= deadline + LEFTOVERS {
                self.context.output.say("warren: some of the program's processes cannot be ended");
                return;
            }
            let look_again = Instant::now() + ASK_EVERY;
            tokio::select! {
                ended = self.children.next() => if Some(ended.pid) == self.node {
                    self.node = None;
                },
                _ = self.signals.next() => {}
                () = sleep_until(look_again) => {}
            }
        }
    }

    /// Lets the node say goodbye.
    async fn stop_node(&mut self) {
        let Some(node) = self.node.take() else { return };
        let _ = kill_process(node, Signal::TERM);
        let mut deadline = Instant::now() + NODE_STOPS;
        let mut killed = false;
        loop {
            tokio::select! {
                Ended { pid, .. } = self.children.next() => if pid == node { return },
                _ = self.signals.next() => {}
                () = sleep_until(deadline) => {
                    if std::mem::replace(&mut killed, true) {
                        return;
                    }
                    let _ = kill_process(node, Signal::KILL);
                    deadline = Instant::now() + LEFTOVERS;
                }
            }
        }
    }
}

fn node_lost() -> Failure {
    Failure::new(OWN_FAILURE, "the node ended while the program ran").next("what it said stands above")
}

/// Whether a signal that comes before the program is there ends the wait, and with which code.
fn ends(signal: Signal) -> Option<Exit> {
    let ends = [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT].contains(&signal);
    ends.then(|| Exit::Program(children::code_of_signal(signal.as_raw())))
}

/// Whether a variable is this program's own: where it keeps things, tokens, addresses.
fn is_ours(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b"WARREN_")
}

/// Starts a child whose end is [`Children`]'s to see, not std's.
fn start(command: &mut Command) -> std::io::Result<Pid> {
    let child = command.spawn()?;
    let id = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    id.ok_or_else(|| std::io::Error::other("the child has no process id"))
}

/// The ids of this process's children, if the kernel says. It keeps them by thread: orphans are the first one's, the program of
/// a private network is that of the thread that started it.
fn children_of_all_threads() -> String {
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_ours_is_in_the_programs_environment() {
        for (name, ours) in
            [("WARREN_TOKEN_FILE", true), ("WARREN_CONFIG", true), ("PATH", false), ("MY_WARREN_", false)]
        {
            assert_eq!(is_ours(std::ffi::OsStr::new(name)), ours, "{name}");
        }
    }

    #[test]
    fn a_signal_before_the_start_ends_the_wait_with_its_code_and_others_do_not() {
        assert_eq!(ends(Signal::TERM), Some(Exit::Program(143)));
        assert_eq!(ends(Signal::USR1), None);
    }
}
