//! Pods: READY, STATUS and RESTARTS tell in three words what a pod's status says in a page.

use serde_json::{Value, json};

use super::{AGE, Column, NAME, NONE, Printer, age, items, name, number, seconds, string_or, text, wide};

const COLUMNS: &[Column] = &[
    NAME,
    text("Ready", "Containers that are ready, of all that should be."),
    text("Status", "Where the pod is in its life, or what keeps it from going on."),
    text("Restarts", "How often its containers were restarted, and when last."),
    AGE,
    wide("IP", "Address of the pod."),
    wide("Node", "Node that runs the pod."),
    wide("Nominated Node", "Node on which room is being made for the pod."),
    wide("Readiness Gates", "Readiness gates that are met, of all the pod has."),
];

pub(super) static POD: Printer = Printer { columns: COLUMNS, row };

/// What the containers' statuses add up to.
struct Summary {
    total: usize,
    ready: usize,
    restarts: i64,
    last_restart: Option<i64>,
    reason: String,
}

fn row(pod: &Value, now: i64) -> Vec<Value> {
    let status = &pod["status"];
    let summary = summarize(pod);
    let restarts = match summary.last_restart {
        Some(at) if summary.restarts != 0 => {
            format!("{} ({} ago)", summary.restarts, super::human_duration(now.saturating_sub(at)))
        }
        _ => summary.restarts.to_string(),
    };
    let ip = items(status, "podIPs").first().map_or(&status["podIP"], |first| &first["ip"]);
    vec![
        name(pod),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.reason.into(),
        restarts.into(),
        age(pod, now),
        string_or(ip, NONE).into(),
        string_or(&pod["spec"]["nodeName"], NONE).into(),
        string_or(&status["nominatedNodeName"], NONE).into(),
        gates(pod).into(),
    ]
}

fn gates(pod: &Value) -> String {
    let gates = items(&pod["spec"], "readinessGates");
    if gates.is_empty() {
        return NONE.into();
    }
    let met = gates.iter().filter(|g| condition(pod, g["conditionType"].as_str().unwrap_or_default(), "True")).count();
    format!("{met}/{}", gates.len())
}

fn condition(pod: &Value, kind: &str, status: &str) -> bool {
    items(&pod["status"], "conditions").iter().any(|c| c["type"] == kind && c["status"] == status)
}

/// `Init:Signal:9`, `ExitCode:1`, or the reason that is given.
fn terminated(state: &Value, prefix: &str) -> String {
    match state["reason"].as_str().filter(|r| !r.is_empty()) {
        Some(reason) => format!("{prefix}{reason}"),
        None if number(&state["signal"]) != 0 => format!("{prefix}Signal:{}", number(&state["signal"])),
        None => format!("{prefix}ExitCode:{}", number(&state["exitCode"])),
    }
}

fn summarize(pod: &Value) -> Summary {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let phase = status["phase"].as_str().unwrap_or_default();
    let mut out = Summary {
        total: items(spec, "containers").len(),
        ready: 0,
        restarts: 0,
        last_restart: None,
        reason: string_or(&status["reason"], phase),
    };
    let gated = |c: &Value| c["type"] == "PodScheduled" && c["reason"] == "SchedulingGated";
    if items(status, "conditions").iter().any(gated) {
        out.reason = "SchedulingGated".into();
    }
    let sidecar = |name: &Value| {
        items(spec, "initContainers").iter().any(|c| c["name"] == *name && c["restartPolicy"] == "Always")
    };
    out.total += items(spec, "initContainers").iter().filter(|c| c["restartPolicy"] == "Always").count();
    let finished = |c: &Value| seconds(&c["lastState"]["terminated"]["finishedAt"]);
    let (mut sidecar_restarts, mut sidecar_last) = (0, None);
    let mut initializing = false;
    for (i, container) in items(status, "initContainerStatuses").iter().enumerate() {
        let restartable = sidecar(&container["name"]);
        out.restarts += number(&container["restartCount"]);
        out.last_restart = out.last_restart.max(finished(container));
        if restartable {
            sidecar_restarts += number(&container["restartCount"]);
            sidecar_last = sidecar_last.max(finished(container));
        }
        let state = &container["state"];
        if state["terminated"].is_object() && number(&state["terminated"]["exitCode"]) == 0 {
            continue;
        }
        if restartable && container["started"] == true {
            out.ready += usize::from(container["ready"] == true);
            continue;
        }
        initializing = true;
        let waiting = state["waiting"]["reason"].as_str().unwrap_or_default();
        out.reason = if state["terminated"].is_object() {
            terminated(&state["terminated"], "Init:")
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{i}/{}", items(spec, "initContainers").len())
        };
        break;
    }
    if !initializing || condition(pod, "Initialized", "True") {
        (out.restarts, out.last_restart) = (sidecar_restarts, sidecar_last);
        let mut running = false;
        for container in items(status, "containerStatuses").iter().rev() {
            out.restarts += number(&container["restartCount"]);
            out.last_restart = out.last_restart.max(finished(container));
            let state = &container["state"];
            let waiting = state["waiting"]["reason"].as_str().unwrap_or_default();
            if !waiting.is_empty() {
                out.reason = waiting.to_owned();
            } else if state["terminated"].is_object() {
                out.reason = terminated(&state["terminated"], "");
            } else if container["ready"] == true && state["running"].is_object() {
                running = true;
                out.ready += 1;
            }
        }
        // One container is done, another goes on.
        if out.reason == "Completed" && running {
            out.reason = if condition(pod, "Ready", "True") { "Running" } else { "NotReady" }.into();
        }
    }
    if !pod["metadata"]["deletionTimestamp"].is_null() {
        if status["reason"] == "NodeLost" {
            out.reason = "Unknown".into();
        } else if !matches!(phase, "Succeeded" | "Failed") {
            out.reason = "Terminating".into();
        }
    }
    out
}

/// Rows of pods that are over carry a condition; kubectl may hide them.
pub(super) fn row_conditions(pod: &Value) -> Option<Value> {
    let phase = pod["status"]["phase"].as_str()?;
    let message = match phase {
        "Succeeded" => "All containers ended well.",
        "Failed" => "A container ended badly.",
        _ => return None,
    };
    Some(json!([{"type": "Completed", "status": "True", "reason": phase, "message": message}]))
}
