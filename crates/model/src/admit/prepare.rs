//! What a write changes silently before it is validated: the status belongs to `/status`, the generation to the server,
//! and a Service that changes its type gives up what the new type has no use for (upstream's `PrepareForCreate`,
//! `PrepareForUpdate` and, for Services, `NormalizeClusterIPs`, `patchAllocatedValues`, `dropTypeDependentFields`).

use serde_json::{Map, Value, json};

use super::service::{needs_cluster_ip, needs_external_policy, needs_health_check, needs_node_port, strings};

/// How `metadata.generation` moves.
#[derive(Clone, Copy, PartialEq)]
enum Generation {
    None,
    Spec,
    /// Deployments count a change of annotations too.
    SpecOrAnnotations,
    /// EndpointSlices have no spec: everything but metadata counts, and labels.
    Content,
}

fn generation(kind: &str) -> Generation {
    match kind {
        "Deployment" => Generation::SpecOrAnnotations,
        "EndpointSlice" => Generation::Content,
        "ReplicaSet"
        | "StatefulSet"
        | "DaemonSet"
        | "Job"
        | "Pod"
        | "Ingress"
        | "IngressClass"
        | "NetworkPolicy"
        | "PodDisruptionBudget" => Generation::Spec,
        _ => Generation::None,
    }
}

/// A create: drops the status and what only the server sets (`generation` becomes 1 where the kind has one). The caller has
/// set `metadata.uid` and the name before.
pub fn prepare_create(kind: &str, object: &mut Value) {
    let Some(meta) = metadata(object) else { return };
    for field in ["generation", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        meta.remove(field);
    }
    if generation(kind) != Generation::None {
        meta.insert("generation".into(), 1.into());
    }
    match kind {
        // A kubelet registers its node together with its status.
        "Node" => {}
        "Pod" => {
            object["status"] = json!({"phase": "Pending", "qosClass": qos_class(object)});
            admit_pod(object);
        }
        "Namespace" => {
            object["status"] = json!({"phase": "Active"});
            let finalizers = &mut object["spec"]["finalizers"];
            match finalizers.as_array_mut() {
                Some(list) if list.iter().any(|f| f == "kubernetes") => {}
                Some(list) => list.push("kubernetes".into()),
                None => *finalizers = json!(["kubernetes"]),
            }
        }
        "Service" => {
            object["status"] = json!({"loadBalancer": {}});
            let spec = &mut object["spec"];
            if strings(spec, "clusterIPs").is_empty()
                && let Some(ip) = spec["clusterIP"].as_str().filter(|ip| !ip.is_empty()).map(str::to_owned)
            {
                spec["clusterIPs"] = json!([ip]);
            }
        }
        "Ingress" => object["status"] = json!({"loadBalancer": {}}),
        "PersistentVolumeClaim" | "PersistentVolume" => object["status"] = json!({"phase": "Pending"}),
        "Deployment" | "PodDisruptionBudget" | "Job" => {
            object["status"] = json!({});
            if kind == "Job" {
                select_own_pods(object);
            }
        }
        "ReplicaSet" => object["status"] = json!({"replicas": 0}),
        "StatefulSet" => object["status"] = json!({"replicas": 0, "availableReplicas": 0}),
        "DaemonSet" => {
            object["status"] = json!({"currentNumberScheduled": 0, "numberMisscheduled": 0, "desiredNumberScheduled": 0, "numberReady": 0});
        }
        "ServiceCIDR" | "ResourceQuota" => {
            object["status"] = json!({});
        }
        _ => {}
    }
}

/// `metadata`, made when absent. `None` for what is no object.
fn metadata(object: &mut Value) -> Option<&mut Map<String, Value>> {
    let meta = object.as_object_mut()?.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    meta.as_object_mut()
}

/// An update of the main resource: keeps the old status, increments `metadata.generation` when the spec changed, and makes
/// the transitions upstream makes silently (a Service that becomes ExternalName loses its clusterIP, ...).
pub fn prepare_update(kind: &str, old: &Value, new: &mut Value) {
    if metadata(new).is_none() {
        return;
    }
    keep(old, new, "status");
    match kind {
        "Service" => prepare_service_update(old, new),
        // The finalizers of a namespace's spec belong to /finalize.
        "Namespace" => keep(old, new, "spec"),
        "Job" => {
            // The server made these on create; an applied manifest does not repeat them.
            let spec = &mut new["spec"];
            if let Some(selector) = old["spec"].get("selector").filter(|_| spec["selector"].is_null()) {
                spec["selector"] = selector.clone();
                let labels = old["spec"]["template"]["metadata"]["labels"].clone();
                merge_missing(&mut spec["template"]["metadata"]["labels"], &labels);
            }
        }
        "PersistentVolumeClaim" if new["spec"]["volumeName"].is_null() => {
            if let Some(bound) = old["spec"].get("volumeName") {
                new["spec"]["volumeName"] = bound.clone();
            }
        }
        _ => {}
    }
    update_generation(kind, old, new);
}

/// An update through `/status`: keeps everything but the status (and, as upstream, metadata that controllers write there).
pub fn prepare_status_update(kind: &str, old: &Value, new: &mut Value) {
    let mut result = old.clone();
    match new.get("status") {
        Some(status) => result["status"] = status.clone(),
        None => {
            if let Some(map) = result.as_object_mut() {
                map.remove("status");
            }
        }
    }
    // Optimistic concurrency is judged by what the client sent.
    match new["metadata"].get("resourceVersion") {
        Some(version) => result["metadata"]["resourceVersion"] = version.clone(),
        None => {
            if let Some(meta) = result["metadata"].as_object_mut() {
                meta.remove("resourceVersion");
            }
        }
    }
    // Kubelets and controllers label and annotate through /status too.
    for field in ["labels", "annotations", "finalizers", "ownerReferences"] {
        if matches!(kind, "Node" | "Pod" | "PersistentVolume" | "Service") {
            match new["metadata"].get(field) {
                Some(value) => result["metadata"][field] = value.clone(),
                None => {
                    if let Some(meta) = result["metadata"].as_object_mut() {
                        meta.remove(field);
                    }
                }
            }
        }
    }
    *new = result;
    if kind == "Service" {
        // `ipMode` of the addresses.
        super::default(kind, new);
    }
}

fn keep(old: &Value, new: &mut Value, field: &str) {
    match old.get(field) {
        Some(value) => new[field] = value.clone(),
        None => {
            if let Some(map) = new.as_object_mut() {
                map.remove(field);
            }
        }
    }
}

fn merge_missing(into: &mut Value, from: &Value) {
    let Some(from) = from.as_object() else { return };
    if !into.is_object() {
        *into = Value::Object(Map::new());
    }
    if let Some(into) = into.as_object_mut() {
        for (key, value) in from {
            into.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
}

fn update_generation(kind: &str, old: &Value, new: &mut Value) {
    let rule = generation(kind);
    if rule == Generation::None {
        keep_generation(old, new);
        return;
    }
    let changed = match rule {
        Generation::None => false,
        Generation::Spec => old.get("spec") != new.get("spec"),
        Generation::SpecOrAnnotations => {
            old.get("spec") != new.get("spec")
                || old["metadata"].get("annotations") != new["metadata"].get("annotations")
        }
        Generation::Content => {
            let content = |v: &Value| {
                v.as_object().map(|m| {
                    m.iter().filter(|(k, _)| *k != "metadata").map(|(k, v)| (k.clone(), v.clone())).collect::<Vec<_>>()
                })
            };
            content(old) != content(new) || old["metadata"].get("labels") != new["metadata"].get("labels")
        }
    };
    let before = old["metadata"]["generation"].as_i64().unwrap_or(1);
    new["metadata"]["generation"] = (before + i64::from(changed)).into();
}

fn keep_generation(old: &Value, new: &mut Value) {
    match old["metadata"].get("generation") {
        Some(g) => new["metadata"]["generation"] = g.clone(),
        None => {
            if let Some(meta) = metadata(new) {
                meta.remove("generation");
            }
        }
    }
}

fn prepare_service_update(old: &Value, new: &mut Value) {
    // The address is gone for the user at once, however long taking it down may last (as upstream).
    if new["spec"]["type"] != "LoadBalancer" {
        new["status"]["loadBalancer"] = json!({});
    }
    let before = &old["spec"];
    let after = &mut new["spec"];
    carry_allocated(before, after);
    sync_cluster_ips(before, after);
    drop_by_type(before, after);
}

/// Allocated values that the client did not repeat.
fn carry_allocated(before: &Value, after: &mut Value) {
    if needs_cluster_ip(before) && needs_cluster_ip(after) {
        if text(after, "clusterIP").is_empty() && !text(before, "clusterIP").is_empty() {
            after["clusterIP"] = before["clusterIP"].clone();
        }
        if strings(after, "clusterIPs").is_empty()
            && after["clusterIP"] == before["clusterIP"]
            && !before["clusterIPs"].is_null()
        {
            after["clusterIPs"] = before["clusterIPs"].clone();
        }
    }
    if needs_node_port(before) && needs_node_port(after) {
        let ports = |spec: &Value| -> Vec<(String, u64)> {
            let list = spec["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
            list.iter()
                .map(|p| (p["name"].as_str().unwrap_or_default().to_owned(), p["nodePort"].as_u64().unwrap_or(0)))
                .collect()
        };
        let known = ports(before);
        let mut used: Vec<u64> =
            ports(after).iter().map(|(_, n)| *n).filter(|n| known.iter().any(|(_, k)| k == n)).collect();
        for port in after.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            if port["nodePort"].as_u64().unwrap_or(0) != 0 {
                continue;
            }
            let name = port["name"].as_str().unwrap_or_default();
            let Some((_, number)) = known.iter().find(|(n, number)| n == name && *number != 0) else { continue };
            if !used.contains(number) {
                used.push(*number);
                port["nodePort"] = (*number).into();
            }
        }
    }
    if needs_health_check(before)
        && needs_health_check(after)
        && after["healthCheckNodePort"].is_null()
        && !before["healthCheckNodePort"].is_null()
    {
        after["healthCheckNodePort"] = before["healthCheckNodePort"].clone();
    }
}

/// `clusterIP` and `clusterIPs` say the same; a client that writes only one of them means both.
fn sync_cluster_ips(before: &Value, after: &mut Value) {
    let (old_ip, new_ip) = (text(before, "clusterIP").to_owned(), text(after, "clusterIP").to_owned());
    let (old_ips, new_ips) = (strings(before, "clusterIPs"), strings(after, "clusterIPs"));
    if !old_ips.is_empty() && new_ips.is_empty() && old_ip == new_ip {
        after["clusterIPs"] = json!(old_ips);
    } else if old_ip != new_ip && old_ips == new_ips {
        if new_ip.is_empty() {
            remove(after, "clusterIPs");
        } else {
            after["clusterIPs"] = json!([new_ip]);
        }
    }
}

/// Fields the new type has no use for, if the client did not touch them.
fn drop_by_type(before: &Value, after: &mut Value) {
    if needs_cluster_ip(before) && !needs_cluster_ip(after) {
        if strings(before, "clusterIPs") == strings(after, "clusterIPs") {
            remove(after, "clusterIP");
            remove(after, "clusterIPs");
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            drop_same(before, after, field);
        }
    }
    if needs_node_port(before) && !needs_node_port(after) {
        let old = node_ports(before);
        if node_ports(after).iter().all(|n| old.contains(n)) {
            for port in after.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
                remove(port, "nodePort");
            }
        }
    }
    if needs_health_check(before) && !needs_health_check(after) {
        drop_same(before, after, "healthCheckNodePort");
    }
    if text(before, "type") == "LoadBalancer" && text(after, "type") != "LoadBalancer" {
        drop_same(before, after, "allocateLoadBalancerNodePorts");
        drop_same(before, after, "loadBalancerClass");
    }
    if needs_external_policy(before) && !needs_external_policy(after) {
        drop_same(before, after, "externalTrafficPolicy");
    }
}

fn node_ports(spec: &Value) -> Vec<u64> {
    let list = spec["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().filter_map(|p| p["nodePort"].as_u64()).filter(|n| *n != 0).collect()
}

fn drop_same(before: &Value, after: &mut Value, field: &str) {
    if before.get(field) == after.get(field) {
        remove(after, field);
    }
}

fn remove(of: &mut Value, field: &str) {
    if let Some(map) = of.as_object_mut() {
        map.remove(field);
    }
}

fn text<'a>(of: &'a Value, field: &str) -> &'a str {
    of[field].as_str().unwrap_or_default()
}

/// What upstream's admission plugins add to a new pod (ServiceAccount, Priority, DefaultTolerationSeconds).
fn admit_pod(pod: &mut Value) {
    let Some(spec) = pod["spec"].as_object_mut() else { return };
    for field in ["serviceAccountName", "serviceAccount"] {
        spec.entry(field).or_insert_with(|| "default".into());
    }
    spec.entry("priority").or_insert_with(|| 0.into());
    spec.entry("preemptionPolicy").or_insert_with(|| "PreemptLowerPriority".into());
    let tolerations = spec.entry("tolerations").or_insert_with(|| Value::Array(Vec::new()));
    let Some(tolerations) = tolerations.as_array_mut() else { return };
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerated = tolerations.iter().any(|t| {
            let effect = t["effect"].as_str().unwrap_or_default();
            (t["key"].as_str().unwrap_or_default().is_empty() || t["key"] == key)
                && (effect.is_empty() || effect == "NoExecute")
        });
        if !tolerated {
            tolerations
                .push(json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}));
        }
    }
}

/// <https://kubernetes.io/docs/concepts/workloads/pods/pod-qos/>
fn qos_class(pod: &Value) -> &'static str {
    let mut guaranteed = true;
    let mut any = false;
    for list in ["initContainers", "containers"] {
        for container in pod["spec"][list].as_array().map(Vec::as_slice).unwrap_or_default() {
            let of = |what: &str, name: &str| container["resources"][what].get(name).filter(|v| *v != "0").cloned();
            for resource in ["cpu", "memory"] {
                let (request, limit) = (of("requests", resource), of("limits", resource));
                any |= request.is_some() || limit.is_some();
                guaranteed &= limit.is_some() && (request.is_none() || request == limit);
            }
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// A Job without `manualSelector` selects its pods by its own uid.
fn select_own_pods(job: &mut Value) {
    if job["spec"]["manualSelector"] == true {
        return;
    }
    let Some(uid) = job["metadata"]["uid"].as_str().map(str::to_owned) else { return };
    let name = job["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let labels = json!({
        "controller-uid": uid, "batch.kubernetes.io/controller-uid": uid,
        "job-name": name, "batch.kubernetes.io/job-name": name,
    });
    if job["spec"]["selector"].is_null() {
        job["spec"]["selector"] = json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}});
    }
    merge_missing(&mut job["spec"]["template"]["metadata"]["labels"], &labels);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(old: &Value, mut new: Value) -> Value {
        prepare_update("Service", old, &mut new);
        new
    }

    #[test]
    fn seed_074_headless_becomes_external_name() {
        let old = json!({"metadata": {}, "spec": {"type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack"}, "status": {"loadBalancer": {}}});
        // As `kubectl apply` patches it: with and without the removal of clusterIP.
        for drop_ip in [true, false] {
            let mut new = old.clone();
            new["spec"]["type"] = "ExternalName".into();
            new["spec"]["externalName"] = "www.iij.ad.jp".into();
            if drop_ip {
                remove(&mut new["spec"], "clusterIP");
            }
            let new = update(&old, new);
            assert_eq!(new["spec"], json!({"type": "ExternalName", "externalName": "www.iij.ad.jp"}));
        }
    }

    #[test]
    fn allocated_values_survive_a_put_that_omits_them() {
        let old = json!({"metadata": {}, "spec": {"type": "NodePort", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"],
            "ports": [{"name": "a", "port": 80, "nodePort": 30080}]}});
        let new = update(
            &old,
            json!({"metadata": {}, "spec": {"type": "NodePort", "ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81}]}}),
        );
        assert_eq!(new["spec"]["clusterIPs"], json!(["10.96.0.7"]));
        assert_eq!(
            new["spec"]["ports"],
            json!([{"name": "a", "port": 80, "nodePort": 30080}, {"name": "b", "port": 81}])
        );
        let new = update(
            &old,
            json!({"metadata": {}, "spec": {"type": "ClusterIP", "clusterIP": "10.96.0.7", "ports": [{"name": "a", "port": 80, "nodePort": 30080}]}}),
        );
        assert_eq!(new["spec"]["ports"], json!([{"name": "a", "port": 80}]));
    }

    #[test]
    fn generation_counts_spec_changes_only() {
        let mut d = json!({"metadata": {"name": "d"}, "spec": {"replicas": 1}, "status": {"replicas": 9}});
        prepare_create("Deployment", &mut d);
        assert_eq!((&d["metadata"]["generation"], &d["status"]), (&json!(1), &json!({})));
        let mut same = d.clone();
        same["metadata"]["labels"] = json!({"a": "b"});
        same["status"] = json!({"replicas": 5});
        prepare_update("Deployment", &d, &mut same);
        assert_eq!((&same["metadata"]["generation"], &same["status"]), (&json!(1), &json!({})));
        same["spec"]["replicas"] = 2.into();
        prepare_update("Deployment", &d, &mut same);
        assert_eq!(same["metadata"]["generation"], 2);
        let mut status = json!({"metadata": {"name": "d", "resourceVersion": "7"}, "spec": {"replicas": 99}, "status": {"replicas": 1}});
        prepare_status_update("Deployment", &d, &mut status);
        assert_eq!(status["spec"]["replicas"], 1);
        assert_eq!((&status["status"]["replicas"], &status["metadata"]["resourceVersion"]), (&json!(1), &json!("7")));
    }

    #[test]
    fn pods_get_what_admission_gives() {
        let mut p = json!({"metadata": {}, "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]}, "status": {"phase": "Running"}});
        prepare_create("Pod", &mut p);
        assert_eq!(p["status"], json!({"phase": "Pending", "qosClass": "Burstable"}));
        assert_eq!(p["spec"]["serviceAccountName"], "default");
        assert_eq!(p["spec"]["tolerations"].as_array().map(Vec::len), Some(2));
    }
}
