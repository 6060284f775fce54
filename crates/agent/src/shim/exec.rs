//! Runs one more program inside a running container and collects what it says: `portolan __shim exec DIR`, the request
//! as JSON on standard input, the [`ExecResult`] as JSON on standard output.

use std::{
    fs,
    io::{self, Read},
    os::fd::AsFd,
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::Signal,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use serde::{Deserialize, Serialize};
use sys::process::{self, Pidfd};

use super::{Order, builder, chain, read_json};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    pub args: Vec<String>,
    pub timeout_millis: u64,
    /// Bytes of combined output to keep.
    pub limit: usize,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub enum ExecResult {
    Exited {
        code: i32,
        output: String,
    },
    TimedOut {
        output: String,
    },
    /// The program could not be started.
    Failed(String),
}

pub fn main(dir: &Path) -> i32 {
    let result = run(dir).unwrap_or_else(ExecResult::Failed);
    match serde_json::to_writer(io::stdout(), &result) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

fn run(dir: &Path) -> Result<ExecResult, String> {
    let request: Request = serde_json::from_reader(io::stdin()).map_err(|e| format!("read the request: {e}"))?;
    let order: Order = read_json(&dir.join(super::ORDER)).map_err(|e| format!("read the order: {e}"))?;
    process::become_subreaper().map_err(|e| format!("become a subreaper: {e}"))?;

    // The container's own process with other arguments: same user, environment, directory and capabilities.
    let spec: serde_json::Value =
        read_json(&dir.join("config.json")).map_err(|e| format!("read the container's spec: {e}"))?;
    let mut program = spec["process"].clone();
    program["args"] = request.args.clone().into();
    let file = dir.join(format!("exec-{}.json", std::process::id()));
    fs::write(&file, program.to_string()).map_err(|e| format!("write {}: {e}", file.display()))?;

    let (output, write) = super::pipe().map_err(|e| format!("make a pipe: {e}"))?;
    let also = write.try_clone().map_err(|e| format!("copy a descriptor: {e}"))?;
    process::set_sigpipe_ignored(false).map_err(|e| format!("reset SIGPIPE: {e}"))?;
    let built = builder(dir, &order.id)
        .map(|b| b.with_stdout(write).with_stderr(also).as_tenant())
        .and_then(|b| b.with_process(Some(&file)).with_detach(true).build().map_err(|e| chain(&e)));
    let _ = fs::remove_file(&file);
    let pid = built?.as_raw();
    let fd = Pidfd::open(pid).map_err(|e| format!("open the new process: {e}"))?;
    watch(&request, pid, &fd, std::fs::File::from(output))
}

fn watch(request: &Request, pid: i32, fd: &Pidfd, mut output: std::fs::File) -> Result<ExecResult, String> {
    let deadline = Instant::now() + Duration::from_millis(request.timeout_millis);
    let mut text = Vec::new();
    let mut open = true;
    let mut buffer = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
        let mut fds = vec![PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
        if open {
            fds.push(PollFd::new(output.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, timeout) {
            Err(Errno::EINTR) | Ok(_) => {}
            Err(e) => return Err(format!("wait for the program: {e}")),
        }
        let readable = fds.get(1).and_then(PollFd::any).unwrap_or(false);
        let ended = fds[0].any().unwrap_or(false);
        drop(fds);
        if readable {
            let n = output.read(&mut buffer).unwrap_or(0);
            open = n > 0;
            let keep = n.min(request.limit.saturating_sub(text.len()));
            text.extend_from_slice(&buffer[..keep]);
            continue;
        }
        if ended {
            let code = match waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(_, code)) => code,
                Ok(WaitStatus::Signaled(_, signal, _)) => 128 + signal as i32,
                _ => 255,
            };
            return Ok(ExecResult::Exited { code, output: String::from_utf8_lossy(&text).into_owned() });
        }
        if Instant::now() >= deadline {
            let _ = fd.signal(Signal::SIGKILL);
            fd.wait_blocking(1000);
            return Ok(ExecResult::TimedOut { output: String::from_utf8_lossy(&text).into_owned() });
        }
    }
}
