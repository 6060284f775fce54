//! Streams into containers, with kubectl of today (WebSocket) and of 2020 (SPDY): exec, attach, run, cp, and the
//! API's proxy.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use portolan_tests::{SOON, World, answers, cluster_ip, deployment, pod, world};
use rand::Rng;
use testkit::{Kubectl, until};

/// A pod that does nothing, for programs to run in.
fn sleeper(world: &World, kubectl: &Kubectl, name: &str) {
    kubectl.apply(&pod(name, "busybox", r#"["sleep", "86400"]"#)).ok();
    world.ready_pods(kubectl, &format!("app={name}"), 1);
}

/// `kubectl LINE` in a terminal of 132 x 43 characters, as a person sits at it; what the terminal showed and the exit code.
fn in_terminal(kubectl: &Kubectl, line: &str, typed: &str) -> (String, i32) {
    let plain = kubectl.command(line);
    let words: Vec<String> = std::iter::once(plain.get_program())
        .chain(plain.get_args())
        .map(|w| format!("'{}'", w.to_string_lossy().replace('\'', r"'\''")))
        .collect();
    let mut command = Command::new("script");
    command.args(["-qec", &format!("stty rows 43 cols 132; {}", words.join(" ")), "/dev/null"]);
    for (name, value) in plain.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().expect("script");
    let mut keyboard = child.stdin.take().expect("a pipe");
    let mut screen = child.stdout.take().expect("a pipe");
    let mut shown = Vec::new();
    let mut buffer = [0; 4096];
    let mut typed = Some(typed);
    while let Ok(n @ 1..) = screen.read(&mut buffer) {
        shown.extend_from_slice(&buffer[..n]);
        // A person types when the prompt has come.
        if String::from_utf8_lossy(&shown).contains("# ")
            && let Some(typed) = typed.take()
        {
            keyboard.write_all(typed.as_bytes()).expect("typed");
        }
    }
    let status = child.wait().expect("it ends");
    (String::from_utf8_lossy(&shown).into_owned(), status.code().unwrap_or(-1))
}

/// Bytes that do not repeat.
fn noise(size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    rand::rng().fill(&mut bytes[..]);
    bytes
}

/// Feeds `input` and reads everything at the same time.
fn both_ways(mut child: Child, input: Vec<u8>) -> (Vec<u8>, i32) {
    let mut stdin = child.stdin.take().expect("a pipe");
    let mut stdout = child.stdout.take().expect("a pipe");
    let feeder = thread::spawn(move || stdin.write_all(&input));
    let mut said = Vec::new();
    stdout.read_to_end(&mut said).expect("its output");
    feeder.join().expect("the feeder").expect("fed");
    (said, child.wait().expect("it ends").code().unwrap_or(-1))
}

#[test]
fn seed_197_exec_hands_on_streams_and_the_exit_code() {
    let world = world();
    for kubectl in world.namespaces("row-197") {
        sleeper(world, &kubectl, "box");
        assert_eq!(kubectl.run("exec box -- echo hello").ok(), "hello\n");

        let output = kubectl.run_with(&["exec", "box", "--", "sh", "-c", "echo out; echo err >&2; exit 3"]);
        assert_eq!((&*output.stdout, output.code), ("out\n", 3), "{output:?}");
        assert_eq!(output.stderr, "err\ncommand terminated with exit code 3\n");
        let killed = kubectl.run_with(&["exec", "box", "--", "sh", "-c", "kill -9 $$"]);
        assert_eq!(killed.code, 137, "{killed:?}");

        // The end of the input reaches the program, whose output still comes back.
        assert_eq!(kubectl.feed("exec -i box -- wc -c", "12345").ok().trim(), "5");
        let unread = kubectl.feed("exec -i box -- true", &"x".repeat(1 << 20));
        assert_eq!(unread.code, 0, "{unread:?}");
        // What stays in the background does not keep the client.
        let left = kubectl.run_with(&["exec", "box", "--", "sh", "-c", "sleep 600 & echo left"]);
        assert_eq!(left.ok(), "left\n");
        // Arguments arrive as they are.
        let odd = kubectl.run_with(&["exec", "box", "--", "echo", "a&b=c d%20+ü", "-", "\"'"]);
        assert_eq!(odd.ok(), "a&b=c d%20+ü - \"'\n");
    }
}

#[test]
fn large_data_passes_both_ways_at_once() {
    let world = world();
    for kubectl in world.namespaces("large-data") {
        sleeper(world, &kubectl, "box");
        let input = noise(8 << 20);
        let mut command = kubectl.command("exec -i box -- cat");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let (said, code) = both_ways(command.spawn().expect("kubectl"), input.clone());
        assert_eq!(code, 0);
        assert!(said == input, "{}: {} bytes of {} came back", kubectl.label, said.len(), input.len());
    }
}

#[test]
fn seed_197_exec_with_a_terminal() {
    let world = world();
    for kubectl in world.namespaces("row-197-tty") {
        sleeper(world, &kubectl, "box");
        let (shown, code) = in_terminal(&kubectl, "exec -it box -- sh", "tty; stty size; echo $TERM; exit 5\n");
        for word in ["/dev/pts/0", "43 132", "xterm", "command terminated with exit code 5"] {
            assert!(shown.contains(word), "{word}: {shown}");
        }
        assert_eq!(code, 5, "{shown}");
        // Ctrl-D ends a shell.
        let (shown, code) = in_terminal(&kubectl, "exec -it box -- sh", "\u{4}");
        assert_eq!(code, 0, "{shown}");
    }
}

#[test]
fn exec_is_refused_in_words() {
    let world = world();
    for kubectl in world.namespaces("exec-refused") {
        sleeper(world, &kubectl, "box");
        let said = kubectl.run("exec box -c nope -- true").refused();
        assert!(said.contains("container nope is not valid for pod box"), "{said}");
        let said = kubectl.run("exec nobox -- true").refused();
        assert!(said.contains("pods \"nobox\" not found"), "{said}");
        let said = kubectl.run("exec box -- nosuchprogram").refused();
        assert!(said.contains("exec: \"nosuchprogram\": executable file not found in $PATH"), "{said}");
    }
}

#[test]
fn seed_193_194_198_one_shot_pods() {
    let world = world();
    for kubectl in world.namespaces("row-193") {
        kubectl.apply(&deployment("web", portolan_tests::ECHO, 1, 80)).ok();
        kubectl.run("expose deployment web --name=my-service --port=80").ok();
        world.endpoints(&kubectl, "my-service", 1);
        answers(&world.node(), &format!("{}:80", cluster_ip(&kubectl, "my-service")), "/hostname");

        let line = "run debug --image=busybox --rm -it --restart=Never -- wget -qO- http://my-service/hostname";
        let (shown, code) = in_terminal(&kubectl, line, "");
        assert!(shown.contains("web-") && shown.contains("pod \"debug\" deleted"), "seed_193: {shown}");
        assert_eq!(code, 0, "seed_193: {shown}");

        let said = kubectl.run("run debug --image=busybox --rm -i --restart=Never -- nslookup my-service").stdout;
        assert!(said.contains("10.96.0.10") && said.contains(&cluster_ip(&kubectl, "my-service")), "seed_194: {said}");

        let failed = kubectl.run("run x --image=busybox --restart=Never --rm -i -- false");
        assert_eq!(failed.code, 1, "seed_198: {failed:?}");
        let failed = kubectl.run_with(&[
            "run",
            "x",
            "--image=busybox",
            "--restart=Never",
            "--rm",
            "-i",
            "--",
            "sh",
            "-c",
            "echo fast; exit 7",
        ]);
        assert_eq!(failed.code, 7, "seed_198: {failed:?}");
        assert!(failed.stdout.starts_with("fast\n"), "{failed:?}");
        assert!(!failed.stderr.contains("falling back"), "{failed:?}");
        let fed = kubectl.feed("run x --image=busybox --restart=Never --rm -i -- cat", "to the program\n").ok();
        assert!(fed.starts_with("to the program\n"), "{fed}");
        until(SOON, "no pod left", || match kubectl.run("get pods -l run -o name").result()? {
            left if left.is_empty() => Ok(()),
            left => Err(left),
        });
    }
}

#[test]
fn seed_196_an_interactive_shell_in_a_pod() {
    let world = world();
    for kubectl in world.namespaces("row-196") {
        let line = "run tmp-shell --rm -i --tty --image nicolaka/netshoot --restart=Never -- sh";
        let (shown, code) = in_terminal(&kubectl, line, "stty size; tty; echo $((6 * 7))\n\u{4}");
        for word in ["43 132", "/dev/pts/0", "42", "pod \"tmp-shell\" deleted"] {
            assert!(shown.contains(word), "seed_196: {word}: {shown}");
        }
        assert_eq!(code, 0, "seed_196: {shown}");
    }
}

#[test]
fn attach_shows_what_comes_from_now_on() {
    let world = world();
    for kubectl in world.namespaces("attach") {
        let script = r#"["sh", "-c", "while read line; do echo got $line; done; echo over"]"#;
        let manifest = pod("reader", "busybox", script).replace("    command", "    stdin: true\n    command");
        kubectl.apply(&manifest).ok();
        world.ready_pods(&kubectl, "app=reader", 1);
        // Input stays open after the first client: stdinOnce is not set.
        for word in ["one", "two"] {
            let mut child = kubectl
                .command("attach -i reader")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .expect("kubectl");
            let mut stdin = child.stdin.take().expect("a pipe");
            stdin.write_all(format!("{word}\n").as_bytes()).expect("written");
            let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
            assert_eq!(lines.next().expect("a line").expect("text"), format!("got {word}"));
            child.kill().expect("it runs");
            child.wait().expect("it ends");
        }
        assert_eq!(kubectl.run("logs reader").ok(), "got one\ngot two\n");
        let refused = kubectl.run("attach nobody").refused();
        assert!(refused.contains("pods \"nobody\" not found"), "{refused}");
    }
}

#[test]
fn cp_both_ways() {
    let world = world();
    for kubectl in world.namespaces("cp") {
        sleeper(world, &kubectl, "box");
        let dir = world.lab.dir().join(format!("cp-{}", kubectl.label));
        fs::create_dir_all(dir.join("tree/below")).expect("directories");
        let content = noise(3 << 20);
        fs::write(dir.join("tree/large"), &content).expect("a file");
        fs::write(dir.join("tree/below/small"), "small\n").expect("a file");
        let copy = |from: &str, to: &str| kubectl.run_with(&["cp", from, to]).ok();
        let path = |name: &str| dir.join(name).display().to_string();
        copy(&path("tree"), "box:/tmp/tree");
        assert_eq!(kubectl.run("exec box -- cat /tmp/tree/below/small").ok(), "small\n");
        copy("box:/tmp/tree", &path("back"));
        assert!(fs::read(dir.join("back/large")).expect("a file") == content);
        assert_eq!(fs::read_to_string(dir.join("back/below/small")).expect("a file"), "small\n");
        // Whether kubectl waits for tar's complaint and exit code is a matter of luck in kubectl itself.
        kubectl.run_with(&["cp", "box:/tmp/nothing", &path("nothing")]);
        assert!(!Path::new(&path("nothing")).exists());
    }
}

#[test]
fn previous_logs_are_those_of_the_run_before() {
    let world = world();
    let kubectl = world.namespace("logs-previous");
    let script = r#"["sh", "-c", "date +%s; sleep 1; exit 1"]"#;
    kubectl.apply(&pod("again", "busybox", script)).ok();
    until(SOON, "a restart", || {
        let count = kubectl.jsonpath("pod again", "{.status.containerStatuses[0].restartCount}").result()?;
        if count == "0" || count.is_empty() { Err(format!("{count} restarts")) } else { Ok(()) }
    });
    let previous = kubectl.run("logs --previous again").ok();
    assert!(previous.trim().parse::<u64>().is_ok(), "{previous}");
    let fresh = kubectl.run("logs -p nobody");
    assert_eq!(fresh.code, 1, "{fresh:?}");
}

#[test]
fn pods_and_services_are_reached_through_the_api() {
    let world = world();
    for kubectl in world.namespaces("proxy") {
        kubectl.apply(&deployment("web", portolan_tests::ECHO, 1, 80)).ok();
        kubectl.run("expose deployment web --port=8000 --target-port=80").ok();
        world.endpoints(&kubectl, "web", 1);
        let pod = world.ready_pods(&kubectl, "app=web", 1).remove(0);
        let base = format!("get --raw /api/v1/namespaces/proxy-{}", kubectl.label);
        for path in [
            "services/web/proxy/hostname".to_owned(),
            "services/web:8000/proxy/hostname".to_owned(),
            "services/http:web:8000/proxy/hostname".to_owned(),
            format!("pods/{pod}/proxy/hostname"),
            format!("pods/http:{pod}:80/proxy/hostname?a=b"),
        ] {
            assert_eq!(kubectl.run(&format!("{base}/{path}")).ok().trim(), pod, "{path}");
        }
        // Without the slash a redirect, which kubectl follows.
        kubectl.run(&format!("{base}/services/web/proxy")).ok();
        for (path, words) in [
            ("services/web:81/proxy/", "no service port \"81\" found for service \"web\""),
            ("services/nobody/proxy/", "services \"nobody\" not found"),
            ("pods/a:b:c:d/proxy/", "invalid pod request"),
        ] {
            let said = kubectl.run(&format!("{base}/{path}")).refused();
            assert!(said.contains(words), "{path}: {said}");
        }
        let refused = kubectl.run(&format!("{base}/pods/{pod}:9/proxy/")).refused();
        assert!(refused.contains("error trying to reach service") && refused.contains("refused"), "{refused}");
    }
}
