//! Path templates: literal segments, `{name}` for one segment, `/**` at the end for all that lies below.
//!
//! A template is matched against a path in its normal form only. `/v1/**` also matches `/v1` itself: a deny on
//! a tree covers its root.

use std::fmt;
use std::str::FromStr;

/// Longest template or path, in bytes.
pub const MAX_PATH: usize = 8192;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Segment {
    Literal(String),
    One,
}

/// A compiled template.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PathTemplate {
    text: String,
    segments: Vec<Segment>,
    below: bool,
}

/// Why a text is not a path template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTemplate {
    /// It does not begin with a slash, or is too long.
    #[error("a path template begins with `/` and has at most 8192 bytes")]
    Start,
    /// `**` stands elsewhere than at the end, or `*` stands in a segment.
    #[error("`**` stands for everything below and only at the end, as in /v1/**; one segment is {{name}}")]
    Star,
    /// `{` or `}` without being a whole segment `{name}`.
    #[error("a placeholder is a whole segment, as in /accounts/{{id}}")]
    Placeholder,
    /// A literal segment could not occur in a normal path.
    #[error("a segment is not in the normal form of paths: no `//`, `.`, `..`, `%2F`, `;`, `?` or `#`")]
    Segment,
}

impl PathTemplate {
    /// Whether a path in normal form matches. Any other text matches nothing.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        let Some(rest) = path.strip_prefix('/') else { return false };
        let mut given = rest.split('/');
        for segment in &self.segments {
            match (segment, given.next()) {
                (Segment::Literal(literal), Some(text)) if literal == text => {}
                (Segment::One, Some(text)) if !text.is_empty() => {}
                (Segment::Literal(_) | Segment::One, _) => return false,
            }
        }
        self.below || given.next().is_none()
    }
}

impl FromStr for PathTemplate {
    type Err = InvalidTemplate;

    fn from_str(text: &str) -> Result<Self, InvalidTemplate> {
        let rest = text.strip_prefix('/').filter(|_| text.len() <= MAX_PATH).ok_or(InvalidTemplate::Start)?;
        let (fixed, below) = match rest.strip_suffix("**") {
            Some("") => {
                return Ok(Self { text: text.to_owned(), segments: Vec::new(), below: true });
            }
            Some(fixed) => (fixed.strip_suffix('/').ok_or(InvalidTemplate::Star)?, true),
            None => (rest, false),
        };
        let mut segments = Vec::new();
        let count = fixed.split('/').count();
        for (index, segment) in fixed.split('/').enumerate() {
            if segment.contains('*') {
                return Err(InvalidTemplate::Star);
            }
            let placeholder = segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
            if let Some(name) = placeholder {
                let word = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
                if name.is_empty() || !word {
                    return Err(InvalidTemplate::Placeholder);
                }
                segments.push(Segment::One);
                continue;
            }
            if segment.contains(['{', '}']) {
                return Err(InvalidTemplate::Placeholder);
            }
            // A trailing slash is a last, empty segment; `/` alone is one too.
            let last = index + 1 == count && !below;
            if !(is_normal_segment(segment) || (segment.is_empty() && last)) {
                return Err(InvalidTemplate::Segment);
            }
            segments.push(Segment::Literal(segment.to_owned()));
        }
        Ok(Self { text: text.to_owned(), segments, below })
    }
}

impl fmt::Display for PathTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Whether a request path is in the form in which requests are judged and forwarded: begins with `/`, no
/// empty segment but the last, no `.` or `..`, unreserved characters bare, `%XX` in upper case and never an
/// encoded slash, backslash or NUL, no parameters, no query.
#[must_use]
pub fn is_normal_path(path: &str) -> bool {
    let Some(rest) = path.strip_prefix('/') else { return false };
    if path.len() > MAX_PATH {
        return false;
    }
    let count = rest.split('/').count();
    rest.split('/')
        .enumerate()
        .all(|(index, segment)| is_normal_segment(segment) || (segment.is_empty() && index + 1 == count))
}

fn is_normal_segment(segment: &str) -> bool {
    if matches!(segment, "" | "." | "..") {
        return false;
    }
    let bytes = segment.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let byte = bytes[at];
        if byte == b'%' {
            let hex = |b: u8| (b as char).to_digit(16).filter(|_| !b.is_ascii_lowercase());
            let (Some(high), Some(low)) =
                (bytes.get(at + 1).copied().and_then(hex), bytes.get(at + 2).copied().and_then(hex))
            else {
                return false;
            };
            let decoded = u8::try_from(high * 16 + low).unwrap_or(0);
            let unreserved = decoded.is_ascii_alphanumeric() || matches!(decoded, b'-' | b'.' | b'_' | b'~');
            // `%25` would let a second decoder see another path.
            if unreserved || matches!(decoded, 0 | b'/' | b'\\' | b'%') {
                return false;
            }
            at += 3;
            continue;
        }
        // pchar of RFC 3986 section 3.3, without `;`.
        let plain = byte.is_ascii_alphanumeric()
            || matches!(
                byte,
                b'-' | b'.'
                    | b'_'
                    | b'~'
                    | b'!'
                    | b'$'
                    | b'&'
                    | b'\''
                    | b'('
                    | b')'
                    | b'*'
                    | b'+'
                    | b','
                    | b'='
                    | b':'
                    | b'@'
            );
        if !plain {
            return false;
        }
        at += 1;
    }
    true
}

#[cfg(test)]
mod tests;
