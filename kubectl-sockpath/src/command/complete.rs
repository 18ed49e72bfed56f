//! Completion: `kubectl_complete-sockpath` as kubectl calls it (one choice per line, a tab, its description, and at the end
//! `:` with cobra's directive), and scripts for shells that call `kubectl-sockpath` itself with the same protocol.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use clap::builder::ValueHint;
use clap::{Arg, ArgAction, FromArgMatches};

use crate::backend::Backend;
use crate::cli::{self, Global, Shell};
use crate::cluster;
use crate::exit::Exit;
use crate::inventory::{Inventory, Kind};
use crate::output::{self, Text};
use crate::report;

/// First argument that asks for completion; what kubectl's completer name means to us, for shells.
const ASK: &str = "__complete";

/// How long names may take: a shell waits for them at every tab.
const PATIENCE: Duration = Duration::from_secs(2);

/// cobra's directives: complete file names, or do not.
const FILES: u8 = 0;
const NO_FILES: u8 = 4;

/// The words to complete, when this process was started as a completer.
#[must_use]
pub fn words(args: &[OsString]) -> Option<Vec<String>> {
    let text = |words: &[OsString]| words.iter().map(|w| w.to_string_lossy().into_owned()).collect();
    let stem = args.first().and_then(|a| Path::new(a).file_stem()).and_then(OsStr::to_str).unwrap_or_default();
    if stem.starts_with("kubectl_complete-") {
        return args.get(1..).map(text);
    }
    (args.get(1).and_then(|a| a.to_str()) == Some(ASK)).then(|| args.get(2..).map(text)).flatten()
}

/// What may stand at the place of the last word.
enum Wanted {
    /// One of these, with descriptions.
    Choices(Vec<(String, String)>),
    /// Names of these kinds, each with its prefix.
    Names(Vec<(Kind, &'static str)>),
    /// Names in the kubeconfig.
    Kubeconfig(Entries),
    /// A file.
    File,
    /// Nothing that can be known.
    Unknown,
}

/// Entries of a kubeconfig.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entries {
    Contexts,
    Clusters,
    Users,
}

/// Prints what may stand at the place of the last word. Errors are not printed: a shell has no place for them.
pub async fn run(words: &[String]) -> Exit {
    let (done, current) = match words.split_last() {
        Some((last, done)) => (done, last.as_str()),
        None => (words, ""),
    };
    let command = cli::command();
    let (choices, directive) = match wanted(&command, done, current) {
        Wanted::Choices(choices) => (choices, NO_FILES),
        Wanted::File => (Vec::new(), FILES),
        Wanted::Unknown => (Vec::new(), NO_FILES),
        Wanted::Kubeconfig(entries) => {
            let global = global(&command, done);
            // A file can be a pipe that nothing writes to.
            let read = tokio::task::spawn_blocking(move || in_kubeconfig(&global, entries));
            let names = tokio::time::timeout(PATIENCE, read).await;
            (names.ok().and_then(Result::ok).unwrap_or_default(), NO_FILES)
        }
        Wanted::Names(kinds) => {
            let names = tokio::time::timeout(PATIENCE, names(global(&command, done), &kinds)).await;
            (names.ok().and_then(Result::ok).unwrap_or_default(), NO_FILES)
        }
    };
    let mut out = Text::default();
    for (value, about) in choices.iter().filter(|(value, _)| value.starts_with(current)) {
        out.push(value);
        if !about.is_empty() {
            out.tab();
            out.push(about);
        }
        out.end_line();
    }
    out.line(&format!(":{directive}"));
    let _ = output::print(&out);
    Exit::Done
}

/// Finds out from the command line's own definition.
fn wanted(root: &clap::Command, done: &[String], current: &str) -> Wanted {
    let mut command = root;
    let mut path: Vec<&str> = Vec::new();
    let mut positionals = 0;
    // An option that takes values, and how many are still to come.
    let mut pending: Option<(&Arg, usize)> = None;
    for word in done {
        if word == "--" {
            return Wanted::File;
        }
        if let Some((arg, left)) = pending.take() {
            pending = (left > 1).then_some((arg, left - 1));
            continue;
        }
        if let Some(flag) = word.strip_prefix('-').filter(|f| !f.is_empty()) {
            pending = if word.contains('=') { None } else { find(root, command, flag).filter(|a| takes_value(a)).map(|a| (a, values(a))) };
        } else if let Some(sub) = command.get_subcommands().find(|c| c.get_name() == word) {
            path.push(sub.get_name());
            command = sub;
            positionals = 0;
        } else {
            positionals += 1;
        }
    }
    if let Some((arg, _)) = pending {
        return value_of(arg);
    }
    if current.starts_with('-') {
        return Wanted::Choices(flags(root, command));
    }
    if command.get_subcommands().next().is_some() {
        let about = |c: &clap::Command| c.get_about().map(ToString::to_string).unwrap_or_default();
        return Wanted::Choices(
            command.get_subcommands().filter(|c| !c.is_hide_set()).map(|c| (c.get_name().to_owned(), about(c))).collect(),
        );
    }
    match (&path[..], positionals) {
        (["trace"], 0) => {
            Wanted::Names(vec![(Kind::Pod, ""), (Kind::Deployment, "deploy/"), (Kind::StatefulSet, "sts/"), (Kind::Node, "node/")])
        }
        (["trace"], 1) => Wanted::Names(vec![
            (Kind::Pod, ""),
            (Kind::Service, "svc/"),
            (Kind::Deployment, "deploy/"),
            (Kind::StatefulSet, "sts/"),
            (Kind::Node, "node/"),
        ]),
        (["accelerate"], _) => {
            Wanted::Names(vec![(Kind::Pod, ""), (Kind::Service, "svc/"), (Kind::Deployment, "deploy/"), (Kind::StatefulSet, "sts/")])
        }
        (["lab", "exec"], 0) => Wanted::Names(vec![(Kind::Pod, "")]),
        _ => command.get_positionals().nth(positionals).map_or(Wanted::Unknown, value_of),
    }
}

/// The option a word like `-n` or `--namespace` names.
fn find<'c>(root: &'c clap::Command, command: &'c clap::Command, flag: &str) -> Option<&'c Arg> {
    let is = |a: &&Arg| match flag.strip_prefix('-') {
        Some(long) => a.get_long() == Some(long),
        None => flag.len() == 1 && a.get_short() == flag.chars().next(),
    };
    command.get_arguments().find(is).or_else(|| root.get_arguments().filter(|a| a.is_global_set()).find(is))
}

fn takes_value(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Set | ArgAction::Append) && !arg.is_require_equals_set()
}

/// How many values an option takes.
fn values(arg: &Arg) -> usize {
    arg.get_num_args().map_or(1, |range| range.min_values()).max(1)
}

fn value_of(arg: &Arg) -> Wanted {
    if arg.get_id() == "namespace" || arg.get_id() == "helper_namespace" {
        return Wanted::Names(vec![(Kind::Namespace, "")]);
    }
    match arg.get_id().as_str() {
        "context" => return Wanted::Kubeconfig(Entries::Contexts),
        "cluster" => return Wanted::Kubeconfig(Entries::Clusters),
        "user" => return Wanted::Kubeconfig(Entries::Users),
        "explain" => return Wanted::Choices(report::kind::KINDS.iter().map(|k| (k.id.to_owned(), k.title.to_owned())).collect()),
        _ => {}
    }
    let possible = arg.get_possible_values();
    if !possible.is_empty() {
        let about = |v: &clap::builder::PossibleValue| v.get_help().map(ToString::to_string).unwrap_or_default();
        return Wanted::Choices(possible.iter().map(|v| (v.get_name().to_owned(), about(v))).collect());
    }
    if matches!(arg.get_value_hint(), ValueHint::FilePath | ValueHint::AnyPath) { Wanted::File } else { Wanted::Unknown }
}

fn flags(root: &clap::Command, command: &clap::Command) -> Vec<(String, String)> {
    let all = command.get_arguments().chain(root.get_arguments().filter(|a| a.is_global_set()));
    let mut flags: Vec<(String, String)> =
        all.filter_map(|a| a.get_long().map(|l| (format!("--{l}"), a.get_help().map(ToString::to_string).unwrap_or_default()))).collect();
    flags.push(("--help".to_owned(), "Print help".to_owned()));
    flags.sort();
    flags.dedup_by(|a, b| a.0 == b.0);
    flags
}

/// The global options among the words; what does not parse (the line is not finished) is ignored.
fn global(command: &clap::Command, done: &[String]) -> Global {
    let parse = |words: &[String]| {
        let line = std::iter::once("kubectl-sockpath".to_owned()).chain(words.iter().cloned());
        let matches = command.clone().ignore_errors(true).try_get_matches_from(line).ok()?;
        Global::from_arg_matches(&matches).ok()
    };
    // `status` takes nothing and so never fails for what is missing; only the options are of interest.
    let options: Vec<String> = std::iter::once("status".to_owned()).chain(only_options(command, done)).collect();
    parse(&options).unwrap_or_else(|| Global {
        lab: done.iter().any(|w| w == "--lab"),
        namespace: None,
        kubeconfig: None,
        context: None,
        cluster: None,
        user: None,
        as_user: None,
        as_group: Vec::new(),
        as_uid: None,
        server: None,
        token: None,
        tls_server_name: None,
        insecure_skip_tls_verify: false,
        certificate_authority: None,
        client_certificate: None,
        client_key: None,
        helper_image: None,
        helper_namespace: String::new(),
        seccomp: cli::Seccomp::default(),
        request_timeout: PATIENCE,
        wait_nodes: None,
        verbose: 0,
        color: cli::ColorChoice::Never,
    })
}

/// The global options of a line with their values.
fn only_options(root: &clap::Command, done: &[String]) -> Vec<String> {
    let mut kept = Vec::new();
    let mut words = done.iter().peekable();
    while let Some(word) = words.next() {
        let Some(flag) = word.strip_prefix('-') else { continue };
        let name = flag.split('=').next().unwrap_or(flag);
        let Some(arg) = find(root, root, name).filter(|a| a.is_global_set()) else { continue };
        kept.push(word.clone());
        if takes_value(arg) && !word.contains('=') {
            kept.extend(words.next().cloned());
        }
    }
    kept
}

/// Names of these entries with what they are; nothing if the file cannot be read.
fn in_kubeconfig(global: &Global, entries: Entries) -> Vec<(String, String)> {
    let Ok(config) = cluster::api::kubeconfig::read(global.kubeconfig.as_deref()) else { return Vec::new() };
    let (names, word): (Vec<String>, _) = match entries {
        Entries::Contexts => (config.contexts.into_iter().map(|c| c.name).collect(), "context"),
        Entries::Clusters => (config.clusters.into_iter().map(|c| c.name).collect(), "cluster"),
        Entries::Users => (config.auth_infos.into_iter().map(|u| u.name).collect(), "user"),
    };
    names.into_iter().map(|name| (name, word.to_owned())).collect()
}

async fn names(global: Global, kinds: &[(Kind, &str)]) -> Result<Vec<(String, String)>> {
    let backend = Backend::connect(&global, true).await?;
    let mut all = Vec::new();
    for (kind, prefix) in kinds {
        for name in backend.names(*kind, backend.namespace()).await? {
            all.push((format!("{prefix}{name}"), kind.word().to_owned()));
        }
    }
    Ok(all)
}

/// `completion SHELL`.
pub fn script(args: &cli::Completion) -> Result<Exit> {
    output::print(&Text::constant(match args.shell {
        Shell::Bash => BASH,
        Shell::Zsh => ZSH,
        Shell::Fish => FISH,
        Shell::PowerShell => POWERSHELL,
    }))?;
    Ok(Exit::Done)
}

const BASH: &str = r#"# bash completion for kubectl-sockpath:  source <(kubectl sockpath completion bash)
# For `kubectl sockpath <TAB>` kubectl asks a program of this name on PATH:
#   ln -s "$(command -v kubectl-sockpath)" /usr/local/bin/kubectl_complete-sockpath
_kubectl_sockpath() {
    local cur words=() line directive= choices=()
    if declare -F _get_comp_words_by_ref >/dev/null; then
        local cword
        _get_comp_words_by_ref -n =: cur words cword
        words=("${words[@]:1:cword}")
    else
        cur="${COMP_WORDS[COMP_CWORD]}"
        words=("${COMP_WORDS[@]:1:COMP_CWORD}")
    fi
    while IFS= read -r line; do
        case "$line" in
            :*) directive="${line#:}" ;;
            *) choices+=("${line%%$'\t'*}") ;;
        esac
    done < <(kubectl-sockpath __complete "${words[@]}" 2>/dev/null)
    COMPREPLY=("${choices[@]}")
    if [ "$directive" = 0 ]; then
        COMPREPLY+=($(compgen -f -- "$cur"))
    fi
    declare -F __ltrim_colon_completions >/dev/null && __ltrim_colon_completions "$cur"
}
complete -F _kubectl_sockpath kubectl-sockpath
"#;

const ZSH: &str = r#"#compdef kubectl-sockpath
# zsh completion for kubectl-sockpath:  source <(kubectl sockpath completion zsh)
# For `kubectl sockpath <TAB>` kubectl asks a program of this name on PATH:
#   ln -s "$(command -v kubectl-sockpath)" /usr/local/bin/kubectl_complete-sockpath
_kubectl_sockpath() {
    local line directive= value about
    local -a choices
    while IFS= read -r line; do
        case "$line" in
            :*) directive="${line#:}" ;;
            *)
                value="${line%%$'\t'*}"
                about="${line#*$'\t'}"
                choices+=("${value//:/\\:}:$about")
                ;;
        esac
    done < <(kubectl-sockpath __complete "${(@)words[2,CURRENT]}" 2>/dev/null)
    [ "$directive" = 0 ] && _files
    _describe 'choice' choices
}
compdef _kubectl_sockpath kubectl-sockpath
"#;

const FISH: &str = r#"# fish completion for kubectl-sockpath:  kubectl sockpath completion fish | source
# For `kubectl sockpath <TAB>` kubectl asks a program of this name on PATH:
#   ln -s (command -v kubectl-sockpath) /usr/local/bin/kubectl_complete-sockpath
function __kubectl_sockpath
    set -l words (commandline -opc) (commandline -ct)
    kubectl-sockpath __complete $words[2..-1] 2>/dev/null | string match -v -r '^:'
end
complete -c kubectl-sockpath -f -a '(__kubectl_sockpath)'
"#;

// Windows PowerShell, and PowerShell before 7.3, drop empty arguments of programs unless they are quoted.
const POWERSHELL: &str = r#"# PowerShell completion for kubectl-sockpath:  kubectl sockpath completion powershell | Out-String | Invoke-Expression
# For `kubectl sockpath <TAB>` kubectl asks a program of this name on PATH: copy kubectl-sockpath.exe to kubectl_complete-sockpath.exe
Register-ArgumentCompleter -Native -CommandName kubectl-sockpath -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)
    $words = @($commandAst.CommandElements | Select-Object -Skip 1 | ForEach-Object { $_.ToString() })
    if ($wordToComplete -eq '') {
        $words += if ($PSVersionTable.PSVersion -lt [version]'7.3') { '""' } else { '' }
    }
    & kubectl-sockpath __complete @words 2>$null | Where-Object { $_ -notmatch '^:\d+$' } | ForEach-Object {
        $value, $about = $_ -split "`t", 2
        if (-not $about) { $about = $value }
        [System.Management.Automation.CompletionResult]::new($value, $value, 'ParameterValue', $about)
    }
}
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::CommandFactory;

    fn choices(line: &[&str], current: &str) -> Vec<String> {
        let done: Vec<String> = line.iter().map(|s| (*s).to_owned()).collect();
        match wanted(&Cli::command(), &done, current) {
            Wanted::Choices(c) => c.into_iter().map(|(v, _)| v).filter(|v| v.starts_with(current)).collect(),
            Wanted::Names(kinds) => kinds.iter().map(|(k, p)| format!("<{p}{}>", k.word())).collect(),
            Wanted::Kubeconfig(entries) => vec![format!("<{entries:?}>")],
            Wanted::File => vec!["<file>".to_owned()],
            Wanted::Unknown => Vec::new(),
        }
    }

    #[test]
    fn follows_the_command_line() {
        assert!(choices(&[], "").contains(&"trace".to_owned()));
        assert_eq!(choices(&[], "acc"), ["accelerate"]);
        assert_eq!(choices(&["lab"], "e"), ["exec"]);
        assert_eq!(choices(&["completion"], ""), ["bash", "zsh", "fish", "powershell"]);
        assert_eq!(choices(&["trace", "curl", "web", "-o"], ""), ["wide", "json", "jsonl", "mermaid", "plain", "yaml"]);
        assert_eq!(choices(&["trace"], "--no"), ["--no-probe", "--no-rules"]);
        assert!(choices(&["trace"], "--la").contains(&"--lab".to_owned()));
        let workloads = ["<deploy/Deployment>", "<sts/StatefulSet>", "<node/node>"];
        assert_eq!(choices(&["trace"], ""), [&["<pod>"][..], &workloads[..]].concat());
        assert_eq!(choices(&["--lab", "trace", "curl"], ""), [&["<pod>", "<svc/Service>"][..], &workloads[..]].concat());
        assert_eq!(choices(&["trace", "-n"], ""), ["<namespace>"]);
        assert_eq!(choices(&["status", "--context"], ""), ["<Contexts>"]);
        assert_eq!(choices(&["trace", "--explain"], "no-e"), ["no-endpoints"]);
        assert_eq!(choices(&["accelerate", "web"], ""), ["<pod>", "<svc/Service>", "<deploy/Deployment>", "<sts/StatefulSet>"]);
        assert_eq!(choices(&["trace", "--diff", "a"], ""), ["<file>"]);
        for option in ["--record", "--html", "--svg", "--perfetto", "--diff"] {
            assert_eq!(choices(&["trace", option], ""), ["<file>"], "{option}");
        }
        assert_eq!(choices(&["lab", "exec"], ""), ["<pod>"]);
        assert_eq!(choices(&["lab", "exec", "curl", "--"], ""), ["<file>"]);
    }

    #[test]
    fn knows_when_it_is_asked() {
        let os = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        assert_eq!(words(&os(&["/usr/bin/kubectl_complete-sockpath", "trace", ""])), Some(vec!["trace".to_owned(), String::new()]));
        assert_eq!(words(&os(&["kubectl-sockpath", "__complete", "tr"])), Some(vec!["tr".to_owned()]));
        assert_eq!(words(&os(&["kubectl-sockpath", "trace"])), None);
    }

    #[test]
    fn global_options_are_found_anywhere() {
        let done: Vec<String> = ["trace", "--lab", "curl", "-n", "prod", "-o", "json"].map(str::to_owned).to_vec();
        let global = global(&Cli::command(), &done);
        assert!(global.lab);
        assert_eq!(global.namespace.as_deref(), Some("prod"));
    }
}
