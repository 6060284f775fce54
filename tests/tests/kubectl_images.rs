//! Real images over the registry protocol: row 205, and what images may hold.

use portolan_tests::{LONG, SOON, answers, deployment, json, pod, world};
use testkit::until;

#[test]
fn seed_205_the_images_of_the_articles_are_pulled_and_run() {
    let world = world();
    let kubectl = world.namespace("row-205");
    for (i, image) in ["nginx:1.25", "nginx:1.19"].iter().enumerate() {
        let name = format!("row-205-nginx-{i}");
        kubectl.apply(&deployment(&name, image, 1, 80)).ok();
        let pod = world.ready_pods(&kubectl, &format!("app={name}"), 1).remove(0);
        let address = kubectl.jsonpath(&format!("pod {pod}"), "{.status.podIP}").ok();
        assert!(answers(&world.node(), &format!("{address}:80"), "/").contains("Welcome to nginx"), "{image}");
        let version = image.trim_start_matches("nginx:");
        assert_eq!(world.pod(&pod).read("/version").expect("a file of the image").trim(), version);
    }
    kubectl.apply(&pod("row-205-redis", "redis:latest", "[]").replace("    command: []\n", "")).ok();
    world.ready_pods(&kubectl, "app=row-205-redis", 1);
    let redis = world.pod("row-205-redis");
    let pong = until(SOON, "PONG", || redis.sh("redis-cli ping").result());
    assert_eq!(pong, "PONG\n");
    let user = redis.sh("stat -c %u /proc/1").ok();
    assert_eq!(user, "999\n", "the image's user runs the program");
    kubectl.apply(&pod("row-205-busybox", "busybox", r#"["sleep", "86400"]"#)).ok();
    let tools = world.toolbox(&kubectl, "row-205-netshoot");
    world.ready_pods(&kubectl, "app=row-205-busybox", 1);
    assert_eq!(world.pod("row-205-busybox").sh("busybox true").code, 0);
    let answer = tools.sh("host kubernetes.default").ok();
    assert!(answer.contains("kubernetes.default.svc.cluster.local has address 10.96.0.1"), "{answer}");
}

#[test]
fn layers_in_zstd_and_whiteouts() {
    let world = world();
    let kubectl = world.namespace("layers");
    let sleep = r#"["sleep", "86400"]"#;
    kubectl.apply(&pod("layers-zstd", "portolan-test/zstd", sleep)).ok();
    kubectl.apply(&pod("layers-whiteouts", "docker.io/portolan-test/whiteouts:latest", sleep)).ok();
    world.ready_pods(&kubectl, "app=layers-zstd", 1);
    assert_eq!(world.pod("layers-zstd").read("/compressed-with").expect("a file"), "zstd\n");
    world.ready_pods(&kubectl, "app=layers-whiteouts", 1);
    let place = world.pod("layers-whiteouts");
    let seen = place.sh("cd / && ls -d gone emptied/* part/* becomes-dir/* keep second-name link 2>/dev/null").stdout;
    let seen: Vec<&str> = seen.lines().collect();
    assert_eq!(seen, ["becomes-dir/inside", "emptied/new", "keep", "link", "part/keep", "second-name"]);
    assert_eq!(place.sh("cat /link /second-name").ok(), "kept\nkept\n");
    assert_eq!(place.sh("find / -xdev -name '.wh.*' 2>/dev/null | head").ok(), "");
}

#[test]
fn seed_205_an_image_that_does_not_exist_says_where_and_why() {
    let world = world();
    let kubectl = world.namespace("row-205-missing");
    kubectl.apply(&pod("missing", "nginx:9.99", r#"["true"]"#)).ok();
    let waiting = || {
        let path = "{.status.containerStatuses[0].state.waiting.reason}";
        kubectl.jsonpath("pod missing", path).result()
    };
    until(LONG, "ErrImagePull", || match waiting()?.as_str() {
        "ErrImagePull" | "ImagePullBackOff" => Ok(()),
        other => Err(other.to_owned()),
    });
    until(LONG, "ImagePullBackOff", || match waiting()?.as_str() {
        "ImagePullBackOff" => Ok(()),
        other => Err(other.to_owned()),
    });
    let events = until(SOON, "an Event", || {
        let list = json(&kubectl.run("get events -o json").result()?)?;
        let found: Vec<String> = list["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|e| e["reason"] == "Failed")
            .map(|e| portolan_tests::text(&e["message"]))
            .collect();
        if found.iter().any(|m| m.starts_with("Failed to pull image \"nginx:9.99\":")) {
            Ok(found)
        } else {
            Err(format!("{found:?}"))
        }
    });
    let message = events.iter().find(|m| m.starts_with("Failed to pull image")).expect("found above");
    assert!(message.contains("127.0.0.1:5000") || message.contains("docker.io"), "the registry is named: {message}");
    assert!(
        message.to_lowercase().contains("not found") || message.contains("manifest unknown"),
        "the cause: {message}"
    );
    let row = kubectl.run("get pod missing --no-headers").ok();
    assert!(row.contains("0/1") && (row.contains("ImagePullBackOff") || row.contains("ErrImagePull")), "{row}");
    kubectl.run("delete pod missing").ok();
}
