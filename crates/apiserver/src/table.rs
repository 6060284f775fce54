//! Tables.

use crate::kinds::Kind;
use serde_json::{Value, json};

/// `?includeObject=`: what each row carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IncludeObject {
    None,
    /// A PartialObjectMetadata (the default).
    #[default]
    Metadata,
    Object,
}

/// `now` in seconds since the Unix epoch, for ages.
pub fn table(
    _kind: &Kind,
    api_version: TableVersion,
    list_meta: &Value,
    _items: &[&Value],
    _include: IncludeObject,
    _no_headers: bool,
    _now: i64,
) -> Value {
    json!({"kind": "Table", "apiVersion": api_version.as_str(), "metadata": list_meta, "columnDefinitions": [], "rows": []})
}

/// The version the client asked for in `Accept: application/json;as=Table;v=...;g=meta.k8s.io`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TableVersion {
    #[default]
    V1,
    V1Beta1,
}

impl TableVersion {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "meta.k8s.io/v1",
            Self::V1Beta1 => "meta.k8s.io/v1beta1",
        }
    }
}
