//! The lab: two nodes, their pods and Services, out of network namespaces on this machine.
//!
//! Sessions are the helper's own code with [`sockpath_helper::site::Site::Lab`]: pods and nodes are found by the paths that requests name,
//! and pins are this lab's.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};
use sockpath_helper::accelerate::detached;
use sockpath_helper::{cli, serve, switches};
use sockpath_protocol::lab::Overlay;

use plan::Instance;

mod cgroup;
mod exec;
mod lifecycle;
mod links;
mod netns;
mod netns_names;
mod node;
mod plan;
mod preflight;
mod rules;
mod server;
mod state;
mod status;

/// The lab of kubectl sockpath; the plugin starts it for `lab` and `--lab`.
#[derive(Debug, Parser)]
#[command(name = "sockpath-lab", version = switches::VERSION)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring the lab up: two nodes, three pods and their Services
    Up {
        /// How packets cross between the nodes
        #[arg(long, value_enum, default_value = "none")]
        overlay: OverlayArg,
    },
    /// Remove the lab completely
    Down,
    /// Show nodes, pods and Services
    Status {
        /// Print JSON
        #[arg(short, long, value_enum)]
        output: Option<Output>,
    },
    /// Run a command inside a pod (its network namespace and cgroup) or on a node
    Exec {
        /// Pod (NAME, pod/NAME, NAMESPACE/NAME) or node
        target: String,
        /// Container of the pod
        #[arg(short, long)]
        container: Option<String>,
        /// The command and its arguments
        #[arg(last = true, required = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
    /// Be the built-in server of a container
    #[command(hide = true)]
    Serve {
        /// The pod
        pod: String,
        /// Its container
        container: String,
    },
    /// Serve one session for this lab: JSON lines on stdin and stdout
    Session,
    /// Continue a detached acceleration after its session: started by `session`
    #[command(hide = true)]
    ServeDetached,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OverlayArg {
    /// Host routes
    None,
    /// VXLAN
    Vxlan,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Json,
}

/// Runs the program; `error: ` and the cause go to stderr.
#[must_use]
pub fn main() -> ExitCode {
    let args = Args::parse();
    cli::run(run(args.command))
}

async fn run(command: Command) -> Result<ExitCode> {
    let instance = Instance::from_env()?;
    match command {
        Command::Up { overlay } => {
            let overlay = match overlay {
                OverlayArg::None => Overlay::None,
                OverlayArg::Vxlan => Overlay::Vxlan,
            };
            lifecycle::up(&instance, overlay).await
        }
        Command::Down => lifecycle::down(&instance).await,
        Command::Status { output } => status::status(&instance, output == Some(Output::Json)),
        Command::Exec { target, container, command } => exec::exec(&instance, &target, container.as_deref(), &command),
        Command::Serve { pod, container } => server::serve(&instance, &pod, &container).await,
        Command::Session => serve::serve(instance.site()).await,
        Command::ServeDetached => detached::run(&instance.site()).await,
    }
}
