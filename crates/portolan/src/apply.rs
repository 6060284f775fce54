//! `up FILE`: what `kubectl apply -f FILE` does, through the API like every other client.

use std::{
    collections::HashMap,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use kube::{
    Api, Client,
    api::{DynamicObject, Patch, PatchParams, PostParams},
    core::GroupVersionKind,
    discovery::{self, ApiResource, Scope},
};
use serde::Deserialize;
use serde_json::{Map, Value};

/// kubectl's annotation, so that a later `kubectl apply` of the same file sees what was applied and can drop fields.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// One document of a file.
#[derive(Clone, Debug)]
pub struct Manifest {
    pub file: PathBuf,
    pub object: Value,
}

/// Reads every document of every file (`-` is standard input). Nothing is applied if one cannot be read.
pub fn read(files: &[PathBuf]) -> Result<Vec<Manifest>> {
    let mut manifests = Vec::new();
    for file in files {
        let text = if file == Path::new("-") {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("standard input")?;
            text
        } else {
            std::fs::read_to_string(file).with_context(|| format!("{}", file.display()))?
        };
        let found = parse(file, &text)?;
        if found.is_empty() {
            bail!("{}: no objects in it", file.display());
        }
        manifests.extend(found);
    }
    Ok(manifests)
}

fn parse(file: &Path, text: &str) -> Result<Vec<Manifest>> {
    let mut manifests = Vec::new();
    for (i, document) in serde_yaml_ng::Deserializer::from_str(text).enumerate() {
        let at = || format!("{}, document {}", file.display(), i + 1);
        let value = Value::deserialize(document).with_context(at)?;
        let objects = match value {
            Value::Null => continue,
            Value::Object(mut list) if list.get("kind").and_then(Value::as_str) == Some("List") => {
                match list.remove("items") {
                    Some(Value::Array(items)) => items,
                    _ => bail!("{}: a List without items", at()),
                }
            }
            other => vec![other],
        };
        for object in objects {
            for field in ["apiVersion", "kind"] {
                if !object.get(field).is_some_and(Value::is_string) {
                    bail!("{}: {field} is missing", at());
                }
            }
            if object["metadata"].get("name").and_then(Value::as_str).is_none_or(str::is_empty) {
                bail!("{}: metadata.name is missing", at());
            }
            manifests.push(Manifest { file: file.to_owned(), object });
        }
    }
    Ok(manifests)
}

/// What became of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// `deployment.apps/web-app`
    pub resource: String,
    pub outcome: &'static str,
    pub kind: String,
    pub namespace: Option<String>,
    pub name: String,
    /// Pods that follow from it; 0 for what is not a workload.
    pub replicas: usize,
}

/// Applies objects one after the other, and remembers what the API said about their kinds.
pub struct Applier {
    client: Client,
    kinds: HashMap<GroupVersionKind, (ApiResource, Scope)>,
}

impl Applier {
    pub fn new(client: Client) -> Self {
        Self { client, kinds: HashMap::new() }
    }

    async fn kind(&mut self, gvk: &GroupVersionKind) -> kube::Result<(ApiResource, Scope)> {
        if let Some(known) = self.kinds.get(gvk) {
            return Ok(known.clone());
        }
        let (resource, capabilities) = discovery::oneshot::pinned_kind(&self.client, gvk).await?;
        let found = (resource, capabilities.scope);
        self.kinds.insert(gvk.clone(), found.clone());
        Ok(found)
    }

    pub async fn apply(&mut self, manifest: &Manifest) -> Result<Applied> {
        let object = &manifest.object;
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let (api_version, kind, name) =
            (text(&object["apiVersion"]), text(&object["kind"]), text(&object["metadata"]["name"]));
        let gvk = match api_version.split_once('/') {
            Some((group, version)) => GroupVersionKind::gvk(group, version, &kind),
            None => GroupVersionKind::gvk("", &api_version, &kind),
        };
        let (resource, scope) = self.kind(&gvk).await.map_err(|_| {
            anyhow::anyhow!("{}: no matches for kind {kind:?} in version {api_version:?}", manifest.file.display())
        })?;
        let client = &self.client;
        let namespace = (scope == Scope::Namespaced)
            .then(|| object["metadata"]["namespace"].as_str().unwrap_or("default").to_owned());
        let api: Api<DynamicObject> = match &namespace {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
            None => Api::all_with(client.clone(), &resource),
        };
        let plural = kind.to_lowercase();
        let resource_name =
            if gvk.group.is_empty() { format!("{plural}/{name}") } else { format!("{plural}.{}/{name}", gvk.group) };
        let explain = |e| refusal(e).context(format!("{}: {resource_name}", manifest.file.display()));
        let wanted = with_last_applied(object, namespace.as_deref())?;
        let outcome = match api.get_opt(&name).await.map_err(explain)? {
            None => {
                let object: DynamicObject = serde_json::from_value(wanted)?;
                api.create(&PostParams::default(), &object).await.map_err(explain)?;
                "created"
            }
            Some(live) => {
                let last = live
                    .metadata
                    .annotations
                    .as_ref()
                    .and_then(|a| a.get(LAST_APPLIED))
                    .and_then(|a| serde_json::from_str(a).ok())
                    .unwrap_or(Value::Null);
                let before = live.metadata.resource_version.clone();
                let patch = Patch::Merge(three_way(&last, &wanted));
                let after = api.patch(&name, &PatchParams::default(), &patch).await.map_err(explain)?;
                if after.metadata.resource_version == before { "unchanged" } else { "configured" }
            }
        };
        Ok(Applied { resource: resource_name, outcome, replicas: replicas(object), kind, namespace, name })
    }
}

fn replicas(object: &Value) -> usize {
    match object["kind"].as_str() {
        Some("Pod" | "DaemonSet") => 1,
        Some("Deployment" | "StatefulSet" | "ReplicaSet") => {
            object["spec"]["replicas"].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(1)
        }
        _ => 0,
    }
}

/// The API's own words for a refusal.
pub fn refusal(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) => anyhow::anyhow!("{}", status.message),
        other => other.into(),
    }
}

/// As kubectl writes the annotation, to the byte: its next `apply` of the same file then changes nothing.
fn with_last_applied(object: &Value, namespace: Option<&str>) -> Result<Value> {
    let mut object = object.clone();
    let metadata = object["metadata"].as_object_mut().context("metadata is not an object")?;
    if let Some(namespace) = namespace {
        metadata.entry("namespace").or_insert_with(|| namespace.into());
    }
    let annotations = metadata.entry("annotations").or_insert_with(|| Value::Object(Map::new()));
    annotations.as_object_mut().context("metadata.annotations is not an object")?.remove(LAST_APPLIED);
    let text = format!("{}\n", serde_json::to_string(&object)?);
    object["metadata"]["annotations"][LAST_APPLIED] = Value::String(text);
    Ok(object)
}

/// A JSON merge patch (RFC 7396) that sets what is wanted and removes what the last applied version had and the new
/// one has not. What others wrote into the live object stays.
fn three_way(last: &Value, wanted: &Value) -> Value {
    let (Value::Object(last), Value::Object(wanted)) = (last, wanted) else { return wanted.clone() };
    let mut patch = Map::new();
    for (key, value) in wanted {
        patch.insert(key.clone(), three_way(last.get(key).unwrap_or(&Value::Null), value));
    }
    for key in last.keys().filter(|k| !wanted.contains_key(*k)) {
        patch.insert(key.clone(), Value::Null);
    }
    Value::Object(patch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn dropped_fields_are_removed_and_foreign_ones_kept() {
        let last = json!({"spec": {"replicas": 3, "paused": true}, "metadata": {"labels": {"a": "1"}}});
        let wanted = json!({"spec": {"replicas": 2}, "metadata": {"labels": {"b": "2"}}});
        assert_eq!(
            three_way(&last, &wanted),
            json!({"spec": {"replicas": 2, "paused": null}, "metadata": {"labels": {"a": null, "b": "2"}}})
        );
    }

    #[test]
    fn the_annotation_is_kubectls() {
        let object = json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": "a"}, "spec": {}});
        let applied = with_last_applied(&object, Some("default")).unwrap();
        let text = r#"{"apiVersion":"v1","kind":"Service","metadata":{"annotations":{},"name":"a","namespace":"default"},"spec":{}}"#;
        assert_eq!(applied["metadata"]["annotations"][LAST_APPLIED], format!("{text}\n"));
    }

    #[test]
    fn seed_202_documents_and_comments_in_utf8() {
        let text = "# デプロイ\napiVersion: v1\nkind: Service\nmetadata: {name: a}\n---\n# 内部\n---\napiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: b}}\n";
        let found = parse(Path::new("x.yaml"), text).unwrap();
        assert_eq!(found.iter().map(|m| m.object["kind"].as_str().unwrap()).collect::<Vec<_>>(), ["Service", "Pod"]);
    }

    #[test]
    fn what_is_missing_is_named() {
        let e = |t| format!("{:#}", parse(Path::new("x.yaml"), t).unwrap_err());
        assert_eq!(e("kind: Service"), "x.yaml, document 1: apiVersion is missing");
        assert_eq!(e("{apiVersion: v1, kind: Pod}"), "x.yaml, document 1: metadata.name is missing");
        assert!(e("a: [").starts_with("x.yaml, document 1: "));
    }
}
