//! A program of its own that opens connections and listens as it is told, so that it can be put into a cgroup: the running test
//! program once more, under another first argument. One line asks, one line answers.

use std::fmt::Display;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use socket2::{Domain, Socket, Type};

use crate::cgroup::Cgroup;
use crate::namespace::Namespace;

/// The first argument of a program that is an agent.
const FLAG: &str = "--as-agent";
/// How long an agent waits for an answer that ought to come before it says `silence`.
const PATIENCE: Duration = Duration::from_secs(15);
/// The same for one that ought not to.
const SILENCE: Duration = Duration::from_secs(1);

/// A program that does what it is told.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Agent {
    /// Starts one in the namespace and, before it does anything, in the cgroup. What it serves answers with `name`.
    pub fn start(namespace: &Namespace, cgroup: Option<&Cgroup>, name: &str) -> Result<Self> {
        Self::start_as(namespace, cgroup, name, 0)
    }

    /// The same as another user, which takes real root.
    pub fn start_as(namespace: &Namespace, cgroup: Option<&Cgroup>, name: &str, user: u32) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args([FLAG, name, &user.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = namespace.spawn(&mut command)?;
        let (orders, answers) = (child.stdin.take().context("stdin")?, child.stdout.take().context("stdout")?);
        let agent = Self { child, orders, answers: BufReader::new(answers) };
        if let Some(cgroup) = cgroup {
            cgroup.take(agent.child.id())?;
        }
        Ok(agent)
    }

    fn ask(&mut self, order: &str) -> Result<String> {
        writeln!(self.orders, "{order}").context("the agent has gone")?;
        let mut answer = String::new();
        ensure!(self.answers.read_line(&mut answer)? > 0, "the agent has gone");
        Ok(answer.trim().to_owned())
    }

    /// Connects over TCP, from `source` where there is one: `<who answers> sees <address>`, or the error's name.
    pub fn connect(&mut self, source: Option<IpAddr>, to: SocketAddr) -> Result<String> {
        self.ask(&format!("tcp {} {to}", word(source)))
    }

    /// The same where no answer is expected.
    pub fn try_connect(&mut self, source: Option<IpAddr>, to: SocketAddr) -> Result<String> {
        self.ask(&format!("try-tcp {} {to}", word(source)))
    }

    /// Asks over UDP; as [`Self::connect`].
    pub fn ask_udp(&mut self, source: Option<IpAddr>, to: SocketAddr) -> Result<String> {
        self.ask(&format!("udp {} {to}", word(source)))
    }

    /// The same where no answer is expected. That nothing was heard is for the listener to say.
    pub fn try_udp(&mut self, source: Option<IpAddr>, to: SocketAddr) -> Result<String> {
        self.ask(&format!("try-udp {} {to}", word(source)))
    }

    /// As [`Self::try_udp`], from this very port.
    pub fn try_udp_from(&mut self, source: SocketAddr, to: SocketAddr) -> Result<String> {
        self.ask(&format!("try-udp {source} {to}"))
    }

    /// As [`Self::ask_udp`], from this very port.
    pub fn ask_udp_from(&mut self, source: SocketAddr, to: SocketAddr) -> Result<String> {
        self.ask(&format!("udp {source} {to}"))
    }

    /// Serves TCP and UDP at this address.
    pub fn serve(&mut self, at: SocketAddr) -> Result<()> {
        match self.ask(&format!("serve {at}"))?.as_str() {
            "ok" => Ok(()),
            error => bail!("serve {at}: {error}"),
        }
    }

    /// How many connections and datagrams it was given so far.
    pub fn heard(&mut self) -> Result<usize> {
        Ok(self.ask("heard")?.parse()?)
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it.
    pub fn end(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn word(address: Option<IpAddr>) -> String {
    address.map_or_else(|| "-".to_owned(), |address| address.to_string())
}

/// Is the agent if this program was started as one, and then does not come back. The first thing in `main`.
pub fn be_one_if_asked() {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() != Some(FLAG) {
        return;
    }
    let name = arguments.next().unwrap_or_default();
    let user: u32 = arguments.next().and_then(|user| user.parse().ok()).unwrap_or(0);
    // Before there is a socket or a thread: both keep the user that they were made by.
    if user != 0 && nix::unistd::setuid(user.into()).is_err() {
        std::process::exit(1);
    }
    let heard = Arc::new(AtomicUsize::new(0));
    for order in io::stdin().lines().map_while(Result::ok) {
        let answer = obey(&order, &name, &heard).unwrap_or_else(|error| said(&error));
        let mut out = io::stdout().lock();
        if writeln!(out, "{answer}").and_then(|()| out.flush()).is_err() {
            break;
        }
    }
    std::process::exit(0);
}

fn obey(order: &str, name: &str, heard: &Arc<AtomicUsize>) -> io::Result<String> {
    let mut words = order.split(' ');
    let (what, first, second) = (words.next(), words.next().unwrap_or("-"), words.next().unwrap_or("-"));
    let invalid = |error: &dyn Display| io::Error::new(io::ErrorKind::InvalidInput, error.to_string());
    let address = |text: &str| text.parse::<SocketAddr>().map_err(|error| invalid(&error));
    let socket = |kind| {
        let to = address(second)?;
        let socket = Socket::new(Domain::for_address(to), kind, None)?;
        if first != "-" {
            let source = first.parse::<IpAddr>().map(|source| (source, 0).into()).or_else(|_| address(first))?;
            socket.bind(&source.into())?;
        }
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok::<_, io::Error>((socket, to))
    };
    let mut answer = [0; 256];
    match what {
        Some(kind @ ("tcp" | "try-tcp")) => {
            let (socket, to) = socket(Type::STREAM)?;
            socket.connect_timeout(&to.into(), if kind == "tcp" { PATIENCE } else { SILENCE })?;
            let mut stream = TcpStream::from(socket);
            stream.write_all(b"?")?;
            let length = stream.read(&mut answer)?;
            Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
        }
        Some(kind @ ("udp" | "try-udp")) => {
            let (socket, to) = socket(Type::DGRAM)?;
            socket.set_read_timeout(Some(if kind == "udp" { PATIENCE } else { SILENCE }))?;
            let socket = UdpSocket::from(socket);
            socket.send_to(b"?", to)?;
            let (length, _) = socket.recv_from(&mut answer)?;
            Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
        }
        Some("serve") => {
            let at = address(first)?;
            let (tcp, udp) = (TcpListener::bind(at)?, UdpSocket::bind(at)?);
            let (one, other) = ((name.to_owned(), Arc::clone(heard)), (name.to_owned(), Arc::clone(heard)));
            std::thread::spawn(move || {
                for stream in tcp.incoming().flatten() {
                    one.1.fetch_add(1, Ordering::SeqCst);
                    let _ = greet_tcp(stream, &one.0);
                }
            });
            std::thread::spawn(move || {
                while let Ok((_, from)) = udp.recv_from(&mut [0; 256]) {
                    other.1.fetch_add(1, Ordering::SeqCst);
                    let _ = udp.send_to(format!("{} sees {}", other.0, from.ip().to_canonical()).as_bytes(), from);
                }
            });
            Ok("ok".to_owned())
        }
        Some("heard") => Ok(heard.load(Ordering::SeqCst).to_string()),
        _ => Ok(format!("no order: {order}")),
    }
}

fn greet_tcp(mut stream: TcpStream, name: &str) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let from = stream.peer_addr()?.ip().to_canonical();
    stream.read_exact(&mut [0])?;
    stream.write_all(format!("{name} sees {from}").as_bytes())
}

fn said(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "silence".to_owned(),
        io::ErrorKind::ConnectionRefused => "refused".to_owned(),
        io::ErrorKind::PermissionDenied => "not permitted".to_owned(),
        _ => format!("error: {error}"),
    }
}
