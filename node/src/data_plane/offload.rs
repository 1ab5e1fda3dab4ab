//! Which offloads the devices use: what configuration allows, what the kernel has, and what was given up at run time
//! and why. `warren status` shows it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};

use rustix::io::Errno;

use super::io_errors::{IoErrors, describe};

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

    /// What is done without it.
    const fn fallback(self) -> &'static str {
        match self {
            Self::Tso => "the host cuts TCP into packets, each a read or write of the TUN device",
            Self::Uso => "the host cuts UDP into packets, each a read or write of the TUN device",
            Self::Gso => "datagrams leave one by one, many per sendmmsg",
            Self::Gro => "datagrams arrive one by one, many per recvmmsg",
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

/// The state of all four and what the devices' calls were refused, shared by the devices and whoever reports it.
#[derive(Debug)]
pub struct Offloads {
    cells: [Cell; 4],
    errors: IoErrors,
}

#[derive(Debug)]
struct Cell {
    /// [`ON`], [`CONFIGURED_OFF`], [`KERNEL_FAULT`], or the error that says that the kernel does not have it.
    state: AtomicI32,
    /// Super-packets or trains that the kernel refused and that went packet by packet.
    apart: AtomicU64,
    /// The newest error among those refusals.
    errno: AtomicI32,
    /// Refusals since the last one that the kernel took.
    in_a_row: AtomicU32,
    /// Batches for which it is not tried.
    rest: AtomicU32,
    /// What the next rest lasts.
    next_rest: AtomicU32,
    /// Another program has switched it off at the device.
    switched_off: AtomicBool,
    /// How often that was.
    switches: AtomicU64,
}

const ON: i32 = 0;
const CONFIGURED_OFF: i32 = i32::MAX;
const KERNEL_FAULT: i32 = i32::MAX - 1;

/// Refusals in a row that are no accident: one packet that the kernel does not like is written again singly, and says
/// nothing of the next.
const PERSISTENT: u32 = 8;
/// Batches that go packet by packet after that, before one is tried again: the cost of a try is one call in a thousand.
const FIRST_REST: u32 = 1 << 10;
/// Each rest is twice as long as the one before, up to this.
const LONGEST_REST: u32 = 1 << 20;

/// One offload for `warren status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffloadState {
    /// Its name, as in `tunnel.offload`.
    pub name: &'static str,
    /// Whether it is in use.
    pub on: bool,
    /// Why not, or how often the kernel refused; empty when all is well.
    pub detail: String,
    /// What is done without it.
    pub fallback: &'static str,
}

impl Offloads {
    /// Everything that `switches` allows, until the devices have found out what the kernel has.
    #[must_use]
    pub fn new(switches: Switches) -> Arc<Self> {
        let Switches { tso, uso, gso, gro } = switches;
        let cell = |on| Cell {
            state: AtomicI32::new(if on { ON } else { CONFIGURED_OFF }),
            apart: AtomicU64::new(0),
            errno: AtomicI32::new(0),
            in_a_row: AtomicU32::new(0),
            rest: AtomicU32::new(0),
            next_rest: AtomicU32::new(FIRST_REST),
            switched_off: AtomicBool::new(false),
            switches: AtomicU64::new(0),
        };
        Arc::new(Self { cells: [tso, uso, gso, gro].map(cell), errors: IoErrors::default() })
    }

    /// What the devices' calls were refused.
    #[must_use]
    pub const fn errors(&self) -> &IoErrors {
        &self.errors
    }

    const fn cell(&self, offload: Offload) -> &Cell {
        &self.cells[offload as usize]
    }

    /// Whether configuration and kernel have it.
    #[must_use]
    pub fn is_on(&self, offload: Offload) -> bool {
        self.cell(offload).state.load(Ordering::Relaxed) == ON
    }

    /// Whether the next batch may use it. Asking counts: a rest is so many questions long.
    pub(super) fn may_use(&self, offload: Offload) -> bool {
        if !self.is_on(offload) {
            return false;
        }
        let rest = &self.cell(offload).rest;
        if rest.load(Ordering::Relaxed) == 0 {
            return true;
        }
        // Workers share the rest; that one of them begins a question early or late changes nothing.
        let _ = rest.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        false
    }

    /// The kernel does not have it, as this error says.
    pub(super) fn unsupported(&self, offload: Offload, errno: Errno) {
        self.turn_off(offload, errno.raw_os_error().max(1));
    }

    /// This kernel's version is known to damage packets with it.
    pub(super) fn faulty(&self, offload: Offload) {
        self.turn_off(offload, KERNEL_FAULT);
    }

    /// The kernel refused it for one batch, which went packet by packet. One refusal may be of the packet or of the
    /// moment; only when it persists does the offload rest for a while.
    pub(super) fn refused(&self, offload: Offload, errno: Errno) {
        self.count_apart(offload, errno);
        let cell = self.cell(offload);
        if cell.in_a_row.fetch_add(1, Ordering::Relaxed) + 1 >= PERSISTENT {
            // The first refusal after the rest begins the next one.
            cell.in_a_row.store(PERSISTENT - 1, Ordering::Relaxed);
            let length = cell.next_rest.load(Ordering::Relaxed);
            cell.rest.store(length, Ordering::Relaxed);
            cell.next_rest.store((length * 2).min(LONGEST_REST), Ordering::Relaxed);
        }
    }

    /// The kernel took a batch.
    pub(super) fn taken(&self, offload: Offload) {
        let cell = self.cell(offload);
        if cell.in_a_row.load(Ordering::Relaxed) != 0 {
            cell.in_a_row.store(0, Ordering::Relaxed);
            cell.next_rest.store(FIRST_REST, Ordering::Relaxed);
        }
    }

    /// The kernel refused it for one batch, for a reason that concerns where the batch went.
    pub(super) fn count_apart(&self, offload: Offload, errno: Errno) {
        let cell = self.cell(offload);
        cell.apart.fetch_add(1, Ordering::Relaxed);
        cell.errno.store(errno.raw_os_error(), Ordering::Relaxed);
    }

    /// How the device's own switch stands, which any administrator can turn. What it leaves of the offload goes on.
    pub(super) fn switched(&self, offload: Offload, on: bool) {
        let cell = self.cell(offload);
        if cell.switched_off.swap(!on, Ordering::Relaxed) == on && !on {
            cell.switches.fetch_add(1, Ordering::Relaxed);
        }
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
        let rests = state == ON && cell.rest.load(Ordering::Relaxed) > 0;
        let (switched_off, switches) =
            (cell.switched_off.load(Ordering::Relaxed), cell.switches.load(Ordering::Relaxed));
        let name = offload.name();
        let text = |errno| describe(Errno::from_raw_os_error(errno));
        let mut detail = match state {
            ON if switched_off => {
                format!(
                    "off: another program switched it off at the device; `ethtool -K <tunnel.device> {name} on` switches it on"
                )
            }
            ON if rests => "off for a while: the kernel refuses it again and again; it is tried again".to_owned(),
            ON => String::new(),
            CONFIGURED_OFF => format!("off by tunnel.offload.{name}"),
            KERNEL_FAULT => "off: this kernel's version damages packets with it; update the kernel".to_owned(),
            errno => format!("the kernel does not offer it: {}", text(errno)),
        };
        let mut add = |text: String| {
            let joint = if detail.is_empty() { "" } else { "; " };
            detail.push_str(&format!("{joint}{text}"));
        };
        if switches > 0 {
            let times = if switches == 1 { "once".to_owned() } else { format!("{switches} times") };
            add(format!("found switched off {times}"));
        }
        if apart > 0 {
            let batches = if apart == 1 { "one batch".to_owned() } else { format!("{apart} batches") };
            let last = text(cell.errno.load(Ordering::Relaxed));
            add(format!("refused for {batches}, which went packet by packet (last: {last})"));
        }
        OffloadState { name, on: state == ON && !rests && !switched_off, detail, fallback: offload.fallback() }
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
        offloads.unsupported(Offload::Uso, Errno::INVAL);
        offloads.unsupported(Offload::Uso, Errno::IO);
        offloads.faulty(Offload::Gso);
        offloads.count_apart(Offload::Tso, Errno::INVAL);
        let states = offloads.states();
        let on: Vec<bool> = states.iter().map(|state| state.on).collect();
        assert_eq!(on, [true, false, false, false]);
        let refused = "refused for one batch, which went packet by packet (last: Invalid argument";
        assert!(states[0].detail.starts_with(refused), "{}", states[0].detail);
        assert!(states[1].detail.starts_with("the kernel does not offer it: Invalid argument"), "{}", states[1].detail);
        assert!(states[2].detail.contains("update the kernel"));
        assert_eq!(states[3].detail, "off by tunnel.offload.gro");
    }

    #[test]
    fn only_refusals_in_a_row_turn_an_offload_off_and_it_is_tried_again_ever_more_seldom() {
        let offloads = Offloads::new(Switches::ON);
        let tso = || offloads.states().swap_remove(0);
        for _ in 0..10 {
            (1..PERSISTENT).for_each(|_| offloads.refused(Offload::Tso, Errno::INVAL));
            assert!(tso().on && offloads.may_use(Offload::Tso));
            offloads.taken(Offload::Tso);
        }
        (0..PERSISTENT).for_each(|_| offloads.refused(Offload::Tso, Errno::INVAL));
        assert!(!tso().on && tso().detail.contains("it is tried again"), "{:?}", tso());
        assert!(offloads.may_use(Offload::Uso), "the others are not concerned");
        let rest = || (0..LONGEST_REST * 2).take_while(|_| !offloads.may_use(Offload::Tso)).count();
        assert_eq!(rest(), FIRST_REST as usize);
        assert!(tso().on);
        for length in [2, 4, 8] {
            offloads.refused(Offload::Tso, Errno::INVAL);
            assert_eq!(rest(), length * FIRST_REST as usize);
        }
        offloads.taken(Offload::Tso);
        (1..PERSISTENT).for_each(|_| offloads.refused(Offload::Tso, Errno::INVAL));
        assert!(tso().on, "what was refused long ago does not count");
        offloads.refused(Offload::Tso, Errno::INVAL);
        assert_eq!(rest(), FIRST_REST as usize);
    }
}
