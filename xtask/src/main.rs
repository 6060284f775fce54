//! `cargo xtask`: what developers and CI run.

mod bench;
mod lab;
mod schema;
mod test;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Tasks of this workspace
#[derive(Parser, Debug)]
#[command(name = "cargo xtask", arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand, Debug)]
enum Task {
    /// Install what the tests need, build, and run the tests: all tiers, or those named
    Test(test::Options),
    /// Only install, download and build what the tests need
    Prepare,
    /// Start a cluster in the tests' private world and run a command, or a shell, on its node
    Lab {
        #[arg(trailing_var_arg = true)]
        command: Vec<String>,
    },
    /// Measure on the release build: all figures, or those named (start, apply, memory, sync)
    Bench { parts: Vec<String> },
    /// Write the table of the built-in kinds' fields anew, after raising the Kubernetes version
    Schema {
        /// The unpacked k8s-openapi crate [default: the one in cargo's registry]
        #[arg(long)]
        source: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Test(options) => test::run(&options),
        Task::Prepare => test::prepare().map(|()| true),
        Task::Lab { command } => test::prepare().and_then(|()| lab::run(&command)),
        Task::Bench { parts } => test::prepare().and_then(|()| bench::run(&parts)).map(|()| true),
        Task::Schema { source } => {
            let out = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/apiserver/src/schema/types.txt");
            schema::run(source.as_deref(), &out).map(|()| true).map_err(anyhow::Error::msg)
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
