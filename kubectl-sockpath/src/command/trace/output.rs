//! Where a trace goes when it is over: stdout in the form that was asked for, and files. Also what `--replay` does.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};

use crate::cli::{self, TraceOutput};
use crate::exit::{Exit, UsageError};
use crate::output::{Machine, emit, emit_document, print};
use crate::recording;
use crate::render::diff::render as render_diff;
use crate::render::picture::{Picture, mermaid, svg};
use crate::render::{html, pcapng, perfetto, plain, waterfall, wide};
use crate::report;
use crate::terminal::Style;

/// Renders a recording.
pub(super) fn replay(path: &Path, args: &cli::Trace, style: &Style) -> Result<Exit> {
    let capture = Arc::new(recording::replay(path)?);
    if args.output == Some(TraceOutput::Jsonl) {
        for (helper, packet) in &capture.packets {
            emit(&Machine::line(&report::packet_row(&capture, *helper, packet))?)?;
        }
        return Ok(if capture.saw_something() { Exit::Done } else { Exit::Nothing });
    }
    let report = report::report(&capture);
    show(args, &report, style)?;
    exports(args, &report)?;
    Ok(if capture.saw_something() { Exit::Done } else { Exit::Nothing })
}

/// Compares two recordings.
pub(super) fn diff(before: &Path, after: &Path, args: &cli::Trace, style: &Style) -> Result<Exit> {
    let of = |path| recording::replay(path).map(|capture| report::report(&Arc::new(capture)));
    let (before, after) = (of(before)?, of(after)?);
    let found = report::diff::diff(&before, &after);
    match args.output {
        None => print(&render_diff(&found, &before, &after, style))?,
        Some(TraceOutput::Json) => emit_document(&found)?,
        Some(_) => return Err(UsageError::new("--diff prints text, or one document with -o json")),
    }
    Ok(Exit::Done)
}

/// Explains an id; all of them for an empty word.
pub(super) fn explain(word: &str, style: &Style) -> Result<Exit> {
    let text = if word.is_empty() { Some(report::explain::list(style)) } else { report::explain::explain(word, style) };
    let Some(text) = text else {
        return Err(UsageError::new(format!("unknown id `{word}`: trace --explain lists them")));
    };
    print(&text)?;
    Ok(Exit::Done)
}

/// Writes the report to stdout in the form that was asked for.
pub(super) fn show(args: &cli::Trace, report: &report::Report, style: &Style) -> Result<()> {
    match args.output {
        None => print(&waterfall::render(report, style)),
        Some(TraceOutput::Wide) => print(&wide::render(report, style)),
        Some(TraceOutput::Json) => emit_document(report),
        Some(TraceOutput::Plain) => print(&plain::render(report)),
        Some(TraceOutput::Mermaid) => print(&mermaid::render(&Picture::of(report))),
        Some(TraceOutput::Jsonl | TraceOutput::Yaml) => Err(UsageError::new("this output format is not for a report")),
    }
}

/// Files besides stdout.
pub(super) fn exports(args: &cli::Trace, report: &report::Report) -> Result<()> {
    if let Some(path) = &args.html {
        std::fs::write(path, html::render(report)).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &args.svg {
        std::fs::write(path, svg::render(&Picture::of(report))).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &args.perfetto {
        let write = || perfetto::write(report, &mut BufWriter::new(File::create(path)?));
        write().with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &args.pcapng {
        let write = || pcapng::write(report, &mut BufWriter::new(File::create(path)?));
        write().with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
