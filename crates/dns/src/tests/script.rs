use hickory_proto::op::Message;
use model::names::PodNames;

use super::*;

const EXAMPLE: &str = r#"
kind: Service
metadata: { name: nginx }
spec: { clusterIP: 10.102.97.154, clusterIPs: [10.102.97.154], selector: { app: nginx }, ports: [{ port: 80 }] }
---
kind: Service
metadata: { name: dual, namespace: production }
spec:
  clusterIPs: [10.96.0.7, "fd00:10:96::7"]
  clusterIP: 10.96.0.7
  ipFamilies: [IPv4, IPv6]
  ports: [{ name: web, port: 80 }, { name: dns, port: 53, protocol: UDP }]
---
kind: Service
metadata: { name: redis }
spec: { clusterIP: None, selector: { app: redis }, ports: [{ name: http, port: 8080 }] }
---
kind: EndpointSlice
metadata: { name: redis-a, labels: { kubernetes.io/service-name: redis } }
addressType: IPv4
ports: [{ name: http, port: 8080, protocol: TCP }]
endpoints:
- { addresses: [192.168.76.141], hostname: redis-0, conditions: { ready: true } }
- { addresses: [192.168.76.142], hostname: redis-1, conditions: { ready: true } }
- { addresses: [192.168.76.143], hostname: redis-2, conditions: { ready: false } }
---
kind: Service
metadata: { name: database-headless }
spec: { clusterIP: None, ports: [{ port: 5432 }] }
---
kind: EndpointSlice
metadata: { name: database-headless-a, labels: { kubernetes.io/service-name: database-headless } }
addressType: IPv4
ports: [{ name: "", port: 5432, protocol: TCP }]
endpoints:
- { addresses: [10.244.0.11], hostname: pod-0 }
- { addresses: [10.244.0.12], hostname: pod-1 }
---
kind: Service
metadata: { name: by-hand }
spec: { clusterIP: None }
---
kind: EndpointSlice
metadata: { name: by-hand-1, labels: { kubernetes.io/service-name: by-hand } }
addressType: IPv4
endpoints: [{ addresses: [192.0.2.10] }]
---
kind: Service
metadata: { name: waiting }
spec: { clusterIP: None, selector: { app: waiting } }
---
kind: EndpointSlice
metadata: { name: waiting-1, labels: { kubernetes.io/service-name: waiting } }
addressType: IPv4
endpoints: [{ addresses: [10.244.0.20], conditions: { ready: false }, targetRef: { kind: Pod, name: waiting-0, namespace: default } }]
---
kind: Service
metadata: { name: external-db }
spec: { type: ExternalName, externalName: database.example.com }
---
kind: Service
metadata: { name: inner }
spec: { type: ExternalName, externalName: nginx.default.svc.cluster.local }
---
kind: Service
metadata: { name: lost }
spec: { type: ExternalName, externalName: nobody.default.svc.cluster.local }
---
kind: Service
metadata: { name: circle }
spec: { type: ExternalName, externalName: circle.default.svc.cluster.local }
---
kind: Service
metadata: { name: literal }
spec: { type: ExternalName, externalName: 192.0.2.1 }
---
kind: Service
metadata: { name: kube-dns, namespace: kube-system }
spec: { clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10], ports: [{ name: dns, port: 53, protocol: UDP }] }
---
kind: Pod
metadata: { name: p }
spec: {}
status: { phase: Running, podIPs: [{ ip: 10.244.0.5 }] }
"#;

/// One line per record; the SOA's serial is the count of objects.
fn check(directory: &Directory, question: &str, want: &str) {
    let want: Vec<_> = want.trim().lines().map(str::trim).collect();
    assert_eq!(
        dig(directory, question)
            .replace("SOA ns.dns.cluster.local. hostmaster.cluster.local. 17 7200 1800 86400 5", "SOA"),
        want.join("\n"),
        "{question}"
    );
}

#[test]
fn seed_129_a_service_has_the_address_of_its_cluster_ip() {
    let d = directory(EXAMPLE);
    // Rows 129, 130 and 132: the A record, its value and its TTL.
    check(&d, "nginx.default.svc.cluster.local", "NOERROR aa\nnginx.default.svc.cluster.local. 30 IN A 10.102.97.154");
    check(&d, "nginx.default.svc.cluster.local AAAA", "NOERROR aa\nauth cluster.local. 5 IN SOA");
    check(
        &d,
        "dual.production.svc.cluster.local AAAA",
        "NOERROR aa\ndual.production.svc.cluster.local. 30 IN AAAA fd00:10:96::7",
    );
}

#[test]
fn seed_127_it_is_authoritative() {
    let d = directory(EXAMPLE);
    let d = &d;
    assert!(
        dig(d, "cluster.local SOA")
            .starts_with("NOERROR aa\ncluster.local. 30 IN SOA ns.dns.cluster.local. hostmaster.cluster.local.")
    );
    check(d, "cluster.local NS", "NOERROR aa\ncluster.local. 30 IN NS ns.dns.cluster.local.");
    check(d, "ns.dns.cluster.local", "NOERROR aa\nns.dns.cluster.local. 30 IN A 10.96.0.10");
    check(d, "cluster.local A", "NOERROR aa\nauth cluster.local. 5 IN SOA");
    check(d, "nope.default.svc.cluster.local", "NXDOMAIN aa\nauth cluster.local. 5 IN SOA");
    check(d, "dns-version.cluster.local TXT", "NOERROR aa\ndns-version.cluster.local. 30 IN TXT 1.1.0");
    check(d, "default.svc.cluster.local", "NOERROR aa\nauth cluster.local. 5 IN SOA");
}

#[test]
fn reasons_are_sent_to_those_who_can_read_them() {
    let d = directory(EXAMPLE);
    check(
        &d,
        "nope.default.svc.cluster.local A +edns",
        "NXDOMAIN aa\nauth cluster.local. 5 IN SOA\nEDE 0: namespace default has no Service nope",
    );
    check(
        &d,
        "waiting.default.svc.cluster.local A +edns",
        "NXDOMAIN aa\nauth cluster.local. 5 IN SOA\nEDE 0: headless Service default/waiting has no ready endpoints, 1 not ready",
    );
    check(
        &d,
        "nginx.default.svc.cluster.local MX +edns",
        "NOERROR aa\nauth cluster.local. 5 IN SOA\nEDE 0: the name exists and has no MX record",
    );
}

#[test]
fn seed_088_headless_has_all_ready_addresses() {
    let d = directory(EXAMPLE);
    check(
        &d,
        "redis.default.svc.cluster.local",
        "NOERROR aa
         redis.default.svc.cluster.local. 30 IN A 192.168.76.141
         redis.default.svc.cluster.local. 30 IN A 192.168.76.142",
    );
    check(&d, "by-hand.default.svc.cluster.local", "NOERROR aa\nby-hand.default.svc.cluster.local. 30 IN A 192.0.2.10");
}

#[test]
fn seed_082_headless_answers_with_pod_addresses() {
    let d = directory(EXAMPLE);
    let answer = dig(&d, "database-headless.default.svc.cluster.local");
    assert_eq!(answer.matches(" IN A 10.244.0.1").count(), 2);
}

#[test]
fn seed_104_stateful_pods_have_names() {
    let d = directory(EXAMPLE);
    check(
        &d,
        "redis-0.redis.default.svc.cluster.local",
        "NOERROR aa\nredis-0.redis.default.svc.cluster.local. 30 IN A 192.168.76.141",
    );
    check(
        &d,
        "redis-1.redis.default.svc.cluster.local",
        "NOERROR aa\nredis-1.redis.default.svc.cluster.local. 30 IN A 192.168.76.142",
    );
    check(&d, "redis-2.redis.default.svc.cluster.local", "NXDOMAIN aa\nauth cluster.local. 5 IN SOA");
}

#[test]
fn seed_092_srv_of_a_headless_service() {
    let d = directory(EXAMPLE);
    check(
        &d,
        "_http._tcp.redis.default.svc.cluster.local SRV",
        "NOERROR aa
         _http._tcp.redis.default.svc.cluster.local. 30 IN SRV 0 50 8080 redis-0.redis.default.svc.cluster.local.
         _http._tcp.redis.default.svc.cluster.local. 30 IN SRV 0 50 8080 redis-1.redis.default.svc.cluster.local.
         more redis-0.redis.default.svc.cluster.local. 30 IN A 192.168.76.141
         more redis-1.redis.default.svc.cluster.local. 30 IN A 192.168.76.142",
    );
    check(
        &d,
        "_web._tcp.dual.production.svc.cluster.local SRV",
        "NOERROR aa
         _web._tcp.dual.production.svc.cluster.local. 30 IN SRV 0 100 80 dual.production.svc.cluster.local.
         more dual.production.svc.cluster.local. 30 IN A 10.96.0.7
         more dual.production.svc.cluster.local. 30 IN AAAA fd00:10:96::7",
    );
    check(&d, "_tcp.dual.production.svc.cluster.local SRV", "NOERROR aa\nauth cluster.local. 5 IN SOA");
    check(&d, "_web._udp.dual.production.svc.cluster.local SRV", "NXDOMAIN aa\nauth cluster.local. 5 IN SOA");
}

#[test]
fn seed_083_srv_and_ptr_name_the_pods() {
    let d = directory(EXAMPLE);
    let answer = dig(&d, "database-headless.default.svc.cluster.local SRV");
    for n in 0..2 {
        assert!(answer.contains(&format!("5432 pod-{n}.database-headless.default.svc.cluster.local.")), "{answer}");
        check(
            &d,
            &format!("1{}.0.244.10.in-addr.arpa PTR", n + 1),
            &format!(
                "NOERROR aa\n1{}.0.244.10.in-addr.arpa. 30 IN PTR pod-{n}.database-headless.default.svc.cluster.local.",
                n + 1
            ),
        );
    }
}

#[test]
fn addresses_lead_back_to_services() {
    let d = directory(EXAMPLE);
    check(
        &d,
        "154.97.102.10.in-addr.arpa PTR",
        "NOERROR aa\n154.97.102.10.in-addr.arpa. 30 IN PTR nginx.default.svc.cluster.local.",
    );
    check(
        &d,
        "7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa PTR",
        "NOERROR aa
         7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa. 30 IN PTR dual.production.svc.cluster.local.",
    );
    check(&d, "9.0.96.10.in-addr.arpa PTR", "NXDOMAIN aa\nauth 96.10.in-addr.arpa. 5 IN SOA");
    check(&d, "0.96.10.in-addr.arpa PTR", "NOERROR aa\nauth 96.10.in-addr.arpa. 5 IN SOA");
}

#[test]
fn seed_073_external_name_is_a_cname() {
    let d = directory(EXAMPLE);
    let cname = "NOERROR aa\nexternal-db.default.svc.cluster.local. 30 IN CNAME database.example.com.";
    check(&d, "external-db.default.svc.cluster.local CNAME", cname);
    // Without recursion the CNAME is all there is to say, for every type.
    check(&d, "external-db.default.svc.cluster.local A +norec", cname);
    check(&d, "external-db.default.svc.cluster.local TXT +norec", cname);
    check(
        &d,
        "inner.default.svc.cluster.local",
        "NOERROR aa
         inner.default.svc.cluster.local. 30 IN CNAME nginx.default.svc.cluster.local.
         nginx.default.svc.cluster.local. 30 IN A 10.102.97.154",
    );
    check(
        &d,
        "lost.default.svc.cluster.local",
        "NXDOMAIN aa
         lost.default.svc.cluster.local. 30 IN CNAME nobody.default.svc.cluster.local.
         auth cluster.local. 5 IN SOA",
    );
    assert!(
        dig(&d, "circle.default.svc.cluster.local")
            .starts_with("SERVFAIL aa\ncircle.default.svc.cluster.local. 30 IN CNAME circle.")
    );
    assert!(
        dig(&d, "literal.default.svc.cluster.local A +edns").contains("EDE 0: externalName 192.0.2.1 is an address")
    );
}

#[test]
fn pod_names_have_their_address() {
    let d = directory(EXAMPLE);
    assert_eq!(d.zone().pods, PodNames::Verified);
    check(
        &d,
        "10-244-0-5.default.pod.cluster.local",
        "NOERROR aa\n10-244-0-5.default.pod.cluster.local. 30 IN A 10.244.0.5",
    );
    check(&d, "10-244-0-6.default.pod.cluster.local", "NXDOMAIN aa\nauth cluster.local. 5 IN SOA");
}

#[test]
fn letter_case_is_kept() {
    let d = directory(EXAMPLE);
    let mut asked = packet("nginx.default.svc.cluster.local");
    asked[13..18].copy_from_slice(b"NgInX");
    let answer = answer_to(&d, &asked, None, 0);
    assert_eq!(answer[12..18], *b"\x05NgInX");
    assert!(show(&answer).contains("10.102.97.154"));
}

#[test]
fn outside_names_are_refused_without_upstream() {
    let d = directory(EXAMPLE);
    assert!(dig(&d, "example.com A +edns").starts_with("REFUSED\nEDE 20: not a name of this cluster, and no upstream"));
    assert!(
        dig(&d, "example.com A +edns +norec").starts_with("REFUSED\nEDE 20: not a name of this cluster, and the query")
    );
    // The search path of a pod never leaves the zone.
    check(&d, "example.com.default.svc.cluster.local", "NXDOMAIN aa\nauth cluster.local. 5 IN SOA");
}

#[test]
fn nothing_is_denied_before_it_is_known() {
    let d = Directory::new(zone());
    assert_eq!(
        dig(&d, "nginx.default.svc.cluster.local A +edns"),
        "SERVFAIL\nEDE 14: the list of Service objects has not arrived from the API server yet"
    );
}

fn crowd(n: usize) -> Directory {
    let endpoints: String = (0..n).map(|i| format!("- {{ addresses: [10.244.{}.{}] }}\n", i / 256, i % 256)).collect();
    let slice = format!(
        "kind: EndpointSlice\nmetadata: {{ name: crowd-1, labels: {{ kubernetes.io/service-name: crowd }} }}\naddressType: IPv4\nports: [{{ name: http, port: 80 }}]\nendpoints:\n{endpoints}"
    );
    directory(&format!("kind: Service\nmetadata: {{ name: crowd }}\nspec: {{ clusterIP: None }}\n---\n{slice}"))
}

#[test]
fn what_does_not_fit_is_a_whole_subset_that_turns() {
    let d = crowd(300);
    let question = "crowd.default.svc.cluster.local";
    let mut first = std::collections::BTreeSet::new();
    for turn in 0..300 {
        let plain = Message::from_vec(&answer_to(&d, &packet(question), None, turn)).unwrap();
        assert!(plain.metadata.truncation);
        // 12 octets of header, 37 of question, 16 for each record.
        assert_eq!(plain.answers.len(), (512 - 12 - 37) / 16);
        first.insert(plain.answers[0].data.to_string());
    }
    assert_eq!(first.len(), 300);
    let tcp = answer_to(&d, &packet(question), Some(65535), 7);
    let whole = Message::from_vec(&tcp).unwrap();
    assert!(!whole.metadata.truncation);
    assert_eq!(whole.answers.len(), 300);
    assert_eq!(whole.answers[0].data.to_string(), "10.244.0.7");
    // Owner names are two octets each.
    assert_eq!(tcp.len(), 12 + 37 + 300 * 16);
}

#[test]
fn large_srv_sets_are_whole_over_tcp() {
    let d = crowd(1000);
    let question = packet("_http._tcp.crowd.default.svc.cluster.local SRV +edns");
    let whole = Message::from_vec(&answer_to(&d, &question, Some(65535), 3)).unwrap();
    assert_eq!((whole.answers.len(), whole.metadata.truncation), (1000, false));
    let cut = answer_to(&d, &question, None, 3);
    assert!(cut.len() <= 1232);
    assert!(Message::from_vec(&cut).unwrap().metadata.truncation);
}

#[test]
fn seed_089_each_address_comes_first_equally_often() {
    let d = directory(EXAMPLE);
    let mut turns = crate::serve::Turns::new();
    let asked = packet("redis.default.svc.cluster.local");
    let first = (0..4000).filter(|_| {
        let answer = answer_to(&d, &asked, None, turns.next().unwrap());
        Message::from_vec(&answer).unwrap().answers[0].data.to_string() == "192.168.76.141"
    });
    // Six standard deviations.
    assert!((1810..=2190).contains(&first.count()));
}
