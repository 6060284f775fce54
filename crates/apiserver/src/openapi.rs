//! OpenAPI documents, made from [`crate::kinds`] and [`crate::schema`] when somebody first asks for one: version 3 by group
//! for today's clients, version 2 for older ones (as the protobuf they want, or JSON). Kept compressed; nothing of it stays
//! in memory otherwise.

mod document;
mod proto;
mod words;

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    sync::{LazyLock, Mutex, PoisonError},
};

use axum::{
    Router,
    body::Body,
    extract::{Path, RawQuery},
    http::{HeaderMap, HeaderValue, Response, StatusCode, header},
    routing::get,
};
use bytes::Bytes;
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::kinds;

/// Old clients ask for it with `v2@v1.0`, which is no media type to Go's parser: the answer always has the dot.
const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// Routes `/openapi/v2`, `/openapi/v3` and `/openapi/v3/...`. Merge it into the main router.
pub fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new()
        .route("/openapi/v2", get(|headers: HeaderMap| async move { v2(&headers) }))
        .route("/openapi/v3", get(|| async { v3_index() }))
        .route(
            "/openapi/v3/{*path}",
            get(|Path(path): Path<String>, RawQuery(query): RawQuery, headers: HeaderMap| async move {
                v3(&path, query.as_deref().unwrap_or_default(), &headers)
            }),
        )
}

/// A finished document: gzip, and the start of its SHA-256 in hexadecimal.
#[derive(Clone)]
struct Document {
    gzip: Bytes,
    hash: String,
}

/// The path of a group and version: `api/v1`, `apis/apps/v1`. Anything else names no document.
fn paths() -> &'static BTreeMap<String, (&'static str, &'static str)> {
    static PATHS: LazyLock<BTreeMap<String, (&'static str, &'static str)>> = LazyLock::new(|| {
        let path = |k: &kinds::Kind| {
            if k.group.is_empty() { format!("api/{}", k.version) } else { format!("apis/{}", k.api_version()) }
        };
        kinds::all().iter().map(|k| (path(k), (k.group, k.version))).collect()
    });
    &PATHS
}

/// Documents that were asked for, by path; `v2` and `v2.proto` are version 2's.
static MADE: Mutex<BTreeMap<String, Document>> = Mutex::new(BTreeMap::new());

fn made(name: &str) -> Option<Document> {
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(document) = made.get(name) {
        return Some(document.clone());
    }
    let plain = match name {
        "v2" => document::v2().to_string().into_bytes(),
        "v2.proto" => proto::document(&document::v2()),
        path => {
            let (group, version) = paths().get(path)?;
            document::v3(group, version).to_string().into_bytes()
        }
    };
    let hash: String = Sha256::digest(&plain).iter().take(16).map(|b| format!("{b:02X}")).collect();
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    // Writing to memory does not fail.
    let gzip = encoder.write_all(&plain).and_then(|()| encoder.finish()).unwrap_or_default();
    let document = Document { gzip: gzip.into(), hash };
    made.insert(name.to_owned(), document.clone());
    Some(document)
}

fn v2(headers: &HeaderMap) -> Response<Body> {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let wants_protobuf = accept.replace('@', ".").contains("proto-openapi.spec.v2.v1.0+protobuf");
    let (name, content_type) = if wants_protobuf { ("v2.proto", V2_PROTOBUF) } else { ("v2", "application/json") };
    match made(name) {
        Some(document) => respond(&document, content_type, headers, false),
        None => not_found(),
    }
}

fn v3_index() -> Response<Body> {
    let mut index = Map::new();
    for path in paths().keys() {
        if let Some(document) = made(path) {
            let url = format!("/openapi/v3/{path}?hash={}", document.hash);
            index.insert(path.clone(), json!({"serverRelativeURL": url}));
        }
    }
    let body = json!({"paths": Value::Object(index)}).to_string();
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn v3(path: &str, query: &str, headers: &HeaderMap) -> Response<Body> {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let takes_json = accept.is_empty()
        || accept
            .split(',')
            .any(|m| matches!(m.split(';').next().map(str::trim), Some("application/json" | "*/*" | "application/*")));
    if !takes_json {
        let mut response = Response::new(Body::from("only application/json is served here\n"));
        *response.status_mut() = StatusCode::NOT_ACCEPTABLE;
        return response;
    }
    match made(path) {
        Some(document) if paths().contains_key(path) => {
            let hash = query.split('&').find_map(|p| p.strip_prefix("hash="));
            respond(&document, "application/json", headers, hash == Some(document.hash.as_str()))
        }
        _ => not_found(),
    }
}

fn not_found() -> Response<Body> {
    let mut response = Response::new(Body::from("404 page not found\n"));
    *response.status_mut() = StatusCode::NOT_FOUND;
    response
}

/// `forever`: the address carries the document's hash, so it never changes.
fn respond(document: &Document, content_type: &'static str, headers: &HeaderMap, forever: bool) -> Response<Body> {
    let etag = format!("\"{}\"", document.hash);
    let known = headers.get(header::IF_NONE_MATCH).and_then(|v| v.to_str().ok()).is_some_and(|v| v.contains(&etag));
    let mut response = Response::new(Body::empty());
    let out = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&etag) {
        out.insert(header::ETAG, value);
    }
    out.insert(header::VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
    if forever {
        out.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, immutable, max-age=31536000"));
    }
    // On "not modified" too: a client's cache takes over the headers.
    out.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    if known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return response;
    }
    let gzip = headers.get(header::ACCEPT_ENCODING).and_then(|v| v.to_str().ok()).is_some_and(|v| v.contains("gzip"));
    if gzip {
        response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        *response.body_mut() = Body::from(document.gzip.clone());
        return response;
    }
    let mut plain = Vec::new();
    // What was compressed above decompresses.
    if GzDecoder::new(document.gzip.as_ref()).read_to_end(&mut plain).is_err() {
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    }
    *response.body_mut() = Body::from(plain);
    response
}

#[cfg(test)]
mod tests;
