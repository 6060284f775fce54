//! Request bodies in `application/vnd.kubernetes.protobuf`, which kubectl and controller-runtime programs send for built-in
//! kinds: read into the same JSON that the other encodings give. Types come from [`crate::schema`]; here are only the field
//! numbers and the encoding (gogo-protobuf's proto2, wrapped in `runtime.Unknown` after the magic `k8s\0`).
//!
//! Go writes every field that is not a pointer, set or not. In JSON those are left out when empty, and defaults depend on
//! it, so empty values are dropped here unless the API gives "set to nothing" a meaning of its own.

use std::{collections::HashMap, sync::LazyLock};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value};

use crate::{
    kinds,
    schema::{self, Field, FieldType, Type},
};

pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
const MAGIC: &[u8] = b"k8s\0";
/// Deeper than any built-in type nests.
const MAX_DEPTH: usize = 40;

/// Pointers in Go whose zero, false or "" says something else than absence.
const MEANS_SOMETHING_EMPTY: &[&str] = &[
    // integers
    "activeDeadlineSeconds",
    "averageUtilization",
    "backoffLimit",
    "completions",
    "deletionGracePeriodSeconds",
    "defaultMode",
    "fsGroup",
    "gracePeriodSeconds",
    "mode",
    "parallelism",
    "partition",
    "priority",
    "progressDeadlineSeconds",
    "replicas",
    "revisionHistoryLimit",
    "runAsGroup",
    "runAsUser",
    "terminationGracePeriodSeconds",
    "tolerationSeconds",
    "ttlSecondsAfterFinished",
    "weight",
    // booleans
    "allocateLoadBalancerNodePorts",
    "allowPrivilegeEscalation",
    "automountServiceAccountToken",
    "blockOwnerDeletion",
    "controller",
    "enableServiceLinks",
    "hostUsers",
    "immutable",
    "optional",
    "orphanDependents",
    "privileged",
    "readOnlyRootFilesystem",
    "ready",
    "runAsNonRoot",
    "serving",
    "setHostnameAsFQDN",
    "shareProcessNamespace",
    "started",
    "suspend",
    "terminating",
    // strings
    "storageClassName",
    "volumeAttributesClassName",
];

static NUMBERS: LazyLock<HashMap<&'static str, &'static str>> = LazyLock::new(|| {
    let lines = include_str!("protobuf/numbers.txt").lines().filter(|l| !l.starts_with('#'));
    lines.filter_map(|l| l.split_once(' ')).collect()
});

/// The object in a request body. The error says what is wrong with it.
pub fn to_json(body: &[u8]) -> Result<Value, String> {
    let Some(unknown) = body.strip_prefix(MAGIC) else {
        return Err("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]".into());
    };
    let (mut type_meta, mut raw) = (&b""[..], &b""[..]);
    for field in Fields(unknown) {
        match field? {
            (1, Wire::Bytes(bytes)) => type_meta = bytes,
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let (mut api_version, mut kind) = ("", "");
    for field in Fields(type_meta) {
        match field? {
            (1, Wire::Bytes(bytes)) => api_version = text(bytes)?,
            (2, Wire::Bytes(bytes)) => kind = text(bytes)?,
            _ => {}
        }
    }
    let Some(root) = root_type(api_version, kind) else {
        return Err(format!("no kind {kind:?} is registered for version {api_version:?}"));
    };
    let mut object = Map::new();
    message(&mut object, raw, root.name, root, 0)?;
    object.insert("apiVersion".into(), api_version.into());
    object.insert("kind".into(), kind.into());
    Ok(Value::Object(object))
}

/// Kinds have rows; the bodies of subresources and DeleteOptions (sent in any group's version) only have types.
fn root_type(api_version: &str, kind: &str) -> Option<&'static Type> {
    if kind == "DeleteOptions" {
        return schema::type_named("meta.v1.DeleteOptions");
    }
    if let Some(row) = kinds::find_kind(api_version, kind) {
        return schema::type_named(row.schema);
    }
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("core", api_version));
    let short = group.split('.').next().unwrap_or(group);
    schema::type_named(&format!("{short}.{version}.{kind}"))
}

/// Reads a message into `out`. `numbers` names the message, `shape` the JSON object its fields stand in; they differ where
/// Go embeds one struct in another.
fn message(
    out: &mut Map<String, Value>,
    bytes: &[u8],
    numbers: &str,
    shape: &Type,
    depth: usize,
) -> Result<(), String> {
    if depth > MAX_DEPTH {
        return Err("the message is nested too deeply".into());
    }
    let numbers = NUMBERS.get(numbers).copied().unwrap_or("");
    let name_of = |number: u32| {
        numbers
            .split(' ')
            .filter_map(|n| n.split_once('='))
            .find(|(n, _)| n.parse() == Ok(number))
            .map(|(_, name)| name)
    };
    for field in Fields(bytes) {
        let (number, wire) = field?;
        let Some(name) = name_of(number) else { continue };
        if let (Some(embedded), Wire::Bytes(bytes)) = (name.strip_prefix('~'), wire) {
            message(out, bytes, embedded, shape, depth + 1)?;
            continue;
        }
        let Some(field) = shape.field(name) else { continue };
        match &field.kind {
            FieldType::List(element) => {
                let list = out.entry(name).or_insert_with(|| Value::Array(Vec::new()));
                if let (Some(value), Value::Array(list)) = (value(element, wire, depth)?, list) {
                    list.push(value);
                }
            }
            FieldType::Map(element) => {
                let (key, value) = map_entry(element, wire, depth)?;
                let map = out.entry(name).or_insert_with(|| Value::Object(Map::new()));
                if let Value::Object(map) = map {
                    map.insert(key, value);
                }
            }
            scalar => {
                if let Some(value) = value(scalar, wire, depth)?.filter(|v| is_set(field, shape, v)) {
                    out.insert(name.to_owned(), value);
                }
            }
        }
    }
    Ok(())
}

fn is_set(field: &Field, shape: &Type, value: &Value) -> bool {
    let empty = match value {
        Value::String(s) => s.is_empty(),
        Value::Bool(b) => !b,
        // An IntOrString that is not a pointer: the only one that may be left out.
        Value::Number(n) if field.kind == FieldType::IntOrString => field.name == "targetPort" && n.as_i64() == Some(0),
        Value::Number(n) => n.as_f64() == Some(0.0),
        _ => false,
    };
    !empty
        || field.required
        || MEANS_SOMETHING_EMPTY.contains(&field.name)
        || (field.name == "name" && shape.name == "discovery.v1.EndpointPort")
}

/// One value; `None` for those that JSON leaves out (a time that is zero).
fn value(kind: &FieldType, wire: Wire<'_>, depth: usize) -> Result<Option<Value>, String> {
    Ok(Some(match (kind, wire) {
        (FieldType::String, Wire::Bytes(bytes)) => text(bytes)?.into(),
        (FieldType::Int32 | FieldType::Int64, Wire::Varint(n)) => (n as i64).into(),
        (FieldType::Bool, Wire::Varint(n)) => (n != 0).into(),
        (FieldType::Float, Wire::Fixed64(bits)) => f64::from_bits(bits).into(),
        (FieldType::Bytes, Wire::Bytes(bytes)) => STANDARD.encode(bytes).into(),
        (FieldType::Time, Wire::Bytes(bytes)) => return time(bytes, false),
        (FieldType::MicroTime, Wire::Bytes(bytes)) => return time(bytes, true),
        (FieldType::Quantity, Wire::Bytes(bytes)) => first_text(bytes)?.into(),
        (FieldType::IntOrString, Wire::Bytes(bytes)) => int_or_string(bytes)?,
        (FieldType::Raw, Wire::Bytes(bytes)) => return raw(bytes),
        (FieldType::Object(index), Wire::Bytes(bytes)) => {
            let shape = schema::type_at(*index);
            let mut object = Map::new();
            message(&mut object, bytes, shape.name, shape, depth + 1)?;
            Value::Object(object)
        }
        // A list as the value of a map is wrapped in a message (`ExtraValue`).
        (FieldType::List(element), Wire::Bytes(bytes)) => {
            let mut list = Vec::new();
            for field in Fields(bytes) {
                if let (1, wire) = field? {
                    list.extend(value(element, wire, depth + 1)?);
                }
            }
            Value::Array(list)
        }
        (kind, _) => return Err(format!("wrong wire type for a field of type {kind:?}")),
    }))
}

fn map_entry(element: &FieldType, wire: Wire<'_>, depth: usize) -> Result<(String, Value), String> {
    let Wire::Bytes(bytes) = wire else { return Err("a map entry is not a message".into()) };
    let (mut key, mut entry) = ("", None);
    for field in Fields(bytes) {
        match field? {
            (1, Wire::Bytes(bytes)) => key = text(bytes)?,
            (2, wire) => entry = value(element, wire, depth + 1)?,
            _ => {}
        }
    }
    let empty = match element {
        FieldType::String | FieldType::Bytes | FieldType::Quantity => "".into(),
        FieldType::Bool => false.into(),
        FieldType::List(_) => Value::Array(Vec::new()),
        FieldType::Object(_) | FieldType::Map(_) => Value::Object(Map::new()),
        _ => 0.into(),
    };
    Ok((key.to_owned(), entry.unwrap_or(empty)))
}

/// `Time` and `MicroTime`: seconds and nanoseconds.
fn time(bytes: &[u8], micros: bool) -> Result<Option<Value>, String> {
    let (mut seconds, mut nanos) = (0_i64, 0_i64);
    for field in Fields(bytes) {
        match field? {
            (1, Wire::Varint(n)) => seconds = n as i64,
            (2, Wire::Varint(n)) => nanos = n as i64,
            _ => {}
        }
    }
    if seconds == 0 && nanos == 0 {
        return Ok(None);
    }
    let nanos = i32::try_from(nanos).map_err(|_| "a time has too many nanoseconds".to_owned())?;
    let time = jiff::Timestamp::new(seconds, nanos).map_err(|e| e.to_string())?;
    Ok(Some(if micros { format!("{time:.6}") } else { format!("{time:.0}") }.into()))
}

fn int_or_string(bytes: &[u8]) -> Result<Value, String> {
    let (mut is_text, mut number, mut string) = (false, 0_i64, "");
    for field in Fields(bytes) {
        match field? {
            (1, Wire::Varint(n)) => is_text = n == 1,
            (2, Wire::Varint(n)) => number = n as i64,
            (3, Wire::Bytes(bytes)) => string = text(bytes)?,
            _ => {}
        }
    }
    Ok(if is_text { string.into() } else { number.into() })
}

/// JSON in field 1 of its message (`RawExtension`, `FieldsV1`).
fn raw(bytes: &[u8]) -> Result<Option<Value>, String> {
    for field in Fields(bytes) {
        if let (1, Wire::Bytes(json)) = field? {
            return serde_json::from_slice(json).map(Some).map_err(|e| e.to_string());
        }
    }
    Ok(None)
}

fn first_text(bytes: &[u8]) -> Result<String, String> {
    for field in Fields(bytes) {
        if let (1, Wire::Bytes(bytes)) = field? {
            return text(bytes).map(str::to_owned);
        }
    }
    Ok("0".into())
}

fn text(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|_| "a string is not UTF-8".into())
}

/// A field as it stands on the wire.
#[derive(Debug, Clone, Copy)]
enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32,
}

/// The fields of a message, in order. Ends after the first error.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Wire<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or_else(|| "unexpected EOF".to_owned()))
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u32, Wire<'a>)> {
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).ok()?;
        let wire = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(u64::from_le_bytes(self.take(8)?.try_into().ok()?)),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                Wire::Fixed32
            }
            _ => return None,
        };
        Some((number, wire))
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for (i, byte) in self.0.iter().enumerate().take(10) {
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte & 0x80 == 0 {
                self.0 = &self.0[i + 1..];
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn bytes(number: u8, content: &[u8]) -> Vec<u8> {
        let length = u8::try_from(content.len()).expect("short");
        [&tag(number, 2)[..], &[length], content].concat()
    }

    fn int(number: u8, n: u8) -> Vec<u8> {
        [tag(number, 0), vec![n]].concat()
    }

    fn tag(number: u8, wire: u8) -> Vec<u8> {
        let tag = number << 3 | wire;
        if tag < 0x80 { vec![tag] } else { vec![tag, 1] }
    }

    fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [bytes(1, api_version.as_bytes()), bytes(2, kind.as_bytes())].concat();
        [MAGIC, &bytes(1, &meta), &bytes(2, raw), &bytes(3, b""), &bytes(4, b"")].concat()
    }

    #[test]
    fn a_service_as_kubectl_sends_it() {
        let meta = [
            bytes(1, b"web"),
            bytes(2, b""),
            int(7, 0),
            bytes(8, b""),
            bytes(11, &[bytes(1, b"app"), bytes(2, b"web")].concat()),
        ];
        let target = [int(1, 0), int(2, 80), bytes(3, b"")].concat();
        let port = [bytes(1, b"80-80"), bytes(2, b"TCP"), int(3, 80), bytes(4, &target), int(5, 0)].concat();
        let selector = [bytes(1, b"app"), bytes(2, b"")].concat();
        let spec = [bytes(1, &port), bytes(2, &selector), bytes(3, b""), bytes(4, b"ClusterIP"), int(13, 0)].concat();
        let raw = [bytes(1, &meta.concat()), bytes(2, &spec), bytes(3, &bytes(1, b""))].concat();
        assert_eq!(
            to_json(&envelope("v1", "Service", &raw)).expect("service"),
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "labels": {"app": "web"}},
                "spec": {"ports": [{"name": "80-80", "protocol": "TCP", "port": 80, "targetPort": 80}],
                    "selector": {"app": ""}, "type": "ClusterIP"},
                "status": {"loadBalancer": {}}})
        );
    }

    #[test]
    fn embedded_messages_pointers_and_times() {
        let resource = bytes(19, &[bytes(1, &bytes(1, b"cfg")), int(3, 0)].concat());
        let volume = [bytes(1, b"v"), bytes(2, &resource)].concat();
        let spec = [bytes(1, &volume), int(4, 0), int(11, 0)].concat();
        let created = bytes(8, &[0x8, 0xe0, 0xe0, 0xb9, 0xd0, 0x6]);
        let raw = [bytes(1, &created), bytes(2, &spec)].concat();
        assert_eq!(
            to_json(&envelope("v1", "Pod", &raw)).expect("pod"),
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"creationTimestamp": "2026-05-21T02:39:28Z"},
                "spec": {"volumes": [{"name": "v", "configMap": {"name": "cfg", "defaultMode": 0}}],
                    "terminationGracePeriodSeconds": 0}})
        );
        let secret = bytes(2, &[bytes(1, b"k"), bytes(2, &[0, 255])].concat());
        assert_eq!(to_json(&envelope("v1", "Secret", &secret)).expect("secret")["data"], json!({"k": "AP8="}));
    }

    #[test]
    fn options_of_a_delete() {
        let raw = [int(1, 0), bytes(2, &bytes(1, b"uid")), bytes(4, b"Background")].concat();
        for version in ["v1", "apps/v1"] {
            let options = to_json(&envelope(version, "DeleteOptions", &raw)).expect("options");
            assert_eq!(options["gracePeriodSeconds"], 0);
            assert_eq!(
                (&options["preconditions"]["uid"], &options["propagationPolicy"]),
                (&json!("uid"), &json!("Background"))
            );
        }
    }

    #[test]
    fn damaged_bodies_are_errors() {
        let good = envelope("v1", "Service", &bytes(2, &bytes(1, &int(3, 80))));
        assert!(to_json(&good).is_ok());
        for cut in 0..good.len() {
            // Whatever is left of it, it does not panic.
            let _ = to_json(&good[..cut]);
        }
        assert!(to_json(b"{}").is_err());
        assert!(to_json(&envelope("v1", "Nothing", b"")).is_err());
        assert!(to_json(&envelope("v1", "Service", &[0x12, 0x7f])).is_err());
        assert!(to_json(&envelope("v1", "Service", &[0xff; 20])).is_err());
    }

    #[test]
    fn numbers_name_fields_that_exist() {
        for (name, numbers) in NUMBERS.iter() {
            let Some(shape) = schema::type_named(name) else { continue };
            for field in numbers.split(' ').filter_map(|n| n.split_once('=')).map(|(_, f)| f) {
                assert!(field.starts_with('~') || shape.field(field).is_some(), "{name}.{field}");
            }
        }
    }
}
