//! Who a process of this host is, and why: which instances' addresses it may use, and which SVIDs it is given.

use std::path::Path;

use warren_proto::WorkloadName;
use warren_proto::reason::{Reason, Refusal};

use super::surface::Surface;
use crate::local_api::types::{HolderLine, Holders};
use crate::selectors::Process;
use crate::sockets::{AtPort, at_port};
use crate::workload_api::caller::{Caller, netns_of};

/// What was asked about, if it is a process or a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Local {
    /// A process by its number.
    Process(i32),
    /// Whoever has this port.
    Port(u16),
}

impl Local {
    /// `4711` or `pid:4711`; `port:8080` or `:8080`. An address, a name or an id is none of them.
    pub(super) fn parse(target: &str) -> Option<Self> {
        if let Some(port) = target.strip_prefix("port:").or_else(|| target.strip_prefix(':')) {
            return port.parse().ok().map(Self::Port);
        }
        target.strip_prefix("pid:").unwrap_or(target).parse().ok().filter(|pid| *pid > 0).map(Self::Process)
    }
}

impl Surface {
    /// Every identity that the process, or the processes at the port, have on this host.
    pub(super) fn whois_local(&self, target: Local) -> Result<Holders, Refusal> {
        let (processes, what) = match target {
            Local::Process(number) => (vec![number], format!("process {number}")),
            Local::Port(port) => (holders(port, at_port(port))?, format!("port {port}")),
        };
        let mut items: Vec<HolderLine> = Vec::new();
        let mut strangers = Vec::new();
        for number in processes {
            // One that ended meanwhile is nobody, unless it was the one asked about.
            let process = match Caller::with_number(number).and_then(|held| held.identify()) {
                Ok(process) => process,
                Err(refusal) if matches!(target, Local::Process(_)) => return Err(refusal),
                Err(_) => continue,
            };
            let found = self.identities_of(&process);
            if found.is_empty() {
                strangers.push(process.to_string());
            }
            items.extend(found);
        }
        if items.is_empty() {
            let who = if strangers.is_empty() { what } else { strangers.join(", ") };
            return Err(Refusal::new(Reason::NotFound, format!("{who} is no workload of this host"))
                .hint("it fits no entry of workloads in warren.yaml, and is not in this node's network namespace"));
        }
        Ok(Holders { items })
    }

    fn identities_of(&self, process: &Process) -> Vec<HolderLine> {
        let mut found = Vec::new();
        let own_netns = netns_of(Path::new("/proc/self/ns/net"));
        if process.netns.is_some()
            && process.netns == own_netns
            && let Some(view) = self.view.borrow().clone()
        {
            for own in &view.own {
                if let Some(because) = self.placement.because(&own.workload, process) {
                    let because = format!(
                        "{because}, in this node's network namespace: it may use this instance's addresses and is reached at them"
                    );
                    found.push(self.own_line(&view, own, because));
                }
            }
        }
        let identity = self.identity.borrow().clone();
        let given = match self.workload_api {
            Some(_) => "the Workload API gives it this SVID",
            None => "the Workload API would give it this SVID and is not switched on (workload_api.socket)",
        };
        let mut seen: Vec<&WorkloadName> = Vec::new();
        for entry in self.assignments.iter().filter(|entry| entry.fits(process, |file| netns_of(file))) {
            if seen.contains(&&entry.workload) {
                continue;
            }
            seen.push(&entry.workload);
            found.push(HolderLine {
                identity: entry.workload.in_domain(&identity.trust_domain).to_string(),
                workload: entry.workload.to_string(),
                instance: String::new(),
                node: identity.node_id.to_string(),
                addresses: Vec::new(),
                local: true,
                because: format!("{process} fits {:?} of workloads: {given}", entry.to_string()),
                valid_until: self.svid_end(&entry.workload).unwrap_or_default(),
            });
        }
        found
    }
}

fn holders(port: u16, found: AtPort) -> Result<Vec<i32>, Refusal> {
    if !found.processes.is_empty() {
        return Ok(found.processes);
    }
    if found.users.is_empty() {
        return Err(Refusal::new(Reason::NotFound, format!("no socket of this network namespace has port {port}")));
    }
    let users = found.users.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    Err(Refusal::new(
        Reason::NotPermitted,
        format!("port {port} is of user {users}; of which process, this daemon may not see"),
    )
    .hint("run the daemon as root or with CAP_SYS_PTRACE, or ask by process: warren whois pid:NUMBER"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_a_process_a_colon_makes_it_a_port_and_the_rest_is_neither() {
        assert_eq!(Local::parse("4711"), Some(Local::Process(4711)));
        assert_eq!(Local::parse("pid:4711"), Some(Local::Process(4711)));
        assert_eq!(Local::parse(":8080"), Some(Local::Port(8080)));
        assert_eq!(Local::parse("port:8080"), Some(Local::Port(8080)));
        for other in ["0", "-1", "::1", ":65536", "10.77.0.1", "shop/web", "port:", "", "fd00::7"] {
            assert_eq!(Local::parse(other), None, "{other}");
        }
    }
}
