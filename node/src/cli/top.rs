//! `warren top`: what the tunnel carries and drops, live. On a terminal a view that is redrawn; elsewhere lines, or JSON
//! objects, one per interval.

mod sample;
mod terminal;
mod view;

use std::path::Path;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

use super::{Context, Exit, Failure, Format, Outcome, config};
use crate::local_api::client::ask_once;
use crate::local_api::types::{Request, Status};
use sample::{Sampler, Top};
use terminal::{Key, Terminal};
use view::{Sort, View};

/// Shorter intervals measure the asking, not the tunnel.
const SHORTEST: Duration = Duration::from_millis(100);

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Keys: t i o d n  sort by traffic, in, out, drops or name; r reverse; j k or arrows scroll; space hold; q quit.

IN is what was let into this host, OUT what was sealed for the peer, per second over the last interval. Without a terminal, or with TERM=dumb, each interval is printed as lines; with -o json as one object per line, with -o yaml as one document.

Examples:
  warren top
  warren top --once                        one interval, then the whole table
  warren top -i 5s > traffic.log
  warren top -o json | jq -c '[.time, .rates.bitsIn, .drops]'")]
pub(super) struct Arguments {
    /// Time between two looks: 500ms, 2s; at least 100ms.
    #[arg(short, long, value_name = "TIME", default_value = "1s", value_parser = parse_interval)]
    interval: Duration,
    /// Measure one interval, print it and end.
    #[arg(long)]
    once: bool,
    /// What stands first.
    #[arg(short, long, value_enum, default_value_t, value_name = "KEY")]
    sort: Sort,
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    parse_time(text)
        .ok()
        .filter(|interval| *interval >= SHORTEST)
        .ok_or_else(|| "not a time from 100ms to 3600s".to_owned())
}

/// A time with its unit, up to an hour: `500ms`, `30s`.
pub(super) fn parse_time(text: &str) -> Result<Duration, String> {
    let number = |digits: &str| digits.parse::<u32>().ok();
    let parsed = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(digits), _) => number(digits).map(|count| Duration::from_millis(count.into())),
        (None, Some(digits)) => number(digits).map(|count| Duration::from_secs(count.into())),
        (None, None) => None,
    };
    parsed
        .filter(|time| *time <= Duration::from_secs(3600))
        .ok_or_else(|| "not a time up to 3600s with its unit, ms or s".to_owned())
}

pub(super) fn run(arguments: Arguments, context: &Context) -> Outcome {
    let socket = config::load(context)?.config.socket;
    super::block_on(async move {
        let people = matches!(context.output.format(), Format::Table | Format::Wide);
        if people && !arguments.once && terminal::is_interactive() {
            live(&socket, &arguments, context.output.is_coloured()).await
        } else {
            stream(&socket, &arguments, context).await
        }
    })
}

async fn look(socket: &Path) -> Result<Status, Failure> {
    ask_once(socket, &Request::Status).await
}

/// One object, or one block of lines, per interval.
async fn stream(socket: &Path, arguments: &Arguments, context: &Context) -> Outcome {
    let mut sampler = Sampler::new(look(socket).await?);
    let mut ticks = interval(arguments.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let mut top = sampler.next(look(socket).await?);
        arguments.sort.apply(&mut top.peers, false);
        if arguments.once {
            context.output.print(&top)?;
            return Ok(Exit::Yes);
        }
        if matches!(context.output.format(), Format::Table | Format::Wide) {
            context.output.print_text(&view::lines(&top))?;
        } else {
            context.output.print_item(&top)?;
        }
        if context.output.reader_is_gone() {
            return Ok(Exit::Yes);
        }
    }
}

/// The view that is redrawn, until a key or a signal ends it. A daemon that goes away does not: it may come back.
async fn live(socket: &Path, arguments: &Arguments, coloured: bool) -> Outcome {
    // What is wrong from the start is told on an ordinary screen.
    let mut sampler = Sampler::new(look(socket).await?);
    let failed =
        |error: std::io::Error| Failure::new(Exit::Failed, "the terminal does not take the view").cause(&error);
    let mut terminal = Terminal::enter().map_err(failed)?;
    let mut resized = signal(SignalKind::window_change()).map_err(failed)?;
    let mut resumed = signal(SignalKind::from_raw(rustix::process::Signal::CONT.as_raw())).map_err(failed)?;
    let mut ended = Ends::new().map_err(failed)?;
    let mut ticks = interval(arguments.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    let mut view = View::new(arguments.sort, coloured);
    let mut shown: Result<Top, String> = Ok(sampler.empty());
    let mut suspended = false;
    loop {
        let frame = match &shown {
            Ok(top) => view.frame(top, terminal.size()),
            Err(cause) => view.lost(cause, terminal.size()),
        };
        if !suspended {
            terminal.draw(&frame).map_err(failed)?;
        }
        tokio::select! {
            _ = ticks.tick() => if !view.is_held() {
                shown = match look(socket).await {
                    Ok(status) => Ok(sampler.next(status)),
                    Err(failure) => Err(failure.what().to_owned()),
                };
            },
            keys = terminal.keys() => for key in keys.map_err(failed)? {
                match key {
                    Key::Quit => return Ok(Exit::Yes),
                    Key::Suspend => {
                        suspended = true;
                        terminal.suspend().map_err(failed)?;
                    }
                    key => view.press(key),
                }
            },
            _ = resized.recv() => {}
            _ = resumed.recv() => {
                suspended = false;
                terminal.resume().map_err(failed)?;
            }
            () = ended.recv() => return Ok(Exit::Yes),
        }
    }
}

/// The signals that end the view, so that the terminal is left as it was found.
struct Ends([tokio::signal::unix::Signal; 3]);

impl Ends {
    fn new() -> std::io::Result<Self> {
        Ok(Self([signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(SignalKind::hangup())?]))
    }

    async fn recv(&mut self) {
        let [terminate, interrupt, hangup] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_a_bounded_time_with_its_unit() {
        for (text, milliseconds) in [("1s", 1_000), ("100ms", 100), ("3600s", 3_600_000)] {
            assert_eq!(parse_interval(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "1", "s", "99ms", "0s", "3601s", "-1s", "1.5s", "99999999999s"] {
            assert!(parse_interval(text).is_err(), "{text}");
        }
    }
}
