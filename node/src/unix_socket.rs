//! A listening Unix socket that takes the place of one left over, leaves everything else alone, and takes its file along when it
//! goes.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, chmod};
use tokio::net::{UnixListener, UnixStream};
use warren_proto::reason::{Reason, Refusal};

/// A listener at a path. Its file goes away with it.
#[derive(Debug)]
pub struct Listening {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Listening {
    fn drop(&mut self) {
        // A daemon that ends leaves nothing to connect to.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Listening {
    /// Listens at `path`, whose file gets `mode`. A socket that nobody listens on any more is replaced; one that answers
    /// belongs to another daemon and is left alone. `key` is what the configuration calls it.
    pub fn bind(path: &Path, mode: Mode, key: &str) -> Result<Self, Refusal> {
        let failed = |doing: &str, error: std::io::Error| {
            Refusal::new(Reason::Internal, format!("{key}: the socket {} {doing}: {error}", path.display()))
                .hint(format!("set {key} in warren.yaml to a path in a directory that the daemon may write"))
        };
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|error| failed("has no directory", error))?;
        }
        match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => {
                let detail = format!("{key}: another daemon listens at {}", path.display());
                return Err(Refusal::new(Reason::Conflict, detail).hint("warren down stops it, if it is warren"));
            }
            // A plain file refuses connections, too, and is somebody's.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused && is_socket(path) => {
                std::fs::remove_file(path).map_err(|error| failed("is left over and cannot be removed", error))?;
            }
            Err(_) => {}
        }
        let listener = UnixListener::bind(path).map_err(|error| failed("cannot be made", error))?;
        let listening = Self { listener, path: path.to_owned() };
        chmod(path, mode).map_err(|errno| failed("cannot be protected", errno.into()))?;
        Ok(listening)
    }

    /// The next connection.
    pub async fn accept(&self) -> std::io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn is_socket(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_left_over_is_replaced_and_a_file_of_somebody_else_is_not() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("warren.sock");
        let bind = || Listening::bind(&path, Mode::RUSR | Mode::WUSR, "socket");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("left over"));
        let listening = bind().expect("replaced");
        assert_eq!(bind().expect_err("taken").reason, Reason::Conflict);
        drop(listening);
        std::fs::write(&path, "notes").expect("write");
        bind().expect_err("refused");
        assert_eq!(std::fs::read_to_string(&path).expect("still there"), "notes");
    }
}
