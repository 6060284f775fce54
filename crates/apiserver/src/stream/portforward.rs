//! Port-forward over a session: a client opens two streams for each connection, one for its bytes and one for what went
//! wrong with it, and pairs them by a request number.

use std::{collections::HashMap, sync::Arc};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Connection, PodPort,
    spdy::{Session, Stream},
};
use crate::NodeDialer;

/// Halves that wait for their other half.
const MAX_UNPAIRED: usize = 1_000;
const BUFFER: usize = 32 << 10;

#[derive(Default)]
struct Pair {
    data: Option<Stream>,
    error: Option<Stream>,
}

/// Serves until the client or the server ends the session.
pub(super) async fn serve(io: Connection, to: PodPort, nodes: Arc<dyn NodeDialer>, stop: CancellationToken) {
    let mut session = Session::start(io, stop);
    let mut unpaired: HashMap<String, Pair> = HashMap::new();
    let forwards = TaskTracker::new();
    while let Some(stream) = session.accept().await {
        let id = request_id(&stream);
        let pair = unpaired.entry(id.clone()).or_default();
        match stream.header("streamtype") {
            "data" => pair.data = Some(stream),
            "error" => pair.error = Some(stream),
            other => tracing::debug!(streamtype = other, "a port-forward stream of unknown type"),
        }
        if let Some(Pair { data: Some(data), error: Some(error) }) = unpaired.remove(&id).and_then(|pair| {
            if pair.data.is_some() && pair.error.is_some() {
                return Some(pair);
            }
            unpaired.insert(id, pair);
            None
        }) {
            forwards.spawn(forward(data, error, to.clone(), nodes.clone()));
        }
        if unpaired.len() > MAX_UNPAIRED {
            break;
        }
    }
    forwards.close();
    forwards.wait().await;
}

/// Clients before 1.4 send none: their data stream is the one after its error stream.
fn request_id(stream: &Stream) -> String {
    match stream.header("requestid") {
        "" if stream.header("streamtype") == "data" => format!("#{}", stream.id.saturating_sub(2)),
        "" => format!("#{}", stream.id),
        given => given.to_owned(),
    }
}

async fn forward(data: Stream, error: Stream, mut to: PodPort, nodes: Arc<dyn NodeDialer>) {
    let port = data.header("port").to_owned();
    let connected = match port.parse() {
        Ok(port) if port > 0 => {
            to.port = port;
            nodes.connect(to.clone()).await
        }
        _ => Err(format!("unable to parse port {port:?}")),
    };
    match connected {
        Ok(pod) => {
            let gone = data.gone.clone();
            tokio::select! {
                () = pump(data, pod) => {}
                () = gone.cancelled() => {}
            }
            error.send(b"", true).await;
        }
        Err(why) => {
            let text = format!("error forwarding port {port} to pod {}/{}: {why}", to.namespace, to.pod);
            error.send(text.as_bytes(), true).await;
            data.send(b"", true).await;
        }
    }
}

/// Bytes in both directions, each until its own end.
async fn pump(mut data: Stream, pod: Connection) {
    let (mut from_pod, mut to_pod) = tokio::io::split(pod);
    let mut input = std::mem::replace(&mut data.input, tokio::sync::mpsc::channel(1).1);
    let inwards = async {
        while let Some(bytes) = input.recv().await {
            if to_pod.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = to_pod.shutdown().await;
    };
    let outwards = async {
        let mut buffer = vec![0; BUFFER];
        while let Ok(n @ 1..) = from_pod.read(&mut buffer).await {
            if !data.send(&buffer[..n], false).await {
                return;
            }
        }
        data.send(b"", true).await;
    };
    tokio::join!(inwards, outwards);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        NoNodes,
        stream::spdy::tests::{Client, read_frame},
    };

    fn to(address: std::net::IpAddr) -> PodPort {
        PodPort { node: "n".into(), namespace: "default".into(), pod: "web".into(), pod_ip: Some(address), port: 0 }
    }

    /// The bytes of one stream, once both of the pair have ended.
    async fn outcome(io: &mut (impl tokio::io::AsyncRead + Unpin), data: u32, error: u32) -> (Vec<u8>, Vec<u8>) {
        let mut streams: HashMap<u32, (Vec<u8>, bool)> = HashMap::new();
        while !(streams.get(&data).is_some_and(|s| s.1) && streams.get(&error).is_some_and(|s| s.1)) {
            let (id, flags, body) = read_frame(io).await.expect("frame");
            if id & 0x8000_0000 == 0 {
                let stream = streams.entry(id).or_default();
                stream.0.extend_from_slice(&body);
                stream.1 |= flags & 1 != 0;
            }
        }
        (streams.remove(&data).expect("data").0, streams.remove(&error).expect("error").0)
    }

    #[tokio::test]
    async fn connections_reach_the_pod_side_by_side_and_refusals_are_told() {
        let pod = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let port = pod.local_addr().expect("address").port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = pod.accept().await {
                tokio::spawn(async move {
                    let (mut reader, mut writer) = stream.split();
                    let _ = tokio::io::copy(&mut reader, &mut writer).await;
                });
            }
        });
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let address = "127.0.0.1".parse().expect("address");
        tokio::spawn(serve(Box::new(server), to(address), Arc::new(NoNodes), CancellationToken::new()));
        let mut spdy = Client::new();
        let port = port.to_string();
        let mut open = |id: u32, kind: &str, request: &str, port: &str| {
            spdy.open(id, &[("streamtype", kind), ("port", port), ("requestid", request)])
        };
        for frame in [
            open(1, "error", "0", &port),
            open(3, "error", "1", &port),
            open(5, "data", "1", &port),
            open(7, "data", "0", &port),
            Client::data(5, &[b'x'; 100_000], true),
            Client::data(7, b"hello", true),
        ] {
            client.write_all(&frame).await.expect("write");
        }
        let (mut reader, mut writer) = tokio::io::split(client);
        let mut all: HashMap<u32, Vec<u8>> = HashMap::new();
        let mut ended = 0;
        while ended < 4 {
            let (id, flags, body) = read_frame(&mut reader).await.expect("frame");
            if id & 0x8000_0000 == 0 {
                all.entry(id).or_default().extend_from_slice(&body);
                ended += u32::from(flags & 1);
            }
        }
        assert_eq!(all[&7], b"hello");
        assert_eq!(all[&5].len(), 100_000);
        assert!(all[&1].is_empty() && all[&3].is_empty());

        for frame in [open(9, "error", "2", "0"), open(11, "data", "2", "0")] {
            writer.write_all(&frame).await.expect("write");
        }
        let (data, error) = outcome(&mut reader, 11, 9).await;
        assert!(data.is_empty());
        assert_eq!(
            String::from_utf8_lossy(&error),
            "error forwarding port 0 to pod default/web: unable to parse port \"0\""
        );
    }
}
