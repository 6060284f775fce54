//! Namespaces that outlive the thread that made them: net, UTS and IPC of one pod, bind-mounted on files so that they
//! need no process to hold them. Knows nothing about addresses or containers.

use std::{
    fs::{self, File},
    io,
    path::Path,
    thread,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    unistd::sethostname,
};

/// Which namespaces to make; the files appear in `dir` under the names `net`, `uts` and `ipc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kinds {
    pub net: bool,
    pub uts: bool,
    pub ipc: bool,
}

impl Kinds {
    fn each(self) -> impl Iterator<Item = (&'static str, CloneFlags)> {
        [
            (self.net, "net", CloneFlags::CLONE_NEWNET),
            (self.uts, "uts", CloneFlags::CLONE_NEWUTS),
            (self.ipc, "ipc", CloneFlags::CLONE_NEWIPC),
        ]
        .into_iter()
        .filter_map(|(wanted, name, flag)| wanted.then_some((name, flag)))
    }
}

/// Makes the namespaces, runs `setup` inside them, and keeps them on files in `dir`. Blocks for a thread's lifetime.
pub fn create<T: Send + 'static>(
    dir: &Path,
    kinds: Kinds,
    hostname: &str,
    setup: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (dir, hostname) = (dir.to_owned(), hostname.to_owned());
    // A thread of its own: what it unshares ends with it, and no worker of a runtime is left in a strange namespace.
    in_thread(move || {
        let flags = kinds.each().fold(CloneFlags::empty(), |all, (_, flag)| all | flag);
        unshare(flags)?;
        if kinds.uts {
            sethostname(&hostname)?;
        }
        let out = setup()?;
        for (name, _) in kinds.each() {
            let target = dir.join(name);
            File::create(&target)?;
            let source = format!("/proc/thread-self/ns/{name}");
            mount(Some(source.as_str()), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        }
        Ok(out)
    })
}

/// Runs `f` on a thread inside the network namespace kept at `path`.
pub fn within<T: Send + 'static>(path: &Path, f: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let file = File::open(path)?;
    in_thread(move || {
        setns(&file, CloneFlags::CLONE_NEWNET)?;
        f()
    })
}

/// Lets go of what [`create`] kept in `dir`; missing files are fine. The kernel frees a namespace with its last process.
pub fn remove(dir: &Path) -> io::Result<()> {
    for name in ["net", "uts", "ipc"] {
        let path = dir.join(name);
        // More than once when a bind was stacked by an interrupted start.
        while umount2(&path, MntFlags::MNT_DETACH).is_ok() {}
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

fn in_thread<T: Send + 'static>(f: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    thread::Builder::new()
        .name("netns".into())
        .spawn(f)?
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the thread that enters the namespace panicked")))
}
