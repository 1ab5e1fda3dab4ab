//! `warren peer add | config | list | show | remove`.

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Subcommand;
use hyper::Method;
use serde::Serialize;
use warren_proto::admin::{Deleted, NewPeer, Peer, PeerConnection, PeerList, Status};
use warren_proto::spiffe::is_name;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use super::changes::{Acknowledged, Cut, Making};
use super::connection::Connection;
use super::{Context, Exit, Failure, Items, Outcome, Present, Rows, Table, joined};
use crate::admin_client::AdminClient;
use crate::cli::block_on;

/// The MTU of wg-quick on an Ethernet path, and of our nodes unless configured otherwise.
const MTU: u16 = 1420;
/// A key in base64 with a newline; more is no key.
const MAX_KEY_FILE: u64 = 64;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
A device that speaks plain WireGuard (a router, a phone, an appliance) becomes an identity that policy names peer:NAME. \
Policy declares it first, with kind: Peer; then its public key is registered. What is printed is a configuration for wg-quick. \
A private key never leaves the machine that this command runs on, and is only written to a file of mode 0600.

Examples:
  warren peer add office-router --public-key 'u9Jx...='          its key pair was made on the device
  warren peer add laptop --generate --file laptop.conf           makes the key pair here
  warren peer add laptop --private-key-file laptop.key --file laptop.conf
  warren peer config laptop                                      anew, after services or policy have changed
  warren peer list
  warren peer remove laptop --yes                                cut off at once, at every node")]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Register a device's public key and print its configuration
    Add(Box<Add>),
    /// Print a device's configuration anew
    Config {
        /// The name of its Peer document.
        name: String,
        #[command(flatten)]
        written: Written,
        /// Put in the private key from this file; `-` reads stdin.
        #[arg(long, value_name = "FILE", requires = "file")]
        private_key_file: Option<PathBuf>,
    },
    /// Every device that is registered
    List,
    /// One device: its addresses, its certificate, whom it talks to
    Show {
        /// The name of its Peer document.
        name: String,
    },
    /// Remove a device: its tunnels and flows end at once
    Remove {
        /// The name of its Peer document.
        name: String,
        #[command(flatten)]
        cut: Cut,
    },
}

#[derive(Debug, clap::Args)]
struct Add {
    /// The name of its Peer document.
    name: String,
    #[command(flatten)]
    key: Key,
    /// Where it listens, where nodes are to reach it by themselves: address:port.
    #[arg(long, value_name = "ADDRESS")]
    endpoint: Option<std::net::SocketAddr>,
    #[command(flatten)]
    making: Making,
    #[command(flatten)]
    written: Written,
    #[command(flatten)]
    acknowledged: Acknowledged,
}

/// Where the device's key comes from: exactly one.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Key {
    /// The device's public key, as `wg pubkey` gives it.
    #[arg(long, value_name = "KEY")]
    public_key: Option<String>,
    /// The device's private key is in this file, as `wg genkey` gives it; `-` reads stdin. Only its public half is sent.
    #[arg(long, value_name = "FILE")]
    private_key_file: Option<PathBuf>,
    /// Make a key pair here. The private key is written to --file and to nowhere else.
    #[arg(long, requires = "file")]
    generate: bool,
}

/// How a configuration is written.
#[derive(Debug, clap::Args)]
struct Written {
    /// Write it to this file, which must not exist, with mode 0600.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Seconds between packets that keep the way through a NAT open; 0 for none.
    #[arg(long, value_name = "SECONDS", default_value_t = 25)]
    keepalive: u16,
}

/// A private key of this machine's.
struct PrivateKey(StaticSecret);

impl PrivateKey {
    fn generate() -> Self {
        let mut bytes = Zeroizing::new([0; 32]);
        rand::RngCore::fill_bytes(&mut rand::rng(), bytes.as_mut_slice());
        Self(StaticSecret::from(*bytes))
    }

    fn read(path: &Path) -> Result<Self, Failure> {
        let wrong = |what: &str| {
            let text = format!("{} {what}", path.display());
            Failure::new(Exit::Usage, text).next("wg genkey > FILE makes one")
        };
        let mut text = Zeroizing::new(String::with_capacity(MAX_KEY_FILE as usize));
        let read = if path == Path::new("-") {
            std::io::stdin().lock().take(MAX_KEY_FILE).read_to_string(&mut text)
        } else {
            std::fs::File::open(path).and_then(|file| file.take(MAX_KEY_FILE).read_to_string(&mut text))
        };
        read.map_err(|error| wrong("cannot be read").cause(&error))?;
        let mut bytes = Zeroizing::new([0; 33]);
        match STANDARD.decode_slice(text.trim(), bytes.as_mut_slice()) {
            Ok(32) => {
                let mut key = Zeroizing::new([0; 32]);
                key.copy_from_slice(&bytes[..32]);
                Ok(Self(StaticSecret::from(*key)))
            }
            _ => Err(wrong("does not hold a private key in base64")),
        }
    }

    fn public(&self) -> String {
        STANDARD.encode(PublicKey::from(&self.0).as_bytes())
    }

    fn text(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(Zeroizing::new(self.0.to_bytes()).as_slice()))
    }
}

impl std::fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

impl Verb {
    /// What can be judged of the line that was typed without anybody else.
    fn check(&self) -> Result<(), Failure> {
        match self {
            Self::Add(add) => {
                device_name(&add.name)?;
                add.key.public_key.as_deref().map_or(Ok(()), check_public_key)
            }
            Self::Config { name, .. } | Self::Show { name } | Self::Remove { name, .. } => {
                device_name(name).map(|_| ())
            }
            Self::List => Ok(()),
        }
    }
}

pub(super) fn run(arguments: Arguments, context: &Context) -> Outcome {
    arguments.verb.check()?;
    block_on(async {
        let mut client = arguments.connection.open().await?;
        match arguments.verb {
            Verb::Add(add) => return register(&mut client, context, *add).await,
            Verb::Config { name, written, private_key_file } => {
                let key = private_key_file.as_deref().map(PrivateKey::read).transpose()?;
                let peer: Peer = client.get(&format!("/peers/{name}")).await?;
                if let Some(key) = key.as_ref().filter(|key| key.public() != peer.public_key) {
                    let text = format!("the private key is not that of {name}");
                    return Err(Failure::new(Exit::Usage, text).because(format!(
                        "its public half is {}, registered is {}",
                        key.public(),
                        peer.public_key
                    )));
                }
                let place = written.file.as_deref().map(|path| Ok::<_, Failure>((path, create(path)?))).transpose()?;
                deliver(context, peer, key.as_ref(), place, written.keepalive)?;
            }
            Verb::List => {
                let items = client.list("/peers", usize::MAX, |list: PeerList| list.page).await?;
                context.output.print(&Items { items })?;
            }
            Verb::Show { name } => {
                let peer: Peer = client.get(&format!("/peers/{name}")).await?;
                context.output.print(&peer)?;
            }
            Verb::Remove { name, cut } => {
                cut.confirm(context, &format!("{name} is cut off at once, and must be registered anew"))?;
                let (terms, acknowledged) = cut.terms();
                let path = format!("/peers/{name}");
                let gone: Deleted = client.change(Method::DELETE, &path, None::<&()>, &terms).await?;
                context.output.print(&gone)?;
                if gone.committed && acknowledged.is_wanted() {
                    let status: Status = client.get("/status").await?;
                    return acknowledged.wait(&mut client, context, Some(status.generation)).await;
                }
            }
        }
        Ok(Exit::Yes)
    })
}

async fn register(client: &mut AdminClient, context: &Context, add: Add) -> Outcome {
    let Add { name, key, endpoint, making, written, acknowledged } = add;
    let private = match &key.private_key_file {
        Some(path) => Some(PrivateKey::read(path)?),
        None => key.generate.then(PrivateKey::generate),
    };
    let public = private.as_ref().map(PrivateKey::public).or(key.public_key);
    let public_key = public.ok_or_else(|| Failure::new(Exit::Usage, "no key is named"))?;
    // Made before anything is registered: a key whose only copy cannot be written is of no use.
    let file = written.file.as_deref().filter(|_| !making.dry_run);
    let place = file.map(|path| Ok::<_, Failure>((path, create(path)?))).transpose()?;
    let endpoint = endpoint.map(|endpoint| endpoint.to_string());
    let (terms, dry_run) = (making.terms(), making.dry_run);
    let body = NewPeer { name, public_key, endpoint, note: making.note };
    let registered: Result<Peer, _> = client.change(Method::POST, "/peers", Some(&body), &terms).await;
    let peer = match registered {
        Ok(peer) => peer,
        Err(refused) => {
            // The file is empty and this command's own.
            file.map(std::fs::remove_file);
            return Err(refused.into());
        }
    };
    if dry_run {
        context.output.say(format!("would register {} as {}", peer.public_key, peer.spiffe_id));
        return Ok(Exit::Yes);
    }
    let generation = peer.generation;
    deliver(context, peer, private.as_ref(), place, written.keepalive)?;
    acknowledged.wait(client, context, generation).await
}

fn device_name(name: &str) -> Result<&str, Failure> {
    if is_name(name) {
        return Ok(name);
    }
    let text = format!("{name:?} is no device's name: a lower-case letter, then letters, digits and '-'");
    Err(Failure::new(Exit::Usage, text).next("warren peer list"))
}

fn check_public_key(key: &str) -> Result<(), Failure> {
    match STANDARD.decode(key) {
        Ok(bytes) if bytes.len() == 32 => Ok(()),
        _ => Err(Failure::new(Exit::Usage, format!("--public-key {key:?} is not 32 bytes in base64, 44 characters"))
            .next("wg pubkey < PRIVATE-KEY-FILE prints one")),
    }
}

fn create(path: &Path) -> Result<std::fs::File, Failure> {
    std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(|error| {
        let exit = if error.kind() == std::io::ErrorKind::AlreadyExists { Exit::Conflict } else { Exit::Failed };
        Failure::new(exit, format!("{} cannot be made", path.display())).cause(&error).next("name another --file")
    })
}

/// Writes the configuration to its file, with the private key if it is at hand, or prints it, never with it.
fn deliver(
    context: &Context,
    peer: Peer,
    key: Option<&PrivateKey>,
    place: Option<(&Path, std::fs::File)>,
    keepalive: u16,
) -> Result<(), Failure> {
    if peer.connections.is_empty() {
        context.output.say(format!(
            "no rule lets {} talk to anything that runs yet; afterwards: warren peer config {}",
            peer.workload, peer.name
        ));
    }
    for connection in peer.connections.iter().filter(|connection| connection.endpoints.is_empty()) {
        let PeerConnection { workload, node, .. } = connection;
        context
            .output
            .say(format!("the node {} of {workload} is not connected: its address is left out", node.short()));
    }
    let Some((path, mut file)) = place else {
        let text = configuration(&peer, None, keepalive);
        return context.output.print(&Configured { peer: &peer, text: text.to_string() });
    };
    let text = configuration(&peer, key, keepalive);
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(|error| Failure::new(Exit::Failed, format!("{} cannot be written", path.display())).cause(&error))?;
    let said = format!("{} has {}: wg-quick up {}", peer.workload, joined(&peer.addresses), path.display());
    context.output.print(&Configured { peer: &peer, text: said })
}

/// What `add` and `config` print: in JSON and YAML the device, for people what is to be done with it.
#[derive(Serialize)]
struct Configured<'a> {
    #[serde(flatten)]
    peer: &'a Peer,
    #[serde(skip)]
    text: String,
}

impl Present for Configured<'_> {
    const KIND: &'static str = "Peer";

    fn text(&self, _wide: bool) -> String {
        self.text.clone()
    }
}

/// A configuration for wg-quick(8).
fn configuration(peer: &Peer, key: Option<&PrivateKey>, keepalive: u16) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(4096));
    // Writing to a string does not fail.
    let _ = (|| {
        writeln!(text, "# {}", peer.spiffe_id)?;
        writeln!(text, "[Interface]")?;
        match key {
            Some(key) => writeln!(text, "PrivateKey = {}", *key.text())?,
            None => writeln!(text, "# PrivateKey = the one that belongs to {}", peer.public_key)?,
        }
        let own: Vec<_> = peer.addresses.iter().map(|address| host_prefix(address)).collect();
        writeln!(text, "Address = {}", own.join(", "))?;
        if let Some((_, port)) = peer.endpoint.as_deref().and_then(|endpoint| endpoint.rsplit_once(':')) {
            writeln!(text, "ListenPort = {port}")?;
        }
        writeln!(text, "MTU = {MTU}")?;
        for connection in &peer.connections {
            writeln!(text, "\n# {} on node {}", connection.workload, connection.node)?;
            writeln!(text, "[Peer]\nPublicKey = {}", connection.public_key)?;
            let allowed: Vec<_> = connection.addresses.iter().map(|address| host_prefix(address)).collect();
            writeln!(text, "AllowedIPs = {}", allowed.join(", "))?;
            match connection.endpoints.first() {
                Some(endpoint) => writeln!(text, "Endpoint = {endpoint}")?,
                None => writeln!(text, "# Endpoint = not known while the node is not connected")?,
            }
            if keepalive > 0 {
                writeln!(text, "PersistentKeepalive = {keepalive}")?;
            }
        }
        Ok::<_, std::fmt::Error>(())
    })();
    text
}

/// An address as a prefix that holds it alone.
fn host_prefix(address: &str) -> String {
    format!("{address}/{}", if address.contains(':') { 128 } else { 32 })
}

impl Rows for Peer {
    const LIST: &'static str = "PeerList";
    const NONE: &'static str =
        "no devices; policy declares one (kind: Peer), and then: warren peer add NAME --public-key KEY";

    fn table(items: &[Self], wide: bool) -> Table {
        let state = |peer: &Self| match (peer.revoked_at, peer.declared) {
            (Some(_), _) => "revoked",
            (None, true) => "registered",
            (None, false) => "undeclared",
        };
        if wide {
            let mut table =
                Table::new(["NAME", "STATE", "ADDRESSES", "PUBLIC KEY", "ENDPOINT", "CERTIFICATE UNTIL", "BY", "NOTE"]);
            for peer in items {
                table.row([
                    peer.name.clone(),
                    state(peer).to_owned(),
                    joined(&peer.addresses),
                    peer.public_key.clone(),
                    peer.endpoint.clone().unwrap_or_else(|| "-".to_owned()),
                    peer.certificate_expires_at.to_string(),
                    peer.registered_by.clone(),
                    peer.note.clone(),
                ]);
            }
            return table;
        }
        let mut table = Table::new(["NAME", "STATE", "ADDRESSES", "PUBLIC KEY", "NOTE"]);
        for peer in items {
            let addresses = joined(&peer.addresses);
            table.row([
                peer.name.as_str(),
                state(peer),
                addresses.as_str(),
                peer.public_key.as_str(),
                peer.note.as_str(),
            ]);
        }
        table
    }
}

impl Present for Peer {
    const KIND: &'static str = "Peer";

    fn text(&self, _wide: bool) -> String {
        let mut table = Table::new(["PEER", &self.name]);
        table.row(["identity", &self.spiffe_id]);
        table.row(["public key", &self.public_key]);
        table.row(["addresses", &joined(&self.addresses)]);
        if let Some(endpoint) = &self.endpoint {
            table.row(["endpoint", endpoint]);
        }
        table.row(["declared by policy", if self.declared { "yes" } else { "no" }]);
        table.row(["certificate until", &self.certificate_expires_at.to_string()]);
        if let Some(at) = self.revoked_at {
            table.row(["revoked", &at.to_string()]);
        }
        table.row(["registered", &format!("{} by {}", self.registered_at, self.registered_by)]);
        table.row(["note", &self.note]);
        if self.connections.is_empty() {
            return format!("{table}\n\nno rule lets it talk to anything that runs");
        }
        let mut others = Table::new(["TALKS WITH", "INSTANCE", "NODE", "ADDRESSES", "ENDPOINTS"]);
        for connection in &self.connections {
            others.row([
                connection.workload.to_string(),
                connection.instance.short(),
                connection.node.short(),
                joined(&connection.addresses),
                joined(&connection.endpoints),
            ]);
        }
        format!("{table}\n\n{others}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> Peer {
        let text = r#"{
            "name": "laptop", "workload": "peer/laptop", "spiffeId": "spiffe://bank.example/ns/peer/sa/laptop",
            "instance": "00000000000000000000000000000001", "publicKey": "S2V5",
            "addresses": ["fd12::9", "10.77.0.9"], "registeredAt": "2026-11-21T00:00:00Z", "registeredBy": "admin:eve",
            "note": "", "declared": true, "certificateExpiresAt": "2026-11-22T00:00:00Z",
            "connections": [
                {"workload": "bank/api", "instance": "00000000000000000000000000000002",
                 "node": "00000000000000000000000000000003", "publicKey": "T3RoZXI=",
                 "addresses": ["fd12::2", "10.77.0.2"], "endpoints": ["198.51.100.3:51820", "[2001:db8::3]:51820"]},
                {"workload": "bank/batch", "instance": "00000000000000000000000000000004",
                 "node": "00000000000000000000000000000005", "publicKey": "VGhpcmQ=",
                 "addresses": ["fd12::4"], "endpoints": []}
            ]}"#;
        serde_json::from_str(text).expect("a peer")
    }

    #[test]
    fn a_configuration_names_every_instance_by_key_and_address_and_the_private_key_only_where_it_is_given() {
        let key = PrivateKey(StaticSecret::from([7; 32]));
        let expected = "\
# spiffe://bank.example/ns/peer/sa/laptop
[Interface]
PRIVATE
Address = fd12::9/128, 10.77.0.9/32
MTU = 1420

# bank/api on node 00000000000000000000000000000003
[Peer]
PublicKey = T3RoZXI=
AllowedIPs = fd12::2/128, 10.77.0.2/32
Endpoint = 198.51.100.3:51820
PersistentKeepalive = 25

# bank/batch on node 00000000000000000000000000000005
[Peer]
PublicKey = VGhpcmQ=
AllowedIPs = fd12::4/128
# Endpoint = not known while the node is not connected
PersistentKeepalive = 25
";
        let without = expected.replace("PRIVATE", "# PrivateKey = the one that belongs to S2V5");
        assert_eq!(*configuration(&peer(), None, 25), without);
        let with = expected.replace("PRIVATE", &format!("PrivateKey = {}", *key.text()));
        assert_eq!(*configuration(&peer(), Some(&key), 25), with);
        assert!(!configuration(&peer(), None, 0).contains("PersistentKeepalive"));
    }

    #[test]
    fn a_name_or_a_key_that_there_cannot_be_is_refused_before_anybody_is_asked() {
        for wrong in ["", "x y", "Laptop", "a/b", "7", "..", "a?b"] {
            assert_eq!(device_name(wrong).expect_err(wrong).exit, Exit::Usage, "{wrong:?}");
        }
        device_name("office-router").expect("a name");
        for wrong in ["abc", "", &"A".repeat(44), &format!("{}=", "A".repeat(42)), &STANDARD.encode([7; 33])] {
            assert_eq!(check_public_key(wrong).expect_err(wrong).exit, Exit::Usage, "{wrong:?}");
        }
        check_public_key(&STANDARD.encode([7; 32])).expect("a key");
    }

    #[test]
    fn a_key_file_is_read_as_the_tools_of_wireguard_write_it_and_nothing_else_is() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("key");
        let key = PrivateKey::generate();
        std::fs::write(&path, format!("{}\n", *key.text())).expect("write");
        assert_eq!(PrivateKey::read(&path).expect("read").public(), key.public());
        assert_eq!(format!("{key:?}"), "PrivateKey(..)");
        for wrong in ["", "AAAA", &"A".repeat(44), &"A".repeat(70)] {
            std::fs::write(&path, wrong).expect("write");
            let failure = PrivateKey::read(&path).expect_err("refused");
            assert_eq!(failure.exit, Exit::Usage, "{wrong:?}");
        }
    }

    #[test]
    fn a_file_is_made_for_its_owner_alone_and_never_written_over() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("wg0.conf");
        let file = create(&path).expect("made");
        assert_eq!(file.metadata().expect("metadata").permissions().mode() & 0o777, 0o600);
        assert_eq!(create(&path).expect_err("there").exit, Exit::Conflict);
    }
}
