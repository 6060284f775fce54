//! `/metrics`, `/health`, `/ready` and `/debug` over HTTP, with the meaning that CoreDNS gives them. A few fixed
//! pages need no framework: one request per connection.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::Shared;

const PATIENCE: Duration = Duration::from_secs(5);
const MAX_HEAD: u64 = 16 << 10;
const TEXT: &str = "text/plain; charset=utf-8";
const MAX_CONNECTIONS: usize = 64;

/// Answers until `stop`.
pub async fn serve(shared: Arc<Shared>, listener: TcpListener, stop: CancellationToken) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let shared = shared.clone();
                    tokio::spawn(async move {
                        // A client that is slow or speaks something else is let go.
                        let _ = timeout(PATIENCE, page(&shared, stream)).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection for metrics");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            () = stop.cancelled() => return,
        }
    }
}

/// Says of each kind whether it has been listed.
fn ready(shared: &Shared) -> (&'static str, &'static str, String) {
    let directory = shared.directory.load();
    let stale = shared.stale.load(Ordering::Relaxed);
    let mut body = match (directory.unlisted(), stale) {
        (None, false) => "OK\n".to_owned(),
        (None, true) => "OK, from the last state on disk\n".to_owned(),
        (Some(kind), _) => format!("waiting for the list of {kind:?} objects\n"),
    };
    for (kind, listed) in directory.listed() {
        let state = if stale {
            "stale"
        } else if listed {
            "listed"
        } else {
            "waiting"
        };
        body.push_str(&format!("{kind:?}: {state}\n"));
    }
    let status = if directory.unlisted().is_none() { "200 OK" } else { "503 Service Unavailable" };
    (status, TEXT, body)
}

async fn page(shared: &Shared, mut stream: TcpStream) -> std::io::Result<()> {
    let (read, mut write) = stream.split();
    let mut head = BufReader::new(read.take(MAX_HEAD));
    let mut request = String::new();
    head.read_line(&mut request).await?;
    let mut line = String::new();
    while head.read_line(&mut line).await? > 2 {
        line.clear();
    }
    let mut words = request.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = path.split('?').next().unwrap_or_default();
    let (status, kind, body) = match (method, path) {
        ("GET" | "HEAD", "/metrics") => {
            ("200 OK", "application/openmetrics-text; version=1.0.0; charset=utf-8", shared.metrics.text())
        }
        ("GET" | "HEAD", "/health") => ("200 OK", TEXT, "OK".to_owned()),
        ("GET" | "HEAD", "/ready") => ready(shared),
        ("GET" | "HEAD", "/debug") => ("200 OK", TEXT, shared.sources.report()),
        ("GET" | "HEAD", _) => ("404 Not Found", TEXT, "there are /metrics, /health, /ready and /debug\n".to_owned()),
        _ => ("405 Method Not Allowed", TEXT, "only GET and HEAD\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    write.write_all(head.as_bytes()).await?;
    if method != "HEAD" {
        write.write_all(body.as_bytes()).await?;
    }
    write.shutdown().await
}
