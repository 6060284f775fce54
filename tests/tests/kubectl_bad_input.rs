//! Bad input gets kube-apiserver's words, through both kubectls, with exit code 1.

use portolan_tests::{World, world};
use testkit::Kubectl;

fn service(name: &str, spec: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n{spec}")
}

#[track_caller]
fn refused(kubectl: &Kubectl, manifest: &str, said: &str) {
    let answer = kubectl.apply(manifest).refused();
    assert_eq!(answer.trim_end(), said, "for\n{manifest}");
}

#[test]
fn unknown_fields() {
    let world = world();
    let manifest = service("x", "  foo: bar\n  ports:\n  - port: 80\n");
    let [new, old] = world.namespaces("unknown");
    let words =
        r#"Service in version "v1" cannot be handled as a Service: strict decoding error: unknown field "spec.foo""#;
    refused(&new, &manifest, &format!("Error from server (BadRequest): error when creating \"STDIN\": {words}"));
    let words = r#"error: error validating "STDIN": error validating data: ValidationError(Service.spec): unknown field "foo" in io.k8s.api.core.v1.ServiceSpec; if you choose to ignore these errors, turn validation off with --validate=false"#;
    refused(&old, &manifest, words);
    // Told to ignore it, the field is dropped.
    for kubectl in [&new, &old] {
        kubectl.feed("apply --validate=false -f -", &manifest).ok();
        assert_eq!(kubectl.jsonpath("svc x", "{.spec.foo}").ok(), "");
    }
}

#[test]
fn wrong_types() {
    let world = world();
    let manifest = service("x", "  ports:\n  - port: eighty\n");
    let [new, old] = world.namespaces("types");
    let words = "Service in version \"v1\" cannot be handled as a Service: json: cannot unmarshal string into Go struct field \
        ServicePort.spec.ports.port of type int32";
    refused(&new, &manifest, &format!("Error from server (BadRequest): error when creating \"STDIN\": {words}"));
    let answer = old.apply(&manifest).refused();
    let words = r#"ValidationError(Service.spec.ports[0].port): invalid type for io.k8s.api.core.v1.ServicePort.port: got "string", expected "integer""#;
    assert!(answer.contains(words), "{answer}");
}

#[test]
fn ports_missing_unnamed_or_twice() {
    let world = world();
    for kubectl in world.namespaces("ports") {
        refused(
            &kubectl,
            &service("x", "  selector:\n    app: x\n"),
            "The Service \"x\" is invalid: spec.ports: Required value",
        );
        refused(
            &kubectl,
            &service("x", "  ports:\n  - port: 80\n  - port: 81\n"),
            "The Service \"x\" is invalid: \n* spec.ports[0].name: Required value\n* spec.ports[1].name: Required value",
        );
        let answer =
            kubectl.apply(&service("x", "  ports:\n  - name: a\n    port: 80\n  - name: a\n    port: 81\n")).refused();
        assert!(answer.contains(r#"spec.ports[1].name: Duplicate value: "a""#), "{answer}");
        let answer = kubectl.apply(&service("x", "  ports:\n  - port: 70000\n")).refused();
        assert!(
            answer.contains("spec.ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive"),
            "{answer}"
        );
        let answer = kubectl.apply(&service("X", "  ports:\n  - port: 80\n")).refused();
        assert!(answer.contains("metadata.name: Invalid value: \"X\": a DNS-10"), "{answer}");
    }
}

#[test]
fn cluster_addresses() {
    let world = world();
    for kubectl in world.namespaces("addresses") {
        let answer = kubectl.apply(&service("x", "  clusterIP: 192.0.2.1\n  ports:\n  - port: 80\n")).refused();
        assert!(answer.starts_with("The Service \"x\" is invalid: spec.clusterIPs: Invalid value:"), "{answer}");
        assert!(answer.contains("failed to allocate IP 192.0.2.1:") && answer.contains("10.96.0.0/12"), "{answer}");
        let answer = kubectl.apply(&service("x", "  clusterIP: nonsense\n  ports:\n  - port: 80\n")).refused();
        assert!(
            answer.contains("spec.clusterIPs[0]: Invalid value: \"nonsense\": must be a valid IP address"),
            "{answer}"
        );
        let answer = kubectl.apply(&service("x", "  clusterIP: 10.96.0.1\n  ports:\n  - port: 80\n")).refused();
        assert!(answer.contains("provided IP is already allocated"), "{answer}");
        kubectl.apply(&service("x", "  ports:\n  - port: 80\n")).ok();
        let patch = r#"{"spec":{"clusterIP":"10.96.200.200","clusterIPs":["10.96.200.200"]}}"#;
        let answer = kubectl.run_with(&["patch", "service", "x", "--type=merge", "-p", patch]).refused();
        assert!(
            answer.contains("spec.clusterIPs[0]: Invalid value:") && answer.contains("may not change once set"),
            "{answer}"
        );
    }
}

#[test]
fn node_ports() {
    let world = world();
    for (kubectl, port) in world.namespaces("nodeports").iter().zip([31080, 31081]) {
        let with = |name: &str, port: u32| {
            service(name, &format!("  type: NodePort\n  ports:\n  - port: 80\n    nodePort: {port}\n"))
        };
        refused(
            kubectl,
            &with("x", 20080),
            "The Service \"x\" is invalid: spec.ports[0].nodePort: Invalid value: 20080: provided port is not in the valid range. The range of valid ports is 30000-32767",
        );
        kubectl.apply(&with("x", port)).ok();
        refused(
            kubectl,
            &with("other", port),
            &format!(
                "The Service \"other\" is invalid: spec.ports[0].nodePort: Invalid value: {port}: provided port is already allocated"
            ),
        );
        kubectl.run("delete service x").ok();
        kubectl.apply(&with("other", port)).ok();
    }
}

#[test]
fn policies_that_do_not_fit_the_type() {
    let world = world();
    for kubectl in world.namespaces("policies") {
        let answer = kubectl.apply(&portolan_tests::example("articles/local-service.refused.yaml")).refused();
        let words = r#"The Service "local-service" is invalid: spec.externalTrafficPolicy: Invalid value: "Local": may only be set for externally-accessible services"#;
        assert!(answer.contains(words), "{answer}");
        assert!(
            answer.contains("add `type: NodePort` or `type: LoadBalancer`, or remove the field"),
            "a hint: {answer}"
        );
        let said = kubectl.apply(&portolan_tests::example("articles/local-service.yaml")).ok();
        assert_eq!(said, "service/local-service created\n");
        let answer = kubectl.apply(&service("s", "  sessionAffinity: Foo\n  ports:\n  - port: 80\n")).refused();
        assert!(
            answer.contains(r#"spec.sessionAffinity: Unsupported value: "Foo": supported values: "ClientIP", "None""#),
            "{answer}"
        );
    }
}

#[test]
fn every_manifest_of_the_examples_is_accepted_or_refused_as_it_says() {
    let world = world();
    let kubectl = world.namespace("examples");
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/articles");
    let mut files: Vec<_> = std::fs::read_dir(dir).expect("examples").map(|e| e.expect("an entry").path()).collect();
    files.sort();
    for file in files {
        let name = file.file_name().and_then(|n| n.to_str()).expect("a name").to_owned();
        let manifest = std::fs::read_to_string(&file).expect("a file");
        // Its namespace is another test's; the rest is the same.
        let manifest = manifest.replace("  namespace: production\n", "");
        // Nothing of it needs to run here.
        let manifest = manifest.replace("replicas: 2", "replicas: 0").replace("replicas: 3", "replicas: 0");
        let applied = kubectl.apply(&manifest);
        if name.contains("refused") {
            applied.refused();
            continue;
        }
        applied.ok();
        // An Endpoints object goes with its Service, before or after kubectl comes to it.
        kubectl.feed("delete --ignore-not-found -f -", &manifest).ok();
    }
}

#[test]
fn things_that_are_not_there() {
    let world = world();
    for kubectl in [world.kubectl(), world.old_kubectl()] {
        let said = kubectl.run("get service nobody").refused();
        assert_eq!(said, "Error from server (NotFound): services \"nobody\" not found\n");
        let said = kubectl.within("nowhere").run("create service clusterip x --tcp=80").refused();
        assert!(said.ends_with("namespaces \"nowhere\" not found\n"), "{said}");
        let said = kubectl.run("get nonsense").refused();
        assert_eq!(said, "error: the server doesn't have a resource type \"nonsense\"\n");
        let said = kubectl.run("scale deploy nobody --replicas=2").refused();
        assert!(said.contains("deployments.apps \"nobody\" not found"), "{said}");
    }
}

/// `curl` at the API server from the node, as nobody in particular.
fn curl(world: &World, words: &[&str]) -> String {
    let mut command = world.node().network_command("curl");
    command.args(["--silent", "--insecure", "--max-time", "10", "--write-out", "\n%{http_code}"]).args(words);
    String::from_utf8_lossy(&command.output().expect("curl").stdout).into_owned()
}

#[test]
fn strangers_learn_nothing() {
    let world = world();
    let said = curl(world, &["https://127.0.0.1:6443/api/v1/services"]);
    assert!(said.ends_with("\n401") && said.contains("\"Unauthorized\""), "{said}");
    let said = curl(world, &["-H", "Authorization: Bearer nonsense", "https://127.0.0.1:6443/api/v1/services"]);
    assert!(said.ends_with("\n401"), "{said}");
    for path in ["readyz", "livez", "healthz"] {
        assert_eq!(curl(world, &[&format!("https://127.0.0.1:6443/{path}")]), "ok\n200");
    }
    assert!(curl(world, &["https://127.0.0.1:6443/version"]).contains("\"gitVersion\""));
    let kubeconfig = world.lab.dir().join("lib/portolan/kubeconfig");
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(kubeconfig).expect("kubeconfig").permissions());
    assert_eq!(mode & 0o777, 0o600);
}
