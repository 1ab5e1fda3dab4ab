//! The state directory: what a node must not lose and nobody else may read.
//!
//! The directory is 0700 and every file 0600, both the daemon's own; a drift of mode or owner is refused,
//! not repaired, because whoever could change it may have read the keys. A file is replaced as a whole (temporary
//! file, fsync, rename, fsync of the directory) and carries a digest in its first line, so that a power cut leaves the
//! old content or the new one, and anything else is named. One process at a time holds the lock.

use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use warren_proto::reason::{Reason, Refusal};
use zeroize::Zeroizing;

const LOCK: &str = "lock";
const MAGIC: &str = "warren-state/1";

/// Largest state file (a whole scope and its records).
pub const MAX_FILE: usize = 128 * 1024 * 1024;

/// An open, checked and locked state directory.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    directory: OwnedFd,
    /// Held for its lock; `None` for a reader that only looks.
    _lock: Option<OwnedFd>,
}

/// What kind of trouble the state directory is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Another process holds the lock.
    Locked,
    /// Owner, mode or file type is not as it must be.
    Unsafe,
    /// A file's content does not match its digest or does not parse.
    Corrupt,
    /// No space or inode left, or a quota is used up.
    Full,
    /// This user may not.
    Denied,
    /// There is no such directory.
    Missing,
    /// Any other failure of the file system.
    Io,
}

/// A failure of the state directory: which file, what, and the next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateError {
    /// For programs.
    pub trouble: Trouble,
    path: PathBuf,
    what: String,
    hint: String,
}

impl StateError {
    fn new(trouble: Trouble, path: &Path, what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { trouble, path: path.to_owned(), what: what.into(), hint: hint.into() }
    }

    fn io(path: &Path, doing: &str, errno: Errno) -> Self {
        let (trouble, hint) = match errno {
            Errno::NOSPC | Errno::DQUOT => (Trouble::Full, format!("free space: df -h {}", path.display())),
            Errno::ACCESS | Errno::PERM => {
                (Trouble::Denied, "run as the daemon's user, for example with sudo".to_owned())
            }
            Errno::NOENT => (Trouble::Missing, "enrol this host first: warren enrol --token-file FILE".to_owned()),
            Errno::ROFS => (Trouble::Io, "the file system is mounted read-only".to_owned()),
            _ => (Trouble::Io, String::new()),
        };
        Self::new(trouble, path, format!("{doing}: {}", std::io::Error::from(errno)), hint)
    }

    /// A file that reads but does not mean anything.
    #[must_use]
    pub fn corrupt(path: &Path, what: impl Into<String>) -> Self {
        let hint = format!("restore it from a backup, or move it away ({0} -> {0}.bad) and restart", path.display());
        Self::new(Trouble::Corrupt, path, what, hint)
    }

    /// The next step; may be empty.
    #[must_use]
    pub fn hint(&self) -> &str {
        &self.hint
    }
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.what)
    }
}

impl std::error::Error for StateError {}

impl From<StateError> for Refusal {
    fn from(error: StateError) -> Self {
        let reason = match error.trouble {
            Trouble::Corrupt => Reason::StateCorrupt,
            Trouble::Full => Reason::DiskFull,
            Trouble::Denied => Reason::NotPermitted,
            Trouble::Locked => Reason::Conflict,
            Trouble::Missing => Reason::NotFound,
            Trouble::Unsafe | Trouble::Io => Reason::Internal,
        };
        Self::new(reason, error.to_string()).hint(error.hint)
    }
}

impl StateDir {
    /// Opens the directory for the one process that may write it, creating it (not its parents) if missing.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        match rustix::fs::mkdir(path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(Errno::NOENT) => {
                let hint = path.parent().map(|parent| format!("mkdir -p {}", parent.display())).unwrap_or_default();
                return Err(StateError::new(Trouble::Missing, path, "its parent directory does not exist", hint));
            }
            Err(errno) => return Err(StateError::io(path, "cannot be created", errno)),
        }
        let mut state = Self::open_to_look(path)?;
        let lock = rustix::fs::openat(
            &state.directory,
            LOCK,
            OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::RUSR | Mode::WUSR,
        )
        .map_err(|errno| StateError::io(&path.join(LOCK), "cannot be opened", errno))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let hint = "warren down stops the running daemon; two daemons cannot share one identity";
                return Err(StateError::new(Trouble::Locked, path, "another warren process is using it", hint));
            }
            Err(errno) => return Err(StateError::io(&path.join(LOCK), "cannot be locked", errno)),
        }
        state._lock = Some(lock);
        Ok(state)
    }

    /// Opens the directory without its lock, for commands that only read.
    pub fn open_to_look(path: &Path) -> Result<Self, StateError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::NOTDIR | Errno::LOOP => {
                StateError::new(Trouble::Unsafe, path, "is not a directory (symbolic links are not followed)", "")
            }
            errno => StateError::io(path, "cannot be opened", errno),
        })?;
        let stat = rustix::fs::fstat(&directory).map_err(|errno| StateError::io(path, "cannot be examined", errno))?;
        check_private(path, stat.st_uid, stat.st_mode, "0700")?;
        Ok(Self { path: path.to_owned(), directory, _lock: None })
    }

    /// Where a file of this name is.
    #[must_use]
    pub fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A file's content, whole and undamaged; `None` when there is no such file.
    pub fn read(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, StateError> {
        let path = self.path_of(name);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = match rustix::fs::openat(&self.directory, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => {
                return Err(StateError::new(Trouble::Unsafe, &path, "is a symbolic link", "remove it"));
            }
            Err(errno) => return Err(StateError::io(&path, "cannot be opened", errno)),
        };
        let stat = rustix::fs::fstat(&file).map_err(|errno| StateError::io(&path, "cannot be examined", errno))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(StateError::new(Trouble::Unsafe, &path, "is not a regular file", "remove it"));
        }
        check_private(&path, stat.st_uid, stat.st_mode, "0600")?;
        let mut content = Zeroizing::new(Vec::with_capacity(usize::try_from(stat.st_size).unwrap_or(0).min(MAX_FILE)));
        File::from(file)
            .take(MAX_FILE as u64 + 1)
            .read_to_end(&mut content)
            .map_err(|error| StateError::new(Trouble::Io, &path, format!("cannot be read: {error}"), ""))?;
        let body = unframe(&content).map_err(|what| StateError::corrupt(&path, what))?;
        Ok(Some(Zeroizing::new(body.to_vec())))
    }

    /// The names of its files, in no order; those of an interrupted write are left out.
    pub fn names(&self) -> Result<Vec<String>, StateError> {
        let failed = |errno| StateError::io(&self.path, "cannot be listed", errno);
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.directory).map_err(failed)? {
            // A name that is no text is none of ours.
            if let Ok(name) = entry.map_err(failed)?.file_name().to_str()
                && !name.starts_with('.')
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// Replaces a file's content: afterwards it is the new one, also across a power cut, or the old one and an error.
    pub fn write(&self, name: &str, body: &[u8]) -> Result<(), StateError> {
        let temporary = self.write_temporary(name, body)?;
        self.rename(&temporary, name)?;
        self.sync()
    }

    /// As [`StateDir::write`], keeping the old content under `previous`.
    pub fn write_keeping(&self, name: &str, previous: &str, body: &[u8]) -> Result<(), StateError> {
        let temporary = self.write_temporary(name, body)?;
        match rustix::fs::renameat(&self.directory, name, &self.directory, previous) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(StateError::io(&self.path_of(previous), "cannot be replaced", errno)),
        }
        self.rename(&temporary, name)?;
        self.sync()
    }

    /// Removes a file; one that is missing is no error.
    pub fn remove(&self, name: &str) -> Result<(), StateError> {
        match rustix::fs::unlinkat(&self.directory, name, AtFlags::empty()) {
            Ok(()) => self.sync(),
            Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(StateError::io(&self.path_of(name), "cannot be removed", errno)),
        }
    }

    fn write_temporary(&self, name: &str, body: &[u8]) -> Result<String, StateError> {
        let temporary = format!(".{name}.new");
        let path = self.path_of(&temporary);
        // A leftover of an interrupted write; the lock says that nobody is writing it now.
        let _ = rustix::fs::unlinkat(&self.directory, &temporary, AtFlags::empty());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.directory, &temporary, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|errno| StateError::io(&path, "cannot be created", errno))?;
        let mut file = File::from(file);
        let written =
            file.write_all(header(body).as_bytes()).and_then(|()| file.write_all(body)).and_then(|()| file.sync_all());
        written.map_err(|error| {
            let _ = rustix::fs::unlinkat(&self.directory, &temporary, AtFlags::empty());
            match Errno::from_io_error(&error) {
                Some(errno) => StateError::io(&self.path_of(name), "cannot be written", errno),
                None => StateError::new(Trouble::Io, &self.path_of(name), format!("cannot be written: {error}"), ""),
            }
        })?;
        Ok(temporary)
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), StateError> {
        rustix::fs::renameat(&self.directory, from, &self.directory, to)
            .map_err(|errno| StateError::io(&self.path_of(to), "cannot be replaced", errno))
    }

    fn sync(&self) -> Result<(), StateError> {
        rustix::fs::fsync(&self.directory).map_err(|errno| StateError::io(&self.path, "cannot be synced", errno))
    }
}

fn header(body: &[u8]) -> String {
    format!("{MAGIC} {} {}\n", body.len(), hex::encode(Sha256::digest(body)))
}

fn unframe(content: &[u8]) -> Result<&[u8], String> {
    if content.is_empty() {
        return Err("is empty: it was being written when the host stopped".to_owned());
    }
    let end =
        content.iter().take(128).position(|byte| *byte == b'\n').ok_or("has no header: it is not a state file")?;
    let (line, body) = (content.get(..end).unwrap_or_default(), content.get(end + 1..).unwrap_or_default());
    let line = std::str::from_utf8(line).map_err(|_| "has no header: it is not a state file")?;
    let mut words = line.split(' ');
    match (words.next(), words.next(), words.next(), words.next()) {
        (Some(MAGIC), Some(length), Some(digest), None) => {
            if length.parse() != Ok(body.len()) {
                return Err(format!("is cut off or grown: {} bytes where {length} were written", body.len()));
            }
            if hex::encode(Sha256::digest(body)) != digest {
                return Err("is damaged: its content does not match its digest".to_owned());
            }
            Ok(body)
        }
        (Some(other), ..) if other.starts_with("warren-state/") => {
            Err(format!("is of format {other}, which this warren does not read"))
        }
        _ => Err("has no header: it is not a state file".to_owned()),
    }
}

fn check_private(path: &Path, owner: u32, mode: u32, want: &str) -> Result<(), StateError> {
    let me = rustix::process::geteuid().as_raw();
    if owner != me {
        let trouble = if me == 0 { Trouble::Unsafe } else { Trouble::Denied };
        return Err(StateError::new(
            trouble,
            path,
            format!("belongs to user {owner}, and this process runs as user {me}"),
            format!("run as user {owner}, or: chown -R {me} {}", path.display()),
        ));
    }
    if mode & 0o077 != 0 {
        return Err(StateError::new(
            Trouble::Unsafe,
            path,
            format!("has mode {:04o}; others may have read the keys in it", mode & 0o7777),
            format!(
                "find out who changed it; then chmod {want} {}, or revoke the node and enrol it again",
                path.display()
            ),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
