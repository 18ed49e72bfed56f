//! Credentials and proxies of a kubeconfig: the plugin as a program, and an API server that records its requests.
#![cfg(unix)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

mod dir;

use dir::Dir;

/// Writes a script of the shell; gives its path.
fn script(dir: &Dir, name: &str, text: &str) -> String {
    let path = dir.join(name);
    fs::write(&path, text).expect("a file");
    path.display().to_string()
}

/// What a client asked.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Asked {
    line: String,
    authorization: String,
}

/// A server that reports its version and forbids everything else; `refuses` is true for credentials that it does not accept.
struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    fn start(refuses: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (noted, refuses) = (asked.clone(), Arc::new(refuses));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (noted, refuses) = (noted.clone(), refuses.clone());
                thread::spawn(move || answer(stream, &noted, &*refuses));
            }
        });
        Self { address, asked }
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Answers the requests of one connection.
fn answer(stream: TcpStream, noted: &Mutex<Vec<Asked>>, refuses: &dyn Fn(&str) -> bool) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut writer = stream;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let (mut authorization, mut length) = (String::new(), 0);
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).ok()?;
            let Some((name, value)) = header.trim_end().split_once(": ") else { break };
            match name.to_ascii_lowercase().as_str() {
                "authorization" => value.clone_into(&mut authorization),
                "content-length" => length = value.parse().ok()?,
                _ => {}
            }
        }
        std::io::copy(&mut std::io::Read::take(&mut reader, length), &mut std::io::sink()).ok()?;
        let refused = refuses(&authorization);
        let line = line.trim_end().to_owned();
        let is_version = line.starts_with("GET /version");
        noted.lock().unwrap_or_else(PoisonError::into_inner).push(Asked { line, authorization });
        let (status, body) = match (refused, is_version) {
            (true, _) => ("401 Unauthorized", status(401, "Unauthorized")),
            (false, true) => ("200 OK", VERSION.to_owned()),
            (false, false) => ("403 Forbidden", status(403, "Forbidden")),
        };
        write!(writer, "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len()).ok()?;
    }
}

const VERSION: &str = r#"{"major":"1","minor":"36","gitVersion":"v1.36.0","gitCommit":"","gitTreeState":"","buildDate":"","goVersion":"","compiler":"","platform":""}"#;

fn status(code: u16, reason: &str) -> String {
    format!(
        r#"{{"kind":"Status","apiVersion":"v1","metadata":{{}},"status":"Failure","message":"{reason}","reason":"{reason}","code":{code}}}"#
    )
}

/// Runs `doctor`, which asks several things, with this user, and this for the cluster.
fn doctor(dir: &Dir, user: &str, cluster: &str) -> Output {
    let path = dir.join("config");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts:\n- {{name: c, context: {{cluster: k, user: u}}}}\n\
         clusters:\n- name: k\n  cluster: {{{cluster}}}\nusers:\n- name: u\n  user:\n{user}"
    );
    fs::write(&path, text).expect("a file");
    let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-sockpath"));
    for variable in ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy", "KUBERNETES_SERVICE_HOST"] {
        command.env_remove(variable);
    }
    command.args(["doctor", "--request-timeout", "20s"]).env("KUBECONFIG", &path).env("NO_COLOR", "1").stdin(Stdio::null());
    command.output().expect("the plugin runs")
}

fn at(server: &Server) -> String {
    format!("server: 'http://{}'", server.address)
}

fn text(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

/// A user whose token comes from this program with this argument.
fn exec(program: &str, argument: &str) -> String {
    let version = "client.authentication.k8s.io/v1";
    format!(
        "    exec: {{apiVersion: {version}, interactiveMode: Never, command: {program}, args: ['{argument}'], env: [{{name: A, value: secret}}]}}\n"
    )
}

#[test]
fn a_token_comes_from_an_exec_plugin() {
    let dir = Dir::new("exec");
    let server = Server::start(|authorization| authorization != "Bearer of-a-program");
    let program = script(
        &dir,
        "login",
        "echo '{\"apiVersion\":\"client.authentication.k8s.io/v1\",\"kind\":\"ExecCredential\",\"status\":{\"token\":\"of-a-program\"}}'\n",
    );
    let out = doctor(&dir, &exec("/bin/sh", &program), &at(&server));
    assert!(text(&out).contains("v1.36.0"), "{}", text(&out));
    let asked = server.asked();
    assert!(asked.len() > 3 && asked.iter().all(|a| a.authorization == "Bearer of-a-program"), "{asked:?}");
}

/// A token that has expired is replaced before the next request: a server that refuses the old ones notices nothing.
#[test]
fn a_token_that_expires_is_replaced_while_a_command_runs() {
    let dir = Dir::new("expiring");
    let used = Mutex::new(BTreeSet::new());
    let server = Server::start(move |authorization| {
        let mut used = used.lock().unwrap_or_else(PoisonError::into_inner);
        authorization.is_empty() || !used.insert(authorization.to_owned())
    });
    let count = dir.join("count");
    let program = script(
        &dir,
        "login",
        &format!(
            "echo x >> {0}\necho '{{\"apiVersion\":\"client.authentication.k8s.io/v1\",\"kind\":\"ExecCredential\",\
             \"status\":{{\"token\":\"number-'$(wc -l < {0} | tr -d ' ')'\",\"expirationTimestamp\":\"2026-01-01T00:00:00Z\"}}}}'\n",
            count.display()
        ),
    );
    let out = doctor(&dir, &exec("/bin/sh", &program), &at(&server));
    assert!(text(&out).contains("v1.36.0") && !text(&out).contains("does not accept the credentials"), "{}", text(&out));
    let tokens: BTreeSet<String> = server.asked().into_iter().map(|a| a.authorization).collect();
    assert!(tokens.len() > 3, "{tokens:?}");
}

#[test]
fn an_exec_plugin_that_fails_or_is_absent_is_named() {
    let dir = Dir::new("failing");
    let server = Server::start(|_| true);
    let script = script(&dir, "login", "echo 'log in first: cloud login' >&2\nexit 3\n");
    let cases = [("/bin/sh", ["exit status: 3", "log in first: cloud login"]), ("/no/such/login", ["No such file", "put it on PATH"])];
    for (program, words) in cases {
        let out = doctor(&dir, &exec(program, &script), &at(&server));
        let said = text(&out);
        assert!(!out.status.success() && said.contains(program) && words.iter().all(|w| said.contains(w)), "{said}");
        assert!(!said.contains("panicked") && !said.contains("secret"), "{said}");
    }
}

/// Its claims: who it is for, and that it is valid until 2100.
#[test]
fn a_token_of_openid_connect_is_sent_while_it_is_valid() {
    let dir = Dir::new("oidc");
    const TOKEN: &str = "eyJhbGciOiJub25lIn0.eyJhdWQiOiJjIiwiZXhwIjo0MTAyNDQ0ODAwfQ.c2ln";
    let server = Server::start(|authorization| authorization != format!("Bearer {TOKEN}"));
    let user = format!(
        "    auth-provider:\n      name: oidc\n      config: {{client-id: c, client-secret: s, id-token: {TOKEN}, idp-issuer-url: 'https://127.0.0.1:1', refresh-token: r}}\n"
    );
    let out = doctor(&dir, &user, &at(&server));
    assert!(text(&out).contains("v1.36.0"), "{}", text(&out));
}

#[test]
fn a_token_that_is_refused_is_not_mistaken_for_a_missing_right() {
    let dir = Dir::new("refused");
    let server = Server::start(|_| true);
    let out = doctor(&dir, "    token: stale\n", &at(&server));
    assert!(!out.status.success() && text(&out).contains("does not accept the credentials"), "{}", text(&out));
}

#[test]
fn a_proxy_of_the_kubeconfig_is_used() {
    let dir = Dir::new("proxy");
    let proxy = Server::start(|_| false);
    let cluster = format!("server: 'https://api.example:6443', proxy-url: 'http://{}', insecure-skip-tls-verify: true", proxy.address);
    let out = doctor(&dir, "    token: t\n", &cluster);
    let asked = proxy.asked();
    assert!(asked.iter().any(|a| a.line.starts_with("CONNECT api.example:6443")), "{asked:?}\n{}", text(&out));
    assert!(!out.status.success() && text(&out).contains("api.example"), "{}", text(&out));
    assert!(asked.iter().all(|a| !a.authorization.contains("Bearer")), "the proxy gets no token: {asked:?}");
}
