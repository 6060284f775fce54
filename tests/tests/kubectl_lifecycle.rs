//! Starting, stopping, being killed: what is kept, what is left, and what is said.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use portolan_tests::{SOON, answers, cluster_ip, deployment, example};
use rand::Rng;
use testkit::place::Running;
use testkit::program::{binary, portolan, traces};
use testkit::wait::pause;
use testkit::{Kubectl, Lab, Up, until};

fn lab(purpose: &str) -> Lab {
    Lab::new(purpose).unwrap_or_else(|e| panic!("{e:#}"))
}

fn start(lab: &Lab, arguments: &[&str]) -> Up {
    Up::start(lab, arguments).unwrap_or_else(|e| panic!("{e:#}"))
}

fn web_app() -> String {
    format!("{}/../examples/web-app.yaml", env!("CARGO_MANIFEST_DIR"))
}

/// Waits until the table of Services has been printed, then until the pods answer.
fn web_app_answers(lab: &Lab, up: &Up) {
    until(Duration::from_secs(60), "the table of Services", || {
        let log = up.log();
        if log.contains("export KUBECONFIG=") { Ok(()) } else { Err(log) }
    });
    let kubectl = Kubectl::new(lab).expect("kubectl");
    answers(&lab.node(), &format!("{}:80", cluster_ip(&kubectl, "web-app-internal")), "/hostname");
}

/// What there is once nothing changes any more.
fn settled(lab: &Lab) -> Vec<String> {
    let mut last = Vec::new();
    let mut quiet = 0;
    until(SOON, "a quiet moment", || {
        pause(Duration::from_millis(100));
        let now = traces(lab).map_err(|e| format!("{e:#}"))?;
        quiet = if now == last { quiet + 1 } else { 0 };
        last = now;
        if quiet >= 5 { Ok(last.clone()) } else { Err("it still changes".to_owned()) }
    })
}

fn nothing_left(lab: &Lab, before: &[String]) {
    let after = traces(lab).expect("traces");
    let (old, new) = (before.iter().collect::<BTreeSet<_>>(), after.iter().collect::<BTreeSet<_>>());
    let left: Vec<_> = new.difference(&old).collect();
    let lost: Vec<_> = old.difference(&new).collect();
    assert!(left.is_empty() && lost.is_empty(), "left behind: {left:#?}\nchanged or gone: {lost:#?}");
}

#[test]
fn up_with_a_file_shows_the_services_and_ctrl_c_leaves_nothing() {
    let lab = lab("ctrlc");
    let before = traces(&lab).expect("traces");
    let up = start(&lab, &[&web_app()]);
    web_app_answers(&lab, &up);
    let log = up.log();
    for word in ["web-app-internal", "web-app-external", "export KUBECONFIG=/var/lib/portolan/kubeconfig", "10.112.0."]
    {
        assert!(log.contains(word), "{word}:\n{log}");
    }
    assert!(traces(&lab).expect("traces").len() > before.len());
    let exit = up.interrupt().expect("it ends");
    assert!(exit.status.success(), "{}: {}", exit.status, exit.log);
    nothing_left(&lab, &before);
}

#[test]
fn an_interrupt_at_any_moment_of_the_start_leaves_nothing() {
    let lab = lab("early");
    let before = traces(&lab).expect("traces");
    // From before the first step to after the last, in steps finer than any of them.
    for step in 0..16 {
        let up = Up::spawn(&lab, &[&web_app()]).expect("it starts");
        pause(Duration::from_millis(step * 17));
        up.interrupt().expect("it ends");
        nothing_left(&lab, &before);
    }
}

#[test]
fn down_removes_everything_also_after_kill_9_and_up_finds_its_state_again() {
    let lab = lab("kill9");
    let before = traces(&lab).expect("traces");
    let up = start(&lab, &[&web_app()]);
    web_app_answers(&lab, &up);
    let kubectl = Kubectl::new(&lab).expect("kubectl");
    let address = cluster_ip(&kubectl, "web-app-internal");
    up.kill().expect("kill -9");
    portolan(&lab, "down").expect("the program").ok();
    nothing_left(&lab, &before);
    // Again, with nothing to do.
    portolan(&lab, "down").expect("the program").ok();

    let up = start(&lab, &[]);
    assert_eq!(cluster_ip(&kubectl, "web-app-internal"), address);
    answers(&lab.node(), &format!("{address}:80"), "/hostname");
    // From elsewhere, while it runs.
    let mut up = up;
    portolan(&lab, "down").expect("the program").ok();
    let exit = up.wait().expect("it ends");
    assert!(exit.status.success(), "{}", exit.log);
    nothing_left(&lab, &before);
}

#[test]
fn a_kill_without_down_is_repaired_by_the_next_up() {
    let lab = lab("rekill");
    let before = traces(&lab).expect("traces");
    let up = start(&lab, &[&web_app()]);
    web_app_answers(&lab, &up);
    up.kill().expect("kill -9");
    let up = start(&lab, &[&web_app()]);
    web_app_answers(&lab, &up);
    let kubectl = Kubectl::new(&lab).expect("kubectl");
    kubectl.run("rollout status deploy/web-app --timeout=60s").ok();
    up.interrupt().expect("it ends");
    nothing_left(&lab, &before);
}

#[test]
fn a_second_up_on_the_same_directory_is_refused_in_one_sentence() {
    let lab = lab("second");
    let first = start(&lab, &[]);
    let with_first = settled(&lab);
    let second = portolan(&lab, "up").expect("the program");
    assert_ne!(second.code, 0);
    assert!(second.stderr.contains("another portolan") && second.stderr.contains("/var/lib/portolan"), "{second:?}");
    assert_eq!(second.stderr.trim().lines().count(), 1, "{second:?}");
    nothing_left(&lab, &with_first);
    let kubectl = Kubectl::new(&lab).expect("kubectl");
    kubectl.run("get services").ok();
    drop(first);
}

#[test]
fn a_second_up_with_directories_of_its_own_leaves_the_first_alone() {
    let lab = lab("other");
    let first = start(&lab, &[]);
    let before = settled(&lab);
    let arguments = ["--data-dir=/run/other/data", "--run-dir=/run/other/run", "--secure-port=7443"];
    let exit = Up::spawn(&lab, &arguments).expect("it starts").wait().expect("it ends");
    assert_eq!(exit.status.code(), Some(1));
    assert!(exit.log.contains("another portolan runs on this machine"), "{}", exit.log);
    nothing_left(&lab, &before);
    assert!(first.interrupt().expect("it ends").status.success());
}

#[test]
fn a_reader_that_goes_away_ends_nothing_and_a_hangup_leaves_nothing() {
    let lab = lab("pipe");
    let before = traces(&lab).expect("traces");
    let mut command = lab.node().command("sh");
    // Both outputs go to a reader that takes one line and ends.
    let line = format!("{} up 2>&1 | head -1; exec sleep 1000", binary().expect("a program").display());
    let shell =
        Running::spawn(command.args(["-c", &line]).stdin(Stdio::null()).stdout(Stdio::null())).expect("a shell");
    let kubectl = Kubectl::new(&lab).expect("kubectl");
    until(SOON, "the API", || kubectl.run("get --raw /readyz").result());
    // What changes is printed to nobody.
    kubectl.run("create service clusterip a --tcp=80").ok();
    until(SOON, "the Service in the table", || {
        let table = portolan(&lab, "services").map_err(|e| e.to_string())?.ok();
        if table.contains("default/a ") { Ok(()) } else { Err(table) }
    });
    let instance = lab.node().sh("cat /run/portolan/instance.json").ok();
    let pid = instance.split("\"pid\":").nth(1).and_then(|r| r.split([',', '}']).next()).expect("a pid").to_owned();
    assert_eq!(lab.node().sh(&format!("kill -HUP {pid}")).code, 0);
    until(SOON, "the end", || {
        let left = lab.node().sh("ls -d /run/portolan");
        if left.code == 0 { Err(left.stdout) } else { Ok(()) }
    });
    drop(shell);
    nothing_left(&lab, &before);
}

#[test]
fn a_port_in_use_is_named_and_nothing_is_made() {
    let lab = lab("port");
    let before = traces(&lab).expect("traces");
    let listener = lab.node().enter(|| Ok(std::net::TcpListener::bind("127.0.0.1:6443")?)).expect("a listener");
    let refused = portolan(&lab, "up").expect("the program");
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("6443"), "{refused:?}");
    assert!(!refused.stderr.contains("panicked"), "{refused:?}");
    nothing_left(&lab, &before);
    drop(listener);
}

#[test]
fn without_root_one_sentence_says_what_to_type() {
    let lab = lab("noroot");
    // Where everybody may read it.
    let program = lab.dir().join("portolan");
    std::fs::copy(binary().expect("the program"), &program).expect("a copy");
    let line = format!("setpriv --reuid=65534 --regid=65534 --clear-groups {} up", program.display());
    let refused = lab.node().sh(&line);
    assert_ne!(refused.code, 0);
    assert_eq!(refused.stderr.trim().lines().count(), 1, "{refused:?}");
    assert!(refused.stderr.contains("root") && refused.stderr.contains("sudo"), "{refused:?}");
}

#[test]
fn a_full_disk_is_said_clearly_and_nothing_is_made() {
    let lab = lab("full");
    let before = traces(&lab).expect("traces");
    lab.node().sh("mkdir -p /var/lib/portolan && mount -t tmpfs -o size=64k tmpfs /var/lib/portolan").ok();
    let refused = portolan(&lab, "up").expect("the program");
    assert_ne!(refused.code, 0, "{refused:?}");
    assert!(refused.stderr.to_lowercase().contains("no space left"), "{refused:?}");
    assert!(!refused.stderr.contains("panicked"), "{refused:?}");
    lab.node().sh("umount /var/lib/portolan").ok();
    nothing_left(&lab, &before);
}

#[test]
fn wrong_options_are_refused_before_anything_is_made() {
    let lab = lab("options");
    let before = traces(&lab).expect("traces");
    for line in [
        "up --service-cluster-ip-range=nonsense",
        "up --service-node-port-range=9-1",
        "up --registry-mirror=docker.io",
        "up --cluster-cidr=10.96.0.0/16",
        "up /does/not/exist.yaml",
        "frobnicate",
    ] {
        let refused = portolan(&lab, line).expect("the program");
        assert_ne!(refused.code, 0, "{line}");
        assert!(!refused.stderr.is_empty() && !refused.stderr.contains("panicked"), "{refused:?}");
    }
    nothing_left(&lab, &before);
}

#[test]
fn other_addresses_ports_and_names_can_be_chosen() {
    let lab = lab("ranges");
    let arguments = [
        "--service-cluster-ip-range=10.0.0.0/24",
        "--cluster-cidr=10.1.0.0/16",
        "--service-node-port-range=20000-32767",
        "--node-name=kind-control-plane",
    ];
    let up = start(&lab, &arguments);
    let kubectl = Kubectl::new(&lab).expect("kubectl");
    kubectl.apply(&deployment("web", portolan_tests::ECHO, 2, 80)).ok();
    kubectl
        .apply("apiVersion: v1\nkind: Service\nmetadata:\n  name: web\nspec:\n  type: NodePort\n  clusterIP: 10.0.0.9\n  selector:\n    app: web\n  ports:\n  - port: 80\n    nodePort: 20080\n")
        .ok();
    kubectl.run("rollout status deploy/web --timeout=60s").ok();
    let addresses = kubectl.jsonpath("pods", "{.items[*].status.podIP}").ok();
    assert!(addresses.split(' ').all(|a| a.starts_with("10.1.")), "seed_005: {addresses}");
    assert_eq!(kubectl.run("get nodes -o name").ok(), "node/kind-control-plane\n");
    answers(&lab.node(), "10.0.0.9:80", "/hostname");
    answers(&lab.outside(), &format!("{}:20080", testkit::lab::NODE_ADDRESS), "/hostname");
    up.interrupt().expect("it ends");
}

/// How often the program is killed: a dozen by default, `PORTOLAN_KILLS=100` for the full proof.
fn kills() -> usize {
    std::env::var("PORTOLAN_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(12)
}

#[test]
fn kills_at_random_moments_lose_no_acknowledged_write() {
    let lab = lab("kills");
    let kubectl = Kubectl::new(&lab).expect("kubectl");
    let mut acknowledged: BTreeSet<String> = BTreeSet::new();
    for round in 0..kills() {
        let up = start(&lab, &[]);
        let found: BTreeSet<String> = kubectl.run("get configmaps -o name").ok().lines().map(str::to_owned).collect();
        let lost: Vec<_> = acknowledged.difference(&found).collect();
        assert!(lost.is_empty(), "round {round}: acknowledged and lost: {lost:?}");

        let mut writer: Command = kubectl.command("create -f -");
        let mut writer =
            writer.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("kubectl");
        let mut pipe = writer.stdin.take().expect("a pipe");
        let objects: String = (0..400)
            .map(|i| {
                format!("---\napiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: w-{round}-{i}\ndata:\n  k: \"{i}\"\n")
            })
            .collect();
        let feed = std::thread::spawn(move || {
            // A writer whose server is gone may end before it has read everything.
            let _ = pipe.write_all(objects.as_bytes());
        });
        pause(Duration::from_millis(rand::rng().random_range(150..2000)));
        up.kill().expect("kill -9");
        // What it was told until now lies in the pipe; the rest of its objects can only fail.
        let _ = writer.kill();
        let said = writer.wait_with_output().expect("the writer ends");
        feed.join().expect("the feeder ends");
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        acknowledged.extend(said.lines().filter_map(|l| l.strip_suffix(" created")).map(str::to_owned));
    }
    assert!(!acknowledged.is_empty(), "the writer never got anything written");
    let up = start(&lab, &[]);
    kubectl.apply(&example("web-app.yaml")).ok();
    kubectl.run("rollout status deploy/web-app --timeout=60s").ok();
    let address = cluster_ip(&kubectl, "web-app-internal");
    answers(&lab.node(), &format!("{address}:80"), "/hostname");
    until(SOON, "an external address", || {
        let ip = kubectl.jsonpath("svc web-app-external", "{.status.loadBalancer.ingress[0].ip}").result()?;
        if ip.is_empty() { Err("pending".to_owned()) } else { Ok(()) }
    });
    println!("{} acknowledged writes survived {} kills", acknowledged.len(), kills());
    up.interrupt().expect("it ends");
}
