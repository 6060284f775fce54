//! The articles' walks through a cluster, with stock kubectl: rows 1-3, 7-10, 26-39 and 199-204.

use std::collections::{BTreeMap, BTreeSet};

use portolan_tests::{LONG, SOON, World, answers, cluster_ip, deployment, example, json, text, world};
use testkit::table::Table;
use testkit::{Kubectl, until};

/// The letters generated names are made of.
const LETTERS: &str = "bcdfghjklmnpqrstvwxz2456789";

fn generated(part: &str, lengths: std::ops::RangeInclusive<usize>) -> bool {
    lengths.contains(&part.len()) && part.chars().all(|c| LETTERS.contains(c))
}

/// The Service article's first steps: a Deployment of nginx 1.19 and a Service over it.
fn nginx(world: &World, kubectl: &Kubectl) -> String {
    let said = kubectl.run("create deploy nginx --image=nginx:1.19").ok();
    assert_eq!(said, "deployment.apps/nginx created\n");
    let said = kubectl.run("expose deploy nginx --port=80 --target-port=80").ok();
    assert_eq!(said, "service/nginx exposed\n");
    world.ready_pods(kubectl, "app=nginx", 1);
    world.endpoints(kubectl, "nginx", 1);
    cluster_ip(kubectl, "nginx")
}

#[test]
fn seed_026_027_028_030_031_032_033_034_create_deploy_expose_and_look() {
    let world = world();
    for kubectl in world.namespaces("row-26") {
        let address = nginx(world, &kubectl);
        assert_eq!(kubectl.jsonpath("svc nginx", "{.spec.selector}").ok(), r#"{"app":"nginx"}"#);

        let printed = kubectl.run("get svc nginx").ok();
        let table = Table::parse(&printed);
        assert_eq!(table.columns, ["NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"]);
        let age = table.cell(0, "AGE").to_owned();
        assert_eq!(table.rows, [["nginx", "ClusterIP", &address, "<none>", "80/TCP", &age]], "{printed}");
        assert!(age.trim_end_matches('s').parse::<u32>().is_ok_and(|s| s < 120), "seed_033: an age below 2m: {age}");

        let pod = kubectl.jsonpath("pods -l app=nginx", "{.items[0].status.podIP}").ok();
        let table = Table::parse(&kubectl.run("get ep nginx").ok());
        assert_eq!(table.columns, ["NAME", "ENDPOINTS", "AGE"], "seed_030");
        assert_eq!(table.cell(0, "ENDPOINTS"), format!("{pod}:80"), "seed_030");
        assert_eq!(kubectl.jsonpath("ep nginx", "{.metadata.name}").ok(), "nginx", "seed_034");

        let table = Table::parse(&kubectl.run("get pods --selector=app=nginx -o wide").ok());
        let columns = ["NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE", "NOMINATED NODE", "READINESS GATES"];
        assert_eq!(table.columns, columns, "seed_031");
        let cells: Vec<&str> = ["READY", "STATUS", "RESTARTS", "IP", "NODE", "NOMINATED NODE", "READINESS GATES"]
            .map(|c| table.cell(0, c))
            .to_vec();
        assert_eq!(cells, ["1/1", "Running", "0", &pod, "portolan", "<none>", "<none>"], "seed_031");

        let name = table.cell(0, "NAME").to_owned();
        let parts: Vec<&str> = name.split('-').collect();
        assert!(matches!(parts[..], ["nginx", hash, id] if generated(hash, 8..=10) && generated(id, 5..=5)), "{name}");
        let hash = kubectl.jsonpath(&format!("pod {name}"), "{.metadata.labels.pod-template-hash}").ok();
        assert_eq!(hash, parts[1], "seed_032");
        assert_eq!(kubectl.run("get replicasets -o name").ok(), format!("replicaset.apps/nginx-{hash}\n"), "seed_032");

        kubectl.run("delete service nginx").ok();
        until(SOON, "the Endpoints to go with its Service", || match kubectl.run("get ep nginx") {
            gone if gone.code == 1 && gone.stderr.contains("NotFound") => Ok(()),
            still => Err(still.stdout),
        });
    }
}

#[test]
fn seed_001_002_003_pods_change_and_the_service_does_not() {
    let world = world();
    let kubectl = world.namespace("row-1");
    let address = nginx(world, &kubectl);
    let first = world.endpoints(&kubectl, "nginx", 1);
    kubectl.run("delete pod -l app=nginx --wait").ok();
    let status = kubectl.run("rollout status deploy nginx --timeout=60s").ok();
    assert!(status.contains("successfully rolled out"), "{status}");
    assert_eq!(cluster_ip(&kubectl, "nginx"), address, "seed_001");
    assert!(answers(&world.node(), &format!("{address}:80"), "/").contains("nginx"), "seed_001");
    let second = world.endpoints(&kubectl, "nginx", 1);
    assert_ne!(first, second, "seed_003: a new pod has a new address");
    for replicas in [5, 1, 3] {
        let said = kubectl.run(&format!("scale deploy nginx --replicas={replicas}")).ok();
        assert_eq!(said, "deployment.apps/nginx scaled\n");
        world.ready_pods(&kubectl, "app=nginx", replicas);
        world.endpoints(&kubectl, "nginx", replicas);
    }
    let addresses = kubectl.jsonpath("pods -l app=nginx", "{.items[*].status.podIP}").ok();
    let addresses: Vec<&str> = addresses.split(' ').collect();
    assert_eq!(addresses.iter().collect::<BTreeSet<_>>().len(), 3, "seed_003: {addresses:?}");
}

#[test]
fn seed_007_009_010_035_036_inside_by_name_outside_not_at_all() {
    let world = world();
    let kubectl = world.namespace("row-7");
    let address = nginx(world, &kubectl);
    let client = world.toolbox(&kubectl, "row-7-client");
    let page = client.sh("wget -qO- http://nginx").ok();
    assert!(page.contains("Welcome to nginx"), "{page}");
    let outside = world.outside().get(format!("{address}:80").parse().expect("an address"), "/");
    assert!(outside.is_err(), "seed_007: the outside reaches a ClusterIP");

    // The destination the pod sees is its own address.
    kubectl.apply(&deployment("echo", portolan_tests::ECHO, 2, 80)).ok();
    kubectl.run("expose deploy echo --port=80").ok();
    let pods = world.endpoints(&kubectl, "echo", 2);
    let address = cluster_ip(&kubectl, "echo");
    for place in [&world.node(), &client] {
        let said = answers(place, &format!("{address}:80"), "/");
        assert!(pods.iter().any(|p| said.contains(p)), "seed_035: {said} should name one of {pods:?}");
    }
    let names: BTreeSet<String> = client
        .get_many(format!("{address}:80").parse().expect("an address"), "/hostname", 100)
        .expect("requests")
        .into_iter()
        .collect::<Result<_, _>>()
        .expect("every request is answered");
    assert_eq!(names.len(), 2, "seed_009: {names:?}");

    let list = until(SOON, "the endpoints in the list of load balancers", || {
        let list = testkit::program::portolan(&world.lab, "lb list -o json").map_err(|e| format!("{e:#}"))?.result()?;
        let list = json(&list)?;
        let row =
            list.as_array().and_then(|rows| rows.iter().find(|r| r["namespace"] == "row-7" && r["name"] == "echo"));
        row.cloned().ok_or_else(|| list.to_string())
    });
    let targets: BTreeSet<String> = list["endpoints"].as_array().expect("endpoints").iter().map(text).collect();
    assert_eq!(targets, pods.iter().map(|p| format!("{p}:80")).collect(), "seed_036");
    assert!(list["reach"].to_string().contains(&format!("{address}:80")), "seed_036: {list}");
}

#[test]
fn seed_008_a_service_is_a_load_balancer_and_a_name() {
    let world = world();
    let kubectl = world.namespace("row-8");
    kubectl.run("create service clusterip eight --tcp=80:80").ok();
    let address = cluster_ip(&kubectl, "eight");
    let listed = || testkit::program::portolan(&world.lab, "lb list").expect("the program").ok();
    let name = "eight.row-8.svc.cluster.local";
    until(SOON, "the Service in the list", || {
        let list = listed();
        if list.matches(&format!("{address}:80")).count() == 1 { Ok(()) } else { Err(list) }
    });
    assert_eq!(world.dig(&format!("+short {name}")).trim(), address);
    // Nothing is behind it: refused at once, not left hanging.
    let socket: std::net::SocketAddr = format!("{address}:80").parse().expect("an address");
    until(SOON, "a refusal", || match world.node().get(socket, "/") {
        Err(e) if format!("{e:#}").contains("refused") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    kubectl.run("delete service eight").ok();
    until(SOON, "list and DNS to forget it", || {
        let (list, answer) = (listed(), world.dig(name));
        if !list.contains(&address) && answer.contains("NXDOMAIN") { Ok(()) } else { Err(format!("{list}\n{answer}")) }
    });
}

#[test]
fn seed_029_an_address_can_be_asked_for_once() {
    let world = world();
    for (kubectl, address) in world.namespaces("row-29").iter().zip(["10.102.97.154", "10.102.97.155"]) {
        let service = |name: &str| {
            format!(
                "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  clusterIP: {address}\n  ports:\n  - port: 80\n"
            )
        };
        kubectl.apply(&service("first")).ok();
        assert_eq!(cluster_ip(kubectl, "first"), address);
        let said = kubectl.apply(&service("second")).refused();
        assert!(said.starts_with(r#"The Service "second" is invalid: spec.clusterIPs: Invalid value:"#), "{said}");
        assert!(
            said.ends_with(&format!("failed to allocate IP {address}: provided IP is already allocated\n")),
            "{said}"
        );
        kubectl.run("delete service first").ok();
        kubectl.apply(&service("second")).ok();
    }
}

#[test]
fn seed_038_039_two_pods_share_the_load() {
    let world = world();
    let kubectl = world.namespace("row-38");
    let address = nginx(world, &kubectl);
    assert_eq!(kubectl.run("scale deploy nginx --replicas=2").ok(), "deployment.apps/nginx scaled\n");
    let mut pods = world.endpoints(&kubectl, "nginx", 2);
    pods.sort_by_key(|p| p.parse::<std::net::Ipv4Addr>().expect("an address"));
    let table = Table::parse(&kubectl.run("get ep nginx").ok());
    assert_eq!(table.cell(0, "ENDPOINTS"), format!("{}:80,{}:80", pods[0], pods[1]), "seed_038");
    let socket: std::net::SocketAddr = format!("{address}:80").parse().expect("an address");
    until(SOON, "both pods to answer", || {
        let names = world.node().get_many(socket, "/hostname", 100).map_err(|e| format!("{e:#}"))?;
        let names: BTreeSet<String> = names.into_iter().collect::<Result<_, _>>()?;
        if names.len() == 2 { Ok(()) } else { Err(format!("{names:?}")) }
    });
}

#[test]
fn seed_199_200_201_202_203_204_the_complete_example_word_for_word() {
    let world = world();
    let manifest = example("articles/complete-example.yaml");
    assert!(!manifest.is_ascii() && manifest.contains("image: nginx:1.25"), "seed_202: comments in Japanese");
    for kubectl in world.namespaces("row-199") {
        let said = kubectl.apply(&manifest).ok();
        let created =
            "deployment.apps/web-app created\nservice/web-app-internal created\nservice/web-app-external created\n";
        assert_eq!(said, created, "seed_202");
        let status = kubectl.run("rollout status deploy/web-app --timeout=120s").ok();
        assert!(status.ends_with("deployment \"web-app\" successfully rolled out\n"), "seed_199: {status}");
        assert_eq!(kubectl.jsonpath("svc web-app-internal", "{.spec.ports[0].targetPort}").ok(), "80", "seed_200");

        let inside = world.endpoints(&kubectl, "web-app-internal", 3);
        assert_eq!(inside, world.endpoints(&kubectl, "web-app-external", 3), "seed_203");

        let client = world.toolbox(&kubectl, &format!("row-200-{}", kubectl.label));
        let code = client.sh("curl -s -o /dev/null -w '%{http_code}' http://web-app-internal").ok();
        assert_eq!(code, "200", "seed_200");

        let external = until(LONG, "an external address", || {
            let ip = kubectl.jsonpath("svc web-app-external", "{.status.loadBalancer.ingress[0].ip}").result()?;
            if ip.is_empty() { Err("pending".to_owned()) } else { Ok(ip) }
        });
        for place in [world.node(), world.outside(), client] {
            assert!(answers(&place, &format!("{external}:80"), "/").contains("Welcome to nginx"), "seed_201");
        }
        let table = Table::parse(&kubectl.run("get svc web-app-external").ok());
        assert_eq!(table.cell(0, "EXTERNAL-IP"), external, "seed_201");

        let probe = kubectl.jsonpath("deploy web-app", "{.spec.template.spec.containers[0].readinessProbe}").ok();
        let probe = json(&probe).expect("a probe");
        let defaults = [("periodSeconds", 10), ("timeoutSeconds", 1), ("successThreshold", 1), ("failureThreshold", 3)];
        for (field, value) in defaults {
            assert_eq!(probe[field], value, "seed_204: {field}");
        }
        let described = kubectl.run("describe pod -l app=web-app").ok();
        let line = "http-get http://:80/ delay=0s timeout=1s period=10s #success=1 #failure=3";
        let readiness: Vec<&str> = described.lines().filter(|l| l.trim().starts_with("Readiness:")).collect();
        assert_eq!(readiness.len(), 3, "seed_204: {described}");
        assert!(readiness.iter().all(|l| l.trim().trim_start_matches("Readiness:").trim() == line), "{readiness:?}");
        assert_eq!(kubectl.apply(&manifest).ok(), created.replace("created", "unchanged"));
        kubectl.run("delete deploy web-app --wait=false").ok();
    }
}

#[test]
fn seed_037_the_picture_of_the_internal_load_balancer_is_live() {
    let world = world();
    let kubectl = world.namespace("row-37");
    kubectl.apply(&deployment("pictured", portolan_tests::ECHO, 1, 80)).ok();
    kubectl.run("expose deploy pictured --port=80").ok();
    let pods = world.endpoints(&kubectl, "pictured", 1);
    let address = cluster_ip(&kubectl, "pictured");
    let table = until(SOON, "the table of Services", || {
        let said = testkit::program::portolan(&world.lab, "services").map_err(|e| format!("{e:#}"))?.result()?;
        if said.contains(&pods[0]) { Ok(said) } else { Err(said) }
    });
    assert!(table.contains(&format!("{address}:80")) && table.contains("row-37/pictured"), "{table}");
}

#[test]
fn seed_065_the_choice_is_random_and_even() {
    let world = world();
    let kubectl = world.namespace("row-65");
    kubectl.apply(&deployment("even", portolan_tests::ECHO, 4, 80)).ok();
    kubectl.run("expose deploy even --port=80").ok();
    world.endpoints(&kubectl, "even", 4);
    let socket: std::net::SocketAddr = format!("{}:80", cluster_ip(&kubectl, "even")).parse().expect("an address");
    until(SOON, "four pods to answer", || {
        let names = world.node().get_many(socket, "/hostname", 60).map_err(|e| format!("{e:#}"))?;
        let names: BTreeSet<String> = names.into_iter().collect::<Result<_, _>>()?;
        if names.len() == 4 { Ok(()) } else { Err(format!("{names:?}")) }
    });
    // 11.345 is the chi-square bound for p = 0.01 and 3 degrees of freedom. A fair choice misses it once in a hundred
    // samples, so a miss asks for another sample; an unfair one misses all three.
    let mut last = String::new();
    for _ in 0..3 {
        let picks = world.node().get_many(socket, "/hostname", 1000).expect("requests");
        let picks: Vec<String> = picks.into_iter().collect::<Result<_, _>>().expect("every request is answered");
        let mut counts: BTreeMap<&str, f64> = BTreeMap::new();
        for pick in &picks {
            *counts.entry(pick).or_default() += 1.0;
        }
        let chi: f64 = counts.values().map(|n| (n - 250.0).powi(2) / 250.0).sum();
        let cycle = (4..picks.len()).filter(|&i| picks[i] == picks[i - 4]).count();
        if chi < 11.345 && counts.len() == 4 && cycle < 600 {
            return;
        }
        last = format!("chi-square {chi}, {counts:?}, {cycle} of 996 picks equal the fourth before");
    }
    panic!("{last}");
}
