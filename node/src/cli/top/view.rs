//! What is drawn: pure, from an interval and the size of the screen to lines that fit it.

use clap::ValueEnum;

use super::sample::{Drops, Top, TopPeer};
use super::terminal::Key;
use crate::cli::output::{Present, Table, printable, spoken};
use crate::cli::units::{amount, bits_per_second, bytes};

/// What stands first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(super) enum Sort {
    /// In and out together.
    #[default]
    Traffic,
    /// What comes in.
    In,
    /// What goes out.
    Out,
    /// New drops, then all.
    Drops,
    /// The name.
    Name,
}

impl Sort {
    const fn name(self) -> &'static str {
        match self {
            Self::Traffic => "traffic",
            Self::In => "in",
            Self::Out => "out",
            Self::Drops => "drops",
            Self::Name => "name",
        }
    }

    /// Sorts: most first, equal ones by name.
    pub(super) fn apply(self, peers: &mut [TopPeer], reverse: bool) {
        let key = |peer: &TopPeer| match self {
            Self::Traffic => (peer.rates.bits_in.saturating_add(peer.rates.bits_out), 0),
            Self::In => (peer.rates.bits_in, 0),
            Self::Out => (peer.rates.bits_out, 0),
            Self::Drops => total(peer),
            Self::Name => (0, 0),
        };
        peers.sort_by(|a, b| {
            key(b).cmp(&key(a)).then_with(|| (&a.workload, &a.instance).cmp(&(&b.workload, &b.instance)))
        });
        if reverse {
            peers.reverse();
        }
    }
}

/// Drops of a peer: new ones, all.
fn total(peer: &TopPeer) -> (u64, u64) {
    peer.drops.values().fold((0, 0), |(new, all), drops| (new + drops.new, all + drops.total))
}

/// What the person has chosen to see.
#[derive(Debug)]
pub(super) struct View {
    sort: Sort,
    reverse: bool,
    held: bool,
    first: usize,
    coloured: bool,
}

/// A column: heading, least width (it grows with what stands in it), and whether figures stand at its right.
struct Column {
    heading: &'static str,
    width: usize,
    right: bool,
    cell: fn(&TopPeer) -> String,
}

/// In the order in which they are kept when the screen is narrow.
const COLUMNS: [Column; 9] = [
    Column { heading: "PEER", width: 18, right: false, cell: |peer| peer.workload.clone() },
    Column { heading: "IN", width: 12, right: true, cell: |peer| bits_per_second(peer.rates.bits_in) },
    Column { heading: "OUT", width: 12, right: true, cell: |peer| bits_per_second(peer.rates.bits_out) },
    Column { heading: "DROPPED", width: 8, right: true, cell: |peer| amount(total(peer).1) },
    Column { heading: "SESSION", width: 10, right: false, cell: |peer| peer.session.clone() },
    Column {
        heading: "PK/S IN/OUT",
        width: 13,
        right: true,
        cell: |peer| format!("{}/{}", amount(peer.rates.packets_in), amount(peer.rates.packets_out)),
    },
    Column {
        heading: "PATH",
        width: 22,
        right: false,
        cell: |peer| {
            let endpoint = peer.endpoint.map_or_else(|| "-".to_owned(), |endpoint| endpoint.to_string());
            let mtu = peer.path_mtu.map(|mtu| format!(" {mtu}")).unwrap_or_default();
            let moved = peer
                .roamed
                .as_ref()
                .map(|roamed| format!(" moved {} ago", spoken(std::time::Duration::from_secs(roamed.seconds_ago))));
            format!("{endpoint}{mtu}{}", moved.unwrap_or_default())
        },
    },
    Column { heading: "SUITE", width: 17, right: false, cell: |peer| peer.suite.clone().unwrap_or_else(|| "-".into()) },
    Column {
        heading: "TOTAL IN/OUT",
        width: 19,
        right: true,
        cell: |peer| format!("{}/{}", bytes(peer.traffic.bytes_in), bytes(peer.traffic.bytes_out)),
    },
];

/// Most of a peer's name that is shown where it would push out figures.
const LONGEST_NAME: usize = 40;
/// Most reasons that the view shows; `warren status` has all.
const REASONS: usize = 5;

impl View {
    pub(super) const fn new(sort: Sort, coloured: bool) -> Self {
        Self { sort, reverse: false, held: false, first: 0, coloured }
    }

    /// Nothing new is to be shown.
    pub(super) const fn is_held(&self) -> bool {
        self.held
    }

    pub(super) fn press(&mut self, key: Key) {
        match key {
            Key::Up => self.first = self.first.saturating_sub(1),
            Key::Down => self.first = self.first.saturating_add(1),
            Key::Char('t') => self.sort = Sort::Traffic,
            Key::Char('i') => self.sort = Sort::In,
            Key::Char('o') => self.sort = Sort::Out,
            Key::Char('d') => self.sort = Sort::Drops,
            Key::Char('n') => self.sort = Sort::Name,
            Key::Char('r') => self.reverse = !self.reverse,
            Key::Char(' ') => self.held = !self.held,
            Key::Char(_) | Key::Quit | Key::Suspend => {}
        }
    }

    /// The lines of an interval, no more and no longer than the screen.
    pub(super) fn frame(&mut self, top: &Top, (width, height): (usize, usize)) -> Vec<String> {
        let mut head = self.head(top);
        let mut peers = top.peers.clone();
        self.sort.apply(&mut peers, self.reverse);
        // Peers have at least half of the screen; what the head loses first stands last in it.
        head.truncate((height / 2).max(1));
        let room = height.saturating_sub(head.len() + 3).max(1);
        self.first = self.first.min(peers.len().saturating_sub(room));
        let mut lines = head;
        lines.push(String::new());
        let shown = &peers[self.first..(self.first + room).min(peers.len())];
        let columns = fitting(shown, width);
        lines.push(self.heading(&row(&columns, |column| column.heading.to_owned()), width));
        if peers.is_empty() {
            lines.push("no peers: no rule links this node to another".to_owned());
        }
        lines.extend(shown.iter().map(|peer| row(&columns, |column| (column.cell)(peer))));
        lines.truncate(height.saturating_sub(1));
        while lines.len() + 1 < height {
            lines.push(String::new());
        }
        lines.push(self.foot(peers.len(), room));
        lines.truncate(height);
        lines.into_iter().map(|line| self.cut(&line, width)).collect()
    }

    /// The lines while the daemon does not answer.
    pub(super) fn lost(&self, cause: &str, (width, height): (usize, usize)) -> Vec<String> {
        let lines = [format!("warren top: {}", printable(cause)), "waiting for it to come back; q quits".to_owned()];
        lines.into_iter().take(height).map(|line| self.cut(&line, width)).collect()
    }

    fn head(&self, top: &Top) -> Vec<String> {
        let state = if top.ready { "ready" } else { "not ready" };
        let mut lines = vec![
            format!("warren top  {}  {}  {state}  {} flows", top.time, printable(&top.node), top.flows),
            format!(
                "in  {:>12} {:>6} packets/s  {:>9} since the start",
                bits_per_second(top.rates.bits_in),
                amount(top.rates.packets_in),
                bytes(top.traffic.bytes_in)
            ),
            format!(
                "out {:>12} {:>6} packets/s  {:>9} since the start",
                bits_per_second(top.rates.bits_out),
                amount(top.rates.packets_out),
                bytes(top.traffic.bytes_out)
            ),
        ];
        let used: Vec<_> = top.offloads.iter().filter(|offload| offload.on).map(|offload| &*offload.name).collect();
        let used = if used.is_empty() { "none".to_owned() } else { used.join(" ") };
        let off: Vec<_> = top
            .offloads
            .iter()
            .filter(|offload| !offload.on)
            .map(|offload| format!("; {} {}", offload.name, printable(&offload.detail)))
            .collect();
        lines.push(format!("offloads {used}{}", off.concat()));
        lines.extend(worst(top).map(|(reason, drops)| {
            format!("dropped {:>8} {:>6}/s  {reason}", amount(drops.total), amount(drops.per_second))
        }));
        lines.extend(top.notes.iter().map(|note| format!("note: {}", printable(note))));
        lines
    }

    fn heading(&self, text: &str, width: usize) -> String {
        // Reversed over the whole line where the terminal may be coloured; capitals say the same.
        if self.coloured { format!("\x1b[7m{text:<width$}") } else { text.to_owned() }
    }

    fn foot(&self, peers: usize, room: usize) -> String {
        let order = if self.reverse { ", reversed" } else { "" };
        let held = if self.held { "HELD  " } else { "" };
        let place = if peers > room {
            format!("{}-{} of {peers}  ", self.first + 1, (self.first + room).min(peers))
        } else {
            String::new()
        };
        format!(
            "{held}{place}by {}{order}  t i o d n sort  r reverse  j k scroll  space hold  q quit",
            self.sort.name()
        )
    }

    /// The line cut to the screen, colours closed.
    fn cut(&self, line: &str, width: usize) -> String {
        let mut cut = String::new();
        let mut columns = 0;
        let mut escape = false;
        for c in line.chars() {
            escape |= c == '\x1b';
            if !escape {
                if columns == width {
                    break;
                }
                columns += 1;
            }
            cut.push(c);
            escape &= !c.is_ascii_alphabetic();
        }
        if cut.contains('\x1b') {
            cut.push_str("\x1b[0m");
        }
        cut
    }
}

/// The reasons that drop most now, then those that have dropped most.
fn worst(top: &Top) -> impl Iterator<Item = (&'static str, Drops)> {
    let mut all: Vec<_> = top.drops.iter().map(|(reason, drops)| (reason.name(), *drops)).collect();
    all.sort_by_key(|(_, drops)| std::cmp::Reverse((drops.new, drops.total)));
    all.into_iter().take(REASONS)
}

/// The columns that fit, with their widths. At least names are shown.
fn fitting(peers: &[TopPeer], width: usize) -> Vec<(&'static Column, usize)> {
    let mut columns: Vec<(&Column, usize)> = Vec::new();
    let mut used = 0;
    for column in &COLUMNS {
        let longest = peers.iter().map(|peer| printable(&(column.cell)(peer)).chars().count()).max().unwrap_or(0);
        let own = longest.max(column.width);
        let (gap, own) = if columns.is_empty() { (0, own.min(LONGEST_NAME)) } else { (2, own) };
        if !columns.is_empty() && used + gap + own > width {
            break;
        }
        used += gap + own;
        columns.push((column, own));
    }
    columns
}

fn row(columns: &[(&Column, usize)], cell: impl Fn(&Column) -> String) -> String {
    let cells = columns.iter().map(|(column, width)| {
        let text: String = printable(&cell(column)).chars().take(*width).collect();
        if column.right { format!("{text:>width$}") } else { format!("{text:<width$}") }
    });
    cells.collect::<Vec<_>>().join("  ")
}

/// An interval as lines for a log: the node, then every peer, the same fields in each.
pub(super) fn lines(top: &Top) -> String {
    let mut text = String::new();
    let mut line = |name: &str, rates: &crate::local_api::types::Rates, drops: String| {
        text.push_str(&format!(
            "{} {} in {} bit/s {} packets/s out {} bit/s {} packets/s dropped {drops}\n",
            top.time,
            printable(name),
            rates.bits_in,
            rates.packets_in,
            rates.bits_out,
            rates.packets_out
        ));
    };
    line("all", &top.rates, named(&top.drops));
    for peer in &top.peers {
        line(&peer.workload, &peer.rates, named(&peer.drops));
    }
    text
}

/// What was dropped in the interval, by reason.
fn named(drops: &std::collections::BTreeMap<warren_proto::Reason, Drops>) -> String {
    let new: Vec<_> = drops
        .iter()
        .filter(|(_, drops)| drops.new > 0)
        .map(|(reason, drops)| format!("{}={}", reason.name(), drops.new))
        .collect();
    if new.is_empty() { "0".to_owned() } else { new.join(",") }
}

impl Present for Top {
    const KIND: &'static str = "Top";

    fn text(&self, wide: bool) -> String {
        let head = View::new(Sort::Traffic, false).head(self).join("\n");
        let mut table = Table::new(COLUMNS.each_ref().map(|column| column.heading));
        for peer in &self.peers {
            table.row(COLUMNS.iter().map(|column| (column.cell)(peer)));
        }
        let mut text = format!("{head}\n\n{table}");
        if wide {
            let mut drops = Table::new(["PEER", "DROPPED FOR", "PACKETS", "PER SECOND"]);
            for peer in &self.peers {
                for (reason, count) in &peer.drops {
                    let (total, rate) = (count.total.to_string(), count.per_second.to_string());
                    drops.row([&peer.workload, reason.name(), &total, &rate]);
                }
            }
            text.push_str(&format!("\n\n{drops}"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::Sampler;
    use super::super::sample::tests::status;
    use super::*;

    fn top() -> Top {
        Sampler::new(status(1_000, 0, 0)).next(status(2_000, 1_500_000, 12))
    }

    #[test]
    fn the_view_names_throughput_drops_path_suite_and_offloads() {
        let text = View::new(Sort::Traffic, false).frame(&top(), (200, 24)).join("\n");
        for part in [
            "12.0 Mbit/s",
            "no-rule",
            "198.51.100.2:51820 1420",
            "aes-256-gcm",
            "offloads none; gso off by tunnel.offload.gso",
            "shop/web-frontend",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn every_frame_fits_its_screen() {
        let mut top = top();
        let peer = top.peers[0].clone();
        top.peers = (0..500).map(|n| TopPeer { instance: n.to_string(), ..peer.clone() }).collect();
        for coloured in [false, true] {
            let mut view = View::new(Sort::Drops, coloured);
            for (width, height) in [(200, 50), (80, 24), (40, 10), (20, 5), (10, 3), (1, 1), (3, 2), (0, 0)] {
                view.press(Key::Down);
                let frame = view.frame(&top, (width, height));
                assert!(frame.len() <= height, "{width}x{height}: {} lines", frame.len());
                for line in &frame {
                    let plain = line.replace("\x1b[7m", "").replace("\x1b[0m", "");
                    assert!(plain.chars().count() <= width, "{width}x{height}: {plain:?}");
                }
            }
        }
    }

    #[test]
    fn without_colour_there_is_no_escape_and_a_hostile_name_brings_none() {
        let mut top = top();
        top.peers[0].workload = "\x1b[2Jgone".into();
        top.notes.push("\x1b]0;title\x07".into());
        let mut view = View::new(Sort::Traffic, false);
        let text =
            [view.frame(&top, (120, 30)), view.lost("\x1b[2J", (80, 24)), vec![lines(&top), top.text(true)]].concat();
        assert!(text.iter().all(|line| !line.contains('\x1b') && !line.contains('\x07')), "{text:?}");
    }

    #[test]
    fn keys_choose_the_order_and_scrolling_stops_at_the_last_peer() {
        let mut top = top();
        let peer = top.peers[0].clone();
        let named = |name: &str, bits_in, bits_out| {
            let rates = crate::local_api::types::Rates { bits_in, bits_out, ..peer.rates };
            TopPeer { workload: name.into(), rates, ..peer.clone() }
        };
        top.peers = vec![named("b", 5, 0), named("a", 0, 9), named("c", 4, 4)];
        let mut view = View::new(Sort::Traffic, false);
        let order = |view: &mut View, top: &Top| -> String {
            let frame = view.frame(top, (100, 30));
            let names = frame.iter().filter_map(|line| line.strip_prefix(['a', 'b', 'c']).map(|_| &line[..1]));
            names.filter(|_| true).collect()
        };
        // "by ..." at the foot begins with a b as well.
        let mut seen = |key: char| {
            view.press(Key::Char(key));
            order(&mut view, &top)[..3].to_owned()
        };
        assert_eq!(
            (seen('t'), seen('i'), seen('o'), seen('n')),
            ("acb".into(), "bca".into(), "acb".into(), "abc".into())
        );
        assert_eq!(seen('r'), "cba");
        for _ in 0..1000 {
            view.press(Key::Down);
        }
        assert!(view.frame(&top, (100, 10)).iter().any(|line| line.starts_with("a ")), "the last is still shown");
    }

    #[test]
    fn a_log_line_has_the_same_fields_for_the_node_and_each_peer() {
        let text = lines(&top());
        let fields: Vec<usize> = text.lines().map(|line| line.split(' ').count()).collect();
        assert_eq!(fields, [fields[0]; 2]);
        assert!(text.lines().all(|line| line.ends_with("dropped no-rule=12")), "{text}");
    }
}
