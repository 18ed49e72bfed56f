//! The stream to a helper: its stdin and stdout over WebSocket, and the cause of its end.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{AttachParams, AttachedProcess};
use sockpath_protocol::Request;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, sleep, timeout};

use super::client::Api;
use super::garbage::{DeletionMode, PendingDeletions};
use super::helper_pod::CONTAINER;
use super::problem::{Kind, Problem};
use super::remedy;
use super::startup::{REPORT, terminated};
use crate::output;
use crate::session::{Aftermath, Ending, Keeper, LastLines, Transport};

/// Bytes that wait for us before the helper has to: kube's own default is 1 KiB, one packet's hops are more.
const STDOUT_BUFFER: usize = 1 << 20;
/// The longest request (a selector with a thousand pods) goes out without waiting.
const STDIN_BUFFER: usize = 256 << 10;
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
    let pods: kube::Api<Pod> = kube::Api::namespaced(api.client(), namespace);
    let params = AttachParams::default()
        .container(CONTAINER)
        .stdin(true)
        .stdout(true)
        .stderr(true)
        .max_stdout_buf_size(STDOUT_BUFFER)
        .max_stdin_buf_size(STDIN_BUFFER)
        .max_stderr_buf_size(STDIN_BUFFER);
    let what = format!("attach to the helper pod {namespace}/{name}");
    let mut process = api.ask(&what, pods.attach(name, &params)).await.map_err(|p| remedy::for_attach(p, namespace))?;
    let over = process.take_status();
    let (Some(mut stdin), Some(stdout), Some(stderr)) = (process.stdin(), process.stdout(), process.stderr()) else {
        return Err(Problem::new(Kind::Other, format!("cannot {what}: the stream has no stdin or stdout")));
    };
    let mut line = serde_json::to_vec(&Request::Hello).map_err(|e| Problem::new(Kind::Other, format!("cannot {what}: {e}")))?;
    line.push(b'\n');
    stdin.write_all(&line).await.map_err(|e| Problem::new(Kind::Unreachable, format!("cannot {what}: {e}")))?;
    let stderr = LastLines::of(stderr, verbose);
    let keeper = PodKeeper { process, stderr, pods, name: name.to_owned(), node: node.to_owned(), pending: pending.clone() };
    Ok(Transport {
        nodes: vec![node.to_owned()],
        reader: Box::new(UntilOver::new(stdout, over)),
        writer: Box::new(stdin),
        keeper: Box::new(keeper),
    })
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
    pods: kube::Api<Pod>,
    name: String,
    node: String,
    pending: PendingDeletions,
}

impl Keeper for PodKeeper {
    fn end(self: Box<Self>, how: Ending) -> Pin<Box<dyn Future<Output = Aftermath> + Send>> {
        Box::pin(async move {
            // Closes the WebSocket; with stdinOnce that is the end of the helper's stdin.
            self.process.abort();
            let cause = match how {
                Ending::Done | Ending::Stay => String::new(),
                Ending::Kill => autopsy(&self.pods, &self.name, &self.node, Duration::ZERO).await,
                Ending::Gone => autopsy(&self.pods, &self.name, &self.node, REPORT).await,
            };
            let settled = match how {
                Ending::Stay => {
                    self.pending.forget(&self.name);
                    Ok(())
                }
                Ending::Done => self.pending.delete(&self.name, DeletionMode::Ended).await,
                Ending::Kill | Ending::Gone => self.pending.delete(&self.name, DeletionMode::Running).await,
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
}

/// What the API server knows about how a helper ended. The kubelet is given `patience` to report it.
async fn autopsy(pods: &kube::Api<Pod>, name: &str, node: &str, patience: Duration) -> String {
    let deadline = Instant::now() + patience;
    loop {
        let cause = match timeout(AUTOPSY, pods.get_opt(name)).await {
            Ok(Ok(Some(pod))) => cause_of_end(&pod, node),
            Ok(Ok(None)) => Some(format!("the helper pod {name} on node {node} was deleted by another client")),
            Ok(Err(_)) | Err(_) => Some("the API server cannot be reached".to_owned()),
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

    use super::super::mock::Mock;
    use super::*;

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
    async fn where_nothing_is_reported_the_stream_broke() {
        let running = json!({"metadata": {"name": "x"}, "status": {"phase": "Running"}});
        let api = Mock::default().on("GET /api/v1/namespaces/sockpath/pods/x", 200, running).api("sockpath");
        let pods = kube::Api::namespaced(api.client(), "sockpath");
        assert!(autopsy(&pods, "x", "n1", Duration::ZERO).await.contains("stream to node n1 broke"));
    }
}
