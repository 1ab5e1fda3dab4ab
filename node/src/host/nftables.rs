//! nftables tables written and read back as nfnetlink messages (linux/netfilter/nf_tables.h): a table stands or falls in one
//! transaction, and what stands is compared rule by rule with what is wanted.

mod ids;
mod rules;

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::netlink::{Attributes, Channel, FLAG_APPEND, FLAG_CREATE, FLAG_EXCLUSIVE, KernelError, Request};

pub(super) use ids::Ids;
use rules::{ACCEPT, POLICY_DROP};
pub(super) use rules::{Chain, Header, Meta, Operation, Set, Step, Verdict};

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
const NEW_SET: u16 = message(9);
const GET_SET: u16 = message(10);

const FAMILY_INET: u8 = 1;
pub(super) const FAMILY_V4: u8 = 2;
pub(super) const FAMILY_V6: u8 = 10;
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
const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LENGTH: u16 = 5;
const SET_DESCRIPTION: u16 = 9;
const SET_ID: u16 = 10;
const SET_TIMEOUT: u16 = 11;
const DESCRIPTION_SIZE: u16 = 1;
/// `NFT_SET_TIMEOUT` and `NFT_SET_EVAL`: rules put elements in, and they go by themselves.
const SET_REMEMBERS: u32 = 0x10 | 0x20;
pub(super) const LOOPBACK: u32 = 1;

/// After destination translation, so that a rewritten destination is judged as well.
pub(super) const PRIORITY_AFTER_NAT: i32 = -90;

/// One table of family `inet`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) name: &'static str,
    pub(super) sets: Vec<Set>,
    /// By name.
    pub(super) ids: Vec<Ids>,
    pub(super) chains: Vec<Chain>,
}

/// A table as it stands, and what it has counted: packets by chain, of the rules that count.
#[derive(Debug)]
pub(super) struct Standing {
    pub(super) table: Table,
    pub(super) counts: Vec<(String, u64)>,
}

impl Table {
    /// Whether the two differ in nothing but the ids in their sets.
    pub(super) fn is_but_for_ids(&self, other: &Self) -> bool {
        let names = |table: &Self| table.ids.iter().map(|set| set.name.clone()).collect::<Vec<_>>();
        names(self) == names(other) && *self == Self { ids: self.ids.clone(), ..other.clone() }
    }
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

    /// Puts the table in the place of whatever stands under its name, in one transaction.
    pub(super) fn install(&mut self, wanted: &Table) -> Result<(), KernelError> {
        // Creating first makes the deletion succeed whether or not the table was there.
        let mut requests = [(NEW_TABLE, FLAG_CREATE), (DELETE_TABLE, 0), (NEW_TABLE, FLAG_CREATE)]
            .map(|(kind, flags)| table(wanted.name, kind, flags))
            .to_vec();
        requests.extend(wanted.sets.iter().zip(1..).map(|(set, id)| set_request(wanted.name, set, id)));
        requests.extend(ids::requests(wanted.name, &wanted.ids));
        requests.extend(wanted.chains.iter().map(|chain| chain_request(wanted.name, chain)));
        // Sets and chains first: rules ask the ones, and lead from one to another of the others.
        for chain in &wanted.chains {
            requests.extend(chain.rules.iter().map(|steps| rule_request(wanted.name, &chain.name, steps)));
        }
        self.commit(requests)
    }

    /// Makes `wanted` of a table that stands and differs in nothing but the ids in its sets, in one transaction.
    pub(super) fn exchange_ids(&mut self, standing: &Table, wanted: &Table) -> Result<(), KernelError> {
        self.commit(ids::differences(wanted.name, &standing.ids, &wanted.ids))
    }

    /// Removes the table of that name; whether it was there.
    pub(super) fn remove(&mut self, name: &str) -> Result<bool, KernelError> {
        match self.commit(vec![table(name, DELETE_TABLE, 0)]) {
            Ok(()) => Ok(true),
            Err(error) if error.errno == libc::ENOENT => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The table of that name as it stands; `None` when there is none or it is switched off.
    pub(super) fn read(&mut self, name: &'static str) -> Result<Option<Standing>, KernelError> {
        let mut flags = None;
        match self.0.get(table(name, GET_TABLE, 0), |kind, payload| {
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
            payload.get(HEADER.len()..).is_some_and(|rest| Attributes(rest).text(attribute) == Some(name))
        };
        let mut chains = self.0.dump(&Request::new(GET_CHAIN, 0, &HEADER), |payload| {
            if ours(payload, CHAIN_TABLE) { parse_chain(payload.get(HEADER.len()..)?) } else { None }
        })?;
        let sets = self.0.dump(&Request::new(GET_SET, 0, &HEADER).with_text(SET_TABLE, name), |payload| {
            if ours(payload, SET_TABLE) { parse_set(payload.get(HEADER.len()..)?) } else { None }
        })?;
        let mut counts = Vec::new();
        let rules = Request::new(GET_RULE, 0, &HEADER).with_text(RULE_TABLE, name);
        for rule in self.0.dump(&rules, |payload| {
            if ours(payload, RULE_TABLE) { parse_rule(payload.get(HEADER.len()..)?) } else { None }
        })? {
            counts.extend(rule.counted.map(|packets| (rule.chain.clone(), packets)));
            if let Some(chain) = chains.iter_mut().find(|chain| chain.name == rule.chain) {
                chain.rules.push(rule.steps);
            }
        }
        let ids = ids::read(self, name)?;
        Ok(Some(Standing { table: Table { name, sets, ids, chains }, counts }))
    }

    fn commit(&mut self, requests: Vec<Request>) -> Result<(), KernelError> {
        let subsystem = SUBSYSTEM.to_be_bytes();
        let header = [0, 0, subsystem[0], subsystem[1]];
        self.0.transaction(Request::new(BATCH_BEGIN, 0, &header), requests, Request::new(BATCH_END, 0, &header))
    }
}

fn table(name: &str, kind: u16, flags: u16) -> Request {
    Request::new(kind, flags, &HEADER).with_text(TABLE_NAME, name)
}

fn chain_request(table: &str, chain: &Chain) -> Request {
    let request =
        Request::new(NEW_CHAIN, FLAG_CREATE, &HEADER).with_text(CHAIN_TABLE, table).with_text(CHAIN_NAME, &chain.name);
    let Some((hook, priority)) = chain.base else { return request };
    request
        .with_nested(CHAIN_HOOK, |nest| {
            nest.with(HOOK_NUMBER, &hook.to_be_bytes()).with(HOOK_PRIORITY, &priority.to_be_bytes())
        })
        .with(CHAIN_POLICY, &(if chain.accepts { ACCEPT } else { POLICY_DROP }).to_be_bytes())
        .with_text(CHAIN_TYPE, "filter")
}

fn rule_request(table: &str, chain: &str, steps: &[Step]) -> Request {
    Request::new(NEW_RULE, FLAG_CREATE | FLAG_APPEND, &HEADER)
        .with_text(RULE_TABLE, table)
        .with_text(RULE_CHAIN, chain)
        .with_nested(RULE_EXPRESSIONS, |list| {
            steps.iter().fold(list, |list, step| list.with_nested(LIST_ELEMENT, |e| step.write(e)))
        })
}

fn set_request(table: &str, set: &Set, id: u32) -> Request {
    Request::new(NEW_SET, FLAG_CREATE, &HEADER)
        .with_text(SET_TABLE, table)
        .with_text(SET_NAME, &set.name)
        .with(SET_FLAGS, &SET_REMEMBERS.to_be_bytes())
        .with(SET_KEY_TYPE, &set.kind.to_be_bytes())
        .with(SET_KEY_LENGTH, &set.length.to_be_bytes())
        .with_nested(SET_DESCRIPTION, |nest| nest.with(DESCRIPTION_SIZE, &set.size.to_be_bytes()))
        .with(SET_ID, &id.to_be_bytes())
        .with(SET_TIMEOUT, &set.lifetime.to_be_bytes())
}

/// One of another kind than warren's shows as one that remembers nothing, which equals none of warren's.
fn parse_set(attributes: &[u8]) -> Option<Set> {
    let attributes = Attributes(attributes);
    let lifetime = attributes.find(SET_TIMEOUT).and_then(|raw| raw.try_into().ok()).map_or(0, u64::from_be_bytes);
    let flags = attributes.big_endian(SET_FLAGS).unwrap_or(0);
    if flags == 0 {
        // One of ids, which is read with them.
        return None;
    }
    let ours = flags == SET_REMEMBERS;
    Some(Set {
        name: attributes.text(SET_NAME)?.to_owned(),
        kind: attributes.big_endian(SET_KEY_TYPE)?,
        length: attributes.big_endian(SET_KEY_LENGTH)?,
        size: attributes
            .find(SET_DESCRIPTION)
            .and_then(|description| Attributes(description).big_endian(DESCRIPTION_SIZE))
            .unwrap_or(0),
        lifetime: if ours { lifetime } else { 0 },
    })
}

fn parse_chain(attributes: &[u8]) -> Option<Chain> {
    let attributes = Attributes(attributes);
    let name = attributes.text(CHAIN_NAME)?.to_owned();
    let Some(hook) = attributes.find(CHAIN_HOOK).map(Attributes) else {
        return Some(Chain { name, base: None, accepts: true, rules: Vec::new() });
    };
    let priority = hook.find(HOOK_PRIORITY).and_then(|raw| raw.try_into().ok()).map_or(0, i32::from_be_bytes);
    // One of another type is none of warren's and never compares equal.
    let number = if attributes.text(CHAIN_TYPE) == Some("filter") { hook.big_endian(HOOK_NUMBER)? } else { u32::MAX };
    let accepts = attributes.big_endian(CHAIN_POLICY) == Some(ACCEPT);
    Some(Chain { name, base: Some((number, priority)), accepts, rules: Vec::new() })
}

struct SeenRule {
    chain: String,
    steps: Vec<Step>,
    /// Packets, where it counts.
    counted: Option<u64>,
}

fn parse_rule(attributes: &[u8]) -> Option<SeenRule> {
    let attributes = Attributes(attributes);
    let elements = Attributes(attributes.find(RULE_EXPRESSIONS)?);
    // A rule that holds a foreign step becomes an empty one, which equals no rule of warren's.
    let steps: Option<Vec<_>> = elements.map(|(_, element)| Step::parse(Attributes(element))).collect();
    let chain = attributes.text(RULE_CHAIN)?.to_owned();
    Some(SeenRule { chain, steps: steps.unwrap_or_default(), counted: rules::counted(elements) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn arbitrary_rules_chains_and_sets_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_rule(&bytes);
            let _ = parse_chain(&bytes);
            let _ = parse_set(&bytes);
            let _ = ids::parse(&bytes);
        }
    }
}
