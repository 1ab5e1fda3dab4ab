//! `warren run`: the program starts when the tunnel lets it through and not before, hears every signal, is never left with
//! orphans, ends with its own code, and has its tunnel to the end. Each as a plain process and as PID 1 of a PID namespace, in
//! the host's network and in one of the program's own.
//!
//! ```text
//!   coordinator   web-1                              bank-1
//!                 warren run -- bash -c '…'          bank/banking-api, 8080 allowed
//!   ==================================================================
//! ```

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use warren_netns_tests::mesh::{IN_FORCE, Mesh, Node};
use warren_netns_tests::namespace::is_user_namespace;
use warren_netns_tests::processes::{Process, binary, eventually};

use super::{ANSWER_TEXT, BANK, POLICY, WEB, claim, serve};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        claim("run::the_programs_end_is_its_own_and_what_cannot_run_has_its_code", ends),
        claim("run::signals_reach_the_program", signals),
        claim("run::a_second_term_kills_and_so_does_the_end_of_the_grace", kills),
        claim("run::orphans_are_reaped_and_what_outlives_the_program_is_ended", orphans),
        claim("run::without_readiness_the_program_never_starts", unready),
        claim("run::the_tunnel_stands_until_the_program_is_gone", last_words),
        claim("run::a_lost_node_ends_the_program", lost_node),
        claim("run::a_killed_wrapper_takes_the_node_and_the_program_with_it", killed_wrapper),
        claim("run::a_resized_terminal_ends_no_enrolment", resized_while_enrolling),
        claim("run::the_program_has_no_capability_and_nothing_of_the_nodes", nothing_of_ours),
    ]
}

/// The whole table is gone through in each of them.
const WAYS: [Way; 4] = [
    Way { init: false, private: false },
    Way { init: true, private: false },
    Way { init: false, private: true },
    Way { init: true, private: true },
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Way {
    /// PID 1 of a PID namespace, or a process among others.
    init: bool,
    /// In a network namespace of its own, or the host's.
    private: bool,
}

/// A running `warren run`.
struct Run {
    process: Process,
    way: Way,
}

fn mesh_and_node() -> Result<(Mesh, Node)> {
    let mut mesh = Mesh::new(&["--overlay-v4", "10.77.0.0/16"])?;
    mesh.try_apply(POLICY, &[])?.expect(0)?;
    let web = mesh.enrol("web-1", WEB)?;
    Ok((mesh, web))
}

impl Run {
    /// `warren run OPTIONS -- COMMAND` on `node`'s host, in its directory.
    fn start(node: &Node, way: Way, options: &[&str], command: &[&str]) -> Result<Self> {
        let warren = binary("warren")?;
        let (program, mut all) = if way.init {
            let mut all = ["--pid", "--fork", "--kill-child", "--mount-proc"].map(OsStr::new).to_vec();
            all.push(warren.as_os_str());
            (PathBuf::from("unshare"), all)
        } else {
            (warren.clone(), Vec::new())
        };
        all.push(OsStr::new("run"));
        if way.private {
            all.extend(["--network", "private"].map(OsStr::new));
        }
        all.extend(options.iter().chain(&["--"]).chain(command).map(OsStr::new));
        let environment: [(&str, OsString); 3] = [
            ("WARREN_CONFIG", node.config().into()),
            ("WARREN_ADMIN_TOKEN_FILE", "/nowhere/admin.token".into()),
            ("HERE", node.host.directory.clone().into()),
        ];
        let name = format!("run-{}", fresh());
        let process = Process::start_unready(&node.host, &name, &program, &all, &environment)?;
        Ok(Self { process, way })
    }

    /// A bash script; `$HERE` is the host's directory.
    fn script(node: &Node, way: Way, options: &[&str], script: &str) -> Result<Self> {
        Self::start(node, way, options, &["bash", "-c", script])
    }

    /// The wrapper's id as this test sees it.
    fn wrapper(&self) -> Result<i32> {
        let own = i32::try_from(self.process.id())?;
        if self.way.init { children(own).first().copied().context("unshare has no child yet") } else { Ok(own) }
    }

    /// The same, as soon as it has been started.
    fn wrapper_when_there(&mut self) -> Result<i32> {
        eventually("the wrapper has been started", IN_FORCE, || {
            ensure!(self.process.ended()?.is_none(), "it has ended: {}", self.process.log_text());
            Ok(self.wrapper().is_ok())
        })?;
        self.wrapper()
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.wrapper()?), signal)?)
    }

    /// Waits for the end and its code.
    fn code(mut self) -> Result<(i32, String)> {
        let status = self.process.wait(IN_FORCE)?;
        let log = self.process.log_text();
        Ok((status.code().with_context(|| format!("a signal ended the wrapper: {status}\n{log}"))?, log))
    }
}

fn fresh() -> u32 {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

fn children(of: i32) -> Vec<i32> {
    // Each thread has its own.
    let threads = fs::read_dir(format!("/proc/{of}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let text: String = lists.collect();
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

fn command_line(of: i32) -> String {
    fs::read_to_string(format!("/proc/{of}/cmdline")).unwrap_or_default().replace('\0', " ")
}

/// Waits until the script has left a file, and takes it away.
fn wait_for(node: &Node, name: &str, run: &mut Run) -> Result<String> {
    let path = node.host.directory.join(name);
    let mut text = String::new();
    let waited = eventually(&format!("the program has left {name}"), IN_FORCE, || {
        ensure!(run.process.ended()?.is_none(), "it has ended");
        text = fs::read_to_string(&path).unwrap_or_default();
        Ok(text.ends_with('\n'))
    });
    waited.with_context(|| run.process.log_text())?;
    fs::remove_file(&path)?;
    Ok(text)
}

fn ends() -> Result<()> {
    let (_mesh, web) = mesh_and_node()?;
    let plain = web.host.directory.join("not-executable");
    fs::write(&plain, "text")?;
    let plain = plain.to_string_lossy().into_owned();
    for way in WAYS {
        for (command, expected) in [
            (["bash", "-c", "exit 0"].as_slice(), 0),
            (&["bash", "-c", "exit 7"], 7),
            (&["bash", "-c", "exit 255"], 255),
            (&["bash", "-c", "kill -TERM $$"], 143),
            (&["bash", "-c", "kill -KILL $$"], 137),
            (&["/nowhere/program"], 127),
            (&[plain.as_str()], 126),
        ] {
            let (code, log) = Run::start(&web, way, &[], command)?.code()?;
            ensure!(code == expected, "{way:?}, {command:?}: {code}, not {expected}\n{log}");
        }
    }
    Ok(())
}

fn signals() -> Result<()> {
    let (_mesh, web) = mesh_and_node()?;
    let script = "for s in USR1 USR2 HUP INT QUIT WINCH ALRM CONT; do trap \"echo $s >> $HERE/got\" $s; done
        trap 'exit 3' TERM; echo > $HERE/started; while :; do sleep 0.05; done";
    for way in WAYS {
        let mut run = Run::script(&web, way, &[], script)?;
        wait_for(&web, "started", &mut run)?;
        for signal in [
            Signal::SIGUSR1,
            Signal::SIGUSR2,
            Signal::SIGHUP,
            Signal::SIGINT,
            Signal::SIGQUIT,
            Signal::SIGWINCH,
            Signal::SIGALRM,
            Signal::SIGCONT,
        ] {
            run.signal(signal)?;
            let got = wait_for(&web, "got", &mut run)?;
            ensure!(format!("SIG{}", got.trim()) == signal.as_str(), "{way:?}: {signal} came as {got:?}");
        }
        run.signal(Signal::SIGTERM)?;
        let (code, log) = run.code()?;
        ensure!(code == 3, "{way:?}: {code}\n{log}");
        // A shell that has children of its own: all of them hear it.
        let mut run = Run::script(&web, way, &[], "sleep 1000 & sleep 1000 & echo > $HERE/started; wait")?;
        wait_for(&web, "started", &mut run)?;
        run.signal(Signal::SIGTERM)?;
        let (code, log) = run.code()?;
        ensure!(code == 143, "{way:?}: {code}\n{log}");
    }
    Ok(())
}

fn kills() -> Result<()> {
    let (_mesh, web) = mesh_and_node()?;
    let deaf = "trap '' TERM; echo > $HERE/started; while :; do sleep 0.05; done";
    for way in WAYS {
        for (grace, terms) in [("60s", 2), ("500ms", 1)] {
            let mut run = Run::script(&web, way, &["--grace", grace], deaf)?;
            wait_for(&web, "started", &mut run)?;
            for _ in 0..terms {
                run.signal(Signal::SIGTERM)?;
                // Two that come at once are one to the kernel.
                std::thread::sleep(Duration::from_millis(200));
            }
            let (code, log) = run.code()?;
            ensure!(code == 137, "{way:?}, grace {grace}, {terms} x TERM: {code}\n{log}");
        }
    }
    Ok(())
}

fn orphans() -> Result<()> {
    let (_mesh, web) = mesh_and_node()?;
    // Known from what another run of these tests may have left.
    let lasting = format!("sleep 1234.{}", std::process::id());
    for way in WAYS {
        let script = format!(
            "for i in $(seq 100); do (sh -c 'exit 0' &); done; echo > $HERE/forked
            while [ ! -e $HERE/on ]; do sleep 0.05; done; rm $HERE/on
            setsid sh -c 'echo > $HERE/left; exec {lasting}' &
            while [ ! -e $HERE/left ]; do sleep 0.05; done; exit 4"
        );
        let mut run = Run::script(&web, way, &[], &script)?;
        wait_for(&web, "forked", &mut run)?;
        let wrapper = run.wrapper()?;
        eventually("the wrapper has two children, the node and the program", IN_FORCE, || {
            Ok(children(wrapper).len() == 2)
        })
        .with_context(|| format!("{:?}", children(wrapper).into_iter().map(command_line).collect::<Vec<_>>()))?;
        fs::write(web.host.directory.join("on"), "")?;
        let (code, log) = run.code()?;
        ensure!(code == 4, "{way:?}: {code}\n{log}");
        let left = fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let left: Vec<_> = left.map(command_line).filter(|line| line.contains(&lasting)).collect();
        ensure!(left.is_empty(), "{way:?}: {left:?}");
        let _ = fs::remove_file(web.host.directory.join("left"));
    }
    Ok(())
}

fn unready() -> Result<()> {
    let (mut mesh, web) = mesh_and_node()?;
    let stranger = Node::on(mesh.lab.host("stranger-1")?, WEB)?;
    // Enrolled, and the coordinator is gone before it has said anything about the mesh.
    mesh.coordinator.stop()?;
    for way in WAYS {
        for (node, options, told) in [
            (&stranger, ["--wait", "20s"].as_slice(), "not enrolled"),
            (&web, &["--wait", "2s"], "not ready within 2s"),
        ] {
            let (code, log) = Run::script(node, way, options, "echo > $HERE/started")?.code()?;
            ensure!(code == 125 && log.contains(told), "{way:?}, {told}: {code}\n{log}");
            ensure!(!node.host.directory.join("started").exists(), "{way:?}, {told}: the program ran\n{log}");
        }
        // Told to stop while it waits.
        let run = Run::script(&web, way, &["--wait", "60s"], "echo > $HERE/started")?;
        eventually("the node has been started", IN_FORCE, || {
            Ok(run
                .wrapper()
                .is_ok_and(|wrapper| children(wrapper).into_iter().any(|pid| command_line(pid).contains(" up "))))
        })?;
        run.signal(Signal::SIGTERM)?;
        let (code, log) = run.code()?;
        ensure!(code == 143 && !web.host.directory.join("started").exists(), "{way:?}: {code}\n{log}");
    }
    Ok(())
}

fn last_words() -> Result<()> {
    let (mut mesh, web) = mesh_and_node()?;
    let bank = mesh.node("bank-1", BANK)?;
    serve(&bank)?;
    let address = bank.addresses()?.into_iter().find(std::net::IpAddr::is_ipv4).context("an IPv4 address")?;
    let ask = format!("exec 3<>/dev/tcp/{address}/8080; echo question >&3; cat <&3 > $HERE/answer");
    let script = format!("trap '{ask}; exit 5' TERM; echo > $HERE/started; while :; do sleep 0.05; done");
    for way in WAYS {
        let mut run = Run::script(&web, way, &[], &script)?;
        wait_for(&web, "started", &mut run)?;
        run.signal(Signal::SIGTERM)?;
        let (code, log) = run.code()?;
        let answer = fs::read(web.host.directory.join("answer")).unwrap_or_default();
        ensure!(code == 5 && answer == ANSWER_TEXT, "{way:?}: {code}, {} bytes\n{log}", answer.len());
        fs::remove_file(web.host.directory.join("answer"))?;
    }
    Ok(())
}

fn lost_node() -> Result<()> {
    let (_mesh, web) = mesh_and_node()?;
    let script = "trap 'echo > $HERE/told; exit 0' TERM; echo > $HERE/started; while :; do sleep 0.05; done";
    for way in WAYS {
        let mut run = Run::script(&web, way, &[], script)?;
        wait_for(&web, "started", &mut run)?;
        let node = children(run.wrapper()?).into_iter().find(|pid| command_line(*pid).contains(" up "));
        kill(Pid::from_raw(node.context("no node among the wrapper's children")?), Signal::SIGKILL)?;
        let (code, log) = run.code()?;
        ensure!(code == 125 && log.contains("the node"), "{way:?}: {code}\n{log}");
        ensure!(web.host.directory.join("told").exists(), "{way:?}: the program was not asked to end");
        fs::remove_file(web.host.directory.join("told"))?;
    }
    Ok(())
}

/// Whether a process runs: one that has ended and that nobody has waited for does not.
fn runs(id: i32) -> bool {
    let state = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    state.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

fn killed_wrapper() -> Result<()> {
    let (_mesh, web) = mesh_and_node()?;
    // In the tests' own user namespace nobody but root is anybody.
    let users: &[&[&str]] = if is_user_namespace()? { &[&[]] } else { &[&[], &["--user", "4321:4321"]] };
    for way in WAYS {
        for user in users {
            let mut run = Run::start(&web, way, user, &["sleep", "4321.5"])?;
            let wrapper = run.wrapper_when_there()?;
            let mut those = Vec::new();
            let waited = eventually("the node and the program run", IN_FORCE, || {
                ensure!(run.process.ended()?.is_none(), "it has ended");
                those = children(wrapper);
                let lines: Vec<_> = those.iter().map(|pid| command_line(*pid)).collect();
                Ok(lines.iter().any(|line| line.contains(" up ")) && lines.iter().any(|line| line == "sleep 4321.5 "))
            });
            waited.with_context(|| run.process.log_text())?;
            kill(Pid::from_raw(wrapper), Signal::SIGKILL)?;
            eventually("both have ended", IN_FORCE, || Ok(!those.iter().any(|pid| runs(*pid)))).with_context(|| {
                format!("{way:?}, {user:?}: {:?}", those.iter().map(|pid| command_line(*pid)).collect::<Vec<_>>())
            })?;
            run.process.wait(IN_FORCE)?;
        }
    }
    Ok(())
}

fn resized_while_enrolling() -> Result<()> {
    let mut mesh = Mesh::new(&[])?;
    mesh.try_apply(POLICY, &[])?.expect(0)?;
    for (number, way) in WAYS.into_iter().enumerate() {
        let token = fs::read_to_string(mesh.token(WEB, &[])?)?;
        let web = Node::on(mesh.lab.host(&format!("web-{number}"))?, WEB)?;
        // The enrolment reads its token, and waits until there is one.
        let pipe = web.host.directory.join("token");
        mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR)?;
        let pipe_name = pipe.to_string_lossy().into_owned();
        let mut run = Run::start(&web, way, &["--token-file", &pipe_name, "--wait", "60s"], &["bash", "-c", "exit 9"])?;
        let wrapper = run.wrapper_when_there()?;
        let mut writer = None;
        eventually("the enrolment waits for its token", IN_FORCE, || {
            ensure!(run.process.ended()?.is_none(), "it has ended: {}", run.process.log_text());
            writer = fs::OpenOptions::new().write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&pipe).ok();
            Ok(writer.is_some())
        })?;
        kill(Pid::from_raw(wrapper), Signal::SIGWINCH)?;
        // Long enough for a wrapper that takes it for an end; a longer wait shows no more.
        std::thread::sleep(Duration::from_millis(300));
        writer.context("the token's pipe")?.write_all(token.as_bytes())?;
        let (code, log) = run.code()?;
        ensure!(code == 9, "{way:?}: {code}\n{log}");
    }
    Ok(())
}

fn nothing_of_ours() -> Result<()> {
    let (_mesh, web) = mesh_and_node()?;
    let script = "cd $HERE; grep -E '^(Cap|NoNewPrivs)' /proc/$$/status > status; env > environment
        ls /proc/$$/fd > descriptors; exit 0";
    // What whoever started the wrapper left open is the program's; nothing may have come in between.
    let list = [OsStr::new("-c"), OsStr::new("ls /proc/$$/fd > $HERE/descriptors; exit 0")];
    let here = [("HERE", OsString::from(web.host.directory.clone()))];
    Process::start_unready(&web.host, "bare", Path::new("bash"), &list, &here)?.wait(IN_FORCE)?;
    let given = fs::read_to_string(web.host.directory.join("descriptors"))?;
    for way in WAYS {
        let (code, log) = Run::script(&web, way, &["--identity", WEB], script)?.code()?;
        ensure!(code == 0, "{way:?}: {code}\n{log}");
        let read = |name: &str| fs::read_to_string(web.host.directory.join(name)).with_context(|| name.to_owned());
        let status = read("status")?;
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            ensure!(status.contains(&format!("{set}:\t0000000000000000\n")), "{way:?}: {status}");
        }
        ensure!(status.contains("NoNewPrivs:\t1"), "{way:?}: {status}");
        let environment = read("environment")?;
        let of_ours: Vec<_> = environment.lines().filter(|line| line.starts_with("WARREN_")).collect();
        ensure!(of_ours.is_empty() && environment.contains("HERE="), "{way:?}: {environment}");
        let descriptors = read("descriptors")?;
        ensure!(descriptors == given, "{way:?}: {descriptors:?}, and without the wrapper {given:?}");
    }
    Ok(())
}
