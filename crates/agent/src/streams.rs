//! Programs' streams over HTTP: `POST /exec|/attach/{namespace}/{pod}/{container}` with kubelet's parameters. The bodies
//! of request and answer carry [`crate::shim::frame`]s in both directions at the same time.

use std::{io, sync::Arc};

use axum::{
    Router,
    body::Body,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use futures::StreamExt;
use tokio::{io::AsyncWriteExt, net::UnixStream};
use tokio_util::io::ReaderStream;

use crate::{
    Pods,
    container::{Container, Runtime},
    logs::refuse,
    shim::frame::Request,
};

const BUFFER: usize = 32 << 10;

#[derive(Clone)]
struct Node {
    pods: Arc<Pods>,
    runtime: Arc<Runtime>,
}

type Whose = Path<(String, String, String)>;

pub fn router(pods: Arc<Pods>, runtime: Arc<Runtime>) -> Router {
    Router::new()
        .route("/exec/{namespace}/{pod}/{container}", post(exec))
        .route("/attach/{namespace}/{pod}/{container}", post(attach))
        .with_state(Node { pods, runtime })
}

async fn exec(
    State(node): State<Node>,
    path: Whose,
    Query(query): Query<Vec<(String, String)>>,
    body: Body,
) -> Response {
    let request = request(&query);
    if request.args.is_empty() {
        return refuse(StatusCode::BAD_REQUEST, "BadRequest", "you must specify at least one command".into());
    }
    match node.running(&path) {
        Ok(container) => carry(node.runtime.stream(&container, &request).await, body),
        Err(refusal) => refusal,
    }
}

async fn attach(
    State(node): State<Node>,
    path: Whose,
    Query(query): Query<Vec<(String, String)>>,
    body: Body,
) -> Response {
    let container = match node.running(&path) {
        Ok(container) => container,
        Err(refusal) => return refusal,
    };
    let request = Request { args: Vec::new(), ..request(&query) };
    let refuse = |message: String| refuse(StatusCode::BAD_REQUEST, "BadRequest", message);
    let name = &container.meta.name;
    if request.tty && !container.meta.tty {
        return refuse(format!("container {name} did not allocate a terminal: set tty: true, or attach without one"));
    }
    if request.stdin && !container.meta.stdin {
        return refuse(format!("container {name} keeps no input open: set stdin: true, or attach without it"));
    }
    carry(node.runtime.attach(&container, &request).await, body)
}

impl Node {
    #[expect(clippy::result_large_err, reason = "an answer, not an error that travels")]
    fn running(&self, Path((namespace, pod, container)): &Whose) -> Result<Arc<Container>, Response> {
        let refuse = |message| Err(refuse(StatusCode::NOT_FOUND, "NotFound", message));
        let Some(task) = self.pods.find(namespace, pod) else { return refuse(format!("pods {pod:?} not found")) };
        let live = task.read(|s| s.slots.iter().find(|s| s.name == *container).and_then(|s| s.live.clone()));
        live.map_or_else(|| refuse(format!("container not found ({container:?}): it is not running")), Ok)
    }
}

fn request(query: &[(String, String)]) -> Request {
    let flag = |name: &str| query.iter().any(|(n, v)| n == name && matches!(v.as_str(), "1" | "true"));
    Request {
        args: query.iter().filter(|(n, _)| n == "command").map(|(_, v)| v.clone()).collect(),
        stdin: flag("input"),
        stdout: flag("output"),
        stderr: flag("error"),
        tty: flag("tty"),
    }
}

/// The request's body to the program, and what it says as the answer's.
fn carry(socket: io::Result<UnixStream>, body: Body) -> Response {
    let socket = match socket {
        Ok(socket) => socket,
        Err(e) => {
            let message = format!("cannot reach the container's shim: {e}");
            return refuse(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message);
        }
    };
    let (reader, mut writer) = socket.into_split();
    tokio::spawn(async move {
        let mut chunks = body.into_data_stream();
        while let Some(Ok(chunk)) = chunks.next().await {
            if writer.write_all(&chunk).await.is_err() {
                return;
            }
        }
        let _ = writer.shutdown().await;
    });
    Body::from_stream(ReaderStream::with_capacity(reader, BUFFER)).into_response()
}
