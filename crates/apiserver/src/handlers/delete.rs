//! DELETE: what goes at once, what waits for its finalizers, what waits for its node. Removing the dependants is the
//! garbage collector's business; here only the finalizers that tell it so are set.

use std::sync::Arc;

use axum::response::Response;
use http::StatusCode;
use model::admit::FieldError;
use serde_json::{Value, json};

use super::{
    Api, Call, create::is_service, finalizers, key_of, meta, read, reply, resource_of, timestamp,
    update::has_namespace_finalizers,
};
use crate::{
    kinds::Kind,
    request::Query,
    status::{self, Failure},
    store::{Change, Encoded, Expect, Stored, Write, WriteError},
};

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";
const DEFAULT_GRACE_SECONDS: i64 = 30;
/// Namespaces the cluster cannot do without.
const UNDELETABLE: [&str; 3] = ["default", "kube-system", "kube-public"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Propagation {
    /// Nothing said: whatever finalizers there are stay.
    Unset,
    Background,
    Foreground,
    Orphan,
}

/// meta/v1 `DeleteOptions`.
#[derive(Debug, Clone)]
pub(super) struct Options {
    grace: Option<i64>,
    propagation: Propagation,
    uid: Option<String>,
    revision: Option<String>,
    dry_run: bool,
}

impl Options {
    /// From the body; what it leaves out is looked for in the query.
    pub(super) fn parse(query: &Query, content_type: &str, body: &[u8]) -> Result<Self, Failure> {
        let given = parse_body(content_type, body)?;
        Self::from_value(&given, query)
    }

    pub(super) fn from_value(given: &Value, query: &Query) -> Result<Self, Failure> {
        let invalid = |error| Failure::invalid_options("DeleteOptions", &[error]);
        let grace = match &given["gracePeriodSeconds"] {
            Value::Null => query.number("gracePeriodSeconds")?,
            seconds => {
                Some(seconds.as_i64().ok_or_else(|| Failure::bad_request("gracePeriodSeconds must be an integer"))?)
            }
        };
        let orphan = match &given["orphanDependents"] {
            Value::Bool(orphan) => Some(*orphan),
            _ => query.get("orphanDependents").map(|_| query.flag("orphanDependents")),
        };
        let policy = given["propagationPolicy"].as_str().or_else(|| query.get("propagationPolicy"));
        let propagation = match (policy, orphan) {
            (Some(_), Some(_)) => {
                let text = "orphanDependents and deletionPropagation cannot be both set";
                return Err(invalid(FieldError::invalid("propagationPolicy", policy.unwrap_or(""), text)));
            }
            (None, None) => Propagation::Unset,
            (None, Some(true)) | (Some("Orphan"), _) => Propagation::Orphan,
            (None, Some(false)) | (Some("Background"), _) => Propagation::Background,
            (Some("Foreground"), _) => Propagation::Foreground,
            (Some(other), _) => {
                let supported = ["Background", "Foreground", "Orphan", "nil"];
                return Err(invalid(FieldError::not_supported("propagationPolicy", other, &supported)));
            }
        };
        let text = |value: &Value| value.as_str().filter(|s| !s.is_empty()).map(str::to_owned);
        let dry_run = given["dryRun"].as_array().is_some_and(|d| d.iter().any(|v| v == "All")) || query.dry_run()?;
        Ok(Self {
            grace,
            propagation,
            uid: text(&given["preconditions"]["uid"]),
            revision: text(&given["preconditions"]["resourceVersion"]),
            dry_run,
        })
    }

    fn check_preconditions(&self, kind: &Kind, name: &str, object: &Value) -> Result<(), Failure> {
        for (field, label, wanted) in
            [("uid", "UID", &self.uid), ("resourceVersion", "ResourceVersion", &self.revision)]
        {
            let there = meta(object, field);
            if let Some(wanted) = wanted.as_deref().filter(|w| *w != there) {
                let why =
                    format!("Precondition failed: {label} in precondition: {wanted}, {label} in object meta: {there}");
                return Err(Failure::conflict(kind, name, &why));
            }
        }
        Ok(())
    }
}

fn parse_body(content_type: &str, body: &[u8]) -> Result<Value, Failure> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Null);
    }
    let media = content_type.split(';').next().unwrap_or("").trim();
    let parsed = match media {
        "" | "application/json" => serde_json::from_slice(body).map_err(|e| e.to_string()),
        "application/yaml" => serde_yaml_ng::from_slice(body).map_err(|e| e.to_string()),
        other => {
            return Err(Failure::unsupported_media_type(format!(
                "the body of the request was in an unknown format - accepted media types include: application/json, \
                 application/yaml (got {other})"
            )));
        }
    };
    match parsed {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err(Failure::bad_request("the body of a delete must be a DeleteOptions object")),
        Err(e) => Err(Failure::bad_request(format!("couldn't get version/kind; json parse error: {e}"))),
    }
}

/// What became of an object.
enum Deleted {
    Removed(Value),
    /// It has a deletionTimestamp and waits.
    Waiting(Arc<Stored>),
    /// A dry run, or nothing to do.
    Shown(Value),
}

pub(super) async fn delete(api: &Api, call: Call) -> Result<Response, Failure> {
    let options = Options::parse(&call.query, &call.content_type, &call.body)?;
    let response = delete_named(api, &call, &options).await?;
    Ok(reply::warn(response, &call.warnings))
}

/// Also the second half of an eviction.
pub(super) async fn delete_named(api: &Api, call: &Call, options: &Options) -> Result<Response, Failure> {
    let (kind, name) = (call.kind(), &*call.target.name);
    if kind.namespaced && call.target.namespace.is_empty() {
        return Err(Failure::method_not_allowed(kind));
    }
    let include = call.query.include_object()?;
    Ok(match delete_one(api, kind, &call.target.namespace, name, options).await? {
        Deleted::Waiting(stored) => reply::stored(call.form, kind, include, &stored),
        Deleted::Shown(object) => reply::value(call.form, kind, include, StatusCode::OK, &object),
        Deleted::Removed(object) if returns_object(kind) => {
            reply::value(call.form, kind, include, StatusCode::OK, &object)
        }
        Deleted::Removed(object) => {
            reply::plain(call.form, StatusCode::OK, &status::success(kind, name, &object["metadata"]["uid"]))
        }
    })
}

/// Upstream shows the last state of these kinds, and a Status of the others.
fn returns_object(kind: &Kind) -> bool {
    kind.group.is_empty()
        && matches!(kind.kind, "Pod" | "Service" | "ServiceAccount" | "PersistentVolume" | "PersistentVolumeClaim")
}

pub(super) async fn delete_collection(api: &Api, call: Call) -> Result<Response, Failure> {
    let kind = call.kind();
    let options = Options::parse(&call.query, &call.content_type, &call.body)?;
    let mut items = Vec::new();
    for stored in read::selected(api, &call)? {
        match delete_one(api, kind, stored.namespace(), stored.name(), &options).await {
            Ok(Deleted::Removed(object) | Deleted::Shown(object)) => items.push(object),
            Ok(Deleted::Waiting(stored)) => items.push(stored.value()),
            Err(failure) if failure.code() == StatusCode::NOT_FOUND => {}
            Err(failure) => return Err(failure),
        }
    }
    let list = json!({"kind": kind.list_kind(), "apiVersion": kind.api_version(),
        "metadata": {"resourceVersion": api.store.revision().to_string()}, "items": items});
    Ok(reply::warn(reply::plain(call.form, StatusCode::OK, &list), &call.warnings))
}

async fn delete_one(
    api: &Api,
    kind: &'static Kind,
    namespace: &str,
    name: &str,
    options: &Options,
) -> Result<Deleted, Failure> {
    if kind.kind == "Namespace" && UNDELETABLE.contains(&name) {
        return Err(Failure::forbidden(kind, name, "this namespace may not be deleted"));
    }
    loop {
        let stored = api.get(kind, namespace, name)?;
        let mut object = stored.value();
        options.check_preconditions(kind, name, &object)?;
        let grace = grace_seconds(kind, &object, options);
        let changed = mark(kind, &mut object, grace, options.propagation);
        let gone = grace == 0 && finalizers(&object).is_empty() && !has_namespace_finalizers(kind, &object);
        if options.dry_run || (!gone && !changed) {
            return Ok(Deleted::Shown(object));
        }
        let encoded = Encoded::new(&object);
        let write = Write {
            resource: resource_of(kind),
            key: key_of(namespace, name),
            expect: Expect::Revision(stored.revision),
            change: if gone { Change::Delete(encoded) } else { Change::Put(encoded) },
        };
        match api.store.write(write).await {
            Ok(last) if gone => {
                if is_service(kind) {
                    api.allocations().release(&object);
                }
                return Ok(Deleted::Removed(last.value()));
            }
            Ok(stored) => return Ok(Deleted::Waiting(stored)),
            Err(WriteError::Conflict) => {}
            Err(other) => return Err(other.into()),
        }
    }
}

/// How long the object may take to go: only a pod that a node runs gets time.
fn grace_seconds(kind: &Kind, object: &Value, options: &Options) -> i64 {
    let is_pod = kind.group.is_empty() && kind.kind == "Pod";
    let unbound = object["spec"]["nodeName"].as_str().unwrap_or("").is_empty();
    let over = matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if !is_pod || unbound || over {
        return 0;
    }
    let wanted = options.grace.or_else(|| object["spec"]["terminationGracePeriodSeconds"].as_i64());
    let wanted = match wanted.unwrap_or(DEFAULT_GRACE_SECONDS) {
        negative if negative < 0 => 1,
        seconds => seconds,
    };
    // A pod that is already going may be hurried, never held back.
    let left = object["metadata"]["deletionTimestamp"].is_string();
    let before = object["metadata"]["deletionGracePeriodSeconds"].as_i64().filter(|_| left);
    before.map_or(wanted, |b| b.min(wanted))
}

/// Sets what says that the object is going. Returns whether anything changed.
fn mark(kind: &Kind, object: &mut Value, grace: i64, propagation: Propagation) -> bool {
    let before = object.clone();
    mark_finalizers(object, propagation);
    let meta = &mut object["metadata"];
    let going = meta["deletionTimestamp"].is_string();
    if !going {
        if let Some(generation) = meta["generation"].as_i64().filter(|g| *g > 0) {
            meta["generation"] = (generation + 1).into();
        }
    }
    if !going || meta["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) > grace {
        meta["deletionTimestamp"] = timestamp(grace).into();
        meta["deletionGracePeriodSeconds"] = grace.into();
    }
    if kind.kind == "Namespace" && kind.group.is_empty() {
        object["status"]["phase"] = "Terminating".into();
    }
    *object != before
}

fn mark_finalizers(object: &mut Value, propagation: Propagation) {
    if propagation == Propagation::Unset {
        return;
    }
    let mut list: Vec<String> =
        finalizers(object).into_iter().filter(|f| *f != ORPHAN && *f != FOREGROUND).map(str::to_owned).collect();
    match propagation {
        Propagation::Orphan => list.push(ORPHAN.into()),
        Propagation::Foreground => list.push(FOREGROUND.into()),
        Propagation::Background | Propagation::Unset => {}
    }
    if let Some(meta) = object["metadata"].as_object_mut() {
        if list.is_empty() {
            meta.remove("finalizers");
        } else {
            meta.insert("finalizers".into(), json!(list));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> Result<Options, Failure> {
        Options::parse(&Query::default(), "application/json", text.as_bytes())
    }

    #[test]
    fn options_of_real_clients() {
        let o =
            options(r#"{"kind":"DeleteOptions","apiVersion":"v1","propagationPolicy":"Background"}"#).expect("kubectl");
        assert_eq!((o.propagation, o.grace), (Propagation::Background, None));
        let o = options(r#"{"orphanDependents":true,"gracePeriodSeconds":0}"#).expect("old");
        assert_eq!((o.propagation, o.grace), (Propagation::Orphan, Some(0)));
        assert_eq!(options("").expect("empty").propagation, Propagation::Unset);
        assert_eq!(options(r#"{"propagationPolicy":"Now"}"#).expect_err("policy").code(), 422);
        assert_eq!(options("[]").expect_err("array").code(), 400);
        assert_eq!(options("{").expect_err("cut").code(), 400);
    }

    #[test]
    fn grace_is_for_running_pods_and_only_shrinks() {
        let pods = crate::kinds::find("", "v1", "pods").expect("pods");
        let none = options("").expect("none");
        let five = options(r#"{"gracePeriodSeconds":5}"#).expect("five");
        let mut pod = json!({"metadata": {}, "spec": {"terminationGracePeriodSeconds": 20}});
        assert_eq!(grace_seconds(pods, &pod, &none), 0, "unbound");
        pod["spec"]["nodeName"] = "n1".into();
        assert_eq!(grace_seconds(pods, &pod, &none), 20);
        assert!(mark(pods, &mut pod, 20, Propagation::Unset));
        assert_eq!(grace_seconds(pods, &pod, &five), 5);
        assert!(mark(pods, &mut pod, 5, Propagation::Unset));
        assert_eq!(grace_seconds(pods, &pod, &none), 5, "not longer again");
        assert!(!mark(pods, &mut pod, 5, Propagation::Unset));
        pod["status"] = json!({"phase": "Succeeded"});
        assert_eq!(grace_seconds(pods, &pod, &none), 0, "nothing runs");
    }
}
