//! Any WireGuard userspace program that speaks the cross-platform configuration protocol: a socket in
//! /var/run/wireguard.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use boringtun::x25519::{PublicKey, StaticSecret};

use super::{Daemon, address, inner};
use crate::bench::link::ENDS;
use crate::host::Host;
use crate::processes::eventually;

const PORT: u16 = 51820;

/// One daemon on each host, each the other's only peer.
pub(super) fn start(program: &Path, hosts: [&Host; 2]) -> Result<Vec<Daemon>> {
    let keys = [StaticSecret::random_from_rng(rand_core::OsRng), StaticSecret::random_from_rng(rand_core::OsRng)];
    let mut daemons = Vec::new();
    for (number, host) in hosts.into_iter().enumerate() {
        let other = 1 - number;
        let name = fresh_name();
        daemons.push(spawn(program, host, &name)?);
        let settings = format!(
            "set=1\nprivate_key={}\nlisten_port={PORT}\npublic_key={}\nendpoint={}:{PORT}\nallowed_ip={}/32\n\n",
            hex::encode(keys[number].to_bytes()),
            hex::encode(PublicKey::from(&keys[other]).as_bytes()),
            ENDS[other],
            inner(other),
        );
        configure(&name, &settings)?;
        address(host, &name, inner(number))?;
    }
    Ok(daemons)
}

fn spawn(program: &Path, host: &Host, name: &str) -> Result<Daemon> {
    let path = host.directory.join("wireguard.log");
    let log = std::fs::File::create(&path)?;
    let mut command = Command::new(program);
    let foreground = match program.file_name().map(|name| name.to_string_lossy().into_owned()) {
        Some(file) if ["boringtun", "neptun", "gotatun"].iter().any(|name| file.contains(name)) => "--foreground",
        _ => "-f",
    };
    command.args([OsString::from(foreground), OsString::from(name)]);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).env("WG_SUDO", "true");
    let socket = socket(name);
    let daemon = Daemon { child: host.namespace.spawn(&mut command)?, socket: Some(socket.clone()) };
    eventually("the WireGuard program opens its socket", Duration::from_secs(10), || Ok(socket.exists()))
        .with_context(|| format!("it said: {}", std::fs::read_to_string(&path).unwrap_or_default().trim()))?;
    Ok(daemon)
}

/// A device name that no other run has: the directory of sockets is the machine's.
fn fresh_name() -> String {
    static NUMBERS: AtomicU32 = AtomicU32::new(0);
    format!("b{:x}x{:x}", std::process::id(), NUMBERS.fetch_add(1, Ordering::Relaxed))
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
