//! `warren audit list | export | head | prove | verify`.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use warren_proto::admin::{AuditEntry, AuditExport, AuditList, AuditProof, AuditReport};

use super::audit_certificate::Wanted;
use super::audit_file::{Questions, verify};
use super::audit_proof;
use super::connection::Connection;
use super::{Context, Exit, Failure, Items, Outcome, Present, Rows, Table};
use crate::cli::block_on;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Every change and every issued certificate leaves a row, written in the same commit. Rows are chained by hash. `verify` exits 3 when the chain is broken. Note the head it prints: a later verification that passes through it shows that nothing before was changed. With --file it is checked here, without the coordinator, on rows that `export` wrote.

The rows are also the leaves of a Merkle tree (RFC 9162) whose head the coordinator signs. `prove` gives a row with the proof that it is in the log; `verify --proof` checks it here, by the mesh's root certificate alone. A serial number finds a row and identifies no certificate: whoever has the issuer's key can choose one. With --certificate the certificate itself is compared, by the hash that the row holds. Keep a head: with --since a later proof shows that the log of then is the beginning of the log of now, and `verify --head` checks that.

Examples:
  warren audit list --limit 20
  warren audit list -o json | jq '.items[] | select(.action == \"node.revoke\")'
  warren audit verify
  warren audit export > audit.jsonl
  warren audit verify --file audit.jsonl --noted HASH --certificate svid.pem
  warren audit head -o json > head.json
  warren audit prove --certificate svid.pem --since head.json -o json > proof.json
  warren audit verify --proof proof.json --head head.json --certificate svid.pem --root root.pem")]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// The newest rows, newest first
    List {
        /// How many.
        #[arg(long, value_name = "COUNT", default_value_t = 50)]
        limit: usize,
    },
    /// Print every row as it is stored, oldest first, one a line
    Export {
        /// Only rows behind this one.
        #[arg(long, value_name = "SEQ", default_value_t = 0)]
        after: u64,
    },
    /// Print the signed head of the tree over all rows
    Head {
        #[command(flatten)]
        since: Since,
    },
    /// Print a row with the proof that it is in the log
    #[command(group = clap::ArgGroup::new("which").required(true))]
    Prove {
        /// The row that issued a certificate with this serial number, hexadecimal. That alone does not identify one.
        #[arg(value_name = "SERIAL", group = "which")]
        serial: Option<String>,
        /// The row that issued this certificate, PEM or DER.
        #[arg(long, value_name = "FILE", group = "which")]
        certificate: Option<PathBuf>,
        /// The row with this number.
        #[arg(long, value_name = "SEQ", group = "which")]
        row: Option<u64>,
        #[command(flatten)]
        since: Since,
    },
    /// Check every link of the chain, or a proof
    Verify {
        /// Check this file of exported rows, here; `-` reads stdin.
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Check this proof, here, by the mesh's root certificate (--root); `-` reads stdin.
        #[arg(long, value_name = "FILE", conflicts_with = "file")]
        proof: Option<PathBuf>,
        /// A head that was kept earlier: the log must begin with the log of then. Takes --proof made with --since, or --file.
        #[arg(long, value_name = "FILE")]
        head: Option<PathBuf>,
        /// The hash of a row that was noted earlier: the log must pass through it.
        #[arg(long, value_name = "HASH", requires = "file")]
        noted: Option<String>,
        /// A serial number, hexadecimal: the issuance of a certificate with it must be in the log. That alone does not identify one.
        #[arg(long, value_name = "SERIAL", conflicts_with = "certificate")]
        serial: Option<String>,
        /// A certificate, PEM or DER: its issuance must be in the log.
        #[arg(long, value_name = "FILE")]
        certificate: Option<PathBuf>,
    },
}

#[derive(Debug, clap::Args)]
struct Since {
    /// Prove also that the log of this head, kept earlier, is the beginning of the log of now.
    #[arg(long, value_name = "FILE")]
    since: Option<PathBuf>,
}

impl Since {
    /// As the API takes it.
    fn query(&self) -> Result<Option<String>, Failure> {
        let Some(path) = &self.since else { return Ok(None) };
        Ok(Some(format!("since={}", audit_proof::read(path)?.head.size)))
    }
}

/// The certificate that a command is about, where it is about one.
fn wanted(serial: Option<&str>, certificate: Option<&Path>) -> Result<Option<Wanted>, Failure> {
    match (serial, certificate) {
        (_, Some(file)) => Wanted::read(file).map(Some),
        (serial, None) => serial.map(Wanted::by_serial).transpose(),
    }
}

pub(super) fn run(arguments: Arguments, context: &Context) -> Outcome {
    if let Verb::Verify { file, proof, head, noted, serial, certificate } = &arguments.verb {
        let issued = wanted(serial.as_deref(), certificate.as_deref())?;
        let trusted = || audit_proof::Trusted::read(arguments.connection.root()?);
        let kept = match head {
            Some(path) => Some(trusted()?.head(&audit_proof::read(path)?)?),
            None => None,
        };
        match (file, proof) {
            (Some(file), _) => return verify_file(file, &Questions { noted: noted.clone(), issued, kept }, context),
            (None, Some(path)) => {
                let report = trusted()?.verify(&audit_proof::read(path)?, issued.as_ref(), kept.as_ref())?;
                context.output.print(&report)?;
                return Ok(if report.holds { Exit::Yes } else { Exit::No });
            }
            (None, None) if issued.is_some() || kept.is_some() => {
                let text = "--certificate, --serial and --head are asked of a proof or of exported rows";
                return Err(Failure::new(Exit::Usage, text)
                    .next("warren audit verify --proof FILE, or --file FILE; the coordinator's word alone would prove nothing"));
            }
            (None, None) => {}
        }
    }
    let mut issued = None;
    let asked = match &arguments.verb {
        Verb::Head { since } => since.query()?.into_iter().collect::<Vec<_>>(),
        Verb::Prove { serial, certificate, row, since } => {
            issued = wanted(serial.as_deref(), certificate.as_deref())?;
            let serial = issued.as_ref().map(|issued| format!("serial={}", issued.serial));
            let row = row.map(|row| format!("row={row}"));
            serial.into_iter().chain(row).chain(since.query()?).collect()
        }
        Verb::List { .. } | Verb::Export { .. } | Verb::Verify { .. } => Vec::new(),
    };
    block_on(async {
        let mut client = arguments.connection.open().await?;
        match arguments.verb {
            Verb::Head { .. } | Verb::Prove { .. } => {
                let proof: AuditProof = client.get(&format!("/audit/proof?{}", asked.join("&"))).await?;
                if let Some(issued) = issued
                    && let Err(problem) = audit_proof::check_row(&proof, &issued)
                {
                    return Err(Failure::new(Exit::No, problem)
                        .next(format!("see what it issued: warren audit prove {}", issued.serial)));
                }
                context.output.print(&proof)?;
                Ok(Exit::Yes)
            }
            Verb::List { limit } => {
                let items = client.list("/audit", limit, |list: AuditList| list.page).await?;
                context.output.print(&Items { items })?;
                Ok(Exit::Yes)
            }
            Verb::Export { mut after } => loop {
                let part: AuditExport = client.get(&format!("/audit/rows?after={after}")).await?;
                for row in &part.rows {
                    context.output.print_text(row)?;
                }
                match part.next {
                    Some(next) => after = next,
                    None => return Ok(Exit::Yes),
                }
            },
            Verb::Verify { .. } => {
                let report: AuditReport = client.get("/audit/verify").await?;
                context.output.print(&report)?;
                Ok(if report.intact { Exit::Yes } else { Exit::No })
            }
        }
    })
}

fn verify_file(path: &Path, questions: &Questions, context: &Context) -> Outcome {
    let unreadable = |error: std::io::Error| {
        let exit = if error.kind() == std::io::ErrorKind::NotFound { Exit::NotFound } else { Exit::Failed };
        let next = format!("warren audit export > {}", path.display());
        Failure::new(exit, format!("{} cannot be read", path.display())).cause(&error).next(next)
    };
    let report = if path == Path::new("-") {
        verify(std::io::stdin().lock(), questions)
    } else {
        verify(BufReader::new(File::open(path).map_err(unreadable)?), questions)
    };
    let report = report.map_err(unreadable)?;
    if !report.is_an_export {
        let text = format!("{} is no export of the audit log: {}", path.display(), report.report.problem);
        let next = "warren audit export > audit.jsonl writes one: one row a line, as the coordinator stores it";
        return Err(Failure::new(Exit::Usage, text).next(next));
    }
    context.output.print(&report)?;
    Ok(if report.holds { Exit::Yes } else { Exit::No })
}

impl Rows for AuditEntry {
    const LIST: &'static str = "AuditList";
    const NONE: &'static str = "the log is empty";

    fn table(items: &[Self], wide: bool) -> Table {
        if wide {
            let mut table = Table::new(["SEQ", "TIME", "WHO", "ACTION", "OBJECT", "WHY", "NEW"]);
            for row in items {
                let new = row.new.as_ref().map(ToString::to_string).unwrap_or_default();
                let (seq, time) = (row.seq.to_string(), row.time.to_string());
                table.row([&seq, &time, &row.who, &row.action, &row.object, &row.why, &new]);
            }
            return table;
        }
        let mut table = Table::new(["SEQ", "TIME", "WHO", "ACTION", "OBJECT", "WHY"]);
        for row in items {
            table.row([&row.seq.to_string(), &row.time.to_string(), &row.who, &row.action, &row.object, &row.why]);
        }
        table
    }
}

impl Present for AuditReport {
    const KIND: &'static str = "AuditReport";

    fn text(&self, _wide: bool) -> String {
        if !self.intact {
            return format!("fail the audit log is broken: {}", self.problem);
        }
        format!("ok {} rows, {} to {}, unbroken\nhead {}", self.entries, self.first, self.last, self.head)
    }
}
