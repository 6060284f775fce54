//! Patches of stored objects: JSON patch (RFC 6902), merge patch (RFC 7386) and strategic merge patch. The result is read
//! like a PUT body: typed, pruned, defaulted by the caller.

mod strategic;

use model::admit::FieldError;
use serde_json::Value;

use crate::{
    kinds::Kind,
    schema::{self, DecodeError, Decoded, FieldValidation},
};

/// Operations in one JSON patch at most (upstream's limit).
const MAX_OPERATIONS: usize = 10_000;

#[derive(Debug, thiserror::Error, PartialEq)]
pub enum PatchError {
    /// 400 BadRequest.
    #[error("{0}")]
    BadRequest(String),
    /// 422 Invalid: a JSON patch that does not apply to this object. Upstream's Status says "the server rejected our request
    /// due to an error in our request" and carries this text as the cause.
    #[error("{0}")]
    Unprocessable(String),
    /// 422 Invalid of an object without kind and name: the patched object cannot be read.
    #[error("{0}")]
    Invalid(Box<FieldError>),
    /// 413.
    #[error("{0}")]
    TooLarge(String),
    /// 415.
    #[error("{0}")]
    UnsupportedMediaType(String),
}

/// Applies a patch of the given content type to `current` (never changes it) and returns the whole new object, decoded and
/// pruned like a PUT body.
pub fn apply(
    kind: &Kind,
    content_type: &str,
    current: &Value,
    patch: &[u8],
    validation: FieldValidation,
) -> Result<Decoded, PatchError> {
    let decode = |body: &[u8]| -> Result<Value, PatchError> {
        serde_json::from_slice(body).map_err(|e| PatchError::BadRequest(format!("error decoding patch: {e}")))
    };
    let (patched, shown) = match content_type.split(';').next().unwrap_or_default().trim() {
        "application/json-patch+json" => {
            let patch = decode(patch)?;
            (json_patch(current, &patch)?, None)
        }
        "application/merge-patch+json" => {
            let patch = decode(patch)?;
            if !patch.is_object() {
                return Err(PatchError::BadRequest("error decoding patch: a merge patch must be an object".into()));
            }
            let mut object = current.clone();
            json_patch::merge(&mut object, &patch);
            (object, None)
        }
        "application/strategic-merge-patch+json" => {
            let patch = decode(patch)?;
            let Value::Object(patch) = patch else {
                return Err(PatchError::BadRequest(
                    "error decoding patch: a strategic merge patch must be an object".into(),
                ));
            };
            let shown = go_print(&Value::Object(patch.clone()));
            let object = strategic::merge(kind, current, patch)?;
            (object, Some(shown))
        }
        "application/apply-patch+yaml" | "application/apply-patch+cbor" => {
            return Err(PatchError::UnsupportedMediaType(
                "server-side apply is not supported yet: use kubectl apply without --server-side, or a patch of type \
                 application/json-patch+json, application/merge-patch+json or application/strategic-merge-patch+json"
                    .into(),
            ));
        }
        _ => {
            return Err(PatchError::UnsupportedMediaType(
                "the body of the request was in an unknown format - accepted media types include: \
                 application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json"
                    .into(),
            ));
        }
    };
    let printed = || shown.clone().unwrap_or_else(|| patched.to_string());
    schema::check(kind, patched.clone(), validation).map_err(|e| match e {
        DecodeError::BadRequest(message) => {
            // Upstream names the reason, not the sentence a PUT would get.
            let why = message.split_once("cannot be handled as a ").and_then(|(_, rest)| rest.split_once(": "));
            let why = why.map_or(message.clone(), |(_, why)| why.to_owned());
            PatchError::Invalid(Box::new(FieldError::invalid("patch", printed(), why)))
        }
        DecodeError::UnsupportedMediaType(message) => PatchError::UnsupportedMediaType(message),
    })
}

fn json_patch(current: &Value, patch: &Value) -> Result<Value, PatchError> {
    let count = patch.as_array().map_or(0, Vec::len);
    if count > MAX_OPERATIONS {
        return Err(PatchError::TooLarge(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {count}"
        )));
    }
    let operations: json_patch::Patch = serde_json::from_value(patch.clone())
        .map_err(|e| PatchError::BadRequest(format!("error decoding patch: {e}")))?;
    let mut object = current.clone();
    json_patch::patch(&mut object, &operations).map_err(|e| {
        use json_patch::PatchErrorKind;
        let path = e.path.to_string();
        PatchError::Unprocessable(match e.kind {
            PatchErrorKind::TestFailed => format!("testing value {path} failed: test failed"),
            PatchErrorKind::InvalidPointer => {
                let operation = patch[e.operation]["op"].as_str().unwrap_or_default();
                format!("{operation} operation does not apply: doc is missing path: {path:?}: missing value")
            }
            _ => e.to_string(),
        })
    })?;
    Ok(object)
}

/// Go's `%+v` of decoded JSON.
fn go_print(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".into(),
        Value::String(s) => s.clone(),
        Value::Array(a) => format!("[{}]", a.iter().map(go_print).collect::<Vec<_>>().join(" ")),
        Value::Object(m) => {
            let mut keys: Vec<&String> = m.keys().collect();
            keys.sort();
            let body: Vec<String> = keys.iter().map(|k| format!("{k}:{}", go_print(&m[*k]))).collect();
            format!("map[{}]", body.join(" "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests;
