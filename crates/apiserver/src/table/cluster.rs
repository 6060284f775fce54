//! Nodes, namespaces and what pods are configured with.

use serde_json::Value;

use super::{
    AGE, Column, NAME, NONE, Printer, UNKNOWN, age, integer, items, name, number, seconds, since, string_or, text, wide,
};

pub(super) static NODE: Printer = Printer {
    columns: &[
        NAME,
        text("Status", "Whether the node is ready and takes pods."),
        text("Roles", "Roles from its labels."),
        AGE,
        text("Version", "Version of its kubelet."),
        wide("Internal-IP", "Address inside the cluster."),
        wide("External-IP", "Address outside."),
        wide("OS-Image", "Operating system."),
        wide("Kernel-Version", "Kernel."),
        wide("Container-Runtime", "What runs its containers."),
    ],
    row: |n, now| {
        let info = &n["status"]["nodeInfo"];
        let address = |kind: &str| {
            let found = items(&n["status"], "addresses").iter().find(|a| a["type"] == kind);
            found.map_or_else(|| NONE.into(), |a| string_or(&a["address"], NONE))
        };
        vec![
            name(n),
            node_status(n).into(),
            node_roles(n).into(),
            age(n, now),
            string_or(&info["kubeletVersion"], "").into(),
            address("InternalIP").into(),
            address("ExternalIP").into(),
            string_or(&info["osImage"], UNKNOWN).into(),
            string_or(&info["kernelVersion"], UNKNOWN).into(),
            string_or(&info["containerRuntimeVersion"], UNKNOWN).into(),
        ]
    },
};

fn node_status(node: &Value) -> String {
    let ready = items(&node["status"], "conditions").iter().find(|c| c["type"] == "Ready");
    let mut status = match ready {
        None => "Unknown",
        Some(c) if c["status"] == "True" => "Ready",
        Some(_) => "NotReady",
    }
    .to_owned();
    if node["spec"]["unschedulable"] == true {
        status.push_str(",SchedulingDisabled");
    }
    status
}

fn node_roles(node: &Value) -> String {
    let mut roles: Vec<String> = node["metadata"]["labels"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role.to_owned()),
            None => value.as_str().filter(|_| key == "kubernetes.io/role").map(str::to_owned),
        })
        .filter(|r| !r.is_empty())
        .collect();
    roles.sort();
    roles.dedup();
    if roles.is_empty() { NONE.into() } else { roles.join(",") }
}

pub(super) static NAMESPACE: Printer = Printer {
    columns: &[NAME, text("Status", "Active or Terminating."), AGE],
    row: |n, now| vec![name(n), string_or(&n["status"]["phase"], "").into(), age(n, now)],
};

const DATA: Column = integer("Data", "How many entries it holds.");

fn entries(object: &Value, fields: &[&str]) -> Value {
    fields.iter().map(|f| object[*f].as_object().map_or(0, serde_json::Map::len)).sum::<usize>().into()
}

pub(super) static CONFIG_MAP: Printer = Printer {
    columns: &[NAME, DATA, AGE],
    row: |c, now| vec![name(c), entries(c, &["data", "binaryData"]), age(c, now)],
};

pub(super) static SECRET: Printer = Printer {
    columns: &[NAME, text("Type", "What the data is for."), DATA, AGE],
    row: |s, now| vec![name(s), string_or(&s["type"], "").into(), entries(s, &["data"]), age(s, now)],
};

pub(super) static SERVICE_ACCOUNT: Printer = Printer {
    columns: &[NAME, integer("Secrets", "Secrets its pods may use."), AGE],
    row: |s, now| vec![name(s), items(s, "secrets").len().into(), age(s, now)],
};

pub(super) static EVENT: Printer = Printer {
    columns: &[
        text("Last Seen", "Time since it happened last."),
        text("Type", "Normal or Warning."),
        text("Reason", "What happened, in one word."),
        text("Object", "What it happened to."),
        wide("Subobject", "The part of the object."),
        wide("Source", "Who tells."),
        text("Message", "What happened, in words."),
        wide("First Seen", "Time since it happened first."),
        wide("Count", "How often it happened."),
        Column { wide: true, ..NAME },
    ],
    row: |e, now| {
        let object = &e["involvedObject"];
        let any_time = |v: &Value| seconds(v).is_some();
        let first = if any_time(&e["firstTimestamp"]) { &e["firstTimestamp"] } else { &e["eventTime"] };
        let series = &e["series"];
        let (last, count) = if series.is_object() {
            (&series["lastObservedTime"], number(&series["count"]))
        } else {
            (&e["lastTimestamp"], number(&e["count"]).max(1))
        };
        let last = if any_time(last) { last } else { first };
        let source: Vec<String> = [
            string_or(&e["source"]["component"], e["reportingComponent"].as_str().unwrap_or_default()),
            string_or(&e["source"]["host"], e["reportingInstance"].as_str().unwrap_or_default()),
        ]
        .into_iter()
        .filter(|s| !s.is_empty())
        .collect();
        let kind = string_or(&object["kind"], "").to_lowercase();
        let involved = string_or(&object["name"], "");
        vec![
            since(last, now).into(),
            string_or(&e["type"], "").into(),
            string_or(&e["reason"], "").into(),
            if kind.is_empty() { involved.into() } else { format!("{kind}/{involved}").into() },
            string_or(&object["fieldPath"], "").into(),
            source.join(", ").into(),
            string_or(&e["message"], "").trim().into(),
            since(first, now).into(),
            count.to_string().into(),
            name(e),
        ]
    },
};

pub(super) static LEASE: Printer = Printer {
    columns: &[NAME, text("Holder", "Who holds it."), AGE],
    row: |l, now| vec![name(l), string_or(&l["spec"]["holderIdentity"], "").into(), age(l, now)],
};

/// `RWO,ROX`
fn access_modes(modes: &Value) -> String {
    let short = |m: &Value| match m.as_str() {
        Some("ReadWriteOnce") => "RWO",
        Some("ReadOnlyMany") => "ROX",
        Some("ReadWriteMany") => "RWX",
        Some("ReadWriteOncePod") => "RWOP",
        _ => "",
    };
    let list: Vec<&str> = modes.as_array().into_iter().flatten().map(short).filter(|m| !m.is_empty()).collect();
    list.join(",")
}

const STORAGE_CLASS_NAME: Column = text("StorageClass", "Class it belongs to.");
const ATTRIBUTES: Column = text("VolumeAttributesClass", "Class of its attributes.");
const VOLUME_MODE: Column = wide("VolumeMode", "Filesystem or Block.");

pub(super) static PERSISTENT_VOLUME: Printer = Printer {
    columns: &[
        NAME,
        text("Capacity", "Size."),
        text("Access Modes", "How it may be mounted."),
        text("Reclaim Policy", "What happens when it is released."),
        text("Status", "Where it is in its life."),
        text("Claim", "Who uses it."),
        STORAGE_CLASS_NAME,
        ATTRIBUTES,
        text("Reason", "Why it is in this state."),
        AGE,
        VOLUME_MODE,
    ],
    row: |v, now| {
        let (spec, status) = (&v["spec"], &v["status"]);
        let claim = &spec["claimRef"];
        let claim = if claim.is_object() {
            format!("{}/{}", string_or(&claim["namespace"], ""), string_or(&claim["name"], ""))
        } else {
            String::new()
        };
        let deleting = !v["metadata"]["deletionTimestamp"].is_null();
        vec![
            name(v),
            string_or(&spec["capacity"]["storage"], "").into(),
            access_modes(&spec["accessModes"]).into(),
            string_or(&spec["persistentVolumeReclaimPolicy"], "").into(),
            if deleting { "Terminating".into() } else { string_or(&status["phase"], "").into() },
            claim.into(),
            string_or(&spec["storageClassName"], "").into(),
            string_or(&spec["volumeAttributesClassName"], "<unset>").into(),
            string_or(&status["reason"], "").into(),
            age(v, now),
            string_or(&spec["volumeMode"], "<unset>").into(),
        ]
    },
};

pub(super) static PERSISTENT_VOLUME_CLAIM: Printer = Printer {
    columns: &[
        NAME,
        text("Status", "Where it is in its life."),
        text("Volume", "Volume it is bound to."),
        text("Capacity", "Size of that volume."),
        text("Access Modes", "How it may be mounted."),
        STORAGE_CLASS_NAME,
        ATTRIBUTES,
        AGE,
        VOLUME_MODE,
    ],
    row: |c, now| {
        let (spec, status) = (&c["spec"], &c["status"]);
        let bound = !string_or(&spec["volumeName"], "").is_empty();
        let deleting = !c["metadata"]["deletionTimestamp"].is_null();
        vec![
            name(c),
            if deleting { "Terminating".into() } else { string_or(&status["phase"], "").into() },
            string_or(&spec["volumeName"], "").into(),
            if bound { string_or(&status["capacity"]["storage"], "0").into() } else { "".into() },
            if bound { access_modes(&status["accessModes"]).into() } else { "".into() },
            string_or(&spec["storageClassName"], "").into(),
            string_or(&spec["volumeAttributesClassName"], "<unset>").into(),
            age(c, now),
            string_or(&spec["volumeMode"], "<unset>").into(),
        ]
    },
};

pub(super) static STORAGE_CLASS: Printer = Printer {
    columns: &[
        NAME,
        text("Provisioner", "Who makes its volumes."),
        text("ReclaimPolicy", "What happens to released volumes."),
        text("VolumeBindingMode", "When a volume is bound."),
        text("AllowVolumeExpansion", "Whether volumes may grow."),
        AGE,
    ],
    row: |c, now| {
        let default = c["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"] == "true";
        let shown = format!("{}{}", string_or(&c["metadata"]["name"], ""), if default { " (default)" } else { "" });
        vec![
            shown.into(),
            string_or(&c["provisioner"], "").into(),
            string_or(&c["reclaimPolicy"], "Delete").into(),
            string_or(&c["volumeBindingMode"], "Immediate").into(),
            (c["allowVolumeExpansion"] == true).to_string().into(),
            age(c, now),
        ]
    },
};

pub(super) static ROLE_BINDING: Printer = Printer {
    columns: &[
        NAME,
        text("Role", "Role that is granted."),
        AGE,
        wide("Users", "Users it is granted to."),
        wide("Groups", "Groups it is granted to."),
        wide("ServiceAccounts", "Service accounts it is granted to."),
    ],
    row: |b, now| {
        let of = |kind: &str| {
            let shown = |s: &Value| match s["namespace"].as_str().filter(|n| !n.is_empty()) {
                Some(ns) => format!("{ns}/{}", string_or(&s["name"], "")),
                None => string_or(&s["name"], ""),
            };
            items(b, "subjects").iter().filter(|s| s["kind"] == kind).map(shown).collect::<Vec<_>>().join(", ")
        };
        let role = format!("{}/{}", string_or(&b["roleRef"]["kind"], ""), string_or(&b["roleRef"]["name"], ""));
        vec![name(b), role.into(), age(b, now), of("User").into(), of("Group").into(), of("ServiceAccount").into()]
    },
};

/// Kinds that print when they were made instead of how old they are.
pub(super) static CREATED_AT: Printer = Printer {
    columns: &[NAME, text("Created At", "When the object was created.")],
    row: |o, _| vec![name(o), string_or(&o["metadata"]["creationTimestamp"], "").into()],
};
