//! Access to the API server: kubectl's kubeconfig flags, and readable errors.

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use kube::api::ListParams;
use kube::client::{AuthError, ClientBuilder};
use kube::config::{Config, KubeConfigOptions, Kubeconfig, KubeconfigError};

use crate::cluster::api::kubeconfig;
use crate::cluster::api::lean::Lean;
use crate::cluster::api::options::ConnectOptions;
use crate::cluster::api::problem::{Kind, Problem};
use crate::cluster::api::rate_limit::{self, RateLimitLayer};

/// A large cluster answers lists in pieces of this many objects: a page of pods takes some MiB while it is read.
pub const PAGE: u32 = 250;

/// A connection to the API server. Clones share it.
#[derive(Clone)]
pub struct Api {
    client: Client,
    /// Makes another client: connections belong to the event loop they were opened on.
    connect: Arc<dyn Fn() -> kube::Result<Client> + Send + Sync>,
    server: String,
    namespace: String,
    /// The namespace was named on the command line.
    named: bool,
    timeout: Duration,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").field("server", &self.server).field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl Api {
    /// Reads the kubeconfig and prepares a client; nothing is sent yet.
    ///
    /// # Errors
    /// In words, naming the file or entry at fault.
    pub async fn connect(options: &ConnectOptions) -> Result<Self, Problem> {
        let mut config = config(options).await?;
        if let Some(user) = &options.as_user {
            config.auth_info.impersonate = Some(user.clone());
        }
        if !options.as_group.is_empty() {
            if config.auth_info.impersonate.is_none() {
                return Err(Problem::new(
                    Kind::Other,
                    "--as-group needs --as: the API server impersonates groups only together with a user",
                ));
            }
            config.auth_info.impersonate_groups = Some(options.as_group.clone());
        }
        if let Some(uid) = &options.as_uid {
            if config.auth_info.impersonate.is_none() {
                return Err(Problem::new(Kind::Other, "--as-uid needs --as: the API server impersonates a UID only together with a user"));
            }
            config.auth_info.impersonate_uid = Some(uid.clone());
        }
        // Unlike the read timeout this does not cut off watches and attached streams that are silent for a while.
        if !options.request_timeout.is_zero() {
            config.connect_timeout = Some(options.request_timeout);
        }
        let program = config.auth_info.exec.as_ref().and_then(|exec| exec.command.clone());
        let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let namespace = options.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let connect = move || Ok(ClientBuilder::try_from(config.clone())?.with_layer(&RateLimitLayer(rate_limit::KUBECTL)).build());
        let client = connect().map_err(|e: kube::Error| {
            let problem = Problem::from_kube("prepare the connection", &e, &server);
            let advice = match e {
                kube::Error::Auth(AuthError::AuthExecStart(_)) => ": install it, or put it on PATH",
                kube::Error::Auth(AuthError::AuthExecRun { .. }) => "",
                _ => return problem,
            };
            problem.with_advice(&format!("the kubeconfig's user gets credentials from `{}`{advice}", program.unwrap_or_default()))
        })?;
        let named = options.namespace.is_some();
        Ok(Self { client, connect: Arc::new(connect), server, namespace, named, timeout: options.request_timeout })
    }

    /// A connection over a client that is given, for tests.
    #[must_use]
    pub fn with_client(connect: impl Fn() -> Client + Send + Sync + 'static, namespace: &str) -> Self {
        let client = connect();
        let connect = Arc::new(move || Ok(connect()));
        Self { client, connect, server: "https://test".to_owned(), namespace: namespace.to_owned(), named: true, timeout: Duration::ZERO }
    }

    /// The same server over fresh connections, for use on another event loop.
    ///
    /// # Errors
    /// When the client cannot be made.
    pub fn reconnected(&self) -> kube::Result<Self> {
        Ok(Self { client: (self.connect)()?, ..self.clone() })
    }

    /// The client.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// URL of the API server.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// The namespace that names without one are in.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Whether that namespace was named on the command line.
    #[must_use]
    pub fn is_namespace_named(&self) -> bool {
        self.named
    }

    /// Waits for one answer, within `--request-timeout`. `what` completes "cannot ...".
    pub async fn ask<T>(&self, what: &str, answer: impl Future<Output = kube::Result<T>>) -> Result<T, Problem> {
        let answer = if self.timeout.is_zero() {
            answer.await
        } else {
            match tokio::time::timeout(self.timeout, answer).await {
                Ok(answer) => answer,
                Err(_) => return Err(Problem::timeout(what, &self.server, self.timeout.as_secs_f64())),
            }
        };
        answer.map_err(|e| Problem::from_kube(what, &e, &self.server))
    }

    /// All pages of a list.
    ///
    /// # Errors
    /// When one of them cannot be had.
    pub async fn list<K>(&self, what: &str, api: &kube::Api<K>, params: ListParams) -> Result<Vec<K>, Problem>
    where
        K: Lean + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
    {
        let mut items = Vec::new();
        let mut next = Some(params);
        while let Some(params) = next {
            let page;
            (page, next) = self.page(what, api, params).await?;
            items.extend(page);
        }
        Ok(items)
    }

    /// One page of a list, and with what the next one is requested.
    ///
    /// # Errors
    /// When it cannot be had.
    pub async fn page<K>(&self, what: &str, api: &kube::Api<K>, params: ListParams) -> Result<(Vec<K>, Option<ListParams>), Problem>
    where
        K: Lean + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
    {
        let params = params.limit(PAGE);
        let page = self.ask(what, api.list(&params)).await?;
        let next = page.metadata.continue_.filter(|t| !t.is_empty()).map(|token| params.continue_token(&token));
        Ok((page.items.into_iter().map(Lean::lean).collect(), next))
    }

    /// As [`Self::ask`], with `None` for an object that does not exist.
    pub async fn ask_opt<T>(&self, what: &str, answer: impl Future<Output = kube::Result<T>>) -> Result<Option<T>, Problem> {
        match self.ask(what, answer).await {
            Ok(object) => Ok(Some(object)),
            Err(p) if p.kind == Kind::NotFound => Ok(None),
            Err(p) => Err(p),
        }
    }
}

/// How to reach the server: by the kubeconfig and the flags or, in a pod without one, by its service account.
async fn config(options: &ConnectOptions) -> Result<Config, Problem> {
    let set = |name| std::env::var_os(name).is_some_and(|v| !v.is_empty());
    let is_default = options.kubeconfig.is_none() && !set("KUBECONFIG");
    let mut kubeconfig = match kubeconfig::read(options.kubeconfig.as_deref()).map_err(|e| kubeconfig_problem(&e)) {
        Err(_) if is_default && options.overrides.name_a_server() => Kubeconfig::default(),
        Err(_) if is_default && set("KUBERNETES_SERVICE_HOST") => {
            let why = |e| Problem::new(Kind::Other, format!("cannot use the service account of this pod: {e}"));
            return Config::incluster().map_err(why);
        }
        read => read?,
    };
    options.overrides.apply(&mut kubeconfig, options)?;
    if let Some(name) = missing_user(&kubeconfig, options) {
        let text = format!("the kubeconfig has no user '{name}': kubectl config get-users lists those it has");
        return Err(Problem::new(Kind::Other, text));
    }
    let selection = KubeConfigOptions { context: options.context.clone(), cluster: options.cluster.clone(), user: options.user.clone() };
    Config::from_custom_kubeconfig(kubeconfig, &selection).await.map_err(|e| kubeconfig_problem(&e))
}

fn kubeconfig_problem(error: &KubeconfigError) -> Problem {
    let text = match error {
        KubeconfigError::CurrentContextNotSet => {
            "the kubeconfig names no current context: choose one with --context, or kubectl config use-context NAME".to_owned()
        }
        KubeconfigError::LoadContext(name) => {
            format!("the kubeconfig has no context '{name}': kubectl config get-contexts lists those it has")
        }
        KubeconfigError::LoadClusterOfContext(name) => {
            format!("the kubeconfig has no cluster '{name}': kubectl config get-clusters lists those it has")
        }
        KubeconfigError::FindPath => {
            "there is no kubeconfig: set KUBECONFIG or use --kubeconfig, or try without a cluster: --lab".to_owned()
        }
        KubeconfigError::ReadConfig(e, path) => {
            format!(
                "cannot read the kubeconfig {}: {e}\nset KUBECONFIG or use --kubeconfig, or try without a cluster: --lab",
                path.display()
            )
        }
        KubeconfigError::Parse(e) => format!("the kubeconfig is not valid: {e}"),
        KubeconfigError::MissingClusterUrl => "the kubeconfig's cluster has no server address".to_owned(),
        other => format!("cannot use the kubeconfig: {other}"),
    };
    Problem::new(Kind::Other, text)
}

/// The requested user, if the kubeconfig does not contain it. `kube` continues without one, as an anonymous user.
fn missing_user(kubeconfig: &Kubeconfig, options: &ConnectOptions) -> Option<String> {
    let of_context = || {
        let current = options.context.as_ref().or(kubeconfig.current_context.as_ref())?;
        kubeconfig.contexts.iter().find(|c| c.name == *current)?.context.as_ref()?.user.clone()
    };
    let name = options.user.clone().or_else(of_context).filter(|name| !name.is_empty())?;
    (!kubeconfig.auth_infos.iter().any(|u| u.name == name)).then_some(name)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::cluster::api::options::Overrides;

    const CONFIG: &str = "
apiVersion: v1
kind: Config
clusters:
- {name: k, cluster: {server: 'https://127.0.0.1:1'}}
users:
- {name: u, user: {token: t}}
contexts:
- {name: c, context: {cluster: k, user: u, namespace: from-context}}
- {name: broken, context: {cluster: missing, user: u}}
- {name: userless, context: {cluster: k, user: gone}}
- {name: anonymous, context: {cluster: k}}
current-context: c
";

    fn options(context: Option<&str>) -> (ConnectOptions, PathBuf) {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let path =
            std::env::temp_dir().join(format!("sockpath-kubeconfig-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        std::fs::write(&path, CONFIG).unwrap();
        (ConnectOptions { kubeconfig: Some(path.clone()), context: context.map(str::to_owned), ..Default::default() }, path)
    }

    #[tokio::test]
    async fn namespace_comes_from_flag_or_context() {
        let (mut options, path) = options(Some("c"));
        assert_eq!(Api::connect(&options).await.unwrap().namespace(), "from-context");
        options.namespace = Some("flag".into());
        let api = Api::connect(&options).await.unwrap();
        assert_eq!((api.namespace(), api.server()), ("flag", "https://127.0.0.1:1"));
        let _ = std::fs::remove_file(path);
    }

    #[tokio::test]
    async fn errors_name_the_entry_and_the_next_step() {
        for (context, expected) in [
            ("none-such", "no context 'none-such': kubectl config get-contexts"),
            ("broken", "kubectl config get-clusters"),
            ("userless", "no user 'gone': kubectl config get-users"),
        ] {
            let (options, path) = options(Some(context));
            let text = Api::connect(&options).await.unwrap_err().to_string();
            assert!(text.contains(expected), "{text}");
            let _ = std::fs::remove_file(path);
        }
        let (mut by_flag, path) = options(Some("anonymous"));
        assert!(Api::connect(&by_flag).await.is_ok(), "a context may do without a user");
        by_flag.user = Some("other".into());
        assert!(Api::connect(&by_flag).await.unwrap_err().to_string().contains("no user 'other'"));
        let _ = std::fs::remove_file(path);
        let missing = ConnectOptions { kubeconfig: Some("/no/such/file".into()), ..Default::default() };
        assert!(Api::connect(&missing).await.unwrap_err().to_string().contains("/no/such/file"));
    }

    #[tokio::test]
    async fn a_group_needs_a_user() {
        let (mut options, path) = options(None);
        options.as_group = vec!["ops".into()];
        assert!(Api::connect(&options).await.unwrap_err().to_string().contains("--as-group needs --as"));
        let _ = std::fs::remove_file(path);
    }

    #[tokio::test]
    async fn flags_stand_for_entries_as_with_kubectl() {
        let (mut options, path) = options(Some("c"));
        options.overrides = Overrides {
            server: Some("api.example:6443".into()),
            token: Some("other".into()),
            tls_server_name: Some("kubernetes".into()),
            insecure_skip_tls_verify: true,
            ..Overrides::default()
        };
        (options.as_user, options.as_uid) = (Some("eve".into()), Some("17".into()));
        let config = config(&options).await.unwrap();
        assert_eq!(config.cluster_url.to_string(), "https://api.example:6443/");
        assert_eq!((config.tls_server_name.as_deref(), config.accept_invalid_certs), (Some("kubernetes"), true));
        assert_eq!(format!("{:?}", config.auth_info.token.is_some()), "true");
        assert_eq!(Api::connect(&options).await.unwrap().namespace(), "from-context", "what flags do not say is the context's");
        // A cluster and a user of other names are changed, too.
        options.context = Some("anonymous".into());
        assert_eq!(super::config(&options).await.unwrap().cluster_url.to_string(), "https://api.example:6443/");
        let _ = std::fs::remove_file(path);
    }

    #[tokio::test]
    async fn flags_that_contradict_or_lack_each_other_are_refused() {
        let file = |name: &str| Some(PathBuf::from(name));
        for (overrides, words) in [
            (Overrides { insecure_skip_tls_verify: true, certificate_authority: file("ca"), ..Overrides::default() }, "exclude each other"),
            (Overrides { client_key: file("key"), ..Overrides::default() }, "belong together"),
            (Overrides { certificate_authority: file("/no/such/ca"), ..Overrides::default() }, "/no/such/ca"),
        ] {
            let (mut options, path) = options(Some("c"));
            options.overrides = overrides;
            let text = Api::connect(&options).await.unwrap_err().to_string();
            assert!(text.contains(words), "{text}");
            let _ = std::fs::remove_file(path);
        }
        let (mut options, path) = options(Some("c"));
        options.as_uid = Some("17".into());
        assert!(Api::connect(&options).await.unwrap_err().to_string().contains("--as-uid needs --as"));
        let _ = std::fs::remove_file(path);
    }

    #[test]
    fn a_server_alone_needs_no_kubeconfig() {
        let overrides = Overrides { server: Some("https://[::1]:6443".into()), token: Some("t".into()), ..Overrides::default() };
        let mut kubeconfig = Kubeconfig::default();
        overrides.apply(&mut kubeconfig, &ConnectOptions::default()).unwrap();
        assert_eq!(kubeconfig.clusters[0].cluster.as_ref().unwrap().server.as_deref(), Some("https://[::1]:6443"));
        assert_eq!(kubeconfig.current_context.as_deref(), Some(kubeconfig.contexts[0].name.as_str()));
        assert_eq!(missing_user(&kubeconfig, &ConnectOptions::default()), None);
    }

    /// A certificate of X.509 version 1, with a key that is used for nothing else.
    const VERSION_1: &str = "
-----BEGIN CERTIFICATE-----
MIIBNTCB2wIUOlzQGAFImPqlyPsV4jMjn0NKxHYwCgYIKoZIzj0EAwIwHDEMMAoG
A1UEAwwDZXZlMQwwCgYDVQQKDANvcHMwIBcNMjYxMTI5MTkyMzE0WhgPMjEyNjEx
MDUxOTIzMTRaMBwxDDAKBgNVBAMMA2V2ZTEMMAoGA1UECgwDb3BzMFkwEwYHKoZI
zj0CAQYIKoZIzj0DAQcDQgAEqGw2wrVe7ejoGk5iOPaomQVMVJSD8RdVsyFUnkRd
Iyd4l0I7IJBxtMMF4lN2b9g0R0aWRhPWQz3VWfkMPKR/BTAKBggqhkjOPQQDAgNJ
ADBGAiEAp0lTdFyzQ+yOQhkFkLclGVNU358kY5rCrfLHEMjsD3ACIQDLpTgZpd5m
c3Jnag3YZV+PhoUA+dEtG7trrJHiDXv2Ig==
-----END CERTIFICATE-----";
    const KEY: &str = "
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg7J+wSf6c6nIwwoB7
HG8H2bpuv+Won6pOMytDH91ceFWhRANCAASobDbCtV7t6OgaTmI49qiZBUxUlIPx
F1WzIVSeRF0jJ3iXQjsgkHG0wwXiU3Zv2DRHRpZGE9ZDPdVZ+Qw8pH8F
-----END PRIVATE KEY-----";

    #[tokio::test]
    async fn a_client_certificate_of_version_1_is_refused_with_advice() {
        let (mut options, path) = options(Some("c"));
        let (certificate, key) = (path.with_extension("crt"), path.with_extension("key"));
        std::fs::write(&certificate, VERSION_1).unwrap();
        std::fs::write(&key, KEY).unwrap();
        options.overrides =
            Overrides { client_certificate: Some(certificate.clone()), client_key: Some(key.clone()), ..Overrides::default() };
        let text = Api::connect(&options).await.unwrap_err().to_string();
        assert!(text.contains("X.509 version 1 are not supported") && text.contains("version 3"), "{text}");
        for file in [path, certificate, key] {
            let _ = std::fs::remove_file(file);
        }
    }

    #[tokio::test]
    async fn a_dead_server_is_named() {
        let (options, path) = options(Some("c"));
        let api = Api::connect(&options).await.unwrap();
        let problem = api.ask("read the version", api.client().apiserver_version()).await.unwrap_err();
        assert_eq!(problem.kind, Kind::Unreachable, "{problem}");
        assert!(problem.to_string().contains("https://127.0.0.1:1"), "{problem}");
        let _ = std::fs::remove_file(path);
    }
}
