//! Sets of cgroups' ids, as the kernel takes them and gives them back (linux/netfilter/nf_tables.h).

use std::collections::BTreeSet;

use super::super::netlink::{Attributes, FLAG_CREATE, KernelError, Request};
use super::{HEADER, LIST_ELEMENT, Nftables, message};

const NEW_SET: u16 = message(9);
const GET_SET: u16 = message(10);
const NEW_ELEMENT: u16 = message(12);
const GET_ELEMENT: u16 = message(13);
const DELETE_ELEMENT: u16 = message(14);

const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LENGTH: u16 = 5;
const SET_ID: u16 = 10;
const ELEMENTS_TABLE: u16 = 1;
const ELEMENTS_SET: u16 = 2;
const ELEMENTS: u16 = 3;
const ELEMENT_KEY: u16 = 1;
const DATA_VALUE: u16 = 1;
/// What `nft` calls `cgroupsv2`.
const TYPE_CGROUP: u32 = 48;
/// Elements in one request: far below the 64 KiB of an attribute.
const AT_ONCE: usize = 1000;
/// Where the numbers begin that name these sets within a transaction.
const FIRST_ID: u32 = 1 << 16;

/// A set of ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Ids {
    pub(in super::super) name: String,
    pub(in super::super) ids: BTreeSet<u64>,
}

/// The requests that make these sets in the table.
pub(super) fn requests(table: &str, sets: &[Ids]) -> Vec<Request> {
    let made = sets.iter().zip(FIRST_ID..).map(|(set, id)| {
        Request::new(NEW_SET, FLAG_CREATE, &HEADER)
            .with_text(SET_TABLE, table)
            .with_text(SET_NAME, &set.name)
            .with(SET_FLAGS, &0_u32.to_be_bytes())
            .with(SET_KEY_TYPE, &TYPE_CGROUP.to_be_bytes())
            .with(SET_KEY_LENGTH, &8_u32.to_be_bytes())
            .with(SET_ID, &id.to_be_bytes())
    });
    let filled = sets.iter().flat_map(|set| elements(table, &set.name, NEW_ELEMENT, set.ids.iter()));
    made.chain(filled).collect()
}

/// The requests that turn some of these sets into others of the same names.
pub(super) fn differences(table: &str, from: &[Ids], to: &[Ids]) -> Vec<Request> {
    let changed = from.iter().zip(to).flat_map(|(from, to)| {
        let gone = elements(table, &to.name, DELETE_ELEMENT, from.ids.difference(&to.ids));
        gone.into_iter().chain(elements(table, &to.name, NEW_ELEMENT, to.ids.difference(&from.ids)))
    });
    changed.collect()
}

fn elements<'a>(table: &str, set: &str, kind: u16, ids: impl Iterator<Item = &'a u64>) -> Vec<Request> {
    let flags = if kind == NEW_ELEMENT { FLAG_CREATE } else { 0 };
    let request = |ids: &[u64]| {
        Request::new(kind, flags, &HEADER).with_text(ELEMENTS_TABLE, table).with_text(ELEMENTS_SET, set).with_nested(
            ELEMENTS,
            |list| {
                ids.iter().fold(list, |list, id| {
                    list.with_nested(LIST_ELEMENT, |element| {
                        element.with_nested(ELEMENT_KEY, |key| key.with(DATA_VALUE, &id.to_ne_bytes()))
                    })
                })
            },
        )
    };
    ids.copied().collect::<Vec<_>>().chunks(AT_ONCE).map(request).collect()
}

/// The sets of ids as they stand in the table, by name.
pub(super) fn read(nftables: &mut Nftables, table: &'static str) -> Result<Vec<Ids>, KernelError> {
    let ours = |attributes: Attributes<'_>, attribute| attributes.text(attribute) == Some(table);
    let wanted = Request::new(GET_SET, 0, &HEADER).with_text(SET_TABLE, table);
    let names = nftables.0.dump(&wanted, |payload| {
        let set = Attributes(payload.get(HEADER.len()..)?);
        // Others of the table are made by rules, and have flags.
        let of_ids = set.big_endian(SET_FLAGS).unwrap_or(0) == 0 && set.big_endian(SET_KEY_LENGTH) == Some(8);
        if ours(set, SET_TABLE) && of_ids { set.text(SET_NAME).map(str::to_owned) } else { None }
    })?;
    let mut sets = Vec::new();
    for name in names {
        let wanted =
            Request::new(GET_ELEMENT, 0, &HEADER).with_text(ELEMENTS_TABLE, table).with_text(ELEMENTS_SET, &name);
        let found = match nftables.0.dump(&wanted, |payload| Some(parse(payload.get(HEADER.len()..)?))) {
            // Gone meanwhile, with its table.
            Err(error) if error.errno == libc::ENOENT => continue,
            found => found?,
        };
        sets.push(Ids { name, ids: found.into_iter().flatten().collect() });
    }
    sets.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(sets)
}

/// The ids in one message of elements.
pub(super) fn parse(attributes: &[u8]) -> Vec<u64> {
    let elements = Attributes(Attributes(attributes).find(ELEMENTS).unwrap_or_default());
    let ids = elements.filter_map(|(_, element)| {
        let key = Attributes(Attributes(element).find(ELEMENT_KEY)?).find(DATA_VALUE)?;
        key.try_into().map(u64::from_ne_bytes).ok()
    });
    ids.collect()
}
