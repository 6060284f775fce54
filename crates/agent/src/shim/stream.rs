//! Runs one more program inside a running container with somebody at its streams: `portolan __shim stream DIR`, with a
//! socket as standard input that carries [`frame`]s both ways. The program loses its streams when the socket ends.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::wait::{WaitPidFlag, WaitStatus, waitpid},
    unistd::Pid,
};
use sys::{
    process,
    terminal::{self, End},
};
use tokio::{
    io::AsyncWriteExt,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

use super::{
    Order, builder, chain,
    frame::{self, Request, Size},
    own_by_user, pipe, read_json, user,
};

/// Frames on their way to a client.
const BACKLOG: usize = 16;
const BUFFER: usize = 16 << 10;
const LAST_WORDS: Duration = Duration::from_millis(100);

/// A program with its ends of the streams. `stdin` of a terminal is the terminal.
struct Program {
    pid: i32,
    stdin: Option<OwnedFd>,
    outputs: Vec<(u8, OwnedFd)>,
    tty: bool,
}

pub fn main(dir: &Path) -> i32 {
    let socket = match io::stdin().as_fd().try_clone_to_owned() {
        Ok(fd) => UnixStream::from(fd),
        Err(_) => return 1,
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(_) => return 1,
    };
    let _in_runtime = runtime.enter();
    let socket = socket.set_nonblocking(true).and_then(|()| tokio::net::UnixStream::from_std(socket));
    let Ok(mut socket) = socket else { return 1 };
    let Some((frame::REQUEST, body)) = runtime.block_on(frame::read(&mut socket)) else { return 64 };
    let started = serde_json::from_slice(&body).map_err(|e| format!("read the request: {e}"));
    let code = match started.and_then(|request| start(dir, &request)) {
        Ok(program) => runtime.block_on(attend(program, socket)),
        Err(why) => {
            let status = frame::encode(frame::STATUS, frame::failed(&why).to_string().as_bytes());
            runtime.block_on(socket.write_all(&status)).map_or(1, |()| 0)
        }
    };
    runtime.shutdown_background();
    code
}

/// A place for a runtime to send a terminal to. Removed when dropped.
pub struct ConsoleSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ConsoleSocket {
    pub fn bind(dir: &Path) -> Result<Self, String> {
        let path = dir.join(format!("console-{}.sock", std::process::id()));
        let listener = bind(dir, &path).map_err(|e| format!("make {}: {e}", path.display()))?;
        Ok(Self { listener, path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The terminal of a program that was started with [`Self::path`].
    /// It is given to the user of the container in `dir`.
    pub fn take(self, dir: &Path) -> Result<OwnedFd, String> {
        let (socket, _) = self.listener.accept().map_err(|e| format!("wait for the terminal: {e}"))?;
        let master = terminal::receive(&socket).map_err(|e| format!("take the terminal: {e}"))?;
        let (uid, _) = user(dir).map_err(|e| format!("read the container's user: {e}"))?;
        terminal::give(&master, uid.unwrap_or(0)).map_err(|e| format!("give the terminal to its user: {e}"))?;
        Ok(master)
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Listens at `path` in `dir`, however long that is: a socket's address has room for 107 bytes only.
pub fn bind(dir: &Path, path: &Path) -> io::Result<UnixListener> {
    let (_open, short) = shorten(dir, path)?;
    UnixListener::bind(short)
}

/// Another name of `path`, valid while the directory is held open.
pub fn shorten(dir: &Path, path: &Path) -> io::Result<(File, PathBuf)> {
    use std::os::fd::AsRawFd;
    let open = File::open(dir)?;
    let name = path.file_name().unwrap_or_default();
    let short = Path::new("/proc/self/fd").join(open.as_raw_fd().to_string()).join(name);
    Ok((open, short))
}

fn start(dir: &Path, request: &Request) -> Result<Program, String> {
    let order: Order = read_json(&dir.join(super::ORDER)).map_err(|e| format!("read the order: {e}"))?;
    process::become_subreaper().map_err(|e| format!("become a subreaper: {e}"))?;
    // The container's own process with other arguments: same user, environment, directory and capabilities.
    let spec: serde_json::Value =
        read_json(&dir.join("config.json")).map_err(|e| format!("read the container's spec: {e}"))?;
    let mut program = spec["process"].clone();
    program["args"] = request.args.clone().into();
    program["terminal"] = request.tty.into();
    if request.tty
        && let Some(environment) = program["env"].as_array_mut()
        && !environment.iter().any(|e| e.as_str().is_some_and(|e| e.starts_with("TERM=")))
    {
        environment.push("TERM=xterm".into());
    }
    let file = dir.join(format!("stream-{}.json", std::process::id()));
    fs::write(&file, program.to_string()).map_err(|e| format!("write {}: {e}", file.display()))?;
    process::set_sigpipe_ignored(false).map_err(|e| format!("reset SIGPIPE: {e}"))?;
    let made = make(dir, &order, request, &file);
    let _ = fs::remove_file(&file);
    process::set_sigpipe_ignored(true).map_err(|e| format!("ignore SIGPIPE: {e}"))?;
    made
}

fn make(dir: &Path, order: &Order, request: &Request, file: &Path) -> Result<Program, String> {
    let failed = |what: &'static str| move |e: io::Error| format!("{what}: {e}");
    let builder = builder(dir, &order.id)?;
    let build = |builder: libcontainer::container::builder::ContainerBuilder| {
        let built = builder.as_tenant().with_process(Some(file)).with_detach(true).build();
        built.map(|pid| pid.as_raw()).map_err(|e| refusal(request, &chain(&e)))
    };
    if request.tty {
        let console = ConsoleSocket::bind(dir)?;
        let pid = build(builder.with_console_socket(Some(console.path())))?;
        let terminal = console.take(dir)?;
        let input = terminal.try_clone().map_err(failed("copy a descriptor"))?;
        return Ok(Program { pid, stdin: Some(input), outputs: vec![(frame::STDOUT, terminal)], tty: true });
    }
    let (stdin, input): (OwnedFd, _) = if request.stdin {
        let (read, write) = pipe().map_err(failed("make a pipe"))?;
        (read, Some(write))
    } else {
        (File::open("/dev/null").map_err(failed("open /dev/null"))?.into(), None)
    };
    let (out_read, out_write) = pipe().map_err(failed("make a pipe"))?;
    let (err_read, err_write) = pipe().map_err(failed("make a pipe"))?;
    own_by_user(dir, &[&out_write, &err_write]).map_err(failed("give the output to the container's user"))?;
    if input.is_some() {
        own_by_user(dir, &[&stdin]).map_err(failed("give the input to the container's user"))?;
    }
    let pid = build(builder.with_stdin(stdin).with_stdout(out_write).with_stderr(err_write))?;
    let mut outputs = Vec::new();
    // What nobody asked for is read all the same: the program must not wait for it.
    outputs.push((if request.stdout { frame::STDOUT } else { frame::REQUEST }, out_read));
    outputs.push((if request.stderr { frame::STDERR } else { frame::REQUEST }, err_read));
    Ok(Program { pid, stdin: input, outputs, tty: false })
}

/// Why the program did not start, in the words of runtimes where they are known.
fn refusal(request: &Request, cause: &str) -> String {
    let program = request.args.first().map_or("", String::as_str);
    if cause.contains("not found in $PATH") {
        return format!("failed to exec in container: exec: {program:?}: executable file not found in $PATH");
    }
    format!("failed to exec in container: {cause}")
}

/// Carries the program's streams until it has ended or the client is gone.
async fn attend(program: Program, socket: tokio::net::UnixStream) -> i32 {
    let (mut reader, mut writer) = socket.into_split();
    let (frames, mut queue) = mpsc::channel::<Vec<u8>>(BACKLOG);
    let writing = tokio::spawn(async move {
        while let Some(frame) = queue.recv().await {
            if writer.write_all(&frame).await.is_err() {
                return;
            }
        }
    });
    let ended = CancellationToken::new();
    let mut reading = Vec::new();
    for (channel, fd) in program.outputs {
        let Ok(end) = End::new(fd) else { return 1 };
        reading.push(tokio::spawn(copy_out(end, channel, frames.clone(), ended.clone())));
    }
    let stdin = match program.stdin.map(End::new).transpose() {
        Ok(stdin) => stdin,
        Err(_) => return 1,
    };
    let tty = program.tty;
    let input = async move {
        let mut stdin = stdin;
        while let Some((channel, bytes)) = frame::read(&mut reader).await {
            match (channel, &stdin) {
                (frame::STDIN, Some(end)) => {
                    // A program that does not read its input is no reason to end.
                    let _ = end.write_all(&bytes).await;
                }
                (frame::RESIZE, Some(end)) if tty => resize(end, &bytes),
                // A terminal has no half: end-of-input is a character that people type.
                (frame::CLOSE, Some(_)) if !tty && bytes == [frame::STDIN] => stdin = None,
                _ => {}
            }
        }
    };
    let code = tokio::select! {
        code = exit(program.pid) => code,
        () = input => return 0,
    };
    ended.cancel();
    for task in reading {
        let _ = task.await;
    }
    let status = frame::encode(frame::STATUS, frame::exited(code).to_string().as_bytes());
    let _ = frames.send(status).await;
    drop(frames);
    let _ = writing.await;
    0
}

pub fn resize(terminal: &End, bytes: &[u8]) {
    if let Ok(size) = serde_json::from_slice::<Size>(bytes) {
        let _ = terminal.resize(size.width, size.height);
    }
}

/// Hands on what the program writes to one stream.
async fn copy_out(end: End, channel: u8, frames: mpsc::Sender<Vec<u8>>, ended: CancellationToken) {
    let mut output = Output::new(end, ended);
    while let Some(bytes) = output.next().await {
        if channel != frame::REQUEST && frames.send(frame::encode(channel, bytes)).await.is_err() {
            return;
        }
    }
}

/// What a program writes to one stream: until the stream's end, or until there is nothing more once the program has
/// ended, for what it started in the background may hold the stream open for as long as it likes.
pub struct Output {
    end: End,
    ended: CancellationToken,
    /// Bytes that are still taken once it has ended: more does not fit into a pipe.
    left: usize,
    buffer: Vec<u8>,
}

impl Output {
    pub fn new(end: End, ended: CancellationToken) -> Self {
        Self { end, ended, left: 1 << 20, buffer: vec![0; BUFFER] }
    }

    pub async fn next(&mut self) -> Option<&[u8]> {
        if !self.ended.is_cancelled() {
            let read = tokio::select! {
                biased;
                () = self.ended.cancelled() => None,
                read = self.end.read(&mut self.buffer) => Some(read),
            };
            if let Some(read) = read {
                return read.ok().filter(|n| *n > 0).map(|n| &self.buffer[..n]);
            }
        }
        if self.left == 0 {
            return None;
        }
        // The kernel may still be moving a terminal's last line.
        let read = tokio::time::timeout(LAST_WORDS, self.end.read(&mut self.buffer)).await;
        let n = read.ok()?.ok().filter(|n| *n > 0)?;
        self.left = self.left.saturating_sub(n);
        Some(&self.buffer[..n])
    }
}

/// The exit code of a child, 128 + signal when a signal ended it.
async fn exit(pid: i32) -> i32 {
    let Ok(mut children) = signal(SignalKind::child()) else { return 255 };
    loop {
        match waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => return code,
            Ok(WaitStatus::Signaled(_, signal, _)) => return 128 + signal as i32,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return 255,
        }
        children.recv().await;
    }
}
