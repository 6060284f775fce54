//! An OCI registry on loopback with one image whose layer is this test program.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::json;
use sha2::{Digest, Sha256};

type Blobs = Arc<HashMap<String, (&'static str, Vec<u8>)>>;

fn digest(bytes: &[u8]) -> String {
    let hash: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hash}")
}

/// Serves `library/app:1`, a manifest list; its entrypoint is `/app`. The tag `broken` names a layer that lies.
pub async fn start(program: &[u8]) -> SocketAddr {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, mode: u32, data: &[u8]| {
        let mut h = tar::Header::new_gnu();
        h.set_size(data.len() as u64);
        h.set_mode(mode);
        h.set_cksum();
        tar.append_data(&mut h, name, data).expect("tar");
    };
    add("app", 0o755, program);
    add("etc/passwd", 0o644, b"root:x:0:0::/root:/bin/sh\nweb:x:101:102::/:/bin/sh\n");
    let plain = tar.into_inner().expect("tar");
    let layer = zstd::encode_all(&plain[..], 1).expect("zstd");
    let mut blobs = HashMap::new();
    let mut put = |kind, bytes: Vec<u8>| {
        let d = digest(&bytes);
        let size = bytes.len();
        blobs.insert(d.clone(), (kind, bytes));
        (d, size)
    };
    let (layer_digest, layer_size) = put("application/octet-stream", layer);
    let mut image = |diff: String| {
        let config = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [diff]},
            "config": {"Entrypoint": ["/app"], "Cmd": ["echo"], "Env": ["PATH=/", "FROM=image"], "WorkingDir": "/etc"}});
        let (config_digest, config_size) = put("application/json", config.to_string().into_bytes());
        let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest, "size": config_size},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+zstd", "digest": layer_digest, "size": layer_size}]});
        let (manifest_digest, manifest_size) =
            put("application/vnd.oci.image.manifest.v1+json", manifest.to_string().into_bytes());
        let platform = |arch| {
            json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest_digest,
            "size": manifest_size, "platform": {"architecture": arch, "os": "linux"}})
        };
        json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [platform("amd64"), platform("arm64")]})
        .to_string()
        .into_bytes()
    };
    let good = image(digest(&plain));
    let bad = image(digest(b"something else"));
    let index = "application/vnd.oci.image.index.v1+json";
    for list in [&good, &bad] {
        blobs.insert(digest(list), (index, list.clone()));
    }
    blobs.insert("1".into(), (index, good));
    blobs.insert("broken".into(), (index, bad));
    let app = Router::new()
        .route("/v2/", get(|| async { "{}" }))
        .route("/v2/library/app/manifests/{name}", get(serve))
        .route("/v2/library/app/blobs/{name}", get(serve))
        .with_state(Arc::new(blobs));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

async fn serve(State(blobs): State<Blobs>, Path(name): Path<String>) -> Response {
    match blobs.get(&name) {
        Some((kind, bytes)) => (
            [(header::CONTENT_TYPE, *kind), (header::HeaderName::from_static("docker-content-digest"), &digest(bytes))],
            bytes.clone(),
        )
            .into_response(),
        None => {
            let body = json!({"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown", "detail": {}}]});
            (StatusCode::NOT_FOUND, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
        }
    }
}
