//! The name server beside others: its own benchmark program makes its own network namespace; here the other servers'
//! packages are unpacked.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

const PEERS: [&str; 4] = ["knot", "nsd", "unbound", "dnsmasq-base"];

pub fn run() -> Result<String> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?;
    let root = workspace.join("target/testkit/dns-peers");
    if !root.join("usr/sbin/knotd").is_file() {
        testkit::debian::unpack(&PEERS, &root).context("unpacking the servers to compare with")?;
    }
    let said = Command::new("cargo")
        .args(["run", "--release", "--quiet", "--package", "portolan-dns", "--example", "bench", "--", "--peers"])
        .arg(&root)
        .current_dir(workspace)
        .output()?;
    if !said.status.success() {
        bail!("the name server's benchmark failed:\n{}", String::from_utf8_lossy(&said.stderr));
    }
    let table = String::from_utf8_lossy(&said.stdout);
    Ok(format!("### Name servers, thousands of answers per second of processor time\n\n{table}"))
}
