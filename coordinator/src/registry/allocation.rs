//! Overlay addresses for new instances: IPv6 at random, IPv4 in sequence.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use warren_proto::reason::{Reason, Refusal};
use warren_proto::{Overlay, OverlayAddresses, UnixTime};

use crate::state::State;

/// Free addresses of `state`'s overlay. `random` is 64 fresh random bits, the interface half of the IPv6 address.
///
/// IPv4 goes on behind the address given last and begins again from the start when the prefix is through,
/// so that an address that was given back comes round as late as can be; the network's own, the broadcast and
/// the first address are never given.
pub(super) fn allocate(
    state: &State,
    overlay: &Overlay,
    random: u64,
    now: UnixTime,
) -> Result<OverlayAddresses, Refusal> {
    let v6 = Ipv6Addr::from(u128::from(overlay.v6.0) | u128::from(random));
    if random == 0 || state.addresses.get(&IpAddr::V6(v6)).is_some() {
        return Err(Refusal::new(Reason::Internal, "the random number generator gave an address in use"));
    }
    let v4 = overlay.v4.map(|prefix| allocate_v4(state, prefix, now)).transpose()?;
    Ok(OverlayAddresses { v6, v4 })
}

fn allocate_v4(state: &State, (first, length): (Ipv4Addr, u8), now: UnixTime) -> Result<Ipv4Addr, Refusal> {
    let size = 1_u64 << (32 - u32::from(length.min(32)));
    let (lowest, highest) = (2, size.saturating_sub(2));
    let offset = |address: Ipv4Addr| u32::from(address).checked_sub(u32::from(first)).map(u64::from);
    let last = state.last_v4.and_then(|(_, address)| offset(address)).filter(|offset| *offset <= highest);
    let start = last.map_or(lowest, |offset| offset + 1);
    let free = |offset: &u64| {
        let address = IpAddr::V4(at(first, *offset));
        state.addresses.get(&address).is_none_or(|lease| lease.quarantined_until.is_some_and(|until| until <= now))
    };
    (start..=highest).chain(lowest..start.min(highest + 1)).find(free).map(|offset| at(first, offset)).ok_or_else(
        || {
            Refusal::new(Reason::AddressesExhausted, format!("no IPv4 address is free in {first}/{length}"))
                .hint("forget instances that are gone, or make the mesh with a larger --overlay-v4")
        },
    )
}

fn at(first: Ipv4Addr, offset: u64) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(first).wrapping_add(u32::try_from(offset).unwrap_or(u32::MAX)))
}
