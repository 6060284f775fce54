//! A container's own streams over its whole life: everything it writes goes to the log and to whoever is attached, and
//! what they write to it. Clients come through the socket [`SOCKET`] in the container's directory and speak [`frame`]s;
//! the listener belongs to the shim, so attaching works again after a restart of the agent.

use std::{
    collections::VecDeque,
    io,
    os::{fd::OwnedFd, unix::net::UnixListener},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::AsyncWriteExt,
    net::UnixStream,
    signal::unix::{SignalKind, signal},
    sync::{Mutex as AsyncMutex, Notify, mpsc},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    Order, crilog,
    frame::{self, Request},
    reap,
    stream::{Output, resize},
};
use sys::terminal::End;

pub const SOCKET: &str = "attach.sock";

/// Frames on their way to one client.
const BACKLOG: usize = 16;
/// A client that takes nothing for so long is dropped; until then the container waits for it.
const STALLED: Duration = Duration::from_secs(30);
/// Output kept for the first client, so that it misses nothing of a program that was faster than it.
const EARLY: usize = 64 << 10;
/// How long it is kept for a container that expects no input, and so need not expect a client.
const EARLY_FOR: Duration = Duration::from_secs(10);
/// How long a program that has ended waits for the one client its input was opened for, to tell it in person.
const LINGER: Duration = Duration::from_secs(2);
/// For clients to take the last of the output.
const FAREWELL: Duration = Duration::from_secs(2);

/// The shim's ends of a container's streams.
pub struct Console {
    /// The terminal itself if there is one.
    pub stdin: Option<OwnedFd>,
    pub outputs: Vec<(crilog::Stream, OwnedFd)>,
}

struct Client {
    id: u64,
    wants: Request,
    frames: mpsc::Sender<Bytes>,
}

struct Clients {
    list: Vec<Client>,
    next: u64,
    /// `None` once somebody has had it.
    early: Option<VecDeque<(u8, Bytes)>>,
    early_bytes: usize,
}

struct Hub {
    tty: bool,
    stdin_once: bool,
    log: Mutex<crilog::Writer>,
    clients: Mutex<Clients>,
    stdin: AsyncMutex<Option<End>>,
    /// For sizes: a writer may hold `stdin` for long.
    terminal: Option<End>,
    /// Somebody has come.
    joined: Notify,
}

/// Carries the streams until the process has ended and all it wrote is handed on; its code and signal. Reaps whatever
/// else becomes a child of this process.
pub fn attend(
    order: &Order,
    pid: i32,
    log: crilog::Writer,
    console: Console,
    listener: UnixListener,
) -> io::Result<(i32, Option<i32>)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(serve(order, pid, log, console, listener));
    runtime.shutdown_background();
    ended
}

async fn serve(
    order: &Order,
    pid: i32,
    log: crilog::Writer,
    console: Console,
    listener: UnixListener,
) -> io::Result<(i32, Option<i32>)> {
    let mut children = signal(SignalKind::child())?;
    let terminal = match &console.stdin {
        Some(fd) if order.tty => Some(End::new(fd.try_clone()?)?),
        _ => None,
    };
    let hub = Arc::new(Hub {
        tty: order.tty,
        stdin_once: order.stdin_once,
        log: Mutex::new(log),
        clients: Mutex::new(Clients { list: Vec::new(), next: 0, early: Some(VecDeque::new()), early_bytes: 0 }),
        stdin: AsyncMutex::new(console.stdin.filter(|_| order.stdin).map(End::new).transpose()?),
        terminal,
        joined: Notify::new(),
    });
    let ended = CancellationToken::new();
    let mut reading = JoinSet::new();
    for (stream, fd) in console.outputs {
        let output = Output::new(End::new(fd)?, ended.clone());
        reading.spawn(copy_out(hub.clone(), stream, output));
    }
    listener.set_nonblocking(true)?;
    let writing = Arc::new(Mutex::new(JoinSet::new()));
    let accepting = tokio::spawn(accept(hub.clone(), tokio::net::UnixListener::from_std(listener)?, writing.clone()));
    if !order.stdin {
        let hub = hub.clone();
        tokio::spawn(async move {
            tokio::time::sleep(EARLY_FOR).await;
            hub.clients().early = None;
        });
    }

    let status = loop {
        if let Some(status) = reap(pid) {
            break status;
        }
        children.recv().await;
    };
    // Whatever it wrote before it ended is on its way: the kernel ends its whole pid namespace first.
    ended.cancel();
    while reading.join_next().await.is_some() {}
    if order.stdin_once && hub.clients().next == 0 {
        let _ = timeout(LINGER, hub.joined.notified()).await;
    }
    accepting.abort();
    hub.farewell().await;
    let mut writing = std::mem::take(&mut *writing.lock().unwrap_or_else(PoisonError::into_inner));
    let _ = timeout(FAREWELL, async { while writing.join_next().await.is_some() {} }).await;
    Ok(status)
}

async fn copy_out(hub: Arc<Hub>, stream: crilog::Stream, mut output: Output) {
    let channel = match stream {
        crilog::Stream::Stdout => frame::STDOUT,
        crilog::Stream::Stderr => frame::STDERR,
    };
    while let Some(bytes) = output.next().await {
        // A full disk loses lines, never the container.
        hub.log.lock().unwrap_or_else(PoisonError::into_inner).write(stream, bytes);
        hub.publish(channel, bytes).await;
    }
    hub.log.lock().unwrap_or_else(PoisonError::into_inner).finish(stream);
}

impl Hub {
    fn clients(&self) -> MutexGuard<'_, Clients> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn publish(&self, channel: u8, bytes: &[u8]) {
        let targets = {
            let mut clients = self.clients();
            if clients.list.is_empty() && clients.early.is_none() {
                return;
            }
            let frame = Bytes::from(frame::encode(channel, bytes));
            clients.keep(channel, &frame);
            let wanting = clients.list.iter().filter(|c| c.wants.wants(channel));
            wanting.map(|c| (c.id, c.frames.clone(), frame.clone())).collect::<Vec<_>>()
        };
        for (id, frames, frame) in targets {
            if !matches!(timeout(STALLED, frames.send(frame)).await, Ok(Ok(()))) {
                self.clients().list.retain(|c| c.id != id);
            }
        }
    }

    /// Takes a client in; what it is to be sent, the kept output first.
    fn join(&self, wants: Request) -> (u64, Vec<Bytes>, mpsc::Receiver<Bytes>) {
        let (frames, queue) = mpsc::channel(BACKLOG);
        let mut clients = self.clients();
        let early = clients.early.take().unwrap_or_default();
        let early = early.into_iter().filter(|(channel, _)| wants.wants(*channel)).map(|(_, frame)| frame).collect();
        let id = clients.next;
        clients.next += 1;
        clients.list.push(Client { id, wants, frames });
        self.joined.notify_one();
        (id, early, queue)
    }

    async fn farewell(&self) {
        let status = Bytes::from(frame::encode(frame::STATUS, frame::exited(0).to_string().as_bytes()));
        let list = std::mem::take(&mut self.clients().list);
        for client in list {
            let _ = timeout(FAREWELL, client.frames.send(status.clone())).await;
        }
    }

    /// The client has sent its last byte. Input that is open for one client only ends with it; a terminal has no half.
    async fn end_of_input(&self) {
        if self.stdin_once && !self.tty {
            *self.stdin.lock().await = None;
        }
    }
}

impl Request {
    fn wants(&self, channel: u8) -> bool {
        match channel {
            frame::STDOUT => self.stdout,
            frame::STDERR => self.stderr,
            _ => true,
        }
    }
}

impl Clients {
    fn keep(&mut self, channel: u8, frame: &Bytes) {
        let Some(early) = &mut self.early else { return };
        early.push_back((channel, frame.clone()));
        self.early_bytes += frame.len();
        while self.early_bytes > EARLY {
            let Some((_, oldest)) = early.pop_front() else { return };
            self.early_bytes -= oldest.len();
        }
    }
}

async fn accept(hub: Arc<Hub>, listener: tokio::net::UnixListener, writing: Arc<Mutex<JoinSet<()>>>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (hub, writing) = (hub.clone(), writing.clone());
                tokio::spawn(async move { attached(&hub, stream, &writing).await });
            }
            // Out of file descriptors, most likely.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn attached(hub: &Hub, stream: UnixStream, writing: &Mutex<JoinSet<()>>) {
    let (mut reader, mut writer) = stream.into_split();
    let Some((frame::REQUEST, body)) = frame::read(&mut reader).await else { return };
    let Ok(wants) = serde_json::from_slice::<Request>(&body) else { return };
    let stdin = wants.stdin;
    let (id, early, mut queue) = hub.join(wants);
    {
        let mut writing = writing.lock().unwrap_or_else(PoisonError::into_inner);
        while writing.try_join_next().is_some() {}
        writing.spawn(async move {
            for frame in early {
                if writer.write_all(&frame).await.is_err() {
                    return;
                }
            }
            while let Some(frame) = queue.recv().await {
                if writer.write_all(&frame).await.is_err() {
                    return;
                }
            }
        });
    }
    while let Some((channel, bytes)) = frame::read(&mut reader).await {
        match channel {
            frame::STDIN if stdin => {
                if let Some(input) = &*hub.stdin.lock().await {
                    let _ = input.write_all(&bytes).await;
                }
            }
            frame::RESIZE => {
                if let Some(terminal) = &hub.terminal {
                    resize(terminal, &bytes);
                }
            }
            frame::CLOSE if stdin && bytes == [frame::STDIN] => hub.end_of_input().await,
            _ => {}
        }
    }
    hub.clients().list.retain(|c| c.id != id);
    if stdin {
        hub.end_of_input().await;
    }
}
