//! `portolan dns` beside a running cluster, as in place of CoreDNS: rows 126, 127 and 228, and the reasons it gives.

use std::process::Stdio;

use portolan_tests::{SOON, World};
use testkit::{place::Running, program, until};

#[test]
fn seed_228_dns_alone_follows_any_api_server() {
    let world = World::start(&[]);
    let kubectl = world.kubectl();
    let corefile = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: coredns\n  namespace: kube-system\ndata:\n  Corefile: |\n    .:53 {\n        errors\n        kubernetes cluster.local {\n            ttl 7\n        }\n        hosts {\n            192.0.2.7 db.example\n        }\n        forward . 192.0.2.53\n    }\n";
    kubectl.apply(corefile).ok();
    let mut command = world.node().command(program::binary().expect("the program"));
    command.args(["dns", "--kubeconfig", "/var/lib/portolan/kubeconfig", "--listen", "127.0.0.1:5353"]);
    command.args(["--metrics", "127.0.0.1:5354", "--config-map", "kube-system/coredns"]);
    let _dns = Running::spawn(command.stdin(Stdio::null())).expect("it starts");
    let dig = |what: &str| {
        let said = world.node().sh(&format!("dig @127.0.0.1 -p 5353 +tries=1 +time=1 {what}"));
        said.result().unwrap_or_else(|e| e)
    };
    let shows = |what: &str, says: &str| {
        until(SOON, says, || {
            let said = dig(what).split_whitespace().collect::<Vec<_>>().join(" ");
            if said.contains(says) { Ok(()) } else { Err(said) }
        })
    };
    shows("kubernetes.default.svc.cluster.local", "7 IN A 10.96.0.1");
    // What apply has returned for is answered; the API server has no more to tell than the watch.
    kubectl
        .apply("apiVersion: v1\nkind: Service\nmetadata:\n  name: lonely\nspec:\n  clusterIP: None\n  selector: {app: x}\n")
        .ok();
    shows("lonely.default.svc.cluster.local", "no pod with an address matches its selector");
    assert_eq!(dig("+short db.example").trim(), "192.0.2.7");
    for (path, says) in
        [("ready", "Service: listed"), ("metrics", "portolan_dns_event_to_answer_seconds"), ("debug", "# sources")]
    {
        let page = world.node().sh(&format!("curl -s http://127.0.0.1:5354/{path}"));
        let page = page.result().unwrap_or_else(|e| e);
        assert!(page.contains(says), "{path}: {page}");
    }
}
