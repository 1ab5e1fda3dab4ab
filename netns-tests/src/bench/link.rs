//! The wire that is measured: one veth pair straight between two hosts, beside the lab's bridge, with the offloads
//! that a run asks for.
//!
//! ```text
//!   a eth1 203.0.113.1/24 ===veth=== 203.0.113.2/24 eth1 b
//! ```

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use rtnetlink::{LinkUnspec, LinkVeth};

use super::ethtool;
use crate::host::{Host, device, netlink};

/// The measured device on both hosts.
pub const DEVICE: &str = "eth1";

/// Both ends' addresses on it (a documentation prefix, RFC 5737).
pub const ENDS: [Ipv4Addr; 2] = [Ipv4Addr::new(203, 0, 113, 1), Ipv4Addr::new(203, 0, 113, 2)];

/// What the wire does for whoever sends large.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// A veth pair as made: super-packets cross whole.
    Offload,
    /// No segmentation by the device, as with a network card that has none for tunnels: the kernel segments just before
    /// it, and merges after it (GRO).
    Nic,
    /// Neither: every packet makes the whole way by itself.
    None,
}

impl Wire {
    /// As on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Offload => "offload",
            Self::Nic => "nic",
            Self::None => "none",
        }
    }

    /// Features of a device that are switched, and to what.
    fn features(self) -> Vec<(&'static str, bool)> {
        let segmentation = [
            "tx-tcp-segmentation",
            "tx-tcp-ecn-segmentation",
            "tx-tcp-mangleid-segmentation",
            "tx-tcp6-segmentation",
            "tx-udp-segmentation",
        ];
        let software = match self {
            Self::Offload => return Vec::new(),
            Self::Nic => true,
            Self::None => false,
        };
        let merge = [("tx-generic-segmentation", software), ("rx-gro", software)];
        segmentation.into_iter().map(|name| (name, false)).chain(merge).collect()
    }
}

impl FromStr for Wire {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        [Self::Offload, Self::Nic, Self::None]
            .into_iter()
            .find(|wire| wire.name() == text)
            .with_context(|| format!("{text:?} is not one of offload, nic, none"))
    }
}

/// What TCP sockets that programs open on `host` from now on use. Images and distributions change the default, and figures
/// change with it: BBR paces by what it measures, on a wire like this often too low.
pub fn set_congestion_control(host: &Host, name: &str) -> Result<()> {
    host.namespace.run(|| Ok(std::fs::write("/proc/sys/net/ipv4/tcp_congestion_control", name)?)).with_context(|| {
        format!("set congestion control {name:?}; tcp_available_congestion_control names what there is")
    })
}

/// Joins two hosts.
pub fn join(a: &Host, b: &Host, wire: Wire) -> Result<()> {
    let far = b.namespace.descriptor();
    a.namespace.run_async(|| async move {
        let handle = netlink().await?;
        handle.link().add(LinkVeth::new(DEVICE, "far1").build()).execute().await.context("add a veth pair")?;
        let index = device(&handle, "far1").await?;
        let moved = LinkUnspec::new_with_index(index).name(DEVICE.to_owned()).setns_by_fd(far.as_raw_fd());
        handle.link().change(moved.build()).execute().await.context("move the device into the other host")?;
        Ok(())
    })?;
    for (host, address) in [a, b].into_iter().zip(ENDS) {
        host.namespace.run_async(|| async move {
            let handle = netlink().await?;
            let index = device(&handle, DEVICE).await?;
            handle.address().add(index, IpAddr::V4(address), 24).execute().await?;
            handle.link().change(LinkUnspec::new_with_index(index).up().build()).execute().await?;
            Ok(())
        })?;
        let wanted = wire.features();
        if wanted.is_empty() {
            continue;
        }
        host.namespace.run(|| {
            ethtool::set_features(DEVICE, &wanted)?;
            let active = ethtool::active_features(DEVICE)?;
            match wanted.iter().find(|(name, on)| active.iter().any(|it| it == name) != *on) {
                Some((name, on)) => bail!("{DEVICE}: the kernel left {name} {}", if *on { "off" } else { "on" }),
                None => Ok(()),
            }
        })?;
    }
    Ok(())
}
