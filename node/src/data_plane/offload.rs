//! Which offloads the devices use: what configuration allows, what the kernel has, and what was given up at run time
//! and why. `warren status` shows it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

/// One offload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offload {
    /// TCP super-packets to and from the TUN device.
    Tso,
    /// UDP super-packets to and from the TUN device (Linux 6.2).
    Uso,
    /// Trains of datagrams to the UDP socket in one send (Linux 4.18).
    Gso,
    /// Trains of datagrams from the UDP socket in one receive (Linux 5.12 without known faults).
    Gro,
}

impl Offload {
    const ALL: [Self; 4] = [Self::Tso, Self::Uso, Self::Gso, Self::Gro];

    const fn name(self) -> &'static str {
        match self {
            Self::Tso => "tso",
            Self::Uso => "uso",
            Self::Gso => "gso",
            Self::Gro => "gro",
        }
    }
}

/// What configuration allows, as `tunnel.offload` says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switches {
    /// [`Offload::Tso`].
    pub tso: bool,
    /// [`Offload::Uso`].
    pub uso: bool,
    /// [`Offload::Gso`].
    pub gso: bool,
    /// [`Offload::Gro`].
    pub gro: bool,
}

impl Switches {
    /// Everything.
    pub const ON: Self = Self { tso: true, uso: true, gso: true, gro: true };
    /// Packet by packet.
    pub const OFF: Self = Self { tso: false, uso: false, gso: false, gro: false };
}

/// The state of all four, shared by the devices and whoever reports it.
#[derive(Debug)]
pub struct Offloads {
    cells: [Cell; 4],
}

#[derive(Debug)]
struct Cell {
    /// [`ON`], [`CONFIGURED_OFF`], [`KERNEL_FAULT`], or an error number, negative where it came at run time.
    state: AtomicI32,
    /// Super-packets or trains that the kernel refused and that went packet by packet.
    apart: AtomicU64,
}

const ON: i32 = 0;
const CONFIGURED_OFF: i32 = i32::MAX;
const KERNEL_FAULT: i32 = i32::MAX - 1;

/// One offload for `warren status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffloadState {
    /// Its name, as in `tunnel.offload`.
    pub name: &'static str,
    /// Whether it is in use.
    pub on: bool,
    /// Why not, or how often the kernel refused; empty when all is well.
    pub detail: String,
}

impl Offloads {
    /// Everything that `switches` allows, until the devices have found out what the kernel has.
    #[must_use]
    pub fn new(switches: Switches) -> Arc<Self> {
        let Switches { tso, uso, gso, gro } = switches;
        let cell = |on| Cell { state: AtomicI32::new(if on { ON } else { CONFIGURED_OFF }), apart: AtomicU64::new(0) };
        Arc::new(Self { cells: [tso, uso, gso, gro].map(cell) })
    }

    const fn cell(&self, offload: Offload) -> &Cell {
        &self.cells[offload as usize]
    }

    /// Whether it is in use.
    #[must_use]
    pub fn is_on(&self, offload: Offload) -> bool {
        self.cell(offload).state.load(Ordering::Relaxed) == ON
    }

    /// The kernel does not have it, as this error says.
    pub(super) fn unsupported(&self, offload: Offload, errno: i32) {
        self.turn_off(offload, errno.max(1));
    }

    /// This kernel's version is known to damage packets with it.
    pub(super) fn faulty(&self, offload: Offload) {
        self.turn_off(offload, KERNEL_FAULT);
    }

    /// The kernel refused it at run time, for good.
    pub(super) fn give_up(&self, offload: Offload, errno: i32) {
        self.turn_off(offload, -errno.max(1));
    }

    /// The kernel refused it once; the packets went one by one.
    pub(super) fn count_apart(&self, offload: Offload) {
        self.cell(offload).apart.fetch_add(1, Ordering::Relaxed);
    }

    /// The first reason stays.
    fn turn_off(&self, offload: Offload, state: i32) {
        let _ = self.cell(offload).state.compare_exchange(ON, state, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// How each of them stands.
    #[must_use]
    pub fn states(&self) -> Vec<OffloadState> {
        Offload::ALL.iter().map(|offload| self.state(*offload)).collect()
    }

    fn state(&self, offload: Offload) -> OffloadState {
        let cell = self.cell(offload);
        let (state, apart) = (cell.state.load(Ordering::Relaxed), cell.apart.load(Ordering::Relaxed));
        let name = offload.name();
        let mut detail = match state {
            ON => String::new(),
            CONFIGURED_OFF => format!("off by tunnel.offload.{name}"),
            KERNEL_FAULT => "off: this kernel's version damages packets with it; update the kernel".to_owned(),
            errno if errno > 0 => format!("the kernel does not offer it: {}", Errno(errno)),
            errno => format!("given up at run time: {}; restart the node to try again", Errno(-errno)),
        };
        if apart > 0 {
            let joint = if detail.is_empty() { "" } else { "; " };
            detail.push_str(&format!("{joint}refused for {apart} batches, which went packet by packet"));
        }
        OffloadState { name, on: state == ON, detail }
    }
}

struct Errno(i32);

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

/// The running kernel's version.
pub(super) fn kernel_version() -> (u32, u32, u32) {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    (next(), next(), next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_for_an_offload_to_be_off_is_the_one_that_is_told() {
        let offloads = Offloads::new(Switches { gro: false, ..Switches::ON });
        offloads.unsupported(Offload::Uso, libc::EINVAL);
        offloads.give_up(Offload::Uso, libc::EIO);
        offloads.faulty(Offload::Gso);
        offloads.count_apart(Offload::Tso);
        let states = offloads.states();
        let on: Vec<bool> = states.iter().map(|state| state.on).collect();
        assert_eq!(on, [true, false, false, false]);
        assert_eq!(states[0].detail, "refused for 1 batches, which went packet by packet");
        assert!(states[1].detail.starts_with("the kernel does not offer it: Invalid argument"), "{}", states[1].detail);
        assert!(states[2].detail.contains("update the kernel"));
        assert_eq!(states[3].detail, "off by tunnel.offload.gro");
    }
}
