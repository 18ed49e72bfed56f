//! Where a trace goes when it is over: stdout in the form that was asked for, and files. Also what `--replay` does.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
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
            emit(&Machine::line(&report::row_of_packet(&capture, *helper, packet))?)?;
        }
        return Ok(if capture.saw_something() { Exit::Done } else { Exit::Nothing });
    }
    let report = report::report(&capture);
    show(args, &report, style)?;
    exports(args, 1, &report)?;
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

/// The file of one part of a trace that follows its pods: `report.html` of the first, `report-2.html` of the second. What is not a regular
/// file, such as a pipe, or is below /dev or /proc, such as /dev/stdout, takes all parts.
pub(super) fn of_part(path: &Path, part: u32) -> PathBuf {
    if part <= 1 || ["/dev", "/proc"].iter().any(|dir| path.starts_with(dir)) || path.metadata().is_ok_and(|m| !m.is_file()) {
        return path.to_owned();
    }
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!("-{part}"));
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

/// Files besides stdout, of one part.
pub(super) fn exports(args: &cli::Trace, part: u32, report: &report::Report) -> Result<()> {
    let file = |path: &Option<PathBuf>| path.as_deref().map(|path| of_part(path, part));
    if let Some(path) = file(&args.html) {
        std::fs::write(&path, html::render(report)).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = file(&args.svg) {
        std::fs::write(&path, svg::render(&Picture::of(report))).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = file(&args.perfetto) {
        let write = || perfetto::write(report, &mut BufWriter::new(File::create(&path)?));
        write().with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = file(&args.pcapng) {
        let write = || pcapng::write(report, &mut BufWriter::new(File::create(&path)?));
        write().with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_has_files_of_its_own() {
        let of = |path, part| of_part(Path::new(path), part).display().to_string();
        assert_eq!(of("out/report.html", 1), "out/report.html");
        assert_eq!(of("out/report.html", 2), "out/report-2.html");
        assert_eq!(of("a.b/report", 12), "a.b/report-12");
        assert_eq!(of("web.rec.gz", 3), "web.rec-3.gz");
        assert_eq!(of("/dev/null", 2), "/dev/null");
        assert_eq!(of("/dev/fd/63", 2), "/dev/fd/63");
    }
}
