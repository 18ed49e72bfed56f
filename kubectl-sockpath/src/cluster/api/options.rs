//! How to reach the API server, and flags that stand for entries of the kubeconfig, as kubectl has them: server, certificates, token.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::config::{AuthInfo, Cluster, Context, Kubeconfig, NamedAuthInfo, NamedCluster, NamedContext};

use crate::cluster::api::problem::{Kind, Problem};

/// Name of the entries that flags make where the kubeconfig has none.
const OF_FLAGS: &str = "flags";

/// How to reach the API server, as kubectl's flags of the same names say it.
#[derive(Debug, Clone, Default)]
pub struct ConnectOptions {
    /// `--kubeconfig`; `$KUBECONFIG`, then `~/.kube/config`, otherwise.
    pub kubeconfig: Option<PathBuf>,
    /// `--context`.
    pub context: Option<String>,
    /// `--cluster`.
    pub cluster: Option<String>,
    /// `--user`.
    pub user: Option<String>,
    /// `-n`; that of the context otherwise.
    pub namespace: Option<String>,
    /// `--as`.
    pub as_user: Option<String>,
    /// `--as-group`.
    pub as_group: Vec<String>,
    /// `--as-uid`.
    pub as_uid: Option<String>,
    /// Flags that stand for entries.
    pub overrides: Overrides,
    /// `--request-timeout`; no limit when zero.
    pub request_timeout: Duration,
}

/// What the flags say in place of the kubeconfig's entries.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--server`.
    pub server: Option<String>,
    /// `--token`.
    pub token: Option<String>,
    /// `--tls-server-name`.
    pub tls_server_name: Option<String>,
    /// `--insecure-skip-tls-verify`.
    pub insecure_skip_tls_verify: bool,
    /// `--certificate-authority`.
    pub certificate_authority: Option<PathBuf>,
    /// `--client-certificate`.
    pub client_certificate: Option<PathBuf>,
    /// `--client-key`.
    pub client_key: Option<PathBuf>,
}

impl Overrides {
    /// Whether they say how the server is reached, so that no kubeconfig is needed.
    #[must_use]
    pub fn name_a_server(&self) -> bool {
        self.server.is_some()
    }

    /// Puts them into the entries that `options` select; makes entries where there are none.
    ///
    /// # Errors
    /// When they contradict each other.
    pub fn apply(&self, kubeconfig: &mut Kubeconfig, options: &ConnectOptions) -> Result<(), Problem> {
        if self.insecure_skip_tls_verify && self.certificate_authority.is_some() {
            let text = "--insecure-skip-tls-verify and --certificate-authority exclude each other: nothing is verified with the first";
            return Err(Problem::new(Kind::Other, text));
        }
        if self.client_certificate.is_some() != self.client_key.is_some() {
            return Err(Problem::new(Kind::Other, "--client-certificate and --client-key belong together: give both"));
        }
        let (of_cluster, of_user) = (self.touch_cluster(), self.token.is_some() || self.client_certificate.is_some());
        if !of_cluster && !of_user {
            return Ok(());
        }
        let context = selected_context(kubeconfig, options).clone();
        let name = options.cluster.clone().filter(|n| !n.is_empty()).unwrap_or_else(|| context.cluster.clone());
        if of_cluster {
            self.change_cluster(cluster_entry(kubeconfig, &name));
        }
        if of_user {
            let name = options.user.clone().or_else(|| context.user.clone()).filter(|n| !n.is_empty());
            self.change_user(user_entry(kubeconfig, &name.unwrap_or_else(|| OF_FLAGS.to_owned())));
        }
        Ok(())
    }

    fn touch_cluster(&self) -> bool {
        self.server.is_some() || self.tls_server_name.is_some() || self.insecure_skip_tls_verify || self.certificate_authority.is_some()
    }

    fn change_cluster(&self, cluster: &mut Cluster) {
        if let Some(server) = &self.server {
            // As kubectl takes it: a host alone is spoken to by https.
            let has_scheme = server.contains("://");
            cluster.server = Some(if has_scheme { server.clone() } else { format!("https://{server}") });
        }
        if let Some(name) = &self.tls_server_name {
            cluster.tls_server_name = Some(name.clone());
        }
        if self.insecure_skip_tls_verify {
            cluster.insecure_skip_tls_verify = Some(true);
            (cluster.certificate_authority, cluster.certificate_authority_data) = (None, None);
        }
        if let Some(path) = &self.certificate_authority {
            cluster.insecure_skip_tls_verify = None;
            (cluster.certificate_authority, cluster.certificate_authority_data) = (Some(text(path)), None);
        }
    }

    fn change_user(&self, user: &mut AuthInfo) {
        if let Some(token) = &self.token {
            (user.token, user.token_file) = (Some(token.clone().into()), None);
            // A token is used instead of what would fetch one.
            (user.exec, user.auth_provider) = (None, None);
        }
        if let (Some(certificate), Some(key)) = (&self.client_certificate, &self.client_key) {
            (user.client_certificate, user.client_certificate_data) = (Some(text(certificate)), None);
            (user.client_key, user.client_key_data) = (Some(text(key)), None);
        }
    }
}

fn text(path: &Path) -> String {
    // The kubeconfig's own paths are relative to its directory, those of flags to ours.
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).to_string_lossy().into_owned()
}

/// The context that is used; where there is none, one is made that names the flags' entries.
fn selected_context<'k>(kubeconfig: &'k mut Kubeconfig, options: &ConnectOptions) -> &'k Context {
    let name = options.context.clone().or_else(|| kubeconfig.current_context.clone()).filter(|n| !n.is_empty());
    let name = name.unwrap_or_else(|| OF_FLAGS.to_owned());
    let index = match kubeconfig.contexts.iter().position(|c| c.name == name && c.context.is_some()) {
        Some(index) => index,
        // A requested context that is missing stays missing; the error comes later.
        None if options.context.is_some() => {
            kubeconfig.contexts.push(NamedContext {
                name: OF_FLAGS.to_owned(),
                context: Some(Context::default()),
                ..NamedContext::default()
            });
            kubeconfig.contexts.len() - 1
        }
        None => {
            kubeconfig.current_context = Some(name.clone());
            kubeconfig.contexts.push(NamedContext { name, context: Some(Context::default()), ..NamedContext::default() });
            kubeconfig.contexts.len() - 1
        }
    };
    let context = kubeconfig.contexts[index].context.get_or_insert_default();
    if context.cluster.is_empty() {
        OF_FLAGS.clone_into(&mut context.cluster);
    }
    if context.user.as_deref().is_none_or(str::is_empty) {
        context.user = Some(OF_FLAGS.to_owned());
        if !kubeconfig.auth_infos.iter().any(|u| u.name == OF_FLAGS) {
            kubeconfig.auth_infos.push(NamedAuthInfo {
                name: OF_FLAGS.to_owned(),
                auth_info: Some(AuthInfo::default()),
                ..NamedAuthInfo::default()
            });
        }
    }
    kubeconfig.contexts[index].context.get_or_insert_default()
}

fn cluster_entry<'k>(kubeconfig: &'k mut Kubeconfig, name: &str) -> &'k mut Cluster {
    let index = kubeconfig.clusters.iter().position(|c| c.name == name).unwrap_or_else(|| {
        kubeconfig.clusters.push(NamedCluster { name: name.to_owned(), ..NamedCluster::default() });
        kubeconfig.clusters.len() - 1
    });
    kubeconfig.clusters[index].cluster.get_or_insert_default()
}

fn user_entry<'k>(kubeconfig: &'k mut Kubeconfig, name: &str) -> &'k mut AuthInfo {
    let index = kubeconfig.auth_infos.iter().position(|u| u.name == name).unwrap_or_else(|| {
        kubeconfig.auth_infos.push(NamedAuthInfo { name: name.to_owned(), ..NamedAuthInfo::default() });
        kubeconfig.auth_infos.len() - 1
    });
    kubeconfig.auth_infos[index].auth_info.get_or_insert_default()
}
