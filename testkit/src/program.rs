//! The program under test: `portolan up` in a lab, and what it leaves.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::Signal;

use crate::place::Running;
use crate::{Lab, Output, registry, wait};

/// Until the API answers. Far above what it takes; two slow processors may be shared by eight builds.
const READY: Duration = Duration::from_secs(60);

/// What it prints once every role has started.
const SAYS_READY: &str = "Ready after";

static CHOSEN: OnceLock<PathBuf> = OnceLock::new();

/// Chooses the program for this whole process, before the first use.
pub fn use_binary(path: PathBuf) {
    CHOSEN.get_or_init(|| path);
}

/// The built program: the chosen one, else `PORTOLAN_BIN`, else the one beside the running test.
pub fn binary() -> Result<PathBuf> {
    let path = match (CHOSEN.get(), std::env::var_os("PORTOLAN_BIN")) {
        (Some(path), _) => path.clone(),
        (None, Some(path)) => PathBuf::from(path),
        (None, None) => {
            let test = std::env::current_exe()?;
            let dir = test.parent().context("a program lies in a directory")?;
            let dir = if dir.ends_with("deps") { dir.parent().unwrap_or(dir) } else { dir };
            dir.join("portolan")
        }
    };
    if !path.is_file() {
        bail!("{} is not built; run: cargo build -p portolan", path.display());
    }
    Ok(path)
}

/// How a program ended, with everything it said.
#[derive(Debug)]
pub struct Exit {
    pub status: ExitStatus,
    pub log: String,
}

/// `portolan up`, running.
pub struct Up {
    running: Running,
    log: PathBuf,
    /// Where its part of the log begins; an earlier start in the same lab wrote the rest.
    begin: usize,
    /// From the start of the process until it says that it is ready.
    pub started_in: Duration,
}

impl Up {
    /// Starts it with the loopback registry as mirror and waits until the API server answers.
    pub fn start(lab: &Lab, arguments: &[&str]) -> Result<Up> {
        let started = Instant::now();
        let mut up = Up::spawn(lab, arguments)?;
        let kubeconfig = lab.dir().join("lib/portolan/kubeconfig");
        let node = lab.node();
        let ready = wait::until_or(READY, || {
            if let Ok(Some(status)) = up.running.ended() {
                return Ok(Err(status));
            }
            if !kubeconfig.is_file() {
                return Err("no kubeconfig yet".to_owned());
            }
            let mut curl = node.network_command("curl");
            curl.args(["--silent", "--insecure", "--max-time", "2", "https://127.0.0.1:6443/readyz"]);
            match curl.output() {
                Ok(answer) if answer.stdout == b"ok" && !up.log().contains(SAYS_READY) => {
                    Err("it has not said so".into())
                }
                Ok(answer) if answer.stdout == b"ok" => Ok(Ok(())),
                Ok(answer) => Err(format!("/readyz: {:?}", String::from_utf8_lossy(&answer.stdout))),
                Err(e) => Err(e.to_string()),
            }
        });
        up.started_in = started.elapsed();
        match ready {
            Ok(Ok(())) => Ok(up),
            Ok(Err(status)) => bail!("portolan up ended at once ({status}):\n{}", up.log()),
            Err(reason) => Err(anyhow!("portolan up is not ready: {reason}\n{}", up.log())),
        }
    }

    /// Starts it and waits for nothing.
    pub fn spawn(lab: &Lab, arguments: &[&str]) -> Result<Up> {
        let log = lab.logs().join(format!("{}.log", lab.name()));
        let file = File::options().create(true).append(true).open(&log)?;
        let mut command = lab.node().command(binary()?);
        command.arg("up").arg(format!("--registry-mirror=docker.io=http://{}", registry::ADDRESS)).args(arguments);
        command.env("NO_COLOR", "1").stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let begin = fs::metadata(&log)?.len() as usize;
        let running = Running::spawn(&mut command)?;
        Ok(Up { running, log, begin, started_in: Duration::ZERO })
    }

    /// What it has said so far.
    pub fn log(&self) -> String {
        match fs::read(&self.log) {
            Ok(bytes) => String::from_utf8_lossy(bytes.get(self.begin..).unwrap_or_default()).into_owned(),
            Err(e) => format!("({}: {e})", self.log.display()),
        }
    }

    /// The process, as the host numbers it.
    pub fn pid(&self) -> Option<i32> {
        self.running.pid()
    }

    /// Ctrl-C, and wait for the end.
    pub fn interrupt(mut self) -> Result<Exit> {
        self.running.signal(Signal::SIGINT)?;
        self.wait()
    }

    /// `kill -9`.
    pub fn kill(mut self) -> Result<()> {
        self.running.signal(Signal::SIGKILL)?;
        self.running.wait(Duration::from_secs(20)).map(drop)
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self) -> Result<Exit> {
        let status = self.running.wait(Duration::from_secs(60)).with_context(|| self.log())?;
        Ok(Exit { status, log: self.log() })
    }
}

/// Runs `portolan LINE` on the node of a lab to its end.
pub fn portolan(lab: &Lab, line: &str) -> Result<Output> {
    let mut command = lab.node().command(binary()?);
    command.args(line.split_whitespace()).env("NO_COLOR", "1").stdin(Stdio::null());
    Ok(Output::of(&mut command, &format!("portolan {line}")))
}

/// Everything the program may have made on the node of a lab: links, routes, rules, mounts, sysctls, cgroups, processes.
/// Two of these compare equal when nothing was left behind.
pub fn traces(lab: &Lab) -> Result<Vec<String>> {
    let script = "ip -brief link | awk '{print \"link\", $1}'; ip route | sed 's/^/route /'; \
        nft list ruleset | sed 's/^/nft /'; awk '{print \"mount\", $5}' /proc/self/mountinfo; \
        for f in net/ipv4/ip_forward net/ipv4/conf/all/rp_filter net/ipv4/conf/all/send_redirects \
            net/ipv4/conf/all/route_localnet net/ipv6/conf/all/forwarding net/bridge/bridge-nf-call-iptables; do \
            [ -f /proc/sys/$f ] && echo \"sysctl $f $(cat /proc/sys/$f)\"; done; \
        find /sys/fs/cgroup -mindepth 1 -type d | sed 's/^/cgroup /'; \
        ls -d /run/portolan 2>/dev/null; ls /run/netns 2>/dev/null | sed 's/^/netns /'; true";
    let mut lines: Vec<String> =
        lab.node().sh(script).result().map_err(|e| anyhow!(e))?.lines().map(str::to_owned).collect();
    for pid in lab.processes()? {
        let Ok(bytes) = fs::read(format!("/proc/{pid}/cmdline")) else { continue };
        let command = String::from_utf8_lossy(&bytes).replace('\0', " ");
        if command.contains("portolan") {
            lines.push(format!("process {command}"));
        }
    }
    lines.sort();
    Ok(lines)
}
