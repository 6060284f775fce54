//! Patches.

use crate::{
    kinds::Kind,
    schema::{Decoded, FieldValidation},
};
use serde_json::Value;

#[derive(Debug, thiserror::Error, PartialEq)]
pub enum PatchError {
    /// 400 BadRequest.
    #[error("{0}")]
    BadRequest(String),
    /// 422 Invalid: a JSON patch that does not apply to this object.
    #[error("{0}")]
    Unprocessable(String),
    /// 415.
    #[error("{0}")]
    UnsupportedMediaType(String),
}

/// Applies a patch of the given content type to `current` (never changes it) and returns the whole new object, decoded and
/// pruned like a PUT body.
pub fn apply(
    _kind: &Kind,
    _content_type: &str,
    current: &Value,
    patch: &[u8],
    _validation: FieldValidation,
) -> Result<Decoded, PatchError> {
    let patch: Value = serde_json::from_slice(patch).map_err(|e| PatchError::BadRequest(e.to_string()))?;
    let mut object = current.clone();
    json_patch::merge(&mut object, &patch);
    Ok(Decoded { object, warnings: vec![] })
}
