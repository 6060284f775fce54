//! Answers that are not objects: `Status`, in kube-apiserver's words, reasons and codes
//! (`k8s.io/apimachinery/pkg/api/errors`). Clients branch on the reason, people read the message.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use model::admit::FieldError;
use serde_json::{Map, Value, json};

use crate::kinds::Kind;

/// Why a request is refused.
#[derive(Debug, Clone)]
pub struct Failure(Box<Body>);

#[derive(Debug, Clone)]
struct Body {
    code: StatusCode,
    reason: &'static str,
    message: String,
    details: Map<String, Value>,
}

impl Failure {
    fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self(Box::new(Body { code, reason, message: message.into(), details: Map::new() }))
    }

    fn about(mut self, group: &str, kind: &str, name: &str) -> Self {
        for (key, value) in [("name", name), ("group", group), ("kind", kind)] {
            if !value.is_empty() {
                self.0.details.insert(key.into(), value.into());
            }
        }
        self
    }

    fn detail(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.0.details.insert(key.into(), value.into());
        self
    }

    pub fn code(&self) -> StatusCode {
        self.0.code
    }

    pub fn message(&self) -> &str {
        &self.0.message
    }

    pub fn not_found(kind: &Kind, name: &str) -> Self {
        let message = format!("{} {name:?} not found", kind.qualified_resource());
        Self::new(StatusCode::NOT_FOUND, "NotFound", message).about(kind.group, kind.plural, name)
    }

    pub fn already_exists(kind: &Kind, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", kind.qualified_resource());
        Self::new(StatusCode::CONFLICT, "AlreadyExists", message).about(kind.group, kind.plural, name)
    }

    pub fn conflict(kind: &Kind, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {name:?}: {why}", kind.qualified_resource());
        Self::new(StatusCode::CONFLICT, "Conflict", message).about(kind.group, kind.plural, name)
    }

    /// The resourceVersion of the request is not the stored one.
    pub fn stale(kind: &Kind, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(kind, name, why)
    }

    pub fn invalid(kind: &Kind, name: &str, errors: &[FieldError]) -> Self {
        Self::invalid_named(kind.group, kind.kind, name, errors)
    }

    fn invalid_named(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let list = if texts.len() == 1 { texts.concat() } else { format!("[{}]", texts.join(", ")) };
        let qualified = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
        let causes: Vec<Value> = errors.iter().map(FieldError::cause).collect();
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", format!("{qualified} {name:?} is invalid: {list}"))
            .about(group, kind, name)
            .detail("causes", causes)
    }

    /// Query options of a list, watch or delete that contradict each other.
    pub fn invalid_options(kind: &str, errors: &[FieldError]) -> Self {
        Self::invalid_named("meta.k8s.io", kind, "", errors)
    }

    /// 422: a JSON patch that does not apply. The cause carries the reason.
    pub fn unprocessable(cause: &str) -> Self {
        let message = "the server rejected our request due to an error in our request";
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message)
            .detail("causes", vec![json!({"reason": "UnexpectedServerResponse", "message": cause})])
    }

    /// 422: what a patch makes cannot be read as an object.
    pub fn invalid_patch(error: &FieldError) -> Self {
        Self::invalid_named("", "", "", std::slice::from_ref(error))
    }

    pub fn patch_too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", message)
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    pub fn forbidden(kind: &Kind, name: &str, why: &str) -> Self {
        let resource = kind.qualified_resource();
        let message = if name.is_empty() {
            format!("{resource} is forbidden: {why}")
        } else {
            format!("{resource} {name:?} is forbidden: {why}")
        };
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message).about(kind.group, kind.plural, name)
    }

    pub fn forbidden_path(why: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, "Forbidden", format!("forbidden: {why}"))
    }

    /// A namespace that is going away takes no new objects.
    pub fn namespace_terminating(kind: &Kind, name: &str, namespace: &str) -> Self {
        let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
        let cause = json!({"reason": "NamespaceTerminating",
            "message": format!("namespace {namespace} is being terminated"), "field": "metadata.namespace"});
        Self::forbidden(kind, name, &why).detail("causes", vec![cause])
    }

    pub fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized")
    }

    pub fn method_not_allowed(kind: &Kind) -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message).about(kind.group, kind.plural, "")
    }

    pub fn not_acceptable(offered: &str) -> Self {
        let message = format!("only the following media types are accepted: {offered}");
        Self::new(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", message)
    }

    pub fn unsupported_media_type(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message)
    }

    pub fn too_large(limit: usize) -> Self {
        let message = format!("Request entity too large: limit is {limit}");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", message)
    }

    pub fn body_timeout() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "Timeout", "the request body did not arrive in time")
    }

    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "Expired", message)
    }

    pub fn future_revision(asked: u64, current: u64) -> Self {
        let cause = json!({"reason": "ResourceVersionTooLarge", "message": "Too large resource version"});
        Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            "Timeout",
            format!("Too large resource version: {asked}, current: {current}"),
        )
        .detail("causes", vec![cause])
        .detail("retryAfterSeconds", 1)
    }

    pub fn internal(message: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", format!("Internal error occurred: {message}"))
            .detail("causes", vec![json!({"message": message.to_string()})])
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", message)
    }

    /// What a node answered, handed on: the message of a Status, or the text as it is.
    pub fn from_node(code: StatusCode, answer: &str) -> Self {
        let status: Option<Value> = serde_json::from_str(answer).ok().filter(|v: &Value| v["kind"] == "Status");
        let message = status.as_ref().and_then(|v| v["message"].as_str()).unwrap_or(answer);
        let reason = match code.as_u16() {
            400 => "BadRequest",
            404 => "NotFound",
            405 => "MethodNotAllowed",
            503 => "ServiceUnavailable",
            _ => "InternalError",
        };
        Self::new(code, reason, message.trim_end())
    }

    pub fn value(&self) -> Value {
        let Body { code, reason, message, details } = &*self.0;
        let mut status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "code": code.as_u16()});
        if !details.is_empty() {
            status["details"] = Value::Object(details.clone());
        }
        status
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = (self.0.code, json_body(&self.value())).into_response();
        if self.0.code == StatusCode::GATEWAY_TIMEOUT {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// `Status` of something that is done and leaves no object to show.
pub fn success(kind: &Kind, name: &str, uid: &Value) -> Value {
    let mut details = Map::new();
    details.insert("name".into(), name.into());
    if !kind.group.is_empty() {
        details.insert("group".into(), kind.group.into());
    }
    details.insert("kind".into(), kind.plural.into());
    details.insert("uid".into(), uid.clone());
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

/// A value as a JSON body with a final line feed.
pub fn json_body(value: &Value) -> impl IntoResponse + use<> {
    let mut text = value.to_string();
    text.push('\n');
    ([(header::CONTENT_TYPE, "application/json")], text)
}

/// What net/http answers on a path that nothing is registered for; clients print their own words then.
pub fn page_not_found() -> Response {
    let head = [(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (StatusCode::NOT_FOUND, head, "404 page not found\n").into_response()
}
