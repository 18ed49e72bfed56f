//! Connections under every load we can think of; see `torture --help`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use sockpath_protocol::accel::Via;
use sockpath_tests::snapshot::{Scope, Snapshot};
use sockpath_tests::torture::agent;
use sockpath_tests::torture::client::{self, ClientOptions, Route};
use sockpath_tests::torture::controller::Torture;
use sockpath_tests::torture::server::{self, ServerOptions};

/// Torture for TCP between lab pods.
#[derive(Debug, Parser)]
#[command(name = "torture")]
#[command(args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    role: Option<Role>,
    /// Connections in all
    #[arg(long, default_value_t = 4000)]
    connections: u64,
    /// Everything random follows from it; the clock chooses one otherwise
    #[arg(long)]
    seed: Option<u64>,
    /// Leave acceleration off: what plain TCP does with the same connections
    #[arg(long)]
    plain: bool,
    /// Use the copy of the programs without the order gate, which has to fail
    #[arg(long, conflicts_with = "plain")]
    without_order_gate: bool,
    /// The path of accelerated connections: socket, short or auto
    #[arg(long, default_value = "socket", value_parser = via)]
    via: Via,
    /// Make no new connections after so many seconds
    #[arg(long)]
    limit: Option<u64>,
}

fn via(text: &str) -> Result<Via, String> {
    match text {
        "socket" => Ok(Via::Socket),
        "short" => Ok(Via::Short),
        "auto" => Ok(Via::Auto),
        _ => Err("socket, short or auto".to_owned()),
    }
}

#[derive(Debug, Subcommand)]
enum Role {
    /// The accepting peer, inside a pod; ends when stdin closes
    Server {
        /// The run's seed
        #[arg(long)]
        seed: u64,
        /// First of 16 ports
        #[arg(long, default_value_t = 7000)]
        port: u16,
        /// The peer may be killed at any moment
        #[arg(long)]
        doomed: bool,
    },
    /// Do single socket calls inside a pod, as a test tells on stdin
    #[command(hide = true)]
    Agent,
    /// Print what exists in the kernel, one object a line, to compare before and after
    #[command(hide = true)]
    Objects,
    /// The connecting peer, inside a pod
    Client {
        /// The run's seed
        #[arg(long)]
        seed: u64,
        /// Number of the first connection
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// How many connections
        #[arg(long)]
        count: u64,
        /// How many at a time
        #[arg(long, default_value_t = 120)]
        concurrency: usize,
        /// Make no new connections after so many milliseconds
        #[arg(long)]
        limit_ms: Option<u64>,
        /// The server may be killed at any moment
        #[arg(long)]
        doomed: bool,
        /// NAME=ADDRESS:PORT, several times
        #[arg(long = "route", required = true)]
        routes: Vec<Route>,
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
    let Some(role) = args.role else { return controller(&args) };
    match role {
        Role::Agent => agent::run()?,
        Role::Objects => println!("{}", Snapshot::take(Scope { containing: String::new(), bpf: true })),
        Role::Server { seed, port, doomed } => server::run(ServerOptions { port, seed, doomed })?,
        Role::Client { seed, from, count, concurrency, limit_ms, doomed, routes } => {
            client::run(&ClientOptions { seed, from, count, concurrency, limit: limit_ms.map(Duration::from_millis), doomed, routes })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn controller(args: &Args) -> Result<ExitCode> {
    let seed = match args.seed {
        Some(seed) => seed,
        None => std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs(),
    };
    let how = match (args.plain, args.via) {
        (true, _) => " --plain",
        (false, Via::Socket) => "",
        (false, Via::Short) => " --via short",
        (false, Via::Auto) => " --via auto",
    };
    println!("to repeat: torture --connections {} --seed {seed}{how}", args.connections);
    let limit = args.limit.map(Duration::from_secs);
    let (connections, accelerate, without_order_gate, via) = (args.connections, !args.plain, args.without_order_gate, args.via);
    let verdict = Torture { seed, connections, accelerate, without_order_gate, via, limit }.run()?;
    println!("{verdict}");
    Ok(if verdict.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
