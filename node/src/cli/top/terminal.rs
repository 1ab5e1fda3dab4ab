//! The terminal while the view is up: another screen, no echo, keys one by one. Whatever ends the view, a panic or a
//! signal to stop included, puts the terminal back as it was found.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};

use rustix::process::{Signal, getpid, kill_process};
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::mpsc;

/// Another screen, cursor off, no wrapping of long lines.
const ENTER: &[u8] = b"\x1b[?1049h\x1b[?25l\x1b[?7l";
/// Colours off, wrapping and cursor on, the first screen.
const LEAVE: &[u8] = b"\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l";
/// What is drawn on where the terminal does not say how large it is.
const USUAL: (usize, usize) = (80, 24);

/// Reads of keys that may wait while a frame is drawn.
const READS: usize = 16;

/// How the terminal was found, while it is not so. The panic hook needs it as well.
static FOUND: Mutex<Option<Termios>> = Mutex::new(None);

/// Whether there is a person at both ends, and a terminal that can be redrawn.
pub(super) fn is_interactive() -> bool {
    let dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    !dumb && io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// A key that means something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    /// q, Ctrl-C or Ctrl-D.
    Quit,
    /// Ctrl-Z.
    Suspend,
    /// One line up.
    Up,
    /// One line down.
    Down,
    /// Any other character.
    Char(char),
}

/// The terminal in the view's state. Dropping it puts everything back.
pub(super) struct Terminal {
    keys: mpsc::Receiver<io::Result<Vec<Key>>>,
}

impl Terminal {
    pub(super) fn enter() -> io::Result<Self> {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            // First the screen, so that the message is on the one that stays.
            let _ = leave();
            before(panic);
        }));
        // From here on dropping it puts everything back.
        let (send, keys) = mpsc::channel(READS);
        let terminal = Self { keys };
        enter()?;
        // Ends with the process: a read that waits for a key cannot be called back.
        std::thread::Builder::new().name("warren-keys".to_owned()).spawn(move || read_keys(&send))?;
        Ok(terminal)
    }

    /// Columns and rows, now.
    pub(super) fn size(&self) -> (usize, usize) {
        match tcgetwinsize(io::stdout()) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
            _ => USUAL,
        }
    }

    /// Draws the lines from the top, over what was there, in one write.
    pub(super) fn draw(&self, lines: &[String]) -> io::Result<()> {
        let mut frame = String::from("\x1b[H");
        for (number, line) in lines.iter().enumerate() {
            if number > 0 {
                frame.push_str("\r\n");
            }
            frame.push_str(line);
            frame.push_str("\x1b[K");
        }
        frame.push_str("\x1b[J");
        put(frame.as_bytes())
    }

    /// Waits for keys. The end of the input is a wish to quit.
    pub(super) async fn keys(&mut self) -> io::Result<Vec<Key>> {
        self.keys.recv().await.unwrap_or_else(|| Ok(vec![Key::Quit]))
    }

    /// Leaves the terminal to the shell. Nothing may be drawn before [`Self::resume`], which SIGCONT asks for.
    pub(super) fn suspend(&self) -> io::Result<()> {
        leave()?;
        Ok(kill_process(getpid(), Signal::STOP)?)
    }

    /// Takes the terminal again.
    pub(super) fn resume(&self) -> io::Result<()> {
        enter()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing put back.
        let _ = leave();
    }
}

fn read_keys(send: &mpsc::Sender<io::Result<Vec<Key>>>) {
    let mut bytes = [0; 64];
    loop {
        // Not through std's buffer: what a person types must not wait for a line's end.
        let keys = match rustix::io::read(io::stdin(), &mut bytes) {
            Ok(0) => return,
            Ok(length) => Ok(keys_of(bytes.get(..length).unwrap_or_default())),
            Err(rustix::io::Errno::INTR) => continue,
            Err(errno) => Err(errno.into()),
        };
        let failed = keys.is_err();
        if send.blocking_send(keys).is_err() || failed {
            return;
        }
    }
}

fn enter() -> io::Result<()> {
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    // A shell that stopped and resumed us has put in its own modes; what was found at first is what is put back.
    let before = match found.take() {
        Some(before) => before,
        None => tcgetattr(io::stdin())?,
    };
    let mut modes = before.clone();
    modes.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG | LocalModes::IEXTEN);
    modes.special_codes[SpecialCodeIndex::VMIN] = 1;
    modes.special_codes[SpecialCodeIndex::VTIME] = 0;
    *found = Some(before);
    tcsetattr(io::stdin(), OptionalActions::Now, &modes)?;
    put(ENTER)
}

fn leave() -> io::Result<()> {
    let before = FOUND.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(before) = before else { return Ok(()) };
    let screen = put(LEAVE);
    tcsetattr(io::stdin(), OptionalActions::Now, &before)?;
    screen
}

fn put(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

/// The keys in what was read at once. Sequences that mean nothing here are passed over whole.
fn keys_of(bytes: &[u8]) -> Vec<Key> {
    let mut keys = Vec::new();
    let mut rest = bytes;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match *first {
            3 | 4 | b'q' | b'Q' => keys.push(Key::Quit),
            26 => keys.push(Key::Suspend),
            0x1b => {
                if let [b'[' | b'O', tail @ ..] = after {
                    let end = tail.iter().position(|byte| (0x40..=0x7e).contains(byte));
                    match end.and_then(|end| tail.get(end)) {
                        Some(b'A') => keys.push(Key::Up),
                        Some(b'B') => keys.push(Key::Down),
                        _ => {}
                    }
                    rest = end.and_then(|end| tail.get(end + 1..)).unwrap_or_default();
                }
            }
            b'k' => keys.push(Key::Up),
            b'j' => keys.push(Key::Down),
            byte if byte.is_ascii_graphic() || byte == b' ' => keys.push(Key::Char(byte.into())),
            _ => {}
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_told_from_the_sequences_around_them() {
        assert_eq!(keys_of(b"\x1b[A\x1bOBd"), [Key::Up, Key::Down, Key::Char('d')]);
        assert_eq!(keys_of(b"\x1b[15~\x1b[1;5Cq"), [Key::Quit]);
        assert_eq!(keys_of(b"\x03"), [Key::Quit]);
        assert_eq!(keys_of(b"\x1a j"), [Key::Suspend, Key::Char(' '), Key::Down]);
    }

    #[test]
    fn broken_sequences_are_no_keys_and_no_panic() {
        for bytes in [b"\x1b".as_slice(), b"\x1b[", b"\x1b[1;", b"\xff\xc3", b"\0"] {
            assert_eq!(keys_of(bytes), [], "{bytes:?}");
        }
    }
}
