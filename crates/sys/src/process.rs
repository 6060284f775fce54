//! Processes by descriptor. A pid may be reused the moment its owner is reaped; a pidfd and a start time never lie.
//! Knows nothing about containers.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use nix::{
    sys::{
        signal::Signal,
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};
use tokio::io::{Interest, unix::AsyncFd};

/// A process that cannot be confused with a later one of the same number.
#[derive(Debug)]
pub struct Pidfd {
    fd: OwnedFd,
    pid: i32,
}

impl Pidfd {
    /// `ESRCH` when there is no such process.
    #[allow(unsafe_code, reason = "no safe wrapper for pidfd_open exists in nix")]
    pub fn open(pid: i32) -> io::Result<Self> {
        // SAFETY: pidfd_open takes two integers and reads no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave us this descriptor (close-on-exec is always set on pidfds) and nobody else has it.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd as i32) }, pid })
    }

    /// Opens `pid` only if it is still the process that started at `start` (see [`start_time`]).
    pub fn open_started(pid: i32, start: u64) -> io::Result<Self> {
        let this = Self::open(pid)?;
        // The descriptor is held, so the number cannot move to another process between the two lines.
        if start_time(pid)? != start {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        Ok(this)
    }

    /// For poll(2): readable once the process has ended.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    #[allow(unsafe_code, reason = "no safe wrapper for pidfd_send_signal exists in nix")]
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        // SAFETY: a valid descriptor, a signal number, and a null siginfo which the kernel documents as allowed.
        let rc = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.fd.as_raw_fd(),
                signal as i32,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Resolves when the process has ended; reaps it if it was our child.
    #[expect(unsafe_code, reason = "registering a borrowed descriptor")]
    pub async fn wait(&self) -> io::Result<()> {
        // SAFETY: the borrowed descriptor stays open and the same for as long as `self` is borrowed, which outlives `watched`.
        let watched = unsafe { AsyncFd::register_with_interest(self.fd.as_fd(), Interest::READABLE)? };
        watched.readable().await?.retain_ready();
        // Not our child (an adopted one): whoever is its parent reaps it.
        let _ = waitpid(Pid::from_raw(self.pid), Some(WaitPidFlag::WNOHANG));
        Ok(())
    }

    /// True when the process has ended (it may still be a zombie).
    pub fn ended(&self) -> bool {
        let mut fds = [nix::poll::PollFd::new(self.fd.as_fd(), nix::poll::PollFlags::POLLIN)];
        matches!(nix::poll::poll(&mut fds, nix::poll::PollTimeout::ZERO), Ok(n) if n > 0)
    }

    /// Blocks until the process has ended or `millis` passed; true when it ended.
    pub fn wait_blocking(&self, millis: u16) -> bool {
        let mut fds = [nix::poll::PollFd::new(self.fd.as_fd(), nix::poll::PollFlags::POLLIN)];
        let ended = matches!(nix::poll::poll(&mut fds, nix::poll::PollTimeout::from(millis)), Ok(n) if n > 0);
        if ended {
            let _ = waitpid(Pid::from_raw(self.pid), Some(WaitPidFlag::WNOHANG));
        }
        ended
    }
}

/// When a process started, in clock ticks since boot: field 22 of `/proc/PID/stat` (proc(5)).
pub fn start_time(pid: i32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_start_time(&stat).ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat is not in the documented form")))
}

/// The second field is the command in parentheses and may itself contain spaces and parentheses.
fn parse_start_time(stat: &str) -> Option<u64> {
    let after = &stat[stat.rfind(')')? + 1..];
    after.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Orphans below this process become its children (prctl(2), PR_SET_CHILD_SUBREAPER).
pub fn become_subreaper() -> io::Result<()> {
    nix::sys::prctl::set_child_subreaper(true).map_err(io::Error::from)
}

/// Rust programs start with SIGPIPE ignored, and an ignored signal stays ignored across execve. A program that starts
/// others without [`std::process::Command`] sets it back first.
#[allow(unsafe_code, reason = "changing a signal disposition")]
pub fn set_sigpipe_ignored(ignored: bool) -> io::Result<()> {
    use nix::sys::signal::{SigHandler, signal};
    let handler = if ignored { SigHandler::SigIgn } else { SigHandler::SigDfl };
    // SAFETY: neither disposition runs code of ours, so nothing can be interrupted at a bad moment.
    unsafe { signal(Signal::SIGPIPE, handler) }.map(drop).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn start_time_survives_a_hostile_command_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 2 3";
        assert_eq!(parse_start_time(stat), Some(4242));
        assert_eq!(parse_start_time("garbage"), None);
    }

    #[tokio::test]
    async fn a_pidfd_reports_the_end_and_refuses_a_stranger() {
        let child = Command::new("sleep").arg("600").spawn().expect("sleep");
        let pid = child.id() as i32;
        let started = start_time(pid).expect("start time");
        assert!(Pidfd::open_started(pid, started + 1).is_err());
        let fd = Pidfd::open_started(pid, started).expect("open");
        assert!(!fd.ended());
        fd.signal(Signal::SIGKILL).expect("kill");
        fd.wait().await.expect("wait");
        assert!(start_time(pid).is_err(), "reaped");
    }
}
