//! The guard: one nftables table that lets overlay addresses take packets from the tunnel only, written and read
//! back as nfnetlink messages (linux/netfilter/nf_tables.h). What comes from or goes to the overlay may enter and
//! leave by the TUN device and by loopback; everything else is dropped and counted.

use std::net::IpAddr;

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::addressing::Prefix;
use super::netlink::{Attributes, Channel, FLAG_APPEND, FLAG_CREATE, FLAG_EXCLUSIVE, KernelError, Nest, Request};

/// The table's name in `nft list tables`; family `inet`.
pub const GUARD_TABLE: &str = "warren_guard";
/// The table that a running node owns: only one socket can, and it goes with the process, however that ends.
const CLAIM_TABLE: &str = "warren_node";

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const fn message(number: u16) -> u16 {
    SUBSYSTEM << 8 | number
}
const NEW_TABLE: u16 = message(0);
const GET_TABLE: u16 = message(1);
const DELETE_TABLE: u16 = message(2);
const NEW_CHAIN: u16 = message(3);
const GET_CHAIN: u16 = message(4);
const NEW_RULE: u16 = message(6);
const GET_RULE: u16 = message(7);

const FAMILY_INET: u8 = 1;
const FAMILY_V4: u8 = 2;
const FAMILY_V6: u8 = 10;
const HEADER: [u8; 4] = [FAMILY_INET, 0, 0, 0];

const TABLE_NAME: u16 = 1;
const TABLE_FLAGS: u16 = 2;
const TABLE_OWNED: u32 = 2;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const ACCEPT: u32 = 1;
const DROP: u32 = 0;
const REGISTER_VERDICT: u32 = 0;
const REGISTER: u32 = 1;
const NETWORK_HEADER: u32 = 1;
const LOOPBACK: u32 = 1;

/// Before connection tracking and address translation (`raw`): a dropped packet leaves no trace in either.
const PRIORITY: i32 = -300;
/// After destination translation, so that a rewritten destination is judged as well.
const PRIORITY_AFTER_NAT: i32 = -90;
/// After everything else has had its say about where a packet leaves.
const PRIORITY_LAST: i32 = 300;

/// What a packet shows that a rule can compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meta {
    InDevice = 4,
    OutDevice = 5,
    Family = 15,
}

/// One step of a rule; the packet falls out of the rule at the first comparison that fails.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    LoadMeta(u32),
    LoadHeader { offset: u32, length: u32 },
    Mask(Vec<u8>),
    Compare { equal: bool, value: Vec<u8> },
    Count,
    Verdict(u32),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Chain {
    name: String,
    hook: u32,
    priority: i32,
    accepts: bool,
    rules: Vec<Vec<Step>>,
}

/// The guard's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Guard(Vec<Chain>);

impl Guard {
    /// The guard for these overlay prefixes and the TUN device with this index.
    pub(super) fn new(prefixes: &[Prefix], device: u32) -> Self {
        // Offsets of the source and destination address in the IPv4 (RFC 791) and IPv6 (RFC 8200) headers.
        let side = |destination: bool, v4: bool| match (destination, v4) {
            (false, true) => 12,
            (true, true) => 16,
            (false, false) => 8,
            (true, false) => 24,
        };
        let drop = |way: Meta, destination: bool| {
            prefixes.iter().map(move |prefix| {
                let v4 = prefix.first.is_ipv4();
                let address = match prefix.first {
                    IpAddr::V4(address) => address.octets().to_vec(),
                    IpAddr::V6(address) => address.octets().to_vec(),
                };
                vec![
                    Step::LoadMeta(way as u32),
                    Step::Compare { equal: false, value: device.to_ne_bytes().to_vec() },
                    Step::Compare { equal: false, value: LOOPBACK.to_ne_bytes().to_vec() },
                    Step::LoadMeta(Meta::Family as u32),
                    Step::Compare { equal: true, value: vec![if v4 { FAMILY_V4 } else { FAMILY_V6 }] },
                    Step::LoadHeader { offset: side(destination, v4), length: address.len() as u32 },
                    Step::Mask(mask(prefix.length, address.len())),
                    Step::Compare { equal: true, value: address },
                    Step::Count,
                    Step::Verdict(DROP),
                ]
            })
        };
        let chain = |name: &str, hook, priority, rules: Vec<Vec<Step>>| Chain {
            name: name.to_owned(),
            hook,
            priority,
            accepts: true,
            rules,
        };
        let (entered, leaves) = (Meta::InDevice, Meta::OutDevice);
        Self(vec![
            // A forged source would pass as a peer's with a service that listens on every address.
            chain("arriving", 0, PRIORITY, drop(entered, true).chain(drop(entered, false)).collect()),
            chain("delivered", 1, PRIORITY_AFTER_NAT, drop(entered, true).collect()),
            // Packets of containers and virtual machines on this host must not borrow its identity.
            chain("forwarded", 2, PRIORITY_AFTER_NAT, drop(entered, true).collect()),
            chain("leaving", 4, PRIORITY_LAST, drop(leaves, true).collect()),
        ])
    }
}

fn mask(length: u8, size: usize) -> Vec<u8> {
    (0..size)
        .map(|position| !0xff_u8.checked_shr(u32::from(length).saturating_sub(8 * position as u32)).unwrap_or(0))
        .collect()
}

/// The nftables of the namespace of the thread that opened it.
pub(super) struct Nftables(Channel);

impl Nftables {
    pub(super) fn open() -> Result<Self, KernelError> {
        Channel::open(NETLINK_NETFILTER).map(Self)
    }

    /// Takes the claim table; it stays taken until `self` is dropped. `EPERM` of request 1 or `EEXIST`: another
    /// process has it.
    pub(super) fn claim(&mut self) -> Result<(), KernelError> {
        let claim = Request::new(NEW_TABLE, FLAG_CREATE | FLAG_EXCLUSIVE, &HEADER)
            .with_text(TABLE_NAME, CLAIM_TABLE)
            .with(TABLE_FLAGS, &TABLE_OWNED.to_be_bytes());
        self.commit(vec![claim])
    }

    /// Puts the guard in the place of whatever stands under its name, in one transaction.
    pub(super) fn install(&mut self, guard: &Guard) -> Result<(), KernelError> {
        // Creating first makes the deletion succeed whether or not the table was there.
        let mut requests = vec![table(NEW_TABLE, FLAG_CREATE), table(DELETE_TABLE, 0), table(NEW_TABLE, FLAG_CREATE)];
        for chain in &guard.0 {
            requests.push(chain_request(chain));
            requests.extend(chain.rules.iter().map(|steps| rule_request(&chain.name, steps)));
        }
        self.commit(requests)
    }

    /// Removes the guard; whether it was there.
    pub(super) fn remove(&mut self) -> Result<bool, KernelError> {
        match self.commit(vec![table(DELETE_TABLE, 0)]) {
            Ok(()) => Ok(true),
            Err(error) if error.errno == libc::ENOENT => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The guard as it stands; `None` when there is none or it is switched off.
    pub(super) fn read(&mut self) -> Result<Option<Guard>, KernelError> {
        let mut flags = None;
        match self.0.get(table(GET_TABLE, 0), |kind, payload| {
            if kind == NEW_TABLE {
                flags = payload.get(HEADER.len()..).and_then(|rest| Attributes(rest).big_endian(TABLE_FLAGS));
            }
        }) {
            Err(error) if error.errno == libc::ENOENT => return Ok(None),
            outcome => outcome?,
        }
        if flags != Some(0) {
            return Ok(None);
        }
        let ours = |payload: &[u8], attribute| {
            payload.get(HEADER.len()..).is_some_and(|rest| Attributes(rest).text(attribute) == Some(GUARD_TABLE))
        };
        let mut chains = self.0.dump(&Request::new(GET_CHAIN, 0, &HEADER), |payload| {
            if ours(payload, CHAIN_TABLE) { parse_chain(payload.get(HEADER.len()..)?) } else { None }
        })?;
        let rules = Request::new(GET_RULE, 0, &HEADER).with_text(RULE_TABLE, GUARD_TABLE);
        for (name, steps) in self.0.dump(&rules, |payload| {
            if ours(payload, RULE_TABLE) { parse_rule(payload.get(HEADER.len()..)?) } else { None }
        })? {
            if let Some(chain) = chains.iter_mut().find(|chain| chain.name == name) {
                chain.rules.push(steps);
            }
        }
        Ok(Some(Guard(chains)))
    }

    fn commit(&mut self, requests: Vec<Request>) -> Result<(), KernelError> {
        let subsystem = SUBSYSTEM.to_be_bytes();
        let header = [0, 0, subsystem[0], subsystem[1]];
        self.0.transaction(Request::new(BATCH_BEGIN, 0, &header), requests, Request::new(BATCH_END, 0, &header))
    }
}

fn table(kind: u16, flags: u16) -> Request {
    Request::new(kind, flags, &HEADER).with_text(TABLE_NAME, GUARD_TABLE)
}

fn chain_request(chain: &Chain) -> Request {
    Request::new(NEW_CHAIN, FLAG_CREATE, &HEADER)
        .with_text(CHAIN_TABLE, GUARD_TABLE)
        .with_text(CHAIN_NAME, &chain.name)
        .with_nested(CHAIN_HOOK, |hook| {
            hook.with(HOOK_NUMBER, &chain.hook.to_be_bytes()).with(HOOK_PRIORITY, &chain.priority.to_be_bytes())
        })
        .with(CHAIN_POLICY, &(if chain.accepts { ACCEPT } else { DROP }).to_be_bytes())
        .with_text(CHAIN_TYPE, "filter")
}

fn rule_request(chain: &str, steps: &[Step]) -> Request {
    Request::new(NEW_RULE, FLAG_CREATE | FLAG_APPEND, &HEADER)
        .with_text(RULE_TABLE, GUARD_TABLE)
        .with_text(RULE_CHAIN, chain)
        .with_nested(RULE_EXPRESSIONS, |list| {
            steps.iter().fold(list, |list, step| list.with_nested(LIST_ELEMENT, |e| step.write(e)))
        })
}

// Attribute numbers of each expression's own data.
const META_DESTINATION: u16 = 1;
const META_KEY: u16 = 2;
const PAYLOAD_DESTINATION: u16 = 1;
const PAYLOAD_BASE: u16 = 2;
const PAYLOAD_OFFSET: u16 = 3;
const PAYLOAD_LENGTH: u16 = 4;
const BITWISE_SOURCE: u16 = 1;
const BITWISE_DESTINATION: u16 = 2;
const BITWISE_LENGTH: u16 = 3;
const BITWISE_MASK: u16 = 4;
const BITWISE_XOR: u16 = 5;
const COMPARE_SOURCE: u16 = 1;
const COMPARE_OPERATION: u16 = 2;
const COMPARE_DATA: u16 = 3;
const IMMEDIATE_DESTINATION: u16 = 1;
const IMMEDIATE_DATA: u16 = 2;

impl Step {
    fn write(&self, element: Nest) -> Nest {
        let named = |name: &str, data: &dyn Fn(Nest) -> Nest| {
            element.with_text(EXPRESSION_NAME, name).with_nested(EXPRESSION_DATA, data)
        };
        let register = REGISTER.to_be_bytes();
        match self {
            Self::LoadMeta(key) => {
                named("meta", &|data| data.with(META_DESTINATION, &register).with(META_KEY, &key.to_be_bytes()))
            }
            Self::LoadHeader { offset, length } => named("payload", &|data| {
                data.with(PAYLOAD_DESTINATION, &register)
                    .with(PAYLOAD_BASE, &NETWORK_HEADER.to_be_bytes())
                    .with(PAYLOAD_OFFSET, &offset.to_be_bytes())
                    .with(PAYLOAD_LENGTH, &length.to_be_bytes())
            }),
            Self::Mask(mask) => named("bitwise", &|data| {
                data.with(BITWISE_SOURCE, &register)
                    .with(BITWISE_DESTINATION, &register)
                    .with(BITWISE_LENGTH, &(mask.len() as u32).to_be_bytes())
                    .with_nested(BITWISE_MASK, |value| value.with(DATA_VALUE, mask))
                    .with_nested(BITWISE_XOR, |value| value.with(DATA_VALUE, &vec![0; mask.len()]))
            }),
            Self::Compare { equal, value } => named("cmp", &|data| {
                data.with(COMPARE_SOURCE, &register)
                    .with(COMPARE_OPERATION, &u32::from(!equal).to_be_bytes())
                    .with_nested(COMPARE_DATA, |nest| nest.with(DATA_VALUE, value))
            }),
            Self::Count => named("counter", &|data| data),
            Self::Verdict(code) => named("immediate", &|data| {
                data.with(IMMEDIATE_DESTINATION, &REGISTER_VERDICT.to_be_bytes()).with_nested(IMMEDIATE_DATA, |nest| {
                    nest.with_nested(DATA_VERDICT, |verdict| verdict.with(VERDICT_CODE, &code.to_be_bytes()))
                })
            }),
        }
    }

    /// `None` for anything the guard never uses.
    fn parse(element: Attributes<'_>) -> Option<Self> {
        let name = element.text(EXPRESSION_NAME)?;
        let data = Attributes(element.find(EXPRESSION_DATA).unwrap_or_default());
        let on = |attribute, register| data.big_endian(attribute) == Some(register);
        let value = |attribute| Attributes(data.find(attribute)?).find(DATA_VALUE);
        match name {
            "meta" if on(META_DESTINATION, REGISTER) => Some(Self::LoadMeta(data.big_endian(META_KEY)?)),
            "payload" if on(PAYLOAD_DESTINATION, REGISTER) && on(PAYLOAD_BASE, NETWORK_HEADER) => {
                Some(Self::LoadHeader {
                    offset: data.big_endian(PAYLOAD_OFFSET)?,
                    length: data.big_endian(PAYLOAD_LENGTH)?,
                })
            }
            "bitwise" if on(BITWISE_SOURCE, REGISTER) && on(BITWISE_DESTINATION, REGISTER) => {
                let unchanged = value(BITWISE_XOR)?.iter().all(|byte| *byte == 0);
                unchanged.then_some(Self::Mask(value(BITWISE_MASK)?.to_vec()))
            }
            "cmp" if on(COMPARE_SOURCE, REGISTER) => {
                let equal = match data.big_endian(COMPARE_OPERATION)? {
                    0 => true,
                    1 => false,
                    _ => return None,
                };
                Some(Self::Compare { equal, value: value(COMPARE_DATA)?.to_vec() })
            }
            "counter" => Some(Self::Count),
            "immediate" if on(IMMEDIATE_DESTINATION, REGISTER_VERDICT) => {
                let verdict = Attributes(Attributes(data.find(IMMEDIATE_DATA)?).find(DATA_VERDICT)?);
                Some(Self::Verdict(verdict.big_endian(VERDICT_CODE)?))
            }
            _ => None,
        }
    }
}

fn parse_chain(attributes: &[u8]) -> Option<Chain> {
    let attributes = Attributes(attributes);
    let hook = Attributes(attributes.find(CHAIN_HOOK).unwrap_or_default());
    let name = attributes.text(CHAIN_NAME)?.to_owned();
    Some(Chain {
        name,
        // A chain without a hook or of another type is none of the guard's and never compares equal.
        hook: if attributes.text(CHAIN_TYPE) == Some("filter") { hook.big_endian(HOOK_NUMBER)? } else { u32::MAX },
        priority: hook.find(HOOK_PRIORITY).and_then(|raw| raw.try_into().ok()).map_or(0, i32::from_be_bytes),
        accepts: attributes.big_endian(CHAIN_POLICY) == Some(ACCEPT),
        rules: Vec::new(),
    })
}

fn parse_rule(attributes: &[u8]) -> Option<(String, Vec<Step>)> {
    let attributes = Attributes(attributes);
    let elements = Attributes(attributes.find(RULE_EXPRESSIONS)?);
    // A rule that holds a foreign step becomes an empty one, which equals no rule of the guard's.
    let steps: Option<Vec<_>> = elements.map(|(_, element)| Step::parse(Attributes(element))).collect();
    Some((attributes.text(RULE_CHAIN)?.to_owned(), steps.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_mask_has_the_prefixs_length() {
        assert_eq!(mask(48, 16)[..], [[0xff; 6].as_slice(), &[0; 10]].concat());
        assert_eq!(mask(17, 4), [0xff, 0xff, 0x80, 0]);
        assert_eq!(mask(0, 4), [0; 4]);
        assert_eq!(mask(32, 4), [0xff; 4]);
    }

    #[test]
    fn the_guard_stands_wherever_a_packet_of_the_overlay_can_pass() {
        let prefixes = [("fd00::", 48), ("10.77.0.0", 16)]
            .map(|(first, length)| Prefix { first: first.parse().expect("address"), length });
        let stands: Vec<_> =
            Guard::new(&prefixes, 7).0.into_iter().map(|chain| (chain.name, chain.hook, chain.rules.len())).collect();
        // NF_INET_PRE_ROUTING for both directions; LOCAL_IN and FORWARD after destination translation; LOCAL_OUT is not
        // enough, POST_ROUTING sees what is forwarded too. One rule for each prefix and direction.
        let expected = [("arriving", 0, 4), ("delivered", 1, 2), ("forwarded", 2, 2), ("leaving", 4, 2)];
        assert_eq!(stands, expected.map(|(name, hook, rules)| (name.to_owned(), hook, rules)));
    }

    proptest! {
        #[test]
        fn arbitrary_rules_and_chains_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_rule(&bytes);
            let _ = parse_chain(&bytes);
        }
    }
}
