//! Below an object: status, scale, binding, eviction, finalize and log. What a subresource may change is decided here.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use model::admit::FieldError;
use serde_json::{Value, json};

use super::{
    Api, Call, delete, meta,
    reply::{self, Form},
    timestamp,
    update::{self, Edit, Part},
};
use crate::{
    kinds::{Kind, ScalePaths},
    schema,
    status::{self, Failure},
};

/// A node's complaint longer than this is cut.
const MAX_NODE_ERROR: usize = 64 << 10;

pub(super) async fn answer(api: &Api, call: Call, verb: &str) -> Result<Response, Failure> {
    let kind = call.kind();
    if call.target.name.is_empty() || (kind.namespaced && call.target.namespace.is_empty()) {
        return Ok(status::page_not_found());
    }
    let leaf = call.target.rest.is_empty();
    match (&*call.target.subresource, verb) {
        ("status", _) if kind.has_status && leaf => match verb {
            "get" => {
                let object = api.get(kind, &call.target.namespace, &call.target.name)?;
                Ok(reply::warn(reply::stored(call.form, kind, call.query.include_object()?, &object), &call.warnings))
            }
            "update" => update::replace_status(api, call).await,
            "patch" => update::patch_status(api, call).await,
            _ => Err(Failure::method_not_allowed(kind)),
        },
        ("scale", _) if leaf => match &kind.scale {
            Some(paths) => scale(api, &call, verb, paths).await,
            None => Ok(status::page_not_found()),
        },
        ("finalize", "update") if kind.subresource("finalize").is_some() && leaf => finalize(api, &call).await,
        ("binding", "create") if kind.subresource("binding").is_some() && leaf => bind(api, &call).await,
        ("eviction", "create") if kind.subresource("eviction").is_some() && leaf => evict(api, &call).await,
        ("log", "get") if kind.subresource("log").is_some() && leaf => log(api, &call).await,
        (sub, _) if leaf && kind.subresource(sub).is_some() => Err(Failure::method_not_allowed(kind)),
        _ => Ok(status::page_not_found()),
    }
}

/// autoscaling/v1 Scale of an object.
async fn scale(api: &Api, call: &Call, verb: &str, paths: &ScalePaths) -> Result<Response, Failure> {
    let (kind, target) = (call.kind(), &call.target);
    let object = match verb {
        "get" => api.get(kind, &target.namespace, &target.name)?.value(),
        "update" | "patch" => {
            let edit = Edit {
                kind,
                namespace: &target.namespace,
                name: &target.name,
                part: Part::Main,
                dry_run: call.query.dry_run()?,
            };
            let patch = verb == "patch";
            edit.run(api, |old| {
                let wanted = if patch { patched_scale(call, &scale_of(old, paths))? } else { scale_body(call)? };
                with_replicas(kind, &target.name, old, &wanted, paths)
            })
            .await?
            .value()
        }
        _ => return Err(Failure::method_not_allowed(kind)),
    };
    Ok(reply::warn(reply::plain(plain_form(call.form), StatusCode::OK, &scale_of(&object, paths)), &call.warnings))
}

/// Answers that have no Table are JSON to those who asked for one.
fn plain_form(form: Form) -> Form {
    match form {
        Form::Table(_) | Form::Metadata(_) => Form::Json { pretty: false },
        other => other,
    }
}

fn at<'a>(object: &'a Value, path: &[&str]) -> &'a Value {
    path.iter().fold(object, |value, key| &value[*key])
}

fn scale_of(object: &Value, paths: &ScalePaths) -> Value {
    let mut meta = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if !object["metadata"][field].is_null() {
            meta[field] = object["metadata"][field].clone();
        }
    }
    // As in Go, a zero replica count in the spec is left out.
    let mut spec = json!({});
    if let Some(n) = at(object, paths.spec_replicas).as_i64().filter(|n| *n != 0) {
        spec["replicas"] = n.into();
    }
    let mut status = json!({"replicas": at(object, paths.status_replicas).as_i64().unwrap_or(0)});
    let selector = selector_text(at(object, paths.selector));
    if !selector.is_empty() {
        status["selector"] = selector.into();
    }
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": meta, "spec": spec, "status": status})
}

/// A LabelSelector as people write it.
fn selector_text(selector: &Value) -> String {
    let mut terms: Vec<String> = Vec::new();
    if let Some(labels) = selector["matchLabels"].as_object() {
        terms.extend(labels.iter().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or(""))));
    }
    for e in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = e["key"].as_str().unwrap_or("");
        let values: Vec<&str> = e["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        terms.push(match e["operator"].as_str() {
            Some("In") => format!("{key} in ({})", values.join(",")),
            Some("NotIn") => format!("{key} notin ({})", values.join(",")),
            Some("DoesNotExist") => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    terms.join(",")
}

fn scale_body(call: &Call) -> Result<Value, Failure> {
    let scale = json_body(call, "Scale")?;
    let name = meta(&scale, "name");
    if !name.is_empty() && name != call.target.name {
        return Err(Failure::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            call.target.name
        )));
    }
    Ok(scale)
}

fn patched_scale(call: &Call, current: &Value) -> Result<Value, Failure> {
    let bad = |e: serde_json::Error| Failure::bad_request(format!("error decoding patch: {e}"));
    let mut scale = current.clone();
    match call.content_type.split(';').next().unwrap_or("").trim() {
        "application/merge-patch+json" | "application/strategic-merge-patch+json" => {
            let patch: Value = serde_json::from_slice(&call.body).map_err(bad)?;
            json_patch::merge(&mut scale, &patch);
        }
        "application/json-patch+json" => {
            let patch: json_patch::Patch = serde_json::from_slice(&call.body).map_err(bad)?;
            json_patch::patch(&mut scale, &patch).map_err(|e| Failure::unprocessable(&e.to_string()))?;
        }
        other => {
            return Err(Failure::unsupported_media_type(format!(
                "the body of the request was in an unknown format - accepted media types include: \
                 application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json (got \
                 {other:?})"
            )));
        }
    }
    Ok(scale)
}

fn with_replicas(kind: &Kind, name: &str, old: &Value, scale: &Value, paths: &ScalePaths) -> Result<Value, Failure> {
    let replicas = match &scale["spec"]["replicas"] {
        Value::Null => 0,
        given => given.as_i64().filter(|n| i32::try_from(*n).is_ok()).ok_or_else(|| {
            Failure::bad_request(format!(
                "Scale in version \"v1\" cannot be handled as a Scale: json: cannot unmarshal {given} into Go struct field \
                 ScaleSpec.spec.replicas of type int32"
            ))
        })?,
    };
    if replicas < 0 {
        let error = FieldError::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
        return Err(Failure::invalid(kind, name, &[error]));
    }
    let mut new = old.clone();
    let place = paths.spec_replicas.iter().fold(&mut new, |value, key| &mut value[*key]);
    *place = replicas.into();
    // What the Scale says of its own revision and identity is checked against the object.
    for field in ["resourceVersion", "uid"] {
        match meta(scale, field) {
            "" => {
                if let Some(m) = new["metadata"].as_object_mut() {
                    m.remove(field);
                }
            }
            given => new["metadata"][field] = given.into(),
        }
    }
    Ok(new)
}

/// A body whose kind has no row of its own.
fn json_body(call: &Call, kind: &str) -> Result<Value, Failure> {
    let bad =
        |e: &dyn std::fmt::Display| Failure::bad_request(format!("couldn't get version/kind; json parse error: {e}"));
    let value: Value = if call.content_type.starts_with("application/yaml") {
        serde_yaml_ng::from_slice(&call.body).map_err(|e| bad(&e))?
    } else {
        serde_json::from_slice(&call.body).map_err(|e| bad(&e))?
    };
    match value["kind"].as_str() {
        Some(k) if k == kind => Ok(value),
        None if value.is_object() => Ok(value),
        other => Err(Failure::bad_request(format!(
            "the object provided is unrecognized (must be of type {kind}): got {:?}",
            other.unwrap_or("")
        ))),
    }
}

/// Removing the last of `spec.finalizers` lets a namespace that is being deleted go.
async fn finalize(api: &Api, call: &Call) -> Result<Response, Failure> {
    let kind = call.kind();
    let decoded = schema::decode(kind, &call.content_type, &call.body, call.validation()?)?;
    let wanted = decoded.object;
    let edit = Edit { kind, namespace: "", name: &call.target.name, part: Part::Whole, dry_run: call.query.dry_run()? };
    let edited = edit
        .run(api, |old| {
            let mut new = old.clone();
            new["spec"]["finalizers"] = match &wanted["spec"]["finalizers"] {
                Value::Null => json!([]),
                list => list.clone(),
            };
            for field in ["resourceVersion", "uid", "name"] {
                if !meta(&wanted, field).is_empty() {
                    new["metadata"][field] = wanted["metadata"][field].clone();
                }
            }
            Ok(new)
        })
        .await?;
    let include = call.query.include_object()?;
    Ok(reply::value(call.form, kind, include, StatusCode::OK, &edited.value()))
}

/// Binds a pod to a node, once.
async fn bind(api: &Api, call: &Call) -> Result<Response, Failure> {
    let binding = json_body(call, "Binding")?;
    bind_pod(api, call.kind(), &call.target.namespace, &call.target.name, &binding, call.query.dry_run()?).await?;
    Ok(created_status(call.form))
}

pub(super) async fn bind_pod(
    api: &Api,
    pods: &'static Kind,
    namespace: &str,
    name: &str,
    binding: &Value,
    dry_run: bool,
) -> Result<(), Failure> {
    let node = binding["target"]["name"].as_str().unwrap_or("");
    if node.is_empty() {
        let error = FieldError::required("target.name", "");
        return Err(Failure::invalid(pods, name, &[error]));
    }
    let edit = Edit { kind: pods, namespace, name, part: Part::Whole, dry_run };
    edit.run(api, |old| {
        let bound = old["spec"]["nodeName"].as_str().unwrap_or("");
        if old["metadata"]["deletionTimestamp"].is_string() {
            let why = format!("pod {name} is being deleted, cannot be assigned to a host");
            return Err(Failure::conflict(pods, name, &why));
        }
        if !bound.is_empty() {
            return Err(Failure::conflict(pods, name, &format!("pod {name} is already assigned to node {bound:?}")));
        }
        let mut new = old.clone();
        new["spec"]["nodeName"] = node.into();
        if let Some(annotations) = binding["metadata"]["annotations"].as_object() {
            for (key, value) in annotations {
                new["metadata"]["annotations"][key] = value.clone();
            }
        }
        let condition = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null,
            "lastTransitionTime": timestamp(0)});
        let mut conditions: Vec<Value> = old["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.retain(|c| c["type"] != "PodScheduled");
        conditions.push(condition);
        new["status"]["conditions"] = conditions.into();
        Ok(new)
    })
    .await?;
    Ok(())
}

pub(super) fn created_status(form: Form) -> Response {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    reply::plain(plain_form(form), StatusCode::CREATED, &status)
}

/// policy/v1 Eviction: a delete that a disruption budget may refuse; there are no budgets yet.
async fn evict(api: &Api, call: &Call) -> Result<Response, Failure> {
    let eviction = json_body(call, "Eviction")?;
    let options = delete::Options::from_value(&eviction["deleteOptions"], &call.query)?;
    delete::delete_named(api, call, &options).await?;
    Ok(created_status(call.form))
}

/// Hands on what the pod's node knows of a container's output, as it comes.
async fn log(api: &Api, call: &Call) -> Result<Response, Failure> {
    let (kind, name) = (call.kind(), &*call.target.name);
    let pod = api.get(kind, &call.target.namespace, name)?.value();
    let container = container_named(&pod, name, call.query.get("container"))?;
    let node = pod["spec"]["nodeName"].as_str().unwrap_or("");
    if node.is_empty() {
        return Ok(StatusCode::OK.into_response());
    }
    let mut query = Vec::new();
    for number in ["tailLines", "sinceSeconds", "limitBytes"] {
        if let Some(value) = call.query.number(number)? {
            if value < 0 || (value == 0 && number != "tailLines") {
                let error = FieldError::invalid(number, value, "must be greater than or equal to 0");
                return Err(Failure::invalid_options("PodLogOptions", &[error]));
            }
            query.push(format!("{number}={value}"));
        }
    }
    for flag in ["follow", "timestamps", "previous"] {
        if call.query.flag(flag) {
            query.push(format!("{flag}=true"));
        }
    }
    if let Some(since) = call.query.get("sinceTime") {
        let time: jiff::Timestamp =
            since.parse().map_err(|_| Failure::bad_request(format!("sinceTime {since:?} is not an RFC 3339 time")))?;
        query.push(format!("sinceTime={time}"));
    }
    let uri = format!("/containerLogs/{}/{name}/{container}?{}", call.target.namespace, query.join("&"));
    let request = Request::get(uri).body(Body::empty()).map_err(Failure::internal)?;
    let response = api.nodes.request(node, request).await.map_err(|e| {
        Failure::internal(format!("the node {node} that runs pod {name} does not answer: {e}. Is its agent running?"))
    })?;
    if response.status().is_success() {
        let stopping = api.stopping.clone();
        let (mut head, body) = response.into_parts();
        head.headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain"));
        let body = futures::StreamExt::take_until(body.into_data_stream(), async move { stopping.cancelled().await });
        return Ok(Response::from_parts(head, Body::from_stream(body)));
    }
    let code = response.status();
    let text =
        Limited::new(response.into_body(), MAX_NODE_ERROR).collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    Err(Failure::from_node(code, &String::from_utf8_lossy(&text)))
}

/// The container meant; a pod with one needs no name.
pub(crate) fn container_named(pod: &Value, name: &str, asked: Option<&str>) -> Result<String, Failure> {
    let names = |list: &str| -> Vec<String> {
        let containers = pod["spec"][list].as_array().into_iter().flatten();
        containers.filter_map(|c| c["name"].as_str()).map(str::to_owned).collect()
    };
    let (containers, init) = (names("containers"), names("initContainers"));
    match asked {
        Some(asked) if containers.iter().chain(&init).any(|c| c == asked) => Ok(asked.to_owned()),
        Some(asked) => Err(Failure::bad_request(format!("container {asked} is not valid for pod {name}"))),
        None if containers.len() == 1 => Ok(containers.concat()),
        None => {
            let init = if init.is_empty() {
                String::new()
            } else {
                format!(" or one of the init containers: [{}]", init.join(" "))
            };
            Err(Failure::bad_request(format!(
                "a container name must be specified for pod {name}, choose one of: [{}]{init}",
                containers.join(" ")
            )))
        }
    }
}
