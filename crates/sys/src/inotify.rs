//! Waiting for a change in a directory without asking again and again.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, RawFd},
    path::Path,
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;

/// Wakes when a file in one directory is written, made or renamed.
pub struct DirWatch(AsyncFd<Descriptor>);

struct Descriptor(Inotify);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl DirWatch {
    /// Must be called within a tokio runtime's context. Changes count from here on.
    #[allow(unsafe_code, reason = "registering a descriptor with the runtime")]
    pub fn new(dir: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        inotify.add_watch(dir, AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO)?;
        // SAFETY: the descriptor is owned by the value that is registered, stays the same, and is closed only with it.
        Ok(Self(unsafe { AsyncFd::register(Descriptor(inotify)) }.map_err(io::Error::from)?))
    }

    pub async fn changed(&self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        let mut buffer = [0; 4096];
        // Drained, not read: that something happened is all that matters.
        while nix::unistd::read(self.0.get_ref().0.as_fd(), &mut buffer).is_ok_and(|n| n > 0) {}
        ready.clear_ready();
        Ok(())
    }
}
