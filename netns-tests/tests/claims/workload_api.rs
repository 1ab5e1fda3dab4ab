//! The SPIFFE Workload API as a workload meets it, through the `spiffe` crate: it gets its SVID and follows each new one, and
//! a process of another user or unit is refused by name.
//!
//! ```text
//!   coordinator                 web-1: warren up
//!                                 | workload.sock
//!                                 +-- this program (user 0)        shop/web-frontend
//!                                 +-- a child of user 4242         shop/reports, nobody before it is named
//!                                 +-- a child in web.service       shop/unit (a cgroup of its own)
//! ```
//!
//! Other users and cgroups take real root: in the user namespace of an ordinary user there is one user, and cgroups are
//! somebody else's. There those claims are left out, and say so.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;
use libtest_mimic::Trial;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{Uid, setresuid};
use spiffe::{WorkloadApiClient, X509Context};
use warren_netns_tests::mesh::{IN_FORCE, Mesh, Node};
use warren_netns_tests::namespace::is_user_namespace;
use warren_netns_tests::processes::eventually;
use warren_proto::certificate::{Chain, WorkloadSvid};
use warren_proto::control_trust::{Purpose, anchor};
use warren_proto::{TrustBundle, UnixTime};

use super::{POLICY, WEB, claim};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        claim("workload_api::a_workload_receives_its_svid_and_follows_rotations_and_revocations", follows),
        claim("workload_api::a_process_of_another_user_is_refused_by_name", users),
        claim("workload_api::whois_says_which_entry_makes_a_process_or_a_port_who_it_is", whois),
        claim("workload_api::a_unit_gets_its_own_identity_only_also_after_a_restart", units),
    ]
}

/// Set for a child of this program that is to ask the socket it names.
const SOCKET: &str = "WARREN_CLAIMS_WORKLOAD_SOCKET";
/// The user that this child is to be.
const USER: &str = "WARREN_CLAIMS_WORKLOAD_USER";
/// Nobody's.
const OTHER_USER: u32 = 4242;

/// Asks as a process of its own, where the environment says so: one line with the SPIFFE IDs, or with the refusal.
pub(crate) fn child() -> Result<bool> {
    let Some(socket) = std::env::var_os(SOCKET) else { return Ok(false) };
    if let Some(user) = std::env::var_os(USER) {
        let user = Uid::from_raw(user.to_str().context("a user id")?.parse()?);
        setresuid(user, user, user).context("become another user")?;
    }
    let asked = runtime()?.block_on(async { client(Path::new(&socket)).await?.fetch_all_x509_svids().await });
    let line = match asked {
        Ok(svids) => svids.iter().map(|svid| svid.spiffe_id().to_string()).collect::<Vec<_>>().join(" "),
        Err(error) => format!("refused: {error}"),
    };
    writeln!(std::io::stdout(), "{line}")?;
    Ok(true)
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

async fn client(socket: &Path) -> Result<WorkloadApiClient, spiffe::WorkloadApiError> {
    WorkloadApiClient::connect_to(format!("unix:{}", socket.display())).await
}

/// web-1, whose token grants `workloads`, with `entries`, and its Workload API in a directory that every user may enter.
struct Host {
    mesh: Mesh,
    node: Node,
    directory: tempfile::TempDir,
}

impl Host {
    fn new(workloads: &[&str], entries: &[String]) -> Result<Self> {
        let mut mesh = Mesh::new(&[])?;
        mesh.try_apply(POLICY, &[])?.expect(0)?;
        let more: Vec<_> = workloads.iter().flat_map(|workload| ["--for", *workload]).collect();
        let token = mesh.token(WEB, &more)?;
        let mut node = Node::on(mesh.lab.host("web-1")?, WEB)?;
        let directory = tempfile::tempdir()?;
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755))?;
        let socket = directory.path().join("workload.sock");
        let entries = serde_json::to_string(entries)?;
        node.configure(&format!(
            "workload: {WEB}\nworkload_api: {{ socket: {} }}\nworkloads: {entries}\n",
            socket.display()
        ))?;
        let enrol = ["enrol".as_ref(), "--token-file".as_ref(), token.as_os_str()];
        node.cli(&enrol)?.expect(0)?;
        node.start()?;
        Ok(Self { mesh, node, directory })
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("workload.sock")
    }

    /// What a child of this program is told, as this user, in this cgroup.
    fn ask(&self, user: Option<u32>, cgroup: Option<&Path>) -> Result<String> {
        let own = std::env::current_exe()?;
        let mut command = match cgroup {
            Some(cgroup) => {
                let mut command = Command::new("sh");
                command.args(["-c", "echo $$ > \"$0\" && exec \"$1\""]).arg(cgroup.join("cgroup.procs")).arg(own);
                command
            }
            None => Command::new(own),
        };
        command.env(SOCKET, self.socket());
        if let Some(user) = user {
            command.env(USER, user.to_string());
        }
        let output = command.output().context("start a child")?;
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        ensure!(output.status.success(), "{said} {}", String::from_utf8_lossy(&output.stderr));
        Ok(said)
    }
}

/// The SVID's serial number; and the chain holds under the bundle that came with it, as a workload's and nothing else.
fn checked_serial(context: &X509Context) -> Result<String> {
    let svid = context.default_svid().context("an SVID")?;
    let chain: Vec<_> = svid.cert_chain().iter().map(|certificate| certificate.as_bytes().to_vec()).collect();
    let bundle = context.bundle_set().iter().next().context("a bundle")?.1.clone();
    let roots: Vec<_> = bundle.authorities().iter().map(|root| root.as_bytes().to_vec()).collect();
    let bundle = TrustBundle::new("bank.example".parse()?, 1, roots.iter().map(Vec::as_slice))?;
    let parsed = WorkloadSvid::parse(chain.first().context("a leaf")?)?;
    let now = UnixTime(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs());
    let presented = || Chain::new(chain.iter().map(Vec::as_slice));
    anchor(parsed.leaf(), presented()?, &bundle, Purpose::WorkloadSvid, now)?;
    let tunnel = anchor(parsed.leaf(), presented()?, &bundle, Purpose::Tunnel, now);
    ensure!(tunnel.is_err(), "the workload's own SVID would admit a tunnel");
    ensure!(svid.spiffe_id().to_string() == "spiffe://bank.example/ns/shop/sa/web-frontend", "{svid:?}");
    Ok(parsed.leaf().serial().to_string())
}

fn follows() -> Result<()> {
    let host = Host::new(&[], &[format!("{WEB} uid=0")])?;
    let next = "an answer within the patience of a claim";
    runtime()?.block_on(async {
        let client = client(&host.socket()).await?;
        let mut contexts = client.stream_x509_contexts().await?;
        let mut serials = Vec::new();
        for step in ["first", "with a new intermediate"] {
            if !serials.is_empty() {
                host.mesh.coordinator.say(&["ca", "rotate", "intermediate"])?.expect(0)?;
            }
            let context = tokio::time::timeout(Duration::from_secs(60), contexts.next()).await.context(next)?;
            let serial = checked_serial(&context.context("the stream goes on")??).with_context(|| step.to_owned())?;
            ensure!(!serials.contains(&serial), "{step}: the same certificate again");
            serials.push(serial);
        }
        // A new root comes with a new bundle; what changed first is told first.
        host.mesh.coordinator.say(&["ca", "rotate", "introduce"])?.expect(0)?;
        loop {
            let context = tokio::time::timeout(Duration::from_secs(60), contexts.next()).await.context(next)?;
            let context = context.context("the stream goes on")??;
            checked_serial(&context)?;
            if context.bundle_set().iter().any(|(_, bundle)| bundle.authorities().len() == 2) {
                break;
            }
        }
        let status = host.node.say(&["status", "-o", "json"])?.expect(0)?.json()?;
        let line = &status["workloadApi"]["svids"][0];
        ensure!(line["workload"] == WEB && line["watchedBy"] == 1, "{status}");
        // The identity is revoked: what was handed out is withdrawn by name, and a new one is issued after it.
        host.mesh.coordinator.say(&["revocation", "create", "--identity", WEB, "--yes"])?.expect(0)?;
        loop {
            let ended = tokio::time::timeout(Duration::from_secs(60), contexts.next()).await.context(next)?;
            match ended.context("the stream ends by name")? {
                Ok(context) => drop(checked_serial(&context)?),
                Err(error) => {
                    let text = error.to_string();
                    ensure!(text.contains("permission denied") && text.contains("revoked"), "{text}");
                    break;
                }
            }
        }
        Ok::<_, anyhow::Error>(())
    })?;
    eventually("a new SVID is issued", IN_FORCE, || {
        runtime()?.block_on(async {
            let fetched = client(&host.socket()).await?.fetch_x509_context().await;
            Ok(fetched.is_ok_and(|context| checked_serial(&context).is_ok()))
        })
    })
}

fn users() -> Result<()> {
    if is_user_namespace()? {
        return left_out("another user's process");
    }
    let host = Host::new(&["shop/reports"], &[format!("{WEB} uid=0"), format!("shop/reports uid={OTHER_USER}")])?;
    let own = host.ask(None, None)?;
    ensure!(own == "spiffe://bank.example/ns/shop/sa/web-frontend", "{own}");
    let other = host.ask(Some(OTHER_USER), None)?;
    ensure!(other == "spiffe://bank.example/ns/shop/sa/reports", "{other}");
    let stranger = host.ask(Some(OTHER_USER + 1), None)?;
    for word in ["permission denied", "no-workload", &format!("uid {}", OTHER_USER + 1)] {
        ensure!(stranger.contains(word), "{stranger}");
    }
    let status = host.node.say(&["status", "-o", "json"])?.expect(0)?.json()?;
    ensure!(status["workloadApi"]["refused"] == 1, "{status}");
    Ok(())
}

/// By number and by port, with the entry that says so.
fn whois() -> Result<()> {
    let host = Host::new(&[], &[format!("{WEB} uid=0")])?;
    let listener = host.node.host.namespace.run(|| Ok(std::net::TcpListener::bind("127.0.0.1:0")?))?;
    let port = format!(":{}", listener.local_addr()?.port());
    for target in [std::process::id().to_string(), port.clone()] {
        let line = host.node.say(&["whois", &target, "-o", "json"])?.expect(0)?.json()?["items"][0].clone();
        ensure!(super::text(&line, "workload") == WEB && line["local"] == true, "{target}: {line}");
        let because = super::text(&line, "because");
        ensure!(because.contains("uid 0") && because.contains(&format!("{WEB} uid=0")), "{because}");
    }
    drop(listener);
    host.node.say(&["whois", &port])?.expect(6)?;
    // The daemon itself is in its own namespace: there the instance's addresses are anybody's.
    let mut host = host;
    let daemon = host.node.process()?.id().to_string();
    let items = host.node.say(&["whois", &daemon, "-o", "json"])?.expect(0)?.json()?["items"].clone();
    ensure!(items[0]["addresses"].as_array().is_some_and(|all| !all.is_empty()), "{items}");
    ensure!(super::text(&items[0], "because").contains("network namespace"), "{items}");
    Ok(())
}

fn left_out(what: &str) -> Result<()> {
    writeln!(std::io::stderr(), "left out in a user namespace: {what}")?;
    Ok(())
}

/// Slices and units as systemd lays them out, removed with the value.
struct Units {
    mounted: tempfile::TempDir,
    slice: PathBuf,
}

impl Units {
    fn new() -> Result<Self> {
        let mounted = tempfile::tempdir()?;
        mount(Some("cgroup2"), mounted.path(), Some("cgroup2"), MsFlags::empty(), None::<&str>)
            .context("mount the cgroup hierarchy")?;
        let slice = mounted.path().join(format!("warrenclaims{}.slice", std::process::id()));
        std::fs::create_dir(&slice)?;
        Ok(Self { mounted, slice })
    }

    fn start(&self, unit: &str) -> Result<PathBuf> {
        let path = self.slice.join(unit);
        std::fs::create_dir(&path)?;
        Ok(path)
    }
}

impl Drop for Units {
    fn drop(&mut self) {
        for entry in std::fs::read_dir(&self.slice).into_iter().flatten().flatten() {
            let _ = std::fs::remove_dir(entry.path());
        }
        let _ = std::fs::remove_dir(&self.slice);
        let _ = umount2(self.mounted.path(), MntFlags::MNT_DETACH);
    }
}

fn units() -> Result<()> {
    if is_user_namespace()? {
        return left_out("units, which are cgroups");
    }
    let entries = ["shop/unit unit=web.service".to_owned(), "shop/other unit=other.service".to_owned()];
    let host = Host::new(&["shop/unit", "shop/other"], &entries)?;
    let units = Units::new()?;
    let (web, other, third) =
        (units.start("web.service")?, units.start("other.service")?, units.start("third.service")?);
    let id = |name: &str| format!("spiffe://bank.example/ns/shop/sa/{name}");
    let told = (host.ask(None, Some(&web))?, host.ask(None, Some(&other))?);
    ensure!(told == (id("unit"), id("other")), "{told:?}");
    let refused = host.ask(None, Some(&third))?;
    ensure!(refused.contains("no-workload") && refused.contains("third.service"), "{refused}");
    // A unit of that name inside another unit, as a user's manager would make it, is not the unit.
    let nested = third.join("web.service");
    std::fs::create_dir(&nested)?;
    let refused = host.ask(None, Some(&nested))?;
    std::fs::remove_dir(&nested)?;
    ensure!(refused.contains("no-workload"), "{refused}");
    // A restart makes the cgroup anew.
    std::fs::remove_dir(&web)?;
    let again = host.ask(None, Some(&units.start("web.service")?))?;
    ensure!(again == id("unit"), "{again}");
    Ok(())
}
