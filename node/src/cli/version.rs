//! `warren version`.

use serde::Serialize;

use super::{Context, Exit, Outcome, Present, Table};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    version: &'static str,
    protocol: u32,
    reader: u32,
}

impl Present for Version {
    const KIND: &'static str = "Version";

    fn text(&self, _wide: bool) -> String {
        let mut table = Table::new(["VERSION", "PROTOCOL", "READER"]);
        table.row([self.version.to_owned(), self.protocol.to_string(), self.reader.to_string()]);
        table.to_string()
    }
}

pub(super) fn run(context: &Context) -> Outcome {
    context.output.print(&Version {
        version: env!("CARGO_PKG_VERSION"),
        protocol: warren_proto::PROTOCOL_VERSION,
        reader: warren_proto::READER_VERSION,
    })?;
    Ok(Exit::Yes)
}
