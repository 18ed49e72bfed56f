//! `trace`.

mod compare;
mod ends;
mod follow;
mod listening;
mod output;
mod session;

use anyhow::{Context, Result};

use crate::backend::Backend;
use crate::cli::{self, Global, TraceOutput};
use crate::cluster;
use crate::exit::{Exit, Interrupted, UsageError};
use crate::interrupt::Interrupt;
use crate::mode::Mode;
use crate::progress::Progress;
use crate::recording::Recorder;
use crate::terminal::Style;
use ends::Ends;
use follow::Following;
use output::replay;
use session::Session;

/// Runs it.
pub async fn run(args: &cli::Trace, global: &Global, progress: &Progress) -> Result<Exit> {
    let style = Style::of_stdout(global.color);
    if let Some(word) = &args.explain {
        return output::explain(word, &style);
    }
    if let Some([before, after]) = args.diff.as_deref() {
        return output::diff(before, after, args, &style);
    }
    if let Some(path) = &args.replay {
        return replay(path, args, &style);
    }
    let mode = if args.no_rules { Mode::TraceWithoutRules } else { Mode::Trace };
    if args.dry_run.as_deref() == Some("client") {
        crate::output::emit(&cluster::helper_pod_manifest(global, mode, args.output == Some(TraceOutput::Json))?)?;
        return Ok(Exit::Done);
    }
    if args.output == Some(TraceOutput::Yaml) {
        return Err(UsageError::new("-o yaml goes with --dry-run=client only; -o json prints the trace"));
    }
    let ends = Ends::of(args)?;
    for path in [&args.html, &args.svg, &args.perfetto, &args.pcapng].into_iter().flatten() {
        std::fs::File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    }
    let record = |part| args.record.as_deref().map(|path| Recorder::create(&output::of_part(path, part))).transpose();
    let mut recorder = record(1)?;
    let interrupt = Interrupt::watch()?;

    progress.phase("", "looking up names");
    let mut backend = tokio::select! {
        biased;
        () = interrupt.wait() => return Err(Interrupted.into()),
        backend = Backend::connect(global, true) => backend?,
    };
    let mut plan = tokio::select! {
        biased;
        () = interrupt.wait() => return Err(Interrupted.into()),
        plan = ends.look_up(&backend) => plan?,
    };
    if args.probe && plan.probe.is_none() {
        return Err(UsageError::new(format!(
            "--probe needs a port, and `{target}` has no known port: use {target}:PORT, or --protocol icmp",
            target = ends.target
        )));
    }
    let mut following = Following::new(args);
    loop {
        let fleet = tokio::select! {
            biased;
            () = interrupt.wait() => return Err(Interrupted.into()),
            fleet = backend.helpers(&plan.request.nodes, mode, progress) => fleet?,
        };
        let session = Session::new(args, plan, fleet, recorder.take(), interrupt.clone(), progress, &backend)?;
        let leg = session.within(&mut following).run(&style).await?;
        if let Some(exit) = following.take(leg) {
            return Ok(exit);
        }
        (backend, plan) = match following.successor(global, &interrupt, progress).await? {
            Some(found) => found,
            None => return Ok(Exit::Done),
        };
        recorder = record(following.part())?;
    }
}
