//! Deployment, ReplicaSet and StatefulSet as pure functions: the owner, its children and the time in; the writes and the
//! status out. They refuse to know how writes are made; called again with the result, they come to rest.

pub mod deployment;
pub mod replicaset;
pub mod statefulset;

use std::{fmt, time::Duration};

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::object::{Labels, Pod};

/// `spec.selector` of a workload: `matchLabels` and `matchExpressions`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    labels: Labels,
    expressions: Vec<Expression>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Expression {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl Selector {
    /// `None` for a selector that selects nothing: missing, empty, or with an operator nobody knows.
    pub fn parse(v: &Value) -> Option<Self> {
        let labels = crate::parse::labels(&v["matchLabels"]);
        let mut expressions = Vec::new();
        for e in v["matchExpressions"].as_array().into_iter().flatten() {
            let operator = match e["operator"].as_str()? {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                _ => return None,
            };
            let values = e["values"].as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_string));
            expressions.push(Expression { key: e["key"].as_str()?.into(), operator, values: values.collect() });
        }
        let selector = Self { labels, expressions };
        (selector != Self::default()).then_some(selector)
    }

    pub fn matches(&self, labels: &Labels) -> bool {
        crate::object::selects(&self.labels, labels)
            && self.expressions.iter().all(|e| {
                let value = labels.get(e.key.as_str());
                let listed = value.is_some_and(|v| e.values.iter().any(|w| **w == **v));
                match e.operator {
                    Operator::In => listed,
                    Operator::NotIn => !listed,
                    Operator::Exists => value.is_some(),
                    Operator::DoesNotExist => value.is_none(),
                }
            })
    }
}

/// `maxSurge`, `maxUnavailable`: a number of pods or a part of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IntOrPercent {
    Int(u32),
    Percent(u32),
}

impl IntOrPercent {
    pub fn parse(v: &Value, default: Self) -> Self {
        match v {
            Value::Number(n) => n.as_u64().and_then(|n| u32::try_from(n).ok()).map_or(default, Self::Int),
            Value::String(s) => match s.strip_suffix('%') {
                Some(p) => p.parse().map_or(default, Self::Percent),
                None => s.parse().map_or(default, Self::Int),
            },
            _ => default,
        }
    }

    /// Percentages round up or down as the field asks.
    pub fn of(self, total: u32, round_up: bool) -> u32 {
        match self {
            Self::Int(n) => n,
            Self::Percent(p) => {
                let part = u64::from(p) * u64::from(total);
                u32::try_from(if round_up { part.div_ceil(100) } else { part / 100 }).unwrap_or(u32::MAX)
            }
        }
    }
}

/// A new time to look at the owner again although nothing will have happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recheck(pub Option<Duration>);

impl Recheck {
    pub(crate) fn after(&mut self, wait: Duration) {
        self.0 = Some(self.0.map_or(wait, |w| w.min(wait)));
    }
}

/// Ready for at least `min_ready` seconds. Notes when a ready pod will have been.
pub(crate) fn available(pod: &Pod, min_ready: u32, now: Timestamp, recheck: &mut Recheck) -> bool {
    if !pod.ready {
        return false;
    }
    if min_ready == 0 {
        return true;
    }
    let Ok(since) = pod.ready_since.parse::<Timestamp>() else { return false };
    let waited = now.duration_since(since).as_secs();
    let left = i64::from(min_ready) - waited;
    if left > 0 {
        recheck.after(Duration::from_secs(left.unsigned_abs()));
    }
    left <= 0
}

/// The alphabet of Kubernetes' generated names: no vowels and nothing that looks like one.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// The `pod-template-hash`: ten characters that depend only on the template's meaning, not on the order of its fields.
pub fn template_hash(template: &Value, collisions: u32) -> String {
    let mut hash = Fnv(0x811c_9dc5);
    // Writing to the hash cannot fail.
    let _ = canonical(template, &mut hash);
    if collisions > 0 {
        hash.bytes(&collisions.to_le_bytes());
    }
    format!("{:010}", hash.0).bytes().map(|b| char::from(ALPHABET[usize::from(b) % ALPHABET.len()])).collect()
}

/// 32-bit FNV-1a.
struct Fnv(u32);

impl Fnv {
    fn bytes(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.0 = (self.0 ^ u32::from(*b)).wrapping_mul(0x0100_0193);
        }
    }
}

impl fmt::Write for Fnv {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        self.bytes(s.as_bytes());
        Ok(())
    }
}

/// Writes a value so that equal meaning gives equal text: sorted fields, nulls left out.
pub(crate) fn canonical(v: &Value, out: &mut impl fmt::Write) -> fmt::Result {
    match v {
        Value::Object(map) => {
            let mut keys: Vec<_> = map.iter().filter(|(_, v)| !v.is_null()).collect();
            keys.sort_by_key(|(k, _)| *k);
            out.write_char('{')?;
            for (k, v) in keys {
                write!(out, "{k:?}:")?;
                canonical(v, out)?;
                out.write_char(',')?;
            }
            out.write_char('}')
        }
        Value::Array(list) => {
            out.write_char('[')?;
            for v in list {
                canonical(v, out)?;
                out.write_char(',')?;
            }
            out.write_char(']')
        }
        scalar => write!(out, "{scalar}"),
    }
}

/// A pod as its owner's template describes it. `name` is a whole name, or a prefix ending in `-` for a generated one.
pub(crate) fn pod_from(template: &Value, namespace: &str, name: &str, owner: &Owner<'_>) -> Value {
    let mut metadata = json!({"namespace": namespace, "ownerReferences": [owner.reference()]});
    for field in ["labels", "annotations", "finalizers"] {
        if !template["metadata"][field].is_null() {
            metadata[field] = template["metadata"][field].clone();
        }
    }
    metadata[if name.ends_with('-') { "generateName" } else { "name" }] = name.into();
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
}

/// Who an object belongs to.
#[derive(Clone, Copy, Debug)]
pub struct Owner<'a> {
    pub api_version: &'static str,
    pub kind: &'static str,
    pub name: &'a str,
    pub uid: &'a str,
}

impl Owner<'_> {
    /// An entry of `metadata.ownerReferences` with `controller: true`.
    pub fn reference(&self) -> Value {
        json!({"apiVersion": self.api_version, "kind": self.kind, "name": self.name, "uid": self.uid,
            "controller": true, "blockOwnerDeletion": true})
    }
}

/// Replaces the condition of the same type. An equal status and reason leave the old one, with its times and message.
pub(crate) fn set_condition(
    conditions: &mut Vec<Value>,
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let now = rfc3339(now);
    let old = conditions.iter().position(|c| c["type"] == kind);
    let mut new = json!({"type": kind, "status": status, "reason": reason, "message": message,
        "lastUpdateTime": now, "lastTransitionTime": now});
    match old {
        Some(i) if conditions[i]["status"] == status && conditions[i]["reason"] == reason => (),
        Some(i) => {
            if conditions[i]["status"] == status {
                new["lastTransitionTime"] = conditions[i]["lastTransitionTime"].clone();
            }
            conditions[i] = new;
        }
        None => conditions.push(new),
    }
}

/// As the API writes times: UTC, whole seconds.
pub fn rfc3339(t: Timestamp) -> String {
    Timestamp::from_second(t.as_second()).unwrap_or(t).to_string()
}

pub(crate) fn count(v: &Value) -> u32 {
    v.as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seed_032_the_hash_has_ten_safe_characters_and_ignores_field_order() {
        let a: Value = serde_json::from_str(r#"{"a":1,"b":{"c":[1,2],"d":null}}"#).unwrap();
        let b: Value = serde_json::from_str(r#"{"b":{"c":[1,2]},"a":1}"#).unwrap();
        let hash = template_hash(&a, 0);
        assert_eq!(hash, template_hash(&b, 0));
        assert_eq!(hash.len(), 10);
        assert!(hash.bytes().all(|c| ALPHABET.contains(&c)));
        assert_ne!(hash, template_hash(&a, 1));
        assert_ne!(hash, template_hash(&json!({"a": 2}), 0));
    }

    #[test]
    fn percentages_round_as_asked() {
        let quarter = IntOrPercent::parse(&json!("25%"), IntOrPercent::Int(0));
        assert_eq!((quarter.of(3, true), quarter.of(3, false), quarter.of(4, false)), (1, 0, 1));
        assert_eq!(IntOrPercent::parse(&json!("x"), IntOrPercent::Int(7)), IntOrPercent::Int(7));
    }

    #[test]
    fn selectors_with_expressions() {
        let s = Selector::parse(&json!({"matchLabels": {"a": "1"}, "matchExpressions": [
            {"key": "b", "operator": "In", "values": ["x", "y"]}, {"key": "c", "operator": "DoesNotExist"}]}))
        .expect("selects");
        let labels = |l: &[(&str, &str)]| l.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect::<Labels>();
        assert!(s.matches(&labels(&[("a", "1"), ("b", "y")])));
        assert!(!s.matches(&labels(&[("a", "1"), ("b", "z")])));
        assert!(!s.matches(&labels(&[("a", "1"), ("b", "x"), ("c", "")])));
        assert_eq!(Selector::parse(&json!({})), None);
    }
}
