//! `version`.

use anyhow::Result;
use serde::Serialize;
use sockpath_protocol::PROTOCOL_VERSION;

use crate::cli;
use crate::exit::Exit;
use crate::output::{self, Machine, Text};

#[derive(Serialize)]
struct Versions {
    plugin: &'static str,
    protocol: u32,
}

/// Prints the versions.
pub fn run(args: &cli::Version) -> Result<Exit> {
    let versions = Versions { plugin: env!("CARGO_PKG_VERSION"), protocol: PROTOCOL_VERSION };
    match args.output {
        Some(cli::TableOutput::Json) => output::emit(&Machine::document(&versions)?)?,
        None => output::print(&Text::of_line(&format!("kubectl-sockpath {} (helper protocol {})", versions.plugin, versions.protocol)))?,
    }
    Ok(Exit::Done)
}
