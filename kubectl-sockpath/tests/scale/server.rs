//! An API server of 300 nodes made of answers, and the helpers on them: HTTP/1.1 over loopback, attach over WebSocket.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, broadcast};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::cluster;
use super::helper::Helper;

/// The path of the helpers' pods.
const HELPERS: &str = "/api/v1/namespaces/sockpath/pods";
/// Objects in one piece of a list, when the request names none.
const PAGE: usize = 500;
/// Events that a watch may be behind.
const BEHIND: usize = 4_096;

/// A request that came, by method and path without the query.
#[derive(Debug, Clone)]
pub struct Call {
    /// When.
    pub at: Instant,
    /// `GET /api/v1/nodes`.
    pub what: String,
}

/// The server; clones share it.
#[derive(Debug, Clone)]
pub struct Server(Arc<State>);

#[derive(Debug)]
struct State {
    pods: Mutex<BTreeMap<String, Value>>,
    version: Mutex<u64>,
    calls: Mutex<Vec<Call>>,
    events: broadcast::Sender<String>,
    workloads: Vec<Value>,
    /// With so many helper pods it ends.
    most: AtomicUsize,
    ended: Notify,
}

struct Request {
    method: String,
    path: String,
    query: BTreeMap<String, String>,
    key: Option<String>,
    body: Vec<u8>,
}

impl Server {
    /// Serves on a free port of loopback, from a thread of its own; gives the address.
    pub fn start() -> (Self, String) {
        let state = State {
            pods: Mutex::default(),
            version: Mutex::new(10),
            calls: Mutex::default(),
            events: broadcast::channel(BEHIND).0,
            workloads: cluster::workloads(),
            most: AtomicUsize::new(usize::MAX),
            ended: Notify::new(),
        };
        let server = Self(Arc::new(state));
        let (send, bound) = std::sync::mpsc::channel();
        let serving = server.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                send.send(listener.local_addr().unwrap()).unwrap();
                loop {
                    tokio::select! {
                        accepted = listener.accept() => {
                            let (stream, _) = accepted.unwrap();
                            stream.set_nodelay(true).unwrap();
                            tokio::spawn(serving.clone().serve(stream));
                        }
                        () = serving.0.ended.notified() => break,
                    }
                }
            });
        });
        (server, format!("http://{}", bound.recv().unwrap()))
    }

    /// Ends it with so many helper pods like one that is killed: connections break, and new ones are refused.
    pub fn end_with(&self, pods: usize) {
        self.0.most.store(pods, Ordering::Relaxed);
    }

    /// The requests so far; forgets them.
    pub fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut *self.0.calls.lock().unwrap())
    }

    /// Helper pods there are.
    pub fn helper_pods(&self) -> usize {
        self.0.pods.lock().unwrap().len()
    }

    async fn serve(self, mut stream: TcpStream) {
        let mut received = Vec::new();
        while let Some(request) = read_request(&mut stream, &mut received).await {
            let what = format!("{} {}", request.method, request.path);
            self.0.calls.lock().unwrap_or_else(PoisonError::into_inner).push(Call { at: Instant::now(), what });
            if let (Some(name), Some(key)) = (request.path.strip_prefix(HELPERS).and_then(|p| p.strip_suffix("/attach")), &request.key) {
                self.attach(stream, name.trim_start_matches('/').to_owned(), key).await;
                return;
            }
            if request.query.get("watch").is_some_and(|w| w == "true" || w == "1") {
                self.watch(stream, &request.path).await;
                return;
            }
            let (code, answer) = self.answer(&request);
            let body = answer.to_string();
            let head = format!("HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
            if stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).await.is_err() {
                return;
            }
        }
    }

    fn answer(&self, request: &Request) -> (u16, Value) {
        let path = request.path.as_str();
        let own = path.strip_prefix(HELPERS).map(|name| name.trim_start_matches('/'));
        match (request.method.as_str(), own) {
            ("POST", Some("")) => self.create(&request.body, request.query.contains_key("dryRun")),
            ("GET", Some("")) => list("PodList", &self.0.pods.lock().unwrap().values().cloned().collect::<Vec<_>>(), &request.query),
            ("GET", Some(name)) => match self.0.pods.lock().unwrap().get(name) {
                Some(pod) => (200, pod.clone()),
                None => not_found(),
            },
            ("DELETE", Some(name)) => {
                let removed = self.0.pods.lock().unwrap().remove(name);
                removed.map_or_else(not_found, |pod| {
                    self.publish("DELETED", &pod);
                    (200, pod)
                })
            }
            ("GET", None) if path == "/api/v1/pods" => list("PodList", &self.0.workloads, &request.query),
            ("GET", None) if path == "/api/v1/nodes" => list("NodeList", &cluster::nodes(), &request.query),
            ("GET", None) => cluster::other(path),
            ("POST", None) => cluster::review(&request.body),
            _ => not_found(),
        }
    }

    /// Creates a helper pod, which runs after a while, or never.
    fn create(&self, body: &[u8], dry_run: bool) -> (u16, Value) {
        let mut pod: Value = serde_json::from_slice(body).unwrap();
        let (name, node) = (text(&pod["metadata"]["name"]), text(&pod["spec"]["nodeName"]));
        if let Some(refusal) = cluster::refusal(&node, &name) {
            return (403, refusal);
        }
        pod["metadata"]["namespace"] = json!("sockpath");
        pod["metadata"]["uid"] = json!(format!("uid-{name}"));
        if dry_run {
            return (201, pod);
        }
        self.publish("ADDED", &pod);
        let (server, mut later, status) = (self.clone(), pod.clone(), cluster::status_of(&node));
        tokio::spawn(async move {
            tokio::time::sleep(cluster::start_of(&node)).await;
            later["status"] = status;
            if server.0.pods.lock().unwrap().contains_key(&text(&later["metadata"]["name"])) {
                server.publish("MODIFIED", &later);
            }
        });
        (201, pod)
    }

    /// Stores a pod and tells those who watch.
    fn publish(&self, kind: &str, pod: &Value) {
        let mut pod = pod.clone();
        let version = {
            let mut version = self.0.version.lock().unwrap();
            *version += 1;
            *version
        };
        pod["metadata"]["resourceVersion"] = json!(version.to_string());
        (pod["kind"], pod["apiVersion"]) = (json!("Pod"), json!("v1"));
        if kind != "DELETED" {
            let mut pods = self.0.pods.lock().unwrap();
            pods.insert(text(&pod["metadata"]["name"]), pod.clone());
            if pods.len() >= self.0.most.load(Ordering::Relaxed) {
                self.0.ended.notify_one();
            }
        }
        let _ = self.0.events.send(format!("{}\n", json!({"type": kind, "object": pod})));
    }

    /// A watch: of the helper pods what happens to them, of everything else nothing.
    async fn watch(self, mut stream: TcpStream, path: &str) {
        let mut events = self.0.events.subscribe();
        // What happened between the list and now.
        let missed: Vec<String> = match path == HELPERS {
            true => self.0.pods.lock().unwrap().values().map(|pod| format!("{}\n", json!({"type": "MODIFIED", "object": pod}))).collect(),
            false => Vec::new(),
        };
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
        if stream.write_all(head.as_bytes()).await.is_err() {
            return;
        }
        for event in missed {
            if stream.write_all(chunk(&event).as_bytes()).await.is_err() {
                return;
            }
        }
        let mut closed = [0; 1];
        loop {
            tokio::select! {
                event = events.recv() => {
                    let Ok(event) = event else { return };
                    if path == HELPERS && stream.write_all(chunk(&event).as_bytes()).await.is_err() {
                        return;
                    }
                }
                _ = stream.read(&mut closed) => return,
            }
        }
    }

    async fn attach(self, mut stream: TcpStream, name: String, key: &str) {
        let pod = self.0.pods.lock().unwrap().get(&name).cloned().unwrap_or_default();
        if pod["status"]["phase"] != "Running" {
            let body = not_found().1.to_string();
            let head = format!("HTTP/1.1 404 X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
            let _ = stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).await;
            return;
        }
        let accept = derive_accept_key(key.as_bytes());
        let head = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\
             Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n"
        );
        if stream.write_all(head.as_bytes()).await.is_err() {
            return;
        }
        let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
        let mut helper = Helper::on(&text(&pod["spec"]["nodeName"]));
        let mut snapshots = tokio::time::interval(Duration::from_secs(1));
        while !helper.is_over() {
            let said = tokio::select! {
                message = socket.next() => match message {
                    // The first byte is the channel: 0 is stdin.
                    Some(Ok(Message::Binary(frame))) if frame.first() == Some(&0) => helper.hear(&frame[1..]),
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                    Some(Ok(_)) => continue,
                },
                _ = snapshots.tick() => helper.tick(),
            };
            if said.is_empty() {
                continue;
            }
            // 1 is stdout.
            let frame = [&[1][..], said.as_bytes()].concat();
            if socket.send(Message::Binary(frame.into())).await.is_err() {
                return;
            }
        }
        let _ = socket.close(None).await;
    }
}

async fn read_request(stream: &mut TcpStream, received: &mut Vec<u8>) -> Option<Request> {
    let end = loop {
        if let Some(at) = received.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        let mut piece = [0; 16 << 10];
        match stream.read(&mut piece).await {
            Ok(0) | Err(_) => return None,
            Ok(n) => received.extend_from_slice(&piece[..n]),
        }
    };
    let head = String::from_utf8_lossy(&received[..end]).into_owned();
    let header = |name: &str| {
        head.lines()
            .skip(1)
            .find_map(|l| l.split_once(": ").filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim().to_owned()))
    };
    let length: usize = header("content-length").map_or(0, |l| l.parse().unwrap());
    while received.len() < end + length {
        let mut piece = [0; 16 << 10];
        match stream.read(&mut piece).await {
            Ok(0) | Err(_) => return None,
            Ok(n) => received.extend_from_slice(&piece[..n]),
        }
    }
    let body = received[end..end + length].to_vec();
    received.drain(..end + length);
    let mut words = head.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let query = query.split('&').filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    Some(Request { method, path: path.to_owned(), query, key: header("sec-websocket-key"), body })
}

fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

/// A piece of a list, as the query asks for it.
fn list(kind: &str, items: &[Value], query: &BTreeMap<String, String>) -> (u16, Value) {
    let number = |name: &str| query.get(name).and_then(|n| n.parse::<usize>().ok());
    let (from, limit) = (number("continue").unwrap_or(0), number("limit").unwrap_or(PAGE).max(1));
    let next = from + limit;
    let more = (next < items.len()).then(|| next.to_string());
    let items: Vec<&Value> = items.iter().skip(from).take(limit).collect();
    (
        200,
        json!({"kind": kind, "apiVersion": "v1", "metadata": {"resourceVersion": "10", "continue": more.unwrap_or_default()}, "items": items}),
    )
}

fn not_found() -> (u16, Value) {
    (
        404,
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 404, "reason": "NotFound", "message": "not found"}),
    )
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
