//! Requests to the API server that kubectl has no command for: a pod as JSON, as some user, with the status that comes back.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};

use serde_json::Value;

use crate::cluster::Cluster;

/// `kubectl proxy` as administrator, until it is dropped.
#[derive(Debug)]
pub struct Proxy {
    child: Child,
    address: String,
}

impl Proxy {
    /// Starts it on a free port.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start(cluster: &Cluster) -> Self {
        let mut command = cluster.kubectl();
        let mut child = command.args(["proxy", "--port=0"]).stdout(Stdio::piped()).spawn().unwrap_or_else(|e| panic!("kubectl proxy: {e}"));
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).unwrap_or_else(|e| panic!("kubectl proxy: {e}"));
        }
        let Some(address) = line.trim().strip_prefix("Starting to serve on ").map(str::to_owned) else {
            panic!("kubectl proxy said: {line}")
        };
        Self { child, address }
    }

    /// Sends an object to be created; gives the status code and what the API server answers. `user` is impersonated.
    ///
    /// # Panics
    /// When the API server sends no response, or one that is not JSON.
    #[must_use]
    pub fn create(&self, user: Option<&str>, path: &str, object: &Value) -> (u16, Value) {
        self.ask("POST", user, path, &object.to_string())
    }

    /// Reads something.
    ///
    /// # Panics
    /// When the API server sends no response, or one that is not JSON.
    #[must_use]
    pub fn get(&self, path: &str) -> (u16, Value) {
        self.ask("GET", None, path, "")
    }

    fn ask(&self, method: &str, user: Option<&str>, path: &str, body: &str) -> (u16, Value) {
        let user = user.map(|u| format!("Impersonate-User: {u}\r\n")).unwrap_or_default();
        // HTTP/1.0: the answer is not chunked, and the end of the connection is its end.
        let request = format!(
            "{method} {path} HTTP/1.0\r\nHost: localhost\r\n{user}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut answer = Vec::new();
        TcpStream::connect(&self.address)
            .and_then(|mut stream| {
                stream.write_all(request.as_bytes())?;
                stream.read_to_end(&mut answer)
            })
            .unwrap_or_else(|e| panic!("{method} {path}: {e}"));
        let text = String::from_utf8_lossy(&answer);
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{method} {path}: {text}"));
        let code = head.split(' ').nth(1).and_then(|c| c.parse().ok()).unwrap_or_else(|| panic!("{method} {path}: {head}"));
        (code, serde_json::from_str(body).unwrap_or_else(|e| panic!("{method} {path}: {e}: {body}")))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
