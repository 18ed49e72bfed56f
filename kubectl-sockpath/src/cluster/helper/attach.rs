//! The stream to a helper: its stdin and stdout over WebSocket, and the cause of its end.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{AttachParams, AttachedProcess};
use sockpath_protocol::Request;
use sockpath_protocol::text::first_line;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, sleep, timeout};

use crate::cluster::api::client::Api;
use crate::cluster::api::problem::{Kind, Problem};
use crate::cluster::helper::advice;
use crate::cluster::helper::garbage::{DeletionMode, PendingDeletions};
use crate::cluster::helper::owner::random_suffix;
use crate::cluster::helper::pod::CONTAINER;
use crate::cluster::helper::startup::{REPORT, terminated};
use crate::output;
use crate::session::{Aftermath, Ending, Keeper, LastLines, Reopened, Transport};

/// Bytes that wait for us before the helper has to: kube's own default is 1 KiB, one packet's hops are more.
const STDOUT_BUFFER: usize = 256 << 10;
/// Requests of some hundred pods go out without waiting. It is kept for each of hundreds of helpers.
const STDIN_BUFFER: usize = 32 << 10;
/// What is known about a pod without the API server.
const UNREACHABLE: &str = "the API server cannot be reached";
/// How long to ask what became of a pod.
const AUTOPSY: Duration = Duration::from_millis(700);

/// Attaches to the helper's process. Its first `hello` may have been sent before the attachment, so another one is requested.
///
/// # Errors
/// When the API server or the kubelet refuses; [`Kind::NotFound`] while the container does not run yet.
pub async fn attach(
    api: &Api,
    namespace: &str,
    name: &str,
    node: &str,
    pending: &PendingDeletions,
    verbose: bool,
) -> Result<Transport, Problem> {
    let target = Target { api: api.clone(), namespace: namespace.to_owned(), name: name.to_owned(), secret: secret(), verbose };
    let Attached { process, stderr, reader, writer } = target.attach(false).await?;
    let keeper = PodKeeper { process, stderr, target, node: node.to_owned(), pending: pending.clone() };
    Ok(Transport { nodes: vec![node.to_owned()], reader, writer, keeper: Box::new(keeper) })
}

/// Shows a helper that a second connection comes from the plugin of the first: as many letters and digits as in a UUID.
fn secret() -> String {
    (0..5).map(|_| random_suffix()).collect()
}

/// A helper's process, to attach to.
struct Target {
    api: Api,
    namespace: String,
    name: String,
    secret: String,
    verbose: bool,
}

/// A connection to it.
struct Attached {
    process: AttachedProcess,
    stderr: LastLines,
    reader: Box<dyn AsyncRead + Send + Unpin>,
    writer: Box<dyn AsyncWrite + Send + Unpin>,
}

impl Target {
    fn pods(&self) -> kube::Api<Pod> {
        kube::Api::namespaced(self.api.client(), &self.namespace)
    }

    /// Attaches; `again`: after a connection that may have broken in the middle of a line.
    async fn attach(&self, again: bool) -> Result<Attached, Problem> {
        let Self { namespace, name, .. } = self;
        let params = AttachParams::default()
            .container(CONTAINER)
            .stdin(true)
            .stdout(true)
            .stderr(true)
            .max_stdout_buf_size(STDOUT_BUFFER)
            .max_stdin_buf_size(STDIN_BUFFER)
            .max_stderr_buf_size(STDIN_BUFFER);
        let what = format!("attach to the helper pod {namespace}/{name}");
        let attached = self.api.ask(&what, self.pods().attach(name, &params)).await;
        let mut process = attached.map_err(|p| advice::for_attach(p, namespace))?;
        let over = process.take_status();
        let (Some(mut stdin), Some(stdout), Some(stderr)) = (process.stdin(), process.stdout(), process.stderr()) else {
            return Err(Problem::new(Kind::Other, format!("cannot {what}: the stream has no stdin or stdout")));
        };
        let mut line = if again { vec![b'\n'] } else { Vec::new() };
        let hello = Request::Hello { secret: Some(self.secret.clone()) };
        serde_json::to_writer(&mut line, &hello).map_err(|e| Problem::new(Kind::Other, format!("cannot {what}: {e}")))?;
        line.push(b'\n');
        stdin.write_all(&line).await.map_err(|e| Problem::new(Kind::Unreachable, format!("cannot {what}: {e}")))?;
        Ok(Attached {
            process,
            stderr: LastLines::of(stderr, self.verbose),
            reader: Box::new(UntilOver::new(stdout, over)),
            writer: Box::new(stdin),
        })
    }
}

/// A stream that ends when the connection does. kube (5.0) ends it only when the connection is closed in order: after an error
/// its reader would never return, because dropping the writing half of a `tokio::io::simplex` does not close it.
struct UntilOver<R> {
    inner: R,
    over: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl<R> UntilOver<R> {
    fn new<T>(inner: R, over: Option<impl Future<Output = T> + Send + 'static>) -> Self {
        Self { inner, over: over.map(|f| Box::pin(async move { drop(f.await) }) as _) }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for UntilOver<R> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Poll::Ready(read) = Pin::new(&mut this.inner).poll_read(cx, buf) {
            return Poll::Ready(read);
        }
        if let Some(over) = &mut this.over {
            std::task::ready!(over.as_mut().poll(cx));
            this.over = None;
        }
        // Nothing more will be written; what was written before the end can be read now.
        match Pin::new(&mut this.inner).poll_read(cx, buf) {
            Poll::Pending => Poll::Ready(Ok(())),
            read => read,
        }
    }
}

struct PodKeeper {
    process: AttachedProcess,
    stderr: LastLines,
    target: Target,
    node: String,
    pending: PendingDeletions,
}

impl Keeper for PodKeeper {
    fn end(self: Box<Self>, how: Ending) -> Pin<Box<dyn Future<Output = Aftermath> + Send>> {
        Box::pin(async move {
            // Closes the WebSocket.
            self.process.abort();
            let (pods, name) = (self.target.pods(), &self.target.name);
            let cause = match how {
                Ending::Done | Ending::Stay => String::new(),
                Ending::Signalled => cause_of_signal(&self.target, &self.node).await,
                Ending::Kill => autopsy(&pods, name, &self.node, Duration::ZERO).await,
                Ending::Gone => autopsy(&pods, name, &self.node, REPORT).await,
            };
            let settled = match how {
                Ending::Stay => {
                    self.pending.forget(name);
                    Ok(())
                }
                Ending::Done => self.pending.delete(name, DeletionMode::Ended).await,
                // It is deleted when the command ends: the API server may be back by then.
                Ending::Kill | Ending::Gone if cause == UNREACHABLE => Ok(()),
                Ending::Kill | Ending::Gone | Ending::Signalled => self.pending.delete(name, DeletionMode::Running).await,
            };
            if let Err(p) = settled {
                output::say(&format!("warning: {p}"));
            }
            let mut stderr = self.stderr.conclude(Duration::ZERO).await;
            // The pod's status may have the same last words.
            if cause.ends_with(stderr.trim()) {
                stderr.clear();
            }
            Aftermath { cause, stderr }
        })
    }

    fn reopen(&mut self) -> Pin<Box<dyn Future<Output = Reopened> + Send + '_>> {
        Box::pin(async move {
            self.process.abort();
            let problem = match self.target.attach(true).await {
                Ok(Attached { process, stderr, reader, writer }) => {
                    (self.process, self.stderr) = (process, stderr);
                    return Reopened::Open(reader, writer);
                }
                Err(p) => p,
            };
            // An answer says more than the lack of one: the pod's status, whether the helper still runs.
            match timeout(AUTOPSY, self.target.pods().get_opt(&self.target.name)).await {
                Ok(Ok(Some(pod))) if cause_of_end(&pod, &self.node).is_some() => Reopened::Never(String::new()),
                Ok(Ok(None)) => Reopened::Never(String::new()),
                _ if matches!(problem.kind, Kind::Forbidden | Kind::Unauthorized) => Reopened::Never(problem.to_string()),
                _ => Reopened::NotYet(first_line(&problem.to_string()).to_owned()),
            }
        })
    }
}

/// Why a helper received a signal, as the API server knows it.
async fn cause_of_signal(target: &Target, node: &str) -> String {
    let pod = match timeout(AUTOPSY, target.pods().get_opt(&target.name)).await {
        Ok(Ok(pod)) => pod,
        Ok(Err(_)) | Err(_) => return "why is unknown: the API server cannot be reached".to_owned(),
    };
    if let Some(text) = pod.as_ref().and_then(|pod| disruption(pod, node)) {
        return text;
    }
    let namespaces: kube::Api<Namespace> = kube::Api::all(target.api.client());
    match timeout(AUTOPSY, namespaces.get(&target.namespace)).await {
        Ok(Ok(namespace)) if namespace.metadata.deletion_timestamp.is_some() => {
            format!("its namespace {} is being deleted", target.namespace)
        }
        _ if pod.is_none_or(|pod| pod.metadata.deletion_timestamp.is_some()) => "its pod was deleted by another client".to_owned(),
        _ => format!("by a process on node {node}"),
    }
}

/// Why the cluster ends a pod, where the cause is not a deletion by a client.
fn disruption(pod: &Pod, node: &str) -> Option<String> {
    let status = pod.status.as_ref()?;
    let condition = status.conditions.iter().flatten().find(|c| c.type_ == "DisruptionTarget" && c.status == "True");
    let message = condition.and_then(|c| c.message.as_deref()).or(status.message.as_deref()).map(|m| format!(" ({m})")).unwrap_or_default();
    Some(match condition.and_then(|c| c.reason.as_deref()).or(status.reason.as_deref())? {
        "EvictionByEvictionAPI" => format!("its pod was evicted, as when node {node} is drained"),
        "DeletionByTaintManager" => format!("its pod does not tolerate a taint of node {node}{message}"),
        "PreemptionByScheduler" => format!("its pod was preempted by one of higher priority on node {node}"),
        "TerminationByKubelet" => format!("the kubelet of node {node} ended its pod{message}"),
        reason => format!("its pod was ended ({reason}){message}"),
    })
}

/// What the API server knows about how a helper ended. The kubelet is given `patience` to report it.
async fn autopsy(pods: &kube::Api<Pod>, name: &str, node: &str, patience: Duration) -> String {
    let deadline = Instant::now() + patience;
    loop {
        let cause = match timeout(AUTOPSY, pods.get_opt(name)).await {
            Ok(Ok(Some(pod))) => cause_of_end(&pod, node),
            Ok(Ok(None)) => Some(format!("the helper pod {name} on node {node} was deleted by another client")),
            Ok(Err(_)) | Err(_) => Some(UNREACHABLE.to_owned()),
        };
        if let Some(cause) = cause {
            return cause;
        }
        if Instant::now() >= deadline {
            return format!("the stream to node {node} broke");
        }
        sleep(REPORT / 20).await;
    }
}

/// `None` where nothing was reported: the stream broke before the process ended, or the node is cut off.
fn cause_of_end(pod: &Pod, node: &str) -> Option<String> {
    let status = pod.status.clone().unwrap_or_default();
    if let Some(reason) = status.reason.as_deref().filter(|r| !r.is_empty()) {
        let message = status.message.map(|m| format!(": {m}")).unwrap_or_default();
        return Some(format!("the helper pod on node {node} was ended ({reason}){message}"));
    }
    Some(match terminated(&status) {
        Some(t) if t.reason.as_deref() == Some("OOMKilled") => format!("the helper on node {node} exceeded its memory limit"),
        Some(t) if t.exit_code > 128 => format!("the helper on node {node} was killed by signal {}", t.exit_code - 128),
        Some(t) => {
            let words = t.message.as_deref().map(str::trim).filter(|m| !m.is_empty()).map(|m| format!(": {m}")).unwrap_or_default();
            format!("the helper on node {node} has ended with exit code {}{words}", t.exit_code)
        }
        None if pod.metadata.deletion_timestamp.is_some() => format!("the helper pod on node {node} is being deleted by another client"),
        None => return None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cluster::api::mock::Mock;

    fn cause(metadata: Value, status: Value) -> String {
        let pod = serde_json::from_value(json!({"metadata": metadata, "status": status})).unwrap();
        cause_of_end(&pod, "n1").unwrap_or_else(|| "nothing is reported".to_owned())
    }

    fn terminated(state: Value) -> Value {
        json!({"containerStatuses": [
            {"name": "helper", "ready": false, "restartCount": 0, "image": "", "imageID": "", "state": {"terminated": state}}]})
    }

    #[tokio::test]
    async fn a_connection_that_breaks_ends_the_stream_after_what_it_brought() {
        use tokio::io::AsyncReadExt;
        let (reader, mut writer) = tokio::io::simplex(64);
        let (end, over) = tokio::sync::oneshot::channel::<()>();
        let mut stream = UntilOver::new(reader, Some(over));
        writer.write_all(b"last words").await.unwrap();
        // What kube does after an error: everything is dropped, nothing is shut down.
        drop((writer, end));
        let mut said = String::new();
        tokio::time::timeout(Duration::from_secs(5), stream.read_to_string(&mut said)).await.expect("it ends").unwrap();
        assert_eq!(said, "last words");
    }

    #[test]
    fn how_a_helper_ended_is_put_into_words() {
        assert!(cause(json!({}), json!({"reason": "Evicted", "message": "low on memory"})).contains("(Evicted): low on memory"));
        assert!(cause(json!({}), terminated(json!({"exitCode": 137, "reason": "OOMKilled"}))).contains("memory limit"));
        assert!(cause(json!({}), terminated(json!({"exitCode": 137, "reason": "Error"}))).contains("killed by signal 9"));
        assert!(cause(json!({}), terminated(json!({"exitCode": 1}))).contains("exit code 1"));
        assert!(cause(json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}), json!({})).contains("deleted by another client"));
        assert_eq!(cause(json!({}), json!({"phase": "Running"})), "nothing is reported");
    }

    #[tokio::test]
    async fn the_pods_status_has_the_cause_of_a_signal() {
        let cause = async |pod: Option<Value>, namespace: Value| {
            let mock = Mock::default().on("GET /api/v1/namespaces/sockpath", 200, json!({"metadata": namespace}));
            let mock = match pod {
                Some(pod) => mock.on("GET /api/v1/namespaces/sockpath/pods/x", 200, pod),
                None => mock,
            };
            let (api, text) = (mock.api("sockpath"), |s: &str| s.to_owned());
            cause_of_signal(&Target { api, namespace: text("sockpath"), name: text("x"), secret: secret(), verbose: false }, "n1").await
        };
        let deleted = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
        let evicted = json!([{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "by API"}]);
        let pod = |status: Value| Some(json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": status}));
        assert_eq!(cause(pod(json!({"conditions": evicted})), json!({})).await, "its pod was evicted, as when node n1 is drained");
        let killed = json!({"reason": "Terminated", "message": "Pod was terminated in response to imminent node shutdown."});
        assert!(cause(pod(killed), json!({})).await.contains("imminent node shutdown"));
        assert_eq!(cause(pod(json!({})), deleted).await, "its namespace sockpath is being deleted");
        for pod in [pod(json!({})), None] {
            assert_eq!(cause(pod, json!({})).await, "its pod was deleted by another client");
        }
        assert_eq!(cause(Some(json!({"metadata": {}})), json!({})).await, "by a process on node n1");
    }

    #[tokio::test]
    async fn where_nothing_is_reported_the_stream_broke() {
        let running = json!({"metadata": {"name": "x"}, "status": {"phase": "Running"}});
        let api = Mock::default().on("GET /api/v1/namespaces/sockpath/pods/x", 200, running).api("sockpath");
        let pods = kube::Api::namespaced(api.client(), "sockpath");
        assert!(autopsy(&pods, "x", "n1", Duration::ZERO).await.contains("stream to node n1 broke"));
    }
}
