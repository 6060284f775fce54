//! Pipes and pseudo-terminals of programs that somebody watches. Knows nothing of what flows through them.

use std::{
    fs::File,
    io::{self, IoSliceMut, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::socket::{ControlMessageOwned, MsgFlags, recvmsg},
};
use tokio::io::{Interest, unix::AsyncFd};

/// Takes the terminal that a container runtime sends when it has made one (OCI runtimes' console socket: one message
/// that carries one descriptor).
#[allow(unsafe_code, reason = "nix hands received descriptors over as numbers")]
pub fn receive(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut name = [0; 256];
    let mut slices = [IoSliceMut::new(&mut name)];
    let mut space = nix::cmsg_space!([i32; 1]);
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = control
            && let Some(fd) = descriptors.first()
        {
            // SAFETY: the kernel has just made this descriptor for us, and the number is kept nowhere else.
            return Ok(unsafe { OwnedFd::from_raw_fd(*fd) });
        }
    }
    Err(io::Error::other("the message carries no terminal"))
}

/// Gives a terminal to a user: who it does not belong to cannot open `/dev/tty`'s device or `/dev/stdout` anew. Works from
/// the master, wherever the terminal's file system is mounted.
#[allow(unsafe_code, reason = "no safe wrapper for TIOCGPTPEER in nix")]
pub fn give(master: &OwnedFd, uid: u32) -> io::Result<()> {
    // SAFETY: TIOCGPTPEER takes open(2) flags as its argument and reads no memory of ours.
    let fd =
        unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us, and the number is kept nowhere else.
    let slave = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(nix::unistd::fchown(&slave, Some(nix::unistd::Uid::from_raw(uid)), None)?)
}

/// One end of a pipe, or the master of a terminal.
pub struct End(AsyncFd<File>);

impl End {
    /// Makes it non-blocking. Must be called inside a tokio runtime.
    #[allow(unsafe_code, reason = "registering a descriptor with the runtime")]
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        // SAFETY: the File owns the descriptor and is never swapped for another; it closes after the registration ends.
        let fd = unsafe { AsyncFd::register(File::from(fd)) };
        fd.map(Self).map_err(|e| io::Error::other(e.to_string()))
    }

    /// 0 at the end.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.0.async_io(Interest::READABLE, |mut file: &File| file.read(buffer)).await;
        ended(read)
    }

    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let n = self.0.async_io(Interest::WRITABLE, |mut file: &File| file.write(bytes)).await?;
            bytes = &bytes[n..];
        }
        Ok(())
    }

    /// Tells a terminal how large its window is; programs in it get SIGWINCH.
    #[allow(unsafe_code, reason = "no safe wrapper for TIOCSWINSZ in nix")]
    pub fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: TIOCSWINSZ reads one winsize, which outlives the call.
        let rc = unsafe { libc::ioctl(self.0.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// A terminal that nobody holds open any more says so with EIO.
fn ended(read: io::Result<usize>) -> io::Result<usize> {
    match read {
        Err(e) if e.raw_os_error() == Some(libc::EIO) => Ok(0),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{ControlMessage, sendmsg};
    use std::io::IoSlice;

    #[tokio::test]
    async fn a_terminal_is_handed_over_resized_and_read_to_its_end() {
        let pair = nix::pty::openpty(None, None).expect("a terminal");
        let (here, there) = UnixStream::pair().expect("sockets");
        let rights = [pair.master.as_raw_fd()];
        let control = [ControlMessage::ScmRights(&rights)];
        sendmsg::<()>(there.as_raw_fd(), &[IoSlice::new(b"x")], &control, MsgFlags::empty(), None).expect("send");
        let master = receive(&here).expect("received");
        give(&master, nix::unistd::geteuid().as_raw()).expect("given");
        let end = End::new(master).expect("registered");
        drop(pair.master);
        end.resize(132, 43).expect("resize");
        end.write_all(b"hello\n").await.expect("write");
        let mut slave = File::from(pair.slave);
        let mut line = [0; 6];
        slave.read_exact(&mut line).expect("read");
        assert_eq!(&line, b"hello\n");
        drop(slave);
        let mut echoed = Vec::new();
        let mut buffer = [0; 64];
        while let n @ 1.. = end.read(&mut buffer).await.expect("read") {
            echoed.extend_from_slice(&buffer[..n]);
        }
        assert_eq!(echoed, b"hello\r\n");
    }

    #[test]
    fn a_message_without_a_terminal_is_an_error() {
        let (here, mut there) = UnixStream::pair().expect("sockets");
        there.write_all(b"x").expect("write");
        assert!(receive(&here).is_err());
    }
}
