//! One request for one resource: find the target, ask whether the user may, and hand it to the verb. What a verb does is in
//! the modules below; what a kind is comes from [`crate::kinds`]; what is allowed in an object from `model::admit`.

mod create;
mod delete;
mod read;
mod reply;
mod reviews;
mod subresources;
mod update;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    extract::{Request, State},
    response::Response,
};
use http::{HeaderMap, Method, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use model::admit::allocate::Allocations;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

pub use self::reply::Form;
pub(crate) use self::{create::NewObject, subresources::container_named};
use crate::{
    NodeDialer,
    auth::{self, Action, Authenticator, User},
    kinds::Kind,
    protobuf,
    request::{Query, Target},
    schema::{DecodeError, FieldValidation},
    status::{self, Failure},
    store::{Store, Stored, WriteError},
    stream,
};

/// Larger bodies are refused (kube-apiserver's limit).
pub const MAX_BODY: usize = 3 << 20;
/// A client that sends its body slower than this is not a client.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Everything a request can reach. Cheap to clone.
#[derive(Clone)]
pub struct Api(Arc<Inner>);

pub struct Inner {
    pub(crate) store: Store,
    pub(crate) allocations: Mutex<Allocations>,
    pub(crate) authenticator: Arc<Authenticator>,
    pub(crate) nodes: Arc<dyn NodeDialer>,
    pub(crate) endpoints_warning: bool,
    /// Ends watches and streams, so that a shutdown does not wait for them.
    pub(crate) stopping: CancellationToken,
}

impl std::ops::Deref for Api {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Api {
    pub(crate) fn new(inner: Inner) -> Self {
        Self(Arc::new(inner))
    }

    fn allocations(&self) -> MutexGuard<'_, Allocations> {
        self.allocations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, kind: &Kind, namespace: &str, name: &str) -> Result<Arc<Stored>, Failure> {
        self.store.get(&resource_of(kind), &key_of(namespace, name)).ok_or_else(|| Failure::not_found(kind, name))
    }
}

/// `core/services`, `apps/deployments`: how the store names a resource.
pub(crate) fn resource_of(kind: &Kind) -> Arc<str> {
    let group = if kind.group.is_empty() { "core" } else { kind.group };
    format!("{group}/{}", kind.plural).into()
}

pub(crate) fn key_of(namespace: &str, name: &str) -> Arc<str> {
    if namespace.is_empty() { name.into() } else { format!("{namespace}/{name}").into() }
}

/// The parts of a request every verb looks at.
pub(crate) struct Call {
    pub(crate) target: Target,
    pub(crate) query: Query,
    pub(crate) user: User,
    pub(crate) form: Form,
    pub(crate) content_type: String,
    pub(crate) body: Bytes,
    pub(crate) warnings: Vec<String>,
}

impl Call {
    fn kind(&self) -> &'static Kind {
        self.target.kind
    }

    fn validation(&self) -> Result<FieldValidation, Failure> {
        self.query.field_validation()
    }
}

/// The fallback of the Router: everything below `/api/v1` and `/apis/GROUP/VERSION`.
pub(crate) async fn handle(State(api): State<Api>, request: Request) -> Response {
    let pretty = wants_pretty(request.headers(), request.uri().query().unwrap_or(""));
    let result = if matches!(*request.method(), Method::GET | Method::HEAD) {
        answer(&api, request, pretty).await
    } else {
        // A client that hangs up must not leave a write half accounted for: once begun, it is finished.
        let task = tokio::spawn(async move { answer(&api, request, pretty).await });
        task.await.unwrap_or_else(|e| Err(Failure::internal(e)))
    };
    result.unwrap_or_else(|failure| reply::failure(&failure, pretty))
}

async fn answer(api: &Api, request: Request, pretty: bool) -> Result<Response, Failure> {
    let Some(target) = Target::parse(request.uri().path())? else { return Ok(status::page_not_found()) };
    let query = Query::parse(request.uri().query().unwrap_or(""))?;
    let watch = query.flag("watch");
    let kind = target.kind;
    let verb = target.verb(request.method(), watch).ok_or_else(|| Failure::method_not_allowed(kind))?;
    let Some(user) = request.extensions().get::<User>().cloned() else { return Err(Failure::unauthorized()) };
    let action = Action::Resource {
        verb,
        group: kind.group,
        resource: kind.plural,
        subresource: &target.subresource,
        namespace: &target.namespace,
        name: &target.name,
    };
    auth::authorize(&user, &action).map_err(|_| auth::forbidden(&user, verb, &target))?;
    if kind.namespaced && target.subresource == "proxy" && kind.subresource("proxy").is_some() {
        return stream::proxy::serve(api, &target, request).await;
    }
    let form = Form::negotiate(request.headers(), pretty)?;
    let (parts, body) = request.into_parts();
    if kind.plural == "pods" && target.subresource == "portforward" && target.rest.is_empty() {
        return stream::port_forward(api, &target, parts).await;
    }
    if kind.plural == "pods" && matches!(&*target.subresource, "exec" | "attach") && target.rest.is_empty() {
        return stream::command::serve(api, &target, &query, parts).await;
    }
    let mut content_type = content_type(&parts.headers);
    let has_body = matches!(parts.method, Method::POST | Method::PUT | Method::PATCH | Method::DELETE);
    let mut body = if has_body { read_body(body).await? } else { Bytes::new() };
    if content_type.split(';').next().is_some_and(|media| media.trim() == protobuf::MEDIA_TYPE) && !body.is_empty() {
        let object = protobuf::to_json(&body).map_err(Failure::bad_request)?;
        body = object.to_string().into();
        content_type = "application/json".into();
    }
    let mut call = Call { target, query, user, form, content_type, body, warnings: Vec::new() };
    if api.endpoints_warning && kind.group.is_empty() && kind.kind == "Endpoints" {
        call.warnings.push("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice".into());
    }
    if !call.target.subresource.is_empty() {
        return subresources::answer(api, call, verb).await;
    }
    if !kind.stored() {
        return reviews::answer(api, call, verb).await;
    }
    if !kind.has_verb(verb) {
        return Err(Failure::method_not_allowed(kind));
    }
    match verb {
        "get" => read::get(api, &call),
        "list" => read::list(api, call).await,
        "watch" => read::watch(api, call),
        "create" => create::create(api, call).await,
        "update" => update::replace(api, call).await,
        "patch" => update::patch(api, call).await,
        "delete" => delete::delete(api, call).await,
        _ => delete::delete_collection(api, call).await,
    }
}

/// Asked for, or a person with curl or a browser (upstream decides the same way).
fn wants_pretty(headers: &HeaderMap, query: &str) -> bool {
    let agent = headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or("");
    match Query::parse(query) {
        Ok(q) if q.get("pretty").is_some() => q.flag("pretty"),
        _ => ["curl", "Wget", "Mozilla/5.0"].iter().any(|p| agent.starts_with(p)),
    }
}

fn content_type(headers: &HeaderMap) -> String {
    headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned()
}

async fn read_body(body: Body) -> Result<Bytes, Failure> {
    let collected = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY).collect());
    match collected.await {
        Err(_) => Err(Failure::body_timeout()),
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(e)) if e.is::<LengthLimitError>() => Err(Failure::too_large(MAX_BODY)),
        Ok(Err(e)) => Err(Failure::bad_request(format!("the request body could not be read: {e}"))),
    }
}

impl From<DecodeError> for Failure {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::BadRequest(message) => Self::bad_request(message),
            DecodeError::UnsupportedMediaType(message) => Self::unsupported_media_type(message),
        }
    }
}

impl From<WriteError> for Failure {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Closed => Self::unavailable("the API server is shutting down"),
            other => Self::internal(other),
        }
    }
}

/// `metadata.{field}` as text, "" when absent.
pub(crate) fn meta<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or("")
}

pub(crate) fn finalizers(object: &Value) -> Vec<&str> {
    object["metadata"]["finalizers"]
        .as_array()
        .map(|f| f.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default()
}

/// Now, as metadata carries it: RFC 3339 in seconds.
pub(crate) fn timestamp(seconds_from_now: i64) -> String {
    let seconds = jiff::Timestamp::now().as_second() + seconds_from_now;
    jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_string()
}

/// Removes empty containers where "absent" and "empty" mean the same, so that comparing objects is comparing meaning.
pub(crate) fn without_revision(object: &Value) -> Value {
    let mut copy = object.clone();
    if let Some(meta) = copy["metadata"].as_object_mut() {
        meta.remove("resourceVersion");
        meta.remove("managedFields");
        for field in ["labels", "annotations"] {
            if meta.get(field).is_some_and(|v| v.as_object().is_some_and(serde_json::Map::is_empty)) {
                meta.remove(field);
            }
        }
        for field in ["finalizers", "ownerReferences"] {
            if meta.get(field).is_some_and(|v| v.as_array().is_some_and(Vec::is_empty)) {
                meta.remove(field);
            }
        }
    }
    copy
}
