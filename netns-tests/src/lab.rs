//! A topology that reads as a sentence: hosts on one wire.
//!
//! ```text
//!   host a        host b        host c
//!    eth0          eth0          eth0      198.51.100.N/24, 2001:db8::N/64
//!     |             |             |
//!   ==+=============+=============+====    bridge "wire0" in the wire's own namespace
//! ```

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use rtnetlink::{LinkBridge, LinkUnspec, LinkVeth};
use tempfile::TempDir;

use crate::capture::Capture;
use crate::host::{Host, UNDERLAY, device, netlink};
use crate::namespace::Namespace;

/// The bridge that joins the hosts, in the wire's namespace.
pub const BRIDGE: &str = "wire0";

/// Hosts on one wire, and a directory that goes when the lab goes.
#[derive(Debug)]
pub struct Lab {
    /// The namespace of the bridge: where an attacker on the wire sits.
    pub wire: Namespace,
    hosts: u8,
    numbers: AtomicU32,
    directory: TempDir,
}

impl Lab {
    /// An empty wire.
    pub fn new() -> Result<Self> {
        let wire = Namespace::new("wire")?;
        wire.run_async(|| async {
            let handle = netlink().await?;
            let loopback = device(&handle, "lo").await?;
            handle.link().change(LinkUnspec::new_with_index(loopback).up().build()).execute().await?;
            handle.link().add(LinkBridge::new(BRIDGE).up().build()).execute().await.context("add the bridge")?;
            Ok(())
        })?;
        let directory = tempfile::Builder::new().prefix("warren-lab-").tempdir().context("make a directory")?;
        Ok(Self { wire, hosts: 0, numbers: AtomicU32::new(0), directory })
    }

    /// Where the lab keeps its files.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A number that this lab has not given before, for file names.
    pub fn fresh_number(&self) -> u32 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Keeps the files when the lab goes, for looking into a failure.
    pub fn keep_directory(&mut self) {
        self.directory.disable_cleanup(true);
    }

    /// Another host on the wire.
    pub fn host(&mut self, name: &str) -> Result<Host> {
        self.hosts += 1;
        let number = self.hosts;
        let namespace = Namespace::new(name)?;
        let port = format!("port{number}");
        let descriptor = namespace.descriptor();
        self.wire.run_async(|| async move {
            use std::os::fd::AsRawFd;
            let handle = netlink().await?;
            let peer = format!("peer{number}");
            handle.link().add(LinkVeth::new(&port, &peer).build()).execute().await.context("add a veth pair")?;
            let bridge = device(&handle, BRIDGE).await?;
            let ours = device(&handle, &port).await?;
            let theirs = device(&handle, &peer).await?;
            let attach = LinkUnspec::new_with_index(ours).controller(bridge).up().build();
            handle.link().change(attach).execute().await.context("attach to the bridge")?;
            let moved =
                LinkUnspec::new_with_index(theirs).name(UNDERLAY.to_owned()).setns_by_fd(descriptor.as_raw_fd());
            handle.link().change(moved.build()).execute().await.context("move the device into the host")?;
            Ok(())
        })?;
        let directory = self.directory.path().join(name);
        std::fs::create_dir(&directory).with_context(|| format!("make {}", directory.display()))?;
        let host = Host {
            name: name.to_owned(),
            namespace,
            v4: Ipv4Addr::new(198, 51, 100, number),
            v6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into()),
            directory,
        };
        host.configure().with_context(|| format!("configure host {name}"))?;
        Ok(host)
    }

    /// Starts recording every frame that crosses the wire.
    pub fn capture(&self) -> Result<Capture> {
        Capture::start(&self.wire)
    }
}
