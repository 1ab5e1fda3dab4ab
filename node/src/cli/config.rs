//! `warren config show | validate | reference | schema`.

use clap::Subcommand;
use serde::Serialize;

use super::{Context, Exit, Failure, Outcome, Present, Table};
use crate::config::{self, Loaded};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Precedence: environment (WARREN_...), then the file, then the default.

Examples:
  warren config show                       every key, its value, and where it comes from
  warren config validate && systemctl restart warren
  warren config reference > warren.yaml    a file with every key documented
  warren config schema > warren.schema.json")]
pub(super) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Every key with its value and where it comes from
    Show,
    /// Check the file and the environment; names file, line and the nearest valid word
    Validate,
    /// Print a file with every key, its meaning and its default
    Reference,
    /// Print the file's JSON schema, whatever -o says: for editors and generators
    Schema,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    file: Option<String>,
    items: Vec<config::Setting>,
}

impl Present for Shown {
    const KIND: &'static str = "NodeConfig";

    fn text(&self, _wide: bool) -> String {
        let mut table = Table::new(["KEY", "VALUE", "FROM"]);
        for item in &self.items {
            table.row([item.key, &item.value, item.origin]);
        }
        table.to_string()
    }
}

pub(super) fn run(arguments: Arguments, context: &Context) -> Outcome {
    match arguments.verb {
        Verb::Reference => {
            context.output.print(&Reference { text: config::REFERENCE })?;
        }
        Verb::Schema => {
            let schema = serde_json::to_string_pretty(&config::schema())
                .map_err(|error| Failure::new(Exit::Failed, "the schema cannot be written").cause(&error))?;
            context.output.print_text(&schema)?;
        }
        Verb::Show => {
            let loaded = load(context)?;
            context.output.print(&Shown { file: file_name(&loaded), items: loaded.settings() })?;
        }
        Verb::Validate => {
            let loaded = load(context)?;
            let from = file_name(&loaded).unwrap_or_else(|| "no file; environment and defaults".to_owned());
            context.output.say(format!("valid: {from}"));
        }
    }
    Ok(Exit::Yes)
}

#[derive(Serialize)]
struct Reference {
    text: &'static str,
}

impl Present for Reference {
    const KIND: &'static str = "NodeConfigReference";

    fn text(&self, _wide: bool) -> String {
        self.text.to_owned()
    }
}

fn file_name(loaded: &Loaded) -> Option<String> {
    loaded.file.as_ref().map(|path| path.display().to_string())
}

/// Loads the configuration, or fails with what is wrong in it.
pub(super) fn load(context: &Context) -> Result<Loaded, Failure> {
    config::load(context.config.as_deref(), |name| std::env::var_os(name)).map_err(|error| {
        Failure::new(Exit::Usage, error.to_string())
            .next(error.hint().unwrap_or("warren config reference prints every key with its meaning"))
    })
}
