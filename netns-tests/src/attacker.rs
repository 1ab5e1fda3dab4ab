//! What an attacker can do who has a host on the wire: dial with any key, put frames back on the wire, and
//! route to overlay addresses past the tunnel.

pub mod control;

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};

use crate::host::Host;

/// How often a dial is repeated before the answer counts as silence.
const DIALS: u32 = 3;

/// A tunnel key to dial with.
pub struct Key(StaticSecret);

impl Key {
    /// A key that nobody knows.
    #[must_use]
    pub fn unknown() -> Self {
        Self(StaticSecret::random_from_rng(rand_core::OsRng))
    }

    /// The key of an enrolled node, taken out of its state directory: what a tampered node dials with.
    pub fn stolen(state: &Path) -> Result<Self> {
        let mut found = None;
        for entry in std::fs::read_dir(state).with_context(|| format!("read {}", state.display()))? {
            let bytes = std::fs::read(entry?.path()).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if let Some((_, rest)) = text.split_once("\"tunnel\":\"") {
                found = rest.split('"').next().map(str::to_owned);
            }
        }
        let text = found.with_context(|| format!("no tunnel key in {}", state.display()))?;
        let bytes: [u8; 32] =
            STANDARD.decode(text)?.try_into().map_err(|_| anyhow!("the tunnel key is not 32 bytes"))?;
        Ok(Self(StaticSecret::from(bytes)))
    }

    /// Its public half.
    #[must_use]
    pub fn public(&self) -> [u8; 32] {
        PublicKey::from(&self.0).to_bytes()
    }
}

/// Reads a public key as `warren` prints it.
pub fn public_key(text: &str) -> Result<[u8; 32]> {
    STANDARD.decode(text)?.try_into().map_err(|_| anyhow!("{text:?} is not a public key of 32 bytes"))
}

/// Sends correct handshake initiations to `responder` at `to`, each freshly made, and gives the first datagram that
/// comes back, if any does within `wait` of each.
pub fn dial(from: &Host, to: SocketAddr, key: &Key, responder: [u8; 32], wait: Duration) -> Result<Option<Vec<u8>>> {
    let socket = from.namespace.run(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
    socket.set_read_timeout(Some(wait))?;
    let mut tunnel = Tunn::new(key.0.clone(), PublicKey::from(responder), None, None, 7, None);
    let mut message = [0; 256];
    let mut answer = [0; 2048];
    for _ in 0..DIALS {
        let TunnResult::WriteToNetwork(initiation) = tunnel.format_handshake_initiation(&mut message, true) else {
            return Err(anyhow!("no handshake initiation was made"));
        };
        socket.send_to(initiation, to).with_context(|| format!("send to {to}"))?;
        if let Ok((length, _)) = socket.recv_from(&mut answer) {
            return Ok(Some(answer[..length].to_vec()));
        }
    }
    Ok(None)
}

/// Correct handshake initiations to `responder`, each freshly made.
pub fn initiations(key: &Key, responder: [u8; 32], count: usize) -> Result<Vec<Vec<u8>>> {
    let mut tunnel = Tunn::new(key.0.clone(), PublicKey::from(responder), None, None, 7, None);
    let mut message = [0; 256];
    (0..count)
        .map(|_| match tunnel.format_handshake_initiation(&mut message, true) {
            TunnResult::WriteToNetwork(initiation) => Ok(initiation.to_vec()),
            _ => Err(anyhow!("no handshake initiation was made")),
        })
        .collect()
}

/// Sends any datagram and gives what comes back within `wait`.
pub fn send(from: &Host, to: SocketAddr, datagram: &[u8], wait: Duration) -> Result<Option<Vec<u8>>> {
    let socket = from.namespace.run(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
    socket.set_read_timeout(Some(wait))?;
    socket.send_to(datagram, to).with_context(|| format!("send to {to}"))?;
    let mut answer = [0; 2048];
    Ok(socket.recv_from(&mut answer).ok().map(|(length, _)| answer[..length].to_vec()))
}
