//! What this server serves, as clients ask before anything else: `/api`, `/apis`, the resources of a group, the aggregated
//! form of both (KEP-3352) and `/version`. Everything follows from [`crate::kinds`].

use std::sync::LazyLock;

use axum::{
    Router,
    body::Body,
    extract::Path,
    http::{HeaderMap, HeaderValue, Response, StatusCode, header},
    routing::get,
};
use bytes::Bytes;
use serde_json::{Value, json};

use crate::kinds::{self, Kind};

/// The Kubernetes version whose API is served.
pub const GIT_VERSION: &str = concat!("v1.36.0+portolan.", env!("CARGO_PKG_VERSION"));

/// Routes `/api`, `/apis`, `/api/v1`, `/apis/{group}`, `/apis/{group}/{version}` and `/version`. Merge it into the main router.
pub fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new()
        .route("/api", get(|headers: HeaderMap| async move { root(&headers, true) }))
        .route("/api/", get(|headers: HeaderMap| async move { root(&headers, true) }))
        .route("/apis", get(|headers: HeaderMap| async move { root(&headers, false) }))
        .route("/apis/", get(|headers: HeaderMap| async move { root(&headers, false) }))
        .route("/api/v1", get(|| async { found(resource_list("", "v1")) }))
        .route("/apis/{group}", get(|Path(group): Path<String>| async move { found(api_group(&group)) }))
        .route(
            "/apis/{group}/{version}",
            get(|Path((group, version)): Path<(String, String)>| async move { found(resource_list(&group, &version)) }),
        )
        .route("/version", get(|| async { found(Some(version())) }))
}

/// The answer of `/version`.
pub fn version() -> Value {
    json!({
        "major": "1",
        "minor": "36",
        "gitVersion": GIT_VERSION,
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "2026-11-21T00:00:00Z",
        "goVersion": "none",
        "compiler": "rustc",
        "platform": "linux/amd64",
    })
}

fn found(value: Option<Value>) -> Response<Body> {
    match value {
        Some(value) => respond(Bytes::from(value.to_string()), "application/json"),
        None => {
            let mut response = Response::new(Body::from("404 page not found\n"));
            *response.status_mut() = StatusCode::NOT_FOUND;
            response
        }
    }
}

fn respond(body: Bytes, content_type: &str) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    if let Ok(value) = HeaderValue::from_str(content_type) {
        response.headers_mut().insert(header::CONTENT_TYPE, value);
    }
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}

static CORE_V2: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(aggregated(true, "v2").to_string()));
static GROUPS_V2: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(aggregated(false, "v2").to_string()));

fn root(headers: &HeaderMap, core: bool) -> Response<Body> {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    match aggregated_version(accept) {
        Some("v2") => {
            let body = if core { CORE_V2.clone() } else { GROUPS_V2.clone() };
            respond(body, "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")
        }
        Some(version) => respond(
            Bytes::from(aggregated(core, version).to_string()),
            &format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList"),
        ),
        None if core => found(Some(json!({
            "kind": "APIVersions",
            "versions": ["v1"],
            "serverAddressByClientCIDRs": [],
        }))),
        None => found(Some(json!({
            "kind": "APIGroupList",
            "apiVersion": "v1",
            "groups": groups().into_iter().filter(|g| !g.is_empty()).filter_map(api_group).collect::<Vec<_>>(),
        }))),
    }
}

/// The first form of the list the client accepts: `None` is the classic one.
fn aggregated_version(accept: &str) -> Option<&'static str> {
    for media in accept.split(',') {
        let mut parts = media.split(';').map(str::trim);
        if !matches!(parts.next(), Some("application/json" | "*/*" | "application/*")) {
            continue;
        }
        let (mut group, mut version, mut form) = ("", "", "");
        for part in parts {
            match part.split_once('=') {
                Some(("g", v)) => group = v,
                Some(("v", v)) => version = v,
                Some(("as", v)) => form = v,
                _ => {}
            }
        }
        match (group, version, form) {
            ("apidiscovery.k8s.io", "v2", "APIGroupDiscoveryList") => return Some("v2"),
            ("apidiscovery.k8s.io", "v2beta1", "APIGroupDiscoveryList") => return Some("v2beta1"),
            (_, _, "") => return None,
            _ => {}
        }
    }
    None
}

/// Groups in the table's order.
fn groups() -> Vec<&'static str> {
    let mut out: Vec<&'static str> = Vec::new();
    for kind in kinds::all() {
        if !out.contains(&kind.group) {
            out.push(kind.group);
        }
    }
    out
}

fn versions(group: &str) -> Vec<&'static Kind> {
    let mut out: Vec<&'static Kind> = Vec::new();
    for kind in kinds::all().iter().filter(|k| k.group == group) {
        if !out.iter().any(|k| k.version == kind.version) {
            out.push(kind);
        }
    }
    out
}

fn api_group(group: &str) -> Option<Value> {
    let versions: Vec<Value> =
        versions(group).iter().map(|k| json!({"groupVersion": k.api_version(), "version": k.version})).collect();
    let preferred = versions.first()?.clone();
    (!group.is_empty()).then(|| {
        json!({"kind": "APIGroup", "apiVersion": "v1", "name": group, "versions": versions, "preferredVersion": preferred})
    })
}

/// A subresource with the body's group and version ("" when they are the parent's), for both forms.
struct Sub {
    name: &'static str,
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    verbs: &'static [&'static str],
}

fn subresources(kind: &Kind) -> Vec<Sub> {
    const GET_PATCH_UPDATE: &[&str] = &["get", "patch", "update"];
    let mut out: Vec<Sub> = kind
        .subresources
        .iter()
        .map(|s| Sub { name: s.name, group: s.group, version: s.version, kind: s.kind, verbs: s.verbs })
        .collect();
    if kind.scale.is_some() {
        out.push(Sub { name: "scale", group: "autoscaling", version: "v1", kind: "Scale", verbs: GET_PATCH_UPDATE });
    }
    if kind.has_status {
        out.push(Sub { name: "status", group: "", version: "", kind: kind.kind, verbs: GET_PATCH_UPDATE });
    }
    out.sort_by_key(|s| s.name);
    out
}

fn resource_list(group: &str, version: &str) -> Option<Value> {
    let mut resources = Vec::new();
    let mut group_version = None;
    for kind in kinds::all().iter().filter(|k| k.group == group && k.version == version) {
        group_version = Some(kind.api_version());
        let mut resource = json!({
            "name": kind.plural,
            "singularName": kind.singular,
            "namespaced": kind.namespaced,
            "kind": kind.kind,
            "verbs": kind.verbs,
        });
        if !kind.short_names.is_empty() {
            resource["shortNames"] = json!(kind.short_names);
        }
        if !kind.categories.is_empty() {
            resource["categories"] = json!(kind.categories);
        }
        resources.push(resource);
        for sub in subresources(kind) {
            let mut resource = json!({
                "name": format!("{}/{}", kind.plural, sub.name),
                "singularName": "",
                "namespaced": kind.namespaced,
                "kind": sub.kind,
                "verbs": sub.verbs,
            });
            if !sub.version.is_empty() {
                resource["group"] = sub.group.into();
                resource["version"] = sub.version.into();
            }
            resources.push(resource);
        }
    }
    group_version
        .map(|gv| json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": gv, "resources": resources}))
}

/// `APIGroupDiscoveryList` of `/api` (`core`) or `/apis`.
fn aggregated(core: bool, version: &str) -> Value {
    let items: Vec<Value> = groups()
        .into_iter()
        .filter(|g| g.is_empty() == core)
        .map(|group| {
            let versions: Vec<Value> = versions(group)
                .iter()
                .map(|v| {
                    let of = |k: &&Kind| k.group == group && k.version == v.version;
                    let resources: Vec<Value> = kinds::all().iter().filter(of).map(aggregated_resource).collect();
                    json!({"version": v.version, "resources": resources, "freshness": "Current"})
                })
                .collect();
            json!({"metadata": {"name": group, "creationTimestamp": null}, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {},
        "items": items,
    })
}

fn aggregated_resource(kind: &Kind) -> Value {
    let scope = if kind.namespaced { "Namespaced" } else { "Cluster" };
    let mut resource = json!({
        "resource": kind.plural,
        "responseKind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
        "scope": scope,
        "singularResource": kind.singular,
        "verbs": kind.verbs,
    });
    if !kind.short_names.is_empty() {
        resource["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        resource["categories"] = json!(kind.categories);
    }
    let subresources: Vec<Value> = subresources(kind)
        .into_iter()
        .map(|s| {
            let (group, version) = if s.version.is_empty() { (kind.group, kind.version) } else { (s.group, s.version) };
            json!({
                "subresource": s.name,
                "responseKind": {"group": group, "version": version, "kind": s.kind},
                "verbs": s.verbs,
            })
        })
        .collect();
    if !subresources.is_empty() {
        resource["subresources"] = subresources.into();
    }
    resource
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seed_219_discovery_lists_every_kind_in_both_forms() {
        let core = resource_list("", "v1").expect("core");
        let services =
            core["resources"].as_array().expect("list").iter().find(|r| r["name"] == "services").expect("services");
        assert_eq!(services["shortNames"], json!(["svc"]));
        assert_eq!(services["categories"], json!(["all"]));
        assert!(core["resources"].as_array().expect("list").iter().any(|r| r["name"] == "pods/log"));
        let apps = resource_list("apps", "v1").expect("apps");
        let scale = apps["resources"]
            .as_array()
            .expect("list")
            .iter()
            .find(|r| r["name"] == "deployments/scale")
            .expect("scale");
        assert_eq!((&scale["group"], &scale["kind"]), (&json!("autoscaling"), &json!("Scale")));
        assert!(resource_list("apps", "v2").is_none() && api_group("nosuch").is_none());
        let total: usize = [true, false]
            .iter()
            .flat_map(|core| aggregated(*core, "v2")["items"].as_array().cloned().unwrap_or_default())
            .map(|g| g["versions"][0]["resources"].as_array().map_or(0, Vec::len))
            .sum();
        assert_eq!(total, kinds::all().len());
    }

    #[test]
    fn aggregated_form_is_negotiated() {
        let kubectl = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
                       application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        assert_eq!(aggregated_version(kubectl), Some("v2"));
        assert_eq!(
            aggregated_version(
                "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json"
            ),
            Some("v2beta1")
        );
        assert_eq!(aggregated_version("application/json, */*"), None);
        assert_eq!(aggregated_version(""), None);
    }
}
