//! The lab: two nodes, their pods and Services, out of network namespaces on this machine.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use sockpath_protocol::lab::Overlay;

use plan::Instance;

mod cgroup;
mod exec;
mod lifecycle;
mod links;
mod netns;
mod node;
mod plan;
mod rules;
mod server;
mod state;
mod status;

/// `lab` and what follows it.
#[derive(Debug, Args)]
pub struct LabArgs {
    #[command(subcommand)]
    command: LabCommand,
}

#[derive(Debug, Subcommand)]
enum LabCommand {
    /// Bring the lab up: two nodes, three pods and their Services
    Up {
        /// How packets cross between the nodes
        #[arg(long, value_enum, default_value = "none")]
        overlay: OverlayArg,
    },
    /// Remove the lab and every leftover of it
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

/// Runs a lab command.
pub async fn run(args: LabArgs) -> Result<ExitCode> {
    let instance = Instance::from_env()?;
    match args.command {
        LabCommand::Up { overlay } => {
            let overlay = match overlay {
                OverlayArg::None => Overlay::None,
                OverlayArg::Vxlan => Overlay::Vxlan,
            };
            lifecycle::up(&instance, overlay).await
        }
        LabCommand::Down => lifecycle::down(&instance).await,
        LabCommand::Status { output } => status::status(&instance, output == Some(Output::Json)),
        LabCommand::Exec { target, container, command } => exec::exec(&instance, &target, container.as_deref(), &command),
        LabCommand::Serve { pod, container } => server::serve(&instance, &pod, &container).await,
    }
}
