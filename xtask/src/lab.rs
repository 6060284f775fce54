//! `cargo xtask lab`: the world of the tests, to look around in.

use std::process::Command;

use anyhow::{Context, Result};
use testkit::program::binary;
use testkit::{Lab, Registry, Up};

/// Starts a cluster with a filled registry in a lab, runs `line` (or a shell) on its node, and removes everything after.
pub fn run(line: &[String]) -> Result<bool> {
    let lab = Lab::new("look")?;
    let _registry = Registry::start(&lab)?;
    let up = Up::start(&lab, &[])?;
    eprintln!(
        "ready after {} ms; log: {}",
        up.started_in.as_millis(),
        lab.logs().join(format!("{}.log", lab.name())).display()
    );
    eprintln!("from another terminal: nsenter --target={} --all", lab.node().pid());
    let line = if line.is_empty() { &["bash".to_owned()][..] } else { line };
    let program = binary()?;
    let tools = program.parent().context("the program lies in a directory")?;
    let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap_or_default());
    let mut command: Command = lab.node().command(&line[0]);
    command.args(&line[1..]).env("KUBECONFIG", "/var/lib/portolan/kubeconfig").env("PATH", path).env("HOME", lab.dir());
    let status = command.status().context("starting the command")?;
    up.interrupt()?;
    Ok(status.success())
}
