//! Who is measured: a mesh of ours, the bare wire, or another userspace tunnel found on the machine.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result};
use rtnetlink::{LinkUnspec, RouteMessageBuilder};
use serde_json::Value;

use super::link::{self, Wire};
use crate::host::{Host, device, netlink};
use crate::lab::Lab;
use crate::mesh::{Mesh, Node};
use crate::processes::eventually;

mod nebula;
mod wireguard;

/// Inner MTU of every tunnel.
const MTU: u32 = 1420;

/// How long nodes may take to have heard of each other.
const PATIENCE: Duration = Duration::from_secs(20);

/// The cipher of those contenders that have a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// AES-256-GCM.
    Aes,
    /// ChaCha20-Poly1305.
    ChaCha,
}

impl Suite {
    /// As on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes => "aes",
            Self::ChaCha => "chacha",
        }
    }
}

/// Another tunnel: a name for the table, its program, and how it is run.
#[derive(Debug, Clone)]
pub struct Peer {
    /// In the table.
    pub name: String,
    /// Its daemon.
    pub program: PathBuf,
    /// Socket buffers to ask for in its configuration, in bytes, where it has such a setting (nebula).
    pub buffers: Option<u32>,
}

/// Two hosts and a way between them.
#[derive(Debug)]
pub struct Contender {
    way: Way,
    daemons: Vec<Daemon>,
    addresses: (IpAddr, IpAddr),
}

#[derive(Debug)]
enum Way {
    /// Our two nodes, identities and an allow list on. The coordinator must outlive them.
    Warren { _mesh: Box<Mesh>, a: Box<Node>, b: Box<Node> },
    /// Anything else.
    Plain { _lab: Box<Lab>, a: Box<Host>, b: Box<Host> },
}

/// A program that ends when the value goes, and its socket with it, where it has one outside its lab.
#[derive(Debug)]
struct Daemon {
    child: Child,
    socket: Option<PathBuf>,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(socket) = &self.socket {
            let _ = std::fs::remove_file(socket);
        }
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
    /// Our mesh over `wire`; `configuration` is added to both nodes' files.
    pub fn warren(wire: Wire, suite: Suite, configuration: &str) -> Result<Self> {
        let mut mesh = Mesh::new(&["--overlay-v4", "10.77.0.0/16"])?;
        mesh.try_apply(POLICY, &[])?.expect(0)?;
        let (mut a, mut b) = (mesh.enrol("a", "bench/client")?, mesh.enrol("b", "bench/server")?);
        link::join(&a.host, &b.host, wire)?;
        for (node, address) in [&mut a, &mut b].into_iter().zip(link::ENDS) {
            node.configure(configuration)?;
            // The control link takes the lab's bridge, the tunnel the wire that is measured.
            let mut environment = vec![("WARREN_TUNNEL_ADDRESSES", address.to_string().into())];
            if suite == Suite::ChaCha {
                environment.push(("WARREN_TUNNEL_SUITE", "chacha20-poly1305".into()));
            }
            node.set_environment(environment);
            node.start()?;
        }
        for (node, other) in [(&a, link::ENDS[1]), (&b, link::ENDS[0])] {
            eventually(
                "the nodes have heard of each other",
                PATIENCE,
                || Ok(endpoints(node)?.contains(&other.into())),
            )?;
        }
        let v4 = |node: &Node| -> Result<IpAddr> {
            node.addresses()?.into_iter().find(IpAddr::is_ipv4).context("no IPv4 overlay address")
        };
        let addresses = (v4(&a)?, v4(&b)?);
        let way = Way::Warren { _mesh: Box::new(mesh), a: Box::new(a), b: Box::new(b) };
        Ok(Self { way, daemons: Vec::new(), addresses })
    }

    /// The bare wire.
    pub fn raw(wire: Wire) -> Result<Self> {
        let (lab, a, b) = two_hosts(wire)?;
        let [near, far] = link::ENDS;
        Ok(Self { way: Way::Plain { _lab: lab, a, b }, daemons: Vec::new(), addresses: (near.into(), far.into()) })
    }

    /// Another tunnel, by what its program's file name says it is: nebula, or else one that speaks WireGuard's
    /// cross-platform configuration protocol.
    pub fn peer(peer: &Peer, wire: Wire, suite: Suite) -> Result<Self> {
        let (lab, a, b) = two_hosts(wire)?;
        let file = peer.program.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let hosts = [&*a, &*b];
        let daemons = if file.contains("nebula") {
            nebula::start(peer, hosts, suite)?
        } else {
            wireguard::start(&peer.program, hosts)?
        };
        Ok(Self { way: Way::Plain { _lab: lab, a, b }, daemons, addresses: (inner(0).into(), inner(1).into()) })
    }

    /// The host that sends.
    #[must_use]
    pub fn a(&self) -> &Host {
        match &self.way {
            Way::Warren { a, .. } => &a.host,
            Way::Plain { a, .. } => a,
        }
    }

    /// The host that receives.
    #[must_use]
    pub fn b(&self) -> &Host {
        match &self.way {
            Way::Warren { b, .. } => &b.host,
            Way::Plain { b, .. } => b,
        }
    }

    /// The inner IPv4 addresses of both.
    #[must_use]
    pub const fn addresses(&self) -> (IpAddr, IpAddr) {
        self.addresses
    }

    /// The daemons' process ids.
    pub fn processes(&mut self) -> Result<Vec<u32>> {
        match &mut self.way {
            Way::Warren { a, b, .. } => Ok(vec![a.process()?.id(), b.process()?.id()]),
            Way::Plain { .. } => Ok(self.daemons.iter().map(|daemon| daemon.child.id()).collect()),
        }
    }

    /// The suite that our nodes say their session has; `None` for anybody else.
    pub fn suite(&self) -> Result<Option<String>> {
        let Way::Warren { a, .. } = &self.way else { return Ok(None) };
        Ok(peers(a)?.iter().find_map(|peer| peer["suite"].as_str().map(str::to_owned)))
    }
}

fn two_hosts(wire: Wire) -> Result<(Box<Lab>, Box<Host>, Box<Host>)> {
    let mut lab = Lab::new()?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    link::join(&a, &b, wire)?;
    Ok((Box::new(lab), Box::new(a), Box::new(b)))
}

fn peers(node: &Node) -> Result<Vec<Value>> {
    let status = node.say(&["status", "-o", "json"])?.expect(0)?.json()?;
    Ok(status["peers"].as_array().cloned().unwrap_or_default())
}

/// Where a node would send to its peers.
fn endpoints(node: &Node) -> Result<Vec<IpAddr>> {
    let address = |peer: &Value| peer["endpoint"].as_str()?.parse::<std::net::SocketAddr>().ok().map(|at| at.ip());
    Ok(peers(node)?.iter().filter_map(address).collect())
}

/// Inner address of host `number` in a tunnel that is not ours.
fn inner(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 88, 0, if number == 0 { 1 } else { 2 })
}

/// Gives a tunnel device its address, and the route that leads into it.
fn address(host: &Host, name: &str, address: Ipv4Addr) -> Result<()> {
    host.namespace.run_async(|| async move {
        let handle = netlink().await?;
        let index = device(&handle, name).await?;
        handle.address().add(index, IpAddr::V4(address), 32).execute().await?;
        handle.link().change(LinkUnspec::new_with_index(index).mtu(MTU).up().build()).execute().await?;
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(Ipv4Addr::new(10, 88, 0, 0), 24)
            .output_interface(index);
        handle.route().add(route.build()).execute().await?;
        Ok(())
    })
}
