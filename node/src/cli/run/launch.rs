//! The last step before the program of `warren run`: a process of one thread that gives up every capability, and its user
//! where told, and becomes the program. Not for people, so help does not show it.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::process::CommandExt;
use std::str::FromStr;

use rustix::io::Errno;
use rustix::process::{Gid, Pid, Signal, Uid, getppid, set_parent_process_death_signal};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs, set_thread_gid, set_thread_groups, set_thread_uid,
};

use super::super::{Exit, Failure, Outcome};

/// Capabilities the kernel may know some day; it refuses the numbers that it does not know yet.
const CAPABILITIES: u32 = 64;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Arguments {
    /// As in `warren run`.
    #[arg(long)]
    user: Option<User>,
    /// The wrapper's process.
    #[arg(long)]
    parent: u32,
    /// As in `warren run`.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// A user and a group, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct User {
    uid: u32,
    gid: u32,
}

impl User {
    /// Its number.
    pub(super) const fn uid(self) -> u32 {
        self.uid
    }
}

impl FromStr for User {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (uid, gid) = text.split_once(':').unwrap_or((text, text));
        let number = |digits: &str| digits.parse::<u32>().ok().filter(|number| *number != u32::MAX);
        match (number(uid), number(gid)) {
            (Some(uid), Some(gid)) => Ok(Self { uid, gid }),
            _ => Err("not UID or UID:GID in numbers".to_owned()),
        }
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.uid, self.gid)
    }
}

pub(in crate::cli) fn run(arguments: Arguments) -> Outcome {
    let cannot = |what: &str, errno: Errno| {
        Failure::new(Exit::Program(125), format!("{what}, so the program is not started")).cause(&errno)
    };
    give_up(arguments.user).map_err(|(what, errno)| cannot(what, errno))?;
    // Should the wrapper be killed, the program does not run on without its tunnel. The kernel forgets this wish with a change
    // of user, so it comes last.
    end_with(arguments.parent).map_err(|errno| cannot("the wrapper's end cannot be watched", errno))?;
    let (program, rest) = arguments.command.split_first().ok_or_else(|| Failure::new(Exit::Usage, "no program"))?;
    let error = std::process::Command::new(program).args(rest).exec();
    let exit = if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 };
    Err(Failure::new(Exit::Program(exit), format!("{} cannot be executed", program.display())).cause(&error))
}

/// Has the kernel end this process when `parent`, which started it, ends.
pub(in crate::cli) fn end_with(parent: u32) -> Result<(), Errno> {
    set_parent_process_death_signal(Some(Signal::TERM))?;
    // Ended before the kernel knew of the wish: somebody else is the parent now.
    let is_parent = |pid: Pid| u32::try_from(pid.as_raw_nonzero().get()).is_ok_and(|pid| pid == parent);
    if getppid().is_some_and(is_parent) { Ok(()) } else { Err(Errno::SRCH) }
}

/// Leaves nothing that the program could use or regain: not by its user, by a set-uid file, or by file capabilities.
fn give_up(user: Option<User>) -> Result<(), (&'static str, Errno)> {
    for number in 0..CAPABILITIES {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            // Unknown to this kernel; or there is no leave to change the set, and none to use what is in it either.
            Ok(()) | Err(Errno::INVAL | Errno::PERM) => {}
            Err(errno) => return Err(("the capabilities cannot be limited", errno)),
        }
    }
    if let Some(User { uid, gid }) = user {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        set_thread_groups(&[gid]).map_err(|errno| ("the groups cannot be changed", errno))?;
        set_thread_gid(gid).map_err(|errno| ("the group cannot be changed", errno))?;
        set_thread_uid(uid).map_err(|errno| ("the user cannot be changed", errno))?;
    }
    clear_ambient_capability_set().map_err(|errno| ("the ambient capabilities cannot be given up", errno))?;
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
        .map_err(|errno| ("the capabilities cannot be given up", errno))?;
    set_no_new_privs(true).map_err(|errno| ("new privileges cannot be ruled out", errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_one_or_two_numbers() {
        assert_eq!("7".parse(), Ok(User { uid: 7, gid: 7 }));
        assert_eq!("7:8".parse::<User>().map(|user| user.to_string()), Ok("7:8".to_owned()));
        for text in ["", ":", "a", "1:", ":1", "1:2:3", "-1", "4294967295", "4294967296"] {
            assert!(text.parse::<User>().is_err(), "{text}");
        }
    }
}
