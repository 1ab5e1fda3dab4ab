//! The CA's directory: mode 0700, every file 0600 and replaced in one step, key and certificate of a credential
//! in one file so that they cannot part.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

/// Why the CA's directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// `init` on a directory that holds a root.
    #[error(
        "{path} holds a root certificate already; a second one would orphan every node (remove the directory to start anew)"
    )]
    AlreadyInitialised {
        /// The root's certificate file.
        path: PathBuf,
    },
    /// No root.
    #[error("{path} does not exist; run `warren-coordinator init` first, or restore the directory from a backup")]
    NotInitialised {
        /// The root's certificate file.
        path: PathBuf,
    },
    /// The root's key is needed and is not there.
    #[error("{path} is needed to renew {what} and is not there; put the root's key back and start again")]
    RootKeyAway {
        /// Where it is looked for.
        path: PathBuf,
        /// What is to be renewed.
        what: &'static str,
    },
    /// A file's content is not what it must be.
    #[error(
        "{path}: {what}; restore it from a backup, or remove it to have it issued again where it is not the root's"
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A file others can read.
    #[error("{path} has mode {mode:o}; a private key must be its owner's alone (chmod 600, directories 700)")]
    Readable {
        /// Which file or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Keys are sealed, and there is no passphrase.
    #[error(
        "{path}: the CA's keys are sealed under a passphrase and none was given; set ca_passphrase_file, or give the systemd credential ca-passphrase"
    )]
    Sealed {
        /// Which file.
        path: PathBuf,
    },
    /// A passphrase for keys that are not sealed.
    #[error(
        "the CA's keys in {path} lie in the clear, and a passphrase was given; seal them with `warren-coordinator passphrase set`, or take it away"
    )]
    NotSealed {
        /// The CA's directory.
        path: PathBuf,
    },
    /// One key in the clear beside sealed ones.
    #[error("{path} holds a key in the clear beside sealed ones; seal it with `warren-coordinator passphrase set`")]
    InTheClear {
        /// Which file.
        path: PathBuf,
    },
    /// The passphrase opens nothing.
    #[error("the passphrase does not open {path}: it is another one's, or the file was altered")]
    WrongPassphrase {
        /// The file with the wrapped key.
        path: PathBuf,
    },
    /// A key could not be derived, sealed or written.
    #[error("sealing a key failed; is there memory for Argon2 (64 MiB)?")]
    Cipher,
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The root has ended or is about to.
    #[error("the root certificate ends at {not_after}; a new root must be introduced before anything can be issued")]
    RootEnds {
        /// Its notAfter.
        not_after: warren_proto::UnixTime,
    },
    /// A certificate could not be built.
    #[error("building a certificate: {0}")]
    Build(#[from] rcgen::Error),
}

/// Reads a private file; `None` when it is not there.
pub(super) fn read(path: &Path) -> Result<Option<Zeroizing<String>>, CaError> {
    let io_error = |source| CaError::Io { path: path.to_owned(), source };
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(error)),
    };
    refuse_readable(path, metadata.permissions().mode())?;
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(Zeroizing::new(text))),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(CaError::Damaged { path: path.to_owned(), what: "not text in PEM form".to_owned() })
        }
        Err(error) => Err(io_error(error)),
    }
}

/// Makes `path` and what leads to it, 0700, and only returns once each of them is on disk; an existing directory must be as
/// tight.
pub(super) fn ensure_directory(path: &Path) -> Result<(), CaError> {
    make_directories(path, |directory| File::open(directory)?.sync_all())
        .map_err(|source| CaError::Io { path: path.to_owned(), source })?;
    let metadata = fs::metadata(path).map_err(|source| CaError::Io { path: path.to_owned(), source })?;
    refuse_readable(path, metadata.permissions().mode())
}

/// A file's own sync does not put the directory it lies in on disk: that entry is its parent's.
fn make_directories(path: &Path, mut sync: impl FnMut(&Path) -> io::Result<()>) -> io::Result<()> {
    let missing: Vec<_> = path.ancestors().take_while(|one| !one.as_os_str().is_empty() && !one.exists()).collect();
    for directory in missing.into_iter().rev() {
        match DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        sync(directory.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
    }
    Ok(())
}

fn refuse_readable(path: &Path, mode: u32) -> Result<(), CaError> {
    if mode & 0o077 != 0 {
        return Err(CaError::Readable { path: path.to_owned(), mode: mode & 0o777 });
    }
    Ok(())
}

/// Removes a file; one that is not there is removed already.
pub(super) fn remove(path: &Path) -> Result<(), CaError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(CaError::Io { path: path.to_owned(), source }),
        _ => Ok(()),
    }
}

/// Replaces `path` by a file with `content`, whole or not at all, and only returns once it is on disk.
pub(super) fn write(path: &Path, content: &str) -> Result<(), CaError> {
    let io_error = |source| CaError::Io { path: path.to_owned(), source };
    let directory = path.parent().unwrap_or(Path::new("."));
    let unfinished = path.with_extension("new");
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error(error)),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished).map_err(io_error)?;
    file.write_all(content.as_bytes()).and_then(|()| file.sync_all()).map_err(io_error)?;
    fs::rename(&unfinished, path).map_err(io_error)?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(io_error)
}

/// A certificate as PEM.
#[must_use]
pub fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = tail;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_directory_that_is_made_is_on_disk_in_its_parent_before_the_next() {
        let place = tempfile::tempdir().expect("directory");
        let deepest = place.path().join("roots/0a/root");
        let mut synced = Vec::new();
        let record = |directory: &Path| {
            synced.push((directory.to_owned(), fs::read_dir(directory)?.count()));
            Ok(())
        };
        make_directories(&deepest, record).expect("made");
        let expected = ["", "roots", "roots/0a"].map(|name| (place.path().join(name), 1));
        let expected = expected.map(|(path, count)| (path.components().collect::<PathBuf>(), count));
        assert_eq!(synced, expected, "each holds its new entry when it is synced");
        make_directories(&deepest, |_| panic!("nothing new")).expect("there");
        assert_eq!(fs::metadata(&deepest).expect("there").permissions().mode() & 0o777, 0o700);
    }
}
