//! A host that runs WireGuard and nothing of ours: a userspace program found on the machine, configured by what
//! `warren peer add` printed.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use boringtun::x25519::{PublicKey, StaticSecret};
use netlink_packet_route::address::AddressHeaderFlags;
use rtnetlink::{LinkUnspec, RouteMessageBuilder};

use crate::host::{Host, device, netlink};
use crate::processes::eventually;

/// The tunnel device's name on its host.
const NAME: &str = "wg0";

/// Programs that run WireGuard in user space, each with what keeps it in the foreground.
const PROGRAMS: [(&str, &str); 2] = [("wireguard-go", "-f"), ("boringtun-cli", "--foreground")];

/// The program that the tests use: the one that `WARREN_TEST_WIREGUARD` names, else the first one on the search path.
#[must_use]
pub fn program() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("WARREN_TEST_WIREGUARD") {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH")?;
    let places: Vec<_> = std::env::split_paths(&path).collect();
    let found = |name: &str| places.iter().map(|place| place.join(name)).find(|path| path.is_file());
    PROGRAMS.iter().find_map(|(name, _)| found(name))
}

/// A fresh key pair: the private key, and the public one in base64.
#[must_use]
pub fn key_pair() -> (StaticSecret, String) {
    let secret = StaticSecret::random_from_rng(rand_core::OsRng);
    let public = STANDARD.encode(PublicKey::from(&secret).as_bytes());
    (secret, public)
}

/// A configuration of wg-quick(8), as far as the ones of `warren peer add` go.
#[derive(Debug, Clone, Default)]
pub struct Configuration {
    /// `PrivateKey`, hexadecimal; empty when there is none.
    pub private_key: String,
    /// `Address`.
    pub addresses: Vec<IpAddr>,
    /// `MTU`.
    pub mtu: u32,
    /// `ListenPort`.
    pub port: Option<u16>,
    /// One for each `[Peer]`: its keys and values.
    pub peers: Vec<Vec<(String, String)>>,
}

impl Configuration {
    /// Reads it.
    pub fn parse(text: &str) -> Result<Self> {
        let mut configuration = Self::default();
        let mut in_interface = false;
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            match line {
                "[Interface]" => in_interface = true,
                "[Peer]" => {
                    in_interface = false;
                    configuration.peers.push(Vec::new());
                }
                _ => {
                    let (key, value) = line.split_once(" = ").with_context(|| format!("not a setting: {line}"))?;
                    if in_interface {
                        configuration.set(key, value)?;
                    } else {
                        let peer = configuration.peers.last_mut().context("a setting before any section")?;
                        peer.push((key.to_owned(), value.to_owned()));
                    }
                }
            }
        }
        Ok(configuration)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        match key {
            "PrivateKey" => self.private_key = hex_of(value)?,
            "MTU" => self.mtu = value.parse()?,
            "ListenPort" => self.port = Some(value.parse()?),
            "Address" => {
                for prefix in value.split(", ") {
                    self.addresses.push(host_address(prefix)?);
                }
            }
            other => bail!("wg-quick knows no {other} here"),
        }
        Ok(())
    }

    /// The same with another private key.
    #[must_use]
    pub fn with_key(&self, secret: &StaticSecret) -> Self {
        Self { private_key: hex::encode(secret.to_bytes()), ..self.clone() }
    }

    /// What is sent to the program, and the addresses that lead into the tunnel.
    fn settings(&self) -> Result<(String, Vec<IpAddr>)> {
        let mut settings = format!("set=1\nprivate_key={}\n", self.private_key);
        if let Some(port) = self.port {
            settings.push_str(&format!("listen_port={port}\n"));
        }
        let mut routes = Vec::new();
        for peer in &self.peers {
            for (key, value) in peer {
                match key.as_str() {
                    "PublicKey" => settings.push_str(&format!("public_key={}\n", hex_of(value)?)),
                    "Endpoint" => settings.push_str(&format!("endpoint={value}\n")),
                    "PersistentKeepalive" => {
                        settings.push_str(&format!("persistent_keepalive_interval={value}\n"));
                    }
                    "AllowedIPs" => {
                        for prefix in value.split(", ") {
                            settings.push_str(&format!("allowed_ip={prefix}\n"));
                            routes.push(host_address(prefix)?);
                        }
                    }
                    other => bail!("wg-quick knows no {other} here"),
                }
            }
        }
        settings.push('\n');
        Ok((settings, routes))
    }
}

fn hex_of(base64: &str) -> Result<String> {
    let key = STANDARD.decode(base64).with_context(|| format!("not a key: {base64}"))?;
    if key.len() == 32 { Ok(hex::encode(key)) } else { bail!("a key of {} bytes", key.len()) }
}

fn host_address(prefix: &str) -> Result<IpAddr> {
    match prefix.rsplit_once('/').map(|(address, length)| (address.parse(), length)) {
        Some((Ok(address @ IpAddr::V4(_)), "32")) => Ok(address),
        Some((Ok(address @ IpAddr::V6(_)), "128")) => Ok(address),
        _ => bail!("{prefix} is not one address"),
    }
}

/// A running device. It ends when the value goes.
#[derive(Debug)]
pub struct Device<'a> {
    /// Its host.
    pub host: &'a Host,
    child: Child,
}

impl<'a> Device<'a> {
    /// Starts `program` on `host` and gives it its configuration, addresses and routes, as wg-quick would.
    pub fn start(program: &Path, host: &'a Host, configuration: &Configuration) -> Result<Self> {
        let name = program.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let (_, foreground) =
            PROGRAMS.iter().find(|(known, _)| name.contains(known)).with_context(|| format!("how is {name} run?"))?;
        let log = std::fs::File::create(host.directory.join("wireguard.log"))?;
        // The directory of its control socket is the machine's, and root's: the program gets one of its own.
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", "mount -t tmpfs none /run && exec \"$0\" \"$@\""]);
        command.arg(program).args([foreground, NAME]).env("WG_SUDO", "true");
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut running = Self { host, child: host.namespace.spawn(&mut command)? };
        let (settings, routes) = configuration.settings()?;
        let socket = PathBuf::from(format!("/proc/{}/root/run/wireguard/{NAME}.sock", running.child.id()));
        eventually("the WireGuard program opens its socket", Duration::from_secs(20), || {
            if let Some(status) = running.child.try_wait()? {
                bail!("it ended with {status}: {}", running.log());
            }
            Ok(socket.exists())
        })?;
        configure(&socket, &settings).with_context(|| running.log())?;
        address(host, &configuration.addresses, &routes, configuration.mtu)?;
        Ok(running)
    }

    /// What the program has said.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.host.directory.join("wireguard.log")).unwrap_or_default()
    }
}

impl Drop for Device<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// WireGuard's cross-platform configuration protocol.
fn configure(socket: &Path, settings: &str) -> Result<()> {
    let mut stream = UnixStream::connect(socket).context("connect to the WireGuard program")?;
    stream.write_all(settings.as_bytes())?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let (mut answer, mut byte) = (String::new(), [0; 1]);
    while !answer.ends_with("\n\n") && stream.read(&mut byte)? == 1 {
        answer.push(char::from(byte[0]));
    }
    if answer.contains("errno=0") { Ok(()) } else { bail!("the WireGuard program refused its configuration: {answer}") }
}

fn address(host: &Host, own: &[IpAddr], routes: &[IpAddr], mtu: u32) -> Result<()> {
    host.namespace.run_async(|| async move {
        let handle = netlink().await?;
        let index = device(&handle, NAME).await?;
        for address in own {
            let mut request = handle.address().add(index, *address, if address.is_ipv4() { 32 } else { 128 });
            request.message_mut().header.flags = AddressHeaderFlags::Nodad;
            request.execute().await.with_context(|| format!("add {address}"))?;
        }
        handle.link().change(LinkUnspec::new_with_index(index).mtu(mtu).up().build()).execute().await?;
        for destination in routes {
            let route = match *destination {
                IpAddr::V4(address) => RouteMessageBuilder::<Ipv4Addr>::new()
                    .destination_prefix(address, 32)
                    .output_interface(index)
                    .build(),
                IpAddr::V6(address) => RouteMessageBuilder::<Ipv6Addr>::new()
                    .destination_prefix(address, 128)
                    .output_interface(index)
                    .build(),
            };
            handle.route().add(route).execute().await.with_context(|| format!("route {destination}"))?;
        }
        Ok(())
    })
}
