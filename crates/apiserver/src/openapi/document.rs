//! The documents as JSON values. Both versions describe the same schemas and operations; they differ in where things stand.
//! Operations are described as far as clients look: kubectl asks whether PATCH of a kind takes `fieldValidation` and
//! `dryRun` and which patch types there are.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::words;
use crate::{
    kinds::{self, Kind},
    schema::{FieldType, Merge, Type, type_at, type_named},
};

#[derive(Clone, Copy, PartialEq)]
enum Version {
    V2,
    V3,
}

/// Types that are one value on the wire, by their full names.
const TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Time";
const MICRO_TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime";
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const RAW: &str = "io.k8s.apimachinery.pkg.runtime.RawExtension";

const PATCH_TYPES: &[&str] =
    &["application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json"];

/// OpenAPI 2 of everything.
pub(super) fn v2() -> Value {
    let mut schemas = Schemas::new(Version::V2);
    let mut paths = Map::new();
    for kind in kinds::all() {
        schemas.add_kind(kind);
        add_paths(kind, Version::V2, &mut paths);
    }
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": crate::discovery::GIT_VERSION},
        "paths": paths,
        "definitions": schemas.finish(),
    })
}

/// OpenAPI 3 of one group and version.
pub(super) fn v3(group: &str, version: &str) -> Value {
    let mut schemas = Schemas::new(Version::V3);
    let mut paths = Map::new();
    for kind in kinds::all().iter().filter(|k| k.group == group && k.version == version) {
        schemas.add_kind(kind);
        add_paths(kind, Version::V3, &mut paths);
    }
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": crate::discovery::GIT_VERSION},
        "paths": paths,
        "components": {"schemas": schemas.finish()},
    })
}

fn gvk(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}

/// Schemas by full name, with everything they refer to.
struct Schemas {
    version: Version,
    out: BTreeMap<String, Value>,
    kinds: BTreeMap<&'static str, Vec<Value>>,
    pending: Vec<&'static Type>,
    seen: BTreeSet<&'static str>,
}

impl Schemas {
    fn new(version: Version) -> Self {
        let mut schemas =
            Self { version, out: BTreeMap::new(), kinds: BTreeMap::new(), pending: Vec::new(), seen: BTreeSet::new() };
        schemas.want("meta.v1.Status", Some(gvk("", "v1", "Status")));
        schemas.want("meta.v1.DeleteOptions", None);
        schemas.want("meta.v1.ListMeta", None);
        schemas
    }

    fn want(&mut self, name: &'static str, gvk: Option<Value>) {
        if let Some(t) = type_named(name) {
            self.kinds.entry(t.name).or_default().extend(gvk);
            self.push(t);
        }
    }

    fn push(&mut self, t: &'static Type) {
        if self.seen.insert(t.name) {
            self.pending.push(t);
        }
    }

    fn add_kind(&mut self, kind: &'static Kind) {
        self.want(kind.schema, Some(gvk(kind.group, kind.version, kind.kind)));
        if kind.scale.is_some() {
            let scale = gvk("autoscaling", "v1", "Scale");
            if !self.seen.contains("autoscaling.v1.Scale") {
                self.want("autoscaling.v1.Scale", Some(scale));
            }
        }
        for sub in kind.subresources.iter().filter(|s| s.kind == "Eviction") {
            self.want("policy.v1.Eviction", Some(gvk(sub.group, sub.version, sub.kind)));
        }
        if !kind.has_verb("list") {
            return;
        }
        let Some(item) = type_named(kind.schema) else { return };
        let reference = self.reference(&item.full_name());
        let meta = self.reference("io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta");
        let list = json!({
            "type": "object",
            "properties": {
                "apiVersion": {"type": "string"},
                "items": {"type": "array", "items": reference},
                "kind": {"type": "string"},
                "metadata": meta,
            },
            "required": ["items"],
            "x-kubernetes-group-version-kind": [gvk(kind.group, kind.version, &kind.list_kind())],
        });
        self.out.insert(format!("{}List", item.full_name()), list);
    }

    fn reference(&self, name: &str) -> Value {
        match self.version {
            Version::V2 => json!({"$ref": format!("#/definitions/{name}")}),
            // A reference may have no siblings in version 3, so upstream wraps each one.
            Version::V3 => json!({"allOf": [{"$ref": format!("#/components/schemas/{name}")}]}),
        }
    }

    fn scalar(&mut self, name: &'static str) -> Value {
        let schema = match (name, self.version) {
            (TIME | MICRO_TIME, _) => json!({"type": "string", "format": "date-time"}),
            (QUANTITY, Version::V2) => json!({"type": "string"}),
            (QUANTITY, Version::V3) => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
            (INT_OR_STRING, Version::V2) => json!({"type": "string", "format": "int-or-string"}),
            (INT_OR_STRING, Version::V3) => {
                json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
            }
            _ => json!({"type": "object"}),
        };
        self.out.entry(name.to_owned()).or_insert(schema);
        self.reference(name)
    }

    fn field_type(&mut self, kind: &FieldType) -> Value {
        match kind {
            FieldType::String => json!({"type": "string"}),
            FieldType::Int32 => json!({"type": "integer", "format": "int32"}),
            FieldType::Int64 => json!({"type": "integer", "format": "int64"}),
            FieldType::Float => json!({"type": "number", "format": "double"}),
            FieldType::Bool => json!({"type": "boolean"}),
            FieldType::Bytes => json!({"type": "string", "format": "byte"}),
            FieldType::Time => self.scalar(TIME),
            FieldType::MicroTime => self.scalar(MICRO_TIME),
            FieldType::Quantity => self.scalar(QUANTITY),
            FieldType::IntOrString => self.scalar(INT_OR_STRING),
            FieldType::Raw => self.scalar(RAW),
            FieldType::Object(index) => {
                let t = type_at(*index);
                self.push(t);
                self.reference(&t.full_name())
            }
            FieldType::List(of) => json!({"type": "array", "items": self.field_type(of)}),
            FieldType::Map(of) => json!({"type": "object", "additionalProperties": self.field_type(of)}),
        }
    }

    fn object(&mut self, t: &'static Type) -> Value {
        let mut properties = Map::new();
        for field in &t.fields {
            let mut schema = self.field_type(&field.kind);
            if let (Some(map), FieldType::List(_)) = (schema.as_object_mut(), &field.kind) {
                list_extensions(field.merge, map);
                if matches!((t.name, field.name), ("core.v1.PodSpec", "volumes" | "resourceClaims")) {
                    map.insert("x-kubernetes-patch-strategy".into(), "merge,retainKeys".into());
                }
            }
            if (t.name, field.name) == ("apps.v1.DeploymentSpec", "strategy")
                && let Some(map) = schema.as_object_mut()
            {
                map.insert("x-kubernetes-patch-strategy".into(), "retainKeys".into());
            }
            if let (Some(map), Some(text)) = (schema.as_object_mut(), words::description(t.name, field.name)) {
                map.insert("description".into(), text.into());
            }
            properties.insert(field.name.into(), schema);
        }
        let mut out = Map::new();
        out.insert("type".into(), "object".into());
        out.insert("properties".into(), properties.into());
        if let Some(text) = words::description(t.name, "") {
            out.insert("description".into(), text.into());
        }
        let required: Vec<&str> =
            t.fields.iter().filter(|f| f.required && f.name != "metadata").map(|f| f.name).collect();
        if !required.is_empty() {
            out.insert("required".into(), json!(required));
        }
        if let Some(kinds) = self.kinds.get(t.name).filter(|k| !k.is_empty()) {
            out.insert("x-kubernetes-group-version-kind".into(), json!(kinds));
        }
        out.into()
    }

    fn finish(mut self) -> Value {
        while let Some(t) = self.pending.pop() {
            let schema = self.object(t);
            self.out.insert(t.full_name(), schema);
        }
        self.out.into_iter().collect::<Map<String, Value>>().into()
    }
}

fn list_extensions(merge: Merge, schema: &mut Map<String, Value>) {
    let mut put = |name: &str, value: Value| schema.insert(format!("x-kubernetes-{name}"), value);
    match merge {
        Merge::Atomic => {
            put("list-type", "atomic".into());
        }
        Merge::Key(key) => {
            put("patch-merge-key", key.into());
            put("patch-strategy", "merge".into());
            put("list-type", "map".into());
            let keys = if matches!(key, "port" | "containerPort") { json!([key, "protocol"]) } else { json!([key]) };
            put("list-map-keys", keys);
        }
        Merge::Set => {
            put("patch-strategy", "merge".into());
            put("list-type", "set".into());
        }
        Merge::ApplyKey(key) if !key.contains('.') => {
            put("list-type", "map".into());
            put("list-map-keys", json!([key]));
        }
        Merge::ApplyKey(_) => {
            put("list-type", "atomic".into());
        }
        Merge::ApplySet => {
            put("list-type", "set".into());
        }
    }
}

fn add_paths(kind: &'static Kind, version: Version, paths: &mut Map<String, Value>) {
    let base =
        if kind.group.is_empty() { format!("/api/{}", kind.version) } else { format!("/apis/{}", kind.api_version()) };
    let collection = if kind.namespaced {
        format!("{base}/namespaces/{{namespace}}/{}", kind.plural)
    } else {
        format!("{base}/{}", kind.plural)
    };
    let operations = |list: &[(&str, &str)]| {
        let mut item = Map::new();
        for (verb, method) in list.iter().filter(|(v, _)| kind.has_verb(v)) {
            item.insert((*method).into(), operation(kind, verb, version));
        }
        item
    };
    let all = operations(&[("create", "post"), ("list", "get"), ("deletecollection", "delete")]);
    let one = operations(&[("get", "get"), ("update", "put"), ("patch", "patch"), ("delete", "delete")]);
    for (path, mut item) in [(collection.clone(), all), (format!("{collection}/{{name}}"), one)] {
        if !item.is_empty() {
            let in_path: Vec<Value> = ["namespace", "name"]
                .iter()
                .filter(|n| path.contains(&format!("{{{n}}}")))
                .map(|n| parameter(n, "path", "string", version))
                .collect();
            item.insert("parameters".into(), in_path.into());
            paths.insert(path, item.into());
        }
    }
    if kind.namespaced && kind.has_verb("list") {
        let item = Map::from_iter([("get".to_owned(), operation(kind, "list", version))]);
        paths.insert(format!("{base}/{}", kind.plural), item.into());
    }
}

fn parameter(name: &str, place: &str, kind: &str, version: Version) -> Value {
    let mut out = json!({"name": name, "in": place});
    match version {
        Version::V2 => {
            out["type"] = kind.into();
            out["uniqueItems"] = true.into();
        }
        Version::V3 => out["schema"] = json!({"type": kind, "uniqueItems": true}),
    }
    if place == "path" {
        out["required"] = true.into();
    }
    out
}

fn operation(kind: &Kind, verb: &str, version: Version) -> Value {
    let full = type_named(kind.schema).map(Type::full_name).unwrap_or_default();
    let target = |name: &str| match version {
        Version::V2 => json!({"$ref": format!("#/definitions/{name}")}),
        Version::V3 => json!({"$ref": format!("#/components/schemas/{name}")}),
    };
    let mut query: Vec<(&str, &str)> = vec![("pretty", "string")];
    let action = match verb {
        "create" | "update" | "patch" => {
            query.extend([("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")]);
            if verb == "patch" {
                query.push(("force", "boolean"));
            }
            match verb {
                "create" => "post",
                "update" => "put",
                other => other,
            }
        }
        "delete" | "deletecollection" => {
            query.extend([("dryRun", "string"), ("gracePeriodSeconds", "integer"), ("propagationPolicy", "string")]);
            verb
        }
        "list" => {
            query.extend([
                ("allowWatchBookmarks", "boolean"),
                ("continue", "string"),
                ("fieldSelector", "string"),
                ("labelSelector", "string"),
                ("limit", "integer"),
                ("resourceVersion", "string"),
                ("resourceVersionMatch", "string"),
                ("sendInitialEvents", "boolean"),
                ("timeoutSeconds", "integer"),
                ("watch", "boolean"),
            ]);
            verb
        }
        other => other,
    };
    let mut parameters: Vec<Value> = query.iter().map(|(n, t)| parameter(n, "query", t, version)).collect();
    let answer = match verb {
        "list" => format!("{full}List"),
        "delete" | "deletecollection" => "io.k8s.apimachinery.pkg.apis.meta.v1.Status".to_owned(),
        _ => full.clone(),
    };
    let body = match verb {
        "create" | "update" => Some((target(&full), vec!["application/json", "application/yaml"])),
        "patch" => Some((json!({"type": "object"}), PATCH_TYPES.to_vec())),
        "delete" | "deletecollection" => {
            Some((target("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions"), vec!["application/json"]))
        }
        _ => None,
    };
    let id = format!("{verb}{}{}{}", kind.group.split('.').next().unwrap_or_default(), kind.version, kind.kind);
    let mut out = json!({
        "operationId": id,
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": gvk(kind.group, kind.version, kind.kind),
    });
    match version {
        Version::V2 => {
            if let Some((schema, types)) = body {
                let required = !verb.starts_with("delete");
                parameters.push(json!({"name": "body", "in": "body", "required": required, "schema": schema}));
                out["consumes"] = json!(types);
            }
            out["produces"] = json!(["application/json", "application/yaml"]);
            out["responses"] = json!({"200": {"description": "OK", "schema": target(&answer)}});
        }
        Version::V3 => {
            if let Some((schema, types)) = body {
                let content: Map<String, Value> =
                    types.iter().map(|t| ((*t).to_owned(), json!({"schema": schema}))).collect();
                out["requestBody"] = json!({"content": content});
            }
            let content = json!({"application/json": {"schema": target(&answer)}});
            out["responses"] = json!({"200": {"description": "OK", "content": content}});
        }
    }
    out["parameters"] = parameters.into();
    out
}
