//! Tables: what `kubectl get` prints. The columns of a kind, and a row for an object; how texts such as a pod's STATUS come
//! about is in the printers. Age and the like are relative to the `now` the caller passes.

mod cluster;
mod duration;
mod pod;
mod service;
mod workload;

pub use duration::human_duration;
use serde_json::{Map, Value, json};

use crate::kinds::Kind;

/// `?includeObject=`: what each row carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IncludeObject {
    None,
    /// A PartialObjectMetadata (the default).
    #[default]
    Metadata,
    Object,
}

/// The version the client asked for in `Accept: application/json;as=Table;v=...;g=meta.k8s.io`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TableVersion {
    #[default]
    V1,
    V1Beta1,
}

impl TableVersion {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "meta.k8s.io/v1",
            Self::V1Beta1 => "meta.k8s.io/v1beta1",
        }
    }
}

/// A column: its name as in the header (kubectl upper-cases it), its type, and whether only `-o wide` shows it.
struct Column {
    name: &'static str,
    kind: &'static str,
    format: &'static str,
    wide: bool,
    description: &'static str,
}

const fn text(name: &'static str, description: &'static str) -> Column {
    Column { name, kind: "string", format: "", wide: false, description }
}

const fn integer(name: &'static str, description: &'static str) -> Column {
    Column { name, kind: "integer", format: "", wide: false, description }
}

const fn wide(name: &'static str, description: &'static str) -> Column {
    Column { name, kind: "string", format: "", wide: true, description }
}

const NAME: Column = Column {
    name: "Name",
    kind: "string",
    format: "name",
    wide: false,
    description: "Name of the object, unique in its namespace.",
};
const AGE: Column = text("Age", "Time since the object was created.");

/// How a kind is printed.
struct Printer {
    columns: &'static [Column],
    /// The cells of one object; `now` is in seconds since the Unix epoch.
    row: fn(object: &Value, now: i64) -> Vec<Value>,
}

static DEFAULT: Printer = Printer { columns: &[NAME, AGE], row: |o, now| vec![name(o), age(o, now)] };

fn printer(kind: &Kind) -> &'static Printer {
    match (kind.group, kind.kind) {
        ("", "Pod") => &pod::POD,
        ("", "Service") => &service::SERVICE,
        ("", "Endpoints") => &service::ENDPOINTS,
        ("discovery.k8s.io", "EndpointSlice") => &service::ENDPOINT_SLICE,
        ("networking.k8s.io", "Ingress") => &service::INGRESS,
        ("networking.k8s.io", "IngressClass") => &service::INGRESS_CLASS,
        ("networking.k8s.io", "NetworkPolicy") => &service::NETWORK_POLICY,
        ("networking.k8s.io", "ServiceCIDR") => &service::SERVICE_CIDR,
        ("networking.k8s.io", "IPAddress") => &service::IP_ADDRESS,
        ("apps", "Deployment") => &workload::DEPLOYMENT,
        ("apps", "ReplicaSet") => &workload::REPLICA_SET,
        ("apps", "StatefulSet") => &workload::STATEFUL_SET,
        ("apps", "DaemonSet") => &workload::DAEMON_SET,
        ("apps", "ControllerRevision") => &workload::CONTROLLER_REVISION,
        ("batch", "Job") => &workload::JOB,
        ("policy", "PodDisruptionBudget") => &workload::POD_DISRUPTION_BUDGET,
        ("", "PodTemplate") => &workload::POD_TEMPLATE,
        ("", "Node") => &cluster::NODE,
        ("", "Namespace") => &cluster::NAMESPACE,
        ("", "ConfigMap") => &cluster::CONFIG_MAP,
        ("", "Secret") => &cluster::SECRET,
        ("", "ServiceAccount") => &cluster::SERVICE_ACCOUNT,
        ("", "Event") => &cluster::EVENT,
        ("", "PersistentVolume") => &cluster::PERSISTENT_VOLUME,
        ("", "PersistentVolumeClaim") => &cluster::PERSISTENT_VOLUME_CLAIM,
        ("coordination.k8s.io", "Lease") => &cluster::LEASE,
        ("storage.k8s.io", "StorageClass") => &cluster::STORAGE_CLASS,
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => &cluster::ROLE_BINDING,
        ("rbac.authorization.k8s.io", _) | ("", "LimitRange") => &cluster::CREATED_AT,
        _ => &DEFAULT,
    }
}

/// A Table of `items` with the list's metadata. `no_headers`: a watch has sent the columns already. `now` in seconds since
/// the Unix epoch, for ages.
pub fn table(
    kind: &Kind,
    api_version: TableVersion,
    list_meta: &Value,
    items: &[&Value],
    include: IncludeObject,
    no_headers: bool,
    now: i64,
) -> Value {
    let printer = printer(kind);
    let columns = if no_headers {
        Value::Null
    } else {
        let column = |c: &Column| json!({"name": c.name, "type": c.kind, "format": c.format, "description": c.description, "priority": i32::from(c.wide)});
        printer.columns.iter().map(column).collect()
    };
    let rows: Vec<Value> = items
        .iter()
        .map(|object| {
            let mut row = Map::new();
            row.insert("cells".into(), (printer.row)(object, now).into());
            if kind.kind == "Pod"
                && let Some(conditions) = pod::row_conditions(object)
            {
                row.insert("conditions".into(), conditions);
            }
            let carried = match include {
                IncludeObject::None => Value::Null,
                IncludeObject::Metadata => json!({
                    "kind": "PartialObjectMetadata",
                    "apiVersion": api_version.as_str(),
                    "metadata": object["metadata"],
                }),
                IncludeObject::Object => (*object).clone(),
            };
            row.insert("object".into(), carried);
            Value::Object(row)
        })
        .collect();
    json!({
        "kind": "Table",
        "apiVersion": api_version.as_str(),
        "metadata": list_meta,
        "columnDefinitions": columns,
        "rows": rows,
    })
}

const NONE: &str = "<none>";
const UNKNOWN: &str = "<unknown>";

fn name(object: &Value) -> Value {
    object["metadata"]["name"].as_str().unwrap_or_default().into()
}

fn age(object: &Value, now: i64) -> Value {
    since(&object["metadata"]["creationTimestamp"], now).into()
}

/// Seconds since the Unix epoch of an API timestamp.
fn seconds(timestamp: &Value) -> Option<i64> {
    timestamp.as_str().and_then(|t| t.parse::<jiff::Timestamp>().ok()).map(jiff::Timestamp::as_second)
}

fn since(timestamp: &Value, now: i64) -> String {
    seconds(timestamp).map_or_else(|| UNKNOWN.into(), |t| human_duration(now.saturating_sub(t)))
}

/// The text of a field, `or` when it is absent or empty.
fn string_or(value: &Value, or: &str) -> String {
    value.as_str().filter(|s| !s.is_empty()).unwrap_or(or).to_owned()
}

fn items<'a>(object: &'a Value, field: &str) -> &'a [Value] {
    object.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

/// `a=b,c=d` in key order.
fn labels(map: &Value) -> String {
    let mut pairs: Vec<String> =
        map.as_object().into_iter().flatten().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
    pairs.sort();
    if pairs.is_empty() { NONE.into() } else { pairs.join(",") }
}

/// A LabelSelector as `kubectl -l` would take it.
fn label_selector(selector: &Value) -> String {
    let mut parts: Vec<String> = selector["matchLabels"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()))
        .collect();
    for e in items(selector, "matchExpressions") {
        let key = e["key"].as_str().unwrap_or_default();
        let mut values: Vec<&str> = items(e, "values").iter().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let values = values.join(",");
        parts.push(match e["operator"].as_str().unwrap_or_default() {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        });
    }
    parts.sort();
    if parts.is_empty() { NONE.into() } else { parts.join(",") }
}

/// Names and images of a pod template's containers.
fn containers(template: &Value) -> [Value; 2] {
    let list = items(&template["spec"], "containers");
    let join = |field: &str| list.iter().map(|c| c[field].as_str().unwrap_or_default()).collect::<Vec<_>>().join(",");
    [join("name").into(), join("image").into()]
}

#[cfg(test)]
mod tests;
