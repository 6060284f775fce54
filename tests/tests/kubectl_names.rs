//! DNS and environment variables: rows 126-140, 144 and 148-157.

use std::collections::BTreeSet;

use portolan_tests::{ECHO, SOON, World, answers, cluster_ip, deployment, example, json, pod, world};
use testkit::lab::NODE_ADDRESS;
use testkit::{Kubectl, until};

fn service(name: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  selector:\n    app: {name}\n  ports:\n  - port: {port}\n"
    )
}

#[test]
fn seed_126_129_130_132_a_name_exists_as_soon_as_apply_returns() {
    let world = world();
    let kubectl = world.namespace("row-126");
    for i in 0..5 {
        let name = format!("nginx-{i}");
        kubectl.apply(&service(&name, 80)).ok();
        // Asked once, with no second try.
        let full = format!("{name}.row-126.svc.cluster.local.");
        let said = world.dig(&full);
        let address = cluster_ip(&kubectl, &name);
        let answer: Vec<&str> = said.lines().filter(|l| l.starts_with(&full)).collect();
        let words: Vec<Vec<&str>> = answer.iter().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(words, [[full.as_str(), "30", "IN", "A", &address]], "seed_129, seed_132: {said}");
        assert!(said.contains(";; ANSWER SECTION:"));
    }
}

#[test]
fn seed_127_the_server_is_authoritative() {
    let world = world();
    let said = world.dig("kubernetes.default.svc.cluster.local");
    let flags = said.lines().find(|l| l.starts_with(";; flags:")).expect("flags");
    assert!(flags.split(';').nth(2).is_some_and(|f| f.split_whitespace().any(|f| f == "aa")), "{flags}");
    let soa = world.dig("+noall +answer cluster.local SOA");
    assert!(soa.split_whitespace().any(|w| w == "SOA"), "{soa}");
    let unknown = world.dig("nobody.default.svc.cluster.local");
    assert!(unknown.contains("status: NXDOMAIN") && unknown.contains(";; AUTHORITY SECTION:"), "{unknown}");
    assert!(unknown.lines().any(|l| l.starts_with("cluster.local.") && l.contains("SOA")), "{unknown}");
    let no_data = world.dig("kubernetes.default.svc.cluster.local MX");
    assert!(
        no_data.contains("status: NOERROR") && no_data.contains("ANSWER: 0") && no_data.contains("SOA"),
        "{no_data}"
    );
    let tcp = world.dig("+tcp +short kubernetes.default.svc.cluster.local");
    assert_eq!(tcp.trim(), "10.96.0.1");
}

#[test]
fn seed_128_the_outside_asks_only_when_allowed() {
    let world = World::start(&[]);
    let ask = |server: &str| {
        let mut dig = world.outside().network_command("dig");
        dig.args(server.split_whitespace()).args([
            "+tries=1",
            "+time=1",
            "+short",
            "kubernetes.default.svc.cluster.local",
        ]);
        String::from_utf8_lossy(&dig.output().expect("dig").stdout).into_owned()
    };
    assert!(!ask("@10.96.0.10").contains("10.96.0.1\n"));
    let kubectl = world.kubectl();
    kubectl
        .run_with(&[
            "patch",
            "svc",
            "kube-dns",
            "-n",
            "kube-system",
            "--type",
            "merge",
            "-p",
            r#"{"spec":{"type":"NodePort"}}"#,
        ])
        .ok();
    let port = kubectl.jsonpath("svc kube-dns -n kube-system", "{.spec.ports[0].nodePort}").ok();
    until(SOON, "an answer on the node port", || {
        let said = ask(&format!("@{NODE_ADDRESS} -p {port}"));
        if said.trim() == "10.96.0.1" { Ok(()) } else { Err(said) }
    });
}

#[test]
fn seed_131_the_dns_service_has_the_tenth_address() {
    let kubectl = world().kubectl();
    let spec = json(&kubectl.jsonpath("svc -n kube-system kube-dns", "{.spec}").ok()).expect("json");
    assert_eq!(spec["clusterIP"], "10.96.0.10");
    let ports: BTreeSet<String> = spec["ports"]
        .as_array()
        .expect("ports")
        .iter()
        .map(|p| format!("{}/{}", p["port"], portolan_tests::text(&p["protocol"])))
        .collect();
    for port in ["53/UDP", "53/TCP"] {
        assert!(ports.contains(port), "{ports:?}");
    }
}

#[test]
fn seed_133_134_135_136_144_every_form_of_a_name() {
    let world = world();
    let here = world.namespace("row-133");
    let there = world.namespace("row-134");
    here.apply(&service("api-service", 80)).ok();
    let address = cluster_ip(&here, "api-service");
    let near = world.toolbox(&here, "row-133-client");
    let far = world.toolbox(&there, "row-134-client");
    let getent = |place: &testkit::Place, name: &str| place.sh(&format!("getent hosts {name}"));
    let full = "api-service.row-133.svc.cluster.local";
    for name in ["api-service", "api-service.row-133", "api-service.row-133.svc", full, &format!("{full}.")] {
        let said = getent(&near, name).ok();
        assert_eq!(said.split_whitespace().next(), Some(address.as_str()), "{name}: {said}");
    }
    for name in ["api-service.row-133", "api-service.row-133.svc", full, &format!("{full}.")] {
        let said = getent(&far, name).ok();
        assert_eq!(said.split_whitespace().next(), Some(address.as_str()), "{name}: {said}");
    }
    assert_eq!(getent(&far, "api-service").code, 2, "seed_133: the short name belongs to its own namespace");
    let resolver = near.read("/etc/resolv.conf").expect("a resolver configuration");
    let lines: BTreeSet<&str> = resolver.lines().map(str::trim).collect();
    let wanted = [
        "nameserver 10.96.0.10",
        "search row-133.svc.cluster.local svc.cluster.local cluster.local",
        "options ndots:5",
    ];
    assert_eq!(lines, BTreeSet::from(wanted));
}

#[test]
fn seed_137_138_139_140_a_service_of_another_namespace() {
    let world = world();
    let kubectl = world.kubectl();
    assert_eq!(kubectl.run("create ns production").ok(), "namespace/production created\n");
    assert_eq!(kubectl.apply(&example("articles/api-service.yaml")).ok(), "service/api-service created\n");
    let production = kubectl.within("production");
    production.apply(&deployment("api", ECHO, 1, 80)).ok();
    world.endpoints(&production, "api-service", 1);
    let inside = world.toolbox(&production, "row-138-client");
    let default = world.toolbox(&world.kubectl(), "row-139-client");
    answers(&inside, &format!("{}:80", cluster_ip(&production, "api-service")), "/");
    let curl = |place: &testkit::Place, url: &str| {
        place.sh(&format!("curl -sS --max-time 5 -o /dev/null -w '%{{http_code}}' {url}"))
    };
    assert_eq!(curl(&inside, "http://api-service").ok(), "200", "seed_138");
    assert_eq!(curl(&default, "http://api-service.production").ok(), "200", "seed_139");
    let unknown = curl(&default, "http://api-service");
    assert_eq!(unknown.code, 6, "seed_139: {unknown:?}");
    assert!(unknown.stderr.contains("Could not resolve host"), "seed_139: {unknown:?}");
    assert_eq!(curl(&default, "http://api-service.production.svc.cluster.local").ok(), "200", "seed_140");
}

#[test]
fn headless_names_and_named_ports() {
    let world = world();
    let kubectl = world.namespace("headless");
    kubectl.apply(&deployment("web", ECHO, 2, 80)).ok();
    kubectl
        .apply("apiVersion: v1\nkind: Service\nmetadata:\n  name: web\nspec:\n  clusterIP: None\n  selector:\n    app: web\n  ports:\n  - name: http\n    port: 80\n")
        .ok();
    let pods = world.endpoints(&kubectl, "web", 2);
    let name = "web.headless.svc.cluster.local";
    let answer = until(SOON, "both addresses", || {
        let said = world.dig(&format!("+short {name}"));
        let mut found: Vec<String> = said.lines().map(str::to_owned).collect();
        found.sort();
        if found.len() == 2 { Ok(found) } else { Err(said) }
    });
    assert_eq!(answer, pods);
    let mut first = BTreeSet::new();
    for _ in 0..40 {
        first.insert(world.dig(&format!("+short {name}")).lines().next().map(str::to_owned));
    }
    assert_eq!(first.len(), 2, "the first address changes: {first:?}");
    let srv = world.dig(&format!("+short _http._tcp.{name} SRV"));
    assert_eq!(srv.lines().count(), 2, "{srv}");
    assert!(
        srv.lines().all(|l| l.split_whitespace().nth(2) == Some("80") && l.ends_with(&format!(".{name}."))),
        "{srv}"
    );
}

#[test]
fn seed_076_077_names_of_the_outside_are_asked_there() {
    let world = world();
    let kubectl = world.namespace("row-76");
    assert_eq!(world.dig("+short www.iij.ad.jp").trim(), "202.232.2.180");
    assert!(world.dig("nobody.example.com").contains("status: NXDOMAIN"));
    kubectl.apply(&example("articles/nginx-external-name.yaml")).ok();
    let asked = world.upstream.asked();
    let name = "nginx.row-76.svc.cluster.local.";
    let said = world.dig(&format!("+noall +answer {name}"));
    let lines: Vec<Vec<&str>> = said.lines().map(|l| l.split_whitespace().collect()).collect();
    assert!(lines.len() == 2, "{said}");
    assert_eq!(lines[0], [name, "30", "IN", "CNAME", "www.iij.ad.jp."]);
    assert_eq!((lines[1][0], &lines[1][2..]), ("www.iij.ad.jp.", &["IN", "A", "202.232.2.180"][..]));
    assert!(lines[1][1].parse::<u32>().is_ok_and(|ttl| ttl <= 30), "seed_077: {said}");
    // Names of the cluster are never asked outside.
    world.dig("nobody.default.svc.cluster.local");
    assert!(world.upstream.asked() <= asked + 2);
}

/// The variables of a running pod, as it was started.
fn variables(world: &World, kubectl: &Kubectl, name: &str) -> BTreeSet<String> {
    kubectl.apply(&pod(name, "busybox", r#"["sleep", "86400"]"#)).ok();
    world.ready_pods(kubectl, &format!("app={name}"), 1);
    world.pod(name).environment().expect("an environment").into_iter().collect()
}

#[test]
fn seed_148_149_150_151_152_153_154_155_156_157_service_variables() {
    let world = world();
    let kubectl = world.namespace("row-148");
    let of = |all: &BTreeSet<String>, prefix: &str| -> Vec<String> {
        all.iter().filter(|v| v.starts_with(prefix)).cloned().collect()
    };
    let before = variables(world, &kubectl, "row-148-before");
    assert!(of(&before, "REDIS_MASTER").is_empty(), "seed_148: {before:?}");
    let ip = "10.96.0.233";
    kubectl.apply(&service("redis-master", 6379).replace("spec:\n", &format!("spec:\n  clusterIP: {ip}\n"))).ok();
    kubectl
        .apply(
            &service("two", 80)
                .replace("- port: 80", "- name: http\n    port: 80\n  - name: metrics-9\n    port: 9090"),
        )
        .ok();
    kubectl.apply(&service("none", 80).replace("spec:\n", "spec:\n  clusterIP: None\n")).ok();
    kubectl.run("create service externalname elsewhere --external-name=example.com").ok();
    let after = variables(world, &kubectl, "row-148-after");
    let expected = [
        format!("REDIS_MASTER_PORT=tcp://{ip}:6379"),
        format!("REDIS_MASTER_PORT_6379_TCP=tcp://{ip}:6379"),
        format!("REDIS_MASTER_PORT_6379_TCP_ADDR={ip}"),
        "REDIS_MASTER_PORT_6379_TCP_PORT=6379".to_owned(),
        "REDIS_MASTER_PORT_6379_TCP_PROTO=tcp".to_owned(),
        format!("REDIS_MASTER_SERVICE_HOST={ip}"),
        "REDIS_MASTER_SERVICE_PORT=6379".to_owned(),
    ];
    let found: BTreeSet<String> = of(&after, "REDIS_MASTER").into_iter().collect();
    assert_eq!(found, BTreeSet::from(expected), "seed_149 to seed_155");
    let two = of(&after, "TWO_");
    // Seven for the first port, four for the next, and one more for each name.
    assert_eq!(two.len(), 13, "seed_155: {two:?}");
    for variable in ["TWO_SERVICE_PORT_HTTP=80", "TWO_SERVICE_PORT_METRICS_9=9090"] {
        assert!(after.contains(variable), "seed_150: {two:?}");
    }
    assert!(of(&after, "NONE_").is_empty() && of(&after, "ELSEWHERE_").is_empty(), "seed_156: {after:?}");

    let plain = pod("row-156-plain", "busybox", r#"["sleep", "86400"]"#)
        .replace("spec:\n", "spec:\n  enableServiceLinks: false\n");
    kubectl.apply(&plain).ok();
    world.ready_pods(&kubectl, "app=row-156-plain", 1);
    let plain: BTreeSet<String> =
        world.pod("row-156-plain").environment().expect("an environment").into_iter().collect();
    assert!(of(&plain, "REDIS_MASTER").is_empty(), "seed_156: {plain:?}");
    for all in [&before, &after, &plain] {
        for variable in ["KUBERNETES_SERVICE_HOST=10.96.0.1", "KUBERNETES_SERVICE_PORT=443"] {
            assert!(all.contains(variable), "seed_156: {all:?}");
        }
    }
}
