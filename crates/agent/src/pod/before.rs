//! What a pod's first moment on this agent looks like: what the API says of earlier runs, and that nothing runs now.

use std::{collections::BTreeMap, net::IpAddr};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as ContainerSpec, ContainerStateTerminated, ContainerStatus, Pod};

use super::{
    Adopted, prepare,
    status::{Phase, Slot, State, Terminated},
};

/// An init container that an earlier agent saw succeed.
fn complete(slot: &mut Slot) {
    let ended = slot.last.clone().unwrap_or_else(|| Terminated {
        exit_code: 0,
        signal: None,
        reason: "Completed".into(),
        message: String::new(),
        started_at: None,
        finished_at: Timestamp::now(),
        container_id: slot.container_id.clone(),
    });
    slot.phase = Phase::Terminated(ended);
    slot.restart_count = slot.restart_count.saturating_sub(1).max(0);
}

/// Before anything has happened here: what the API says of earlier runs, and that nothing runs now.
pub fn first_state(pod: &Pod, host_ip: IpAddr, dirs: &prepare::Dirs) -> State {
    let spec = pod.spec.as_ref();
    let before = pod.status.as_ref();
    let inits = spec.and_then(|s| s.init_containers.as_deref()).unwrap_or_default();
    let mains = spec.map(|s| s.containers.as_slice()).unwrap_or_default();
    let waiting = if inits.is_empty() { "ContainerCreating" } else { "PodInitializing" };
    let terminal = before.and_then(|s| s.phase.as_deref()).is_some_and(|p| p == "Succeeded" || p == "Failed");
    let slot = |c: &ContainerSpec, init: bool, all: Option<&Vec<ContainerStatus>>| {
        let known = all.and_then(|l| l.iter().find(|s| s.name == c.name));
        let ran = known.is_some_and(|s| s.container_id.as_deref().is_some_and(|i| !i.is_empty()));
        let count = known.map_or(0, |s| s.restart_count);
        let last = known.filter(|_| ran).map(ended_before);
        let phase = match &last {
            Some(ended) if terminal => Phase::Terminated(ended.clone()),
            _ => Phase::waiting(waiting, ""),
        };
        Slot {
            name: c.name.clone(),
            init,
            sidecar: init && c.restart_policy.as_deref() == Some("Always"),
            image: c.image.clone().unwrap_or_default(),
            phase,
            last,
            restart_count: if ran && !terminal { count + 1 } else { count },
            image_id: known.map(|s| s.image_id.clone()).unwrap_or_default(),
            container_id: known.and_then(|s| s.container_id.clone()).unwrap_or_default(),
            started: false,
            ready: false,
            log: ran.then(|| dirs.log(&c.name, count)),
            previous_log: (ran && count > 0).then(|| dirs.log(&c.name, count - 1)),
            live: None,
        }
    };
    let slots = inits
        .iter()
        .map(|c| slot(c, true, before.and_then(|s| s.init_container_statuses.as_ref())))
        .chain(mains.iter().map(|c| slot(c, false, before.and_then(|s| s.container_statuses.as_ref()))))
        .collect();
    let failed =
        before.filter(|_| terminal).and_then(|s| Some((s.reason.clone()?, s.message.clone().unwrap_or_default())));
    State {
        start_time: before.and_then(|s| s.start_time.as_ref()).map_or_else(Timestamp::now, |t| t.0),
        ips: if terminal { before.and_then(|s| s.pod_ip.as_ref()?.parse().ok()).into_iter().collect() } else { vec![] },
        host_ip,
        sandbox: false,
        initialized: terminal,
        finished: terminal,
        failed,
        slots,
        transitions: transitions(pod),
    }
}

/// Since when the conditions are what the API says.
fn transitions(pod: &Pod) -> BTreeMap<&'static str, (bool, Timestamp)> {
    let known = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let own = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];
    let since = |name: &'static str| {
        let c = known.iter().find(|c| c.type_ == name)?;
        Some((name, (c.status == "True", c.last_transition_time.as_ref()?.0)))
    };
    own.into_iter().filter_map(since).collect()
}

/// What runs already is as the API says it is: a new agent must not take a ready pod from its Services.
pub fn adopt(state: &mut State, pod: &Pod, adopted: &Adopted) {
    let Some(sandbox) = &adopted.sandbox else { return };
    state.sandbox = true;
    state.ips = vec![sandbox.ip.unwrap_or(state.host_ip)];
    let status = pod.status.as_ref();
    // In the same namespaces init containers are not run twice.
    let running = state.slots.iter().any(|s| !s.init && adopted.containers.contains_key(&s.name));
    let initialized = running || matches!(state.transitions.get("Initialized"), Some((true, _)));
    state.initialized |= initialized;
    for slot in &mut state.slots {
        let Some(container) = adopted.containers.get(&slot.name) else {
            if initialized && slot.init && !slot.sidecar {
                complete(slot);
            }
            continue;
        };
        let all = if slot.init {
            status.and_then(|s| s.init_container_statuses.as_ref())
        } else {
            status.and_then(|s| s.container_statuses.as_ref())
        };
        let id = super::run::container_id(&container.id);
        // The API may not have heard of this run yet.
        let known = all.and_then(|l| l.iter().find(|s| s.name == slot.name));
        let same = known.filter(|s| s.container_id.as_ref() == Some(&id));
        slot.last = match same {
            Some(s) => s.last_state.as_ref().and_then(|l| l.terminated.as_ref()).map(terminated),
            None => slot.last.take(),
        };
        slot.phase = Phase::Running { since: container.started_at };
        slot.started = same.is_some_and(|s| s.started == Some(true));
        slot.ready = same.is_some_and(|s| s.ready);
        slot.restart_count = container.meta.restart_count;
        slot.image.clone_from(&container.meta.image);
        slot.image_id.clone_from(&container.meta.image_id);
        slot.container_id = id;
        slot.log = Some(container.meta.log.clone());
        slot.live = Some(container.clone());
    }
}

/// How the last known run of a container ended; one that nobody saw end is reported as kubelet does.
fn ended_before(status: &ContainerStatus) -> Terminated {
    let state = status.state.as_ref();
    if let Some(t) = state.and_then(|s| s.terminated.as_ref()) {
        return terminated(t);
    }
    Terminated {
        exit_code: 137,
        signal: None,
        reason: "ContainerStatusUnknown".into(),
        message: "The container could not be located when the pod was started again".into(),
        started_at: state.and_then(|s| s.running.as_ref()?.started_at.as_ref()).map(|t| t.0),
        finished_at: Timestamp::now(),
        container_id: status.container_id.clone().unwrap_or_default(),
    }
}

fn terminated(t: &ContainerStateTerminated) -> Terminated {
    Terminated {
        exit_code: t.exit_code,
        signal: t.signal,
        reason: t.reason.clone().unwrap_or_default(),
        message: t.message.clone().unwrap_or_default(),
        started_at: t.started_at.as_ref().map(|t| t.0),
        finished_at: t.finished_at.as_ref().map_or_else(Timestamp::now, |t| t.0),
        container_id: t.container_id.clone().unwrap_or_default(),
    }
}
