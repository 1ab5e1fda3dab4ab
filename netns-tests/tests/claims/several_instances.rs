//! Two instances on one host: each has a certificate, an address and rules of its own.
//!
//! ```text
//!   coordinator      web-1: warren up                                  bank-1
//!                      user 4242        shop/reports                     bank/banking-api
//!                      everybody else   shop/web-frontend                  8080 lets shop/web-frontend in
//!                                                                          7000 lets shop/reports in
//!   ===============================================================================================
//! ```
//!
//! That a user's processes are told apart takes real root: in the user namespace of an ordinary user there is one user, and the
//! kernel takes no program that would look at it. What needs it is left out there, and says so.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use nix::unistd::{Uid, setresuid};
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use warren_netns_tests::host::ANSWER;
use warren_netns_tests::mesh::{IN_FORCE, Mesh, Node};
use warren_netns_tests::namespace::is_user_namespace;
use warren_netns_tests::processes::eventually;

use super::{ANSWER_TEXT, BANK, POLICY, WEB, claim, serve, text};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        claim("several_instances::each_has_its_own_certificate_renewed_and_its_address_over_a_restart", live_on),
        claim("several_instances::an_instance_that_cannot_be_issued_holds_up_no_other_and_is_named", missing),
        claim("several_instances::two_users_of_a_host_are_two_identities_seen_from_both_ends", users),
    ]
}

const REPORTS: &str = "shop/reports";
const USER: u32 = 4242;
/// What bank-1 may call at shop/reports, and nowhere else on that host.
const REPORTS_PORT: u16 = 9100;

/// What a child of this program is to do, and as whom.
const TASK: &str = "WARREN_CLAIMS_INSTANCES_TASK";
const AS_USER: &str = "WARREN_CLAIMS_INSTANCES_USER";

fn policy() -> String {
    let policy = POLICY
        .replace("ports: [api]\n", "ports: [api]\n  reports-read:\n    from: [shop/reports]\n    ports: [unused]\n");
    format!(
        "{policy}---\nkind: Service\nname: {REPORTS}\nports:\n  pull: {{ port: {REPORTS_PORT}, protocol: tcp }}\nallow:\n  \
         bank-pulls: {{ from: [{BANK}], ports: [pull] }}\n"
    )
}

/// Talks as a process of its own, where the environment says so: one line of what came of it.
pub(crate) fn child() -> Result<bool> {
    let Some(task) = std::env::var_os(TASK) else { return Ok(false) };
    let task = task.into_string().ok().context("a task")?;
    if let Some(user) = std::env::var_os(AS_USER) {
        let user = Uid::from_raw(user.to_str().context("a user id")?.parse()?);
        setresuid(user, user, user).context("become another user")?;
    }
    let words: Vec<&str> = task.split(' ').collect();
    let line = match words.as_slice() {
        ["connect", to] => connect(to.parse()?, None),
        ["connect", to, from] => connect(to.parse()?, Some(from.parse()?)),
        ["listen", at] => {
            let listener = TcpListener::bind(at.parse::<SocketAddr>()?)?;
            writeln!(std::io::stdout(), "listening")?;
            let (mut stream, _) = listener.accept()?;
            stream.write_all(b"the-reports")?;
            return Ok(true);
        }
        other => anyhow::bail!("{other:?}"),
    };
    writeln!(std::io::stdout(), "{}", line.unwrap_or_else(|error| format!("refused: {error}")))?;
    Ok(true)
}

/// The address it had, and the answer.
fn connect(to: SocketAddr, from: Option<IpAddr>) -> Result<String> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    if let Some(from) = from {
        socket.bind(&SocketAddr::new(from, 0).into())?;
    }
    socket.connect_timeout(&to.into(), Duration::from_secs(5))?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"question")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(format!("{} {answer}", stream.local_addr()?.ip()))
}

struct Hosts {
    mesh: Mesh,
    web: Node,
    bank: Node,
}

impl Hosts {
    /// web-1 with `entries`, its token good for both workloads; bank-1 with its services.
    fn new(entries: &[&str]) -> Result<Self> {
        let mut mesh = Mesh::new(&["--certificate-lifetime", "5m"])?;
        mesh.try_apply(&policy(), &[])?.expect(0)?;
        let token = mesh.token(WEB, &["--for", REPORTS])?;
        let mut web = Node::on(mesh.lab.host("web-1")?, WEB)?;
        configure(&web, entries)?;
        web.cli(&["enrol".as_ref(), "--token-file".as_ref(), token.as_os_str()])?.expect(0)?;
        web.start()?;
        let bank = mesh.node("bank-1", BANK)?;
        serve(&bank)?;
        Ok(Self { mesh, web, bank })
    }

    /// What a child of this program on web-1 is told, as this user.
    fn ask(&self, user: u32, task: &str) -> Result<String> {
        let output = self.web.host.namespace.run(|| child_of(user, task)?.output().context("start a child"))?;
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        ensure!(output.status.success(), "{task}: {said} {}", String::from_utf8_lossy(&output.stderr));
        Ok(said)
    }
}

fn configure(web: &Node, entries: &[&str]) -> Result<()> {
    web.configure(&format!("workload: {WEB}\nworkloads: {}\n", serde_json::to_string(entries)?))
}

fn child_of(user: u32, task: &str) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.env(TASK, task).env(AS_USER, user.to_string());
    Ok(command)
}

/// The node's instances by workload.
fn instances(node: &Node) -> Result<BTreeMap<String, Value>> {
    let status = node.say(&["status", "-o", "json"])?.expect(0)?.json()?;
    let all = status["instances"].as_array().cloned().unwrap_or_default();
    Ok(all.into_iter().map(|instance| (text(&instance, "workload").to_owned(), instance)).collect())
}

/// Of one instance: what stays when its certificate is renewed.
fn lasting(instance: &Value) -> (Value, Value, Value) {
    (instance["instance"].clone(), instance["addresses"].clone(), instance["processes"].clone())
}

fn live_on() -> Result<()> {
    if is_user_namespace()? {
        writeln!(std::io::stderr(), "left out in a user namespace: telling users apart")?;
        return Ok(());
    }
    let Hosts { mesh, mut web, bank } = Hosts::new(&[&format!("{REPORTS} uid={USER}")])?;
    let first = instances(&web)?;
    ensure!(first.keys().collect::<Vec<_>>() == [REPORTS, WEB], "{first:#?}");
    ensure!(first[REPORTS]["processes"][0] == format!("uid={USER}"), "{first:#?}");
    ensure!(first[WEB]["processes"].as_array().is_some_and(Vec::is_empty), "{first:#?}");
    ensure!(first[REPORTS]["addresses"] != first[WEB]["addresses"], "{first:#?}");
    for file in ["instance", "instance.shop.reports"] {
        let mode = std::fs::metadata(web.state().join(file)).with_context(|| file.to_owned())?.permissions().mode();
        ensure!(mode & 0o7777 == 0o600, "{file}: {mode:o}");
    }
    eventually("bank-1 admits both", IN_FORCE, || {
        let status = bank.say(&["status", "-o", "json"])?.expect(0)?.json()?;
        let peers: Vec<_> =
            status["peers"].as_array().into_iter().flatten().map(|peer| text(peer, "workload")).collect();
        Ok(peers.contains(&WEB) && peers.contains(&REPORTS))
    })?;
    // Every certificate is to be renewed: each instance gets its own, with a new key each.
    mesh.coordinator.say(&["ca", "rotate", "intermediate"])?.expect(0)?;
    let renewed = |before: &BTreeMap<String, Value>, now: &BTreeMap<String, Value>| {
        before.iter().all(|(name, was)| now.get(name).is_some_and(|is| is["tunnelKey"] != was["tunnelKey"]))
    };
    eventually("both are renewed", Duration::from_secs(120), || Ok(renewed(&first, &instances(&web)?)))?;
    let unchanged = |now: &BTreeMap<String, Value>| {
        first.iter().all(|(name, was)| now.get(name).is_some_and(|is| lasting(is) == lasting(was)))
    };
    let later = instances(&web)?;
    ensure!(unchanged(&later), "{first:#?}\n{later:#?}");
    web.stop()?;
    web.start()?;
    let restarted = instances(&web)?;
    ensure!(unchanged(&restarted), "{first:#?}\n{restarted:#?}");
    // Each entry names the address that is whose.
    for (name, instance) in &restarted {
        let address = instance["addresses"][0].as_str().context("an address")?;
        let line = web.say(&["whois", address, "-o", "json"])?.expect(0)?.json()?["items"][0].clone();
        ensure!(text(&line, "workload") == name, "{line}");
        let whose = if name == REPORTS { "uid=4242" } else { "fits no entry" };
        ensure!(text(&line, "because").contains(whose), "{line}");
    }
    // The entry is taken away: its instance goes, with its keys.
    web.stop()?;
    configure(&web, &[])?;
    web.start()?;
    let left = instances(&web)?;
    ensure!(left.len() == 1 && lasting(&left[WEB]) == lasting(&first[WEB]), "{left:#?}");
    eventually("its keys are removed", IN_FORCE, || Ok(!web.state().join("instance.shop.reports").exists()))
}

/// shop/unknown is granted to nobody.
fn missing() -> Result<()> {
    let Hosts { mesh: _mesh, web, bank } = Hosts::new(&[&format!("shop/unknown uid={USER}")])?;
    super::wait_until_allowed(&web, &bank)?;
    let status = web.say(&["status", "-o", "json"])?.expect(0)?.json()?;
    ensure!(status["ready"] == true && status["instances"].as_array().is_some_and(|all| all.len() == 1), "{status}");
    let missing = &status["missingInstances"][0];
    ensure!(missing["workload"] == "shop/unknown", "{status}");
    ensure!(missing["refusal"]["reason"] == "identity-not-allowed", "{status}");
    let shown = web.say(&["status"])?.expect(0)?.stdout;
    ensure!(shown.contains("no certificate for shop/unknown"), "{shown}");
    Ok(())
}

fn users() -> Result<()> {
    if is_user_namespace()? {
        writeln!(std::io::stderr(), "left out in a user namespace: processes of another user")?;
        return Ok(());
    }
    let hosts = Hosts::new(&[&format!("{REPORTS} uid={USER}")])?;
    let all = instances(&hosts.web)?;
    let address = |name: &str| all[name]["addresses"][0].as_str().map(str::to_owned).context("an address");
    let (web, reports) = (address(WEB)?, address(REPORTS)?);
    let (api, unused) = (hosts.bank.at(8080)?, hosts.bank.at(7000)?);
    let answer = std::str::from_utf8(ANSWER_TEXT)?;
    // Out: each with its own address, and in at bank-1 by its own rule only. Who is told by user has to name the address.
    let own = [(0, api, &web), (USER, unused, &reports)];
    eventually("each reaches its own port", IN_FORCE, || {
        let said = own.map(|(user, to, from)| hosts.ask(user, &format!("connect {to} {from}")));
        Ok(said
            .into_iter()
            .zip([&web, &reports])
            .all(|(said, from)| said.is_ok_and(|said| said == format!("{from} {answer}"))))
    })
    .with_context(|| format!("{:?}", own.map(|(user, to, from)| hosts.ask(user, &format!("connect {to} {from}")))))?;
    let rest = hosts.ask(0, &format!("connect {api}"))?;
    ensure!(rest == format!("{web} {answer}"), "whoever fits no entry names none: {rest}");
    // Neither is let in by the other's rule, be it with its own address, by taking the other's, or by naming none.
    for (user, to, from) in [(0, unused, &web), (USER, api, &reports), (0, unused, &reports), (USER, api, &web)] {
        let said = hosts.ask(user, &format!("connect {to} {from}"))?;
        ensure!(said.starts_with("refused"), "user {user} from {from}: {said}");
    }
    let said = hosts.ask(USER, &format!("connect {api}"))?;
    ensure!(said.starts_with("refused"), "user {USER}: {said}");
    ensure!(super::drops(&hosts.web, "wrong-identity")? > 0, "what was refused on this host is counted by its name");
    // In: bank-1 may call shop/reports, and its user's process alone is reached.
    let at = SocketAddr::new(reports.parse()?, REPORTS_PORT);
    for (user, reached) in [(0, false), (USER, true)] {
        let task = format!("listen [::]:{REPORTS_PORT}");
        let mut listener = hosts
            .web
            .host
            .namespace
            .run(|| child_of(user, &task)?.stdout(std::process::Stdio::piped()).spawn().context("start a child"))?;
        let mut ready = [0; 10];
        listener.stdout.as_mut().context("its output")?.read_exact(&mut ready)?;
        let (outcome, said) =
            hosts.bank.host.tcp(at, b"question", if reached { ANSWER } else { Duration::from_secs(3) })?;
        let _ = listener.kill();
        listener.wait()?;
        ensure!((said == b"the-reports") == reached, "a listener of user {user}: {outcome:?}");
    }
    Ok(())
}
