//! Writes to the API: raw objects in, raw objects out, errors that can be acted on.

use std::fmt;

use model::ObjectKey;
use serde_json::{Value, json};

use crate::{Error, Resource};

/// How a patch body is to be read (RFC 6902, RFC 7386, and Kubernetes' strategic merge).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchKind {
    Json,
    Merge,
    Strategic,
}

impl PatchKind {
    fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json-patch+json",
            Self::Merge => "application/merge-patch+json",
            Self::Strategic => "application/strategic-merge-patch+json",
        }
    }
}

/// `metadata.ownerReferences` and finalizers on delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

impl fmt::Display for Propagation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Background => "Background",
            Self::Foreground => "Foreground",
            Self::Orphan => "Orphan",
        })
    }
}

/// What a delete may depend on and how it is carried out. The default leaves all to the server.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// Only the object with this uid: never a successor of the same name.
    pub uid: Option<String>,
    /// Only in exactly this state.
    pub resource_version: Option<String>,
    pub propagation: Option<Propagation>,
    pub grace_seconds: Option<u32>,
}

/// Writes as one named component (the `fieldManager`).
#[derive(Clone)]
pub struct Writer {
    client: kube::Client,
    manager: &'static str,
}

impl Writer {
    pub fn new(client: kube::Client, manager: &'static str) -> Self {
        Self { client, manager }
    }

    pub fn client(&self) -> &kube::Client {
        &self.client
    }

    /// Reads one object past every cache.
    pub async fn get(&self, resource: &Resource, key: &ObjectKey) -> Result<Value, Error> {
        let path = resource.object_path(&key.namespace, &key.name);
        self.send("GET", &path, None, "application/json", &format!("read {} {key}", resource.kind)).await
    }

    /// Creates `object` in `namespace`; `metadata.generateName` works as in the API.
    pub async fn create(&self, resource: &Resource, namespace: &str, object: &Value) -> Result<Value, Error> {
        let m = &object["metadata"];
        let name = m["name"].as_str().or(m["generateName"].as_str()).unwrap_or_default();
        let path = format!("{}?fieldManager={}", resource.path(namespace), self.manager);
        let what = format!("create {} {}", resource.kind, ObjectKey::new(namespace, name));
        self.send("POST", &path, Some(object), "application/json", &what).await
    }

    /// Creates a child of an object: `pods/x/binding`.
    pub async fn create_sub(
        &self,
        resource: &Resource,
        key: &ObjectKey,
        sub: &str,
        body: &Value,
    ) -> Result<Value, Error> {
        let path = format!("{}/{sub}?fieldManager={}", resource.object_path(&key.namespace, &key.name), self.manager);
        let what = format!("create {sub} of {} {key}", resource.kind);
        self.send("POST", &path, Some(body), "application/json", &what).await
    }

    /// Replaces an object, or its subresource `sub` ("" for the object, "status", "finalize"). With
    /// `metadata.resourceVersion` the write fails as a conflict when the object has changed since.
    pub async fn update(&self, resource: &Resource, sub: &str, object: &Value) -> Result<Value, Error> {
        let key = model::parse::key(object).ok_or_else(|| Error::Answer {
            what: format!("update {}", resource.kind),
            cause: "it has no name".into(),
        })?;
        let slash = if sub.is_empty() { "" } else { "/" };
        let path =
            format!("{}{slash}{sub}?fieldManager={}", resource.object_path(&key.namespace, &key.name), self.manager);
        let what = format!("update {}{slash}{sub} {key}", resource.kind);
        self.send("PUT", &path, Some(object), "application/json", &what).await
    }

    /// Patches an object or its subresource `sub`.
    pub async fn patch(
        &self,
        resource: &Resource,
        key: &ObjectKey,
        sub: &str,
        kind: PatchKind,
        patch: &Value,
    ) -> Result<Value, Error> {
        let slash = if sub.is_empty() { "" } else { "/" };
        let path =
            format!("{}{slash}{sub}?fieldManager={}", resource.object_path(&key.namespace, &key.name), self.manager);
        let what = format!("patch {}{slash}{sub} {key}", resource.kind);
        self.send("PATCH", &path, Some(patch), kind.content_type(), &what).await
    }

    /// The answer is the object on its way out, or a Status when it is gone already.
    pub async fn delete(&self, resource: &Resource, key: &ObjectKey, options: &DeleteOptions) -> Result<Value, Error> {
        let mut body = json!({"kind": "DeleteOptions", "apiVersion": "v1"});
        if let Some(p) = options.propagation {
            body["propagationPolicy"] = p.to_string().into();
        }
        if let Some(s) = options.grace_seconds {
            body["gracePeriodSeconds"] = s.into();
        }
        if let Some(uid) = &options.uid {
            body["preconditions"]["uid"] = uid.as_str().into();
        }
        if let Some(rv) = &options.resource_version {
            body["preconditions"]["resourceVersion"] = rv.as_str().into();
        }
        let path = resource.object_path(&key.namespace, &key.name);
        let what = format!("delete {} {key}", resource.kind);
        self.send("DELETE", &path, Some(&body), "application/json", &what).await
    }

    /// Deletes every object of a kind in a namespace.
    pub async fn delete_collection(&self, resource: &Resource, namespace: &str) -> Result<(), Error> {
        let what = format!("delete all {} in {namespace}", resource.plural);
        let body = json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"});
        self.send("DELETE", &resource.path(namespace), Some(&body), "application/json", &what).await.map(drop)
    }

    /// True when a namespace holds no object of a kind.
    pub async fn is_empty(&self, resource: &Resource, namespace: &str) -> Result<bool, Error> {
        let path = format!("{}?limit=1", resource.path(namespace));
        let what = format!("list {} in {namespace}", resource.plural);
        let list = self.send("GET", &path, None, "application/json", &what).await?;
        Ok(list["items"].as_array().is_none_or(Vec::is_empty))
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        content_type: &str,
        what: &str,
    ) -> Result<Value, Error> {
        let answer = |e: String| Error::Answer { what: what.into(), cause: e };
        let bytes = body.map(serde_json::to_vec).transpose().map_err(|e| answer(e.to_string()))?.unwrap_or_default();
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::CONTENT_TYPE, content_type)
            .header(http::header::ACCEPT, "application/json")
            .body(bytes)
            .map_err(|e| answer(e.to_string()))?;
        self.client.request(request).await.map_err(|e| Error::of(what, e))
    }
}
