//! An OpenAPI 2 document as protobuf, message `openapi.v2.Document` of google/gnostic (openapiv2/OpenAPIv2.proto): the only
//! form that kubectl before 1.27 asks for. Only the fields that [`super::document`] writes are known here.

use serde_json::Value;

/// Appends one field to a message.
struct Message(Vec<u8>);

impl Message {
    fn new() -> Self {
        Self(Vec::new())
    }

    fn varint(&mut self, mut n: u64) {
        while n >= 0x80 {
            self.0.push(n as u8 | 0x80);
            n >>= 7;
        }
        self.0.push(n as u8);
    }

    /// Wire type 2: strings and messages.
    fn bytes(&mut self, field: u32, value: &[u8]) {
        self.varint(u64::from(field << 3 | 2));
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    fn text(&mut self, field: u32, value: &Value) {
        if let Some(text) = value.as_str() {
            self.bytes(field, text.as_bytes());
        }
    }

    fn texts(&mut self, field: u32, value: &Value) {
        for text in value.as_array().into_iter().flatten() {
            self.text(field, text);
        }
    }

    fn flag(&mut self, field: u32, value: &Value) {
        if *value == true {
            self.varint(u64::from(field << 3));
            self.varint(1);
        }
    }

    /// A map from names to messages, one message `{name = 1, value = 2}` each.
    fn named(&mut self, field: u32, map: &Value, encode: fn(&Value) -> Vec<u8>) {
        for (name, value) in map.as_object().into_iter().flatten() {
            let mut entry = Self::new();
            entry.bytes(1, name.as_bytes());
            entry.bytes(2, &encode(value));
            self.bytes(field, &entry.0);
        }
    }

    /// `vendor_extension`: every `x-...` member, as `NamedAny` whose `Any.yaml` is JSON (which is YAML).
    fn extensions(&mut self, field: u32, of: &Value) {
        for (name, value) in of.as_object().into_iter().flatten().filter(|(n, _)| n.starts_with("x-")) {
            let mut any = Self::new();
            any.bytes(2, value.to_string().as_bytes());
            let mut entry = Self::new();
            entry.bytes(1, name.as_bytes());
            entry.bytes(2, &any.0);
            self.bytes(field, &entry.0);
        }
    }
}

/// A message that holds one other.
fn wrap(field: u32, inner: &[u8]) -> Vec<u8> {
    let mut out = Message::new();
    out.bytes(field, inner);
    out.0
}

/// `Document`
pub(super) fn document(document: &Value) -> Vec<u8> {
    let mut out = Message::new();
    out.text(1, &document["swagger"]);
    let mut info = Message::new();
    info.text(1, &document["info"]["title"]);
    info.text(2, &document["info"]["version"]);
    out.bytes(2, &info.0);
    let mut paths = Message::new();
    paths.named(2, &document["paths"], path_item);
    out.bytes(8, &paths.0);
    let mut definitions = Message::new();
    definitions.named(1, &document["definitions"], schema);
    out.bytes(9, &definitions.0);
    out.0
}

/// `Schema`
fn schema(schema: &Value) -> Vec<u8> {
    let mut out = Message::new();
    out.text(1, &schema["$ref"]);
    out.text(2, &schema["format"]);
    out.text(4, &schema["description"]);
    out.texts(19, &schema["required"]);
    if schema["additionalProperties"].is_object() {
        out.bytes(21, &wrap(1, &self::schema(&schema["additionalProperties"])));
    }
    if schema["type"].is_string() {
        let mut kind = Message::new();
        kind.text(1, &schema["type"]);
        out.bytes(22, &kind.0);
    }
    if schema["items"].is_object() {
        out.bytes(23, &wrap(1, &self::schema(&schema["items"])));
    }
    if schema["properties"].is_object() {
        let mut properties = Message::new();
        properties.named(1, &schema["properties"], self::schema);
        out.bytes(25, &properties.0);
    }
    out.extensions(31, schema);
    out.0
}

/// `PathItem`
fn path_item(item: &Value) -> Vec<u8> {
    let mut out = Message::new();
    for (field, method) in [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (8, "patch")] {
        if item[method].is_object() {
            out.bytes(field, &operation(&item[method]));
        }
    }
    for p in item["parameters"].as_array().into_iter().flatten() {
        out.bytes(9, &parameter(p));
    }
    out.0
}

/// `Operation`
fn operation(operation: &Value) -> Vec<u8> {
    let mut out = Message::new();
    out.text(5, &operation["operationId"]);
    out.texts(6, &operation["produces"]);
    out.texts(7, &operation["consumes"]);
    for p in operation["parameters"].as_array().into_iter().flatten() {
        out.bytes(8, &parameter(p));
    }
    let mut responses = Message::new();
    responses.named(1, &operation["responses"], |response| {
        let mut out = Message::new();
        out.text(1, &response["description"]);
        if response["schema"].is_object() {
            // SchemaItem{schema = 1}
            out.bytes(2, &wrap(1, &schema(&response["schema"])));
        }
        // ResponseValue{response = 1}
        wrap(1, &out.0)
    });
    out.bytes(9, &responses.0);
    out.extensions(13, operation);
    out.0
}

/// `ParametersItem{parameter = 1}` of a body, query or path parameter.
fn parameter(parameter: &Value) -> Vec<u8> {
    let mut out = Message::new();
    let inner = match parameter["in"].as_str() {
        Some("body") => {
            out.text(2, &parameter["name"]);
            out.text(3, &parameter["in"]);
            out.flag(4, &parameter["required"]);
            out.bytes(5, &schema(&parameter["schema"]));
            wrap(1, &out.0)
        }
        Some("path") => {
            out.flag(1, &parameter["required"]);
            out.text(2, &parameter["in"]);
            out.text(4, &parameter["name"]);
            out.text(5, &parameter["type"]);
            out.flag(18, &parameter["uniqueItems"]);
            wrap(2, &wrap(4, &out.0))
        }
        _ => {
            out.flag(1, &parameter["required"]);
            out.text(2, &parameter["in"]);
            out.text(4, &parameter["name"]);
            out.text(6, &parameter["type"]);
            out.flag(20, &parameter["uniqueItems"]);
            wrap(2, &wrap(3, &out.0))
        }
    };
    wrap(1, &inner)
}
