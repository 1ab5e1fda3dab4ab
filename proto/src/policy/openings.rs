//! What one identity may open towards another at layer 4, as the few stretches of ports that a packet filter takes: the
//! evaluator's answers for two instances whose packets pass no tunnel, because they share a host.

use std::ops::RangeInclusive;

use super::compile::CompiledPolicy;
use super::document::Transport;
use crate::{UnixTime, WorkloadName};

/// Everything that `source` may open towards `destination`, as the evaluator says at one moment. Replies are not among it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Openings {
    /// TCP ports, ascending, apart from each other.
    pub tcp: Vec<RangeInclusive<u16>>,
    /// UDP ports, ascending, apart from each other.
    pub udp: Vec<RangeInclusive<u16>>,
    /// ICMP echo requests.
    pub echo: bool,
}

impl Openings {
    /// Whether a connection or datagram to this port is among it.
    #[must_use]
    pub fn allows(&self, transport: Transport, port: u16) -> bool {
        let open = match transport {
            Transport::Tcp => &self.tcp,
            Transport::Udp => &self.udp,
        };
        open.iter().any(|ports| ports.contains(&port))
    }

    /// Whether nothing may be opened at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tcp.is_empty() && self.udp.is_empty() && !self.echo
    }
}

impl CompiledPolicy {
    /// What `source` may open towards `destination`: denies, requires, exceptions and audit mode counted in. Right until
    /// [`CompiledPolicy::next_date`]. A destination without a Service document, or a source that the policy does not know,
    /// has none.
    #[must_use]
    pub fn openings(&self, source: &WorkloadName, destination: &WorkloadName, now: UnixTime) -> Openings {
        let Some(service) = self.services.get(destination) else { return Openings::default() };
        let index = self.identities.index(source);
        let stretches = |transport, starts: &[u16]| {
            let mut open: Vec<RangeInclusive<u16>> = Vec::new();
            for (number, first) in starts.iter().enumerate() {
                if !self.judge(index, service, transport, *first, now).allow {
                    continue;
                }
                let last = starts.get(number + 1).map_or(u16::MAX, |next| next - 1);
                match open.last_mut() {
                    Some(before) if before.end().checked_add(1) == Some(*first) => *before = *before.start()..=last,
                    _ => open.push(*first..=last),
                }
            }
            open
        };
        let [tcp, udp] = &service.boundaries;
        Openings {
            tcp: stretches(Transport::Tcp, tcp),
            udp: stretches(Transport::Udp, udp),
            echo: self.judge_echo(index, service, now).allow,
        }
    }
}

#[cfg(test)]
mod tests;
