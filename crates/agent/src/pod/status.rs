//! What a pod's status says, as a pure function of what happened to it. Words and rules are kubelet's.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::container::Container;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terminated {
    pub exit_code: i32,
    pub signal: Option<i32>,
    pub reason: String,
    pub message: String,
    pub started_at: Option<Timestamp>,
    pub finished_at: Timestamp,
    pub container_id: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    Waiting { reason: String, message: String },
    Running { since: Timestamp },
    Terminated(Terminated),
}

impl Phase {
    pub fn waiting(reason: &str, message: impl Into<String>) -> Self {
        Self::Waiting { reason: reason.into(), message: message.into() }
    }
}

/// One container of a pod, over all its restarts.
#[derive(Clone)]
pub struct Slot {
    pub name: String,
    pub init: bool,
    /// A restartable init container (KEP-753).
    pub sidecar: bool,
    pub image: String,
    pub phase: Phase,
    pub last: Option<Terminated>,
    pub restart_count: i32,
    pub image_id: String,
    pub container_id: String,
    /// The startup probe has passed, or there is none.
    pub started: bool,
    pub ready: bool,
    /// Logs of the current run and of the one before.
    pub log: Option<PathBuf>,
    pub previous_log: Option<PathBuf>,
    pub live: Option<Arc<Container>>,
}

/// What happened to a pod so far.
#[derive(Clone)]
pub struct State {
    pub start_time: Timestamp,
    pub ips: Vec<IpAddr>,
    pub host_ip: IpAddr,
    pub sandbox: bool,
    pub initialized: bool,
    /// All containers have ended for good.
    pub finished: bool,
    /// Failed for a reason of its own, whatever the containers say: reason and message.
    pub failed: Option<(String, String)>,
    pub slots: Vec<Slot>,
    /// Since when each condition has its value.
    pub transitions: BTreeMap<&'static str, (bool, Timestamp)>,
}

fn time(t: Timestamp) -> String {
    format!("{t:.0}")
}

fn terminated(t: &Terminated) -> Value {
    let mut v = json!({
        "exitCode": t.exit_code,
        "reason": t.reason,
        "startedAt": time(t.started_at.unwrap_or(Timestamp::UNIX_EPOCH)),
        "finishedAt": time(t.finished_at),
        "containerID": t.container_id,
    });
    if !t.message.is_empty() {
        v["message"] = json!(t.message);
    }
    if let Some(signal) = t.signal {
        v["signal"] = json!(signal);
    }
    v
}

fn container_status(slot: &Slot) -> Value {
    let state = match &slot.phase {
        Phase::Waiting { reason, message } if message.is_empty() => json!({"waiting": {"reason": reason}}),
        Phase::Waiting { reason, message } => json!({"waiting": {"reason": reason, "message": message}}),
        Phase::Running { since } => json!({"running": {"startedAt": time(*since)}}),
        Phase::Terminated(t) => json!({"terminated": terminated(t)}),
    };
    let mut v = json!({
        "name": slot.name, "state": state, "lastState": {}, "ready": ready(slot), "restartCount": slot.restart_count,
        "image": slot.image, "imageID": slot.image_id, "started": slot.started,
    });
    // While the last end is the state itself, it is not repeated.
    let current = matches!(&slot.phase, Phase::Terminated(t) if slot.last.as_ref() == Some(t));
    if let Some(last) = slot.last.as_ref().filter(|_| !current) {
        v["lastState"] = json!({"terminated": terminated(last)});
    }
    if !slot.container_id.is_empty() {
        v["containerID"] = json!(slot.container_id);
    }
    v
}

/// A finished init container counts as ready; every other must run and pass its probe.
fn ready(slot: &Slot) -> bool {
    match &slot.phase {
        Phase::Running { .. } => slot.ready && (!slot.init || slot.sidecar),
        Phase::Terminated(t) => slot.init && !slot.sidecar && t.exit_code == 0,
        Phase::Waiting { .. } => false,
    }
}

/// Pending, Running, Succeeded or Failed (<https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#pod-phase>).
pub fn phase(state: &State, restart_policy: &str) -> &'static str {
    if state.failed.is_some() {
        return "Failed";
    }
    let (mut waiting, mut running, mut stopped, mut succeeded) = (0, 0, 0, 0);
    for slot in state.slots.iter().filter(|s| !s.init) {
        match &slot.phase {
            Phase::Running { .. } => running += 1,
            Phase::Terminated(t) => {
                stopped += 1;
                succeeded += usize::from(t.exit_code == 0);
            }
            Phase::Waiting { .. } if slot.last.is_some() => stopped += 1,
            Phase::Waiting { .. } => waiting += 1,
        }
    }
    let init_failed = state
        .slots
        .iter()
        .filter(|s| s.init && !s.sidecar)
        .any(|s| restart_policy == "Never" && matches!(&s.phase, Phase::Terminated(t) if t.exit_code != 0));
    if init_failed {
        return "Failed";
    }
    if !state.initialized || waiting > 0 {
        return "Pending";
    }
    if running > 0 {
        return "Running";
    }
    match (state.finished, restart_policy) {
        (true, _) if stopped == succeeded => "Succeeded",
        (true, _) => "Failed",
        (false, "Always") => "Running",
        (false, _) if stopped == succeeded => "Succeeded",
        (false, "Never") => "Failed",
        (false, _) => "Running",
    }
}

/// The whole status, ready to be merged into the object. Updates the transition times in `state`.
pub fn compute(pod: &Pod, state: &mut State, now: Timestamp) -> Value {
    let spec = pod.spec.as_ref();
    let policy = spec.and_then(|s| s.restart_policy.as_deref()).unwrap_or("Always");
    let phase = phase(state, policy);
    let terminal = matches!(phase, "Succeeded" | "Failed");
    let unready: Vec<&str> =
        state.slots.iter().filter(|s| (!s.init || s.sidecar) && !ready(s)).map(|s| s.name.as_str()).collect();
    let incomplete: Vec<&str> = state
        .slots
        .iter()
        .filter(|s| s.init && if s.sidecar { !s.started } else { !ready(s) })
        .map(|s| s.name.as_str())
        .collect();
    let current = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let gates = spec.and_then(|s| s.readiness_gates.as_deref()).unwrap_or_default();
    let closed: Vec<&str> = gates
        .iter()
        .map(|g| g.condition_type.as_str())
        .filter(|g| !current.iter().any(|c| c.type_ == *g && c.status == "True"))
        .collect();

    let not_ready = |names: &[&str]| {
        if terminal && phase == "Succeeded" {
            ("PodCompleted", String::new())
        } else if terminal {
            ("PodFailed", String::new())
        } else {
            ("ContainersNotReady", format!("containers with unready status: [{}]", names.join(" ")))
        }
    };
    let containers_ready = !terminal && state.initialized && unready.is_empty();
    let mut list = vec![("PodReadyToStartContainers", state.sandbox && !terminal, "", String::new())];
    list.push(if state.initialized || terminal {
        ("Initialized", true, if phase == "Succeeded" { "PodCompleted" } else { "" }, String::new())
    } else {
        (
            "Initialized",
            false,
            "ContainersNotInitialized",
            format!("containers with incomplete status: [{}]", incomplete.join(" ")),
        )
    });
    let (reason, message) = not_ready(&unready);
    list.push(if containers_ready && closed.is_empty() {
        ("Ready", true, "", String::new())
    } else if containers_ready {
        (
            "Ready",
            false,
            "ReadinessGatesNotReady",
            format!("the status of pod readiness gate {:?} is not \"True\"", closed[0]),
        )
    } else {
        ("Ready", false, reason, message.clone())
    });
    list.push(if containers_ready {
        ("ContainersReady", true, "", String::new())
    } else {
        ("ContainersReady", false, reason, message)
    });
    list.push(("PodScheduled", true, "", String::new()));

    let mut conditions: Vec<Value> = list
        .iter()
        .map(|(kind, value, reason, message)| {
            let since = match state.transitions.get(kind) {
                Some((before, since)) if before == value => *since,
                _ => now,
            };
            state.transitions.insert(kind, (*value, since));
            let word = if *value { "True" } else { "False" };
            let mut c = json!({"type": kind, "status": word, "lastProbeTime": null, "lastTransitionTime": time(since)});
            if !reason.is_empty() {
                c["reason"] = json!(reason);
            }
            if !message.is_empty() {
                c["message"] = json!(message);
            }
            c
        })
        .collect();
    // Conditions of others (readiness gates) stay: a merge replaces the whole list.
    let foreign = current.iter().filter(|c| !list.iter().any(|(kind, ..)| *kind == c.type_));
    conditions.extend(foreign.filter_map(|c| serde_json::to_value(c).ok()));

    let statuses = |init: bool| state.slots.iter().filter(|s| s.init == init).map(container_status).collect::<Vec<_>>();
    let mut status = json!({
        "phase": phase,
        "conditions": conditions,
        "containerStatuses": statuses(false),
        "hostIP": state.host_ip, "hostIPs": [{"ip": state.host_ip}],
        "startTime": time(state.start_time),
        "qosClass": crate::spec::qos_class(pod),
    });
    let init = statuses(true);
    if !init.is_empty() {
        status["initContainerStatuses"] = json!(init);
    }
    if let Some(first) = state.ips.first() {
        status["podIP"] = json!(first);
        status["podIPs"] = state.ips.iter().map(|ip| json!({"ip": ip})).collect();
    }
    if let Some((reason, message)) = &state.failed {
        status["reason"] = json!(reason);
        status["message"] = json!(message);
    }
    status
}

#[cfg(test)]
mod tests;
