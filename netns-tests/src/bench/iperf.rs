//! TCP streams by iperf3, where it is installed: what others measure with.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::load::{Carried, retransmitted};
use crate::host::Host;
use crate::processes::eventually;

/// The first line of `iperf3 --version`, where there is one.
pub fn version() -> Option<&'static str> {
    static VERSION: OnceLock<Option<String>> = OnceLock::new();
    let ask = || {
        let output = Command::new("iperf3").arg("--version").stdin(Stdio::null()).output().ok()?;
        String::from_utf8_lossy(&output.stdout).lines().next().map(str::to_owned)
    };
    VERSION.get_or_init(ask).as_deref()
}

/// A server that ends when the value goes.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `streams` TCP streams for `time`; bytes are counted where they arrive.
pub(super) fn tcp(from: &Host, to: &Host, address: SocketAddr, streams: usize, time: Duration) -> Result<Carried> {
    let (ip, port) = (address.ip().to_string(), address.port().to_string());
    let mut command = Command::new("iperf3");
    command.args(["--server", "--one-off", "--bind", &ip, "--port", &port]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let server = Server(to.namespace.spawn(&mut command)?);
    eventually("iperf3 listens", Duration::from_secs(5), || to.namespace.run(|| listens(address.port())))?;
    let before = retransmitted(from)?;
    let (seconds, streams) = (time.as_secs().max(1).to_string(), streams.to_string());
    let mut command = Command::new("iperf3");
    command.args(["--json", "--client", &ip, "--port", &port, "--time", &seconds, "--parallel", &streams]);
    let output = from.namespace.run(|| command.stdin(Stdio::null()).output().context("run iperf3"))?;
    drop(server);
    let answer: Value = serde_json::from_slice(&output.stdout).context("iperf3's answer is not JSON")?;
    if let Some(error) = answer["error"].as_str() {
        bail!("iperf3: {error}");
    }
    let received = &answer["end"]["sum_received"];
    let (bytes, elapsed) = (received["bytes"].as_u64(), received["seconds"].as_f64());
    let (bytes, elapsed) = bytes.zip(elapsed).context("iperf3 says nothing of what arrived")?;
    let retransmits = retransmitted(from)? - before;
    Ok(Carried { bytes, elapsed: Duration::try_from_secs_f64(elapsed)?, retransmits })
}

/// Whether somebody in the calling thread's namespace listens on a TCP port (proc_net_tcp: state 0A). A connection to find
/// out would end a server that serves one.
fn listens(port: u16) -> Result<bool> {
    let ending = format!(":{port:04X}");
    let mut found = false;
    for family in ["tcp", "tcp6"] {
        let text = std::fs::read_to_string(format!("/proc/thread-self/net/{family}")).unwrap_or_default();
        found |= text.lines().skip(1).any(|line| {
            let mut words = line.split_whitespace();
            let local = words.nth(1).is_some_and(|local| local.ends_with(&ending));
            local && words.nth(1) == Some("0A")
        });
    }
    Ok(found)
}
