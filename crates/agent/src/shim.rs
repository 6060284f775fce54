//! The small process beside each container: it creates the container, is its parent, copies its output to the log, and
//! writes down how it ended. It has its own session and mount namespace, so a killed agent leaves containers running and
//! an ended container leaves no mount behind. It decides nothing: no restart, no probe, no status.
//!
//! Everything it knows is in its directory: `config.json` (OCI runtime spec), [`Order`] in `shim.json`; it answers with
//! [`Process`] in `shim.pid` and `started.json`, and [`Exit`] in `exit.json`, each written whole or not at all.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use libcontainer::{
    container::{Container, builder::ContainerBuilder},
    syscall::syscall::SyscallType,
};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    mount::{MntFlags, MsFlags, mount, umount2},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, unshare},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Gid, Pid, Uid, chdir, dup2_stdout, fchown, setsid},
};
use serde::{Deserialize, Serialize};
use sys::process;

pub mod crilog;
pub mod exec;

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

/// Entry point of `portolan __shim`: `DIR`, or `exec DIR` with the request on standard input. Must be called before any
/// thread is started, for the process unshares and forks. The result is the exit code.
pub fn main(args: &[String]) -> i32 {
    match args {
        [verb, dir] if verb == "exec" => exec::main(Path::new(dir)),
        [dir] => match run(Path::new(dir)) {
            Ok(()) => 0,
            Err(text) => {
                // Read by the agent; if it is gone, the missing exit record says the rest.
                let _ = answer(&Answer::Failed(text));
                1
            }
        },
        _ => {
            eprintln!("usage: portolan __shim DIR | portolan __shim exec DIR");
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

    let (out_read, out_write) = pipe().map_err(|e| context("make a pipe")(&e))?;
    let (err_read, err_write) = pipe().map_err(|e| context("make a pipe")(&e))?;
    own_by_user(dir, &[&out_write, &err_write]).map_err(|e| context("give the output to the container's user")(&e))?;
    process::set_sigpipe_ignored(false).map_err(|e| context("reset SIGPIPE")(&e))?;
    let mut container = builder(dir, &order.id)?
        .with_stdout(out_write)
        .with_stderr(err_write)
        .as_init(dir)
        .with_systemd(false)
        .with_detach(true)
        .build()
        .map_err(|e| chain(&e))?;
    if let Err(e) = container.start() {
        let _ = container.delete(true);
        return Err(chain(&e));
    }
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

    let exit = attend(dir, &order, pid, log, out_read, err_read);
    let exit = exit.map_err(|e| context("attend the container")(&e))?;
    write_json(&dir.join(EXIT), &exit).map_err(|e| context("write exit.json")(&e))?;
    remove(container)
}

/// Removes the cgroups. The kernel may report them busy for a moment after the last process is reaped; the agent looks
/// again when it removes the container.
fn remove(mut container: Container) -> Result<(), String> {
    container.delete(true).map_err(|e| chain(&e))
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(OFlag::O_CLOEXEC)?)
}

/// A program that opens `/dev/stdout` anew is asked for its rights to the pipe.
fn own_by_user(dir: &Path, pipes: &[&OwnedFd]) -> io::Result<()> {
    let spec: serde_json::Value = read_json(&dir.join("config.json"))?;
    let id = |name: &str| spec["process"]["user"][name].as_u64().and_then(|n| u32::try_from(n).ok());
    for pipe in pipes {
        fchown(pipe, id("uid").map(Uid::from_raw), id("gid").map(Gid::from_raw))?;
    }
    Ok(())
}

/// Unmounts every namespace file below `path` except those this container's spec refers to.
fn detach_others(path: &Path, dir: &Path) {
    let spec = fs::read_to_string(dir.join("config.json")).unwrap_or_default();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for target in mounts.lines().filter_map(|l| l.split(' ').nth(4)) {
        if Path::new(target).starts_with(path) && !spec.contains(target) {
            let _ = umount2(target, MntFlags::MNT_DETACH);
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

/// Copies output and waits for `pid`. All other descendants are reaped on the way.
fn attend(
    _dir: &Path,
    order: &Order,
    pid: i32,
    mut log: crilog::Writer,
    out: OwnedFd,
    err: OwnedFd,
) -> io::Result<Exit> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.thread_block()?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    for fd in [&out, &err] {
        fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    }
    let mut streams =
        [(Some(File::from(out)), crilog::Stream::Stdout), (Some(File::from(err)), crilog::Stream::Stderr)];
    let mut status = reap(pid);
    while status.is_none() {
        let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        fds.extend(streams.iter().filter_map(|(f, _)| f.as_ref()).map(|f| PollFd::new(f.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) | Ok(_) => {}
            Err(e) => return Err(e.into()),
        }
        drop(fds);
        for (file, stream) in &mut streams {
            copy(file, *stream, &mut log);
        }
        while let Ok(Some(_)) = signals.read_signal() {}
        status = reap(pid);
    }
    // Whatever it wrote before it ended is in the pipes by now: the kernel ends its whole pid namespace first.
    for (file, stream) in &mut streams {
        copy(file, *stream, &mut log);
        log.finish(*stream);
    }
    let (code, signal) = status.unwrap_or((255, None));
    Ok(Exit { code, signal, oom: oom_killed(&order.cgroup), at: Timestamp::now() })
}

/// Reads until there is nothing now. A full disk loses lines, never the container.
fn copy(file: &mut Option<File>, stream: crilog::Stream, log: &mut crilog::Writer) {
    let mut buffer = [0; 16 * 1024];
    while let Some(open) = file {
        match open.read(&mut buffer) {
            Ok(0) => *file = None,
            Ok(n) => log.write(stream, &buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
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
