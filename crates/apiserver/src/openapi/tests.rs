use http_body_util::BodyExt;

use super::*;

async fn body(response: Response<Body>) -> Vec<u8> {
    response.into_body().collect().await.expect("body").to_bytes().to_vec()
}

fn accept(value: &str) -> HeaderMap {
    HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_str(value).expect("header"))])
}

/// Every reference of a document points into it.
fn assert_references(document: &Value, root: &Value) {
    match document {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get("$ref") {
                let pointer = reference.trim_start_matches('#').to_owned();
                assert!(root.pointer(&pointer).is_some(), "{reference}");
            }
            map.values().for_each(|v| assert_references(v, root));
        }
        Value::Array(list) => list.iter().for_each(|v| assert_references(v, root)),
        _ => {}
    }
}

#[tokio::test]
async fn seed_219_v3_of_every_group() {
    let index: Value = serde_json::from_slice(&body(v3_index()).await).expect("json");
    for (path, entry) in index["paths"].as_object().expect("paths") {
        let url = entry["serverRelativeURL"].as_str().expect("url");
        let (_, query) = url.split_once('?').expect("hash");
        let response = v3(path, query, &accept("application/json"));
        assert!(response.headers()[header::CACHE_CONTROL].to_str().expect("text").contains("immutable"));
        let document: Value = serde_json::from_slice(&body(response).await).expect("json");
        assert_eq!(document["openapi"], "3.0.0");
        assert_references(&document, &document);
    }
    let core: Value = serde_json::from_slice(&body(v3("api/v1", "", &HeaderMap::new())).await).expect("json");
    let schemas = &core["components"]["schemas"];
    assert_eq!(
        schemas["io.k8s.api.core.v1.Service"]["x-kubernetes-group-version-kind"],
        json!([{"group": "", "version": "v1", "kind": "Service"}])
    );
    assert_eq!(
        schemas["io.k8s.api.core.v1.ServiceSpec"]["properties"]["ports"]["x-kubernetes-patch-merge-key"],
        "port"
    );
    // What kubectl looks for before it trusts the server with validation and apply.
    let patch = &core["paths"]["/api/v1/namespaces/{namespace}/services/{name}"]["patch"];
    assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Service");
    for name in ["fieldValidation", "dryRun"] {
        assert!(patch["parameters"].as_array().expect("list").iter().any(|p| p["name"] == name && p["in"] == "query"));
    }
    assert!(patch["requestBody"]["content"]["application/strategic-merge-patch+json"].is_object());
    assert_eq!(v3("api/v9", "", &HeaderMap::new()).status(), StatusCode::NOT_FOUND);
    assert_eq!(v3("v2.proto", "", &HeaderMap::new()).status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn etags_and_compression() {
    let first = v3("apis/apps/v1", "", &HeaderMap::new());
    let etag = first.headers()[header::ETAG].clone();
    let again = v3("apis/apps/v1", "", &HeaderMap::from_iter([(header::IF_NONE_MATCH, etag)]));
    assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
    let gzip =
        v3("apis/apps/v1", "", &HeaderMap::from_iter([(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip"))]));
    assert_eq!(gzip.headers()[header::CONTENT_ENCODING], "gzip");
    let mut plain = Vec::new();
    GzDecoder::new(body(gzip).await.as_slice()).read_to_end(&mut plain).expect("gzip");
    assert_eq!(plain, body(first).await);
}

/// A decoder of its own, so that the encoder is not its own judge: fields of a message as (number, bytes or varint).
fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut out = 0;
        for shift in (0..).step_by(7) {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            out |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return out;
            }
        }
        out
    }
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        match tag & 7 {
            0 => out.push((tag >> 3, vec![varint(&mut bytes) as u8])),
            2 => {
                let length = varint(&mut bytes) as usize;
                out.push((tag >> 3, bytes[..length].to_vec()));
                bytes = &bytes[length..];
            }
            other => panic!("wire type {other}"),
        }
    }
    out
}

fn field(bytes: &[u8], number: u64) -> Vec<u8> {
    fields(bytes).into_iter().find(|(n, _)| *n == number).map(|(_, b)| b).unwrap_or_else(|| panic!("no field {number}"))
}

fn named(list: &[u8], field_number: u64, name: &str) -> Vec<u8> {
    fields(list)
        .into_iter()
        .filter(|(n, _)| *n == field_number)
        .find(|(_, entry)| field(entry, 1) == name.as_bytes())
        .map(|(_, entry)| field(&entry, 2))
        .unwrap_or_else(|| panic!("nothing named {name}"))
}

#[tokio::test]
async fn v2_protobuf_is_what_old_kubectl_reads() {
    let response = v2(&accept("application/com.github.proto-openapi.spec.v2@v1.0+protobuf"));
    assert_eq!(response.headers()[header::CONTENT_TYPE], V2_PROTOBUF);
    let document = body(response).await;
    assert_eq!(field(&document, 1), b"2.0");
    let definitions = field(&document, 9);
    let service = named(&definitions, 1, "io.k8s.api.core.v1.Service");
    let extension = named(&service, 31, "x-kubernetes-group-version-kind");
    assert_eq!(field(&extension, 2), br#"[{"group":"","kind":"Service","version":"v1"}]"#);
    let spec = named(&field(&service, 25), 1, "spec");
    assert_eq!(field(&spec, 1), b"#/definitions/io.k8s.api.core.v1.ServiceSpec");
    let spec = named(&definitions, 1, "io.k8s.api.core.v1.ServiceSpec");
    let ports = named(&field(&spec, 25), 1, "ports");
    assert_eq!(field(&field(&ports, 22), 1), b"array");
    assert_eq!(field(&field(&field(&ports, 23), 1), 1), b"#/definitions/io.k8s.api.core.v1.ServicePort");
    assert_eq!(field(&named(&ports, 31, "x-kubernetes-patch-merge-key"), 2), b"\"port\"");
    let path = named(&field(&document, 8), 2, "/api/v1/namespaces/{namespace}/services/{name}");
    let patch = field(&path, 8);
    let names: Vec<Vec<u8>> = fields(&patch)
        .into_iter()
        .filter(|(n, _)| *n == 8)
        .filter_map(|(_, p)| fields(&field(&p, 1)).into_iter().find(|(n, _)| *n == 2).map(|(_, b)| b))
        .map(|non_body| field(&field(&non_body, 3), 4))
        .collect();
    assert!(names.iter().any(|n| n == b"dryRun"));
    // The same as JSON.
    let plain: Value = serde_json::from_slice(&body(v2(&accept("application/json"))).await).expect("json");
    assert_references(&plain, &plain);
    assert_eq!(plain["definitions"].as_object().map(serde_json::Map::len), Some(fields(&definitions).len()));
}
