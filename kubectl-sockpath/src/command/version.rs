//! `version`.

use anyhow::Result;
use serde::Serialize;
use sockpath_protocol::PROTOCOL_VERSION;

use super::print;
use crate::cli;
use crate::exit::Exit;

#[derive(Serialize)]
struct Versions {
    plugin: &'static str,
    protocol: u32,
}

/// Prints the versions.
pub fn run(args: &cli::Version) -> Result<Exit> {
    let versions = Versions { plugin: env!("CARGO_PKG_VERSION"), protocol: PROTOCOL_VERSION };
    match args.output {
        Some(cli::TableOutput::Json) => print(&format!("{}\n", serde_json::to_string_pretty(&versions)?))?,
        None => print(&format!("kubectl-sockpath {} (helper protocol {})\n", versions.plugin, versions.protocol))?,
    }
    Ok(Exit::Done)
}
