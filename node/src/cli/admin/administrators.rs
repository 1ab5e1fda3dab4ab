//! `warren admin claim` and `warren admin token create | list | delete`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use hyper::Method;
use warren_proto::admin::{AdminToken, AdminTokenList, Claim, CreatedAdminToken, Deleted, NewAdminToken};

use super::connection::Connection;
use super::{Context, Exit, Items, Outcome, Present, Rows, Table, confirm, duration, joined};
use crate::admin_client::Terms;
use crate::cli::block_on;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
`warren-coordinator init` leaves a first-run token in a file. It can be exchanged once, for the first administrator's token; that makes further ones.

Examples:
  warren admin claim --first-run-token-file DIR/first-run-token > admin.token
  warren admin token create eve --role viewer --ttl 30d > eve.token
  warren admin token create shop-team --role policy-admin --namespace shop > shop.token
  warren admin token list")]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Exchange the first-run token for the first administrator's token, once
    Claim {
        /// The file that `init` wrote.
        #[arg(long, value_name = "FILE")]
        first_run_token_file: PathBuf,
        /// What the administrator is called in the audit log.
        #[arg(long, value_name = "NAME", default_value = "admin")]
        name: String,
    },
    /// Administrators' tokens
    Token {
        #[command(subcommand)]
        verb: TokenVerb,
    },
}

#[derive(Debug, Subcommand)]
enum TokenVerb {
    /// Make a token and print it, this once
    Create {
        /// What its holder is called in the audit log.
        name: String,
        /// What it may do.
        #[arg(long, value_enum, value_name = "ROLE", default_value = "viewer")]
        role: Role,
        /// A namespace that it may change things in; may be repeated. Without one: all.
        #[arg(long = "namespace", value_name = "NAME")]
        namespaces: Vec<String>,
        /// How long it is accepted.
        #[arg(long, value_name = "TIME", default_value = "90d", value_parser = duration)]
        ttl: Duration,
        /// Why, for the audit log.
        #[arg(short = 'm', long, value_name = "WORDS", default_value = "")]
        why: String,
    },
    /// Every token, without its secret
    List,
    /// Take a token back
    Delete {
        /// The token's id, shown by `list`.
        id: String,
        /// Why, for the audit log.
        #[arg(short = 'm', long, value_name = "WORDS", default_value = "")]
        why: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Role {
    /// Reads everything but secrets.
    Viewer,
    /// And join tokens, nodes, revocations.
    Operator,
    /// Viewer, and policy.
    PolicyAdmin,
    /// Everything.
    CaAdmin,
}

impl From<Role> for warren_proto::admin::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Viewer => Self::Viewer,
            Role::Operator => Self::Operator,
            Role::PolicyAdmin => Self::PolicyAdmin,
            Role::CaAdmin => Self::CaAdmin,
        }
    }
}

pub(super) fn run(arguments: Arguments, context: &Context) -> Outcome {
    block_on(async {
        let verb = match arguments.verb {
            Verb::Claim { first_run_token_file, name } => {
                let mut client = arguments.connection.open_with(&first_run_token_file).await?;
                let made = client.change(Method::POST, "/claim", Some(&Claim { name }), &Terms::default()).await?;
                return show(context, &made);
            }
            Verb::Token { verb } => verb,
        };
        let mut client = arguments.connection.open().await?;
        match verb {
            TokenVerb::Create { name, role, namespaces, ttl, why } => {
                let new = NewAdminToken { name, role: role.into(), namespaces, lifetime_seconds: ttl.as_secs() };
                let terms = Terms { why, ..Terms::default() };
                let made = client.change(Method::POST, "/admin-tokens", Some(&new), &terms).await?;
                show(context, &made)
            }
            TokenVerb::List => {
                let items = client.list("/admin-tokens", usize::MAX, |list: AdminTokenList| list.page).await?;
                context.output.print(&Items { items })?;
                Ok(Exit::Yes)
            }
            TokenVerb::Delete { id, why, yes } => {
                confirm(context, &format!("whoever holds token {id} is locked out at once"), yes)?;
                let terms = Terms { why, ..Terms::default() };
                let path = format!("/admin-tokens/{id}");
                let gone: Deleted = client.change(Method::DELETE, &path, None::<&()>, &terms).await?;
                context.output.print(&gone)?;
                Ok(Exit::Yes)
            }
        }
    })
}

fn show(context: &Context, made: &CreatedAdminToken) -> Outcome {
    context.output.print(made)?;
    let AdminToken { id, name, expires_at, .. } = &made.token;
    context.output.say(format!(
        "token {id} of {name}, until {expires_at}; it is not shown again, keep it in a file of mode 0600"
    ));
    Ok(Exit::Yes)
}

impl Present for CreatedAdminToken {
    const KIND: &'static str = "CreatedAdminToken";

    /// The token alone, so that it can be sent to a file.
    fn text(&self, _wide: bool) -> String {
        self.secret.clone().unwrap_or_default()
    }
}

impl Rows for AdminToken {
    const LIST: &'static str = "AdminTokenList";
    const NONE: &'static str = "no administrators' tokens";

    fn table(items: &[Self], _wide: bool) -> Table {
        let mut table = Table::new(["ID", "NAME", "ROLE", "NAMESPACES", "EXPIRES", "BY"]);
        for token in items {
            let role = Role::value_variants().iter().find(|role| warren_proto::admin::Role::from(**role) == token.role);
            let role = role.and_then(ValueEnum::to_possible_value).map(|value| value.get_name().to_owned());
            let namespaces = if token.namespaces.is_empty() { "all".to_owned() } else { joined(&token.namespaces) };
            table.row([
                token.id.clone(),
                token.name.clone(),
                if token.first_run { "first-run".to_owned() } else { role.unwrap_or_default() },
                namespaces,
                token.expires_at.to_string(),
                token.created_by.clone(),
            ]);
        }
        table
    }
}
