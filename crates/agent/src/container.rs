//! Containers as the agent sees them: start one through a shim, wait for its end, signal it, run a program in it, remove
//! what it left. Knows nothing about pods beyond the labels it keeps in [`Meta`], and decides no policy.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use nix::sys::signal::Signal;
use rand::Rng;
use serde::{Deserialize, Serialize};
use sys::process::Pidfd;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
};

use crate::shim::{
    self, Answer, Exit, Order, Overlay, Process, Started, exec,
    frame::{self, Request},
};

/// What must be known of a container to adopt it after a restart of the agent.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Meta {
    pub pod_uid: String,
    pub namespace: String,
    pub pod: String,
    /// The container's name in the pod.
    pub name: String,
    /// How many times it had been restarted before.
    pub restart_count: i32,
    pub image: String,
    pub image_id: String,
    pub stop_signal: i32,
    /// Where the file behind `terminationMessagePath` is.
    pub termination_message: PathBuf,
    pub log: PathBuf,
    /// As in the pod's spec.
    #[serde(default)]
    pub stdin: bool,
    #[serde(default)]
    pub stdin_once: bool,
    #[serde(default)]
    pub tty: bool,
}

/// Where containers live, and how their shims are started.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// `containers` below the run directory: lost with the machine's memory, as the processes are.
    pub run: PathBuf,
    /// Upper directories of the overlays.
    pub uppers: PathBuf,
    pub layers: PathBuf,
    /// Namespace files of all pods, see [`Order::detach`].
    pub namespaces: PathBuf,
    /// Program and first arguments; the container's directory follows.
    pub shim: Vec<String>,
    pub log_max_bytes: u64,
    pub log_max_files: u32,
}

pub struct Container {
    pub id: String,
    pub meta: Meta,
    pub started_at: Timestamp,
    dir: PathBuf,
    cgroup: PathBuf,
    /// `None` when it had ended before the agent looked.
    init: Option<Pidfd>,
    shim: Option<Pidfd>,
}

const META: &str = "meta.json";

impl Runtime {
    pub fn new_id() -> String {
        let mut bytes = [0u8; 10];
        rand::rng().fill(&mut bytes);
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// Starts a container with the OCI runtime spec that `spec` makes of the container's directory. The error is the
    /// runtime's reason in one line.
    pub async fn start(
        &self,
        id: &str,
        meta: Meta,
        lower: Vec<String>,
        cgroup: PathBuf,
        spec: &serde_json::Value,
    ) -> Result<Arc<Container>, String> {
        let dir = self.run.join(id);
        let upper = self.uppers.join(id);
        let order = Order {
            id: id.to_owned(),
            overlay: Overlay {
                layers: self.layers.clone(),
                lower,
                upper: upper.join("upper"),
                work: upper.join("work"),
            },
            log: meta.log.clone(),
            log_max_bytes: self.log_max_bytes,
            log_max_files: self.log_max_files,
            detach: Some(self.namespaces.clone()),
            cgroup: cgroup.clone(),
            tty: meta.tty,
            stdin: meta.stdin,
            stdin_once: meta.stdin_once,
        };
        let started = self.launch(&dir, &order, &meta, spec).await;
        match started {
            Ok((started, shim)) => Ok(Arc::new(Container {
                id: id.to_owned(),
                meta,
                started_at: started.at,
                init: Pidfd::open_started(started.init.pid, started.init.start).ok(),
                shim: Some(shim),
                dir,
                cgroup,
            })),
            Err(text) => {
                self.clear(id, &cgroup);
                Err(text)
            }
        }
    }

    async fn launch(
        &self,
        dir: &Path,
        order: &Order,
        meta: &Meta,
        spec: &serde_json::Value,
    ) -> Result<(Started, Pidfd), String> {
        let prepare = || -> io::Result<_> {
            fs::create_dir_all(dir.join(shim::STATE))?;
            fs::create_dir_all(&order.overlay.upper)?;
            fs::create_dir_all(&order.overlay.work)?;
            if let Some(parent) = order.log.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(dir.join("config.json"), spec.to_string())?;
            shim::write_json(&dir.join(META), meta)?;
            shim::write_json(&dir.join(shim::ORDER), order)?;
            let stderr = fs::File::create(dir.join("shim.log"))?;
            let (program, args) = self.shim.split_first().ok_or_else(|| io::Error::other("no shim program"))?;
            let mut child = Command::new(program)
                .args(args)
                .arg(dir)
                .env_clear()
                .current_dir("/")
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(stderr)
                .spawn()?;
            let pidfd = Pidfd::open(child.id() as i32)?;
            let out = child.stdout.take().ok_or_else(|| io::Error::other("the shim has no output"))?;
            Ok((pidfd, OwnedFd::from(out)))
        };
        let (pidfd, out) = prepare().map_err(|e| format!("start the container's shim: {e}"))?;
        let mut line = String::new();
        let read = async {
            let out = tokio::net::unix::pipe::Receiver::from_owned_fd(out)?;
            BufReader::new(out).read_line(&mut line).await
        };
        let read = read.await;
        match serde_json::from_str(&line) {
            Ok(Answer::Started(started)) => Ok((started, pidfd)),
            Ok(Answer::Failed(text)) => {
                let _ = pidfd.wait().await;
                Err(text)
            }
            Err(_) => {
                let _ = pidfd.wait().await;
                let said = fs::read_to_string(dir.join("shim.log")).unwrap_or_default();
                let last = said.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("it said nothing");
                let cause = read.err().map(|e| format!(" ({e})")).unwrap_or_default();
                Err(format!("the container's shim ended before the container started{cause}: {last}"))
            }
        }
    }

    /// Runs `args` inside, as the container's user. An `Err` means the program could not be run at all.
    pub async fn exec(&self, container: &Container, args: &[String], timeout: Duration) -> exec::ExecResult {
        let request = exec::Request {
            args: args.to_vec(),
            timeout_millis: timeout.as_millis().try_into().unwrap_or(u64::MAX),
            limit: 10 * 1024,
        };
        let run = async {
            let (program, first) = self.shim.split_first().ok_or_else(|| io::Error::other("no shim program"))?;
            let mut child = tokio::process::Command::new(program)
                .args(first)
                .arg("exec")
                .arg(&container.dir)
                .env_clear()
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .kill_on_drop(true)
                .spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                stdin.write_all(&serde_json::to_vec(&request)?).await?;
            }
            let mut answer = Vec::new();
            if let Some(mut stdout) = child.stdout.take() {
                stdout.read_to_end(&mut answer).await?;
            }
            child.wait().await?;
            serde_json::from_slice(&answer).map_err(io::Error::from)
        };
        // The helper keeps the time itself; this bound only guards against a helper that hangs.
        match tokio::time::timeout(timeout + Duration::from_secs(10), run).await {
            Ok(Ok(result)) => result,
            Ok(Err(e)) => exec::ExecResult::Failed(e.to_string()),
            Err(_) => exec::ExecResult::TimedOut { output: String::new() },
        }
    }

    /// Runs a program inside with its streams on the socket, as [`frame`]s.
    pub async fn stream(&self, container: &Container, request: &Request) -> io::Result<UnixStream> {
        let (program, first) = self.shim.split_first().ok_or_else(|| io::Error::other("no shim program"))?;
        let (near, far) = std::os::unix::net::UnixStream::pair()?;
        // Not waited for: it ends with the socket, and tokio reaps it.
        tokio::process::Command::new(program)
            .args(first)
            .arg("stream")
            .arg(&container.dir)
            .env_clear()
            .current_dir("/")
            .stdin(OwnedFd::from(far))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        near.set_nonblocking(true)?;
        ask(UnixStream::from_std(near)?, request).await
    }

    /// The container's own streams.
    pub async fn attach(&self, container: &Container, request: &Request) -> io::Result<UnixStream> {
        let (_open, path) = shim::stream::shorten(&container.dir, &container.dir.join(shim::attach::SOCKET))?;
        ask(UnixStream::connect(path).await?, request).await
    }

    /// Containers found in the run directory, running or ended: what an earlier agent left.
    pub fn found(&self) -> Vec<Arc<Container>> {
        let entries = fs::read_dir(&self.run).into_iter().flatten().flatten();
        entries.filter_map(|e| self.read(&e.path())).map(Arc::new).collect()
    }

    fn read(&self, dir: &Path) -> Option<Container> {
        let id = dir.file_name()?.to_str()?.to_owned();
        let meta: Option<Meta> = shim::read_json(&dir.join(META)).ok();
        let order: Option<Order> = shim::read_json(&dir.join(shim::ORDER)).ok();
        let open = |p: Process| Pidfd::open_started(p.pid, p.start).ok();
        let shim = shim::read_json(&dir.join(shim::PID)).ok().and_then(open);
        let started: Option<Started> = shim::read_json(&dir.join(shim::STARTED)).ok();
        let (Some(meta), Some(order), Some(started)) = (meta, order.as_ref(), started) else {
            // Half made: nothing in it was ever reported.
            if let Some(shim) = shim {
                let _ = shim.signal(Signal::SIGKILL);
                shim.wait_blocking(2000);
            }
            self.clear(&id, &order.map(|o| o.cgroup).unwrap_or_default());
            return None;
        };
        let init = open(started.init);
        Some(Container {
            id,
            meta,
            started_at: started.at,
            dir: dir.to_owned(),
            cgroup: order.cgroup.clone(),
            init,
            shim,
        })
    }

    /// Removes every trace of the container. Its processes must have ended; what still is in its cgroup is killed.
    pub fn clear(&self, id: &str, cgroup: &Path) {
        remove_cgroup(cgroup);
        for dir in [self.run.join(id), self.uppers.join(id)] {
            if let Err(e) = fs::remove_dir_all(&dir)
                && e.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(dir = %dir.display(), error = %e, "cannot remove what a container left");
            }
        }
    }

    pub async fn remove(&self, container: &Arc<Container>) {
        let (this, container) = (self.clone(), container.clone());
        let _ = tokio::task::spawn_blocking(move || this.clear(&container.id, &container.cgroup)).await;
    }
}

async fn ask(mut socket: UnixStream, request: &Request) -> io::Result<UnixStream> {
    socket.write_all(&frame::encode(frame::REQUEST, &serde_json::to_vec(request)?)).await?;
    Ok(socket)
}

impl Container {
    /// Waits for the end. Works as well for an adopted container, whose shim is nobody's child here.
    pub async fn wait(&self) -> Exit {
        if let Some(shim) = &self.shim {
            let _ = shim.wait().await;
        }
        match shim::read_json(&self.dir.join(shim::EXIT)) {
            Ok(exit) => exit,
            Err(_) => {
                // The shim is dead without a record: nobody copies output any more, so the container cannot go on.
                if let Some(init) = &self.init {
                    let _ = init.signal(Signal::SIGKILL);
                    let _ = init.wait().await;
                }
                Exit { code: 137, signal: Some(9), oom: false, at: Timestamp::now() }
            }
        }
    }

    /// No error when it has ended already.
    pub fn signal(&self, signal: Signal) {
        if let Some(init) = &self.init
            && let Err(e) = init.signal(signal)
            && e.raw_os_error() != Some(nix::errno::Errno::ESRCH as i32)
        {
            tracing::warn!(container = %self.id, %signal, error = %e, "cannot signal the container");
        }
    }

    /// For a caller without a runtime: kills it and waits up to `millis` for the shim to finish its records.
    pub fn kill_blocking(&self, millis: u16) {
        self.signal(Signal::SIGKILL);
        if let Some(init) = &self.init {
            init.wait_blocking(millis);
        }
        if let Some(shim) = &self.shim
            && !shim.wait_blocking(millis)
        {
            let _ = shim.signal(Signal::SIGKILL);
            shim.wait_blocking(millis);
        }
    }

    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }
}

/// Removes a cgroup with everything below it from every hierarchy, killing what is still inside.
pub fn remove_cgroup(cgroup: &Path) {
    let Ok(relative) = cgroup.strip_prefix("/") else { return };
    if relative.as_os_str().is_empty() {
        return;
    }
    let base = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(base).into_iter().flatten().flatten().map(|e| e.path());
    for root in hierarchies.chain([base.to_owned()]) {
        let dir = root.join(relative);
        if dir.is_dir() {
            remove_tree(&dir, &mut 50);
        }
    }
}

/// Directories of a cgroup file system are removed one by one, leaves first. `tries` bounds the whole walk.
fn remove_tree(dir: &Path, tries: &mut u32) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_tree(&entry.path(), tries);
        }
    }
    while let Err(e) = fs::remove_dir(dir) {
        if e.raw_os_error() != Some(nix::errno::Errno::EBUSY as i32) || *tries == 0 {
            return;
        }
        *tries -= 1;
        for pid in fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines() {
            let Ok(pid) = pid.parse() else { continue };
            if let Ok(fd) = Pidfd::open(pid) {
                let _ = fd.signal(Signal::SIGKILL);
                fd.wait_blocking(100);
            }
        }
    }
}
