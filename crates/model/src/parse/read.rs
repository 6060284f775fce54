//! Reading single fields out of a JSON value, noting what could not be used.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use serde_json::Value;

use super::Strings;
use crate::object::{Labels, Meta, ObjectKey, Problem, Protocol};

/// Annotations that only their writers read back. They can be larger than the rest of the object.
const UNREAD_ANNOTATIONS: [&str; 2] =
    ["kubectl.kubernetes.io/last-applied-configuration", "endpoints.kubernetes.io/last-change-trigger-time"];

pub(super) struct Reader<'a> {
    kind: &'static str,
    object: ObjectKey,
    strings: &'a mut Strings,
    pub(super) problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(kind: &'static str, v: &Value, strings: &'a mut Strings) -> Self {
        let metadata = &v["metadata"];
        let object = ObjectKey {
            namespace: strings.share(metadata["namespace"].as_str().unwrap_or_default()),
            name: metadata["name"].as_str().unwrap_or_default().into(),
        };
        Self { kind, object, strings, problems: Vec::new() }
    }

    pub(super) fn problem(&mut self, field: &str, message: &str) {
        self.problems.push(Problem {
            kind: self.kind,
            object: self.object.clone(),
            field: field.into(),
            message: message.into(),
        });
    }

    pub(super) fn unsupported(&mut self, field: &str, value: &str, supported: &[&str]) {
        let list: Vec<_> = supported.iter().map(|s| format!("{s:?}")).collect();
        self.problem(field, &format!("Unsupported value: {value:?}: supported values: {}", list.join(", ")));
    }

    pub(super) fn share(&mut self, s: &str) -> Arc<str> {
        self.strings.share(s)
    }

    /// Empty when it is missing or not a string.
    pub(super) fn str(&mut self, v: &Value) -> Arc<str> {
        self.strings.share(v.as_str().unwrap_or_default())
    }

    /// `None` when it is missing, not a string, or empty.
    pub(super) fn optional_str(&mut self, v: &Value) -> Option<Arc<str>> {
        v.as_str().filter(|s| !s.is_empty()).map(|s| self.strings.share(s))
    }

    pub(super) fn labels(&mut self, v: &Value) -> Labels {
        let Some(map) = v.as_object() else { return Labels::new() };
        map.iter().filter_map(|(k, v)| Some((self.strings.share(k), self.strings.share(v.as_str()?)))).collect()
    }

    /// `None` only when the object has no name.
    pub(super) fn meta(&mut self, v: &Value) -> Option<Meta> {
        if self.object.name.is_empty() {
            self.problem("metadata.name", "Required value: name or generateName is required");
            return None;
        }
        let m = &v["metadata"];
        let mut annotations = self.labels(&m["annotations"]);
        annotations.retain(|k, _| !UNREAD_ANNOTATIONS.contains(&k.as_ref()));
        let owner = array(&m["ownerReferences"]).iter().find(|o| o["controller"] == true);
        Some(Meta {
            key: self.object.clone(),
            uid: m["uid"].as_str().unwrap_or_default().into(),
            generation: m["generation"].as_i64().unwrap_or(0),
            creation_timestamp: self.str(&m["creationTimestamp"]),
            labels: self.labels(&m["labels"]),
            annotations,
            deleting: !empty(&m["deletionTimestamp"]),
            controller: owner.map(|o| (self.str(&o["kind"]), self.str(&o["uid"]))),
        })
    }

    /// A missing protocol is TCP.
    pub(super) fn protocol(&mut self, field: &str, v: &Value) -> Option<Protocol> {
        let text = match v {
            Value::Null => return Some(Protocol::Tcp),
            Value::String(s) if s.is_empty() => return Some(Protocol::Tcp),
            Value::String(s) => s.as_str(),
            _ => "",
        };
        let parsed = text.parse().ok();
        if parsed.is_none() {
            self.unsupported(field, text, &["SCTP", "TCP", "UDP"]);
        }
        parsed
    }

    pub(super) fn port(&mut self, field: &str, v: &Value) -> Option<u16> {
        let port = v.as_i64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n != 0);
        if port.is_none() {
            let shown = if v.is_null() { "0".into() } else { v.to_string() };
            self.problem(field, &format!("Invalid value: {shown}: must be between 1 and 65535, inclusive"));
        }
        port
    }

    /// IPv4-mapped IPv6 addresses are read as the IPv4 address they carry.
    pub(super) fn ip(&mut self, field: &str, v: &Value) -> Option<IpAddr> {
        let ip = v.as_str().and_then(|s| s.parse::<IpAddr>().ok()).map(|ip| ip.to_canonical());
        if ip.is_none() {
            self.problem(
                field,
                &format!("Invalid value: {v}: must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"),
            );
        }
        ip
    }

    /// A range; bits after the prefix are cleared.
    pub(super) fn net(&mut self, field: &str, v: &Value) -> Option<IpNet> {
        let net = v.as_str().and_then(|s| s.trim().parse::<IpNet>().ok()).map(|n| n.trunc());
        if net.is_none() {
            self.problem(
                field,
                &format!("Invalid value: {v}: must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"),
            );
        }
        net
    }
}

/// The elements of a list; nothing when it is missing or something else.
pub(super) fn array(v: &Value) -> &[Value] {
    v.as_array().map_or(&[], Vec::as_slice)
}

/// Missing, null or the empty string.
pub(super) fn empty(v: &Value) -> bool {
    match v {
        Value::Null => true,
        Value::String(s) => s.is_empty(),
        _ => false,
    }
}

pub(super) fn condition<'v>(status: &'v Value, kind: &str) -> Option<&'v Value> {
    array(&status["conditions"]).iter().find(|c| c["type"] == kind)
}
