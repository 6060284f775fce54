//! How an answer looks: JSON, YAML, a Table or bare metadata, as the Accept header asks, and the Warning headers that go
//! with it. Objects are stored serialised, so plain JSON is handed out as it lies.

use std::sync::Arc;

use axum::{
    body::{Body, Bytes},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use crate::{
    kinds::Kind,
    status::Failure,
    store::Stored,
    table::{self, IncludeObject, TableVersion},
};

/// What the client wants to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Json {
        pretty: bool,
    },
    Yaml,
    Table(TableVersion),
    /// `PartialObjectMetadata`, in lists `PartialObjectMetadataList`.
    Metadata(TableVersion),
}

impl Form {
    /// The first type in the Accept header that is served; quality values are not looked at, nor does upstream.
    pub fn negotiate(headers: &HeaderMap, pretty: bool) -> Result<Self, Failure> {
        let accept: Vec<&str> = headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok()).collect();
        let accept = accept.join(",");
        if accept.trim().is_empty() {
            return Ok(Self::Json { pretty });
        }
        accept
            .split(',')
            .find_map(|entry| Self::of_entry(entry, pretty))
            .ok_or_else(|| Failure::not_acceptable("application/json, application/yaml"))
    }

    fn of_entry(entry: &str, pretty: bool) -> Option<Self> {
        let mut parts = entry.split(';').map(str::trim);
        let media = parts.next()?;
        let (mut kind, mut version, mut group) = ("", "", "");
        for (key, value) in parts.filter_map(|p| p.split_once('=')) {
            match key {
                "as" => kind = value,
                "v" => version = value,
                "g" => group = value,
                _ => {}
            }
        }
        let json = matches!(media, "application/json" | "application/*" | "*/*");
        if kind.is_empty() {
            return match media {
                _ if json => Some(Self::Json { pretty }),
                "application/yaml" => Some(Self::Yaml),
                _ => None,
            };
        }
        let version = match version {
            "v1" => TableVersion::V1,
            "v1beta1" => TableVersion::V1Beta1,
            _ => return None,
        };
        match kind {
            "Table" if json && group == "meta.k8s.io" => Some(Self::Table(version)),
            "PartialObjectMetadata" | "PartialObjectMetadataList" if json && group == "meta.k8s.io" => {
                Some(Self::Metadata(version))
            }
            _ => None,
        }
    }
}

/// Adds `Warning: 299 - "text"` headers (RFC 7234 section 5.5).
pub(super) fn warn(mut response: Response, warnings: &[String]) -> Response {
    let mut seen: Vec<&str> = Vec::new();
    for text in warnings {
        if seen.contains(&text.as_str()) {
            continue;
        }
        seen.push(text);
        let quoted: String = text
            .chars()
            .flat_map(|c| match c {
                '"' | '\\' => vec!['\\', c],
                c if c.is_control() => vec![' '],
                c => vec![c],
            })
            .collect();
        if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{quoted}\"").as_bytes()) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
    response
}

/// One stored object.
pub(super) fn stored(form: Form, kind: &Kind, include: IncludeObject, object: &Arc<Stored>) -> Response {
    match form {
        Form::Json { pretty: false } => json_bytes(StatusCode::OK, object.bytes()),
        form => value(form, kind, include, StatusCode::OK, &object.value()),
    }
}

/// One object that is not (or not only) in the store.
pub(super) fn value(form: Form, kind: &Kind, include: IncludeObject, code: StatusCode, object: &Value) -> Response {
    let shown = match form {
        Form::Table(version) => {
            let meta = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
            table::table(kind, version, &meta, &[object], include, false, now())
        }
        Form::Metadata(version) => metadata_only(object, version),
        Form::Json { .. } | Form::Yaml => return plain(form, code, object),
    };
    plain(Form::Json { pretty: false }, code, &shown)
}

/// A value as it is: objects, Status, reviews.
pub(super) fn plain(form: Form, code: StatusCode, value: &Value) -> Response {
    match form {
        Form::Yaml => match serde_yaml_ng::to_string(value) {
            Ok(text) => (code, [(header::CONTENT_TYPE, "application/yaml")], text).into_response(),
            Err(e) => Failure::internal(e).into_response(),
        },
        Form::Json { pretty: true } => json_bytes(code, Bytes::from(format!("{value:#}\n"))),
        _ => json_bytes(code, Bytes::from(value.to_string())),
    }
}

/// A refusal: always JSON.
pub(super) fn failure(failure: &Failure, pretty: bool) -> Response {
    if pretty {
        return plain(Form::Json { pretty }, failure.code(), &failure.value());
    }
    failure.clone().into_response()
}

pub(super) fn json_bytes(code: StatusCode, bytes: Bytes) -> Response {
    (code, [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], Body::from(bytes)).into_response()
}

pub(super) fn metadata_only(object: &Value, version: TableVersion) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": version.as_str(), "metadata": object["metadata"]})
}

/// Seconds since the epoch, for ages in Tables.
pub(super) fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn negotiate(accept: &str) -> Option<Form> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept.parse().expect(accept));
        Form::negotiate(&headers, false).ok()
    }

    #[test]
    fn accept_headers_of_real_clients() {
        let json = Form::Json { pretty: false };
        for (accept, form) in [
            (
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
                Some(Form::Table(TableVersion::V1)),
            ),
            ("application/json;as=Table;v=v2;g=meta.k8s.io,application/json", Some(json)),
            ("application/vnd.kubernetes.protobuf;q=0.9, application/json", Some(json)),
            ("application/vnd.kubernetes.protobuf,*/*", Some(json)),
            ("application/vnd.kubernetes.protobuf", None),
            ("application/yaml", Some(Form::Yaml)),
            ("*/*", Some(json)),
            ("", Some(json)),
            (
                "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
                Some(Form::Metadata(TableVersion::V1)),
            ),
            ("text/html", None),
        ] {
            assert_eq!(negotiate(accept), form, "{accept}");
        }
    }

    #[test]
    fn warnings_are_quoted_and_given_once() {
        let warnings = ["a \"b\"\n".to_owned(), "a \"b\"\n".to_owned(), "c".to_owned()];
        let response = warn(().into_response(), &warnings);
        let all: Vec<_> = response.headers().get_all(header::WARNING).iter().collect();
        assert_eq!(all, [r#"299 - "a \"b\" ""#, r#"299 - "c""#]);
    }
}
