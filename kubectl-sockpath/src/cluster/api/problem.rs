//! What the API server refused, as a kind that callers decide on and in words that end with what to do next.

use std::error::Error as StdError;
use std::fmt;

use kube::client::AuthError;
use kube::core::Status;
use sockpath_protocol::text::field_within;

/// What kind of refusal it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The API server could not be reached, or the connection broke.
    Unreachable,
    /// No answer within `--request-timeout`.
    Timeout,
    /// The API server does not know the user.
    Unauthorized,
    /// The user may not do that (RBAC).
    Forbidden,
    /// PodSecurity does not admit the helper pod in that namespace.
    PodSecurity,
    /// An admission webhook or policy said no.
    Denied,
    /// A resource quota or limit said no.
    Quota,
    /// The namespace is being deleted.
    Terminating,
    /// The namespace does not exist.
    NoNamespace,
    /// The object does not exist.
    NotFound,
    /// The node starts no pods.
    NotReady,
    /// An object of that name exists, or changed meanwhile.
    Conflict,
    /// Anything else.
    Other,
}

/// A refused or failed request to the API server.
#[derive(Debug)]
pub struct Problem {
    /// What kind it was.
    pub kind: Kind,
    text: String,
}

impl Problem {
    /// A problem in words.
    #[must_use]
    pub fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }

    /// Puts an error of the client into words. `what` completes "cannot ...", e.g. `read pod prod/api`.
    #[must_use]
    pub fn from_kube(what: &str, error: &kube::Error, server: &str) -> Self {
        match error {
            kube::Error::Api(status) => Self::from_status(what, status),
            kube::Error::Auth(e) => Self::new(
                Kind::Unauthorized,
                format!("cannot {what}: cannot use the credentials of the kubeconfig: {}\n{TRY_WHOAMI}", of_credentials(e)),
            ),
            // They are refreshed before a request.
            kube::Error::Service(e) if e.is::<AuthError>() => {
                let why = e.downcast_ref().map(of_credentials).unwrap_or_default();
                Self::new(Kind::Unreachable, format!("cannot {what}: cannot renew the credentials of the kubeconfig: {why}\n{TRY_WHOAMI}"))
            }
            kube::Error::Service(e) => Self::new(Kind::Unreachable, unreachable_text(what, server, &chain(e.as_ref()))),
            kube::Error::HyperError(e) => Self::new(Kind::Unreachable, unreachable_text(what, server, &chain(e))),
            kube::Error::ReadEvents(e) => Self::new(Kind::Unreachable, unreachable_text(what, server, &chain(e))),
            kube::Error::UpgradeConnection(e) => Self::new(
                Kind::Other,
                format!(
                    "cannot {what}: the API server at {server} did not upgrade to WebSocket ({}); \
                     a proxy between here and there may not pass WebSockets on",
                    chain(e)
                ),
            ),
            other => {
                let why = chain(other);
                let problem = Self::new(Kind::Other, format!("cannot {what}: {why}"));
                if why.contains(OLD_CERTIFICATE) { problem.with_advice(NEWER_CERTIFICATE) } else { problem }
            }
        }
    }

    fn from_status(what: &str, status: &Status) -> Self {
        let kind = kind_of(status);
        let message = if status.message.is_empty() { status.reason.as_str() } else { status.message.as_str() };
        let message = message.trim_end().trim_end_matches(':');
        let text = match kind {
            Kind::Unauthorized => format!("cannot {what}: the API server does not accept the credentials ({message})\n{TRY_WHOAMI}"),
            _ => format!("cannot {what}: {message}"),
        };
        Self { kind, text }
    }

    /// The same problem with the next step added on a line of its own.
    #[must_use]
    pub fn with_advice(mut self, advice: &str) -> Self {
        self.text.push('\n');
        self.text.push_str(advice);
        self
    }

    /// The same problem in words without these.
    #[must_use]
    pub fn without(mut self, words: &str) -> Self {
        self.text = self.text.replace(words, "");
        self
    }

    /// The user that authorization refused.
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        Some(self.text.split_once("User \"")?.1.split_once("\" cannot ")?.0)
    }

    /// No answer in time.
    #[must_use]
    pub fn timeout(what: &str, server: &str, seconds: f64) -> Self {
        Self::new(
            Kind::Timeout,
            format!("cannot {what}: no answer from the API server at {server} within {seconds} s (raise --request-timeout to wait longer)"),
        )
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl StdError for Problem {}

/// Said by the API server until a controller has counted what a new quota is about.
pub const QUOTA_UNCOUNTED: &str = "status unknown for quota";

/// What rustls reports of a certificate of X.509 version 1, the server's or our own.
const OLD_CERTIFICATE: &str = "UnsupportedCertVersion";
const NEWER_CERTIFICATE: &str = "certificates of X.509 version 1 are not supported (kubectl accepts them): issue one of version 3 (openssl x509 -req with \
                                 -extfile, or a CertificateSigningRequest of the cluster)";

const TRY_WHOAMI: &str = "try: kubectl auth whoami";

/// Why credentials cannot be used. What the client prints of their program's command may hold secrets, and it prints what that wrote as numbers.
fn of_credentials(error: &AuthError) -> String {
    match error {
        AuthError::AuthExecStart(e) => format!("the program that gives them cannot be run: {e}"),
        AuthError::AuthExecRun { out, .. } => {
            let said = String::from_utf8_lossy(&out.stderr);
            let said = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
            // It is empty where the program could ask the user: its words went to the terminal.
            let colon = if said.is_empty() { "" } else { ": " };
            format!("the program that gives them failed ({}){colon}{}", out.status, field_within(&said, LONGEST_WORDS))
        }
        other => chain(other),
    }
}

/// Characters of what another program wrote.
const LONGEST_WORDS: usize = 300;

/// The API server has one code, 403, for six different refusals; its message tells them apart.
fn kind_of(status: &Status) -> Kind {
    let message = status.message.as_str();
    let namespace_missing = status.code == 404 && status.details.as_ref().is_some_and(|d| d.kind == "namespaces");
    if message.contains("violates PodSecurity") {
        Kind::PodSecurity
    } else if message.contains("admission webhook") || message.contains("ValidatingAdmissionPolicy") {
        Kind::Denied
    } else if ["exceeded quota", "failed quota", QUOTA_UNCOUNTED, "must specify limits", " usage per ", "limit to request ratio"]
        .iter()
        .any(|s| message.contains(s))
    {
        Kind::Quota
    } else if message.contains("because it is being terminated") {
        Kind::Terminating
    } else if namespace_missing {
        Kind::NoNamespace
    } else {
        match status.code {
            401 => Kind::Unauthorized,
            403 if is_of_admission(message) => Kind::Denied,
            403 => Kind::Forbidden,
            404 => Kind::NotFound,
            409 => Kind::Conflict,
            408 | 504 => Kind::Timeout,
            429 | 502 | 503 => Kind::Unreachable,
            _ => Kind::Other,
        }
    }
}

/// Admission refuses `pods "NAME" is forbidden: WHY` where authorization says `pods is forbidden: User "NAME" cannot ...`.
fn is_of_admission(message: &str) -> bool {
    // Without a reason it is authorization, too: attach is judged a second time from 1.35 on, and says no more than that.
    message.split_once("\" is forbidden: ").is_some_and(|(_, why)| !why.is_empty() && !why.starts_with("User \""))
}

fn unreachable_text(what: &str, server: &str, why: &str) -> String {
    let hint = if why.contains(OLD_CERTIFICATE) {
        NEWER_CERTIFICATE
    } else if why.contains("certificate") || why.contains("UnknownIssuer") {
        "the certificate authority of the kubeconfig does not match the server: is the kubeconfig of this cluster, and current?"
    } else {
        "try: kubectl version (is the cluster running, is the context correct, is a VPN or proxy needed?)"
    };
    format!("cannot {what}: the API server at {server} cannot be reached: {why}\n{hint}")
}

/// An error and what caused it, on one line and without repeating what the outer error already says.
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u16, reason: &str, message: &str, kind: &str) -> Status {
        serde_json::from_value(serde_json::json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message,
            "details": {"kind": kind, "name": "x"}
        }))
        .unwrap()
    }

    #[test]
    fn kinds_of_403_are_distinguished() {
        let cases = [
            (
                403,
                "pods \"x\" is forbidden: violates PodSecurity \"restricted:latest\": host namespaces (hostPID=true)",
                "pods",
                Kind::PodSecurity,
            ),
            (
                403,
                "pods is forbidden: User \"eve\" cannot create resource \"pods\" in API group \"\" in the namespace \"sockpath\"",
                "pods",
                Kind::Forbidden,
            ),
            (403, "pods \"x\" is forbidden: exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1", "pods", Kind::Quota),
            (403, "pods \"x\" is forbidden: status unknown for quota: helpers, resources: pods", "pods", Kind::Quota),
            (403, "pods \"x\" is forbidden: [minimum cpu usage per Container is 100m, but request is 10m]", "pods", Kind::Quota),
            (
                403,
                "pods \"x\" is forbidden: unable to create new content in namespace tools because it is being terminated",
                "pods",
                Kind::Terminating,
            ),
            (403, "pods \"x\" is forbidden: pod node label selector conflicts with its project label selector", "pods", Kind::Denied),
            (403, "pods \"x\" is forbidden: ", "pods", Kind::Forbidden),
            (403, "pods \"x\" is forbidden: User \"dave\" cannot get resource \"pods/attach\" in API group \"\"", "pods", Kind::Forbidden),
            (403, "admission webhook \"v.io\" denied the request: no", "pods", Kind::Denied),
            (422, "pods \"x\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no", "pods", Kind::Denied),
            (404, "namespaces \"sockpath\" not found", "namespaces", Kind::NoNamespace),
            (404, "pods \"x\" not found", "pods", Kind::NotFound),
            (401, "Unauthorized", "", Kind::Unauthorized),
        ];
        for (code, message, object, kind) in cases {
            let problem = Problem::from_status("do it", &status(code, "r", message, object));
            assert_eq!(problem.kind, kind, "{message}");
            assert!(problem.to_string().starts_with("cannot do it: "), "{problem}");
        }
    }
}
