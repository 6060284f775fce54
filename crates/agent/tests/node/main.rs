//! The agent on a real kernel: containers, addresses, probes, logs, restarts, a killed agent. Needs root; the host's
//! network is never touched, for the program moves into a network and mount namespace of its own first. The test
//! program plays three parts: the tests, the shim beside each container, and the containers' program.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use portolan_agent::{self as agent, image::Mirror};
use serde_json::{Value, json};

mod api;
mod lab;
mod payload;
mod registry;

use api::PODS;
use lab::*;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|a| a == "__shim") {
        std::process::exit(agent::shim::main(&args[1..]));
    }
    if let Some(code) = payload::main(&args) {
        std::process::exit(code);
    }
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: the node tests need root");
        return;
    }
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).expect("namespaces of its own");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .expect("private mounts");
    let filter: Vec<&String> = args.iter().filter(|a| !a.starts_with('-')).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    // Only on request: a figure, not a check.
    if filter.iter().any(|f| *f == "hundred") {
        return runtime.block_on(hundred());
    }
    macro_rules! tests {
        ($($name:ident),* $(,)?) => {
            $(
                if filter.is_empty() || filter.iter().any(|f| stringify!($name).contains(f.as_str())) {
                    let began = Instant::now();
                    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| runtime.block_on($name())));
                    if let Err(cause) = done {
                        // Containers outlive their agent; a failed test must not leave them on the machine.
                        runtime.block_on(end_everything());
                        std::panic::resume_unwind(cause);
                    }
                    println!("test {} ... ok ({:?})", stringify!($name), began.elapsed());
                }
            )*
        };
    }
    tests!(
        seed_003_every_pod_has_its_own_address_and_a_new_pod_another,
        seed_148_service_variables_are_in_the_environment,
        seed_141_the_files_in_etc,
        seed_199_a_pod_is_ready_soon_after_its_program_listens,
        seed_205_images_are_pulled_verified_and_refused,
        a_failing_container_is_restarted_with_back_off,
        init_containers_run_first_and_volumes_are_shared,
        probes_of_all_kinds_decide,
        logs_are_served_followed_and_previous,
        a_user_has_no_capabilities_and_signals_are_normal,
        the_umask_of_whoever_starts_it_changes_nothing,
        a_killed_agents_pods_are_adopted,
        a_terminal_is_kept_over_a_killed_agent,
        a_stopped_agents_pods_start_again,
        cleanup_leaves_nothing,
    );
}

async fn seed_003_every_pod_has_its_own_address_and_a_new_pod_another() {
    let node = node().await;
    let paths: Vec<_> = (0..3).map(|i| node.run(&format!("web-{i}"), &["echo"], json!({}))).collect();
    let mut ips = Vec::new();
    for path in &paths {
        let pod = node.ready(path).await;
        let address = ip(&pod);
        ips.push(address);
        // From the node to the pod, over veth and bridge.
        let text = get(address, 8080).await;
        assert!(text.ends_with(pod["metadata"]["name"].as_str().unwrap()), "{text}");
    }
    ips.sort();
    ips.dedup();
    assert_eq!(ips.len(), 3);
    node.delete(&paths[0]);
    node.gone(&paths[0]).await;
    node.run("web-0", &["echo"], json!({}));
    let again = ip(&node.ready(&paths[0]).await);
    assert!(!ips.contains(&again), "{again} was used before");
    node.end().await;
}

async fn get(ip: IpAddr, port: u16) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect((ip, port)).await.expect("connect");
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.expect("write");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("read");
    text
}

async fn seed_148_service_variables_are_in_the_environment() {
    let node = node().await;
    let text = node
        .output(
            "env",
            &["env"],
            json!({"c.env": [{"name": "X", "value": "$(REDIS_MASTER_SERVICE_HOST)!"},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]}),
        )
        .await;
    for line in [
        "REDIS_MASTER_PORT_6379_TCP=tcp://10.96.0.11:6379",
        "KUBERNETES_SERVICE_HOST=10.96.0.1",
        "X=10.96.0.11!",
        "IP=10.244.0.",
        "HOSTNAME=env",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    let text = node.output("bare", &["env"], json!({"enableServiceLinks": false})).await;
    assert!(!text.contains("REDIS") && text.contains("KUBERNETES_SERVICE_PORT=443"), "{text}");
    // A key that does not exist is named, and found once it does.
    let map = json!({"c.env": [{"name": "K", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}}], "restartPolicy": "Never"});
    let path = node.run("late", &["env"], map);
    let waiting =
        |p: &Value| p["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CreateContainerConfigError";
    let pod = node.api.wait(&path, "waiting", waiting).await;
    assert_eq!(pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"], "configmap \"cm\" not found");
    node.api.put(
        "/api/v1/namespaces/default/configmaps/cm",
        json!({"metadata": {"name": "cm"}, "data": {"k": "v"}}),
        "ADDED",
    );
    node.ended(&path).await;
    assert!(node.logs("late", "").await.1.contains("K=v\n"));
    node.end().await;
}

async fn seed_141_the_files_in_etc() {
    let node = node().await;
    let text = node
        .output("files", &["cat", "/etc/resolv.conf", "/etc/hosts", "/etc/hostname", "/proc/net/route"], json!({}))
        .await;
    assert!(text.starts_with("search default.svc.cluster.local svc.cluster.local cluster.local"), "{text}");
    assert!(text.contains("nameserver 10.96.0.10\n") && text.contains("options ndots:5\n"), "{text}");
    assert!(text.contains("# Kubernetes-managed hosts file.\n") && text.contains("\tfiles\nfiles\n"), "{text}");
    // Everything leaves through the node: the default route's gateway is the bridge, 10.244.0.1.
    assert!(text.contains("eth0\t00000000\t0100F40A\t"), "{text}");
    node.end().await;
}

async fn seed_199_a_pod_is_ready_soon_after_its_program_listens() {
    let node = node().await;
    let probe = json!({"c.readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 10}});
    let mut times = Vec::new();
    for i in 0..12 {
        let began = Instant::now();
        let path = node.run(&format!("p{i}"), &["echo"], probe.clone());
        node.ready(&path).await;
        times.push(began.elapsed());
    }
    times.sort();
    println!("created to Ready: p50 {:?}, max {:?}", times[times.len() / 2], times[times.len() - 1]);
    let pod = node.api.get(&format!("{PODS}p0")).unwrap();
    for kind in ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"] {
        assert_eq!(condition(&pod, kind), "True", "{kind}");
    }
    let node_object = node.api.get("/api/v1/nodes/node-1").unwrap();
    assert_eq!(condition(&node_object, "Ready"), "True");
    assert_eq!(node_object["spec"]["podCIDR"], "10.244.0.0/24");
    node.api
        .wait("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/node-1", "there", |l| !l.is_null())
        .await;
    let began = Instant::now();
    node.end().await;
    println!("shutdown with 12 pods: {:?}", began.elapsed());
}

async fn seed_205_images_are_pulled_verified_and_refused() {
    let program = std::fs::read("/proc/self/exe").expect("self");
    let address = registry::start(&program).await;
    let mirror = Mirror { host: "docker.io".into(), address: address.to_string(), plain: true };
    let node = node_with(vec![mirror]).await;
    let pod = |image: &str, args: &[&str]| {
        json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": image, "args": args,
        "imagePullPolicy": "IfNotPresent", "securityContext": {"runAsUser": 101}}]})
    };
    let path = node.create("good", pod("app:1", &["id"]));
    let twin = node.create("twin", pod("docker.io/library/app:1", &["env"]));
    let ended = node.ended(&path).await;
    node.ended(&twin).await;
    let status = &ended["status"]["containerStatuses"][0];
    assert_eq!(status["state"]["terminated"]["exitCode"], 0, "{status:#}");
    assert!(status["imageID"].as_str().unwrap().starts_with("docker.io/library/app@sha256:"), "{status:#}");
    let text = node.logs("good", "").await.1;
    assert!(text.contains("Uid:\t101\t") && text.contains("Gid:\t102\t") && text.contains("cwd /etc"), "{text}");
    assert!(node.logs("twin", "").await.1.contains("FROM=image"));
    node.api.wait_event("Pulled", "Successfully pulled image \"app:1\" in ").await;
    let layers = std::fs::read_dir(node.config.data_dir.join("images/layers")).unwrap().count();
    assert_eq!(layers, 1, "one layer for both pods");

    let reason = |p: &Value| {
        p["status"]["containerStatuses"][0]["state"]["waiting"]["reason"].as_str().unwrap_or_default().to_owned()
    };
    for (name, image, cause) in [("none", "app:nope", "not found"), ("liar", "app:broken", "the image says sha256:")] {
        let path = node.create(name, pod(image, &[]));
        node.api.wait(&path, "ErrImagePull", |p| reason(p) == "ErrImagePull").await;
        node.api.wait(&path, "ImagePullBackOff", |p| reason(p) == "ImagePullBackOff").await;
        node.api.wait_event("Failed", cause).await;
        node.api.wait_event("Failed", &format!("http://{address}")).await;
        let (code, text) = node.logs(name, "").await;
        assert!(code == 400 && text.contains("is waiting to start: trying and failing to pull image"), "{text}");
    }
    let layers = std::fs::read_dir(node.config.data_dir.join("images/layers")).unwrap().count();
    assert_eq!(layers, 1, "nothing of the refused image");
    let bad = node.create("bad", pod("Not A Name", &[]));
    node.api.wait(&bad, "InvalidImageName", |p| reason(p) == "InvalidImageName").await;
    let mut never = pod("app:2", &[]);
    never["containers"][0]["imagePullPolicy"] = json!("Never");
    let never = node.create("never", never);
    node.api.wait(&never, "ErrImageNeverPull", |p| reason(p) == "ErrImageNeverPull").await;
    node.end().await;
}

async fn a_failing_container_is_restarted_with_back_off() {
    let node = node().await;
    let path = node.run("crash", &["say", "boom", "exit", "3"], json!({}));
    let status = |p: &Value| p["status"]["containerStatuses"][0].clone();
    let pod =
        node.api.wait(&path, "backing off", |p| status(p)["state"]["waiting"]["reason"] == "CrashLoopBackOff").await;
    let s = status(&pod);
    assert_eq!(
        (s["restartCount"].as_i64(), s["lastState"]["terminated"]["exitCode"].as_i64()),
        (Some(1), Some(3)),
        "{s:#}"
    );
    assert!(
        s["state"]["waiting"]["message"]
            .as_str()
            .unwrap()
            .starts_with("back-off 10s restarting failed container=c pod=crash_default(")
    );
    assert_eq!(pod["status"]["phase"], "Running");
    node.api.wait_event("BackOff", "Back-off restarting failed container c in pod crash_default(").await;
    let (code, text) = node.logs("crash", "previous=true").await;
    assert_eq!((code, text.as_str()), (200, "boom\n"));
    node.delete(&path);
    node.gone(&path).await;

    let missing = node.run("missing", &[], json!({"c.command": ["/no/such/program"], "restartPolicy": "Never"}));
    let s = status(&node.ended(&missing).await);
    assert_eq!(s["state"]["terminated"]["reason"], "StartError", "{s:#}");
    assert!(s["state"]["terminated"]["message"].as_str().unwrap().contains("/no/such/program"), "{s:#}");
    let done = node.run("done", &["exit", "0"], json!({"restartPolicy": "OnFailure"}));
    assert_eq!(node.ended(&done).await["status"]["phase"], "Succeeded");
    node.end().await;
}

async fn init_containers_run_first_and_volumes_are_shared() {
    let node = node().await;
    let mount = json!([{"name": "v", "mountPath": "/v"}, {"name": "cm", "mountPath": "/cm"}]);
    node.api.put(
        "/api/v1/namespaces/default/configmaps/cm",
        json!({"metadata": {"name": "cm"}, "data": {"key": "from map\n"}}),
        "ADDED",
    );
    let spec = json!({"restartPolicy": "Never", "volumes": [{"name": "v", "emptyDir": {"medium": "Memory"}}, {"name": "cm", "configMap": {"name": "cm"}}],
        "initContainers": [{"name": "i", "image": "portolan.dev/echo", "command": ["/portolan", "write", "/v/f", "from init\n"], "volumeMounts": mount}],
        "containers": [{"name": "c", "image": "portolan.dev/echo", "command": ["/portolan", "cat", "/v/f", "/cm/key"], "volumeMounts": mount}]});
    let path = node.create("init", spec);
    let pod = node.ended(&path).await;
    assert_eq!(node.logs("init", "").await.1, "from init\nfrom map\n");
    assert_eq!(pod["status"]["initContainerStatuses"][0]["state"]["terminated"]["reason"], "Completed");
    let dir = node.config.data_dir.join("pods").join(pod["metadata"]["uid"].as_str().unwrap());
    assert!(dir.exists());
    node.delete(&path);
    node.gone(&path).await;
    node.api.wait(&path, "gone", Value::is_null).await;
    let failing = json!({"restartPolicy": "Never", "initContainers": [{"name": "i", "image": "portolan.dev/echo", "command": ["/portolan", "exit", "1"]}],
        "containers": [{"name": "c", "image": "portolan.dev/echo"}]});
    let path = node.create("fails", failing);
    assert_eq!(node.ended(&path).await["status"]["phase"], "Failed");
    node.end().await;
    assert!(!dir.exists());
}

async fn probes_of_all_kinds_decide() {
    let node = node().await;
    let exec = |file: &str| json!({"exec": {"command": ["/portolan", "exists", file]}, "periodSeconds": 1});
    let path = node.run(
        "exec",
        &["echo"],
        json!({"c.readinessProbe": exec("/etc/passwd"), "c.livenessProbe": {"tcpSocket": {"port": 8080}}}),
    );
    node.ready(&path).await;
    let not = node.run(
        "not",
        &["echo"],
        json!({"c.readinessProbe": exec("/no"),
        "c.livenessProbe": {"httpGet": {"port": 9, "path": "/"}, "periodSeconds": 1, "failureThreshold": 1}}),
    );
    node.api.wait_event("Unhealthy", "Liveness probe failed: Get \"http://10.244.0.").await;
    node.api.wait_event("Killing", "Container c failed liveness probe, will be restarted").await;
    let again = |p: &Value| p["status"]["containerStatuses"][0]["restartCount"].as_i64() >= Some(1);
    let pod = node.api.wait(&not, "restarted", again).await;
    assert_eq!(condition(&pod, "Ready"), "False");
    node.api.wait_event("Unhealthy", "Readiness probe failed").await;
    node.end().await;
}

async fn logs_are_served_followed_and_previous() {
    let node = node().await;
    let text = node.output("lines", &["lines", "1000"], json!({})).await;
    assert_eq!(text.lines().count(), 1000);
    assert_eq!(node.logs("lines", "tailLines=2").await.1, "line 998\nline 999\n");
    assert_eq!(node.logs("lines", "limitBytes=8").await.1, "line 0\nl");
    let stamped = node.logs("lines", "tailLines=1&timestamps=true").await.1;
    assert!(stamped.split(' ').next().unwrap().ends_with('Z') && stamped.ends_with(" line 999\n"), "{stamped}");
    assert!(node.logs("lines", "sinceTime=2099-01-01T00:00:00Z").await.1.is_empty());
    let (code, text) = node.logs("lines", "previous=true").await;
    assert!(
        code == 400 && text.contains("previous terminated container \\\"c\\\" in pod \\\"lines\\\" not found"),
        "{text}"
    );
    assert_eq!(node.logs("nobody", "").await.0, 404);
    let path = node.run("follow", &["say", "hello", "sleep"], json!({}));
    node.ready(&path).await;
    let following = node.logs("follow", "follow=true");
    let ending = async {
        node.api.wait(&path, "running", |p| p["status"]["phase"] == "Running").await;
        node.delete(&path);
        node.gone(&path).await;
    };
    let ((_, text), ()) = tokio::join!(following, ending);
    assert_eq!(text, "hello\n");
    node.end().await;
}

async fn the_umask_of_whoever_starts_it_changes_nothing() {
    use std::os::unix::fs::PermissionsExt;
    for strictness in [0o077, 0o000] {
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(strictness));
        let node = node().await;
        let user = json!({"c.securityContext": {"runAsUser": 1000}});
        let text = node.output("reader", &["cat", "/etc/hosts", "/etc/resolv.conf"], user).await;
        assert!(text.contains("localhost") && text.contains("nameserver"), "{text}");
        // Containers' environments and volumes hold Secrets.
        let (data, run) = (&node.config.data_dir, &node.config.run_dir);
        for dir in
            [data.join("pods"), data.join("images"), data.join("containers"), run.join("containers"), run.join("ns")]
        {
            let mode = std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o700, "{} with umask {strictness:03o}", dir.display());
        }
        node.end().await;
    }
}

async fn a_user_has_no_capabilities_and_signals_are_normal() {
    let node = node().await;
    let text = node.output("user", &["id"], json!({"c.securityContext": {"runAsUser": 1000}})).await;
    assert!(text.contains("Uid:\t1000\t") && text.contains("CapEff:\t0000000000000000"), "{text}");
    let root = node.output("root", &["id"], json!({})).await;
    assert!(root.contains("CapEff:\t00000000a80425fb"), "the runtimes' default set: {root}");
    // Rust itself ignores SIGPIPE at its start (bit 12), and glibc's posix_spawn the two signals that are its own (bits 31
    // and 32); nothing else may be ignored or blocked.
    let mask = |name: &str| {
        let digits = root.lines().find_map(|l| l.strip_prefix(name)).expect(name).trim();
        u64::from_str_radix(digits, 16).expect("a mask") & !(3 << 31)
    };
    assert_eq!((mask("SigBlk:"), mask("SigIgn:")), (0, 0x1000), "{root}");
    let text = node.output("reopen", &["reopen"], json!({"c.securityContext": {"runAsUser": 1000}})).await;
    assert_eq!(text, "reopened\n");
    let path = node.run("refused", &["id"], json!({"c.securityContext": {"runAsNonRoot": true}}));
    let waiting = |p: &Value| {
        p["status"]["containerStatuses"][0]["state"]["waiting"]["message"].as_str().unwrap_or_default().to_owned()
    };
    let pod = node.api.wait(&path, "refused", |p| waiting(p).contains("runAsNonRoot")).await;
    assert!(
        waiting(&pod).starts_with("container has runAsNonRoot and image will run as root (pod: \"refused_default(")
    );
    node.end().await;
}

/// A runtime of its own for an agent that is to be killed: all its tasks end at once and without a word, as in kill -9.
fn doomed() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime")
}

async fn kill(agent: tokio::runtime::Runtime) {
    let ended = tokio::task::spawn_blocking(move || agent.shutdown_timeout(Duration::from_secs(5)));
    ended.await.expect("the runtime ends");
}

async fn a_killed_agents_pods_are_adopted() {
    let doomed = doomed();
    let begun = doomed.spawn(async {
        let first = node().await;
        let path = first.run("stays", &["echo"], json!({}));
        let orphan = first.run("orphan", &["echo"], json!({}));
        let before = first.ready(&path).await;
        let orphan_ip = ip(&first.ready(&orphan).await);
        (first, path, orphan, before, orphan_ip)
    });
    let (first, path, orphan, before, orphan_ip) = begun.await.expect("the first agent");
    let (api, config, dir) = (first.api.clone(), first.config.clone(), first.dir.clone());
    kill(doomed).await;
    drop(first);
    assert!(get(ip(&before), 8080).await.ends_with("stays"));
    let lost = api.get(&orphan).unwrap();
    api.put(&orphan, lost, "DELETED");

    let revision = api.revision();
    let second = begin(&api, config, dir).await;
    let after = second.ready(&path).await;
    assert!(!api.since(revision, &path).iter().any(|p| condition(p, "Ready") != "True"), "it was never unready");
    let same = |what: &str| {
        assert_eq!(
            before["status"]["containerStatuses"][0][what], after["status"]["containerStatuses"][0][what],
            "{what}"
        )
    };
    same("containerID");
    same("restartCount");
    assert_eq!(ip(&before), ip(&after));
    assert!(get(ip(&after), 8080).await.ends_with("stays"));
    // The pod that the API forgot meanwhile is ended.
    let refused = async {
        // A packet on its way to an address that just went away is answered by nobody, for as long as TCP likes.
        let connect =
            || tokio::time::timeout(Duration::from_secs(1), tokio::net::TcpStream::connect((orphan_ip, 8080)));
        while matches!(connect().await, Ok(Ok(_))) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), refused).await.expect("the orphan ends");
    assert_eq!(second.logs("stays", "").await.1, "serving\n");
    second.delete(&path);
    second.gone(&path).await;
    second.end().await;
}

async fn hundred() {
    let node = node().await;
    let began = Instant::now();
    let paths: Vec<_> = (0..100).map(|i| node.run(&format!("h{i}"), &["echo"], json!({}))).collect();
    for path in &paths {
        node.ready(path).await;
    }
    println!("100 pods Ready after {:?}", began.elapsed());
    let mut sizes: Vec<u64> = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains("__shim") {
            let rollup = std::fs::read_to_string(entry.path().join("smaps_rollup")).unwrap_or_default();
            let anonymous = rollup.lines().find_map(|l| l.strip_prefix("Anonymous:")).unwrap_or("0");
            sizes.push(anonymous.trim().trim_end_matches(" kB").parse().unwrap_or(0));
        }
    }
    sizes.sort();
    println!("{} shims, anonymous memory p50 {} kB", sizes.len(), sizes.get(sizes.len() / 2).unwrap_or(&0));
    let began = Instant::now();
    node.end().await;
    println!("shutdown after {:?}", began.elapsed());
}

/// Attaches to a container's terminal, types a line, and waits for what it answers.
async fn type_into(node: &Node, pod: &str, line: &str, answer: &str) {
    use axum::{body::Body, http::Request};
    use futures::StreamExt;
    use tower::ServiceExt;
    // One frame: the channel of the input, a length, the bytes.
    let frame = [&[0][..], &(line.len() as u32).to_be_bytes(), line.as_bytes()].concat();
    let uri = format!("/attach/default/{pod}/c?input=1&output=1&tty=1");
    let attach = || {
        let typed = futures::stream::iter([Ok::<_, std::io::Error>(frame.clone())]).chain(futures::stream::pending());
        node.agent.router().oneshot(Request::post(&uri).body(Body::from_stream(typed)).unwrap())
    };
    // An agent that has just begun has yet to find the pods it adopts.
    let found = async {
        loop {
            let response = attach().await.unwrap();
            if response.status() == 200 {
                break response;
            }
            assert_eq!(response.status(), 404);
            tokio::task::yield_now().await;
        }
    };
    let response = tokio::time::timeout(Duration::from_secs(20), found).await.expect("the pod");
    let mut screen = response.into_body().into_data_stream();
    let mut shown = Vec::new();
    let reading = async {
        while !String::from_utf8_lossy(&shown).contains(answer) {
            shown.extend_from_slice(&screen.next().await.expect("more").expect("bytes"));
        }
    };
    tokio::time::timeout(Duration::from_secs(20), reading).await.expect("an answer");
}

async fn a_terminal_is_kept_over_a_killed_agent() {
    let doomed = doomed();
    let begun = doomed.spawn(async {
        let first = node().await;
        let path = first.run("shell", &["parrot"], json!({"c.stdin": true, "c.tty": true}));
        let before = first.ready(&path).await;
        type_into(&first, "shell", "hello\n", "heard hello\r\n").await;
        (first, path, before)
    });
    let (first, path, before) = begun.await.expect("the first agent");
    let (api, config, dir) = (first.api.clone(), first.config.clone(), first.dir.clone());
    kill(doomed).await;
    drop(first);
    let second = begin(&api, config, dir).await;
    let after = second.ready(&path).await;
    let id = |pod: &Value| pod["status"]["containerStatuses"][0]["containerID"].clone();
    assert_eq!(id(&before), id(&after));
    type_into(&second, "shell", "again\n", "heard again\r\n").await;
    second.end().await;
}

async fn a_stopped_agents_pods_start_again() {
    let first = node().await;
    let path = first.run("again", &["echo"], json!({}));
    let never = first.run("never", &["echo"], json!({"restartPolicy": "Never"}));
    let before = first.ready(&path).await;
    first.ready(&never).await;
    let (api, config, dir) = (first.api.clone(), first.config.clone(), first.dir.clone());
    first.end().await;
    // Nothing was said about pods that only lost their agent.
    assert_eq!(api.get(&path).unwrap()["status"]["phase"], "Running");
    let second = begin(&api, config, dir).await;
    let restarted =
        |p: &Value| p["status"]["containerStatuses"][0]["restartCount"] == 1 && condition(p, "Ready") == "True";
    let after = second.api.wait(&path, "running again", restarted).await;
    assert_ne!(ip(&before), ip(&after));
    let over = second.ended(&never).await;
    assert_eq!(over["status"]["phase"], "Failed");
    second.end().await;
}

async fn cleanup_leaves_nothing() {
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").expect("a namespace of its own");
    let doomed = doomed();
    let begun = doomed.spawn(async {
        let node = node().await;
        assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap().trim(), "1");
        for i in 0..3 {
            let path = node.run(&format!("left-{i}"), &["echo"], json!({}));
            node.ready(&path).await;
        }
        node
    });
    let node = begun.await.expect("the agent");
    kill(doomed).await;
    agent::cleanup(&node.config).await.expect("cleanup");
    assert_clean(&node.config);
    assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap().trim(), "0");
}
