//! A whole mesh on the lab's wire: one coordinator, any number of enrolled hosts, the two real binaries
//! throughout. What the demo shows and most tests stand on.

use std::ffi::{OsStr, OsString};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::host::Host;
use crate::lab::Lab;
use crate::processes::{Process, binary, eventually};
use crate::variant;

/// The trust domain of every lab.
pub const DOMAIN: &str = "bank.example";
/// QUIC for nodes.
pub const CONTROL_PORT: u16 = 8443;
/// HTTPS for administrators.
pub const ADMIN_PORT: u16 = 8444;

/// How long a change may take to be in force everywhere, on a busy machine.
pub const IN_FORCE: Duration = Duration::from_secs(30);

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Answer {
    /// The exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Data.
    pub stdout: String,
    /// Talk.
    pub stderr: String,
}

impl Answer {
    /// The printed data as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("not JSON: {self:?}"))
    }

    /// Itself if the exit code is `code`, else an error that shows everything.
    pub fn expect(self, code: i32) -> Result<Self> {
        if self.code == Some(code) { Ok(self) } else { bail!("expected exit code {code}: {self:#?}") }
    }
}

/// The coordinator on its host.
#[derive(Debug)]
pub struct Coordinator {
    /// Where it runs.
    pub host: Host,
    process: Option<Process>,
    starts: u32,
    more_environment: Vec<(&'static str, OsString)>,
}

/// An enrolled host with its node.
#[derive(Debug)]
pub struct Node {
    /// Where it runs.
    pub host: Host,
    /// The identity it holds, `<namespace>/<name>`.
    pub workload: String,
    process: Option<Process>,
    starts: u32,
    more_environment: Vec<(&'static str, OsString)>,
}

/// A lab with a coordinator and nodes.
#[derive(Debug)]
pub struct Mesh {
    /// The wire and its hosts.
    pub lab: Lab,
    /// The coordinator.
    pub coordinator: Coordinator,
}

impl Mesh {
    /// A coordinator that is ready, and no node yet. `options` are added to `warren-coordinator init`.
    pub fn new(options: &[&str]) -> Result<Self> {
        let mut lab = Lab::new()?;
        let coordinator = Coordinator::on(lab.host("coordinator")?, options)?;
        Ok(Self { lab, coordinator })
    }

    /// Applies policy documents and waits until every node concerned has them in force.
    pub fn apply(&self, documents: &str) -> Result<Answer> {
        self.try_apply(documents, &["--wait", "30s"])?.expect(0)
    }

    /// `warren policy apply` on one file of `documents`, with more arguments.
    pub fn try_apply(&self, documents: &str, arguments: &[&str]) -> Result<Answer> {
        let directory = self.coordinator.host.directory.join("policy");
        std::fs::create_dir_all(&directory)?;
        std::fs::write(directory.join("mesh.yaml"), documents)?;
        let mut all = vec![OsStr::new("policy"), OsStr::new("apply"), directory.as_os_str()];
        all.extend(arguments.iter().map(OsStr::new));
        self.coordinator.admin(&all)
    }

    /// A join token for `workload`, in a file.
    pub fn token(&self, workload: &str, arguments: &[&str]) -> Result<PathBuf> {
        let mut all = vec!["token", "create", "--for", workload];
        all.extend(arguments);
        let answer = self.coordinator.admin(&words(&all))?.expect(0)?;
        let name = format!("{}-{}.token", workload.replace('/', "-"), self.lab.fresh_number());
        let path = self.lab.directory().join(name);
        std::fs::write(&path, answer.stdout.trim())?;
        Ok(path)
    }

    /// A new host on the wire, enrolled for `workload`, its node not started.
    pub fn enrol(&mut self, name: &str, workload: &str) -> Result<Node> {
        let token = self.token(workload, &[])?;
        let node = Node::on(self.lab.host(name)?, workload)?;
        node.cli(&[OsStr::new("enrol"), OsStr::new("--token-file"), token.as_os_str()])?.expect(0)?;
        Ok(node)
    }

    /// A new host on the wire, enrolled, its node ready.
    pub fn node(&mut self, name: &str, workload: &str) -> Result<Node> {
        let mut node = self.enrol(name, workload)?;
        node.start()?;
        Ok(node)
    }
}

/// Plain words as arguments.
#[must_use]
pub fn words<'a>(all: &[&'a str]) -> Vec<&'a OsStr> {
    all.iter().map(|word| OsStr::new(*word)).collect()
}

impl Coordinator {
    /// A coordinator that is ready, with its administrator's token at hand.
    pub fn on(host: Host, options: &[&str]) -> Result<Self> {
        let mut coordinator = Self { host, process: None, starts: 0, more_environment: Vec::new() };
        coordinator.init(options)?.expect(0)?;
        coordinator.start()?;
        coordinator.claim()?;
        Ok(coordinator)
    }

    /// Its directory: configuration, CA, store.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        self.host.directory.join("coordinator")
    }

    fn init(&self, options: &[&str]) -> Result<Answer> {
        let directory = self.directory();
        let (listen, admin) = (self.host.at(CONTROL_PORT).to_string(), self.host.at(ADMIN_PORT).to_string());
        let mut all = vec![OsStr::new("init"), OsStr::new("--dir"), directory.as_os_str()];
        all.extend(words(&["--domain", DOMAIN, "--listen", &listen, "--admin-listen", &admin]));
        all.extend(words(options));
        run(&self.host, "warren-coordinator", &all, &[])
    }

    /// Starts it and waits until it is ready.
    pub fn start(&mut self) -> Result<()> {
        self.starts += 1;
        let config = self.directory().join("coordinator.yaml");
        let arguments = [OsStr::new("serve"), OsStr::new("--config"), config.as_os_str()];
        let name = format!("coordinator-{}", self.starts);
        let program = binary("warren-coordinator")?;
        self.process = Some(Process::start(&self.host, &name, &program, &arguments, &self.more_environment)?);
        Ok(())
    }

    /// What it is started with from now on, beside what it needs.
    pub fn set_environment(&mut self, environment: Vec<(&'static str, OsString)>) {
        self.more_environment = environment;
    }

    /// SIGTERM; it must end with code 0.
    pub fn stop(&mut self) -> Result<()> {
        stop(self.process.take(), "the coordinator")
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("the coordinator is not running")?.kill()
    }

    /// Sends SIGKILL while others may be talking to it; [`Self::reap`] takes leave of it afterwards.
    pub fn signal_kill(&self) -> Result<()> {
        self.process.as_ref().context("the coordinator is not running")?.signal(nix::sys::signal::Signal::SIGKILL)
    }

    /// Waits for the end that [`Self::signal_kill`] brought.
    pub fn reap(&mut self) -> Result<()> {
        let mut process = self.process.take().context("the coordinator is not running")?;
        process.wait(Duration::from_secs(10)).map(drop)
    }

    /// The file that holds the store's log.
    #[must_use]
    pub fn store_log(&self) -> PathBuf {
        self.directory().join("store/db")
    }

    /// The running process.
    pub fn process(&mut self) -> Result<&mut Process> {
        self.process.as_mut().context("the coordinator is not running")
    }

    /// Exchanges the first-run token for an administrator's, once.
    fn claim(&self) -> Result<()> {
        let first = self.directory().join("first-run-token");
        let arguments =
            [OsStr::new("admin"), OsStr::new("claim"), OsStr::new("--first-run-token-file"), first.as_os_str()];
        let answer = self.admin(&arguments)?.expect(0)?;
        Ok(std::fs::write(self.token_file(), answer.stdout.trim())?)
    }

    fn token_file(&self) -> PathBuf {
        self.host.directory.join("admin.token")
    }

    /// Runs an administrator's command of `warren` on the coordinator's host.
    pub fn admin(&self, arguments: &[&OsStr]) -> Result<Answer> {
        let address = format!("https://{}", self.host.at(ADMIN_PORT));
        let environment = [
            ("WARREN_COORDINATOR", OsString::from(address)),
            ("WARREN_ADMIN_TOKEN_FILE", self.token_file().into()),
            ("WARREN_ROOT", self.directory().join("root.pem").into()),
        ];
        run(&self.host, "warren", arguments, &environment)
    }

    /// The same with plain words.
    pub fn say(&self, arguments: &[&str]) -> Result<Answer> {
        self.admin(&words(arguments))
    }
}

impl Node {
    /// A host that is configured and not enrolled.
    pub fn on(host: Host, workload: &str) -> Result<Self> {
        let workload = workload.to_owned();
        let node = Self { host, workload, process: None, starts: 0, more_environment: Vec::new() };
        node.configure("")?;
        Ok(node)
    }

    /// Its state directory.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.host.directory.join("state")
    }

    /// Its configuration, and the variant that the whole run is held in; whoever runs tests has had that checked.
    fn environment(&self) -> Vec<(&'static str, OsString)> {
        let mut all = variant::environment().unwrap_or_default();
        all.extend(self.more_environment.iter().cloned());
        all.push(("WARREN_CONFIG", self.config().into()));
        all
    }

    /// What it, and every command on its host, is started with from now on, beside what it needs.
    pub fn set_environment(&mut self, environment: Vec<(&'static str, OsString)>) {
        self.more_environment = environment;
    }

    /// Its configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.host.directory.join("warren.yaml")
    }

    /// Writes the configuration: where this host keeps its things, and `more` keys.
    pub fn configure(&self, more: &str) -> Result<()> {
        let directory = self.host.directory.display();
        let text = format!("state_dir: {directory}/state\nsocket: {directory}/warren.sock\n{more}");
        Ok(std::fs::write(self.config(), text)?)
    }

    /// Another node on the same host: the same namespace, its own configuration and state.
    pub fn twin(&self) -> Result<Twin<'_>> {
        let directory = self.host.directory.join("twin");
        std::fs::create_dir(&directory)?;
        let config = directory.join("warren.yaml");
        let place = directory.display();
        let text = format!(
            "state_dir: {place}/state\nsocket: {place}/warren.sock\ntunnel: {{ device: warren1, port: 51821 }}\n"
        );
        std::fs::write(&config, text)?;
        Ok(Twin { host: &self.host, config })
    }

    /// Runs `warren` with `arguments` on this host.
    pub fn cli(&self, arguments: &[&OsStr]) -> Result<Answer> {
        run(&self.host, "warren", arguments, &self.environment())
    }

    /// The same with plain words.
    pub fn say(&self, arguments: &[&str]) -> Result<Answer> {
        self.cli(&words(arguments))
    }

    /// Starts it and waits until it is ready.
    pub fn start(&mut self) -> Result<()> {
        self.starts += 1;
        let name = format!("{}-{}", self.host.name, self.starts);
        let process = Process::start(&self.host, &name, &binary("warren")?, &[OsStr::new("up")], &self.environment())?;
        self.process = Some(process);
        Ok(())
    }

    /// Starts it where it cannot become ready, and waits until it answers.
    pub fn start_unready(&mut self) -> Result<()> {
        self.starts += 1;
        let name = format!("{}-{}", self.host.name, self.starts);
        let up = [OsStr::new("up")];
        let process = Process::start_unready(&self.host, &name, &binary("warren")?, &up, &self.environment())?;
        self.process = Some(process);
        eventually("the node answers", IN_FORCE, || Ok(self.say(&["status"])?.code == Some(0)))
    }

    /// Starts it where it must refuse what it finds: waits until its log holds `reason`, or it has ended, and stops it
    /// after `meanwhile`. The log without `reason` is an error.
    pub fn must_refuse(&mut self, reason: &str, meanwhile: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        self.start_unready()?;
        let told = eventually(&format!("the log names {reason}"), IN_FORCE, || {
            let process = self.process()?;
            Ok(process.log_text().contains(reason) || process.ended()?.is_some())
        });
        let checked = meanwhile(self);
        let mut process = self.process.take().context("the node is not running")?;
        let log = process.log_text();
        if process.ended()?.is_none() {
            process.kill()?;
        }
        told.and(checked).with_context(|| log.clone())?;
        if log.contains(reason) { Ok(()) } else { bail!("the log does not name {reason}:\n{log}") }
    }

    /// SIGTERM; it must end with code 0.
    pub fn stop(&mut self) -> Result<()> {
        stop(self.process.take(), &self.host.name)
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("the node is not running")?.kill()
    }

    /// The running process.
    pub fn process(&mut self) -> Result<&mut Process> {
        self.process.as_mut().context("the node is not running")
    }

    /// Its overlay addresses, IPv6 first.
    pub fn addresses(&self) -> Result<Vec<IpAddr>> {
        let status = self.say(&["status", "-o", "json"])?.expect(0)?.json()?;
        let instances = status["instances"].as_array().cloned().unwrap_or_default();
        let addresses = instances.iter().flat_map(|i| i["addresses"].as_array().cloned().unwrap_or_default());
        let addresses: Vec<IpAddr> =
            addresses.filter_map(|address| address.as_str().and_then(|text| text.parse().ok())).collect();
        if addresses.is_empty() {
            bail!("{} shows no overlay address: {status}", self.host.name);
        }
        Ok(addresses)
    }

    /// Its first overlay address with a port.
    pub fn at(&self, port: u16) -> Result<SocketAddr> {
        let addresses = self.addresses()?;
        addresses.first().map(|address| (*address, port).into()).context("no overlay address")
    }

    /// The flows it has recorded under a verdict, `allowed` or `denied`.
    pub fn flows(&self, verdict: &str) -> Result<Vec<Value>> {
        let flows = self.say(&["flows", "--verdict", verdict, "-o", "json"])?.expect(0)?.json()?;
        Ok(flows["items"].as_array().cloned().unwrap_or_default())
    }

    /// Waits until it has recorded a flow under `verdict` for which `matches` holds.
    pub fn wait_for_flow(&self, verdict: &str, what: &str, matches: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut found = None;
        let waited = eventually(what, IN_FORCE, || {
            found = self.flows(verdict)?.into_iter().find(&matches);
            Ok(found.is_some())
        });
        waited.with_context(|| format!("{} recorded {:#?}", self.host.name, self.flows(verdict)))?;
        found.context("found")
    }

    /// Waits for a denied flow.
    pub fn wait_for_denied(&self, what: &str, matches: impl Fn(&Value) -> bool) -> Result<Value> {
        self.wait_for_flow("denied", what, matches)
    }
}

/// A second node beside another one, see [`Node::twin`].
#[derive(Debug)]
pub struct Twin<'a> {
    host: &'a Host,
    config: PathBuf,
}

impl Twin<'_> {
    /// Runs `warren` with `arguments` as this node.
    pub fn cli(&self, arguments: &[&OsStr]) -> Result<Answer> {
        run(self.host, "warren", arguments, &[("WARREN_CONFIG", self.config.clone().into())])
    }

    /// The same with plain words.
    pub fn say(&self, arguments: &[&str]) -> Result<Answer> {
        self.cli(&words(arguments))
    }
}

fn stop(process: Option<Process>, name: &str) -> Result<()> {
    let process = process.with_context(|| format!("{name} is not running"))?;
    let log = process.log_path().to_owned();
    let status = process.stop()?;
    if !status.success() {
        bail!("{name} stopped with {status}; its log:\n{}", read(&log));
    }
    Ok(())
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn run(host: &Host, program: &str, arguments: &[&OsStr], environment: &[(&str, OsString)]) -> Result<Answer> {
    let mut command = Command::new(binary(program)?);
    command.args(arguments).current_dir(&host.directory).stdin(std::process::Stdio::null());
    // What the person who runs the tests has set must not reach the lab.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("WARREN_") && name != "WARREN_BIN_DIR") {
            command.env_remove(name);
        }
    }
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    let output = host.namespace.run(|| command.output().with_context(|| format!("run {program}")))?;
    Ok(Answer {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
