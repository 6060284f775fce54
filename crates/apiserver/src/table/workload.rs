//! What makes pods.

use serde_json::Value;

use super::{
    AGE, Column, NAME, NONE, Printer, age, containers, human_duration, integer, items, label_selector, labels, name,
    number, seconds, string_or, text, wide,
};

const CONTAINERS: Column = wide("Containers", "Names of the containers of each pod.");
const IMAGES: Column = wide("Images", "Images of those containers.");
const SELECTOR: Column = wide("Selector", "Labels of its pods.");

pub(super) static DEPLOYMENT: Printer = Printer {
    columns: &[
        NAME,
        text("Ready", "Pods that are ready, of those wanted."),
        integer("Up-to-date", "Pods of the newest template."),
        integer("Available", "Pods ready for long enough."),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    row: |d, now| {
        let status = &d["status"];
        let [names, images] = containers(&d["spec"]["template"]);
        vec![
            name(d),
            format!("{}/{}", number(&status["readyReplicas"]), number(&d["spec"]["replicas"])).into(),
            number(&status["updatedReplicas"]).into(),
            number(&status["availableReplicas"]).into(),
            age(d, now),
            names,
            images,
            label_selector(&d["spec"]["selector"]).into(),
        ]
    },
};

pub(super) static REPLICA_SET: Printer = Printer {
    columns: &[
        NAME,
        integer("Desired", "Pods wanted."),
        integer("Current", "Pods that exist."),
        integer("Ready", "Pods that are ready."),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    row: |r, now| {
        let [names, images] = containers(&r["spec"]["template"]);
        vec![
            name(r),
            number(&r["spec"]["replicas"]).into(),
            number(&r["status"]["replicas"]).into(),
            number(&r["status"]["readyReplicas"]).into(),
            age(r, now),
            names,
            images,
            label_selector(&r["spec"]["selector"]).into(),
        ]
    },
};

pub(super) static STATEFUL_SET: Printer = Printer {
    columns: &[NAME, text("Ready", "Pods that are ready, of those wanted."), AGE, CONTAINERS, IMAGES],
    row: |s, now| {
        let [names, images] = containers(&s["spec"]["template"]);
        let ready = format!("{}/{}", number(&s["status"]["readyReplicas"]), number(&s["spec"]["replicas"]));
        vec![name(s), ready.into(), age(s, now), names, images]
    },
};

pub(super) static DAEMON_SET: Printer = Printer {
    columns: &[
        NAME,
        integer("Desired", "Nodes that should run a pod."),
        integer("Current", "Nodes that run at least one."),
        integer("Ready", "Nodes whose pod is ready."),
        integer("Up-to-date", "Nodes with a pod of the newest template."),
        integer("Available", "Nodes whose pod has been ready for long enough."),
        text("Node Selector", "Labels of the nodes."),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    row: |d, now| {
        let status = &d["status"];
        let [names, images] = containers(&d["spec"]["template"]);
        vec![
            name(d),
            number(&status["desiredNumberScheduled"]).into(),
            number(&status["currentNumberScheduled"]).into(),
            number(&status["numberReady"]).into(),
            number(&status["updatedNumberScheduled"]).into(),
            number(&status["numberAvailable"]).into(),
            labels(&d["spec"]["template"]["spec"]["nodeSelector"]).into(),
            age(d, now),
            names,
            images,
            label_selector(&d["spec"]["selector"]).into(),
        ]
    },
};

pub(super) static JOB: Printer = Printer {
    columns: &[
        NAME,
        text("Status", "Where the job is."),
        text("Completions", "Pods that succeeded, of those wanted."),
        text("Duration", "How long it ran or has been running."),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    row: |j, now| {
        let (spec, status) = (&j["spec"], &j["status"]);
        let succeeded = number(&status["succeeded"]);
        let completions = match (spec["completions"].as_i64(), spec["parallelism"].as_i64()) {
            (Some(wanted), _) => format!("{succeeded}/{wanted}"),
            (None, Some(parallel)) if parallel > 1 => format!("{succeeded}/1 of {parallel}"),
            (None, _) => format!("{succeeded}/1"),
        };
        let duration = match (seconds(&status["startTime"]), seconds(&status["completionTime"])) {
            (None, _) => String::new(),
            (Some(start), end) => human_duration(end.unwrap_or(now) - start),
        };
        let [names, images] = containers(&spec["template"]);
        vec![
            name(j),
            job_status(j).into(),
            completions.into(),
            duration.into(),
            age(j, now),
            names,
            images,
            label_selector(&spec["selector"]).into(),
        ]
    },
};

fn job_status(job: &Value) -> &'static str {
    let has =
        |kind: &str| items(&job["status"], "conditions").iter().any(|c| c["type"] == kind && c["status"] == "True");
    if has("Complete") {
        "Complete"
    } else if has("Failed") {
        "Failed"
    } else if !job["metadata"]["deletionTimestamp"].is_null() {
        "Terminating"
    } else if has("Suspended") {
        "Suspended"
    } else if has("FailureTarget") {
        "FailureTarget"
    } else if has("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    }
}

pub(super) static CONTROLLER_REVISION: Printer = Printer {
    columns: &[
        NAME,
        text("Controller", "Workload it belongs to."),
        integer("Revision", "Its number in the history."),
        AGE,
    ],
    row: |r, now| {
        let owner = items(&r["metadata"], "ownerReferences").iter().find(|o| o["controller"] == true);
        let controller = owner.map_or_else(
            || NONE.to_owned(),
            |o| {
                let kind = string_or(&o["kind"], "").to_lowercase();
                let owner = string_or(&o["name"], "");
                match o["apiVersion"].as_str().unwrap_or_default().split_once('/') {
                    Some((group, _)) => format!("{kind}.{group}/{owner}"),
                    None => format!("{kind}/{owner}"),
                }
            },
        );
        vec![name(r), controller.into(), number(&r["revision"]).into(), age(r, now)]
    },
};

pub(super) static POD_DISRUPTION_BUDGET: Printer = Printer {
    columns: &[
        NAME,
        text("Min Available", "Pods that must stay."),
        text("Max Unavailable", "Pods that may be missing."),
        integer("Allowed Disruptions", "Pods that may be evicted now."),
        AGE,
    ],
    row: |b, now| {
        let limit = |field: &str| match &b["spec"][field] {
            Value::Null => "N/A".to_owned(),
            Value::String(s) => s.clone(),
            other => other.to_string(),
        };
        vec![
            name(b),
            limit("minAvailable").into(),
            limit("maxUnavailable").into(),
            number(&b["status"]["disruptionsAllowed"]).into(),
            age(b, now),
        ]
    },
};

pub(super) static POD_TEMPLATE: Printer = Printer {
    columns: &[
        NAME,
        text("Containers", "Names of its containers."),
        text("Images", "Images of those containers."),
        text("Pod Labels", "Labels of its pods."),
    ],
    row: |t, _| {
        let [names, images] = containers(&t["template"]);
        vec![name(t), names, images, labels(&t["template"]["metadata"]["labels"]).into()]
    },
};
