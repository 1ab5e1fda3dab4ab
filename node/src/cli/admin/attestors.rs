//! `warren attestor set | list | show | delete`.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;
use hyper::Method;
use warren_proto::admin::{
    Attestor, AttestorList, AttestorSettings, AwsInstances, CertificateIssuer, Deleted, NewAttestor, TokenIssuer,
};

use super::changes::{Change, Making};
use super::connection::Connection;
use super::{Context, Exit, Failure, Items, Outcome, Present, Rows, Table, duration, joined};
use crate::cli::block_on;

/// Largest file of keys or certificates that is sent.
const MAX_FILE: u64 = 256 * 1024;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
An attestor judges evidence of one kind: `warren enrol --attestor NAME --evidence-file FILE`. By itself it lets nobody in; a registration says which evidence may hold which identities. Its keys are files that you give: nothing is fetched. When the issuer has new keys, run the same `set` again; it holds from the next enrolment on.

An attestor's keys can make nodes, as the CA's can, so it takes the role ca-admin.

Examples:
  kubectl get --raw /openid/v1/jwks > jwks.json
  warren attestor set kubernetes cluster-a --audience warren.bank.example --jwks jwks.json \\
      --issuer https://kubernetes.default.svc.cluster.local
  warren attestor set oidc github --issuer https://token.actions.githubusercontent.com \\
      --audience warren.bank.example --jwks github.json
  warren attestor set x509 spire --roots spire-bundle.pem --trust-domain spire.bank.example
  warren attestor set aws ec2 --certificates ec2-eu-west-1-rsa2048.pem --account 123456789012
  warren attestor list
  warren attestor show cluster-a
  warren attestor delete cluster-a")]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make an attestor, or set all of one that is there
    Set {
        #[command(subcommand)]
        kind: Kind,
    },
    /// Every attestor
    List,
    /// One attestor, with its keys or roots
    Show {
        /// Its name.
        name: String,
    },
    /// Delete an attestor that no registration rests on
    Delete {
        /// Its name.
        name: String,
        #[command(flatten)]
        change: Change,
    },
}

#[derive(Debug, Subcommand)]
enum Kind {
    /// Projected service-account tokens of a Kubernetes cluster, bound to a pod
    Kubernetes(Token),
    /// Tokens of an OpenID Connect issuer: CI jobs, workload identities of clouds
    Oidc(Token),
    /// Certificates of another authority, whose key signs: SPIFFE SVIDs, device certificates
    X509(Certificate),
    /// Instance identity documents of Amazon EC2
    Aws(Aws),
}

#[derive(Debug, clap::Args)]
struct Token {
    /// What people and nodes call it.
    name: String,
    /// The exact `iss` of its tokens.
    #[arg(long, value_name = "URL")]
    issuer: String,
    /// The one `aud` its tokens must have.
    #[arg(long, value_name = "AUDIENCE")]
    audience: String,
    /// File with its public keys, a JWK set.
    #[arg(long, value_name = "FILE")]
    jwks: PathBuf,
    /// The longest life of a token that is accepted, up to a day.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
    max_lifetime: Duration,
    #[command(flatten)]
    making: Making,
}

#[derive(Debug, clap::Args)]
struct Certificate {
    /// What people and nodes call it.
    name: String,
    /// File with the authority's root certificates (PEM).
    #[arg(long, value_name = "FILE")]
    roots: PathBuf,
    /// The SPIFFE trust domain that its certificates must be of.
    #[arg(long, value_name = "DOMAIN")]
    trust_domain: Option<String>,
    #[command(flatten)]
    making: Making,
}

#[derive(Debug, clap::Args)]
struct Aws {
    /// What people and nodes call it.
    name: String,
    /// File with Amazon's RSA-2048 certificates of the regions used (PEM).
    #[arg(long, value_name = "FILE")]
    certificates: PathBuf,
    /// An account whose instances are believed, twelve digits; may be repeated.
    #[arg(long = "account", value_name = "ACCOUNT", required = true)]
    accounts: Vec<String>,
    /// How long after its start an instance may enrol, up to a day.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
    max_age: Duration,
    #[command(flatten)]
    making: Making,
}

pub(super) fn run(arguments: Arguments, context: &Context) -> Outcome {
    block_on(async {
        match arguments.verb {
            Verb::Set { kind } => {
                let (name, settings, making) = settings(kind)?;
                let mut client = arguments.connection.open().await?;
                let (new, terms) = (NewAttestor { settings, note: making.note.clone() }, making.terms());
                let set: Attestor =
                    client.change(Method::PUT, &format!("/attestors/{name}"), Some(&new), &terms).await?;
                context.output.print(&set)?;
                if !making.dry_run && set.registrations == 0 {
                    context.output.say(format!(
                        "it lets nobody in yet; next: warren registration create NAME --attestor {name} --selector ... --for ..."
                    ));
                }
            }
            Verb::List => {
                let mut client = arguments.connection.open().await?;
                let items = client.list("/attestors", usize::MAX, |list: AttestorList| list.page).await?;
                context.output.print(&Items { items })?;
            }
            Verb::Show { name } => {
                let mut client = arguments.connection.open().await?;
                let attestor: Attestor = client.get(&format!("/attestors/{name}")).await?;
                context.output.print(&attestor)?;
            }
            Verb::Delete { name, change } => {
                let mut client = arguments.connection.open().await?;
                let path = format!("/attestors/{name}");
                let gone: Deleted = client.change(Method::DELETE, &path, None::<&()>, &change.terms()).await?;
                context.output.print(&gone)?;
            }
        }
        Ok(Exit::Yes)
    })
}

fn settings(kind: Kind) -> Result<(String, AttestorSettings, Making), Failure> {
    let token = |token: Token| {
        let issuer = TokenIssuer {
            issuer: token.issuer,
            audience: token.audience,
            jwks: read(&token.jwks)?,
            max_lifetime_seconds: token.max_lifetime.as_secs(),
        };
        Ok::<_, Failure>((token.name, issuer, token.making))
    };
    Ok(match kind {
        Kind::Kubernetes(arguments) => {
            let (name, issuer, making) = token(arguments)?;
            (name, AttestorSettings::Kubernetes(issuer), making)
        }
        Kind::Oidc(arguments) => {
            let (name, issuer, making) = token(arguments)?;
            (name, AttestorSettings::Oidc(issuer), making)
        }
        Kind::X509(Certificate { name, roots, trust_domain, making }) => {
            (name, AttestorSettings::X509(CertificateIssuer { roots: read(&roots)?, trust_domain }), making)
        }
        Kind::Aws(Aws { name, certificates, accounts, max_age, making }) => {
            let certificates = read(&certificates)?;
            let instances = AwsInstances { certificates, accounts, max_age_seconds: max_age.as_secs() };
            (name, AttestorSettings::AwsInstance(instances), making)
        }
    })
}

fn read(path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text));
    read.map_err(|error| Failure::new(Exit::Usage, format!("{} cannot be read", path.display())).cause(&error))?;
    if text.len() as u64 > MAX_FILE {
        return Err(Failure::new(Exit::Usage, format!("{} is over {MAX_FILE} bytes", path.display())));
    }
    Ok(text)
}

impl Present for Attestor {
    const KIND: &'static str = "Attestor";

    fn text(&self, _wide: bool) -> String {
        let mut table = Table::new(["ATTESTOR", self.name.as_str()]);
        table.row(["kind", self.settings.kind()]);
        match &self.settings {
            AttestorSettings::Kubernetes(token) | AttestorSettings::Oidc(token) => {
                table.row(["issuer", token.issuer.as_str()]);
                table.row(["audience", token.audience.as_str()]);
                table.row(["longest life", &format!("{} s", token.max_lifetime_seconds)]);
                table.row(["keys", token.jwks.as_str()]);
            }
            AttestorSettings::X509(issuer) => {
                table.row(["trust domain", issuer.trust_domain.as_deref().unwrap_or("any")]);
                table.row(["roots", issuer.roots.trim()]);
            }
            AttestorSettings::AwsInstance(instances) => {
                table.row(["accounts", joined(&instances.accounts).as_str()]);
                table.row(["after a start", &format!("{} s", instances.max_age_seconds)]);
                table.row(["certificates", instances.certificates.trim()]);
            }
        }
        table.row(["registrations", &self.registrations.to_string()]);
        table.row(["set", &format!("{} by {}", self.changed_at, self.changed_by)]);
        table.row(["note", self.note.as_str()]);
        table.to_string()
    }
}

impl Rows for Attestor {
    const LIST: &'static str = "AttestorList";
    const NONE: &'static str = "no attestors: machines enrol with join tokens only; see warren attestor --help";

    fn table(items: &[Self], wide: bool) -> Table {
        let whose = |attestor: &Self| match &attestor.settings {
            AttestorSettings::Kubernetes(token) | AttestorSettings::Oidc(token) => token.issuer.clone(),
            AttestorSettings::X509(issuer) => issuer.trust_domain.clone().unwrap_or_else(|| "-".to_owned()),
            AttestorSettings::AwsInstance(instances) => joined(&instances.accounts),
        };
        let mut table = if wide {
            Table::new(["NAME", "KIND", "ISSUER", "REGISTRATIONS", "SET", "NOTE", "BY"])
        } else {
            Table::new(["NAME", "KIND", "ISSUER", "REGISTRATIONS", "SET"])
        };
        for attestor in items {
            let mut row = vec![
                attestor.name.clone(),
                attestor.settings.kind().to_owned(),
                whose(attestor),
                attestor.registrations.to_string(),
                attestor.changed_at.to_string(),
            ];
            if wide {
                row.extend([attestor.note.clone(), attestor.changed_by.clone()]);
            }
            table.row(row);
        }
        table
    }
}
