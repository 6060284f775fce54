//! The small process beside each container: it creates the container, is its parent, copies its output to the log and to who is
//! attached, and writes down how it ended. It has its own session and mount namespace, so a killed agent leaves containers running and
//! an ended container leaves no mount behind. It decides nothing: no restart, no probe, no status.
//!
//! Everything it knows is in its directory: `config.json` (OCI runtime spec), [`Order`] in `shim.json`; it answers with
//! [`Process`] in `shim.pid` and `started.json`, and [`Exit`] in `exit.json`, each written whole or not at all.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use libcontainer::{
    container::{Container, builder::ContainerBuilder},
    syscall::syscall::SyscallType,
};
use nix::{
    errno::Errno,
    fcntl::OFlag,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::wait::{WaitPidFlag, WaitStatus, waitpid},
    unistd::{Gid, Pid, Uid, chdir, dup2_stdout, fchown, setsid},
};
use serde::{Deserialize, Serialize};
use sys::process;

use crate::volume;

pub mod attach;
pub mod crilog;
pub mod exec;
pub mod frame;
pub mod stream;

/// The overlay that becomes the container's root.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Overlay {
    /// Directory that holds the layers; names are relative to it to keep the mount option short (one page at most).
    pub layers: PathBuf,
    /// Names in `layers`, the uppermost first.
    pub lower: Vec<String>,
    pub upper: PathBuf,
    pub work: PathBuf,
}

/// What the agent asks of a shim.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Order {
    pub id: String,
    pub overlay: Overlay,
    /// CRI log file to append to.
    pub log: PathBuf,
    /// Bytes after which the log is rotated.
    pub log_max_bytes: u64,
    /// Files kept, the current one included.
    pub log_max_files: u32,
    /// Detached from the shim's copy of the mount tree, so that other pods' namespaces are not pinned by this one.
    pub detach: Option<PathBuf>,
    /// As in the spec; for the out-of-memory count.
    pub cgroup: PathBuf,
    /// The container's own process has a terminal.
    #[serde(default)]
    pub tty: bool,
    /// Input is open, for who attaches.
    #[serde(default)]
    pub stdin: bool,
    /// It ends with the first client that had it.
    #[serde(default)]
    pub stdin_once: bool,
}

/// A process that can be recognised later: pid and start time in clock ticks.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    pub start: u64,
}

impl Process {
    pub fn of(pid: i32) -> io::Result<Self> {
        Ok(Self { pid, start: process::start_time(pid)? })
    }
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Started {
    pub init: Process,
    pub at: Timestamp,
}

/// How a container ended.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Exit {
    /// 128 + signal number when a signal ended it.
    pub code: i32,
    pub signal: Option<i32>,
    pub oom: bool,
    pub at: Timestamp,
}

/// The answer on the shim's standard output: one line of JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Answer {
    Started(Started),
    Failed(String),
}

pub const ORDER: &str = "shim.json";
pub const PID: &str = "shim.pid";
pub const STARTED: &str = "started.json";
pub const EXIT: &str = "exit.json";
/// libcontainer's own state, below the container's directory.
pub const STATE: &str = "state";

/// Entry point of `portolan __shim`: `DIR`, or `exec DIR` with the request on standard input, or `stream DIR` with a
/// socket there. Must be called before any thread is started, for the process unshares and forks. The result is the exit code.
pub fn main(args: &[String]) -> i32 {
    match args {
        [verb, dir] if verb == "exec" => exec::main(Path::new(dir)),
        [verb, dir] if verb == "stream" => stream::main(Path::new(dir)),
        [dir] => match run(Path::new(dir)) {
            Ok(()) => 0,
            Err(text) => {
                // Read by the agent; if it is gone, the missing exit record says the rest.
                let _ = answer(&Answer::Failed(text));
                1
            }
        },
        _ => {
            eprintln!("usage: portolan __shim DIR | portolan __shim exec DIR | portolan __shim stream DIR");
            64
        }
    }
}

/// Writes `value` so that a reader sees the old file or the new one.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, serde_json::to_vec(value)?)?;
    fs::rename(&temporary, path)
}

pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

/// libcontainer's state directory demands a root path and an id; both follow from the container's directory.
fn builder(dir: &Path, id: &str) -> Result<ContainerBuilder, String> {
    ContainerBuilder::new(id.to_owned(), SyscallType::Linux)
        .with_root_path(dir.join(STATE))
        .and_then(ContainerBuilder::validate_id)
        .map_err(|e| chain(&e))
}

/// The innermost cause is the one that names the missing file or the refused operation; the outer ones only say where.
fn chain(error: &dyn std::error::Error) -> String {
    let mut last = error.to_string();
    let mut next = error.source();
    while let Some(inner) = next {
        let text = inner.to_string();
        if !text.is_empty() {
            last = text;
        }
        next = inner.source();
    }
    last
}

fn answer(answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    io::stdout().write_all(&line)?;
    io::stdout().flush()
}

fn run(dir: &Path) -> Result<(), String> {
    let context = |what: &'static str| move |e: &dyn std::error::Error| format!("{what}: {e}");
    let order: Order = read_json(&dir.join(ORDER)).map_err(|e| context("read the order")(&e))?;
    // A group leader cannot make a session; the agent's child never is one.
    let _ = setsid();
    process::become_subreaper().map_err(|e| context("become a subreaper")(&e))?;
    let me = Process::of(std::process::id() as i32).map_err(|e| context("read my start time")(&e))?;
    write_json(&dir.join(PID), &me).map_err(|e| context("write shim.pid")(&e))?;

    unshare(CloneFlags::CLONE_NEWNS).map_err(|e| context("unshare the mount namespace")(&e))?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
        .map_err(|e| context("make the mounts private")(&e))?;
    if let Some(path) = &order.detach {
        // The pod's own namespace file is needed until the container is created, so only others' copies go now.
        detach_others(path, dir);
    }
    mount_root(dir, &order.overlay)?;

    let log = File::options()
        .create(true)
        .append(true)
        .open(&order.log)
        .map_err(|e| format!("open the log {}: {e}", order.log.display()))?;
    let log = crilog::Writer::new(log, order.log.clone(), order.log_max_bytes, order.log_max_files);

    let listener = stream::bind(dir, &dir.join(attach::SOCKET)).map_err(|e| context("listen for clients")(&e))?;
    let (builder, console) = console(dir, &order)?;
    process::set_sigpipe_ignored(false).map_err(|e| context("reset SIGPIPE")(&e))?;
    let mut container = builder.as_init(dir).with_systemd(false).with_detach(true).build().map_err(|e| chain(&e))?;
    let started = console.opened(dir).and_then(|console| container.start().map(|()| console).map_err(|e| chain(&e)));
    let console = match started {
        Ok(console) => console,
        Err(why) => {
            let _ = container.delete(true);
            return Err(why);
        }
    };
    // The container's score was inherited from this process, which must outlive it when memory runs out.
    let _ = fs::write("/proc/self/oom_score_adj", "-998");
    process::set_sigpipe_ignored(true).map_err(|e| context("ignore SIGPIPE")(&e))?;
    let pid = container.pid().ok_or("libcontainer reports no pid")?.as_raw();
    // The zombie keeps its start time, so this also works for a program that has ended already.
    let init = Process::of(pid).map_err(|e| context("read the container's start time")(&e))?;
    let started = Started { init, at: Timestamp::now() };
    write_json(&dir.join(STARTED), &started).map_err(|e| context("write started.json")(&e))?;
    // An agent that died meanwhile will read started.json; the container runs on.
    let _ = answer(&Answer::Started(started));
    if let Ok(null) = File::options().write(true).open("/dev/null") {
        let _ = dup2_stdout(&null);
    }

    let ended = attach::attend(&order, pid, log, console, listener);
    let (code, signal) = ended.map_err(|e| context("attend the container")(&e))?;
    let exit = Exit { code, signal, oom: oom_killed(&order.cgroup), at: Timestamp::now() };
    write_json(&dir.join(EXIT), &exit).map_err(|e| context("write exit.json")(&e))?;
    remove(container)
}

/// Removes the cgroups. The kernel may report them busy for a moment after the last process is reaped; the agent looks
/// again when it removes the container.
fn remove(mut container: Container) -> Result<(), String> {
    container.delete(true).map_err(|e| chain(&e))
}

/// A container's streams before it has started.
enum Streams {
    Pipes(attach::Console),
    Terminal(stream::ConsoleSocket),
}

impl Streams {
    /// The shim's ends, once the container's process waits for its start.
    fn opened(self, dir: &Path) -> Result<attach::Console, String> {
        let socket = match self {
            Self::Pipes(console) => return Ok(console),
            Self::Terminal(socket) => socket,
        };
        let terminal = socket.take(dir)?;
        let input = terminal.try_clone().map_err(|e| format!("copy a descriptor: {e}"))?;
        Ok(attach::Console { stdin: Some(input), outputs: vec![(crilog::Stream::Stdout, terminal)] })
    }
}

fn console(dir: &Path, order: &Order) -> Result<(ContainerBuilder, Streams), String> {
    let builder = builder(dir, &order.id)?;
    if order.tty {
        let socket = stream::ConsoleSocket::bind(dir)?;
        return Ok((builder.with_console_socket(Some(socket.path())), Streams::Terminal(socket)));
    }
    let failed = |what: &'static str| move |e: io::Error| format!("{what}: {e}");
    let (out_read, out_write) = pipe().map_err(failed("make a pipe"))?;
    let (err_read, err_write) = pipe().map_err(failed("make a pipe"))?;
    let (input, stdin): (OwnedFd, _) = if order.stdin {
        let (read, write) = pipe().map_err(failed("make a pipe"))?;
        own_by_user(dir, &[&read]).map_err(failed("give the input to the container's user"))?;
        (read, Some(write))
    } else {
        (File::open("/dev/null").map_err(failed("open /dev/null"))?.into(), None)
    };
    own_by_user(dir, &[&out_write, &err_write]).map_err(failed("give the output to the container's user"))?;
    let outputs = vec![(crilog::Stream::Stdout, out_read), (crilog::Stream::Stderr, err_read)];
    let builder = builder.with_stdin(input).with_stdout(out_write).with_stderr(err_write);
    Ok((builder, Streams::Pipes(attach::Console { stdin, outputs })))
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(OFlag::O_CLOEXEC)?)
}

/// A program that opens `/dev/stdout` anew is asked for its rights to the pipe.
fn own_by_user(dir: &Path, pipes: &[&OwnedFd]) -> io::Result<()> {
    let (uid, gid) = user(dir)?;
    for pipe in pipes {
        fchown(pipe, uid.map(Uid::from_raw), gid.map(Gid::from_raw))?;
    }
    Ok(())
}

/// The numbers of the container's user and group.
fn user(dir: &Path) -> io::Result<(Option<u32>, Option<u32>)> {
    let spec: serde_json::Value = read_json(&dir.join("config.json"))?;
    let id = |name: &str| spec["process"]["user"][name].as_u64().and_then(|n| u32::try_from(n).ok());
    Ok((id("uid"), id("gid")))
}

/// Unmounts every namespace file below `path` except those this container's spec refers to.
fn detach_others(path: &Path, dir: &Path) {
    let spec = fs::read_to_string(dir.join("config.json")).unwrap_or_default();
    for target in volume::mount_points() {
        if target.starts_with(path) && !spec.contains(&*target.to_string_lossy()) {
            let _ = umount2(&target, MntFlags::MNT_DETACH);
        }
    }
}

fn mount_root(dir: &Path, overlay: &Overlay) -> Result<(), String> {
    let target = dir.join("rootfs");
    fs::create_dir_all(&target).map_err(|e| format!("make {}: {e}", target.display()))?;
    chdir(&overlay.layers).map_err(|e| format!("enter {}: {e}", overlay.layers.display()))?;
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        overlay.lower.join(":"),
        overlay.upper.display(),
        overlay.work.display()
    );
    mount(Some("overlay"), &target, Some("overlay"), MsFlags::empty(), Some(options.as_str())).map_err(|e| {
        format!(
            "mount the root of the container as overlay: {e}; the file system of {} must be able to hold an overlay's \
             upper directory (ext4, xfs, btrfs, tmpfs)",
            overlay.upper.display()
        )
    })
}

fn reap(pid: i32) -> Option<(i32, Option<i32>)> {
    let mut found = None;
    loop {
        match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(p, code)) if p.as_raw() == pid => found = Some((code, None)),
            Ok(WaitStatus::Signaled(p, signal, _)) if p.as_raw() == pid => {
                found = Some((128 + signal as i32, Some(signal as i32)));
            }
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return found,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return found,
        }
    }
}

/// The kernel's count of processes it killed in the cgroup for want of memory (v1 `oom_kill`, v2 `memory.events`).
fn oom_killed(cgroup: &Path) -> bool {
    let relative = cgroup.strip_prefix("/").unwrap_or(cgroup);
    let candidates = [
        Path::new("/sys/fs/cgroup/memory").join(relative).join("memory.oom_control"),
        Path::new("/sys/fs/cgroup").join(relative).join("memory.events"),
    ];
    candidates.iter().filter_map(|p| fs::read_to_string(p).ok()).any(|text| {
        text.lines().filter_map(|l| l.strip_prefix("oom_kill ")).any(|n| n.trim().parse::<u64>().unwrap_or(0) > 0)
    })
}
