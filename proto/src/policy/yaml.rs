//! Strict YAML: a tree with positions, and nothing in it that two readers could read differently.
//!
//! Left out on purpose: anchors, aliases, merge keys, tags, directives, nulls, empty collections, and plain
//! scalars that YAML 1.1 reads as something else than text, a decimal integer, `true` or `false`. What is left
//! means the same to every YAML library an organisation may have in its tooling.

use serde_saphyr::granit_parser::{Event, Parser, ScalarStyle, Span};

use super::diagnostic::{Code, Findings, Position};

/// Deepest nesting of mappings and lists in one document.
pub(super) const MAX_DEPTH: usize = 16;
/// Most entries of one list or mapping. Keys are compared with each other, so this bounds the work.
pub(super) const MAX_ENTRIES: usize = 4096;
/// Largest document in bytes. It must fit one frame of the control link together with its envelope.
pub(super) const MAX_DOCUMENT_BYTES: usize = 128 * 1024;

/// One document of a file as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunk<'a> {
    /// The document's text without its `---` line.
    pub text: &'a str,
    /// Line of the text's first character in the file, from 1.
    pub line: u32,
}

/// A value with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub at: Position,
    pub value: Value,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    Integer(i64),
    Bool(bool),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

impl Value {
    /// What a message calls it.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "text",
            Self::Integer(_) => "a number",
            Self::Bool(_) => "true or false",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    pub at: Position,
    pub text: String,
}

/// Splits a file at its `---` lines. YAML ends every open construct at such a line, so this is exact.
/// Leading comments before the first `---` belong to no document.
pub(super) fn split<'a>(file: &str, text: &'a str, first_line: u32, findings: &mut Findings) -> Vec<Chunk<'a>> {
    let mut chunks = Vec::new();
    let mut start = 0;
    let mut start_line = first_line;
    let mut line = first_line;
    let mut offset = 0;
    let mut explicit = false;
    for raw in text.split_inclusive('\n') {
        let content = raw.trim_end_matches(['\n', '\r']);
        if let Some(rest) = content.strip_prefix("---")
            && (rest.is_empty() || rest.starts_with([' ', '\t']))
        {
            let behind = rest.trim_start();
            if !behind.is_empty() && !behind.starts_with('#') {
                let at = Position { line, column: 5 };
                findings.error(file, at, Code::Syntax, "`---` must stand alone on its line", "");
            }
            push_chunk(file, &text[start..offset], start_line, explicit, &mut chunks, findings);
            start = offset + raw.len();
            start_line = line.saturating_add(1);
            explicit = true;
        }
        offset += raw.len();
        line = line.saturating_add(1);
    }
    push_chunk(file, &text[start..], start_line, explicit || chunks.is_empty(), &mut chunks, findings);
    chunks
}

fn push_chunk<'a>(
    file: &str,
    text: &'a str,
    line: u32,
    explicit: bool,
    chunks: &mut Vec<Chunk<'a>>,
    findings: &mut Findings,
) {
    let blank = text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'));
    if !blank {
        chunks.push(Chunk { text, line });
    } else if explicit {
        let at = Position { line, column: 1 };
        findings.error(file, at, Code::Empty, "the document is empty", "write an object here or remove the `---`");
    }
}

/// Reads one document. `None` when a finding makes the tree useless; findings are added either way.
pub(super) fn parse(file: &str, chunk: Chunk<'_>, findings: &mut Findings) -> Option<Node> {
    let first = Position { line: chunk.line, column: 1 };
    if chunk.text.len() > MAX_DOCUMENT_BYTES {
        let message = format!("the document has {} bytes; the limit is {MAX_DOCUMENT_BYTES}", chunk.text.len());
        findings.error(file, first, Code::TooLarge, message, "split it into several objects");
        return None;
    }
    if let Some((at, what, hint)) = forbidden_character(chunk) {
        findings.error(file, at, Code::ForbiddenYaml, format!("the text has {what}"), hint);
        return None;
    }
    let before = findings.len();
    let mut reader = Reader { file, base: chunk.line, findings, open: Vec::new(), root: None };
    let mut options = serde_saphyr::granit_parser::options! {
        strict_indentation: true,
        disallow_directives: true,
        emit_unresolved_aliases: true,
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
    };
    options.set_emit_comments(false);
    let mut documents = 0;
    for event in Parser::new_from_str_with_options(chunk.text, options) {
        match event {
            Ok((Event::DocumentStart(..), span)) => {
                documents += 1;
                if documents > 1 {
                    let at = reader.place(&span);
                    reader.error(at, Code::Syntax, "a second document begins without a `---` line", "");
                    return None;
                }
            }
            Ok((event, span)) => {
                if !reader.take(event, &span) {
                    return None;
                }
            }
            Err(error) => {
                let marker = error.marker();
                let at = Position {
                    line: chunk.line.saturating_add(clamp(marker.line()).saturating_sub(1)),
                    column: clamp(marker.col()).saturating_add(1),
                };
                reader.error(at, Code::Syntax, format!("not valid YAML: {}", error.info()), "");
                return None;
            }
        }
    }
    let root = reader.root.take();
    if findings.len() == before { root } else { None }
}

/// The first character that some YAML readers refuse, skip or take for the end of a line where others do not: its
/// place, what it is, and the next step. Behind this check every reader counts the same lines.
fn forbidden_character(chunk: Chunk<'_>) -> Option<(Position, String, &'static str)> {
    for (line, text) in (chunk.line..).zip(chunk.text.split('\n')) {
        let text = text.strip_suffix('\r').unwrap_or(text);
        for (column, character) in (1..).zip(text.chars()) {
            let (what, hint) = match character {
                '\t' => continue,
                '\u{feff}' => ("a byte order mark".to_owned(), "save it as plain UTF-8"),
                '\r' => ("a carriage return without a line feed".to_owned(), "end lines with LF or CR LF"),
                '\u{85}' | '\u{2028}' | '\u{2029}' => {
                    (format!("the line separator U+{:04X}", u32::from(character)), "end lines with LF or CR LF")
                }
                _ if character.is_control() => {
                    (format!("the control character U+{:04X}", u32::from(character)), "remove it")
                }
                _ => continue,
            };
            return Some((Position { line, column }, what, hint));
        }
    }
    None
}

fn clamp(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

enum Open {
    List(Position, Vec<Node>),
    Map(Position, Vec<(Key, Node)>, Option<Key>),
}

struct Reader<'a> {
    file: &'a str,
    base: u32,
    findings: &'a mut Findings,
    open: Vec<Open>,
    root: Option<Node>,
}

impl Reader<'_> {
    fn place(&self, span: &Span) -> Position {
        Position {
            line: self.base.saturating_add(clamp(span.start.line()).saturating_sub(1)),
            column: clamp(span.start.col()).saturating_add(1),
        }
    }

    fn error(&mut self, at: Position, code: Code, message: impl Into<String>, hint: impl Into<String>) {
        self.findings.error(self.file, at, code, message, hint);
    }

    /// False when reading on makes no sense.
    fn take(&mut self, event: Event<'_>, span: &Span) -> bool {
        let at = self.place(span);
        if event.anchor_id().is_some_and(|id| id != 0) {
            self.error(at, Code::ForbiddenYaml, "anchors are not part of this language", "write the value out");
        }
        if event.tag().is_some() {
            self.error(at, Code::ForbiddenYaml, "tags are not part of this language", "quote a value to make it text");
        }
        match event {
            // A value that was left out has no characters in the source.
            Event::Scalar(_, ScalarStyle::Plain, ..) if span.is_empty() => self.scalar(at, "", ScalarStyle::Plain),
            Event::Scalar(text, style, ..) => self.scalar(at, &text, style),
            Event::SequenceStart(..) => self.enter(Open::List(at, Vec::new())),
            Event::MappingStart(..) => self.enter(Open::Map(at, Vec::new(), None)),
            Event::SequenceEnd | Event::MappingEnd => self.leave(),
            Event::Alias(_) | Event::UnresolvedAlias(_) => {
                self.error(at, Code::ForbiddenYaml, "aliases are not part of this language", "write the value out");
                self.value(Node { at, value: Value::Bool(false) })
            }
            _ => true,
        }
    }

    fn scalar(&mut self, at: Position, text: &str, style: ScalarStyle) -> bool {
        if let Some(Open::Map(_, entries, key @ None)) = self.open.last_mut() {
            if entries.len() >= MAX_ENTRIES {
                self.error(at, Code::TooLarge, format!("a mapping has at most {MAX_ENTRIES} keys"), "");
                return false;
            }
            let duplicate = entries.iter().any(|(known, _)| known.text == text);
            *key = Some(Key { at, text: text.to_owned() });
            if duplicate {
                self.error(at, Code::DuplicateKey, format!("the key `{text}` stands twice"), "remove one of them");
            } else if text == "<<" && style == ScalarStyle::Plain {
                let message = "merge keys are not part of this language";
                self.error(at, Code::ForbiddenYaml, message, "write the keys out");
            } else if style == ScalarStyle::Plain
                && let Err(problem) = plain(text)
            {
                self.error(at, Code::AmbiguousScalar, format!("the key {problem}"), "put it in quotes");
            }
            return true;
        }
        let value = if style == ScalarStyle::Plain {
            plain(text).unwrap_or_else(|problem| {
                let hint = if text.is_empty() { "write a value or remove the key" } else { "put it in quotes" };
                self.error(at, Code::AmbiguousScalar, problem, hint);
                Value::Text(text.to_owned())
            })
        } else {
            Value::Text(text.to_owned())
        };
        self.value(Node { at, value })
    }

    fn enter(&mut self, open: Open) -> bool {
        let (Open::List(at, _) | Open::Map(at, ..)) = &open;
        let at = *at;
        if let Some(Open::Map(_, _, None)) = self.open.last() {
            self.error(at, Code::InvalidValue, "a key must be a word", "");
            return false;
        }
        if self.open.len() >= MAX_DEPTH {
            self.error(at, Code::TooLarge, format!("nested deeper than {MAX_DEPTH} levels"), "");
            return false;
        }
        self.open.push(open);
        true
    }

    fn leave(&mut self) -> bool {
        let node = match self.open.pop() {
            Some(Open::List(at, items)) => {
                if items.is_empty() {
                    self.error(
                        at,
                        Code::Empty,
                        "the list is empty",
                        "remove the key, or say `any` where that is meant",
                    );
                }
                Node { at, value: Value::List(items) }
            }
            Some(Open::Map(at, entries, _)) => {
                if entries.is_empty() {
                    self.error(at, Code::Empty, "the mapping is empty", "remove the key");
                }
                Node { at, value: Value::Map(entries) }
            }
            None => return false,
        };
        self.value(node)
    }

    fn value(&mut self, node: Node) -> bool {
        match self.open.last_mut() {
            None => {
                self.root = Some(node);
                true
            }
            Some(Open::List(_, items)) => {
                items.push(node);
                true
            }
            Some(Open::Map(_, entries, key)) => match key.take() {
                Some(key) => {
                    entries.push((key, node));
                    true
                }
                // An alias used as a key; it is reported already.
                None => false,
            },
        }
    }
}

/// Reads a plain scalar: a decimal integer, `true`, `false`, or text that YAML 1.1 also takes for text.
fn plain(text: &str) -> Result<Value, String> {
    if let "true" | "false" = text {
        return Ok(Value::Bool(text == "true"));
    }
    let digits = text.strip_prefix('-').unwrap_or(text);
    let decimal = digits == "0"
        || (digits.bytes().all(|b| b.is_ascii_digit()) && matches!(digits.as_bytes().first(), Some(b'1'..=b'9')));
    if decimal && text != "-0" {
        return text.parse().map(Value::Integer).map_err(|_| format!("number `{text}` is too large"));
    }
    let lower = text.to_ascii_lowercase();
    let problem = match lower.as_str() {
        "" => return Err("value is missing (null is not part of this language)".to_owned()),
        "~" | "null" => "null to YAML; there is no null here",
        "y" | "n" | "yes" | "no" | "on" | "off" | "true" | "false" => "read as true or false by YAML 1.1",
        "=" | "<<" => "a special word of YAML 1.1",
        _ if lower.trim_start_matches(['+', '-']).strip_prefix('.').is_some_and(|s| matches!(s, "inf" | "nan")) => {
            "read as a number by YAML"
        }
        _ if looks_numeric(&lower) => "read as a number by some YAML versions",
        _ if looks_like_a_date(&lower) => "read as a date by YAML 1.1",
        _ => return Ok(Value::Text(text.to_owned())),
    };
    Err(format!("`{text}` without quotes is {problem}"))
}

/// Octal, hexadecimal, binary, underscored, sexagesimal, signed and fractional numbers of YAML 1.1 and 1.2.
fn looks_numeric(lower: &str) -> bool {
    let body = lower.strip_prefix(['+', '-']).unwrap_or(lower);
    let all = |text: &str, allowed: fn(u8) -> bool| !text.is_empty() && text.bytes().all(allowed);
    for (prefix, allowed) in [
        ("0x", (|b| b.is_ascii_hexdigit() || b == b'_') as fn(u8) -> bool),
        ("0b", |b| matches!(b, b'0' | b'1' | b'_')),
        ("0o", |b| matches!(b, b'0'..=b'7' | b'_')),
    ] {
        if body.strip_prefix(prefix).is_some_and(|rest| all(rest, allowed)) {
            return true;
        }
    }
    let (mantissa, exponent) = body.split_once('e').unwrap_or((body, "0"));
    let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
    all(mantissa, |b| b.is_ascii_digit() || matches!(b, b'_' | b'.' | b':'))
        && mantissa.bytes().any(|b| b.is_ascii_digit())
        && !mantissa.starts_with([':', '_'])
        && mantissa.bytes().filter(|b| *b == b'.').count() <= 1
        && all(exponent, |b| b.is_ascii_digit() || b == b'_')
}

/// `2026-12-15`, with or without a time behind it.
fn looks_like_a_date(lower: &str) -> bool {
    let mut parts = lower.splitn(3, '-');
    let (Some(year), Some(month), Some(rest)) = (parts.next(), parts.next(), parts.next()) else { return false };
    let day: String = rest.chars().take_while(char::is_ascii_digit).collect();
    let behind = &rest[day.len()..];
    year.len() == 4
        && year.bytes().all(|b| b.is_ascii_digit())
        && (1..=2).contains(&month.len())
        && month.bytes().all(|b| b.is_ascii_digit())
        && (1..=2).contains(&day.len())
        && (behind.is_empty() || behind.starts_with(['t', ' ']))
}

#[cfg(test)]
mod tests;
