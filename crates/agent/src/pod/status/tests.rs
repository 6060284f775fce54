use super::*;

fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).expect("pod")
}

fn slot(name: &str, init: bool, phase: Phase) -> Slot {
    Slot {
        name: name.into(),
        init,
        sidecar: false,
        image: "i".into(),
        phase,
        last: None,
        restart_count: 0,
        image_id: String::new(),
        container_id: String::new(),
        started: true,
        ready: true,
        log: None,
        previous_log: None,
        live: None,
    }
}

fn ended(code: i32) -> Terminated {
    Terminated {
        exit_code: code,
        signal: None,
        reason: "Error".into(),
        message: String::new(),
        started_at: None,
        finished_at: Timestamp::UNIX_EPOCH,
        container_id: "x".into(),
    }
}

fn running() -> Phase {
    Phase::Running { since: Timestamp::UNIX_EPOCH }
}

fn state(slots: Vec<Slot>) -> State {
    State {
        start_time: Timestamp::UNIX_EPOCH,
        ips: vec!["10.244.0.5".parse().expect("ip")],
        host_ip: "192.0.2.1".parse().expect("ip"),
        sandbox: true,
        initialized: true,
        finished: false,
        failed: None,
        slots,
        transitions: BTreeMap::new(),
    }
}

fn condition<'a>(status: &'a Value, kind: &str) -> &'a Value {
    let all = status["conditions"].as_array().expect("conditions");
    all.iter().find(|c| c["type"] == kind).expect("condition")
}

#[test]
fn the_phase_follows_the_containers() {
    let waiting = || Phase::waiting("ContainerCreating", "");
    let done = |code| Phase::Terminated(ended(code));
    let mut backing_off = slot("a", false, Phase::waiting("CrashLoopBackOff", ""));
    backing_off.last = Some(ended(1));
    let of = |phases: Vec<Phase>, policy, finished| {
        let mut s = state(phases.into_iter().map(|p| slot("a", false, p)).collect());
        s.finished = finished;
        phase(&s, policy)
    };
    assert_eq!(of(vec![waiting(), running()], "Always", false), "Pending");
    assert_eq!(of(vec![running(), done(1)], "Never", false), "Running");
    assert_eq!(of(vec![done(0), done(0)], "Never", true), "Succeeded");
    assert_eq!(of(vec![done(0), done(1)], "Never", true), "Failed");
    assert_eq!(of(vec![done(1)], "Always", false), "Running");
    assert_eq!(of(vec![done(1)], "OnFailure", false), "Running");
    assert_eq!(of(vec![done(0)], "OnFailure", true), "Succeeded");
    assert_eq!(phase(&state(vec![backing_off]), "Always"), "Running");
    let mut failing = state(vec![slot("i", true, done(1)), slot("a", false, waiting())]);
    failing.initialized = false;
    assert_eq!(phase(&failing, "Never"), "Failed");
    assert_eq!(phase(&failing, "Always"), "Pending");
}

#[test]
fn conditions_name_what_is_missing_and_keep_their_times() {
    let p = pod(json!({"containers": []}));
    let mut s = state(vec![slot("a", false, running())]);
    let first = compute(&p, &mut s, Timestamp::UNIX_EPOCH);
    assert_eq!(condition(&first, "Ready")["status"], "True");
    assert_eq!(first["podIPs"], json!([{"ip": "10.244.0.5"}]));
    s.slots[0].ready = false;
    let later: Timestamp = "2026-11-21T00:00:00Z".parse().expect("time");
    let second = compute(&p, &mut s, later);
    let ready = condition(&second, "Ready");
    assert_eq!((ready["status"].as_str(), ready["reason"].as_str()), (Some("False"), Some("ContainersNotReady")));
    assert_eq!(ready["message"], "containers with unready status: [a]");
    assert_eq!(ready["lastTransitionTime"], "2026-11-21T00:00:00Z");
    assert_eq!(condition(&second, "Initialized")["lastTransitionTime"], "1970-01-01T00:00:00Z");
}

#[test]
fn init_containers_hold_the_pod_back() {
    let p = pod(json!({"containers": []}));
    let mut s = state(vec![slot("i", true, running()), slot("a", false, Phase::waiting("PodInitializing", ""))]);
    s.initialized = false;
    let status = compute(&p, &mut s, Timestamp::UNIX_EPOCH);
    assert_eq!(condition(&status, "Initialized")["message"], "containers with incomplete status: [i]");
    assert_eq!(status["containerStatuses"][0]["state"], json!({"waiting": {"reason": "PodInitializing"}}));
    assert_eq!(status["phase"], "Pending");
}

#[test]
fn readiness_gates_of_others_are_kept_and_asked() {
    let mut p = pod(json!({"containers": [], "readinessGates": [{"conditionType": "example.com/x"}]}));
    let mut s = state(vec![slot("a", false, running())]);
    let closed = compute(&p, &mut s, Timestamp::UNIX_EPOCH);
    assert_eq!(condition(&closed, "Ready")["reason"], "ReadinessGatesNotReady");
    assert_eq!(condition(&closed, "ContainersReady")["status"], "True");
    let foreign = json!({"conditions": [{"type": "example.com/x", "status": "True"}]});
    p.status = Some(serde_json::from_value(foreign).expect("status"));
    let open = compute(&p, &mut s, Timestamp::UNIX_EPOCH);
    assert_eq!(condition(&open, "Ready")["status"], "True");
    assert_eq!(condition(&open, "example.com/x")["status"], "True");
}

#[test]
fn a_completed_pod_is_not_ready() {
    let p = pod(json!({"restartPolicy": "Never", "containers": []}));
    let mut s = state(vec![slot("a", false, Phase::Terminated(ended(0)))]);
    s.finished = true;
    let status = compute(&p, &mut s, Timestamp::UNIX_EPOCH);
    assert_eq!(status["phase"], "Succeeded");
    assert_eq!(condition(&status, "Ready")["reason"], "PodCompleted");
    assert_eq!(status["containerStatuses"][0]["ready"], false);
}
