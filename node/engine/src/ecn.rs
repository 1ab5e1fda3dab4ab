//! Explicit congestion notification through the tunnel (RFC 6040, normal mode): the outer header carries what the inner
//! one says, and a mark that a router made on the outer one is carried back to the inner one.

use warren_proto::Reason;

/// Not ECN-capable: such a packet is dropped, not marked, where there is congestion.
pub const NOT_ECT: u8 = 0;
/// ECN-capable, marked differently from [`ECT_0`] by newer senders (RFC 9331).
pub const ECT_1: u8 = 1;
/// ECN-capable.
pub const ECT_0: u8 = 2;
/// It met congestion.
pub const CE: u8 = 3;

/// The two bits of an inner packet that was checked to be one.
pub(crate) fn of(packet: &[u8]) -> u8 {
    match *packet {
        [first, second, ..] if first >> 4 == 6 => second >> 4 & CE,
        [_, second, ..] => second & CE,
        _ => NOT_ECT,
    }
}

/// Gives a packet that arrived under an outer header with the bits `outer` the bits that RFC 6040, section 4.2, says. A
/// mark on a packet whose sender knows no marks stands for a drop.
pub(crate) fn decapsulate(packet: &mut [u8], outer: u8) -> Result<(), Reason> {
    match (of(packet), outer & CE) {
        (NOT_ECT, CE) => Err(Reason::CongestionMarked),
        (ECT_0 | ECT_1, CE) => {
            set(packet, CE);
            Ok(())
        }
        (ECT_0, ECT_1) => {
            set(packet, ECT_1);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Writes the two bits, and for IPv4 the checksum that covers them.
pub(crate) fn set(packet: &mut [u8], bits: u8) {
    match packet {
        [first, second, ..] if *first >> 4 == 6 => *second = *second & !(CE << 4) | bits << 4,
        [first, second, _, _, _, _, _, _, _, _, sum_high, sum_low, ..] => {
            let before = u16::from_be_bytes([*first, *second]);
            *second = *second & !CE | bits;
            let after = u16::from_be_bytes([*first, *second]);
            let sum = u16::from_be_bytes([*sum_high, *sum_low]);
            [*sum_high, *sum_low] = updated(sum, before, after).to_be_bytes();
        }
        _ => {}
    }
}

/// A checksum after one of the words that it covers has changed (RFC 1624, equation 3).
fn updated(sum: u16, before: u16, after: u16) -> u16 {
    let wide = u32::from(!sum) + u32::from(!before) + u32::from(after);
    let folded = (wide >> 16) + (wide & 0xffff);
    !(((folded >> 16) + (folded & 0xffff)) as u16)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::testing::Build;

    fn packet(v4: bool, bits: u8) -> Vec<u8> {
        let way = if v4 {
            Build::between(IpAddr::from([10, 77, 0, 1]), IpAddr::from([10, 77, 0, 2]))
        } else {
            Build::between("fd12::1".parse::<IpAddr>().expect("v6"), "fd12::2".parse::<IpAddr>().expect("v6"))
        };
        let mut packet = way.udp(1, 2, b"payload");
        set(&mut packet, bits);
        packet
    }

    /// The one's complement sum of an IPv4 header, which must be all ones.
    fn header_sum(packet: &[u8]) -> u16 {
        let sum: u32 = packet[..20].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
        ((sum >> 16) + (sum & 0xffff)) as u16
    }

    #[test]
    fn every_pair_of_inner_and_outer_bits_comes_out_as_rfc_6040_says() {
        // Rows: inner Not-ECT, ECT(1), ECT(0), CE. Columns: outer likewise. None: dropped.
        let table = [
            [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None],
            [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)],
            [Some(ECT_0), Some(ECT_1), Some(ECT_0), Some(CE)],
            [Some(CE), Some(CE), Some(CE), Some(CE)],
        ];
        for v4 in [false, true] {
            for (inner, row) in (0..).zip(table) {
                for (outer, expected) in (0..).zip(row) {
                    let mut packet = packet(v4, inner);
                    let before = packet.clone();
                    let outcome = decapsulate(&mut packet, outer);
                    assert_eq!(outcome.is_ok().then(|| of(&packet)), expected, "{inner} in {outer}, v4={v4}");
                    assert!(!v4 || header_sum(&packet) == 0xffff, "the checksum is right");
                    assert_eq!(packet[2..10], before[2..10], "nothing else changes");
                    assert_eq!(packet[12..], before[12..], "nothing else changes");
                }
            }
        }
    }
}
