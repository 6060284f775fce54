//! Decoding of request bodies.

use crate::kinds::Kind;
use serde_json::Value;

/// `?fieldValidation=`: what happens to unknown and duplicate fields. They are never stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

/// A request body as an object of its kind: typed, pruned of unknown fields, with apiVersion and kind set.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    pub object: Value,
    /// For `Warning: 299 - "..."` headers.
    pub warnings: Vec<String>,
}

#[derive(Debug, thiserror::Error, PartialEq)]
pub enum DecodeError {
    /// 400 BadRequest with this message.
    #[error("{0}")]
    BadRequest(String),
    /// 415 with this message.
    #[error("{0}")]
    UnsupportedMediaType(String),
}

/// Decodes a body of an object of `kind`. `content_type` may carry parameters; empty means JSON.
pub fn decode(
    kind: &Kind,
    _content_type: &str,
    body: &[u8],
    _validation: FieldValidation,
) -> Result<Decoded, DecodeError> {
    let mut object: Value = serde_json::from_slice(body).map_err(|e| DecodeError::BadRequest(e.to_string()))?;
    object["apiVersion"] = kind.api_version().into();
    object["kind"] = kind.kind.into();
    Ok(Decoded { object, warnings: vec![] })
}

/// Checks an object that is already a value (the result of a patch) the same way.
pub fn check(_kind: &Kind, object: Value, _validation: FieldValidation) -> Result<Decoded, DecodeError> {
    Ok(Decoded { object, warnings: vec![] })
}
