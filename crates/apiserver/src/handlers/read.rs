//! get, list and the start of a watch. A list is a moment: one revision, whether it is now, was asked for, or is continued
//! page by page.

use std::sync::Arc;

use axum::{
    body::{Body, Bytes},
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use futures::stream;
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use super::{
    Api, Call, key_of,
    reply::{self, Form},
    resource_of,
};
use crate::{
    kinds::Kind,
    request::{ListOptions, Match},
    selector::Selection,
    status::Failure,
    store::{Compacted, Stored},
    table::{self, IncludeObject},
    watch::Watch,
};

const LIST_GONE: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new \
                         list without the continue parameter.";
/// How much of a list is sent at once.
const CHUNK: usize = 64 << 10;

pub(super) fn get(api: &Api, call: &Call) -> Result<Response, Failure> {
    let Call { target, query, form, warnings, .. } = call;
    let object = api.get(target.kind, &target.namespace, &target.name)?;
    Ok(reply::warn(reply::stored(*form, target.kind, query.include_object()?, &object), warnings))
}

/// One page of a list, and what its `metadata` says.
struct Page {
    items: Vec<Arc<Stored>>,
    revision: u64,
    resume: Option<String>,
    remaining: Option<usize>,
}

impl Page {
    fn meta(&self) -> Value {
        let mut meta = json!({"resourceVersion": self.revision.to_string()});
        if let Some(resume) = &self.resume {
            meta["continue"] = resume.as_str().into();
        }
        if let Some(remaining) = self.remaining {
            meta["remainingItemCount"] = remaining.into();
        }
        meta
    }
}

pub(super) async fn list(api: &Api, call: Call) -> Result<Response, Failure> {
    let options = ListOptions::parse(&call.query, false)?;
    let selection = selection(&call)?;
    let kind = call.kind();
    let page = page(api, kind, &call.target.namespace, &options, &selection)?;
    let response = match call.form {
        Form::Json { pretty: false } => streamed(kind, page),
        form => {
            let include = call.query.include_object()?;
            // A Table of thousands of rows is work: not on the threads that serve everybody.
            let whole = tokio::task::spawn_blocking(move || rendered(form, kind, include, &page));
            reply::plain(form, StatusCode::OK, &whole.await.map_err(Failure::internal)?)
        }
    };
    Ok(reply::warn(response, &call.warnings))
}

fn selection(call: &Call) -> Result<Selection, Failure> {
    Selection::parse(call.kind(), call.query.get("labelSelector"), call.query.get("fieldSelector"))
        .map_err(Failure::bad_request)
}

pub(super) fn prefix_of(namespace: &str) -> String {
    if namespace.is_empty() { String::new() } else { format!("{namespace}/") }
}

/// Everything a deletecollection is about, without paging.
pub(super) fn selected(api: &Api, call: &Call) -> Result<Vec<Arc<Stored>>, Failure> {
    let selection = selection(call)?;
    let (_, mut items) = api.store.list(&resource_of(call.kind()), &prefix_of(&call.target.namespace));
    items.retain(|o| selection.matches(o));
    Ok(items)
}

fn page(
    api: &Api,
    kind: &Kind,
    namespace: &str,
    options: &ListOptions,
    selection: &Selection,
) -> Result<Page, Failure> {
    let resource = resource_of(kind);
    let prefix = prefix_of(namespace);
    let resume = options.resume.as_deref().map(Resume::decode).transpose()?;
    let exact = match (&resume, options.revision_match, options.revision) {
        (Some(resume), ..) => Some(resume.revision),
        // Without a match rule, a limit and a revision together mean exactly that revision.
        (None, Match::Exact, Some(revision)) => Some(revision),
        (None, Match::Unset, Some(revision)) if options.limit > 0 && revision > 0 => Some(revision),
        _ => None,
    };
    let current = api.store.revision();
    if let Some(asked) = options.revision.or(exact).filter(|asked| *asked > current) {
        return Err(Failure::future_revision(asked, current));
    }
    let (revision, mut items) = match exact {
        None => api.store.list(&resource, &prefix),
        Some(revision) => match api.store.list_at(&resource, &prefix, revision) {
            Ok(items) => (revision, items),
            Err(_) if resume.is_some() => return Err(Failure::expired(LIST_GONE)),
            Err(gone) => return Err(too_old(&gone)),
        },
    };
    if let Some(resume) = &resume {
        let first = items.partition_point(|o| *o.key <= *resume.after);
        items.drain(..first);
    }
    items.retain(|o| selection.matches(o));
    let mut page = Page { items, revision, resume: None, remaining: None };
    if options.limit > 0 && page.items.len() > options.limit {
        let rest = page.items.len() - options.limit;
        page.items.truncate(options.limit);
        page.resume = page.items.last().map(|last| Resume { revision, after: last.key.to_string() }.encode());
        page.remaining = selection.is_everything().then_some(rest);
    }
    Ok(page)
}

pub(crate) fn too_old(gone: &Compacted) -> Failure {
    Failure::expired(format!("too old resource version: {} ({})", gone.asked, gone.oldest))
}

/// A continue token: the revision of the first page and the last key it showed.
struct Resume {
    revision: u64,
    after: String,
}

impl Resume {
    fn encode(&self) -> String {
        let token = json!({"v": "meta.k8s.io/v1", "rv": self.revision, "start": self.after});
        URL_SAFE_NO_PAD.encode(token.to_string())
    }

    fn decode(token: &str) -> Result<Self, Failure> {
        let parse = || {
            let json: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
            Some(Self { revision: json["rv"].as_u64()?, after: json["start"].as_str()?.to_owned() })
        };
        parse().ok_or_else(|| Failure::bad_request("continue key is not valid: it was not made by this server"))
    }
}

/// The list as it lies in memory, joined in chunks: nothing is parsed, and no second copy of the list exists at once.
fn streamed(kind: &Kind, page: Page) -> Response {
    let mut head =
        json!({"apiVersion": kind.api_version(), "kind": kind.list_kind(), "metadata": page.meta()}).to_string();
    head.pop();
    head.push_str(",\"items\":[");
    if page.items.is_empty() {
        head.push_str("]}\n");
        return reply::json_bytes(StatusCode::OK, Bytes::from(head));
    }
    let items = page.items.into_iter();
    let chunks = stream::unfold((items, Some(head.into_bytes()), true), |(mut items, start, mut first)| async move {
        let mut chunk = start?;
        while chunk.len() < CHUNK {
            let Some(item) = items.next() else {
                chunk.extend_from_slice(b"]}\n");
                return Some((Ok::<_, std::convert::Infallible>(Bytes::from(chunk)), (items, None, first)));
            };
            if !first {
                chunk.push(b',');
            }
            first = false;
            chunk.extend_from_slice(&item.json);
        }
        Some((Ok(Bytes::from(chunk)), (items, Some(Vec::with_capacity(CHUNK + 4096)), first)))
    });
    let content_type = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    (StatusCode::OK, content_type, Body::from_stream(chunks)).into_response()
}

fn rendered(form: Form, kind: &Kind, include: IncludeObject, page: &Page) -> Value {
    let objects: Vec<Value> = page.items.iter().map(|o| o.value()).collect();
    match form {
        Form::Table(version) => {
            let rows: Vec<&Value> = objects.iter().collect();
            table::table(kind, version, &page.meta(), &rows, include, false, reply::now())
        }
        Form::Metadata(version) => {
            let items: Vec<Value> = objects.iter().map(|o| reply::metadata_only(o, version)).collect();
            json!({"kind": "PartialObjectMetadataList", "apiVersion": version.as_str(), "metadata": page.meta(), "items": items})
        }
        Form::Json { .. } | Form::Yaml => {
            json!({"kind": kind.list_kind(), "apiVersion": kind.api_version(), "metadata": page.meta(), "items": objects})
        }
    }
}

pub(super) fn watch(api: &Api, call: Call) -> Result<Response, Failure> {
    let options = ListOptions::parse(&call.query, true)?;
    let mut selection = selection(&call)?;
    if !call.target.name.is_empty() {
        selection = selection.named(&call.target.name);
    }
    let current = api.store.revision();
    if let Some(asked) = options.revision.filter(|asked| *asked > current) {
        return Err(Failure::future_revision(asked, current));
    }
    let include = call.query.include_object()?;
    let form = match call.form {
        Form::Yaml => return Err(Failure::not_acceptable("application/json")),
        form => form,
    };
    let watch = Watch::start(
        api.store.clone(),
        call.kind(),
        resource_of(call.kind()),
        prefix_of(&call.target.namespace),
        selection,
        form,
        include,
        &options,
        api.stopping.clone(),
    );
    let content_type = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    Ok(reply::warn((content_type, Body::from_stream(watch.frames())).into_response(), &call.warnings))
}

/// The namespace of a request must be there and not be going away.
pub(super) fn namespace_takes_objects(api: &Api, kind: &Kind, namespace: &str, name: &str) -> Result<(), Failure> {
    let Some(namespaces) = crate::kinds::find("", "v1", "namespaces") else { return Ok(()) };
    let found = api.store.get(&resource_of(namespaces), &key_of("", namespace));
    let Some(found) = found else { return Err(Failure::not_found(namespaces, namespace)) };
    if found.value()["metadata"]["deletionTimestamp"].is_string() {
        return Err(Failure::namespace_terminating(kind, name, namespace));
    }
    Ok(())
}
