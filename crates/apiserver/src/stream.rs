//! Requests that become connections, in both dresses that kubectl wears: WebSocket since 1.31, SPDY/3.1 before. Programs'
//! streams are in [`command`], HTTP that is handed on in [`proxy`]. Port-forward is here: over a WebSocket its messages carry SPDY/3.1
//! (`SPDY/3.1+portforward.k8s.io`), so that inside is the same session either way, see [`spdy`].

pub(crate) mod command;
mod frame;
mod portforward;
pub(crate) mod proxy;
mod spdy;

use std::net::IpAddr;

use axum::{
    body::Body,
    extract::{
        FromRequestParts,
        ws::{Message, WebSocket, WebSocketUpgrade},
    },
    response::Response,
};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{HeaderMap, StatusCode, header, request::Parts};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{BoxFuture, handlers::Api, request::Target, status::Failure};

const PORT_FORWARD: &str = "portforward.k8s.io";
const TUNNELLED: &str = "SPDY/3.1+portforward.k8s.io";
const SPDY: &str = "SPDY/3.1";
const STREAM_VERSION: &str = "x-stream-protocol-version";
const PIPE: usize = 64 << 10;

/// A byte stream in both directions.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection to a port of a pod.
pub type Connection = Box<dyn Duplex>;

/// Where a forwarded connection ends.
#[derive(Debug, Clone)]
pub struct PodPort {
    pub node: String,
    pub namespace: String,
    pub pod: String,
    pub pod_ip: Option<IpAddr>,
    pub port: u16,
}

/// Dials the pod's address: enough where the API server stands on the pod's node.
pub fn dial_address(to: PodPort) -> BoxFuture<'static, Result<Connection, String>> {
    Box::pin(async move {
        let Some(ip) = to.pod_ip else { return Err(format!("pod {} has no address yet", to.pod)) };
        match tokio::net::TcpStream::connect((ip, to.port)).await {
            Ok(stream) => Ok(Box::new(stream) as Connection),
            Err(error) => Err(format!("failed to connect to {ip}:{}: {error}", to.port)),
        }
    })
}

/// `pods/NAME/portforward`.
pub(crate) async fn port_forward(api: &Api, target: &Target, mut parts: Parts) -> Result<Response, Failure> {
    let pod = api.get(target.kind, &target.namespace, &target.name)?.value();
    let node = pod["spec"]["nodeName"].as_str().unwrap_or("");
    if node.is_empty() {
        return Err(Failure::bad_request(format!("pod {} does not have a host assigned", target.name)));
    }
    let to = PodPort {
        node: node.to_owned(),
        namespace: target.namespace.clone(),
        pod: target.name.clone(),
        pod_ip: pod["status"]["podIP"].as_str().and_then(|ip| ip.parse().ok()),
        port: 0,
    };
    let api = api.clone();
    let serve = move |io: Connection| async move {
        let stop = api.stopping.clone();
        portforward::serve(io, to, api.nodes.clone(), stop).await;
    };
    if names(&parts.headers, "upgrade", "websocket") {
        let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &())
            .await
            .map_err(|e| Failure::bad_request(format!("unable to upgrade: {e}")))?;
        if !names(&parts.headers, "sec-websocket-protocol", TUNNELLED) {
            return Err(Failure::bad_request(format!("unable to upgrade: the server speaks {TUNNELLED} here")));
        }
        return Ok(upgrade.protocols([TUNNELLED]).on_upgrade(|socket| async move {
            let (near, far) = tokio::io::duplex(PIPE);
            tokio::join!(carry(socket, far), serve(Box::new(near)));
        }));
    }
    if parts.headers.contains_key(STREAM_VERSION) && !names(&parts.headers, STREAM_VERSION, PORT_FORWARD) {
        return Err(Failure::bad_request(format!("unable to upgrade: the server speaks {PORT_FORWARD} here")));
    }
    let (response, upgrade) = spdy_upgrade(&mut parts, PORT_FORWARD)?;
    tokio::spawn(async move {
        if let Some(io) = upgrade.await {
            serve(io).await;
        }
    });
    Ok(response)
}

/// Answers that the connection changes to SPDY/3.1 with `version` inside; the connection once it has.
fn spdy_upgrade(
    parts: &mut Parts,
    version: &'static str,
) -> Result<(Response, impl Future<Output = Option<Connection>> + Send + use<>), Failure> {
    if !names(&parts.headers, "upgrade", SPDY) {
        return Err(Failure::bad_request(
            "unable to upgrade: missing upgrade headers in request: \"Upgrade: SPDY/3.1\" or a WebSocket",
        ));
    }
    let Some(upgrade) = parts.extensions.remove::<OnUpgrade>() else {
        return Err(Failure::bad_request("unable to upgrade: this connection cannot be upgraded"));
    };
    let response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, SPDY)
        .header(STREAM_VERSION, version)
        .body(Body::empty())
        .map_err(Failure::internal)?;
    let upgraded = async move {
        match upgrade.await {
            Ok(upgraded) => Some(Box::new(TokioIo::new(upgraded)) as Connection),
            Err(error) => {
                tracing::debug!(%error, "a client asked for SPDY and hung up");
                None
            }
        }
    };
    Ok((response, upgraded))
}

/// The header lists the word.
fn names(headers: &HeaderMap, header: &str, word: &str) -> bool {
    headers
        .get_all(header)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .any(|v| v.trim().eq_ignore_ascii_case(word))
}

/// Makes a byte stream of a WebSocket's binary messages, until either side ends.
async fn carry(socket: WebSocket, pipe: impl AsyncRead + AsyncWrite) {
    let (mut to_client, mut from_client) = socket.split();
    let (mut reader, mut writer) = tokio::io::split(pipe);
    let inwards = async {
        while let Some(Ok(message)) = from_client.next().await {
            match message {
                Message::Binary(bytes) if writer.write_all(&bytes).await.is_err() => break,
                Message::Close(_) => break,
                _ => {}
            }
        }
        let _ = writer.shutdown().await;
    };
    let outwards = async {
        let mut buffer = vec![0; PIPE];
        while let Ok(n) = reader.read(&mut buffer).await {
            if n == 0 || to_client.send(Message::Binary(Bytes::copy_from_slice(&buffer[..n]))).await.is_err() {
                break;
            }
        }
        let _ = to_client.close().await;
    };
    tokio::join!(inwards, outwards);
}
