//! Takes typed values out of a YAML tree, and says of each wrong one what was expected there.

use super::diagnostic::{Code, Findings, Position, nearest_hint};
use super::yaml::{Key, MAX_ENTRIES, Node, Value};
use crate::spiffe::{MAX_NAME_LENGTH, is_name};

/// A value and where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// Its place in the file.
    pub at: Position,
}

/// The file being read, and what was found in it.
pub(super) struct Context<'a> {
    pub file: &'a str,
    pub findings: &'a mut Findings,
}

impl Context<'_> {
    pub(super) fn error(&mut self, at: Position, code: Code, message: impl Into<String>, hint: impl Into<String>) {
        self.findings.error(self.file, at, code, message, hint);
    }

    pub(super) fn invalid(&mut self, node: &Node, what: &str, expected: &str) {
        let message = format!("{what} must be {expected}, not {}", node.value.kind());
        self.error(node.at, Code::InvalidValue, message, "");
    }

    /// Text, refusing numbers and truth values that lost their quotes.
    pub(super) fn text<'n>(&mut self, node: &'n Node, what: &str) -> Option<At<&'n str>> {
        match &node.value {
            Value::Text(text) => Some(At { value: text, at: node.at }),
            Value::Integer(_) | Value::Bool(_) => {
                self.error(node.at, Code::InvalidValue, format!("{what} must be text"), "put it in quotes");
                None
            }
            Value::List(_) | Value::Map(_) => {
                self.invalid(node, what, "text");
                None
            }
        }
    }

    /// Text of at most `limit` bytes without control characters.
    pub(super) fn line(&mut self, node: &Node, what: &str, limit: usize) -> Option<At<String>> {
        let text = self.text(node, what)?;
        if text.value.is_empty() || text.value.len() > limit || text.value.chars().any(char::is_control) {
            let message = format!("{what} must be 1 to {limit} bytes without control characters");
            self.error(node.at, Code::InvalidValue, message, "");
            return None;
        }
        Some(At { value: text.value.to_owned(), at: text.at })
    }

    /// A name as people choose them.
    pub(super) fn name(&mut self, node: &Node, what: &str) -> Option<At<String>> {
        let text = self.text(node, what)?;
        self.checked_name(text.value, text.at, what)
    }

    pub(super) fn key_name(&mut self, key: &Key, what: &str) -> Option<At<String>> {
        self.checked_name(&key.text, key.at, what)
    }

    fn checked_name(&mut self, text: &str, at: Position, what: &str) -> Option<At<String>> {
        if is_name(text) {
            return Some(At { value: text.to_owned(), at });
        }
        let message = format!("`{text}` is not a {what}");
        let hint = format!("a lower-case letter, then letters, digits and `-`, at most {MAX_NAME_LENGTH} in all");
        self.error(at, Code::InvalidValue, message, hint);
        None
    }

    pub(super) fn integer(&mut self, node: &Node, what: &str, range: std::ops::RangeInclusive<i64>) -> Option<i64> {
        match &node.value {
            Value::Integer(number) if range.contains(number) => Some(*number),
            Value::Integer(number) => {
                let message = format!("{what} must be {} to {}, not {number}", range.start(), range.end());
                self.error(node.at, Code::InvalidValue, message, "");
                None
            }
            Value::Text(_) | Value::Bool(_) | Value::List(_) | Value::Map(_) => {
                self.invalid(node, what, "a number");
                None
            }
        }
    }

    pub(super) fn boolean(&mut self, node: &Node, what: &str) -> Option<bool> {
        match &node.value {
            Value::Bool(value) => Some(*value),
            Value::Text(_) | Value::Integer(_) | Value::List(_) | Value::Map(_) => {
                self.invalid(node, what, "true or false");
                None
            }
        }
    }

    /// The items of a list.
    pub(super) fn list<'n>(&mut self, node: &'n Node, what: &str) -> &'n [Node] {
        match &node.value {
            Value::List(items) if items.len() <= MAX_ENTRIES => items,
            Value::List(items) => {
                let message = format!("{what} has {} entries; the limit is {MAX_ENTRIES}", items.len());
                self.error(node.at, Code::TooLarge, message, "");
                &[]
            }
            Value::Text(text) => {
                self.error(node.at, Code::InvalidValue, format!("{what} must be a list"), format!("write [{text}]"));
                &[]
            }
            Value::Integer(_) | Value::Bool(_) | Value::Map(_) => {
                self.invalid(node, what, "a list");
                &[]
            }
        }
    }

    /// The entries of a mapping whose keys people choose.
    pub(super) fn entries<'n>(&mut self, node: &'n Node, what: &str) -> &'n [(Key, Node)] {
        match &node.value {
            Value::Map(entries) if entries.len() <= MAX_ENTRIES => entries,
            Value::Map(entries) => {
                let message = format!("{what} has {} entries; the limit is {MAX_ENTRIES}", entries.len());
                self.error(node.at, Code::TooLarge, message, "");
                &[]
            }
            Value::Text(_) | Value::Integer(_) | Value::Bool(_) | Value::List(_) => {
                self.invalid(node, what, "a mapping");
                &[]
            }
        }
    }

    /// A list of values that `read` understands; unreadable ones are reported and left out.
    pub(super) fn each<T>(
        &mut self,
        node: &Node,
        what: &str,
        mut read: impl FnMut(&mut Self, &Node) -> Option<T>,
    ) -> Vec<T> {
        let items = self.list(node, what);
        items.iter().filter_map(|item| read(self, item)).collect()
    }

    /// A mapping with the keys of `known`; others are reported with the nearest of them.
    pub(super) fn fields<'n>(&mut self, node: &'n Node, what: &'n str, known: &[&str]) -> Fields<'n> {
        let entries = self.entries(node, what);
        for (key, _) in entries {
            if !known.contains(&key.text.as_str()) {
                let message = format!("{what} has no key `{}`", key.text);
                self.error(key.at, Code::UnknownKey, message, nearest_hint(&key.text, known.iter().copied()));
            }
        }
        Fields { at: node.at, what, entries }
    }
}

/// A mapping with known keys.
#[derive(Clone, Copy)]
pub(super) struct Fields<'n> {
    pub at: Position,
    what: &'n str,
    entries: &'n [(Key, Node)],
}

impl<'n> Fields<'n> {
    pub(super) fn get(&self, key: &str) -> Option<&'n Node> {
        self.entries.iter().find(|(known, _)| known.text == key).map(|(_, node)| node)
    }

    /// The value of a key that must be there.
    pub(super) fn need(&self, context: &mut Context<'_>, key: &str, hint: &str) -> Option<&'n Node> {
        let found = self.get(key);
        if found.is_none() {
            context.error(self.at, Code::MissingKey, format!("{} needs the key `{key}`", self.what), hint);
        }
        found
    }
}
