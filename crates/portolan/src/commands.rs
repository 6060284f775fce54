//! The command line: what can be typed, and who carries it out.

mod dns;
mod down;
mod proxy;
mod services;
mod up;

use std::path::PathBuf;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};

use crate::{
    config::{Dirs, Options},
    echo,
};

/// Kubernetes Services, alone and complete: load balancer, DNS and LoadBalancer addresses in one program
#[derive(Parser, Debug)]
#[command(name = "portolan", version, arg_required_else_help = true, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  portolan up                               a cluster on this machine, until Ctrl-C
  portolan up examples/web-app.yaml         the same, with objects applied and shown
  portolan services                         how to reach each Service of the running cluster
  portolan down                             stop it and leave nothing behind on the host

kubectl talks to it: export KUBECONFIG=/var/lib/portolan/kubeconfig";

#[derive(Subcommand, Debug)]
enum Command {
    /// Start a cluster on this machine and stay in the foreground
    ///
    /// Starts an API server on loopback, controllers, a node that runs containers, the load balancer in the kernel
    /// and DNS. Objects are kept in the data directory and found again by the next `up`. Ctrl-C stops it and removes
    /// everything it made on the host. Needs root.
    Up(Up),
    /// Stop the cluster and remove everything it made on the host, also after it was killed
    Down(Down),
    /// Show every Service with every way to reach it
    #[command(visible_alias = "lb")]
    Services(Services),
    /// Look at the load balancer in this machine's kernel
    Proxy(proxy::Proxy),
    /// Print the load balancer's live state as ipvsadm would (`-L -n`)
    Ipvsadm(proxy::Ipvsadm),
    /// Answer DNS for a cluster, alone, in place of CoreDNS
    ///
    /// Names are answered from what the API server says at this moment; every "no" comes with its reason, which dig
    /// shows. Until the API server has been heard, the answer is SERVFAIL, or the last good state with --keep.
    Dns(dns::Dns),
    /// Answer HTTP, TCP and UDP with who answers and who asked (the image portolan.dev/echo)
    Echo(echo::Options),
    /// Print a shell completion script
    Completions { shell: clap_complete::Shell },
}

#[derive(clap::Args, Debug)]
pub struct Up {
    /// Objects to apply, as YAML or JSON files (`-` is standard input)
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// How long to wait for the pods of the files before the table is shown, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub wait: u64,
    #[command(flatten)]
    pub options: Options,
}

#[derive(clap::Args, Debug)]
pub struct Down {
    #[command(flatten)]
    pub dirs: Dirs,
    /// Remove the data directory too: objects, keys and images
    #[arg(long)]
    pub purge: bool,
}

#[derive(clap::Args, Debug)]
pub struct Services {
    #[command(flatten)]
    pub dirs: Dirs,
    /// `json` for machines
    #[arg(short, long, value_name = "FORMAT", value_parser = ["table", "json"], default_value = "table")]
    pub output: String,
    /// Accepted for `lb list`
    #[arg(hide = true, value_parser = ["list"])]
    pub verb: Option<String>,
}

pub fn run(cli: Cli) -> Result<i32> {
    match cli.command {
        Command::Up(options) => up::run(options),
        Command::Down(options) => down::run(&options),
        Command::Services(options) => services::run(&options),
        Command::Proxy(options) => proxy::run(&options),
        Command::Ipvsadm(options) => proxy::ipvsadm(&options),
        Command::Dns(options) => dns::run(options),
        Command::Echo(options) => echo::run(&options),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "portolan", &mut std::io::stdout());
            Ok(0)
        }
    }
}

/// The options of a `portolan up` from its command line.
pub fn options_of(arguments: &[String]) -> Result<Options> {
    match Cli::try_parse_from(arguments)?.command {
        Command::Up(up) => Ok(up.options),
        _ => anyhow::bail!("{arguments:?} is not a `portolan up`"),
    }
}

/// Red where the terminal and `NO_COLOR` allow.
pub fn style_error(text: &str) -> console::StyledObject<&str> {
    console::style(text).for_stderr().red().bold()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
