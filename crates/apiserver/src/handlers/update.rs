//! PUT and PATCH, of the object or of its status, as one thing: an edit. It reads, lets the caller make the new object,
//! admits it, and writes it if nobody was faster; otherwise it starts again, unless the client named the revision it means.

use std::sync::Arc;

use axum::response::Response;
use http::StatusCode;
use model::admit::{self, FieldError, allocate::Reservation};
use serde_json::Value;

use super::{Api, Call, create::is_service, finalizers, key_of, meta, reply, resource_of, without_revision};
use crate::{
    kinds::Kind,
    patch::{self, PatchError},
    schema,
    status::Failure,
    store::{Change, Encoded, Expect, Stored, Write, WriteError},
};

/// Losing this often against other writers means that something is wrong with them.
const MAX_TRIES: usize = 100;

/// Which part of the object an edit may touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Everything but the status, for kinds that have one.
    Main,
    Status,
    /// The server's own doing (binding, finalizing): admission does not look.
    Whole,
}

/// Where an edit goes.
pub(super) struct Edit<'a> {
    pub(super) kind: &'static Kind,
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    pub(super) part: Part,
    pub(super) dry_run: bool,
}

pub(super) enum Edited {
    /// Written, or found as it should be.
    Stored(Arc<Stored>),
    /// Not written: a dry run.
    Value(Value),
}

impl Edited {
    pub(super) fn value(&self) -> Value {
        match self {
            Self::Stored(stored) => stored.value(),
            Self::Value(value) => value.clone(),
        }
    }
}

pub(super) async fn replace(api: &Api, call: Call) -> Result<Response, Failure> {
    change(api, call, Part::Main, |call, _| decoded_body(call)).await
}

pub(super) async fn replace_status(api: &Api, call: Call) -> Result<Response, Failure> {
    change(api, call, Part::Status, |call, _| decoded_body(call)).await
}

pub(super) async fn patch(api: &Api, call: Call) -> Result<Response, Failure> {
    if call.content_type.starts_with("application/apply-patch") {
        // It would create what is not there, so that it is missing must not be the answer.
        patched(&call, &Value::Object(serde_json::Map::new()))?;
    }
    change(api, call, Part::Main, patched).await
}

pub(super) async fn patch_status(api: &Api, call: Call) -> Result<Response, Failure> {
    change(api, call, Part::Status, patched).await
}

/// The body as the whole new object.
fn decoded_body(call: &Call) -> Result<(Value, Vec<String>), Failure> {
    let decoded = schema::decode(call.kind(), &call.content_type, &call.body, call.validation()?)?;
    let name = meta(&decoded.object, "name");
    if name.is_empty() {
        return Err(Failure::bad_request(format!(
            "the name of the object ({} based on URL) was undeterminable: name must be provided",
            call.target.name
        )));
    }
    if name != call.target.name {
        return Err(Failure::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            call.target.name
        )));
    }
    let namespace = meta(&decoded.object, "namespace");
    if !namespace.is_empty() && namespace != call.target.namespace {
        return Err(Failure::bad_request(format!(
            "the namespace of the object ({namespace}) does not match the namespace on the request ({})",
            call.target.namespace
        )));
    }
    Ok((decoded.object, decoded.warnings))
}

fn patched(call: &Call, current: &Value) -> Result<(Value, Vec<String>), Failure> {
    let kind = call.kind();
    patch::apply(kind, &call.content_type, current, &call.body, call.validation()?)
        .map(|d| (d.object, d.warnings))
        .map_err(|e| match e {
            PatchError::BadRequest(message) => Failure::bad_request(message),
            PatchError::Unprocessable(cause) => Failure::unprocessable(&cause),
            PatchError::Invalid(error) => Failure::invalid_patch(&error),
            PatchError::TooLarge(message) => Failure::patch_too_large(message),
            PatchError::UnsupportedMediaType(message) => Failure::unsupported_media_type(message),
        })
}

async fn change(
    api: &Api,
    mut call: Call,
    part: Part,
    make: impl Fn(&Call, &Value) -> Result<(Value, Vec<String>), Failure>,
) -> Result<Response, Failure> {
    let kind = call.kind();
    if kind.namespaced && call.target.namespace.is_empty() {
        return Err(Failure::method_not_allowed(kind));
    }
    let mut warnings = Vec::new();
    let edit =
        Edit { kind, namespace: &call.target.namespace, name: &call.target.name, part, dry_run: call.query.dry_run()? };
    let edited = edit
        .run(api, |current| {
            let (object, advice) = make(&call, current)?;
            warnings = advice;
            Ok(object)
        })
        .await?;
    call.warnings.append(&mut warnings);
    let include = call.query.include_object()?;
    let response = match &edited {
        Edited::Stored(stored) => reply::stored(call.form, kind, include, stored),
        Edited::Value(value) => reply::value(call.form, kind, include, StatusCode::OK, value),
    };
    if part == Part::Main {
        call.warnings.extend(admit::warnings(kind.kind, &edited.value()));
    }
    Ok(reply::warn(response, &call.warnings))
}

impl Edit<'_> {
    pub(super) async fn run(
        &self,
        api: &Api,
        mut make: impl FnMut(&Value) -> Result<Value, Failure>,
    ) -> Result<Edited, Failure> {
        for _ in 0..MAX_TRIES {
            let stored = api.get(self.kind, self.namespace, self.name)?;
            let old = stored.value();
            let mut new = make(&old)?;
            self.check_identity(&old, &new, stored.revision)?;
            keep_system_metadata(&old, &mut new);
            let reservation = self.admit(api, &old, &mut new)?;
            let outcome = self.write(api, &stored, &old, new).await;
            if let Some(reservation) = reservation {
                match &outcome {
                    Ok(Edited::Stored(now)) if now.revision != stored.revision => api.allocations().commit(reservation),
                    _ => api.allocations().rollback(reservation),
                }
            }
            match outcome {
                Ok(edited) => return Ok(edited),
                Err(WriteOr::Conflict) => {}
                Err(WriteOr::Failure(failure)) => return Err(failure),
            }
        }
        Err(Failure::stale(self.kind, self.name))
    }

    /// The new object must be the same one, and at the revision it says it was made from.
    fn check_identity(&self, old: &Value, new: &Value, revision: u64) -> Result<(), Failure> {
        for field in ["name", "namespace"] {
            let given = meta(new, field);
            if !given.is_empty() && given != meta(old, field) {
                let error = FieldError::invalid(format!("metadata.{field}"), given, "field is immutable");
                return Err(Failure::invalid(self.kind, self.name, &[error]));
            }
        }
        let (given, uid) = (meta(new, "uid"), meta(old, "uid"));
        if !given.is_empty() && given != uid {
            let why = format!("Precondition failed: UID in precondition: {given}, UID in object meta: {uid}");
            return Err(Failure::conflict(self.kind, self.name, &why));
        }
        match meta(new, "resourceVersion") {
            "" | "0" => Ok(()),
            given if given == revision.to_string() => Ok(()),
            given if given.parse::<u64>().is_err() => {
                let error = FieldError::invalid("metadata.resourceVersion", given, "must be an unsigned integer");
                Err(Failure::invalid(self.kind, self.name, &[error]))
            }
            _ => Err(Failure::stale(self.kind, self.name)),
        }
    }

    /// Fills in, checks and allocates. The reservation must be committed or rolled back.
    fn admit(&self, api: &Api, old: &Value, new: &mut Value) -> Result<Option<Reservation>, Failure> {
        let kind = self.kind.kind;
        match self.part {
            Part::Whole => return Ok(None),
            Part::Status => {
                admit::prepare_status_update(kind, old, new);
                return Ok(None);
            }
            Part::Main => {}
        }
        admit::default(kind, new);
        admit::prepare_update(kind, old, new);
        no_new_finalizers(self.kind, self.name, old, new)?;
        let invalid = |errors: &[FieldError]| Failure::invalid(self.kind, self.name, errors);
        let reservation = if is_service(self.kind) {
            let reserved = api.allocations().reserve(Some(old), new, rand::random());
            Some(reserved.map_err(|errors| invalid(&errors))?)
        } else {
            None
        };
        let errors = admit::validate_update(kind, old, new);
        if errors.is_empty() {
            return Ok(reservation);
        }
        if let Some(reservation) = reservation {
            api.allocations().rollback(reservation);
        }
        Err(invalid(&errors))
    }

    async fn write(&self, api: &Api, stored: &Arc<Stored>, old: &Value, new: Value) -> Result<Edited, WriteOr> {
        let gone = is_finished(self.kind, &new);
        if !gone && without_revision(old) == without_revision(&new) {
            return Ok(Edited::Stored(stored.clone()));
        }
        if self.dry_run {
            return Ok(Edited::Value(new));
        }
        let encoded = Encoded::new(&new);
        let written = api
            .store
            .write(Write {
                resource: resource_of(self.kind),
                key: key_of(self.namespace, self.name),
                expect: Expect::Revision(stored.revision),
                change: if gone { Change::Delete(encoded) } else { Change::Put(encoded) },
            })
            .await?;
        if gone && is_service(self.kind) {
            api.allocations().release(old);
        }
        Ok(Edited::Stored(written))
    }
}

/// Somebody was faster, or a real failure.
enum WriteOr {
    Conflict,
    Failure(Failure),
}

impl From<WriteError> for WriteOr {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Conflict => Self::Conflict,
            other => Self::Failure(other.into()),
        }
    }
}

/// Being deleted, and nothing holds it any more: the last edit removes it.
pub(super) fn is_finished(kind: &Kind, object: &Value) -> bool {
    let meta = &object["metadata"];
    meta["deletionTimestamp"].is_string()
        && meta["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
        && finalizers(object).is_empty()
        && !has_namespace_finalizers(kind, object)
}

/// A namespace is held by `spec.finalizers` as well.
pub(super) fn has_namespace_finalizers(kind: &Kind, object: &Value) -> bool {
    kind.kind == "Namespace" && object["spec"]["finalizers"].as_array().is_some_and(|f| !f.is_empty())
}

/// What only the server writes stays as it was.
fn keep_system_metadata(old: &Value, new: &mut Value) {
    if !new["metadata"].is_object() {
        new["metadata"] = serde_json::json!({});
    }
    let Some(meta) = new["metadata"].as_object_mut() else { return };
    let owned = [
        "name",
        "namespace",
        "generateName",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "selfLink",
        "resourceVersion",
    ];
    for field in owned {
        match old["metadata"].get(field) {
            Some(value) => meta.insert(field.into(), value.clone()),
            None => meta.remove(field),
        };
    }
    meta.remove("managedFields");
}

fn no_new_finalizers(kind: &Kind, name: &str, old: &Value, new: &Value) -> Result<(), Failure> {
    if !old["metadata"]["deletionTimestamp"].is_string() {
        return Ok(());
    }
    let before = finalizers(old);
    let added: Vec<String> =
        finalizers(new).into_iter().filter(|f| !before.contains(f)).map(|f| format!("{f:?}")).collect();
    if added.is_empty() {
        return Ok(());
    }
    let why = format!(
        "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
        added.join(", ")
    );
    Err(Failure::invalid(kind, name, &[FieldError::forbidden("metadata.finalizers", why)]))
}
