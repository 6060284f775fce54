//! Services of type ClusterIP, their Endpoints, and what kubectl does with them: rows 17-25, 158-161, 182-188.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::sync::mpsc;

use portolan_tests::{ECHO, SOON, answers, cluster_ip, deployment, example, json, world};
use testkit::table::Table;
use testkit::{Kubectl, until};

/// A web server that listens on 8080 only and tells its name under `/hostname`.
fn backend(replicas: usize) -> String {
    let command = r#"["sh", "-c", "mkdir /www; hostname > /www/hostname; echo hello > /www/index.html; exec httpd -f -p 8080 -h /www"]"#;
    deployment("backend", "busybox", replicas, 8080)
        .replace("        image: busybox\n", &format!("        image: busybox\n        command: {command}\n"))
}

#[test]
fn seed_017_018_020_the_backend_service_and_its_defaults() {
    let world = world();
    let manifest = example("articles/backend-service.yaml");
    for kubectl in world.namespaces("row-17") {
        assert_eq!(kubectl.apply(&manifest).ok(), "service/backend-service created\n");
        let service = json(&kubectl.run("get svc backend-service -o json").ok()).expect("json");
        let spec = &service["spec"];
        let expected = [
            ("type", r#""ClusterIP""#),
            ("internalTrafficPolicy", r#""Cluster""#),
            ("ipFamilies", r#"["IPv4"]"#),
            ("ipFamilyPolicy", r#""SingleStack""#),
            ("sessionAffinity", r#""None""#),
            ("selector", r#"{"app":"backend"}"#),
            ("ports", r#"[{"name":"http","port":80,"protocol":"TCP","targetPort":8080}]"#),
        ];
        for (field, value) in expected {
            assert_eq!(spec[field], json(value).expect("json"), "seed_017: {field}");
        }
        assert_eq!(spec["clusterIPs"], serde_json::json!([spec["clusterIP"]]));
        let yaml = kubectl.run("get svc backend-service -o yaml").ok();
        for line in ["  clusterIP: 10.", "  internalTrafficPolicy: Cluster", "  ipFamilyPolicy: SingleStack", "status:"]
        {
            assert!(yaml.lines().any(|l| l.starts_with(line)), "seed_017: no {line:?} in\n{yaml}");
        }

        let bare = "apiVersion: v1\nkind: Service\nmetadata:\n  name: bare\nspec:\n  ports:\n  - port: 80\n";
        kubectl.apply(bare).ok();
        assert_eq!(kubectl.jsonpath("svc bare", "{.spec.type} {.spec.ports[0].protocol}").ok(), "ClusterIP TCP");
        let said =
            kubectl.apply(&bare.replace("bare", "foo").replace("port: 80", "port: 80\n    protocol: FOO")).refused();
        let words = r#"spec.ports[0].protocol: Unsupported value: "FOO": supported values: "SCTP", "TCP", "UDP""#;
        assert_eq!(said, format!("The Service \"foo\" is invalid: {words}\n"), "seed_020");
    }
}

#[test]
fn seed_019_021_022_023_024_port_80_reaches_container_port_8080_from_inside_only() {
    let world = world();
    let kubectl = world.namespace("row-19");
    kubectl.apply(&backend(3)).ok();
    kubectl.apply(&example("articles/backend-service.yaml")).ok();
    world.endpoints(&kubectl, "backend-service", 3);
    let client = world.toolbox(&kubectl, "row-19-client");
    let address = cluster_ip(&kubectl, "backend-service");
    let socket: SocketAddr = format!("{address}:80").parse().expect("an address");

    let curl = |url: &str| client.sh(&format!("curl -s --max-time 5 -o /dev/null -w '%{{http_code}}' {url}"));
    assert_eq!(curl("http://backend-service:80").ok(), "200", "seed_019, seed_023");
    let refused = curl("http://backend-service:8080");
    assert_eq!((refused.code, refused.stdout.as_str()), (7, "000"), "seed_019: a port the Service has not is refused");
    let full = "http://backend-service.row-19.svc.cluster.local:80";
    assert_eq!(curl(full).ok(), "200", "seed_024");
    answers(&world.node(), &socket.to_string(), "/");
    assert!(world.outside().get(socket, "/").is_err(), "seed_021");

    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for name in client.get_many(socket, "/hostname", 300).expect("requests") {
        *counts.entry(name.expect("every request is answered")).or_default() += 1;
    }
    assert!(counts.len() == 3 && counts.values().all(|n| *n > 60), "seed_022: {counts:?}");
}

#[test]
fn seed_020_udp_and_several_ports() {
    let world = world();
    let kubectl = world.namespace("row-20");
    kubectl.apply(&deployment("echo", ECHO, 1, 80)).ok();
    kubectl
        .apply(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: echo\nspec:\n  selector:\n    app: echo\n  ports:\n  \
             - name: web\n    port: 80\n  - name: tcp\n    port: 7\n  - name: udp\n    port: 7\n    protocol: UDP\n",
        )
        .ok();
    world.endpoints(&kubectl, "echo", 1);
    let address = cluster_ip(&kubectl, "echo");
    let client = world.toolbox(&kubectl, "row-20-client");
    for place in [world.node(), client] {
        answers(&place, &format!("{address}:80"), "/hostname");
        let udp = || {
            place.enter(|| {
                let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
                socket.set_read_timeout(Some(std::time::Duration::from_secs(2)))?;
                socket.connect(format!("{address}:7"))?;
                socket.send(b"portolan")?;
                let mut answer = [0; 512];
                let size = socket.recv(&mut answer)?;
                Ok(String::from_utf8_lossy(&answer[..size]).into_owned())
            })
        };
        let said = until(SOON, "an answer over UDP", || udp().map_err(|e| format!("{e:#}")));
        assert!(said.contains("portolan") || said.contains("echo"), "seed_020: {said}");
    }
}

#[test]
fn a_pod_reaches_itself_through_its_own_service() {
    let world = world();
    let kubectl = world.namespace("hairpin");
    kubectl.apply(&backend(1)).ok();
    kubectl.apply(&example("articles/backend-service.yaml")).ok();
    let name = world.ready_pods(&kubectl, "app=backend", 1).remove(0);
    world.endpoints(&kubectl, "backend-service", 1);
    let said = answers(&world.pod(&name), &format!("{}:80", cluster_ip(&kubectl, "backend-service")), "/hostname");
    assert_eq!(said, name);
}

#[test]
fn seed_025_port_forward() {
    let world = world();
    // One after the other: the port is the same.
    for kubectl in world.namespaces("row-25") {
        kubectl.apply(&backend(1)).ok();
        kubectl.apply(&example("articles/backend-service.yaml")).ok();
        world.endpoints(&kubectl, "backend-service", 1);
        let mut child = kubectl.stream("port-forward svc/backend-service 8080:80").expect("kubectl");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        // The Service's port 80 is the pods' 8080, which is the one that is forwarded.
        assert_eq!(lines.next().expect("a line").expect("text"), "Forwarding from 127.0.0.1:8080 -> 8080");
        assert_eq!(lines.next().expect("a line").expect("text"), "Forwarding from [::1]:8080 -> 8080");
        for _ in 0..3 {
            answers(&world.node(), "127.0.0.1:8080", "/");
            assert_eq!(lines.next().expect("a line").expect("text"), "Handling connection for 8080");
        }
        answers(&world.node(), "[::1]:8080", "/");
        child.kill().expect("it runs");
        child.wait().expect("it ends");
    }
}

#[test]
fn seed_158_159_160_161_the_endpoints_of_a_service() {
    let world = world();
    for kubectl in world.namespaces("row-158") {
        kubectl.apply(&example("articles/backend-service.yaml")).ok();
        let none = until(SOON, "an Endpoints object", || kubectl.run("get endpoints backend-service").result());
        assert_eq!(Table::parse(&none).cell(0, "ENDPOINTS"), "<none>", "seed_159");
        kubectl.apply(&backend(2)).ok();
        let mut pods = world.endpoints(&kubectl, "backend-service", 2);
        pods.sort_by_key(|p| p.parse::<std::net::Ipv4Addr>().expect("an address"));
        let table = Table::parse(&kubectl.run("get endpoints backend-service").ok());
        assert_eq!(table.cell(0, "ENDPOINTS"), format!("{}:8080,{}:8080", pods[0], pods[1]), "seed_159");

        let object = json(&kubectl.run("get ep backend-service -o json").ok()).expect("json");
        assert_eq!((&object["apiVersion"], &object["kind"]), (&"v1".into(), &"Endpoints".into()), "seed_161");
        let subset = &object["subsets"][0];
        assert_eq!(subset["ports"], serde_json::json!([{"name": "http", "port": 8080, "protocol": "TCP"}]));
        for address in subset["addresses"].as_array().expect("addresses") {
            assert_eq!(address["targetRef"]["kind"], "Pod", "seed_161: {address}");
            assert_eq!(address["nodeName"], "portolan", "seed_161: {address}");
        }
        let yaml = kubectl.run("get ep backend-service -o yaml").ok();
        assert!(yaml.contains(&format!("ip: {}", pods[0])), "seed_158: {yaml}");

        let described = kubectl.run("describe endpoints backend-service").ok();
        let words = [
            "Name:",
            "Namespace:",
            "Labels:",
            "Annotations:",
            "Subsets:",
            "Addresses:",
            "NotReadyAddresses:",
            "Ports:",
            "Name",
            "----",
            "http",
            "Events:",
        ];
        in_order(&described, &words);
        assert!(described.contains(&format!("Addresses:          {},{}", pods[0], pods[1])), "seed_160: {described}");

        kubectl.run("scale deploy backend --replicas=5").ok();
        world.endpoints(&kubectl, "backend-service", 5);
        let table = Table::parse(&kubectl.run("get endpoints backend-service").ok());
        assert!(table.cell(0, "ENDPOINTS").ends_with(" + 2 more..."), "seed_159: {table:?}");
        let slices = kubectl.run("get endpointslices -l kubernetes.io/service-name=backend-service").ok();
        let table = Table::parse(&slices);
        assert_eq!(table.columns, ["NAME", "ADDRESSTYPE", "PORTS", "ENDPOINTS", "AGE"]);
        assert_eq!((table.cell(0, "ADDRESSTYPE"), table.cell(0, "PORTS")), ("IPv4", "8080"), "{slices}");
        kubectl.run("delete deploy backend --wait=false").ok();
    }
}

/// Each word starts a line (after blanks), in this order.
#[track_caller]
fn in_order(text: &str, words: &[&str]) {
    let mut lines = text.lines();
    for word in words {
        assert!(lines.any(|l| l.trim_start().starts_with(word)), "no line starts with {word:?} in its place:\n{text}");
    }
}

#[test]
fn seed_182_apply_creates_leaves_alone_and_changes() {
    let world = world();
    let manifest = "apiVersion: v1\nkind: Service\nmetadata:\n  name: my-service\n  labels:\n    tier: web\nspec:\n  \
        selector:\n    app: web\n  ports:\n  - name: http\n    port: 80\n  - name: extra\n    port: 81\n";
    for kubectl in world.namespaces("row-182") {
        let file = world.lab.dir().join(format!("service-{}.yaml", kubectl.label));
        std::fs::write(&file, manifest).expect("a file");
        let apply = format!("apply -f {}", file.display());
        assert_eq!(kubectl.run(&apply).ok(), "service/my-service created\n");
        assert_eq!(kubectl.run(&apply).ok(), "service/my-service unchanged\n");
        let less = manifest.replace("  labels:\n    tier: web\n", "").replace("  - name: extra\n    port: 81\n", "");
        std::fs::write(&file, less.replace("port: 80", "port: 8080")).expect("a file");
        assert_eq!(kubectl.run(&apply).ok(), "service/my-service configured\n");
        assert_eq!(kubectl.jsonpath("svc my-service", "{.metadata.labels}").ok(), "", "dropped fields go");
        assert_eq!(kubectl.jsonpath("svc my-service", "{.spec.ports[*].port}").ok(), "8080");
        assert_eq!(kubectl.run(&apply).ok(), "service/my-service unchanged\n");
    }
}

#[test]
fn seed_183_184_create_service_and_expose() {
    let world = world();
    for kubectl in world.namespaces("row-183") {
        assert_eq!(kubectl.run("create service clusterip my-svc --tcp=80:8080").ok(), "service/my-svc created\n");
        let service = json(&kubectl.run("get svc my-svc -o json").ok()).expect("json");
        assert_eq!(service["metadata"]["labels"], serde_json::json!({"app": "my-svc"}));
        assert_eq!(service["spec"]["selector"], serde_json::json!({"app": "my-svc"}));
        let port = serde_json::json!([{"name": "80-8080", "port": 80, "targetPort": 8080, "protocol": "TCP"}]);
        assert_eq!(service["spec"]["ports"], port, "seed_183");
        kubectl.run("create deployment nginx --image=nginx:1.19 --replicas=0").ok();
        let said = kubectl.run("expose deployment nginx --port=80 --target-port=8080").ok();
        assert_eq!(said, "service/nginx exposed\n", "seed_184");
        assert_eq!(kubectl.jsonpath("svc nginx", "{.spec.ports[0].targetPort}").ok(), "8080", "seed_184");
        let again = kubectl.run("expose deployment nginx --port=80").refused();
        assert_eq!(again, "Error from server (AlreadyExists): services \"nginx\" already exists\n");
        for kind in ["nodeport np --tcp=80", "loadbalancer lb --tcp=80", "externalname en --external-name=example.com"]
        {
            kubectl.run(&format!("create service {kind}")).ok();
        }
        assert!(kubectl.run("create service clusterip hl --clusterip=None").code == 0);
        let types = kubectl.jsonpath("svc", "{range .items[*]}{.metadata.name}={.spec.type} {end}").ok();
        assert_eq!(types, "en=ExternalName hl=ClusterIP lb=LoadBalancer my-svc=ClusterIP nginx=ClusterIP np=NodePort ");
    }
}

#[test]
fn seed_185_186_get_services() {
    let world = world();
    for kubectl in [world.kubectl(), world.old_kubectl()] {
        let table = Table::parse(&kubectl.run("get services").ok());
        let row = table.row("kubernetes").expect("the API's own Service");
        assert_eq!(row[..5], ["kubernetes", "ClusterIP", "10.96.0.1", "<none>", "443/TCP"], "seed_185");
        let table = Table::parse(&kubectl.run("get svc -o wide").ok());
        assert_eq!(table.columns.last().map(String::as_str), Some("SELECTOR"), "seed_186");
        assert_eq!(table.row("kubernetes").and_then(|r| r.last()).map(String::as_str), Some("<none>"), "seed_186");
    }
    let kubectl = world.namespace("row-186");
    kubectl.apply("apiVersion: v1\nkind: Service\nmetadata:\n  name: web\nspec:\n  selector:\n    app: web\n  ports:\n  - port: 80\n").ok();
    let table = Table::parse(&kubectl.run("get svc web -o wide").ok());
    assert_eq!(table.cell(0, "SELECTOR"), "app=web", "seed_186");
}

#[test]
fn seed_187_188_describe_and_delete() {
    let world = world();
    for kubectl in world.namespaces("row-187") {
        kubectl.apply(&example("articles/public-web.yaml").replace("public-web", "my-service")).ok();
        until(SOON, "an address", || {
            let ip = kubectl.jsonpath("svc my-service", "{.status.loadBalancer.ingress[0].ip}").result()?;
            if ip.is_empty() { Err("pending".to_owned()) } else { Ok(ip) }
        });
        let described = kubectl.run("describe service my-service").ok();
        let words = [
            "Name:",
            "Namespace:",
            "Labels:",
            "Annotations:",
            "Selector:",
            "Type:",
            "IP Family Policy:",
            "IP Families:",
            "IP:",
            "IPs:",
            "LoadBalancer Ingress:",
            "Port:",
            "TargetPort:",
            "NodePort:",
            "Endpoints:",
            "Session Affinity:",
            "External Traffic Policy:",
            "Events:",
        ];
        in_order(&described, &words);
        if kubectl.label == "new" {
            in_order(&described, &["External Traffic Policy:", "Internal Traffic Policy:", "Events:"]);
        }
        let said = kubectl.run("delete service my-service").ok();
        assert!(said.starts_with("service \"my-service\" deleted"), "seed_188: {said}");
        let gone = kubectl.run("get service my-service").refused();
        assert_eq!(gone, "Error from server (NotFound): services \"my-service\" not found\n", "seed_188");
        let namespace = kubectl.jsonpath("configmap kube-root-ca.crt", "{.metadata.namespace}").ok();
        until(SOON, "everything of it to be gone", || {
            let left = kubectl.run("get endpoints,endpointslices -o name").result()?;
            let name = world.dig(&format!("my-service.{namespace}.svc.cluster.local"));
            let list = testkit::program::portolan(&world.lab, "lb list").map_err(|e| e.to_string())?.result()?;
            let listed = list.contains(&format!("{namespace}/my-service"));
            if left.is_empty() && name.contains("NXDOMAIN") && !listed {
                Ok(())
            } else {
                Err(format!("{left}{name}{list}"))
            }
        });
    }
}

#[test]
fn get_in_every_form() {
    let world = world();
    for kubectl in world.namespaces("forms") {
        kubectl.apply(&deployment("web", ECHO, 1, 80)).ok();
        let pod = world.ready_pods(&kubectl, "app=web", 1).remove(0);
        assert_eq!(kubectl.run("get pods -l app=web -o name").ok(), format!("pod/{pod}\n"));
        assert_eq!(kubectl.run("get pods -l app!=web -o name").ok(), "");
        assert_eq!(kubectl.run("get pods -l app=none").stderr.lines().next(), Some(no_resources(&kubectl).as_str()));
        assert!(kubectl.run(&format!("get pod {pod} -o yaml")).ok().starts_with("apiVersion: v1\nkind: Pod\n"));
        assert_eq!(
            kubectl.run(&format!("get pods --field-selector=metadata.name={pod} -o name")).ok().lines().count(),
            1
        );
        let all = kubectl.run("get pods -A").ok();
        assert!(all.starts_with("NAMESPACE ") && all.contains(&pod), "{all}");
        let everything = kubectl.run("get all").ok();
        for kind in ["pod/", "deployment.apps/web", "replicaset.apps/web-"] {
            assert!(everything.contains(kind), "{everything}");
        }
        assert_eq!(kubectl.run("get deploy,rs -o name").ok().lines().count(), 2);
        let table = Table::parse(&kubectl.run("get deploy web").ok());
        assert_eq!(table.columns, ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"]);
        assert_eq!(table.rows[0][..4], ["web", "1/1", "1", "1"]);
        let said = kubectl.run("wait --for=condition=available deploy/web --timeout=30s").ok();
        assert_eq!(said, "deployment.apps/web condition met\n");
        let said = kubectl.run(&format!("wait --for=condition=Ready pod/{pod} --timeout=30s")).ok();
        assert_eq!(said, format!("pod/{pod} condition met\n"));
        let said = kubectl.run("describe deploy web").ok();
        in_order(
            &said,
            &["Name:", "Selector:", "Replicas:", "StrategyType:", "Pod Template:", "Conditions:", "Events:"],
        );
    }
}

fn no_resources(kubectl: &Kubectl) -> String {
    format!("No resources found in forms-{} namespace.", kubectl.label)
}

#[test]
fn get_watch_shows_what_happens() {
    let world = world();
    for kubectl in world.namespaces("watched") {
        let mut child = kubectl.stream("get services -w --no-headers").expect("kubectl");
        let output = child.stdout.take().expect("a pipe");
        let (send, lines) = mpsc::channel();
        let reader = std::thread::spawn(move || {
            BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| send.send(line)).ok();
        });
        // The watch may begin before or after the first creation: either way it must show it.
        kubectl.run("create service clusterip one --tcp=80").ok();
        assert!(lines.recv_timeout(SOON).expect("a line").starts_with("one "));
        kubectl.run("create service clusterip two --tcp=80").ok();
        let mut line = lines.recv_timeout(SOON).expect("a line");
        while line.starts_with("one ") {
            line = lines.recv_timeout(SOON).expect("a line");
        }
        assert!(line.starts_with("two "), "{line}");
        kubectl.run("delete service one").ok();
        assert!(lines.recv_timeout(SOON).expect("a line").starts_with("one "));
        child.kill().expect("it runs");
        child.wait().expect("it ends");
        reader.join().expect("the reader ends");
    }
}

#[test]
fn logs_as_they_are_written() {
    let world = world();
    for kubectl in world.namespaces("logs") {
        let name = format!("talker-{}", kubectl.label);
        let command = r#"["sh", "-c", "echo one; echo two >&2; echo three; exec sleep 86400"]"#;
        kubectl.apply(&portolan_tests::pod(&name, "busybox", command)).ok();
        world.ready_pods(&kubectl, &format!("app={name}"), 1);
        let all = until(SOON, "three lines", || {
            let said = kubectl.run(&format!("logs {name}")).result()?;
            if said.lines().count() == 3 { Ok(said) } else { Err(said) }
        });
        // Two pipes: the order between them is not promised.
        let mut lines: Vec<&str> = all.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["one", "three", "two"]);
        assert_eq!(kubectl.run(&format!("logs {name} --tail=1")).ok().lines().count(), 1);
        let stamped = kubectl.run(&format!("logs {name} --timestamps --tail=1")).ok();
        assert!(stamped.starts_with("20") && stamped.contains('T'), "{stamped}");
        let missing = kubectl.run("logs nobody").refused();
        let missing = missing.to_lowercase();
        assert!(missing.contains("error from server (notfound): pods \"nobody\" not found"), "{missing}");
    }
}
