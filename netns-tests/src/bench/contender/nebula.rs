//! nebula: a certificate for each host from an authority of the run's own (`nebula-cert`, beside the daemon), each other's
//! address told in advance, and an allow list like ours.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures_util::TryStreamExt;

use super::{Daemon, MTU, Peer, Suite, inner};
use crate::bench::link::ENDS;
use crate::host::{Host, netlink};
use crate::processes::eventually;

const PORT: u16 = 4242;
const DEVICE: &str = "nebula0";

/// One daemon on each host.
pub(super) fn start(peer: &Peer, hosts: [&Host; 2], suite: Suite) -> Result<Vec<Daemon>> {
    let tool = peer.program.with_file_name("nebula-cert");
    // The authority's key needs no other home than the first host's directory, which goes with the lab.
    let authority = &hosts[0].directory;
    certify(&tool, authority, &["ca", "-name", "bench"].map(OsStr::new))?;
    let mut daemons = Vec::new();
    for (number, host) in hosts.into_iter().enumerate() {
        let network = format!("{}/24", inner(number));
        let (certificate, key) = (host.directory.join("host.crt"), host.directory.join("host.key"));
        let words =
            ["sign", "-name", &host.name, "-networks", &network, "-groups", "bench", "-out-crt"].map(OsStr::new);
        let all = [&words[..], &[certificate.as_os_str(), OsStr::new("-out-key"), key.as_os_str()]].concat();
        certify(&tool, authority, &all)?;
        let file = host.directory.join("nebula.yaml");
        std::fs::write(&file, configuration(number, authority, host, suite, peer.buffers))?;
        let log = std::fs::File::create(host.directory.join("nebula.log"))?;
        let mut command = Command::new(&peer.program);
        command.arg("-config").arg(&file).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        daemons.push(Daemon { child: host.namespace.spawn(&mut command)?, socket: None });
        eventually("nebula opens its device", Duration::from_secs(10), || is_up(host))?;
    }
    Ok(daemons)
}

fn configuration(number: usize, authority: &Path, host: &Host, suite: Suite, buffers: Option<u32>) -> String {
    let other = 1 - number;
    let (authority, directory) = (authority.display(), host.directory.display());
    let cipher = match suite {
        Suite::Aes => "aes",
        Suite::ChaCha => "chachapoly",
    };
    let buffers = buffers.map_or_else(String::new, |bytes| format!(", read_buffer: {bytes}, write_buffer: {bytes}"));
    let load = |protocol| format!("    - {{ port: 5000-5999, proto: {protocol}, group: bench }}\n");
    format!(
        "pki: {{ ca: {authority}/ca.crt, cert: {directory}/host.crt, key: {directory}/host.key }}\n\
         static_host_map: {{ \"{}\": [\"{}:{PORT}\"] }}\n\
         lighthouse: {{ am_lighthouse: false }}\n\
         listen: {{ host: 0.0.0.0, port: {PORT}{buffers} }}\n\
         cipher: {cipher}\n\
         tun: {{ dev: {DEVICE}, mtu: {MTU} }}\n\
         logging: {{ level: warning }}\n\
         firewall:\n  outbound:\n    - {{ port: any, proto: any, host: any }}\n  inbound:\n{}{}",
        inner(other),
        ENDS[other],
        load("tcp"),
        load("udp"),
    )
}

fn certify(tool: &Path, directory: &Path, arguments: &[&OsStr]) -> Result<()> {
    let output = Command::new(tool).args(arguments).current_dir(directory).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("run {}", tool.display()))?;
    if !output.status.success() {
        bail!("nebula-cert: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// Whether the device has its address: nebula gives it the certificate's.
fn is_up(host: &Host) -> Result<bool> {
    host.namespace.run_async(|| async {
        let handle = netlink().await?;
        let mut links = handle.link().get().match_name(DEVICE.to_owned()).execute();
        let Ok(Some(link)) = links.try_next().await else { return Ok(false) };
        let mut addresses = handle.address().get().set_link_index_filter(link.header.index).execute();
        Ok(matches!(addresses.try_next().await, Ok(Some(_))))
    })
}
