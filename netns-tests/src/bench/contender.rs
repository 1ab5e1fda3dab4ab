//! Who is measured: a mesh of ours, the bare wire, or any WireGuard userspace program on the machine.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use boringtun::x25519::{PublicKey, StaticSecret};
use rtnetlink::{LinkUnspec, RouteMessageBuilder};

use crate::host::{Host, device, netlink};
use crate::lab::Lab;
use crate::mesh::{Mesh, Node};
use crate::processes::eventually;

/// Two hosts and a way between them.
#[derive(Debug)]
pub enum Contender {
    /// Our two nodes, identities and an allow list on.
    Warren {
        /// The coordinator, kept running.
        mesh: Box<Mesh>,
        /// Sends.
        a: Box<Node>,
        /// Receives.
        b: Box<Node>,
    },
    /// The wire without a tunnel.
    Raw {
        /// The wire.
        lab: Box<Lab>,
        /// Sends.
        a: Box<Host>,
        /// Receives.
        b: Box<Host>,
    },
    /// A WireGuard program at both ends.
    WireGuard {
        /// The wire.
        lab: Box<Lab>,
        /// Sends.
        a: Box<Host>,
        /// Receives.
        b: Box<Host>,
        /// Both daemons.
        daemons: Vec<Daemon>,
    },
}

/// A WireGuard program that ends when the value goes.
#[derive(Debug)]
pub struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const POLICY: &str = "\
kind: Set
name: bench
owns: [mesh, bench]
---
kind: Mesh
name: bank.example
---
kind: Namespace
name: bench
---
kind: Service
name: bench/client
ports: { load: { port: \"5000-5999\", protocol: [tcp, udp] } }
allow: { back: { from: [bench/server], ports: [load] } }
---
kind: Service
name: bench/server
ports: { load: { port: \"5000-5999\", protocol: [tcp, udp] } }
allow: { load: { from: [bench/client], ports: [load] } }
";

impl Contender {
    /// Our mesh; `configuration` is added to both nodes' files.
    pub fn warren(configuration: &str) -> Result<Self> {
        let mut mesh = Mesh::new(&["--overlay-v4", "10.77.0.0/16"])?;
        mesh.try_apply(POLICY, &[])?.expect(0)?;
        let mut start = |name: &str, workload: &str| -> Result<Box<Node>> {
            let mut node = mesh.enrol(name, workload)?;
            node.configure(configuration)?;
            node.start()?;
            Ok(Box::new(node))
        };
        let (a, b) = (start("a", "bench/client")?, start("b", "bench/server")?);
        Ok(Self::Warren { mesh: Box::new(mesh), a, b })
    }

    /// The bare wire.
    pub fn raw() -> Result<Self> {
        let mut lab = Lab::new()?;
        let (a, b) = (Box::new(lab.host("a")?), Box::new(lab.host("b")?));
        Ok(Self::Raw { lab: Box::new(lab), a, b })
    }

    /// `program`, which speaks the cross-platform configuration protocol (a socket in /var/run/wireguard).
    pub fn wireguard(program: &Path) -> Result<Self> {
        let mut lab = Lab::new()?;
        let (a, b) = (Box::new(lab.host("a")?), Box::new(lab.host("b")?));
        let keys = [StaticSecret::random_from_rng(rand_core::OsRng), StaticSecret::random_from_rng(rand_core::OsRng)];
        let mut daemons = Vec::new();
        for (own, other, number) in [(&a, &b, 0usize), (&b, &a, 1)] {
            let name = format!("wg{}x{number}", lab.fresh_number());
            daemons.push(start_wireguard(program, own, &name)?);
            let public = PublicKey::from(&keys[1 - number]);
            let settings = format!(
                "set=1\nprivate_key={}\nlisten_port=51820\npublic_key={}\nendpoint={}\nallowed_ip={}/32\n\n",
                hex::encode(keys[number].to_bytes()),
                hex::encode(public.as_bytes()),
                other.at(51820),
                inner(1 - number),
            );
            configure(&name, &settings)?;
            address(own, &name, inner(number))?;
        }
        Ok(Self::WireGuard { lab: Box::new(lab), a, b, daemons })
    }

    /// The host that sends.
    #[must_use]
    pub fn a(&self) -> &Host {
        match self {
            Self::Warren { a, .. } => &a.host,
            Self::Raw { a, .. } | Self::WireGuard { a, .. } => a,
        }
    }

    /// The host that receives.
    #[must_use]
    pub fn b(&self) -> &Host {
        match self {
            Self::Warren { b, .. } => &b.host,
            Self::Raw { b, .. } | Self::WireGuard { b, .. } => b,
        }
    }

    /// The inner IPv4 addresses of both.
    pub fn addresses(&self) -> Result<(IpAddr, IpAddr)> {
        match self {
            Self::Warren { a, b, .. } => {
                let v4 = |node: &Node| -> Result<IpAddr> {
                    node.addresses()?.into_iter().find(IpAddr::is_ipv4).context("no IPv4 overlay address")
                };
                Ok((v4(a)?, v4(b)?))
            }
            Self::Raw { a, b, .. } => Ok((a.v4.into(), b.v4.into())),
            Self::WireGuard { .. } => Ok((inner(0).into(), inner(1).into())),
        }
    }

    /// The daemons' process ids.
    pub fn processes(&mut self) -> Result<Vec<u32>> {
        match self {
            Self::Warren { a, b, .. } => Ok(vec![a.process()?.id(), b.process()?.id()]),
            Self::Raw { .. } => Ok(Vec::new()),
            Self::WireGuard { daemons, .. } => Ok(daemons.iter().map(|daemon| daemon.0.id()).collect()),
        }
    }
}

fn inner(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 88, 0, if number == 0 { 1 } else { 2 })
}

fn start_wireguard(program: &Path, host: &Host, name: &str) -> Result<Daemon> {
    let log = std::fs::File::create(host.directory.join("wireguard.log"))?;
    let mut command = Command::new(program);
    let foreground = match program.file_name().map(|name| name.to_string_lossy().into_owned()) {
        Some(file) if file.contains("boringtun") || file.contains("neptun") => "--foreground",
        _ => "-f",
    };
    command.args([OsString::from(foreground), OsString::from(name)]);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).env("WG_SUDO", "1");
    let daemon = Daemon(host.namespace.spawn(&mut command)?);
    let socket = socket(name);
    eventually("the WireGuard program opens its socket", Duration::from_secs(10), || Ok(socket.exists()))?;
    Ok(daemon)
}

fn socket(name: &str) -> PathBuf {
    PathBuf::from(format!("/var/run/wireguard/{name}.sock"))
}

fn configure(name: &str, settings: &str) -> Result<()> {
    let mut stream = UnixStream::connect(socket(name)).context("connect to the WireGuard program")?;
    stream.write_all(settings.as_bytes())?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let (mut answer, mut byte) = (String::new(), [0; 1]);
    while !answer.ends_with("\n\n") && stream.read(&mut byte)? == 1 {
        answer.push(char::from(byte[0]));
    }
    if !answer.contains("errno=0") {
        bail!("the WireGuard program refused its configuration: {answer}");
    }
    Ok(())
}

fn address(host: &Host, name: &str, address: Ipv4Addr) -> Result<()> {
    host.namespace.run_async(|| async move {
        let handle = netlink().await?;
        let index = device(&handle, name).await?;
        handle.address().add(index, IpAddr::V4(address), 32).execute().await?;
        handle.link().change(LinkUnspec::new_with_index(index).mtu(1420).up().build()).execute().await?;
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(Ipv4Addr::new(10, 88, 0, 0), 24)
            .output_interface(index);
        handle.route().add(route.build()).execute().await?;
        Ok(())
    })
}
