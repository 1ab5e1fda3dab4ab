//! The netlink message format (RFC 3549) for the few requests that warren makes: headers, attributes, nesting,
//! acknowledgements, dumps and nfnetlink batches. Synchronous: the kernel answers a request before `send` returns.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::{Socket, SocketAddr};
use rustix::net::sockopt;

const HEADER: usize = 16;
const ALIGNMENT: usize = 4;
/// Larger than any message the kernel puts into one datagram of a dump (it uses at most 32 KiB).
const RECEIVE_BUFFER: usize = 64 * 1024;
/// What the kernel takes of a send buffer beside the datagram itself.
const OVERHEAD: usize = 4096;
/// A dump is repeated when the kernel says that its subject changed meanwhile.
const DUMP_ATTEMPTS: usize = 8;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const FLAG_REQUEST: u16 = 0x1;
const FLAG_ACK: u16 = 0x4;
const FLAG_DUMP_INTERRUPTED: u16 = 0x10;
const FLAG_ACK_CAPPED: u16 = 0x100;
const FLAG_ACK_ATTRIBUTES: u16 = 0x200;
const FLAG_DUMP: u16 = 0x300;
/// `NLM_F_EXCL`: refuse when the object exists.
pub(super) const FLAG_EXCLUSIVE: u16 = 0x200;
/// `NLM_F_REPLACE`: replace the object when it exists.
pub(super) const FLAG_REPLACE: u16 = 0x100;
/// `NLM_F_CREATE`: create the object when it does not exist.
pub(super) const FLAG_CREATE: u16 = 0x400;
/// `NLM_F_APPEND`: behind those that exist.
pub(super) const FLAG_APPEND: u16 = 0x800;

const NESTED: u16 = 0x8000;
const ATTRIBUTE_KIND: u16 = 0x3fff;
const ERROR_TEXT: u16 = 1;

/// What the kernel answered when it refused a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelError {
    /// The positive error number; 0 when no request reached the kernel.
    pub errno: i32,
    /// Which request of a batch was refused, counted from 0; 0 for a single one.
    pub request: usize,
    /// The kernel's own words (extended acknowledgement), often empty.
    pub text: String,
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", io::Error::from_raw_os_error(self.errno))?;
        if self.text.is_empty() { Ok(()) } else { write!(f, ": {}", self.text) }
    }
}

impl std::error::Error for KernelError {}

impl From<io::Error> for KernelError {
    fn from(error: io::Error) -> Self {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        let text = if error.raw_os_error().is_some() { String::new() } else { error.to_string() };
        Self { errno, request: 0, text }
    }
}

/// One request under construction.
#[derive(Debug, Clone)]
pub(super) struct Request(Vec<u8>);

impl Request {
    /// A request of message type `kind` with `flags` beside `NLM_F_REQUEST`, and the family's fixed header.
    pub(super) fn new(kind: u16, flags: u16, family_header: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&0_u32.to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags | FLAG_REQUEST).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(family_header);
        Self(bytes).pad()
    }

    fn pad(mut self) -> Self {
        self.0.resize(self.0.len().next_multiple_of(ALIGNMENT), 0);
        self
    }

    /// Appends one attribute.
    pub(super) fn with(mut self, kind: u16, value: &[u8]) -> Self {
        // Every value here is an address, a number, a name or a rule of ours: far below 64 KiB.
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.pad()
    }

    /// Appends a string attribute with its terminating zero.
    pub(super) fn with_text(self, kind: u16, text: &str) -> Self {
        let mut value = text.as_bytes().to_vec();
        value.push(0);
        self.with(kind, &value)
    }

    /// Appends a nested attribute that holds what `inside` appends.
    pub(super) fn with_nested(self, kind: u16, inside: impl FnOnce(Nest) -> Nest) -> Self {
        let nest = inside(Nest(Self(Vec::new())));
        self.with(kind | NESTED, &nest.0.0)
    }

    fn seal(mut self, extra_flags: u16, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        let flags = u16::from_ne_bytes([self.0[6], self.0[7]]) | extra_flags;
        self.0[0..4].copy_from_slice(&length.to_ne_bytes());
        self.0[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

/// The inside of a nested attribute under construction.
#[derive(Debug)]
pub(super) struct Nest(Request);

impl Nest {
    /// As [`Request::with`].
    pub(super) fn with(self, kind: u16, value: &[u8]) -> Self {
        Self(self.0.with(kind, value))
    }

    /// As [`Request::with_text`].
    pub(super) fn with_text(self, kind: u16, text: &str) -> Self {
        Self(self.0.with_text(kind, text))
    }

    /// As [`Request::with_nested`].
    pub(super) fn with_nested(self, kind: u16, inside: impl FnOnce(Nest) -> Nest) -> Self {
        Self(self.0.with_nested(kind, inside))
    }
}

/// Walks over attributes; ends at the first that does not fit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Attributes<'a> {
    /// The first attribute of `kind`.
    pub(super) fn find(self, wanted: u16) -> Option<&'a [u8]> {
        let mut attributes = self;
        attributes.find_map(|(kind, value)| (kind == wanted).then_some(value))
    }

    /// The first attribute of `kind` as a number in the machine's byte order.
    pub(super) fn number(self, wanted: u16) -> Option<u32> {
        self.find(wanted)?.try_into().map(u32::from_ne_bytes).ok()
    }

    /// The first attribute of `kind` as a number in network byte order (nfnetlink).
    pub(super) fn big_endian(self, wanted: u16) -> Option<u32> {
        self.find(wanted)?.try_into().map(u32::from_be_bytes).ok()
    }

    /// The first attribute of `kind` as text up to its zero.
    pub(super) fn text(self, wanted: u16) -> Option<&'a str> {
        let value = self.find(wanted)?;
        std::str::from_utf8(value.split(|byte| *byte == 0).next()?).ok()
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (length, kind) = (self.0.get(0..2)?, self.0.get(2..4)?);
        let length = usize::from(u16::from_ne_bytes(length.try_into().ok()?));
        let kind = u16::from_ne_bytes(kind.try_into().ok()?) & ATTRIBUTE_KIND;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// One message as received.
struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

/// Splits a datagram into its messages; ends at the first that does not fit.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let field = |from: usize, to: usize| self.0.get(from..to);
        let length = usize::try_from(u32::from_ne_bytes(field(0, 4)?.try_into().ok()?)).ok()?;
        let message = Message {
            kind: u16::from_ne_bytes(field(4, 6)?.try_into().ok()?),
            flags: u16::from_ne_bytes(field(6, 8)?.try_into().ok()?),
            sequence: u32::from_ne_bytes(field(8, 12)?.try_into().ok()?),
            payload: field(HEADER, length)?,
        };
        self.0 = self.0.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        Some(message)
    }
}

impl Message<'_> {
    /// The error of an `NLMSG_ERROR` or `NLMSG_DONE` message; `Ok` when it says success.
    fn outcome(&self) -> Result<(), KernelError> {
        let code = self.payload.get(0..4).and_then(|code| code.try_into().ok()).map_or(0, i32::from_ne_bytes);
        if code == 0 {
            return Ok(());
        }
        let mut text = String::new();
        if self.kind == NLMSG_ERROR && self.flags & FLAG_ACK_ATTRIBUTES != 0 {
            // The refused message follows the code: whole, or its header only.
            let quoted = self.payload.get(4..8).and_then(|length| length.try_into().ok()).map_or(0, u32::from_ne_bytes);
            let quoted = if self.flags & FLAG_ACK_CAPPED == 0 { quoted as usize } else { HEADER };
            let attributes = self.payload.get(4 + quoted.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
            text = Attributes(attributes).text(ERROR_TEXT).unwrap_or_default().to_owned();
        }
        Err(KernelError { errno: code.saturating_neg(), request: 0, text })
    }
}

/// A netlink socket that asks and waits for the answer. It belongs to the network namespace of the thread that
/// opened it.
pub(super) struct Channel {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Channel {
    /// Opens a socket of `protocol` (`NETLINK_ROUTE`, `NETLINK_NETFILTER`).
    pub(super) fn open(protocol: isize) -> Result<Self, KernelError> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        // Both only make error messages better; kernels before 4.12 lack them.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(RECEIVE_BUFFER) })
    }

    fn receive(&mut self) -> Result<(), KernelError> {
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<(), KernelError> {
        self.socket.send_to(bytes, &SocketAddr::new(0, 0), 0)?;
        Ok(())
    }

    /// Has the kernel take a datagram of this size: a transaction is one, however long.
    fn make_room(&self, size: usize) -> Result<(), KernelError> {
        let room = size.saturating_add(OVERHEAD);
        let taken = || sockopt::socket_send_buffer_size(&self.socket).unwrap_or(0);
        if taken() >= room {
            return Ok(());
        }
        // Beyond the system's limit only a process that is privileged on the host itself may go.
        let _ = sockopt::set_socket_send_buffer_size_force(&self.socket, room)
            .or_else(|_| sockopt::set_socket_send_buffer_size(&self.socket, room));
        if taken() >= room {
            return Ok(());
        }
        let text = format!(
            "the rules take {size} bytes; allow more with sysctl net.core.wmem_max={room}, or have less instances"
        );
        Err(KernelError { errno: libc::EMSGSIZE, request: 0, text })
    }

    /// Sends one request and waits for its acknowledgement.
    pub(super) fn call(&mut self, request: Request) -> Result<(), KernelError> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        self.send(&request.seal(FLAG_ACK, sequence))?;
        loop {
            self.receive()?;
            for message in Messages(&self.buffer) {
                if message.sequence == sequence && message.kind == NLMSG_ERROR {
                    return message.outcome();
                }
            }
        }
    }

    /// Asks for one object; `each` sees its message type and payload.
    pub(super) fn get(&mut self, request: Request, mut each: impl FnMut(u16, &[u8])) -> Result<(), KernelError> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        self.send(&request.seal(FLAG_ACK, sequence))?;
        loop {
            self.receive()?;
            for message in Messages(&self.buffer).filter(|message| message.sequence == sequence) {
                if message.kind == NLMSG_ERROR {
                    return message.outcome();
                }
                each(message.kind, message.payload);
            }
        }
    }

    /// Asks for all objects; the answer is one consistent picture.
    pub(super) fn dump<T>(
        &mut self,
        request: &Request,
        mut each: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, KernelError> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut found = Vec::new();
            if self.dump_once(request.clone(), |payload| found.extend(each(payload)))? {
                return Ok(found);
            }
        }
        Err(KernelError {
            errno: libc::EAGAIN,
            request: 0,
            text: "the table changes faster than it can be read".into(),
        })
    }

    fn dump_once(&mut self, request: Request, mut each: impl FnMut(&[u8])) -> Result<bool, KernelError> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        self.send(&request.seal(FLAG_DUMP, sequence))?;
        let mut consistent = true;
        loop {
            self.receive()?;
            for message in Messages(&self.buffer).filter(|message| message.sequence == sequence) {
                consistent &= message.flags & FLAG_DUMP_INTERRUPTED == 0;
                match message.kind {
                    NLMSG_DONE | NLMSG_ERROR => return message.outcome().map(|()| consistent),
                    _ => each(message.payload),
                }
            }
        }
    }

    /// Sends `requests` as one nfnetlink transaction between `begin` and `end`: all of them take effect, or none.
    pub(super) fn transaction(
        &mut self,
        begin: Request,
        requests: Vec<Request>,
        end: Request,
    ) -> Result<(), KernelError> {
        let Some(last) = requests.len().checked_sub(1) else { return Ok(()) };
        let first = self.sequence.wrapping_add(1);
        let mut bytes = begin.seal(0, first);
        let mut sequence = first;
        for (position, request) in requests.into_iter().enumerate() {
            sequence = sequence.wrapping_add(1);
            bytes.extend(request.seal(if position == last { FLAG_ACK } else { 0 }, sequence));
        }
        self.sequence = sequence.wrapping_add(1);
        bytes.extend(end.seal(0, self.sequence));
        self.make_room(bytes.len())?;
        self.send(&bytes)?;
        // Refusals come in the order of the requests, before the one acknowledgement that was asked for.
        loop {
            self.receive()?;
            for message in Messages(&self.buffer).filter(|message| message.kind == NLMSG_ERROR) {
                let position = message.sequence.wrapping_sub(first);
                if position > self.sequence.wrapping_sub(first) {
                    continue;
                }
                if let Err(error) = message.outcome() {
                    // 0 is the opening of the transaction itself.
                    return Err(KernelError { request: position as usize, ..error });
                }
                if message.sequence == sequence {
                    return Ok(());
                }
            }
        }
    }
}

/// A netlink socket that only listens to what changes.
pub(super) struct Listener {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Listener {
    /// Joins the multicast `groups` of `protocol`.
    pub(super) fn open(protocol: isize, groups: &[u32]) -> Result<Self, KernelError> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        for group in groups {
            socket.add_membership(*group)?;
        }
        socket.set_non_blocking(true)?;
        Ok(Self { socket, buffer: Vec::with_capacity(RECEIVE_BUFFER) })
    }

    /// Takes away everything that waits; whether there was anything. What was lost in an overflow counts too.
    pub(super) fn drain(&mut self) -> bool {
        let mut any = false;
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) => any = true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return any || error.raw_os_error() == Some(libc::ENOBUFS),
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn attributes_read_back_as_they_were_written_with_nesting_and_padding() {
        let request = Request::new(16, FLAG_CREATE, &[10, 0, 0, 0])
            .with(1, &[7, 8, 9])
            .with_text(2, "warren0")
            .with_nested(3, |nest| nest.with(4, &5_u32.to_ne_bytes()))
            .seal(FLAG_ACK, 9);
        let messages: Vec<_> = Messages(&request).collect();
        assert_eq!(messages.len(), 1);
        assert_eq!((messages[0].kind, messages[0].sequence), (16, 9));
        assert_eq!(messages[0].flags, FLAG_CREATE | FLAG_REQUEST | FLAG_ACK);
        let attributes = Attributes(&messages[0].payload[4..]);
        assert_eq!(attributes.find(1), Some(&[7, 8, 9][..]));
        assert_eq!(attributes.text(2), Some("warren0"));
        assert_eq!(Attributes(attributes.find(3).expect("nest")).number(4), Some(5));
        assert_eq!(attributes.find(5), None);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_end_the_walk_and_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for message in Messages(&bytes) {
                let _ = message.outcome();
            }
            prop_assert!(Attributes(&bytes).count() <= bytes.len() / 4 + 1);
        }
    }
}
