//! `exec` and `attach`: the streams of a program on a node, for a client that speaks WebSocket (`v5.channel.k8s.io`,
//! KEP-4006, or `v4`) or SPDY/3.1 (`v4`). Both carry the same channels; only the dress differs.

use std::{convert::Infallible, time::Duration};

use axum::{
    body::Body,
    extract::{
        FromRequestParts,
        ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code},
    },
    response::Response,
};
use bytes::{Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use http::{Request, request::Parts};
use http_body_util::{BodyExt, Limited};
use serde_json::Value;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    STREAM_VERSION,
    frame::{self, Frames},
    names,
    spdy::{Session, Stream},
    spdy_upgrade,
};
use crate::{
    handlers::{Api, container_named},
    request::{Query, Target},
    status::Failure,
};

const V5: &str = "v5.channel.k8s.io";
const V4: &str = "v4.channel.k8s.io";
/// Frames on their way to the node.
const BACKLOG: usize = 16;
const MAX_MESSAGE: usize = 16 << 20;
/// A node's complaint longer than this is cut.
const MAX_NODE_ERROR: usize = 64 << 10;
/// For a client to open its SPDY streams, and to hang up after the last byte.
const PATIENCE: Duration = Duration::from_secs(30);

/// The streams a client asks for.
#[derive(Debug, Clone, Copy)]
struct Wants {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

/// The node's end: frames to the program, and from it.
struct Node {
    input: mpsc::Sender<Result<Bytes, Infallible>>,
    output: Frames,
}

/// `pods/NAME/exec` and `pods/NAME/attach`.
pub(crate) async fn serve(api: &Api, target: &Target, query: &Query, mut parts: Parts) -> Result<Response, Failure> {
    let verb = &*target.subresource;
    let wants = wants(query)?;
    let web_socket = names(&parts.headers, "upgrade", "websocket");
    if web_socket && !names(&parts.headers, "sec-websocket-protocol", V5) {
        offered(names(&parts.headers, "sec-websocket-protocol", V4), "Sec-WebSocket-Protocol")?;
    }
    if !web_socket {
        let asked = parts.headers.contains_key(STREAM_VERSION);
        offered(!asked || names(&parts.headers, STREAM_VERSION, V4), "X-Stream-Protocol-Version")?;
    }
    if web_socket {
        let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &())
            .await
            .map_err(|e| Failure::bad_request(format!("unable to upgrade: {e}")))?;
        let node = reach(api, target, query, wants, verb).await?;
        let stop = api.stopping.clone();
        return Ok(upgrade.max_message_size(MAX_MESSAGE).protocols([V5, V4]).on_upgrade(|socket| async move {
            tokio::select! {
                () = over_web_socket(socket, node) => {}
                () = stop.cancelled() => {}
            }
        }));
    }
    let (response, upgrade) = spdy_upgrade(&mut parts, V4)?;
    let node = reach(api, target, query, wants, verb).await?;
    let stop = api.stopping.child_token();
    tokio::spawn(async move {
        let Some(io) = upgrade.await else { return };
        let session = Session::start(io, stop.clone());
        over_spdy(session, node, wants).await;
        stop.cancel();
    });
    Ok(response)
}

fn offered(fine: bool, header: &str) -> Result<(), Failure> {
    if fine {
        return Ok(());
    }
    Err(Failure::bad_request(format!("unable to upgrade: {header} must offer {V5} (WebSocket) or {V4}")))
}

fn wants(query: &Query) -> Result<Wants, Failure> {
    let tty = query.flag("tty");
    // A terminal has one output.
    let wants =
        Wants { stdin: query.flag("stdin"), stdout: query.flag("stdout"), stderr: query.flag("stderr") && !tty, tty };
    if !(wants.stdin || wants.stdout || wants.stderr) {
        return Err(Failure::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
    }
    Ok(wants)
}

/// Asks the pod's node for the program's streams.
async fn reach(api: &Api, target: &Target, query: &Query, wants: Wants, verb: &str) -> Result<Node, Failure> {
    let name = &target.name;
    let pod = api.get(target.kind, &target.namespace, name)?.value();
    let container = container_named(&pod, name, query.get("container"))?;
    let host = pod["spec"]["nodeName"].as_str().unwrap_or("");
    if host.is_empty() {
        return Err(Failure::bad_request(format!("pod {name} does not have a host assigned")));
    }
    let mut pairs = UrlQuery(String::new());
    for (given, word) in [(wants.stdin, "input"), (wants.stdout, "output"), (wants.stderr, "error"), (wants.tty, "tty")]
    {
        if given {
            pairs.push(word, "1");
        }
    }
    if verb == "exec" {
        for word in query.all("command") {
            pairs.push("command", word);
        }
    }
    let uri = format!("/{verb}/{}/{name}/{container}?{}", target.namespace, pairs.0);
    let (input, queue) = mpsc::channel(BACKLOG);
    let request = Request::post(uri).body(Body::from_stream(ReceiverStream::new(queue))).map_err(Failure::internal)?;
    let answer = api.nodes.request(host, request).await.map_err(|e| {
        Failure::internal(format!("the node {host} that runs pod {name} does not answer: {e}. Is its agent running?"))
    })?;
    let code = answer.status();
    if code.is_success() {
        return Ok(Node { input, output: Frames::new(answer.into_body()) });
    }
    let text =
        Limited::new(answer.into_body(), MAX_NODE_ERROR).collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    Err(Failure::from_node(code, &String::from_utf8_lossy(&text)))
}

/// A query string under construction.
struct UrlQuery(String);

impl UrlQuery {
    fn push(&mut self, name: &str, value: &str) {
        use std::fmt::Write;
        if !self.0.is_empty() {
            self.0.push('&');
        }
        self.0.push_str(name);
        self.0.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
                self.0.push(char::from(byte));
            } else {
                // Writing to a String cannot fail.
                let _ = write!(self.0, "%{byte:02X}");
            }
        }
    }
}

/// Each message is a channel's number and its bytes.
async fn over_web_socket(socket: WebSocket, node: Node) {
    let Node { input, mut output } = node;
    let (mut to_client, mut from_client) = socket.split();
    let inwards = async {
        while let Some(Ok(message)) = from_client.next().await {
            let bytes = match message {
                Message::Binary(bytes) => bytes,
                Message::Text(text) => Bytes::from(text),
                Message::Close(_) => break,
                Message::Ping(_) | Message::Pong(_) => continue,
            };
            let Some((channel @ (&frame::STDIN | &frame::RESIZE | &frame::CLOSE), data)) = bytes.split_first() else {
                continue;
            };
            if !data.is_empty() && input.send(Ok(frame::encode(*channel, data))).await.is_err() {
                // The program has ended; its last words are still on their way out.
                std::future::pending::<()>().await;
            }
        }
    };
    let outwards = async {
        while let Some((channel, bytes)) = output.next().await {
            let mut message = BytesMut::with_capacity(1 + bytes.len());
            message.extend_from_slice(&[channel]);
            message.extend_from_slice(&bytes);
            if to_client.send(Message::Binary(message.freeze())).await.is_err() || channel == frame::STATUS {
                break;
            }
        }
        let bye = CloseFrame { code: close_code::NORMAL, reason: "".into() };
        let _ = to_client.send(Message::Close(Some(bye))).await;
    };
    tokio::select! {
        () = inwards => return,
        () = outwards => {}
    }
    // Closing is mutual: hanging up first could cost the client the last bytes.
    let _ = timeout(PATIENCE, async { while let Some(Ok(_)) = from_client.next().await {} }).await;
}

/// The streams a SPDY client opens, by what they are for.
#[derive(Default)]
struct Streams {
    error: Option<Stream>,
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    resize: Option<Stream>,
}

impl Streams {
    /// As many as the request announced.
    async fn accept(session: &mut Session, wants: Wants) -> Option<Self> {
        let mut streams = Self::default();
        let expected = 1 + [wants.stdin, wants.stdout, wants.stderr, wants.tty].iter().filter(|w| **w).count();
        for _ in 0..expected {
            let stream = session.accept().await?;
            let place = match stream.header("streamtype") {
                "error" => &mut streams.error,
                "stdin" => &mut streams.stdin,
                "stdout" => &mut streams.stdout,
                "stderr" => &mut streams.stderr,
                "resize" => &mut streams.resize,
                _ => return None,
            };
            *place = Some(stream);
        }
        Some(streams)
    }
}

async fn over_spdy(mut session: Session, mut node: Node, wants: Wants) {
    let Ok(Some(mut streams)) = timeout(PATIENCE, Streams::accept(&mut session, wants)).await else { return };
    let Some(error) = streams.error.take() else { return };
    let gone = error.gone.clone();
    let (stdin, resize) = (streams.stdin.take(), streams.resize.take());
    // The program hears of a client that hangs up when these, the only senders, are dropped.
    let (input, sizes) = (node.input.clone(), node.input.clone());
    let inwards = async {
        tokio::join!(feed(stdin, input), resizes(resize, sizes));
        std::future::pending::<()>().await;
    };
    let outwards = async {
        while let Some((channel, bytes)) = node.output.next().await {
            let to = match channel {
                frame::STDOUT => streams.stdout.as_ref(),
                frame::STDERR => streams.stderr.as_ref(),
                frame::STATUS => Some(&error),
                _ => None,
            };
            let listening = match to {
                Some(stream) => stream.send(&bytes, false).await,
                None => true,
            };
            if !listening || channel == frame::STATUS {
                return;
            }
        }
    };
    tokio::select! {
        () = inwards => return,
        () = gone.cancelled() => return,
        () = outwards => {}
    }
    for stream in [streams.stdout, streams.stderr, Some(error)].into_iter().flatten() {
        stream.send(b"", true).await;
    }
    let _ = timeout(PATIENCE, gone.cancelled()).await;
}

async fn feed(stdin: Option<Stream>, node: mpsc::Sender<Result<Bytes, Infallible>>) {
    let Some(mut stdin) = stdin else { return };
    while let Some(bytes) = stdin.input.recv().await {
        if node.send(Ok(frame::encode(frame::STDIN, &bytes))).await.is_err() {
            return;
        }
    }
    if !stdin.gone.is_cancelled() {
        let _ = node.send(Ok(frame::encode(frame::CLOSE, &[frame::STDIN]))).await;
    }
}

/// Sizes come as one JSON text after the other.
async fn resizes(resize: Option<Stream>, node: mpsc::Sender<Result<Bytes, Infallible>>) {
    const MAX: usize = 4096;
    let Some(mut resize) = resize else { return };
    let mut buffer = Vec::new();
    while let Some(bytes) = resize.input.recv().await {
        buffer.extend_from_slice(&bytes);
        let mut values = serde_json::Deserializer::from_slice(&buffer).into_iter::<Value>();
        let mut last = None;
        while let Some(Ok(value)) = values.next() {
            last = Some(value);
        }
        let read = values.byte_offset();
        buffer.drain(..read);
        if let Some(size) = last
            && node.send(Ok(frame::encode(frame::RESIZE, size.to_string().as_bytes()))).await.is_err()
        {
            return;
        }
        if buffer.len() > MAX {
            return;
        }
    }
}
