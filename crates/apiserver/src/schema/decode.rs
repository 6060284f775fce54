//! Request bodies into objects of a kind: JSON and YAML, types checked in kube-apiserver's words, unknown and duplicate
//! fields reported by `fieldValidation` and never kept, null and empty fields dropped as Go's `omitempty` does.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};

use super::{FieldType, Type, go_type, quantity, type_at, type_named};
use crate::kinds::Kind;

mod words;

use words::{go_syntax_error, go_value, summary, time, valid_base64};

/// `?fieldValidation=`: what happens to unknown and duplicate fields. They are never stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

/// A request body as an object of its kind: typed, pruned of unknown fields, with apiVersion and kind set.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    pub object: Value,
    /// For `Warning: 299 - "..."` headers.
    pub warnings: Vec<String>,
}

#[derive(Debug, thiserror::Error, PartialEq)]
pub enum DecodeError {
    /// 400 BadRequest with this message.
    #[error("{0}")]
    BadRequest(String),
    /// 415 with this message.
    #[error("{0}")]
    UnsupportedMediaType(String),
}

/// Reported unknown and duplicate fields at most; a hostile body must not buy a huge answer.
const MAX_REPORTED: usize = 100;

/// Decodes a body of an object of `kind`. `content_type` may carry parameters; empty means JSON.
pub fn decode(
    kind: &Kind,
    content_type: &str,
    body: &[u8],
    validation: FieldValidation,
) -> Result<Decoded, DecodeError> {
    match content_type.split(';').next().unwrap_or_default().trim() {
        "" | "application/json" | "*/*" => decode_json(kind, body, validation),
        "application/yaml" | "application/x-yaml" | "text/yaml" => decode_yaml(kind, body, validation),
        _ => Err(DecodeError::UnsupportedMediaType(
            "the body of the request was in an unknown format - accepted media types include: application/json, \
             application/yaml"
                .into(),
        )),
    }
}

/// Checks an object that is already a value (the result of a patch) the same way.
pub fn check(kind: &Kind, object: Value, validation: FieldValidation) -> Result<Decoded, DecodeError> {
    let meta = TypeMeta {
        api_version: object.get("apiVersion").and_then(Value::as_str).unwrap_or_default().to_owned(),
        kind: object.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned(),
    };
    finish(kind, &meta, validation, |decoder, root| {
        Seed { decoder, kind: root, owner: "", field: "" }.deserialize(&object).map_err(|e| e.to_string())
    })
}

#[derive(Default)]
struct TypeMeta {
    api_version: String,
    kind: String,
}

fn decode_json(kind: &Kind, body: &[u8], validation: FieldValidation) -> Result<Decoded, DecodeError> {
    let meta = serde_json::from_slice::<TypeProbe>(body).map_err(|e| go_syntax_error(&e, body));
    let meta = type_meta(kind, meta, body)?;
    finish(kind, &meta, validation, |decoder, root| {
        let mut de = serde_json::Deserializer::from_slice(body);
        let value = Seed { decoder, kind: root, owner: "", field: "" }.deserialize(&mut de);
        value.and_then(|v| de.end().map(|()| v)).map_err(|e| go_syntax_error(&e, body))
    })
}

fn decode_yaml(kind: &Kind, body: &[u8], validation: FieldValidation) -> Result<Decoded, DecodeError> {
    // A YAML document that is JSON takes the strict JSON path; the YAML library would accept it too, only slower.
    if body.trim_ascii_start().starts_with(b"{") {
        return decode_json(kind, body, validation);
    }
    let meta =
        serde_yaml_ng::from_slice::<TypeProbe>(body).map_err(|e| format!("error converting YAML to JSON: yaml: {e}"));
    let meta = type_meta(kind, meta, body)?;
    finish(kind, &meta, validation, |decoder, root| {
        let de = serde_yaml_ng::Deserializer::from_slice(body);
        Seed { decoder, kind: root, owner: "", field: "" }
            .deserialize(de)
            .map_err(|e| format!("error converting YAML to JSON: yaml: {e}"))
    })
}

/// The two fields that say what a body is, wherever they stand in it.
#[derive(Deserialize)]
struct TypeProbe {
    #[serde(rename = "apiVersion", default)]
    api_version: Option<Value>,
    #[serde(default)]
    kind: Option<Value>,
}

fn type_meta(kind: &Kind, probe: Result<TypeProbe, String>, body: &[u8]) -> Result<TypeMeta, DecodeError> {
    let unrecognized = |why: String| {
        DecodeError::BadRequest(format!(
            "the object provided is unrecognized (must be of type {}): couldn't get version/kind; json parse error: {why} \
             ({})",
            kind.kind,
            summary(body)
        ))
    };
    let probe = probe.map_err(unrecognized)?;
    let text = |value: Option<Value>, name: &str| match value {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(s)) => Ok(s),
        Some(other) => Err(unrecognized(format!(
            "json: cannot unmarshal {} into Go struct field .{name} of type string",
            go_value(&other)
        ))),
    };
    Ok(TypeMeta { api_version: text(probe.api_version, "apiVersion")?, kind: text(probe.kind, "kind")? })
}

fn finish(
    kind: &Kind,
    meta: &TypeMeta,
    validation: FieldValidation,
    read: impl FnOnce(&mut Decoder, &FieldType) -> Result<Option<Value>, String>,
) -> Result<Decoded, DecodeError> {
    let expected = kind.api_version();
    let given_kind = if meta.kind.is_empty() { kind.kind } else { &meta.kind };
    let given_version = if meta.api_version.is_empty() { expected } else { &meta.api_version };
    let version = given_version.rsplit('/').next().unwrap_or_default();
    let refuse = |why: String| {
        DecodeError::BadRequest(format!(
            "{given_kind} in version {version:?} cannot be handled as a {}: {why}",
            kind.kind
        ))
    };
    if given_kind != kind.kind || given_version != expected {
        let own_group = if kind.group.is_empty() { "core" } else { kind.group.split('.').next().unwrap_or_default() };
        if crate::kinds::find_kind(given_version, given_kind).is_none() {
            return Err(refuse(format!("no kind {given_kind:?} is registered for version {given_version:?}")));
        }
        return Err(refuse(format!(
            "converting ({version}.{given_kind}) to ({own_group}.{}): unknown conversion",
            kind.kind
        )));
    }
    let index =
        type_index(kind.schema).ok_or_else(|| DecodeError::BadRequest(format!("no schema for {}", kind.kind)))?;
    let mut decoder = Decoder::default();
    let root = FieldType::Object(index);
    let value = read(&mut decoder, &root).map_err(&refuse)?;
    if let Some(error) = decoder.type_error {
        return Err(refuse(error));
    }
    let mut warnings = Vec::new();
    if !decoder.strict.is_empty() {
        match validation {
            FieldValidation::Ignore => {}
            FieldValidation::Warn => warnings = decoder.strict,
            FieldValidation::Strict => {
                return Err(refuse(format!("strict decoding error: {}", decoder.strict.join(", "))));
            }
        }
    }
    let mut object = match value {
        Some(Value::Object(map)) => map,
        _ => Map::new(),
    };
    object.insert("apiVersion".into(), expected.into());
    object.insert("kind".into(), kind.kind.into());
    Ok(Decoded { object: Value::Object(object), warnings })
}

fn type_index(name: &str) -> Option<u16> {
    type_named(name)?;
    super::TYPES.by_name.get(name).copied()
}

enum Step {
    Field(&'static str),
    Index(usize),
    Key(String),
}

/// What was found wrong so far, and where the reader stands.
#[derive(Default)]
struct Decoder {
    path: Vec<Step>,
    /// The first wrong type; like Go, reading goes on but the first one is the answer.
    type_error: Option<String>,
    /// Unknown and duplicate fields, in order of appearance.
    strict: Vec<String>,
}

impl Decoder {
    /// `spec.ports[0].name`
    fn full_path(&self, last: &str) -> String {
        let mut out = String::new();
        for step in &self.path {
            match step {
                Step::Field(name) => push_dotted(&mut out, name),
                Step::Index(i) => out.push_str(&format!("[{i}]")),
                Step::Key(key) => push_dotted(&mut out, key),
            }
        }
        push_dotted(&mut out, last);
        out
    }

    fn strict(&mut self, what: &str, field: &str) {
        if self.strict.len() < MAX_REPORTED {
            let message = format!("{what} field {:?}", self.full_path(field));
            // One report for a field that an outer loop meets again (YAML merges) is enough.
            if !self.strict.contains(&message) {
                self.strict.push(message);
            }
        }
    }

    fn fail(&mut self, message: String) {
        self.type_error.get_or_insert(message);
    }
}

fn push_dotted(out: &mut String, name: &str) {
    if name.is_empty() {
        return;
    }
    if !out.is_empty() {
        out.push('.');
    }
    out.push_str(name);
}

/// Reads one value of a type. `None` means absent: null, or empty where Go would leave it out.
struct Seed<'a> {
    decoder: &'a mut Decoder,
    kind: &'a FieldType,
    /// The type that holds the field, and the field: for messages.
    owner: &'static str,
    field: &'static str,
}

impl Seed<'_> {
    fn wrong(&mut self, found: &str) {
        let go = match self.kind {
            // Types with a decoder of their own complain without naming the field.
            FieldType::Time | FieldType::MicroTime => {
                let message = format!("json: cannot unmarshal {found} into Go value of type string");
                return self.decoder.fail(message);
            }
            FieldType::IntOrString => {
                let message = format!("json: cannot unmarshal {found} into Go value of type int32");
                return self.decoder.fail(message);
            }
            FieldType::Quantity => return self.decoder.fail(quantity::FORMAT_ERROR.into()),
            kind => go_type(self.owner, self.field, kind),
        };
        let path: Vec<&str> = self
            .decoder
            .path
            .iter()
            .filter_map(|s| match s {
                Step::Field(name) => Some(*name),
                _ => None,
            })
            .collect();
        let owner = self.owner.rsplit('.').next().unwrap_or_default();
        self.decoder.fail(if owner.is_empty() {
            format!("json: cannot unmarshal {found} into Go value of type {go}")
        } else {
            format!("json: cannot unmarshal {found} into Go struct field {owner}.{} of type {go}", path.join("."))
        });
    }

    fn integer(mut self, value: Option<i64>, shown: &str) -> Option<Value> {
        match self.kind {
            FieldType::Int32 => match value.filter(|v| i32::try_from(*v).is_ok()) {
                Some(v) => return Some(v.into()),
                None => self.wrong(&format!("number {shown}")),
            },
            FieldType::IntOrString => match value.filter(|v| i32::try_from(*v).is_ok()) {
                Some(v) => return Some(v.into()),
                None => self.wrong(&format!("number {shown}")),
            },
            FieldType::Int64 => match value {
                Some(v) => return Some(v.into()),
                None => self.wrong(&format!("number {shown}")),
            },
            FieldType::Float => return shown.parse::<f64>().ok().map(Value::from),
            FieldType::Quantity => match quantity::canonical(shown) {
                Ok(q) => return Some(q.into()),
                Err(e) => self.decoder.fail(e.into()),
            },
            _ => self.wrong("number"),
        }
        None
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        if *self.kind == FieldType::Raw {
            return Ok(Some(Value::deserialize(deserializer)?).filter(|v| !v.is_null()));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_none<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(mut self, value: bool) -> Result<Self::Value, E> {
        if *self.kind == FieldType::Bool {
            return Ok(Some(value.into()));
        }
        self.wrong("bool");
        Ok(None)
    }

    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(self.integer(Some(value), &value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(self.integer(i64::try_from(value).ok(), &value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
        Ok(self.integer(None, &value.to_string()))
    }

    fn visit_str<E>(mut self, value: &str) -> Result<Self::Value, E> {
        let kept = match self.kind {
            FieldType::String | FieldType::IntOrString => Ok(Some(value.into())),
            FieldType::Bytes => valid_base64(value).map(|()| Some(value.into())),
            FieldType::Time | FieldType::MicroTime if value.is_empty() => Ok(None),
            FieldType::Time => time(value, false).map(Some),
            FieldType::MicroTime => time(value, true).map(Some),
            FieldType::Quantity => quantity::canonical(value).map(|q| Some(q.into())).map_err(str::to_owned),
            _ => {
                self.wrong("string");
                Ok(None)
            }
        };
        Ok(kept.unwrap_or_else(|message| {
            self.decoder.fail(message);
            None
        }))
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<Self::Value, A::Error> {
        let FieldType::List(of) = self.kind else {
            self.wrong("array");
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(None);
        };
        let mut out = Vec::new();
        self.decoder.path.push(Step::Index(0));
        while let Some(value) =
            seq.next_element_seed(Seed { decoder: self.decoder, kind: of, owner: self.owner, field: self.field })?
        {
            out.push(value.unwrap_or_else(|| zero(of)));
            if let Some(Step::Index(i)) = self.decoder.path.last_mut() {
                *i += 1;
            }
        }
        self.decoder.path.pop();
        Ok(Some(Value::Array(out)))
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self::Value, A::Error> {
        match self.kind {
            FieldType::Object(index) => self.object(type_at(*index), map).map(Some),
            FieldType::Map(of) => {
                let mut out = Map::new();
                while let Some(Name(key)) = map.next_key()? {
                    if out.contains_key(key.as_ref()) {
                        self.decoder.strict("duplicate", &key);
                    }
                    self.decoder.path.push(Step::Key(key.to_string()));
                    let value = map.next_value_seed(Seed {
                        decoder: self.decoder,
                        kind: of,
                        owner: self.owner,
                        field: self.field,
                    });
                    self.decoder.path.pop();
                    out.insert(key.into_owned(), value?.unwrap_or_else(|| zero(of)));
                }
                Ok(Some(Value::Object(out)))
            }
            _ => {
                self.wrong("object");
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(None)
            }
        }
    }
}

impl Seed<'_> {
    fn object<'de, A: MapAccess<'de>>(&mut self, of: &'static Type, mut map: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        let mut seen = vec![false; of.fields.len()];
        while let Some(Name(key)) = map.next_key()? {
            let Ok(at) = of.fields.binary_search_by(|f| f.name.cmp(&key)) else {
                self.decoder.strict("unknown", &key);
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let field = &of.fields[at];
            if std::mem::replace(&mut seen[at], true) {
                self.decoder.strict("duplicate", field.name);
            }
            self.decoder.path.push(Step::Field(field.name));
            let seed = Seed { decoder: self.decoder, kind: &field.kind, owner: of.name, field: field.name };
            let value = map.next_value_seed(seed);
            self.decoder.path.pop();
            match value?.filter(|v| field.required || !omitted(of.name, field.name, v)) {
                Some(value) => out.insert(field.name.into(), value),
                None => out.remove(field.name),
            };
        }
        Ok(Value::Object(out))
    }
}

/// Strings that Go keeps when empty, because they are pointers there and empty means something.
const EMPTY_MATTERS: &[(&str, &str)] = &[
    ("discovery.v1.EndpointPort", "name"),
    ("discovery.v1.EndpointPort", "appProtocol"),
    ("core.v1.PersistentVolumeClaimSpec", "storageClassName"),
    ("core.v1.ServicePort", "appProtocol"),
    ("core.v1.ServiceSpec", "loadBalancerClass"),
    ("core.v1.ServiceSpec", "trafficDistribution"),
    ("networking.v1.IngressSpec", "ingressClassName"),
    ("coordination.v1.LeaseSpec", "holderIdentity"),
    ("core.v1.TypedLocalObjectReference", "apiGroup"),
];

/// Go's `omitempty`: an empty string, list or map is the same as none.
fn omitted(owner: &str, field: &str, value: &Value) -> bool {
    match value {
        Value::String(s) => s.is_empty() && !EMPTY_MATTERS.contains(&(owner, field)),
        Value::Array(a) => a.is_empty(),
        // An empty struct may be a choice (`emptyDir: {}`, `podSelector: {}`); an empty map never is.
        Value::Object(m) => {
            m.is_empty()
                && type_named(owner).and_then(|t| t.field(field)).is_some_and(|f| matches!(f.kind, FieldType::Map(_)))
        }
        _ => false,
    }
}

/// What null becomes where something has to stand.
fn zero(kind: &FieldType) -> Value {
    match kind {
        FieldType::String | FieldType::Bytes => "".into(),
        FieldType::Int32 | FieldType::Int64 | FieldType::IntOrString => 0.into(),
        FieldType::Float => 0.0.into(),
        FieldType::Bool => false.into(),
        FieldType::Quantity => "0".into(),
        FieldType::Object(_) | FieldType::Map(_) => Value::Object(Map::new()),
        FieldType::List(_) => Value::Array(Vec::new()),
        FieldType::Time | FieldType::MicroTime | FieldType::Raw => Value::Null,
    }
}

/// A key: YAML may write numbers and booleans, which JSON makes strings.
struct Name<'de>(Cow<'de, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Key;
        impl<'de> Visitor<'de> for Key {
            type Value = Name<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }
            fn visit_borrowed_str<E>(self, v: &'de str) -> Result<Self::Value, E> {
                Ok(Name(Cow::Borrowed(v)))
            }
            fn visit_str<E>(self, v: &str) -> Result<Self::Value, E> {
                Ok(Name(Cow::Owned(v.to_owned())))
            }
            fn visit_bool<E>(self, v: bool) -> Result<Self::Value, E> {
                Ok(Name(Cow::Owned(v.to_string())))
            }
            fn visit_i64<E>(self, v: i64) -> Result<Self::Value, E> {
                Ok(Name(Cow::Owned(v.to_string())))
            }
            fn visit_u64<E>(self, v: u64) -> Result<Self::Value, E> {
                Ok(Name(Cow::Owned(v.to_string())))
            }
            fn visit_f64<E>(self, v: f64) -> Result<Self::Value, E> {
                Ok(Name(Cow::Owned(v.to_string())))
            }
        }
        deserializer.deserialize_any(Key)
    }
}

#[cfg(test)]
mod tests;
