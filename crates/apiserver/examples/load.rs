//! What the API server costs: creates with 8 writers, a list, resident memory, and opening again after a kill.
//! `cargo run -p portolan-apiserver --profile quick --example load DIR [SERVICES]`

use std::time::{Duration, Instant};

use axum::{Router, body::Body};
use http::Request;
use http_body_util::BodyExt;
use portolan_apiserver::{ApiServer, Config};
use serde_json::{Value, json};
use tower::ServiceExt;

const WRITERS: usize = 8;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let Some(dir) = args.next() else { return Err("usage: load DIR [SERVICES]".into()) };
    let count: usize = args.next().map_or(Ok(10_000), |n| n.parse())?;

    let start = Instant::now();
    let server = ApiServer::open(Config::new(&dir)).await?;
    println!("open: {:?} at revision {}", start.elapsed(), server.revision());
    let router = server.trusted("load");

    let start = Instant::now();
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let router = router.clone();
        writers.push(tokio::spawn(async move {
            let mut slowest = Duration::ZERO;
            for i in (writer..count).step_by(WRITERS) {
                for (path, object) in [
                    ("/api/v1/namespaces/default/services", service(i)),
                    ("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", slice(i)),
                ] {
                    let start = Instant::now();
                    post(&router, path, &object).await;
                    slowest = slowest.max(start.elapsed());
                }
            }
            slowest
        }));
    }
    let mut slowest = Duration::ZERO;
    for writer in writers {
        slowest = slowest.max(writer.await?);
    }
    let took = start.elapsed();
    let rate = (2 * count) as f64 / took.as_secs_f64();
    println!("{count} Services and their slices: {took:?}, {rate:.0} creates/s, slowest {slowest:?}");

    let start = Instant::now();
    let response = router.clone().oneshot(Request::get("/api/v1/services").body(Body::empty())?).await?;
    let bytes = response.into_body().collect().await?.to_bytes().len();
    println!("list of all Services: {:?}, {bytes} bytes", start.elapsed());

    let start = Instant::now();
    post(&router, "/api/v1/namespaces/default/services", &service(count)).await;
    println!("one create: {:?}", start.elapsed());
    let status = std::fs::read_to_string("/proc/self/status")?;
    println!("{}", status.lines().find(|l| l.starts_with("VmRSS")).unwrap_or(""));
    println!("state.redb: {} KiB", std::fs::metadata(format!("{dir}/state.redb"))?.len() / 1024);
    drop(router);
    // Not closed: the next open repairs, as after a kill -9.
    std::process::abort();
}

async fn post(router: &Router, path: &str, object: &Value) {
    let request = Request::post(path).header("content-type", "application/json").body(Body::from(object.to_string()));
    let response = match request {
        Ok(request) => router.clone().oneshot(request).await.unwrap_or_else(|never| match never {}),
        Err(error) => return eprintln!("{error}"),
    };
    if response.status() != 201 {
        eprintln!("{path}: {}", response.status());
    }
}

fn service(i: usize) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("svc-{i:05}"), "labels": {"app": format!("app-{i}")}},
        "spec": {"selector": {"app": format!("app-{i}")}, "ports": [{"port": 80, "targetPort": 8080}]}})
}

fn slice(i: usize) -> Value {
    let endpoints: Vec<Value> = (0..3)
        .map(|e| {
            let n = i * 3 + e;
            json!({"addresses": [format!("10.{}.{}.{}", 128 + n / 65_536, n / 256 % 256, n % 256)], "nodeName": "node-1",
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "targetRef": {"kind": "Pod", "namespace": "default", "name": format!("pod-{n}"), "uid": format!("{n:036}")}})
        })
        .collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": format!("svc-{i:05}-abcde"), "labels": {"kubernetes.io/service-name": format!("svc-{i:05}")}},
        "endpoints": endpoints, "ports": [{"port": 8080, "protocol": "TCP", "name": ""}]})
}
