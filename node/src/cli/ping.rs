//! `warren ping`: asks a peer through the tunnel, and says why when nothing comes back.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, recv, sendto, socket_with};
use serde::Serialize;

use super::{Context, Exit, Failure, Outcome, Present, config};
use crate::local_api::client::{ask, ask_once};
use crate::local_api::types::{FlowLine, FlowVerdict, Holders, Request};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
An echo is let in from a source that some rule of the service admits on any port; with --tcp a connection is opened and closed, which a rule must allow. The answer comes through the tunnel or not at all.

Exit code: 0 at least one answer, 3 refused, 4 none, 6 nobody has that name.

Examples:
  warren ping bank/banking-api
  warren ping fd5a:1b2c:3d4e::7 --count 1
  warren ping bank/banking-api --tcp 8080")]
pub(super) struct Arguments {
    /// A workload <namespace>/<name>, or an overlay address.
    #[arg(value_name = "TARGET")]
    target: String,
    /// Open a TCP connection to this port instead of sending an echo.
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    tcp: Option<u16>,
    /// How often to ask.
    #[arg(short, long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    count: u16,
    /// How long to wait for each answer, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=60))]
    timeout: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Pinged {
    target: String,
    address: IpAddr,
    port: Option<u16>,
    sent: u16,
    answered: u16,
    refused: bool,
    /// Milliseconds, in the order asked; null where none came.
    milliseconds: Vec<Option<f64>>,
    reason: Option<String>,
}

impl Present for Pinged {
    const KIND: &'static str = "Ping";

    fn text(&self, _wide: bool) -> String {
        let mut text = String::new();
        for (number, time) in self.milliseconds.iter().enumerate() {
            let what = match (time, self.refused) {
                (Some(time), _) => format!("answer in {time:.2} ms"),
                (None, true) => "refused".to_owned(),
                (None, false) => "no answer".to_owned(),
            };
            text.push_str(&format!("{} ({}): {} {what}\n", self.target, self.address, number + 1));
        }
        text.push_str(&format!("{} of {} answered", self.answered, self.sent));
        if let Some(reason) = &self.reason {
            text.push_str(&format!("\nreason: {reason}"));
        }
        text
    }
}

/// What one try came to.
enum Tried {
    Answered(Duration),
    Refused,
    Silent,
}

pub(super) fn run(arguments: Arguments, context: &Context) -> Outcome {
    let socket = config::load(context)?.config.socket;
    super::block_on(async {
        let address = match arguments.target.parse() {
            Ok(address) => address,
            Err(_) => {
                let target = arguments.target.clone();
                let holders: Holders = ask_once(&socket, &Request::Whois { target }).await?;
                let first = holders.items.first().and_then(|holder| holder.addresses.first());
                *first.ok_or_else(|| Failure::new(Exit::NotFound, format!("{} has no address", arguments.target)))?
            }
        };
        let patience = Duration::from_secs(arguments.timeout);
        let echo = if arguments.tcp.is_none() { Some(Echo::open(address, patience)?) } else { None };
        let mut times = Vec::with_capacity(arguments.count.into());
        let mut refused = false;
        for number in 1..=arguments.count {
            let tried = match (&echo, arguments.tcp) {
                (Some(echo), _) => echo.ask(number)?,
                (None, port) => connect(SocketAddr::new(address, port.unwrap_or_default()), patience).await?,
            };
            times.push(match tried {
                Tried::Answered(time) => Some(time.as_secs_f64() * 1000.0),
                Tried::Refused => {
                    refused = true;
                    None
                }
                Tried::Silent => None,
            });
            if number < arguments.count {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
        let answered = u16::try_from(times.iter().flatten().count()).unwrap_or(u16::MAX);
        let reason = if answered == 0 { last_denial(&socket, address).await } else { None };
        context.output.print(&Pinged {
            target: arguments.target.clone(),
            address,
            port: arguments.tcp,
            sent: arguments.count,
            answered,
            refused,
            milliseconds: times,
            reason,
        })?;
        if answered > 0 {
            return Ok(Exit::Yes);
        }
        let port = arguments.tcp.map_or_else(|| "PORT".to_owned(), |port| port.to_string());
        context.output.say(format!("next: warren why <this workload> {}:{port}; warren status", arguments.target));
        Ok(if refused { Exit::No } else { Exit::NotReady })
    })
}

/// The newest denial that this node's own side recorded towards the address; the other side's reasons stay there.
async fn last_denial(socket: &std::path::Path, address: IpAddr) -> Option<String> {
    let request = Request::Flows { verdict: Some(FlowVerdict::Denied), limit: 50, follow: false };
    let mut asked = ask(socket, &request).await.ok()?;
    let mut newest = None;
    while let Ok(Some(line)) = asked.next::<FlowLine>().await {
        if line.destination_address.ip() == address {
            newest = line.reason;
        }
    }
    newest.map(|reason| format!("{} ({})", reason.text(), reason.name()))
}

async fn connect(target: SocketAddr, patience: Duration) -> Result<Tried, Failure> {
    let began = Instant::now();
    match tokio::time::timeout(patience, tokio::net::TcpStream::connect(target)).await {
        Ok(Ok(_)) => Ok(Tried::Answered(began.elapsed())),
        Ok(Err(error)) => match error.kind() {
            std::io::ErrorKind::ConnectionRefused
            | std::io::ErrorKind::ConnectionReset
            | std::io::ErrorKind::PermissionDenied
            | std::io::ErrorKind::HostUnreachable
            | std::io::ErrorKind::NetworkUnreachable => Ok(Tried::Refused),
            std::io::ErrorKind::TimedOut => Ok(Tried::Silent),
            _ => Err(Failure::new(Exit::Failed, format!("a connection to {target} cannot be tried")).cause(&error)),
        },
        Err(_) => Ok(Tried::Silent),
    }
}

/// An ICMP socket for one address.
struct Echo {
    socket: OwnedFd,
    target: IpAddr,
    raw: bool,
    identifier: u16,
    patience: Duration,
}

const ECHO_REQUEST_V4: u8 = 8;
const ECHO_REPLY_V4: u8 = 0;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;
const HEADER: usize = 8;

impl Echo {
    /// Unprivileged where the host allows it (`net.ipv4.ping_group_range`), raw otherwise.
    fn open(target: IpAddr, patience: Duration) -> Result<Self, Failure> {
        let (family, protocol) = match target {
            IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
            IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
        };
        let open = |kind| socket_with(family, kind, SocketFlags::CLOEXEC, Some(protocol));
        let (socket, raw) = match open(SocketType::DGRAM) {
            Ok(socket) => (socket, false),
            Err(_) => (open(SocketType::RAW).map_err(no_socket)?, true),
        };
        let identifier = u16::try_from(std::process::id() & 0xffff).unwrap_or_default();
        Ok(Self { socket, target, raw, identifier, patience })
    }

    fn ask(&self, sequence: u16) -> Result<Tried, Failure> {
        let packet = self.request(sequence);
        let began = Instant::now();
        match sendto(&self.socket, &packet, SendFlags::empty(), &SocketAddr::new(self.target, 0)) {
            Ok(_) => {}
            Err(Errno::ACCESS | Errno::PERM | Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::CONNREFUSED) => {
                return Ok(Tried::Refused);
            }
            Err(errno) => {
                return Err(Failure::new(Exit::Failed, format!("an echo to {} cannot be sent", self.target))
                    .cause(&std::io::Error::from(errno)));
            }
        }
        let mut buffer = [0; 1500];
        loop {
            let left = self.patience.saturating_sub(began.elapsed());
            if left.is_zero() {
                return Ok(Tried::Silent);
            }
            set_socket_timeout(&self.socket, Timeout::Recv, Some(left)).map_err(no_socket)?;
            match recv(&self.socket, &mut buffer, RecvFlags::empty()) {
                Ok((_, length)) => {
                    if self.is_reply(buffer.get(..length).unwrap_or_default(), sequence) {
                        return Ok(Tried::Answered(began.elapsed()));
                    }
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => return Ok(Tried::Refused),
            }
        }
    }

    fn request(&self, sequence: u16) -> Vec<u8> {
        let kind = if self.target.is_ipv4() { ECHO_REQUEST_V4 } else { ECHO_REQUEST_V6 };
        let mut packet = vec![kind, 0, 0, 0];
        packet.extend_from_slice(&self.identifier.to_be_bytes());
        packet.extend_from_slice(&sequence.to_be_bytes());
        packet.extend_from_slice(b"warren ping");
        // The kernel fills in ICMPv6's checksum; ICMP's only on a datagram socket.
        let sum = checksum(&packet).to_be_bytes();
        if self.target.is_ipv4()
            && let Some(field) = packet.get_mut(2..4)
        {
            field.copy_from_slice(&sum);
        }
        packet
    }

    fn is_reply(&self, packet: &[u8], sequence: u16) -> bool {
        // A raw IPv4 socket hands over the IP header too.
        let header = match (self.raw && self.target.is_ipv4(), packet.first()) {
            (true, Some(first)) => usize::from(first & 0x0f) * 4,
            _ => 0,
        };
        let Some(&[kind, _, _, _, id_high, id_low, high, low]) =
            packet.get(header..).and_then(<[u8]>::first_chunk::<HEADER>)
        else {
            return false;
        };
        let reply = if self.target.is_ipv4() { ECHO_REPLY_V4 } else { ECHO_REPLY_V6 };
        // A datagram socket has an identifier of the kernel's choice and gets its own replies only.
        let ours = !self.raw || u16::from_be_bytes([id_high, id_low]) == self.identifier;
        kind == reply && ours && u16::from_be_bytes([high, low]) == sequence
    }
}

fn no_socket(errno: Errno) -> Failure {
    Failure::new(Exit::NotPermitted, "this user may not send echoes")
        .cause(&std::io::Error::from(errno))
        .next("run as root, or ask with --tcp PORT")
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        let high = pair.first().copied().unwrap_or_default();
        let low = pair.get(1).copied().unwrap_or_default();
        sum += u32::from(u16::from_be_bytes([high, low]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksummed_message_sums_to_zero() {
        let mut message = vec![8, 0, 0, 0, 0x12, 0x34, 0, 1, b'o', b'd', b'd'];
        let sum = checksum(&message).to_be_bytes();
        message[2..4].copy_from_slice(&sum);
        assert_eq!(checksum(&message), 0);
    }
}
