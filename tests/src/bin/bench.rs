//! Benchmarks of acceleration and tracing; see `bench --help`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use sockpath_tests::bench::peer::{self, Load, Place};

/// Benchmarks in a lab of their own; writes the tables of docs/benchmarks.md to stdout.
#[derive(Debug, Parser)]
#[command(name = "bench", args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    role: Option<Role>,
    /// About three minutes instead of fifteen
    #[arg(long)]
    quick: bool,
    /// Fail, and list them, when goals are missed
    #[arg(long)]
    strict: bool,
    /// Only these sections: rr, short, sleeping, streams, connections, programs, bystanders, many, many-short, crowd, trace, lab, cluster
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Answer clients until stdin closes
    Server {
        /// Bind to this CPU
        #[arg(long)]
        cpu: usize,
        /// TCP port
        #[arg(long)]
        port: Option<u16>,
        /// AF_UNIX path
        #[arg(long)]
        path: Option<PathBuf>,
    },
    /// One run
    Client {
        /// Bind to this CPU
        #[arg(long)]
        cpu: usize,
        /// ADDRESS:PORT or a path
        #[arg(long)]
        to: Place,
        /// What to do
        #[arg(long)]
        load: Load,
        /// Bytes per message
        #[arg(long)]
        size: usize,
        /// Milliseconds
        #[arg(long)]
        ms: u64,
    },
    /// Send small datagrams
    Flood {
        /// ADDRESS:PORT
        #[arg(long)]
        to: SocketAddr,
        /// Datagrams per second; 0 for as many as go
        #[arg(long, default_value_t = 0)]
        rate: u64,
        /// Milliseconds
        #[arg(long)]
        ms: u64,
    },
    /// Hold many connections
    Many {
        /// Bind to this CPU
        #[arg(long)]
        cpu: usize,
        /// ADDRESS:PORT
        #[arg(long)]
        to: SocketAddr,
        /// How many
        #[arg(long)]
        count: usize,
    },
    /// Make connections one after the other until stdin closes
    Churn {
        /// Bind to this CPU
        #[arg(long)]
        cpu: usize,
        /// ADDRESS:PORT
        #[arg(long)]
        to: SocketAddr,
        /// Connections per second
        #[arg(long)]
        rate: u64,
        /// Requests and answers on each
        #[arg(long)]
        exchanges: u32,
    },
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<ExitCode> {
    let Some(role) = args.role else {
        let missed = sockpath_tests::bench::suite::run(args.quick, &args.only)?;
        eprintln!("{} goals are missed{}", missed.len(), if missed.is_empty() { "" } else { ":" });
        missed.iter().for_each(|goal| eprintln!("  {goal}"));
        return Ok(if args.strict && !missed.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS });
    };
    serve(role)?;
    Ok(ExitCode::SUCCESS)
}

/// What this program does inside a pod.
fn serve(role: Role) -> Result<()> {
    match role {
        Role::Server { cpu, port, path } => {
            peer::pin(cpu)?;
            peer::serve(port, path)
        }
        Role::Client { cpu, to, load, size, ms } => {
            peer::pin(cpu)?;
            let run = peer::run(&to, load, size, Duration::from_millis(ms))?;
            println!("{}", serde_json::to_string(&run)?);
            Ok(())
        }
        Role::Flood { to, rate, ms } => {
            println!("{}", peer::flood(to, rate, Duration::from_millis(ms))?);
            Ok(())
        }
        Role::Many { cpu, to, count } => {
            peer::pin(cpu)?;
            peer::many(to, count)
        }
        Role::Churn { cpu, to, rate, exchanges } => {
            peer::pin(cpu)?;
            peer::churn(to, rate, exchanges)
        }
    }
}
