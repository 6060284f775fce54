//! Portolan: Kubernetes Services, alone and complete.

mod admin;
mod app;
mod apply;
mod commands;
mod config;
mod echo;
mod journal;
mod node;
mod overview;
mod say;

use std::process::ExitCode;

use clap::Parser;

use say::note;

fn main() -> ExitCode {
    // A container's shim is this binary again. It forks, so it must be reached before any thread exists.
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|a| a == "__shim") {
        let args: Vec<_> = args.map(|a| a.to_string_lossy().into_owned()).collect();
        return exit(agent::shim::main(&args));
    }
    match commands::run(commands::Cli::parse()) {
        Ok(code) => exit(code),
        Err(error) => {
            note!("{} {error:#}", commands::style_error("error:"));
            ExitCode::FAILURE
        }
    }
}

fn exit(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
