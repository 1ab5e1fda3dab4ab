//! `warren registration create | list | delete`.

use clap::Subcommand;
use hyper::Method;
use warren_proto::WorkloadName;
use warren_proto::admin::{Deleted, NewRegistration, Registration, RegistrationList, Selector};

use super::changes::{Change, Making};
use super::connection::Connection;
use super::{Context, Exit, Items, Outcome, Present, Rows, Table, joined};
use crate::cli::block_on;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
A machine whose evidence says all of a registration's selectors may hold its identities. Evidence that no registration accepts, or that two do, makes no node.

Selectors are NAME=TEXT, or NAME:=VALUE for a whole number, true or false; values are compared whole, patterns there are none:
  kubernetes  k8s:ns and k8s:sa (both needed), k8s:pod, k8s:node
  oidc        claim:NAME, or claim:/outer/inner for a claim inside another
  x509        x509:spiffe-id, x509:dns, x509:root-sha256
  aws         aws:account, aws:region, aws:instance, aws:image, aws:zone, aws:type

Examples:
  warren registration create web --attestor cluster-a \\
      --selector k8s:ns=shop --selector k8s:sa=web-frontend --for shop/web-frontend
  warren registration create build --attestor github --selector claim:repository_id=74 \\
      --selector claim:environment=production --for ci/build
  warren registration create legacy --attestor spire \\
      --selector x509:spiffe-id=spiffe://spire.bank.example/billing --for bank/billing
  warren registration list
  warren registration delete web")]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Let machines with some evidence hold some identities
    Create {
        /// What people call it.
        name: String,
        /// The attestor whose word is taken.
        #[arg(long, value_name = "NAME")]
        attestor: String,
        /// What the evidence must say, NAME=TEXT or NAME:=VALUE; may be repeated, and all must hold.
        #[arg(long = "selector", value_name = "SELECTOR", required = true)]
        selectors: Vec<Selector>,
        /// An identity that such a machine may hold, <namespace>/<name>; may be repeated.
        #[arg(long = "for", value_name = "WORKLOAD", required = true)]
        workloads: Vec<WorkloadName>,
        #[command(flatten)]
        making: Making,
    },
    /// Every registration
    List,
    /// Delete a registration: no further machine enrols by it, those that did stay
    Delete {
        /// Its name.
        name: String,
        #[command(flatten)]
        change: Change,
    },
}

pub(super) fn run(arguments: Arguments, context: &Context) -> Outcome {
    block_on(async {
        let mut client = arguments.connection.open().await?;
        match arguments.verb {
            Verb::Create { name, attestor, selectors, workloads, making } => {
                let (terms, dry_run) = (making.terms(), making.dry_run);
                let new = NewRegistration { name, attestor, selectors, workloads, note: making.note };
                let made: Registration = client.change(Method::POST, "/registrations", Some(&new), &terms).await?;
                context.output.print(&made)?;
                if !dry_run {
                    context.output.say(format!(
                        "next, on such a machine: warren enrol --attestor {} --evidence-file FILE --root root.pem",
                        made.attestor
                    ));
                }
            }
            Verb::List => {
                let items = client.list("/registrations", usize::MAX, |list: RegistrationList| list.page).await?;
                context.output.print(&Items { items })?;
            }
            Verb::Delete { name, change } => {
                let terms = change.terms();
                let path = format!("/registrations/{name}");
                let gone: Deleted = client.change(Method::DELETE, &path, None::<&()>, &terms).await?;
                context.output.print(&gone)?;
            }
        }
        Ok(Exit::Yes)
    })
}

impl Present for Registration {
    const KIND: &'static str = "Registration";

    fn text(&self, _wide: bool) -> String {
        format!(
            "{}: {} with {} may hold {}",
            self.name,
            self.attestor,
            joined(&self.selectors),
            joined(&self.workloads)
        )
    }
}

impl Rows for Registration {
    const LIST: &'static str = "RegistrationList";
    const NONE: &'static str = "no registrations: an attestor's word lets nobody in; see warren registration --help";

    fn table(items: &[Self], wide: bool) -> Table {
        let mut table = if wide {
            Table::new(["NAME", "ATTESTOR", "SELECTORS", "FOR", "CREATED", "NOTE", "BY"])
        } else {
            Table::new(["NAME", "ATTESTOR", "SELECTORS", "FOR"])
        };
        for registration in items {
            let mut row = vec![
                registration.name.clone(),
                registration.attestor.clone(),
                joined(&registration.selectors),
                joined(&registration.workloads),
            ];
            if wide {
                row.extend([
                    registration.created_at.to_string(),
                    registration.note.clone(),
                    registration.created_by.clone(),
                ]);
            }
            table.row(row);
        }
        table
    }
}
