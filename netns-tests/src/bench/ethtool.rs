//! A device's offloads through the kernel's ethtool netlink family, as `ethtool -K` and `ethtool -k` do
//! (Documentation/networking/ethtool-netlink.rst).

use std::io;

use anyhow::{Context, Result, bail};
use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::{Socket, SocketAddr};

/// The controller family's fixed id, its request for another family's, and the attributes of question and answer.
const CONTROLLER: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

/// Requests and attributes of the ethtool family.
const FEATURES_GET: u8 = 11;
const FEATURES_SET: u8 = 12;
const HEADER: u16 = 1;
const HEADER_NAME: u16 = 2;
const WANTED: u16 = 3;
const ACTIVE: u16 = 4;
const BITSET_BITS: u16 = 3;
const BIT: u16 = 1;
const BIT_NAME: u16 = 2;
const BIT_VALUE: u16 = 3;

const NESTED: u16 = 1 << 15;
const TYPE_MASK: u16 = 0x3fff;
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const ERROR: u16 = 2;

/// Headers of netlink and of generic netlink.
const HEADERS: usize = 16 + 4;

/// Switches features of `device` in the calling thread's network namespace. The kernel says nothing of those that it cannot
/// switch: see [`active_features`].
pub fn set_features(device: &str, features: &[(&str, bool)]) -> Result<()> {
    let bits = features.iter().flat_map(|(name, on)| {
        let value = if *on { attribute(BIT_VALUE, &[]) } else { Vec::new() };
        attribute(BIT | NESTED, &[attribute(BIT_NAME, &text(name)), value].concat())
    });
    let bits = attribute(BITSET_BITS | NESTED, &bits.collect::<Vec<_>>());
    let body = [header(device), attribute(WANTED | NESTED, &bits)].concat();
    ask(family()?, FEATURES_SET, ACKNOWLEDGE, &body).with_context(|| format!("switch offloads of {device}")).map(drop)
}

/// Names of the features that are on.
pub fn active_features(device: &str) -> Result<Vec<String>> {
    let answer = ask(family()?, FEATURES_GET, 0, &header(device)).with_context(|| format!("ask {device}"))?;
    let active = find(&answer, ACTIVE).context("no active features in the answer")?;
    let bits = find(active, BITSET_BITS).unwrap_or_default();
    let name = |bit| find(bit, BIT_NAME).map(|name| String::from_utf8_lossy(name).trim_end_matches('\0').to_owned());
    Ok(attributes(bits).filter(|(kind, _)| *kind == BIT).filter_map(|(_, bit)| name(bit)).collect())
}

fn header(device: &str) -> Vec<u8> {
    attribute(HEADER | NESTED, &attribute(HEADER_NAME, &text(device)))
}

/// The id that the running kernel gave the ethtool family.
fn family() -> Result<u16> {
    let answer = ask(CONTROLLER, GET_FAMILY, 0, &attribute(FAMILY_NAME, &text("ethtool")))
        .context("this kernel has no ethtool netlink family (Linux 5.6, CONFIG_ETHTOOL_NETLINK)")?;
    let id = find(&answer, FAMILY_ID).and_then(|id| id.first_chunk().copied());
    id.map(u16::from_ne_bytes).context("the ethtool family has no id")
}

/// Sends one request and gives the attributes of the first answer, none for an acknowledgement.
fn ask(family: u16, command: u8, flags: u16, body: &[u8]) -> Result<Vec<u8>> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    let length = u32::try_from(HEADERS + body.len())?.to_ne_bytes();
    let flags = (REQUEST | flags).to_ne_bytes();
    let mut message = [&length[..], &family.to_ne_bytes(), &flags, &1_u32.to_ne_bytes(), &[0; 4]].concat();
    message.extend([command, 1, 0, 0]);
    message.extend(body);
    socket.send_to(&message, &SocketAddr::new(0, 0), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let kind = answer.get(4..6).and_then(|kind| kind.first_chunk().copied()).map(u16::from_ne_bytes);
    match kind {
        Some(ERROR) => match answer.get(16..20).and_then(|code| code.first_chunk().copied()).map(i32::from_ne_bytes) {
            Some(0) => Ok(Vec::new()),
            Some(code) => Err(io::Error::from_raw_os_error(-code).into()),
            None => bail!("a short answer from the kernel"),
        },
        Some(_) => Ok(answer.get(HEADERS..).unwrap_or_default().to_vec()),
        None => bail!("a short answer from the kernel"),
    }
}

fn text(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?) & TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(it, _)| *it == kind).map(|(_, value)| value)
}
