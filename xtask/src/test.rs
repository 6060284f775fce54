//! The tests, by distance from the metal. What they need is made first; what they say is cargo's own.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use testkit::{debian, kubectl, registry};

/// Two processors share what one machine has to give: labs wait for containers and kernels, so a few overlap well.
const THREADS: &str = "4";

#[derive(Args, Debug)]
pub struct Options {
    /// Only these tiers [default: all]
    #[arg(value_enum)]
    tiers: Vec<Tier>,
    /// Only tests whose name contains this, such as a row: seed_028
    #[arg(long, short)]
    filter: Option<String>,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum Tier {
    /// Unit and property tests, beside the code
    Unit,
    /// Each crate against a real kernel, in namespaces of its own
    Netns,
    /// The whole program with real clients
    Kubectl,
}

impl Tier {
    /// What cargo is told.
    fn selection(self) -> &'static [&'static str] {
        match self {
            Tier::Unit => &["--workspace", "--exclude", "portolan-tests", "--lib", "--bins"],
            Tier::Netns => &["--workspace", "--exclude", "portolan-tests", "--test", "*"],
            Tier::Kubectl => &["--package", "portolan-tests"],
        }
    }
}

/// Runs the tests; whether all passed.
pub fn run(options: &Options) -> Result<bool> {
    let started = Instant::now();
    prepare()?;
    cargo(&["build", "--package", "portolan"])?;
    let mut passed = true;
    if options.tiers.is_empty() {
        passed = test(&["--workspace"], options)?;
    }
    for tier in &options.tiers {
        passed &= test(tier.selection(), options)?;
    }
    let time = started.elapsed().as_secs();
    println!("{} in {} min {} s", if passed { "all tests passed" } else { "tests failed" }, time / 60, time % 60);
    Ok(passed)
}

/// Packages, kubectl, the filled registry: whatever is not there yet.
pub fn prepare() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the tests make network namespaces and containers, which only root may; run: sudo -E cargo xtask test");
    }
    debian::install_tools()?;
    kubectl::old_program().context("fetching Debian's kubectl")?;
    registry::storage().context("filling the test registry")?;
    Ok(())
}

fn test(selection: &[&str], options: &Options) -> Result<bool> {
    let mut command = Command::new(env!("CARGO"));
    command.arg("test").args(selection).arg("--no-fail-fast").arg("--").arg(format!("--test-threads={THREADS}"));
    command.args(&options.filter);
    println!("cargo {}", command.get_args().map(|a| a.to_string_lossy()).collect::<Vec<_>>().join(" "));
    Ok(command.status().context("starting cargo")?.success())
}

fn cargo(arguments: &[&str]) -> Result<()> {
    println!("cargo {}", arguments.join(" "));
    let status = Command::new(env!("CARGO")).args(arguments).status().context("starting cargo")?;
    if !status.success() {
        bail!("cargo {} failed", arguments.join(" "));
    }
    Ok(())
}
