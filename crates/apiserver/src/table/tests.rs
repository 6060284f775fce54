use serde_json::json;

use super::*;
use crate::kinds;

/// 2026-11-21T00:00:00Z plus what a test adds.
const T0: i64 = 1_795_219_200;

fn print(plural: &str, object: Value, after: i64) -> (Vec<String>, Vec<String>) {
    let kind = kinds::all().iter().find(|k| k.plural == plural).expect("kind");
    let mut object = object;
    object["metadata"]["creationTimestamp"] = "2026-11-21T00:00:00Z".into();
    let t = table(kind, TableVersion::V1, &json!({}), &[&object], IncludeObject::Metadata, false, T0 + after);
    let columns = t["columnDefinitions"].as_array().expect("columns");
    let cells = t["rows"][0]["cells"].as_array().expect("cells");
    assert_eq!(columns.len(), cells.len(), "{plural}");
    let names = columns.iter().map(|c| c["name"].as_str().expect("name").to_uppercase()).collect();
    let cells = cells.iter().map(|c| c.as_str().map_or_else(|| c.to_string(), str::to_owned)).collect();
    (names, cells)
}

fn pod(status: Value) -> Value {
    json!({"metadata": {"name": "nginx-7b54d48599-2j79v"}, "spec": {"nodeName": "n1", "containers": [{"name": "c"}]}, "status": status})
}

fn status_of(pod: Value) -> [String; 3] {
    let (_, cells) = print("pods", pod, 3600);
    [cells[1].clone(), cells[2].clone(), cells[3].clone()]
}

#[test]
fn every_printer_fits_its_columns_even_on_nothing() {
    for kind in kinds::all() {
        for object in [json!({}), json!({"metadata": null, "spec": [], "status": "x"}), json!(null)] {
            let t = table(kind, TableVersion::V1, &json!({}), &[&object], IncludeObject::None, false, 0);
            let columns = t["columnDefinitions"].as_array().expect("columns").len();
            assert_eq!(t["rows"][0]["cells"].as_array().map(Vec::len), Some(columns), "{}", kind.kind);
        }
    }
}

#[test]
fn seed_028_service_columns() {
    let s = json!({"metadata": {"name": "nginx"}, "spec": {"type": "ClusterIP", "clusterIP": "10.102.97.154",
        "clusterIPs": ["10.102.97.154"], "ports": [{"port": 80, "protocol": "TCP"}], "selector": {"app": "web"}}});
    let (header, row) = print("services", s, 98);
    assert_eq!(header, ["NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE", "SELECTOR"]);
    assert_eq!(row, ["nginx", "ClusterIP", "10.102.97.154", "<none>", "80/TCP", "98s", "app=web"]);
}

#[test]
fn seed_075_external_name_and_others() {
    let row = |spec: Value, status: Value| {
        print("services", json!({"metadata": {"name": "nginx"}, "spec": spec, "status": status}), 68).1
    };
    assert_eq!(
        row(json!({"type": "ExternalName", "externalName": "www.iij.ad.jp"}), json!({}))[..6],
        ["nginx", "ExternalName", "<none>", "www.iij.ad.jp", "<none>", "68s"]
    );
    assert_eq!(
        row(json!({"type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"]}), json!({}))[2..5],
        ["None", "<none>", "<none>"]
    );
    let np = json!({"type": "NodePort", "clusterIPs": ["10.96.0.3"], "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}]});
    assert_eq!(row(np, json!({}))[4], "80:30080/TCP");
    let lb = json!({"type": "LoadBalancer", "clusterIPs": ["10.96.0.3"]});
    assert_eq!(row(lb.clone(), json!({}))[3], "<pending>");
    assert_eq!(row(lb, json!({"loadBalancer": {"ingress": [{"ip": "10.112.0.1"}]}}))[3], "10.112.0.1");
}

#[test]
fn seed_172_multi_port_services() {
    let ports =
        json!([{"port": 80, "protocol": "TCP"}, {"port": 443, "protocol": "TCP"}, {"port": 9090, "protocol": "TCP"}]);
    let s = json!({"metadata": {"name": "m"}, "spec": {"type": "ClusterIP", "ports": ports}});
    assert_eq!(print("services", s, 0).1[4], "80/TCP,443/TCP,9090/TCP");
}

#[test]
fn seed_030_038_086_159_endpoints() {
    let ep = |subsets: Value| print("endpoints", json!({"metadata": {"name": "nginx"}, "subsets": subsets}), 106);
    let ips = |n: usize| (1..=n).map(|i| json!({"ip": format!("192.168.76.{}", 140 + i)})).collect::<Vec<_>>();
    let (header, row) = ep(json!([{"addresses": ips(1), "ports": [{"port": 80}]}]));
    assert_eq!(header, ["NAME", "ENDPOINTS", "AGE"]);
    assert_eq!(row, ["nginx", "192.168.76.141:80", "106s"]);
    assert_eq!(ep(json!([{"addresses": ips(2), "ports": [{"port": 80}]}])).1[1], "192.168.76.141:80,192.168.76.142:80");
    assert_eq!(ep(json!([{"addresses": ips(2)}])).1[1], "192.168.76.141,192.168.76.142");
    assert_eq!(
        ep(json!([{"addresses": ips(5), "ports": [{"port": 80}]}])).1[1],
        "192.168.76.141:80,192.168.76.142:80,192.168.76.143:80 + 2 more..."
    );
    assert_eq!(ep(json!([{"notReadyAddresses": ips(1), "ports": [{"port": 80}]}])).1[1], "<none>");
    assert_eq!(ep(Value::Null).1[1], "<none>");
    assert_eq!(ep(json!([{"addresses": [{"ip": "fd00::1"}], "ports": [{"port": 80}]}])).1[1], "[fd00::1]:80");
}

#[test]
fn seed_163_endpoint_slices() {
    let s = json!({"metadata": {"name": "backend-service-abcde"}, "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}],
        "endpoints": [{"addresses": ["10.244.1.5"]}, {"addresses": ["10.244.2.7"]}]});
    let (header, row) = print("endpointslices", s, 5);
    assert_eq!(header, ["NAME", "ADDRESSTYPE", "PORTS", "ENDPOINTS", "AGE"]);
    assert_eq!(row, ["backend-service-abcde", "IPv4", "8080", "10.244.1.5,10.244.2.7", "5s"]);
    let (_, row) = print("endpointslices", json!({"metadata": {}, "addressType": "IPv4"}), 0);
    assert_eq!(row[2..4], ["<unset>", "<unset>"]);
}

#[test]
fn seed_031_pod_columns() {
    let p = pod(json!({"phase": "Running", "podIP": "192.168.76.141", "podIPs": [{"ip": "192.168.76.141"}],
        "containerStatuses": [{"name": "c", "ready": true, "restartCount": 0, "state": {"running": {}}}]}));
    let (header, row) = print("pods", p, 194);
    assert_eq!(
        header,
        ["NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE", "NOMINATED NODE", "READINESS GATES"]
    );
    assert_eq!(
        row,
        ["nginx-7b54d48599-2j79v", "1/1", "Running", "0", "3m14s", "192.168.76.141", "n1", "<none>", "<none>"]
    );
}

#[test]
fn pod_statuses() {
    let waiting = |reason: &str| {
        pod(
            json!({"phase": "Pending", "containerStatuses": [{"name": "c", "ready": false, "restartCount": 0, "state": {"waiting": {"reason": reason}}}]}),
        )
    };
    for reason in ["ContainerCreating", "ErrImagePull", "ImagePullBackOff"] {
        assert_eq!(status_of(waiting(reason)), ["0/1", reason, "0"]);
    }
    assert_eq!(status_of(pod(json!({"phase": "Pending"}))), ["0/1", "Pending", "0"]);
    let crash = pod(json!({"phase": "Running", "containerStatuses": [{"name": "c", "ready": false, "restartCount": 2,
        "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": {"exitCode": 1, "finishedAt": "2026-11-21T00:59:55Z"}}}]}));
    assert_eq!(status_of(crash), ["0/1", "CrashLoopBackOff", "2 (5s ago)"]);
    let done = pod(
        json!({"phase": "Succeeded", "containerStatuses": [{"name": "c", "restartCount": 0, "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]}),
    );
    assert_eq!(status_of(done), ["0/1", "Completed", "0"]);
    let failed = pod(
        json!({"phase": "Failed", "containerStatuses": [{"name": "c", "restartCount": 0, "state": {"terminated": {"exitCode": 3}}}]}),
    );
    assert_eq!(status_of(failed), ["0/1", "ExitCode:3", "0"]);
    let mut going = pod(
        json!({"phase": "Running", "containerStatuses": [{"name": "c", "ready": true, "restartCount": 0, "state": {"running": {}}}]}),
    );
    going["metadata"]["deletionTimestamp"] = "2026-11-21T00:00:10Z".into();
    assert_eq!(status_of(going), ["1/1", "Terminating", "0"]);
}

#[test]
fn init_containers_and_sidecars() {
    let mut p = pod(json!({"phase": "Pending", "initContainerStatuses": [
        {"name": "i", "ready": false, "restartCount": 0, "state": {"running": {}}}],
        "containerStatuses": [{"name": "c", "ready": false, "restartCount": 0, "state": {"waiting": {"reason": "PodInitializing"}}}]}));
    p["spec"]["initContainers"] = json!([{"name": "i"}]);
    assert_eq!(status_of(p.clone()), ["0/1", "Init:0/1", "0"]);
    p["status"]["initContainerStatuses"][0]["state"] = json!({"waiting": {"reason": "CrashLoopBackOff"}});
    assert_eq!(status_of(p.clone())[1], "Init:CrashLoopBackOff");
    p["status"]["initContainerStatuses"][0]["state"] = json!({"terminated": {"exitCode": 2}});
    assert_eq!(status_of(p.clone())[1], "Init:ExitCode:2");
    p["spec"]["initContainers"] = json!([{"name": "i", "restartPolicy": "Always"}]);
    p["status"] = json!({"phase": "Running", "initContainerStatuses": [{"name": "i", "started": true, "ready": true, "restartCount": 0, "state": {"running": {}}}],
        "containerStatuses": [{"name": "c", "ready": true, "restartCount": 0, "state": {"running": {}}}]});
    assert_eq!(status_of(p), ["2/2", "Running", "0"]);
}

#[test]
fn workloads() {
    let template = json!({"spec": {"containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "y"}]}});
    let d = json!({"metadata": {"name": "d"}, "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "d"}}, "template": template},
        "status": {"readyReplicas": 1, "updatedReplicas": 3, "availableReplicas": 1}});
    let (header, row) = print("deployments", d, 600);
    assert_eq!(header, ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE", "CONTAINERS", "IMAGES", "SELECTOR"]);
    assert_eq!(row, ["d", "1/3", "3", "1", "10m", "a,b", "x,y", "app=d"]);
    let j = json!({"metadata": {"name": "j"}, "spec": {"completions": 1, "template": template},
        "status": {"succeeded": 1, "startTime": "2026-11-21T00:00:00Z", "completionTime": "2026-11-21T00:00:07Z", "conditions": [{"type": "Complete", "status": "True"}]}});
    assert_eq!(print("jobs", j, 9).1[1..5], ["Complete", "1/1", "7s", "9s"]);
}

#[test]
fn nodes_and_events() {
    let n = json!({"metadata": {"name": "n1", "labels": {"node-role.kubernetes.io/control-plane": ""}},
        "spec": {"unschedulable": true}, "status": {"conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}], "nodeInfo": {"kubeletVersion": "v1.36.0"}}});
    assert_eq!(
        print("nodes", n, 60).1[..6],
        ["n1", "Ready,SchedulingDisabled", "control-plane", "60s", "v1.36.0", "10.0.0.1"]
    );
    let e = json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "p"}, "type": "Normal", "reason": "Started", "message": "Started it\n",
        "source": {"component": "kubelet", "host": "n1"}, "firstTimestamp": "2026-11-21T00:00:00Z", "lastTimestamp": "2026-11-21T00:00:10Z", "count": 4});
    assert_eq!(
        print("events", e, 30).1[..9],
        ["20s", "Normal", "Started", "pod/p", "", "kubelet, n1", "Started it", "30s", "4"]
    );
}

#[test]
fn rows_carry_what_was_asked_for() {
    let kind = kinds::find("", "v1", "configmaps").expect("kind");
    let object = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "a"}, "data": {"x": "y"}});
    let row = |include, version| table(kind, version, &json!({"resourceVersion": "7"}), &[&object], include, true, 0);
    let t = row(IncludeObject::Metadata, TableVersion::V1Beta1);
    assert_eq!(
        (&t["apiVersion"], &t["metadata"]["resourceVersion"], &t["columnDefinitions"]),
        (&json!("meta.k8s.io/v1beta1"), &json!("7"), &Value::Null)
    );
    assert_eq!(
        t["rows"][0]["object"],
        json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1beta1", "metadata": {"name": "a"}})
    );
    assert_eq!(row(IncludeObject::Object, TableVersion::V1)["rows"][0]["object"], object);
    assert!(row(IncludeObject::None, TableVersion::V1)["rows"][0]["object"].is_null());
}
