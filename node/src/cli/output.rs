//! Output: stdout carries data, stderr carries talk. Machine formats are versioned and a promise: fields are
//! added within `warren/v1`, never renamed or removed.

use std::io::{IsTerminal, Write};

use clap::ValueEnum;
use comfy_table::{Cell, ContentArrangement, presets};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

use super::exit::Exit;
use super::failure::Failure;

/// Version of every JSON and YAML object that a command prints.
pub const API_VERSION: &str = "warren/v1";

/// `-o`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// Aligned columns for people.
    #[default]
    Table,
    /// As table, with the columns that are too wide for most terminals.
    Wide,
    /// One JSON object with apiVersion and kind.
    Json,
    /// The same object as YAML.
    Yaml,
}

/// `--color`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Colour {
    /// On a terminal, unless NO_COLOR is set or TERM is dumb.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Something a command can print.
pub trait Present: Serialize {
    /// The object's `kind` in JSON and YAML.
    const KIND: &'static str;

    /// The text for people; `wide` asks for every column.
    fn text(&self, wide: bool) -> String;
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Envelope<'a, T> {
    api_version: &'static str,
    kind: &'static str,
    #[serde(flatten)]
    value: &'a T,
}

/// Where a command's output goes and in which form.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    format: Format,
    colour: bool,
}

impl Output {
    /// Decides colour once; nothing else asks about the terminal.
    #[must_use]
    pub fn new(format: Format, colour: Colour) -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty())
            || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let colour = match colour {
            Colour::Always => true,
            Colour::Never => false,
            Colour::Auto => !plain && std::io::stdout().is_terminal(),
        };
        Self { format, colour }
    }

    /// The form asked for.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// Prints one object to stdout in the form asked for.
    pub fn print<T: Present>(&self, value: &T) -> Result<(), Failure> {
        let text = match self.format {
            Format::Table => self.paint(&value.text(false)),
            Format::Wide => self.paint(&value.text(true)),
            Format::Json => serde_json::to_string_pretty(&envelope(value)).map_err(|e| unprintable(&e))?,
            Format::Yaml => serde_saphyr::to_string(&envelope(value)).map_err(|e| unprintable(&e))?,
        };
        write_line(&text)
    }

    /// Prints one object of a stream: one line of JSON, one YAML document, or its text.
    pub fn print_item<T: Present>(&self, value: &T) -> Result<(), Failure> {
        match self.format {
            Format::Table => write_line(&self.paint(&value.text(false))),
            Format::Wide => write_line(&self.paint(&value.text(true))),
            Format::Json => write_line(&serde_json::to_string(&envelope(value)).map_err(|e| unprintable(&e))?),
            Format::Yaml => {
                write_line(&format!("---\n{}", serde_saphyr::to_string(&envelope(value)).map_err(|e| unprintable(&e))?))
            }
        }
    }

    /// Whether what is printed may be coloured.
    #[must_use]
    pub fn is_coloured(&self) -> bool {
        self.colour
    }

    /// Whether whoever read stdout has gone, as in `… | head`: a stream ends then.
    #[must_use]
    pub fn reader_is_gone(&self) -> bool {
        let out = std::io::stdout();
        let mut polled = [PollFd::new(&out, PollFlags::empty())];
        poll(&mut polled, Some(&Timespec::default())).is_ok()
            && polled[0].revents().intersects(PollFlags::ERR | PollFlags::NVAL)
    }

    /// Prints lines that are the same in every form for people.
    pub fn print_text(&self, text: &str) -> Result<(), Failure> {
        write_line(text)
    }

    /// Says something to the person at stderr. Scripts never need it.
    pub fn say(&self, text: impl AsRef<str>) {
        // A closed stderr is no reason to fail the command.
        let _ = writeln!(std::io::stderr(), "{}", text.as_ref());
    }

    /// Colours the verdict words at the start of a table's cells; words never depend on colour.
    fn paint(&self, text: &str) -> String {
        if !self.colour {
            return text.to_owned();
        }
        const WORDS: [(&str, &str); 7] = [
            ("ok", "32"),
            ("allow", "32"),
            ("allowed", "32"),
            ("warn", "33"),
            ("fail", "31"),
            ("deny", "31"),
            ("denied", "31"),
        ];
        text.split_inclusive(['\n', ' '])
            .map(|piece| {
                let word = piece.trim_end();
                match WORDS.iter().find(|(known, _)| *known == word) {
                    Some((_, code)) => format!("\x1b[{code}m{word}\x1b[0m{}", &piece[word.len()..]),
                    None => piece.to_owned(),
                }
            })
            .collect()
    }
}

fn envelope<T: Present>(value: &T) -> Envelope<'_, T> {
    Envelope { api_version: API_VERSION, kind: T::KIND, value }
}

fn unprintable(error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::new(Exit::Failed, "the answer cannot be written in this form").cause(error).next("try -o table")
}

fn write_line(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let written =
        out.write_all(text.trim_end().as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush());
    match written {
        // `warren … | head` closes early; that is no failure of ours.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::new(Exit::Failed, "stdout does not take the answer").cause(&error)),
        Ok(()) => Ok(()),
    }
}

/// Aligned columns without rules, as people pipe them to awk.
#[derive(Debug)]
pub struct Table(comfy_table::Table);

impl Table {
    /// A table with these headings.
    #[must_use]
    pub fn new<const N: usize>(headings: [&str; N]) -> Self {
        let mut table = comfy_table::Table::new();
        table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(headings);
        Self(table)
    }

    /// Adds a row. Control characters in names that came over a wire are shown, not obeyed.
    pub fn row<I>(&mut self, cells: I)
    where
        I: IntoIterator,
        I::Item: ToString,
    {
        self.0.add_row(cells.into_iter().map(|cell| Cell::new(printable(&cell.to_string()))));
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (number, line) in self.0.lines().enumerate() {
            let separator = if number == 0 { "" } else { "\n" };
            // The empty preset pads each cell on both sides.
            write!(f, "{separator}{}", line.strip_prefix(' ').unwrap_or(&line).trim_end())?;
        }
        Ok(())
    }
}

/// The text with control characters escaped, so that a name cannot move the terminal's cursor.
#[must_use]
pub fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}

/// A duration as people say it, in its two largest units: `3 d 4 h`, `2 min 5 s`, `0 s`.
#[must_use]
pub fn spoken(duration: std::time::Duration) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")];
    let mut rest = duration.as_secs();
    let mut parts = Vec::new();
    for (size, name) in UNITS {
        let count = rest / size;
        rest %= size;
        if count > 0 || (!parts.is_empty() && rest > 0) {
            parts.push(format!("{count} {name}"));
        }
        if parts.len() == 2 {
            break;
        }
    }
    if parts.is_empty() { "0 s".to_owned() } else { parts.join(" ") }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[derive(Serialize)]
    struct Sample {
        name: &'static str,
    }

    impl Present for Sample {
        const KIND: &'static str = "Sample";

        fn text(&self, _wide: bool) -> String {
            self.name.to_owned()
        }
    }

    #[test]
    fn machine_output_carries_version_and_kind_beside_the_fields() {
        let json = serde_json::to_value(envelope(&Sample { name: "a" })).expect("json");
        assert_eq!(json, serde_json::json!({ "apiVersion": "warren/v1", "kind": "Sample", "name": "a" }));
    }

    #[test]
    fn columns_align_and_carry_no_trailing_blanks() {
        let mut table = Table::new(["NAME", "STATE"]);
        table.row(["bank/banking-api", "up"]);
        table.row(["x", "down"]);
        assert_eq!(table.to_string(), "NAME              STATE\nbank/banking-api  up\nx                 down");
    }

    #[test]
    fn a_hostile_name_cannot_move_the_cursor() {
        let mut table = Table::new(["NAME"]);
        table.row(["\x1b[2Jgone\nfake"]);
        assert!(!table.to_string().contains('\x1b'));
        assert_eq!(table.to_string().lines().count(), 2);
    }

    #[test]
    fn durations_are_said_in_their_two_largest_units() {
        for (seconds, text) in
            [(0, "0 s"), (59, "59 s"), (125, "2 min 5 s"), (3_600, "1 h"), (86_405, "1 d 0 h"), (90_000, "1 d 1 h")]
        {
            assert_eq!(spoken(Duration::from_secs(seconds)), text, "{seconds}");
        }
    }
}
