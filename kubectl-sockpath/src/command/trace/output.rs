//! Where a trace goes when it is over: stdout in the form that was asked for, and files. Also what `--replay` does.

use std::path::Path;

use anyhow::{Context, Result};

use crate::cli::{self, TraceOutput};
use crate::command::print;
use crate::exit::{Exit, UsageError};
use crate::recording;
use crate::render::{html, json, pcapng, waterfall, wide};
use crate::report;
use crate::terminal::Style;

/// Renders a recording.
pub(super) fn replay(path: &Path, args: &cli::Trace, style: &Style) -> Result<Exit> {
    let capture = recording::replay(path)?;
    if args.output == Some(TraceOutput::Jsonl) {
        for (helper, packet) in &capture.packets {
            print(&json::line(&report::packet_row(&capture, *helper, packet))?)?;
        }
        return Ok(if capture.saw_something() { Exit::Done } else { Exit::Nothing });
    }
    let report = report::report(&capture);
    print(&rendered(args, &report, style)?)?;
    exports(args, &report)?;
    Ok(if capture.saw_something() { Exit::Done } else { Exit::Nothing })
}

/// The report in the form that was asked for.
pub(super) fn rendered(args: &cli::Trace, report: &report::Report, style: &Style) -> Result<String> {
    match args.output {
        None => Ok(waterfall::render(report, style)),
        Some(TraceOutput::Wide) => Ok(wide::render(report, style)),
        Some(TraceOutput::Json) => json::document(report),
        Some(TraceOutput::Jsonl | TraceOutput::Yaml) => Err(UsageError::new("this form is not for a report")),
    }
}

/// Files besides stdout.
pub(super) fn exports(args: &cli::Trace, report: &report::Report) -> Result<()> {
    if let Some(path) = &args.html {
        std::fs::write(path, html::render(report)?).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &args.pcapng {
        std::fs::write(path, pcapng::render(report)).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
