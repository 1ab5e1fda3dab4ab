//! Which processes of this network namespace have a port: `/proc/net` says which sockets, `/proc/<pid>/fd` who holds them.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};

/// Most of one table that is read.
const MAX_TABLE: u64 = 8 << 20;
/// Most sockets and processes that one port is answered with.
const MAX_FOUND: usize = 64;

/// The sockets that are bound to a local port, and who holds them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AtPort {
    /// Processes that hold such a socket, by number.
    pub processes: Vec<i32>,
    /// Users that such sockets belong to.
    pub users: Vec<u32>,
}

/// Who has `port`, TCP or UDP, as a listener or an end of a connection. Processes whose descriptors this daemon may not see
/// (that takes root or CAP_SYS_PTRACE) are missing; their users are not.
#[must_use]
pub fn at_port(port: u16) -> AtPort {
    let mut inodes = HashSet::new();
    let mut users = Vec::new();
    for table in ["tcp", "tcp6", "udp", "udp6"] {
        let Ok(file) = File::open(format!("/proc/self/net/{table}")) else { continue };
        for line in BufReader::new(file.take(MAX_TABLE)).lines().skip(1).map_while(Result::ok) {
            if let Some((uid, inode)) = socket_at(&line, port).filter(|_| inodes.len() < MAX_FOUND) {
                inodes.insert(format!("socket:[{inode}]"));
                if !users.contains(&uid) {
                    users.push(uid);
                }
            }
        }
    }
    AtPort { processes: if inodes.is_empty() { Vec::new() } else { holders(&inodes) }, users }
}

/// User and inode of a table's line, if its local port is `port` (proc_pid_net(5)). A socket that no process holds any more
/// has inode 0.
fn socket_at(line: &str, port: u16) -> Option<(u32, u64)> {
    let fields: Vec<_> = line.split_whitespace().collect();
    let (_, local) = fields.get(1)?.rsplit_once(':')?;
    let inode = fields.get(9)?.parse().ok().filter(|inode| *inode != 0)?;
    let uid = fields.get(7)?.parse().ok()?;
    (u16::from_str_radix(local, 16) == Ok(port)).then_some((uid, inode))
}

fn holders(sockets: &HashSet<String>) -> Vec<i32> {
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(number) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let holds = std::fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten().any(|descriptor| {
            let target = std::fs::read_link(descriptor.path());
            target.is_ok_and(|target| target.to_str().is_some_and(|target| sockets.contains(target)))
        });
        if holds && found.len() < MAX_FOUND {
            found.push(number);
        }
    }
    found.sort_unstable();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_port_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listen");
        let port = listener.local_addr().expect("address").port();
        let own = i32::try_from(std::process::id()).expect("number");
        let found = at_port(port);
        assert!(found.processes.contains(&own), "{found:?}");
        assert!(found.users.contains(&rustix::process::geteuid().as_raw()), "{found:?}");
    }

    #[test]
    fn a_line_of_the_table_is_read_by_its_columns() {
        let line =
            "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1001        0 4242 1 0";
        assert_eq!(socket_at(line, 8080), Some((1001, 4242)));
        assert_eq!(socket_at(line, 8081), None);
        assert_eq!(socket_at(&line.replace(" 4242 ", " 0 "), 8080), None, "nobody holds it any more");
        assert_eq!(socket_at("garbage", 8080), None);
    }
}
