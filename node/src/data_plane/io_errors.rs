//! What the devices' calls were refused: a count for each call and error, so that no refusal is silent. Those that have
//! occurred become lines of `warren status`, with the next step where there is one. Counting takes no lock and is off the
//! way of packets that pass.

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use rustix::io::Errno;

/// A call on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    /// Reading a packet from the TUN device.
    TunRead,
    /// Writing a packet to it.
    TunWrite,
    /// Receiving datagrams.
    UdpReceive,
    /// Sending a datagram.
    UdpSend,
}

impl Call {
    const ALL: [Self; 4] = [Self::TunRead, Self::TunWrite, Self::UdpReceive, Self::UdpSend];

    const fn text(self) -> &'static str {
        match self {
            Self::TunRead => "reading from the TUN device failed",
            Self::TunWrite => "writing to the TUN device failed",
            Self::UdpReceive => "receiving datagrams failed",
            Self::UdpSend => "sending datagrams failed",
        }
    }

    /// What the operator can do about it.
    const fn advice(self, errno: Errno) -> &'static str {
        match (self, errno) {
            (Self::TunWrite, Errno::IO) => "; the device is down: `ip link set` it up",
            (Self::UdpSend, Errno::PERM | Errno::ACCESS) => {
                "; a firewall of this host drops them: let the tunnel's UDP port out"
            }
            (Self::UdpSend, Errno::NETUNREACH | Errno::HOSTUNREACH) => {
                "; this host has no route to some peer's address: see `ip route get`"
            }
            (Self::UdpSend, Errno::NETDOWN | Errno::NODEV) => "; a network device of this host is down: see `ip link`",
            (Self::UdpSend, Errno::ADDRNOTAVAIL) => "; this host has no source address for some peer: see `ip address`",
            (Self::UdpSend, Errno::NOBUFS | Errno::AGAIN) => {
                "; the network device is slower than the tunnel, or net.core.wmem_max is small"
            }
            (Self::UdpSend, Errno::MSGSIZE) => "; they do not fit a network device: lower tunnel.mtu",
            (_, Errno::NOMEM) => "; the host is short of memory",
            _ => "",
        }
    }
}

/// The errors that are told apart; the last place is for every other one.
const KNOWN: [Errno; 17] = [
    Errno::AGAIN,
    Errno::NOBUFS,
    Errno::MSGSIZE,
    Errno::INVAL,
    Errno::IO,
    Errno::PERM,
    Errno::ACCESS,
    Errno::NETUNREACH,
    Errno::HOSTUNREACH,
    Errno::CONNREFUSED,
    Errno::NETDOWN,
    Errno::NODEV,
    Errno::ADDRNOTAVAIL,
    Errno::AFNOSUPPORT,
    Errno::NOMEM,
    Errno::BADFD,
    Errno::INTR,
];
const PLACES: usize = KNOWN.len() + 1;

/// Counts of refused calls, by call and error.
#[derive(Debug, Default)]
pub struct IoErrors {
    counts: [[AtomicU64; PLACES]; Call::ALL.len()],
    /// The newest error that is not among [`KNOWN`].
    other: [AtomicI32; Call::ALL.len()],
}

impl IoErrors {
    /// `call` was refused for `packets` packets, after whatever retry there was.
    pub(super) fn count(&self, call: Call, errno: Errno, packets: u64) {
        let place = KNOWN.iter().position(|known| *known == errno).unwrap_or_else(|| {
            self.other[call as usize].store(errno.raw_os_error(), Ordering::Relaxed);
            KNOWN.len()
        });
        self.counts[call as usize][place].fetch_add(packets, Ordering::Relaxed);
    }

    /// One line for each call and error that has occurred, for `warren status`.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for call in Call::ALL {
            for (place, count) in self.counts[call as usize].iter().enumerate() {
                let count = count.load(Ordering::Relaxed);
                if count == 0 {
                    continue;
                }
                let other = || Errno::from_raw_os_error(self.other[call as usize].load(Ordering::Relaxed));
                let errno = KNOWN.get(place).copied().unwrap_or_else(other);
                let times = if count == 1 { "once".to_owned() } else { format!("{count} times") };
                lines.push(format!("{} {times}: {}{}", call.text(), describe(errno), call.advice(errno)));
            }
        }
        lines
    }
}

/// The system's words for an error.
pub(super) fn describe(errno: Errno) -> std::io::Error {
    std::io::Error::from(errno)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refused_call_is_a_line_with_its_count_its_error_and_what_to_do() {
        let errors = IoErrors::default();
        assert_eq!(errors.lines(), Vec::<String>::new());
        errors.count(Call::UdpSend, Errno::PERM, 44);
        errors.count(Call::TunWrite, Errno::IO, 1);
        errors.count(Call::TunRead, Errno::FAULT, 2);
        let lines = errors.lines();
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(lines[0].starts_with("reading from the TUN device failed 2 times: Bad address"), "{lines:?}");
        assert!(lines[1].starts_with("writing to the TUN device failed once: Input/output error"), "{lines:?}");
        assert!(lines[1].ends_with("`ip link set` it up"), "{lines:?}");
        assert!(lines[2].starts_with("sending datagrams failed 44 times: Operation not permitted"), "{lines:?}");
        assert!(lines[2].ends_with("let the tunnel's UDP port out"), "{lines:?}");
    }

    #[test]
    fn every_error_is_counted_under_its_own_name() {
        for call in Call::ALL {
            for errno in KNOWN {
                let errors = IoErrors::default();
                errors.count(call, errno, 1);
                let lines = errors.lines();
                assert!(lines.len() == 1 && lines[0].contains(&describe(errno).to_string()), "{call:?} {lines:?}");
            }
        }
    }
}
