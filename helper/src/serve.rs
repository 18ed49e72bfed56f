//! Serves a session: which mode answers which request, and how the process ends.

use std::process::ExitCode;

use anyhow::Result;
use sockpath_protocol::message::EndReason;
use sockpath_protocol::{Message, Request};

use crate::accelerate::detached::Afterwards;
use crate::coded::Coded;
use crate::session::{Inbound, Session};
use crate::site::Site;
use crate::{accelerate, doctor, seccomp, trace};

/// Serves one session on stdin and stdout.
///
/// # Errors
/// When a line cannot be written, or what continues after the session fails.
pub async fn serve(site: Site) -> Result<ExitCode> {
    let mut session = Session::open(site, doctor::features())?;
    let mut afterwards = None;
    let outcome = loop {
        match session.next().await {
            Inbound::Request(Request::Finish) => break Ok(EndReason::Finished),
            Inbound::Request(request) => match dispatch(&mut session, request, &mut afterwards).await {
                // A mode that is done leaves the session open for the next request.
                Ok(EndReason::Done) => session.goes_on(),
                other => break other,
            },
            Inbound::Stop(reason) => break Ok(reason),
        }
    };
    let (reason, code) = match outcome {
        Ok(reason) => (reason, ExitCode::SUCCESS),
        Err(e) if seccomp::refuses_bpf() => {
            let text = format!("the seccomp profile of the helper's container refuses bpf(2) ({e:#})\n{}", seccomp::ADVICE);
            session.send(&Message::Error { text, code: "seccomp".to_owned() })?;
            (EndReason::Failed, ExitCode::FAILURE)
        }
        Err(e) => {
            session.fail(&e)?;
            (EndReason::Failed, ExitCode::FAILURE)
        }
    };
    session.end(reason)?;
    if let Some(afterwards) = afterwards {
        accelerate::detached::stay(&mut session, afterwards).await?;
    } else if matches!(session.site(), Site::Node) && matches!(reason, EndReason::Done | EndReason::Finished | EndReason::Failed) {
        session.await_its_end().await;
    }
    Ok(code)
}

/// Has a mode answer; `afterwards` gets what the process goes on with when the session is over.
async fn dispatch(session: &mut Session, request: Request, afterwards: &mut Option<Afterwards>) -> Result<EndReason> {
    match request {
        Request::Trace(request) => trace::run(session, *request).await,
        Request::Accelerate(request) => {
            let (reason, goes_on) = accelerate::run(session, *request).await?;
            *afterwards = goes_on;
            Ok(reason)
        }
        Request::Status => accelerate::status(session).await,
        Request::Stop(request) => accelerate::stop(session, &request).await,
        Request::Doctor => doctor::run(session),
        Request::Cleanup => accelerate::cleanup(session).await,
        Request::Probe(_) | Request::LookForBypass => Err(Coded::new("protocol", "a probe request outside a trace")),
        Request::Choose(_) | Request::Pause(_) | Request::Resume(_) => {
            Err(Coded::new("protocol", "`choose`, `pause` and `resume` belong to a running acceleration"))
        }
        Request::Hello { .. } | Request::Clock { .. } | Request::Heartbeat | Request::Finish => Ok(EndReason::Done),
    }
}
