//! Where a command or a packet starts from: the node, the outside, or one pod of a lab.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::http::{self, Response};
use crate::{Output, wait};

/// A set of namespaces to run in.
#[derive(Debug, Clone)]
pub struct Place {
    /// A process of the host's view whose namespaces are meant.
    pid: u32,
    /// Another network namespace than that process has.
    network: Option<PathBuf>,
    /// Whether commands also join the lab's cgroups; a pod's have their own.
    join: bool,
}

/// Moves itself into the lab's cgroups (from the inside they are the root), then becomes the command.
const JOIN: &str = "for f in $(awk '$0 ~ / - cgroup2? / {print $5}' /proc/self/mountinfo); do \
    if [ -d $f/lab-init ]; then f=$f/lab-init; fi; echo $$ > $f/cgroup.procs; done; exec \"$@\"";

impl Place {
    pub(crate) fn node(init: u32) -> Place {
        Place { pid: init, network: None, join: true }
    }

    pub(crate) fn outside(init: u32) -> Place {
        let network = PathBuf::from(format!("/proc/{init}/root/run/netns/outside"));
        Place { pid: init, network: Some(network), join: true }
    }

    pub(crate) fn container(pid: u32) -> Place {
        Place { pid, network: None, join: false }
    }

    /// The process (as the host numbers it) whose namespaces these are.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// `program` in all namespaces of the place, not started yet.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.nsenter(&["--mount", "--uts", "--ipc", "--pid", "--cgroup"]);
        if self.join {
            command.args(["sh", "-c", JOIN, "lab"]);
        }
        command.arg(program);
        command
    }

    /// `program` of the host's file system in the network of the place only.
    pub fn network_command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.nsenter(&[]);
        command.arg(program);
        command
    }

    fn nsenter(&self, namespaces: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.pid)).args(namespaces);
        match &self.network {
            Some(path) => command.arg(format!("--net={}", path.display())),
            None => command.arg("--net"),
        };
        command.arg("--");
        command
    }

    /// Runs a shell line to its end.
    pub fn sh(&self, line: &str) -> Output {
        let mut command = self.command("sh");
        command.arg("-c").arg(line).stdin(Stdio::null());
        Output::of(&mut command, line)
    }

    /// Runs `code` on a thread of its own inside the network namespace: sockets it opens belong there.
    pub fn enter<T: Send>(&self, code: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let path = self.network.clone().unwrap_or_else(|| PathBuf::from(format!("/proc/{}/ns/net", self.pid)));
        let network = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&network, CloneFlags::CLONE_NEWNET).context("entering a network namespace")?;
                code()
            });
            thread.join().map_err(|_| anyhow!("the code inside a namespace panicked"))?
        })
    }

    /// One `GET` on a fresh connection, from this network.
    pub fn get(&self, address: SocketAddr, path: &str) -> Result<Response> {
        self.enter(|| Ok(http::get(address, path, Duration::from_secs(5))?))
    }

    /// The bodies of `count` GETs, each on a fresh connection. Errors are handed back in their place.
    pub fn get_many(&self, address: SocketAddr, path: &str, count: usize) -> Result<Vec<Result<String, String>>> {
        let one = || match http::get(address, path, Duration::from_secs(5)) {
            Ok(answer) if answer.status == 200 => Ok(answer.text()),
            Ok(answer) => Err(format!("HTTP {}", answer.status)),
            Err(e) => Err(e.to_string()),
        };
        self.enter(|| Ok((0..count).map(|_| one()).collect()))
    }

    /// The environment the main process of the place was started with.
    pub fn environment(&self) -> Result<Vec<String>> {
        let bytes = fs::read(format!("/proc/{}/environ", self.pid))?;
        Ok(bytes
            .split(|b| *b == 0)
            .filter(|v| !v.is_empty())
            .map(|v| String::from_utf8_lossy(v).into_owned())
            .collect())
    }

    /// A file of the place's file system.
    pub fn read(&self, path: &str) -> Result<String> {
        let path = format!("/proc/{}/root/{}", self.pid, path.trim_start_matches('/'));
        fs::read_to_string(&path).with_context(|| format!("reading {path}"))
    }
}

/// A program running in a place. Killed when dropped.
pub struct Running {
    child: Child,
    pid: Option<Pid>,
}

impl Running {
    /// Starts `command`, which must come from [`Place::command`].
    pub fn spawn(command: &mut Command) -> Result<Running> {
        let child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        let mut running = Running { child, pid: None };
        // nsenter forks to enter the process namespace: the program is its child.
        running.pid = wait::until_or(Duration::from_secs(5), || running.find()).map_err(|e| anyhow!(e))?;
        Ok(running)
    }

    fn find(&mut self) -> Result<Option<Pid>, String> {
        let parent = self.child.id();
        if let Ok(list) = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))
            && let Some(pid) = list.split_whitespace().next().and_then(|p| p.parse().ok())
        {
            return Ok(Some(Pid::from_raw(pid)));
        }
        match self.child.try_wait() {
            Ok(Some(_)) => Ok(None),
            Ok(None) => Err("nsenter has not started the program".into()),
            Err(e) => Err(e.to_string()),
        }
    }

    /// The program's number in the host's view, while it runs.
    pub fn pid(&self) -> Option<i32> {
        self.pid.map(Pid::as_raw)
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid.context("the program has ended already")?;
        kill(pid, signal).with_context(|| format!("sending {signal} to {pid}"))
    }

    /// The exit status when it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let status = self.child.try_wait()?;
        if status.is_some() {
            self.pid = None;
        }
        Ok(status)
    }

    /// Waits for the end.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let ended = wait::until_or(limit, || match self.ended() {
            Ok(Some(status)) => Ok(Ok(status)),
            Ok(None) => Err("it still runs".to_owned()),
            Err(e) => Ok(Err(e)),
        });
        match ended {
            Ok(status) => status,
            Err(_) => bail!("the program still runs after {limit:?}"),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            if let Some(pid) = self.pid {
                let _ = kill(pid, Signal::SIGKILL);
            }
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}
