//! The admin socket: how other `portolan` commands ask a running one what it really holds. A Unix socket in the run
//! directory, so that nothing is opened on the network and the file's mode (0600) is the permission.

use std::{
    io::{ErrorKind, Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::Path,
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use model::Snapshot;
use tokio::{net::UnixListener, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    overview::{self, Place},
};

pub struct Facts {
    pub config: Config,
    pub snapshot: watch::Receiver<Arc<Snapshot>>,
    pub applied: watch::Receiver<u64>,
}

pub async fn serve(path: &Path, facts: Facts, stop: CancellationToken) -> Result<()> {
    // The data directory's lock says that nobody else lives here: a socket that is there was left by a killed run.
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).with_context(|| format!("{}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    let router = Router::new()
        .route("/services", get(services))
        .route("/debug/applied", get(applied))
        .with_state(Arc::new(facts));
    tokio::spawn(async move {
        let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await;
        if let Err(error) = served {
            tracing::warn!(%error, "the admin socket ended");
        }
    });
    Ok(())
}

async fn services(State(facts): State<Arc<Facts>>) -> Json<Vec<overview::Row>> {
    let snapshot = facts.snapshot.borrow().clone();
    Json(overview::rows(&snapshot, &place(&facts.config)))
}

/// The snapshot's revision and the one the kernel has taken in.
async fn applied(State(facts): State<Arc<Facts>>) -> Result<Json<serde_json::Value>, StatusCode> {
    let (snapshot, applied) = (facts.snapshot.borrow().revision, *facts.applied.borrow());
    Ok(Json(serde_json::json!({ "snapshot": snapshot, "applied": applied })))
}

pub fn place(config: &Config) -> Place<'_> {
    Place { domain: &config.options.cluster_domain, node_ip: config.node_ip.to_string() }
}

/// One GET to a running instance.
pub fn get_json<T: serde::de::DeserializeOwned>(socket: &Path, path: &str) -> Result<T> {
    let mut stream = UnixStream::connect(socket).map_err(|e| match e.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => anyhow::anyhow!(
            "nothing runs here ({}); start it with `portolan up`, or name its --run-dir",
            socket.display()
        ),
        ErrorKind::PermissionDenied => anyhow::anyhow!("only root may ask the running instance; repeat with sudo"),
        _ => anyhow::anyhow!("{}: {e}", socket.display()),
    })?;
    // HTTP/1.0: the answer ends where the connection ends.
    write!(stream, "GET {path} HTTP/1.0\r\nhost: portolan\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let split = answer.windows(4).position(|w| w == b"\r\n\r\n").context("the running instance sent no answer")?;
    let (head, body) = (&answer[..split], &answer[split + 4..]);
    if !head.starts_with(b"HTTP/1.0 200") && !head.starts_with(b"HTTP/1.1 200") {
        bail!("the running instance answered {}", String::from_utf8_lossy(head).lines().next().unwrap_or_default());
    }
    Ok(serde_json::from_slice(body)?)
}
