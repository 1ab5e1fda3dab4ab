//! Policies that several test modules use.

use super::{CompiledPolicy, Documents, Mode, SourceFile};
use crate::{UnixTime, WorkloadName};

/// 2026-11-21.
pub(super) const NOW: UnixTime = UnixTime(1_795_219_200);

/// A small mesh without request terms: two environments, guardrails, an include, audit mode.
pub(super) const BANK: &str = r#"
kind: Set
name: everything
owns: [mesh, bank, shop, ops, dev, risk]
---
kind: Mesh
name: bank.example
labels: { env: [prod, dev] }
deny:
  prod-to-dev:
    from: [group:prod]
    to: [group:dev]
    except: [{ from: [risk/anonymiser], to: [dev/warehouse], ports: [5432/tcp], until: "2027-01-31" }]
---
kind: Group
name: prod
namespaces: { env: prod }
---
kind: Group
name: dev
namespaces: { env: dev }
---
kind: Rules
name: ops/scrape
allow: { scrape: { from: [ops/prometheus], ports: [9100/tcp] } }
---
kind: Namespace
name: bank
labels: { env: prod }
include: [ops/scrape]
require:
  from-prod: { must: { from: [group:prod] } }
---
kind: Namespace
name: shop
labels: { env: prod }
---
kind: Namespace
name: ops
labels: { env: prod }
---
kind: Namespace
name: risk
labels: { env: prod }
---
kind: Namespace
name: dev
labels: { env: dev }
---
kind: Service
name: bank/banking-api
runs:
  vm: { nodes: [group:bank-hosts], unit: banking-api.service }
ports:
  api: { port: 8080, protocol: http }
  dns: { port: 53, protocol: [udp, tcp] }
  rtp: { port: "16384-32767", protocol: udp }
allow:
  desk-reads: { from: [shop/web-frontend], ports: [api] }
  media: { from: [shop/*, dev/warehouse], ports: [rtp] }
deny:
  no-dns: { from: [any], ports: [dns] }
---
kind: Service
name: bank/ledger
ports:
  db: { port: 5432, protocol: tcp }
  extra: { port: 5433, protocol: tcp }
allow:
  api: { from: [bank/banking-api], ports: [db] }
audit: { until: "2026-12-15", ports: [db] }
---
kind: Service
name: shop/web-frontend
---
kind: Service
name: shop/cart
---
kind: Service
name: ops/prometheus
---
kind: Service
name: risk/anonymiser
---
kind: Service
name: dev/warehouse
ports:
  db: { port: 5432, protocol: tcp }
allow:
  copy: { from: [any], ports: [db] }
"#;

pub(super) fn documents(text: &str) -> Documents {
    let file = SourceFile { name: "policy/test.yaml".to_owned(), text: text.to_owned() };
    match Documents::from_files(&[file]) {
        Ok(documents) => documents,
        Err(list) => panic!("{}", list.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")),
    }
}

pub(super) fn whole(text: &str) -> CompiledPolicy {
    match CompiledPolicy::compile(&documents(text), Mode::Whole) {
        Ok(policy) => policy,
        Err(list) => panic!("{}", list.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")),
    }
}

/// The errors of a policy that must not compile, each as one line.
pub(super) fn errors(text: &str) -> Vec<String> {
    let file = SourceFile { name: "p.yaml".to_owned(), text: text.to_owned() };
    let result = Documents::from_files(&[file])
        .and_then(|documents| CompiledPolicy::compile(&documents, Mode::Whole).map(|_| ()));
    result.err().unwrap_or_default().iter().map(ToString::to_string).collect()
}

pub(super) fn name(text: &str) -> WorkloadName {
    text.parse().unwrap()
}
