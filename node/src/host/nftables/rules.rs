//! The steps of a rule and the chains that hold them, as the kernel takes them and gives them back
//! (linux/netfilter/nf_tables.h).

use super::super::netlink::{Attributes, Nest};

const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
const REGISTER_VERDICT: u32 = 0;
const REGISTER: u32 = 1;

// Attribute numbers of each expression's own data.
const META_DESTINATION: u16 = 1;
const META_KEY: u16 = 2;
const SOCKET_KEY: u16 = 1;
const SOCKET_DESTINATION: u16 = 2;
const SOCKET_LEVEL: u16 = 3;
/// `NFT_SOCKET_WILDCARD` and `NFT_SOCKET_CGROUPV2`.
const SOCKET_IS_WILDCARD: u32 = 2;
const SOCKET_CGROUP: u32 = 3;
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
const LOOKUP_SET: u16 = 1;
const LOOKUP_SOURCE: u16 = 2;
const LOOKUP_FLAGS: u16 = 5;
const DYNSET_SET: u16 = 1;
const DYNSET_OPERATION: u16 = 3;
const DYNSET_KEY: u16 = 4;
/// `NFT_DYNSET_OP_UPDATE`: adds, or begins the time anew.
const DYNSET_UPDATE: u32 = 1;
const EXTENSION_DESTINATION: u16 = 1;
const EXTENSION_TYPE: u16 = 2;
const EXTENSION_OFFSET: u16 = 3;
const EXTENSION_LENGTH: u16 = 4;
const EXTENSION_OPERATION: u16 = 6;
/// `NFT_EXTHDR_OP_IPV6`.
const EXTENSION_V6: u32 = 0;
const FRAGMENT: u8 = 44;
const FIB_DESTINATION: u16 = 1;
const FIB_RESULT: u16 = 2;
const FIB_FLAGS: u16 = 3;
/// `NFT_FIB_RESULT_ADDRTYPE` and `NFTA_FIB_F_SADDR`.
const FIB_ADDRESS_TYPE: u32 = 3;
const FIB_OF_SOURCE: u32 = 1;
/// `NFT_LOOKUP_F_INV`.
const LOOKUP_INVERTED: u32 = 1;
const COUNTER_PACKETS: u16 = 2;
const REJECT_TYPE: u16 = 1;
const REJECT_CODE: u16 = 2;
/// `NFT_REJECT_TCP_RST` and `NFT_REJECT_ICMPX_UNREACH` with `NFT_REJECT_ICMPX_PORT_UNREACH`.
const REJECT_RESET: u32 = 1;
const REJECT_ICMP: u32 = 2;
const PORT_UNREACHABLE: u8 = 1;
const IMMEDIATE_DESTINATION: u16 = 1;
const IMMEDIATE_DATA: u16 = 2;

/// What a packet or its circumstances show that a rule can compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Meta {
    InDevice = 4,
    OutDevice = 5,
    /// The user of the socket that sends it; nothing to load where no program has that socket open.
    User = 10,
    Family = 15,
    Protocol = 16,
}

/// Where in a packet an offset counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Header {
    Network = 1,
    Transport = 2,
}

/// How a loaded value is compared; both sides as bytes, the first the weightiest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Operation {
    Equal = 0,
    Differs = 1,
    AtMost = 3,
    AtLeast = 5,
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) enum Verdict {
    Drop,
    Accept,
    /// Back to the rule behind the one that led here.
    Return,
    /// To that chain and, if it decides nothing, back.
    Jump(String),
    /// To that chain and, if it decides nothing, back to where this chain was led to from.
    Goto(String),
}

/// One step of a rule; the packet falls out of the rule at the first comparison that fails and at the first value that is not
/// there to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) enum Step {
    LoadMeta(u32),
    LoadHeader {
        base: u32,
        offset: u32,
        length: u32,
    },
    /// The same, into another place than the one that is compared: what a set is asked for stands side by side, each part
    /// rounded up to four bytes.
    LoadBeside {
        register: u32,
        base: u32,
        offset: u32,
        length: u32,
    },
    /// Where in the whole a fragment of IPv6 begins, in bytes but for the lowest three bits; there is none for what is no fragment.
    LoadFragment,
    /// What the packet's source is to this host (`RTN_…`, linux/rtnetlink.h).
    LoadSourceType,
    /// Succeeds where the set of that name holds what is loaded.
    Holds(String),
    /// Puts what is loaded into the set of that name for the set's time, or has that time begin anew; fails where the set is full.
    Remember(String),
    /// The id of the packet's socket's cgroup, or of the one above it at this depth. There is none for what is less than a
    /// socket: a connection half open, or in TIME_WAIT.
    LoadCgroup {
        level: u32,
    },
    /// Succeeds where the set of that name lacks what is loaded.
    Lacks(String),
    /// Succeeds where the packet has a whole socket.
    LoadSocket,
    Mask(Vec<u8>),
    Compare {
        operation: u32,
        value: Vec<u8>,
    },
    Count,
    /// Answers with a TCP reset; for TCP only.
    Reset,
    /// Answers that the port is closed.
    Closed,
    Verdict(Verdict),
}

/// What rules remember of packets, each for some time, and ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Set {
    pub(in super::super) name: String,
    /// What `nft` shows its elements as: six bits for each part.
    pub(in super::super) kind: u32,
    /// Bytes of an element, each part rounded up to four.
    pub(in super::super) length: u32,
    /// The most that it holds.
    pub(in super::super) size: u32,
    /// How long it remembers, in milliseconds.
    pub(in super::super) lifetime: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Chain {
    pub(in super::super) name: String,
    /// The netfilter hook and the priority at which packets enter it; `None` for one that others lead to.
    pub(in super::super) base: Option<(u32, i32)>,
    pub(in super::super) accepts: bool,
    pub(in super::super) rules: Vec<Vec<Step>>,
}

impl Chain {
    pub(in super::super) fn new(name: impl Into<String>, base: Option<(u32, i32)>, rules: Vec<Vec<Step>>) -> Self {
        Self { name: name.into(), base, accepts: true, rules }
    }
}

const DROP: u32 = 0;
pub(super) const ACCEPT: u32 = 1;
const JUMP: u32 = (-3_i32).cast_unsigned();
const GOTO: u32 = (-4_i32).cast_unsigned();
const RETURN: u32 = (-5_i32).cast_unsigned();
/// A base chain's policy where it is not to accept.
pub(super) const POLICY_DROP: u32 = DROP;

impl Verdict {
    fn code(&self) -> (u32, Option<&str>) {
        match self {
            Self::Drop => (DROP, None),
            Self::Accept => (ACCEPT, None),
            Self::Return => (RETURN, None),
            Self::Jump(chain) => (JUMP, Some(chain)),
            Self::Goto(chain) => (GOTO, Some(chain)),
        }
    }
}

impl Step {
    pub(super) fn write(&self, element: Nest) -> Nest {
        let named = |name: &str, data: &dyn Fn(Nest) -> Nest| {
            element.with_text(EXPRESSION_NAME, name).with_nested(EXPRESSION_DATA, data)
        };
        let register = REGISTER.to_be_bytes();
        match self {
            Self::LoadMeta(key) => {
                named("meta", &|data| data.with(META_DESTINATION, &register).with(META_KEY, &key.to_be_bytes()))
            }
            Self::LoadHeader { base, offset, length } => named("payload", &|data| {
                data.with(PAYLOAD_DESTINATION, &register)
                    .with(PAYLOAD_BASE, &base.to_be_bytes())
                    .with(PAYLOAD_OFFSET, &offset.to_be_bytes())
                    .with(PAYLOAD_LENGTH, &length.to_be_bytes())
            }),
            Self::LoadBeside { register, base, offset, length } => named("payload", &|data| {
                data.with(PAYLOAD_DESTINATION, &register.to_be_bytes())
                    .with(PAYLOAD_BASE, &base.to_be_bytes())
                    .with(PAYLOAD_OFFSET, &offset.to_be_bytes())
                    .with(PAYLOAD_LENGTH, &length.to_be_bytes())
            }),
            Self::LoadFragment => named("exthdr", &|data| {
                data.with(EXTENSION_DESTINATION, &register)
                    .with(EXTENSION_TYPE, &[FRAGMENT])
                    .with(EXTENSION_OFFSET, &2_u32.to_be_bytes())
                    .with(EXTENSION_LENGTH, &2_u32.to_be_bytes())
                    .with(EXTENSION_OPERATION, &EXTENSION_V6.to_be_bytes())
            }),
            Self::LoadSourceType => named("fib", &|data| {
                data.with(FIB_DESTINATION, &register)
                    .with(FIB_RESULT, &FIB_ADDRESS_TYPE.to_be_bytes())
                    .with(FIB_FLAGS, &FIB_OF_SOURCE.to_be_bytes())
            }),
            Self::Holds(set) => named("lookup", &|data| data.with_text(LOOKUP_SET, set).with(LOOKUP_SOURCE, &register)),
            Self::Remember(set) => named("dynset", &|data| {
                data.with_text(DYNSET_SET, set)
                    .with(DYNSET_OPERATION, &DYNSET_UPDATE.to_be_bytes())
                    .with(DYNSET_KEY, &register)
            }),
            Self::LoadCgroup { level } => named("socket", &|data| {
                data.with(SOCKET_DESTINATION, &register)
                    .with(SOCKET_KEY, &SOCKET_CGROUP.to_be_bytes())
                    .with(SOCKET_LEVEL, &level.to_be_bytes())
            }),
            Self::LoadSocket => named("socket", &|data| {
                data.with(SOCKET_DESTINATION, &register).with(SOCKET_KEY, &SOCKET_IS_WILDCARD.to_be_bytes())
            }),
            Self::Mask(mask) => named("bitwise", &|data| {
                data.with(BITWISE_SOURCE, &register)
                    .with(BITWISE_DESTINATION, &register)
                    .with(BITWISE_LENGTH, &(mask.len() as u32).to_be_bytes())
                    .with_nested(BITWISE_MASK, |value| value.with(DATA_VALUE, mask))
                    .with_nested(BITWISE_XOR, |value| value.with(DATA_VALUE, &vec![0; mask.len()]))
            }),
            Self::Compare { operation, value } => named("cmp", &|data| {
                data.with(COMPARE_SOURCE, &register)
                    .with(COMPARE_OPERATION, &operation.to_be_bytes())
                    .with_nested(COMPARE_DATA, |nest| nest.with(DATA_VALUE, value))
            }),
            Self::Lacks(set) => named("lookup", &|data| {
                data.with_text(LOOKUP_SET, set)
                    .with(LOOKUP_SOURCE, &register)
                    .with(LOOKUP_FLAGS, &LOOKUP_INVERTED.to_be_bytes())
            }),
            Self::Count => named("counter", &|data| data),
            Self::Reset => named("reject", &|data| data.with(REJECT_TYPE, &REJECT_RESET.to_be_bytes())),
            Self::Closed => named("reject", &|data| {
                data.with(REJECT_TYPE, &REJECT_ICMP.to_be_bytes()).with(REJECT_CODE, &[PORT_UNREACHABLE])
            }),
            Self::Verdict(decided) => named("immediate", &|data| {
                data.with(IMMEDIATE_DESTINATION, &REGISTER_VERDICT.to_be_bytes()).with_nested(IMMEDIATE_DATA, |nest| {
                    nest.with_nested(DATA_VERDICT, |verdict| {
                        let (code, chain) = decided.code();
                        let verdict = verdict.with(VERDICT_CODE, &code.to_be_bytes());
                        match chain {
                            Some(chain) => verdict.with_text(VERDICT_CHAIN, chain),
                            None => verdict,
                        }
                    })
                })
            }),
        }
    }

    /// `None` for anything that no table of warren's uses.
    pub(super) fn parse(element: Attributes<'_>) -> Option<Self> {
        let name = element.text(EXPRESSION_NAME)?;
        let data = Attributes(element.find(EXPRESSION_DATA).unwrap_or_default());
        let on = |attribute, register| data.big_endian(attribute) == Some(register);
        let value = |attribute| Attributes(data.find(attribute)?).find(DATA_VALUE);
        match name {
            "meta" if on(META_DESTINATION, REGISTER) => Some(Self::LoadMeta(data.big_endian(META_KEY)?)),
            "payload" if on(PAYLOAD_DESTINATION, REGISTER) => Some(Self::LoadHeader {
                base: data.big_endian(PAYLOAD_BASE)?,
                offset: data.big_endian(PAYLOAD_OFFSET)?,
                length: data.big_endian(PAYLOAD_LENGTH)?,
            }),
            "payload" => Some(Self::LoadBeside {
                register: data.big_endian(PAYLOAD_DESTINATION)?,
                base: data.big_endian(PAYLOAD_BASE)?,
                offset: data.big_endian(PAYLOAD_OFFSET)?,
                length: data.big_endian(PAYLOAD_LENGTH)?,
            }),
            "exthdr"
                if on(EXTENSION_DESTINATION, REGISTER)
                    && data.find(EXTENSION_TYPE) == Some(&[FRAGMENT])
                    && (on(EXTENSION_OFFSET, 2) && on(EXTENSION_LENGTH, 2))
                    && on(EXTENSION_OPERATION, EXTENSION_V6) =>
            {
                Some(Self::LoadFragment)
            }
            "fib"
                if on(FIB_DESTINATION, REGISTER)
                    && on(FIB_RESULT, FIB_ADDRESS_TYPE)
                    && on(FIB_FLAGS, FIB_OF_SOURCE) =>
            {
                Some(Self::LoadSourceType)
            }
            "dynset" if on(DYNSET_KEY, REGISTER) && on(DYNSET_OPERATION, DYNSET_UPDATE) => {
                Some(Self::Remember(data.text(DYNSET_SET)?.to_owned()))
            }
            "bitwise" if on(BITWISE_SOURCE, REGISTER) && on(BITWISE_DESTINATION, REGISTER) => {
                let unchanged = value(BITWISE_XOR)?.iter().all(|byte| *byte == 0);
                unchanged.then_some(Self::Mask(value(BITWISE_MASK)?.to_vec()))
            }
            "socket" if on(SOCKET_DESTINATION, REGISTER) => match data.big_endian(SOCKET_KEY)? {
                SOCKET_IS_WILDCARD => Some(Self::LoadSocket),
                SOCKET_CGROUP => Some(Self::LoadCgroup { level: data.big_endian(SOCKET_LEVEL)? }),
                _ => None,
            },
            "cmp" if on(COMPARE_SOURCE, REGISTER) => Some(Self::Compare {
                operation: data.big_endian(COMPARE_OPERATION)?,
                value: value(COMPARE_DATA)?.to_vec(),
            }),
            "lookup" if on(LOOKUP_SOURCE, REGISTER) => {
                let set = data.text(LOOKUP_SET)?.to_owned();
                match data.big_endian(LOOKUP_FLAGS).unwrap_or(0) {
                    0 => Some(Self::Holds(set)),
                    LOOKUP_INVERTED => Some(Self::Lacks(set)),
                    _ => None,
                }
            }
            "counter" => Some(Self::Count),
            "immediate" if on(IMMEDIATE_DESTINATION, REGISTER_VERDICT) => {
                let verdict = Attributes(Attributes(data.find(IMMEDIATE_DATA)?).find(DATA_VERDICT)?);
                let chain = || verdict.text(VERDICT_CHAIN).map(str::to_owned);
                Some(Self::Verdict(match verdict.big_endian(VERDICT_CODE)? {
                    DROP => Verdict::Drop,
                    ACCEPT => Verdict::Accept,
                    RETURN => Verdict::Return,
                    JUMP => Verdict::Jump(chain()?),
                    GOTO => Verdict::Goto(chain()?),
                    _ => return None,
                }))
            }
            "reject" => match (data.big_endian(REJECT_TYPE)?, data.find(REJECT_CODE)) {
                (REJECT_RESET, _) => Some(Self::Reset),
                (REJECT_ICMP, Some([PORT_UNREACHABLE])) => Some(Self::Closed),
                _ => None,
            },
            _ => None,
        }
    }
}

/// How many packets the rule with these steps has counted; `None` for one that does not count.
pub(super) fn counted(elements: Attributes<'_>) -> Option<u64> {
    elements.map(|(_, element)| Attributes(element)).find_map(|element| {
        let data = Attributes(element.find(EXPRESSION_DATA)?);
        (element.text(EXPRESSION_NAME)? == "counter")
            .then(|| data.find(COUNTER_PACKETS)?.try_into().ok().map(u64::from_be_bytes))?
    })
}
