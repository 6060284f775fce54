//! POST to a collection: name it, fill in what the server owns, admit, allocate, write.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use model::admit;
use rand::Rng;
use serde_json::{Value, json};

use super::{Api, Call, key_of, meta, read, reply, resource_of, timestamp};
use crate::{
    kinds::Kind,
    schema,
    status::Failure,
    store::{Change, Encoded, Expect, Stored, Write, WriteError},
};

/// What Kubernetes makes random suffixes of: no vowels, no look-alikes.
const SUFFIX_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX_LENGTH: usize = 5;
const MAX_GENERATED_NAME: usize = 63;
/// Tries to find a free name before a client hears of a collision.
const GENERATE_TRIES: usize = 8;

pub(super) async fn create(api: &Api, mut call: Call) -> Result<Response, Failure> {
    let kind = call.kind();
    if !call.target.name.is_empty() || (kind.namespaced && call.target.namespace.is_empty()) {
        return Err(Failure::method_not_allowed(kind));
    }
    let decoded = schema::decode(kind, &call.content_type, &call.body, call.validation()?)?;
    call.warnings.extend(decoded.warnings);
    let namespace = call.target.namespace.clone();
    let new = NewObject { kind, namespace, object: decoded.object, dry_run: call.query.dry_run()? };
    // Advice helps most when the object is refused.
    let advice = admit::warnings(kind.kind, &new.object);
    let created = match new.insert(api).await {
        Ok(created) => created,
        Err(failure) => {
            call.warnings.extend(advice);
            return Ok(reply::warn(failure.into_response(), &call.warnings));
        }
    };
    let object = created.value();
    call.warnings.extend(admit::warnings(kind.kind, &object));
    let response = reply::value(call.form, kind, call.query.include_object()?, StatusCode::CREATED, &object);
    Ok(reply::warn(response, &call.warnings))
}

/// A decoded object on its way into the store.
pub(crate) struct NewObject {
    pub(crate) kind: &'static Kind,
    pub(crate) namespace: String,
    pub(crate) object: Value,
    pub(crate) dry_run: bool,
}

pub(crate) enum Created {
    Stored(Arc<Stored>),
    DryRun(Value),
}

impl Created {
    fn value(self) -> Value {
        match self {
            Self::Stored(stored) => stored.value(),
            Self::DryRun(value) => value,
        }
    }
}

impl NewObject {
    /// Answers once the object is durable.
    pub(crate) async fn insert(mut self, api: &Api) -> Result<Created, Failure> {
        self.check_request()?;
        let generate = meta(&self.object, "name").is_empty() && !meta(&self.object, "generateName").is_empty();
        for _ in 0..GENERATE_TRIES {
            if generate {
                let name = generated_name(meta(&self.object, "generateName"));
                self.object["metadata"]["name"] = name.into();
            }
            match self.attempt(api).await {
                Err(failure) if generate && failure.code() == StatusCode::CONFLICT => {}
                result => return result,
            }
        }
        Err(Failure::already_exists(self.kind, meta(&self.object, "name")))
    }

    /// What the request must agree with before anything is looked at.
    fn check_request(&mut self) -> Result<(), Failure> {
        if !self.object["metadata"].is_object() {
            self.object["metadata"] = json!({});
        }
        let given = meta(&self.object, "namespace");
        if !given.is_empty() && given != self.namespace {
            let message = "the namespace of the provided object does not match the namespace sent on the request";
            return Err(Failure::bad_request(message));
        }
        if !meta(&self.object, "resourceVersion").is_empty() {
            return Err(Failure::bad_request("resourceVersion should not be set on objects to be created"));
        }
        Ok(())
    }

    async fn attempt(&self, api: &Api) -> Result<Created, Failure> {
        let Self { kind, namespace, .. } = self;
        let mut object = self.object.clone();
        let name = meta(&object, "name").to_owned();
        if kind.namespaced {
            read::namespace_takes_objects(api, kind, namespace, &name)?;
        }
        self.own_metadata(&mut object);
        admit::default(kind.kind, &mut object);
        admit::prepare_create(kind.kind, &mut object);
        let (resource, key) = (resource_of(kind), key_of(namespace, &name));
        let reservation = if is_service(kind) {
            let reserved = api.allocations().reserve(None, &mut object, rand::random());
            Some(reserved.map_err(|errors| Failure::invalid(kind, &name, &errors))?)
        } else {
            None
        };
        let outcome = self.write(api, &object, resource, key).await;
        if let Some(reservation) = reservation {
            let mut allocations = api.allocations();
            match &outcome {
                Ok(Created::Stored(_)) => allocations.commit(reservation),
                Ok(Created::DryRun(_)) | Err(_) => allocations.rollback(reservation),
            }
        }
        outcome
    }

    fn own_metadata(&self, object: &mut Value) {
        let Some(meta) = object["metadata"].as_object_mut() else { return };
        for field in ["selfLink", "managedFields", "deletionTimestamp", "deletionGracePeriodSeconds", "resourceVersion"]
        {
            meta.remove(field);
        }
        meta.insert("uid".into(), uid().into());
        meta.insert("creationTimestamp".into(), timestamp(0).into());
        if self.kind.namespaced {
            meta.insert("namespace".into(), self.namespace.as_str().into());
        }
    }

    async fn write(&self, api: &Api, object: &Value, resource: Arc<str>, key: Arc<str>) -> Result<Created, Failure> {
        let name = meta(object, "name");
        let errors = admit::validate_create(self.kind.kind, object);
        if !errors.is_empty() {
            return Err(Failure::invalid(self.kind, name, &errors));
        }
        if self.dry_run {
            return Ok(Created::DryRun(object.clone()));
        }
        let change = Change::Put(Encoded::new(object));
        match api.store.write(Write { resource, key, expect: Expect::Absent, change }).await {
            Ok(stored) => Ok(Created::Stored(stored)),
            Err(WriteError::Conflict) => Err(Failure::already_exists(self.kind, name)),
            Err(other) => Err(other.into()),
        }
    }
}

pub(super) fn is_service(kind: &Kind) -> bool {
    kind.group.is_empty() && kind.kind == "Service"
}

fn generated_name(base: &str) -> String {
    let mut cut = base.len().min(MAX_GENERATED_NAME - SUFFIX_LENGTH);
    while !base.is_char_boundary(cut) {
        cut -= 1;
    }
    let mut rng = rand::rng();
    let suffix = (0..SUFFIX_LENGTH).map(|_| char::from(SUFFIX_ALPHABET[rng.random_range(0..SUFFIX_ALPHABET.len())]));
    base[..cut].chars().chain(suffix).collect()
}

/// A random (version 4) UUID.
fn uid() -> String {
    let mut b: [u8; 16] = rand::random();
    b[6] = (b[6] & 0x0f) | 0x40;
    b[8] = (b[8] & 0x3f) | 0x80;
    let hex: String = b.iter().map(|b| format!("{b:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_fit_and_use_the_alphabet() {
        let name = generated_name("web-");
        assert!(name.starts_with("web-") && name.len() == 9, "{name}");
        assert!(name.bytes().skip(4).all(|b| SUFFIX_ALPHABET.contains(&b)));
        assert_eq!(generated_name(&"x".repeat(100)).len(), 63);
        assert!(generated_name(&"ü".repeat(60)).len() <= 63);
    }

    #[test]
    fn uids_are_version_4() {
        let uid = uid();
        assert_eq!((uid.len(), &uid[14..15]), (36, "4"), "{uid}");
    }
}
