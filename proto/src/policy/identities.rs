//! Identities as numbers: what a packet's source is looked up as once, so that rules can be answered by index.
//!
//! An index stands for everything that rules can tell apart about a caller. Every identity that is declared or
//! named has its own. At a node, which is not told of every identity of the mesh, the others of a declared
//! namespace share one: no rule there can tell them apart. Whatever has no index is denied.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use super::document::Selector;
use crate::WorkloadName;

/// An identity's number in one [`CompiledPolicy`](super::CompiledPolicy); meaningless in any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceIndex(u32);

impl SourceIndex {
    /// An identity that the policy does not know.
    pub const UNKNOWN: Self = Self(0);

    /// For arrays with one place per index; 0 is [`Self::UNKNOWN`].
    #[must_use]
    pub const fn as_usize(self) -> usize {
        self.0 as usize
    }
}

/// The numbers of identities.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdentityTable {
    exact: BTreeMap<WorkloadName, SourceIndex>,
    /// Of a declared namespace and not declared themselves: nobody's rules mean them.
    undeclared: BTreeSet<WorkloadName>,
    others: BTreeMap<String, SourceIndex>,
    /// For each index, its namespace's number in `spaces` and its name; index 0 is unknown.
    entries: Vec<Entry>,
    spaces: BTreeMap<String, u32>,
    /// For each namespace's number, its indices.
    members: Vec<Vec<SourceIndex>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Entry {
    space: u32,
    workload: Option<WorkloadName>,
}

impl IdentityTable {
    /// Numbers `exact` identities of declared namespaces; with `open`, also the rest of each namespace.
    pub(super) fn new<'a>(
        namespaces: impl Iterator<Item = &'a str>,
        exact: impl Iterator<Item = &'a WorkloadName>,
        open: bool,
    ) -> Self {
        let mut table = Self { entries: vec![Entry::default()], ..Self::default() };
        for namespace in namespaces {
            let next = number(table.spaces.len());
            table.spaces.entry(namespace.to_owned()).or_insert(next);
        }
        for workload in exact {
            if let Some(space) = table.spaces.get(workload.namespace()).copied()
                && !table.exact.contains_key(workload)
            {
                let index = table.push(Entry { space, workload: Some(workload.clone()) });
                table.exact.insert(workload.clone(), index);
            }
        }
        if open {
            for (name, space) in table.spaces.clone() {
                let index = table.push(Entry { space, workload: None });
                table.others.insert(name, index);
            }
        }
        table
    }

    fn push(&mut self, entry: Entry) -> SourceIndex {
        let index = SourceIndex(number(self.entries.len()));
        let space = entry.space as usize;
        if self.members.len() <= space {
            self.members.resize_with(space + 1, Vec::new);
        }
        self.members[space].push(index);
        self.entries.push(entry);
        index
    }

    /// The number of an identity; [`SourceIndex::UNKNOWN`] when the policy does not know it.
    #[must_use]
    pub fn index(&self, workload: &WorkloadName) -> SourceIndex {
        let others = || self.others.get(workload.namespace()).filter(|_| !self.undeclared.contains(workload));
        self.exact.get(workload).or_else(others).copied().unwrap_or(SourceIndex::UNKNOWN)
    }

    /// Takes these out of the rest of their namespaces.
    pub(super) fn exclude(&mut self, undeclared: BTreeSet<WorkloadName>) {
        self.undeclared = undeclared;
    }

    /// Whether identities of this namespace may be known.
    #[must_use]
    pub fn has_namespace(&self, name: &str) -> bool {
        self.spaces.contains_key(name)
    }

    /// How many indices there are, [`SourceIndex::UNKNOWN`] among them.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True before anything is declared.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.len() <= 1
    }

    /// Every index but the unknown one, with its name; without a name it stands for the rest of a namespace.
    pub fn iter(&self) -> impl Iterator<Item = (SourceIndex, Option<&WorkloadName>)> {
        self.entries.iter().enumerate().skip(1).map(|(i, entry)| (SourceIndex(number(i)), entry.workload.as_ref()))
    }

    /// The name behind a number; none for the unknown one and for the rest of a namespace.
    #[must_use]
    pub fn workload(&self, index: SourceIndex) -> Option<&WorkloadName> {
        self.entries.get(index.as_usize()).and_then(|entry| entry.workload.as_ref())
    }

    fn space(&self, index: SourceIndex) -> Option<u32> {
        if index == SourceIndex::UNKNOWN { None } else { self.entries.get(index.as_usize()).map(|entry| entry.space) }
    }
}

/// Lists are bounded by the number of documents, far below 2^32.
fn number(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// A compiled `from`, `to` or `members`: which identities it means.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct IdentitySet {
    any: bool,
    spaces: Vec<u32>,
    exact: Vec<SourceIndex>,
}

impl IdentitySet {
    pub(super) fn any() -> Self {
        Self { any: true, ..Self::default() }
    }

    /// Resolves selectors. Groups are looked up in `groups`; identities without a number mean nobody.
    pub(super) fn resolve<'a>(
        table: &IdentityTable,
        groups: &BTreeMap<&str, IdentitySet>,
        selectors: impl Iterator<Item = &'a Selector>,
    ) -> Self {
        let mut spaces = BTreeSet::new();
        let mut exact = BTreeSet::new();
        let mut any = false;
        for selector in selectors {
            match selector {
                Selector::Any => any = true,
                Selector::Namespace(name) => spaces.extend(table.spaces.get(name)),
                Selector::Workload(name) => exact.extend(table.exact.get(name)),
                Selector::Group(name) => {
                    if let Some(group) = groups.get(name.as_str()) {
                        any |= group.any;
                        spaces.extend(&group.spaces);
                        exact.extend(&group.exact);
                    }
                }
            }
        }
        Self { any, spaces: spaces.into_iter().collect(), exact: exact.into_iter().collect() }
    }

    /// Whether the set means this identity. An unknown one is meant by `any` alone.
    pub(super) fn contains(&self, table: &IdentityTable, index: SourceIndex) -> bool {
        self.any
            || self.exact.binary_search(&index).is_ok()
            || table.space(index).is_some_and(|space| self.spaces.binary_search(&space).is_ok())
    }

    /// Every index it means but the unknown one.
    pub(super) fn indices<'a>(&'a self, table: &'a IdentityTable) -> impl Iterator<Item = SourceIndex> + 'a {
        let all = self.any.then(|| table.iter().map(|(index, _)| index)).into_iter().flatten();
        let spaces = self.spaces.iter().filter_map(|space| table.members.get(*space as usize)).flatten().copied();
        all.chain(spaces).chain(self.exact.iter().copied())
    }

    /// Whether it means nobody at all.
    pub(super) fn is_empty(&self) -> bool {
        !self.any && self.spaces.is_empty() && self.exact.is_empty()
    }

    /// Whether every identity that `other` means is also meant here.
    pub(super) fn covers(&self, table: &IdentityTable, other: &Self) -> bool {
        if self.any {
            return true;
        }
        !other.any
            && other.spaces.iter().all(|space| self.spaces.binary_search(space).is_ok())
            && other.exact.iter().all(|index| self.contains(table, *index))
    }
}
