//! What the API refuses, what it fills in and what it hands out: defaulting, validation and the allocation of cluster
//! addresses and node ports. Pure functions on JSON values in the shape `apiserver`'s decoder guarantees (types are right,
//! unknown fields are gone). It knows no store, no clock and no randomness: the caller passes what it needs.
//!
//! Order of a create: set name, namespace and uid; [`default`]; [`prepare_create`]; for Services [`allocate`]; then
//! [`validate_create`]. Of an update: [`default`]; [`prepare_update`]; for Services [`allocate`]; [`validate_update`].

pub mod allocate;
mod content;
mod default;
mod error;
mod format;
mod meta;
mod pod;
mod prepare;
mod service;
mod workload;

pub use default::default;
pub use error::{ErrorKind, FieldError};
pub use prepare::{prepare_create, prepare_status_update, prepare_update};
use serde_json::Value;

/// Everything wrong with a new object, in upstream's order and words.
pub fn validate_create(kind: &str, object: &Value) -> Vec<FieldError> {
    let mut errors = meta::validate(kind, &object["metadata"], "metadata");
    errors.extend(content_of(kind, object));
    errors
}

/// Everything wrong with replacing `old` by `new`, immutable fields included.
pub fn validate_update(kind: &str, old: &Value, new: &Value) -> Vec<FieldError> {
    let mut errors = meta::validate_update(&old["metadata"], &new["metadata"], "metadata");
    errors.extend(meta::validate(kind, &new["metadata"], "metadata"));
    errors.extend(match kind {
        "Service" => service::validate_update(old, new),
        "Pod" => pod::validate_update(old, new),
        "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet" | "Job" => workload::validate_update(kind, old, new),
        _ => content::validate_update(kind, old, new),
    });
    errors.extend(content_of(kind, new));
    errors
}

fn content_of(kind: &str, object: &Value) -> Vec<FieldError> {
    match kind {
        "Service" => service::validate(object),
        "Pod" => pod::validate_spec(&object["spec"], "spec"),
        "PodTemplate" => pod::validate_template(&object["template"], "template"),
        "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet" | "Job" => workload::validate(kind, object),
        _ => content::validate(kind, object),
    }
}

/// Advice for `Warning` headers, about objects accepted or refused.
pub fn warnings(kind: &str, object: &Value) -> Vec<String> {
    match kind {
        "Service" => service::warnings(object),
        "NetworkPolicy" => vec!["NetworkPolicies are stored but not enforced by this server".into()],
        _ => Vec::new(),
    }
}

/// The elements of a list field; none when it is absent.
fn list<'a>(of: &'a Value, field: &str) -> &'a [Value] {
    of.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}
