//! The values that an absent field means, written out: upstream's `SetDefaults_*` functions for each kind.

use serde_json::{Map, Value, json};

type Object = Map<String, Value>;

/// Fills in the defaults for the kind. Idempotent.
pub fn default(kind: &str, object: &mut Value) {
    let Some(root) = object.as_object_mut() else { return };
    match kind {
        "Namespace" => {
            let name = root.get("metadata").and_then(|m| m.get("name")).cloned();
            if let Some(name) = name.filter(|n| n.as_str().is_some_and(|n| !n.is_empty())) {
                child(child(root, "metadata"), "labels").insert("kubernetes.io/metadata.name".into(), name);
            }
        }
        "Service" => service(root),
        "Pod" => {
            let spec = child(root, "spec");
            pod_spec(spec);
            absent(spec, "enableServiceLinks", true);
            for container in items(spec, "initContainers") {
                requests_follow_limits(container);
            }
            for container in items(spec, "containers") {
                requests_follow_limits(container);
            }
        }
        "PodTemplate" => {
            if let Some(spec) = present(root, "template").and_then(|t| present(t, "spec")) {
                pod_spec(spec);
            }
        }
        "Deployment" => {
            let spec = child(root, "spec");
            absent(spec, "replicas", 1);
            absent(spec, "revisionHistoryLimit", 10);
            absent(spec, "progressDeadlineSeconds", 600);
            let strategy = child(spec, "strategy");
            absent(strategy, "type", "RollingUpdate");
            if strategy["type"] == "RollingUpdate" {
                let rolling = child(strategy, "rollingUpdate");
                absent(rolling, "maxUnavailable", "25%");
                absent(rolling, "maxSurge", "25%");
            }
            template(spec);
        }
        "ReplicaSet" => {
            let spec = child(root, "spec");
            absent(spec, "replicas", 1);
            template(spec);
        }
        "StatefulSet" => stateful_set(child(root, "spec")),
        "DaemonSet" => {
            let spec = child(root, "spec");
            absent(spec, "revisionHistoryLimit", 10);
            let strategy = child(spec, "updateStrategy");
            absent(strategy, "type", "RollingUpdate");
            if strategy["type"] == "RollingUpdate" {
                let rolling = child(strategy, "rollingUpdate");
                absent(rolling, "maxUnavailable", 1);
                absent(rolling, "maxSurge", 0);
            }
            template(spec);
        }
        "Job" => job(root),
        "Endpoints" => {
            for subset in items(root, "subsets") {
                for port in items(subset, "ports") {
                    absent(port, "protocol", "TCP");
                }
            }
        }
        "EndpointSlice" => {
            absent(root, "endpoints", Value::Array(Vec::new()));
            for port in items(root, "ports") {
                absent(port, "name", "");
                absent(port, "protocol", "TCP");
            }
        }
        "Secret" => secret(root),
        "NetworkPolicy" => network_policy(child(root, "spec")),
        "IngressClass" => {
            if let Some(parameters) = present(root, "spec").and_then(|s| present(s, "parameters")) {
                absent(parameters, "scope", "Cluster");
            }
        }
        "PersistentVolumeClaim" => {
            absent(child(root, "spec"), "volumeMode", "Filesystem");
        }
        "PersistentVolume" => {
            let spec = child(root, "spec");
            absent(spec, "persistentVolumeReclaimPolicy", "Retain");
            absent(spec, "volumeMode", "Filesystem");
            if let Some(path) = present(spec, "hostPath") {
                absent(path, "type", "");
            }
        }
        "StorageClass" => {
            absent(root, "reclaimPolicy", "Delete");
            absent(root, "volumeBindingMode", "Immediate");
        }
        "RoleBinding" | "ClusterRoleBinding" => {
            if let Some(role) = present(root, "roleRef") {
                absent(role, "apiGroup", "rbac.authorization.k8s.io");
            }
            for subject in items(root, "subjects") {
                if matches!(subject.get("kind").and_then(Value::as_str), Some("User" | "Group")) {
                    absent(subject, "apiGroup", "rbac.authorization.k8s.io");
                }
            }
        }
        _ => {}
    }
}

/// The object at `key`, made when absent. (The decoder guarantees that what is there is an object.)
fn child<'a>(of: &'a mut Object, key: &str) -> &'a mut Object {
    let value = of.entry(key).or_insert_with(|| Value::Object(Map::new()));
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("made an object above"),
    }
}

fn present<'a>(of: &'a mut Object, key: &str) -> Option<&'a mut Object> {
    of.get_mut(key).and_then(Value::as_object_mut)
}

fn absent(of: &mut Object, key: &str, value: impl Into<Value>) {
    let is_absent = match of.get(key) {
        None | Some(Value::Null) => true,
        Some(Value::String(s)) => s.is_empty(),
        Some(_) => false,
    };
    if is_absent {
        of.insert(key.into(), value.into());
    }
}

/// The objects of a list, none when there is no list.
fn items<'a>(of: &'a mut Object, key: &str) -> impl Iterator<Item = &'a mut Object> {
    of.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

fn service(root: &mut Object) {
    let spec = child(root, "spec");
    absent(spec, "sessionAffinity", "None");
    match spec["sessionAffinity"].as_str() {
        Some("None") => {
            spec.remove("sessionAffinityConfig");
        }
        Some("ClientIP") => absent(child(child(spec, "sessionAffinityConfig"), "clientIP"), "timeoutSeconds", 10_800),
        _ => {}
    }
    absent(spec, "type", "ClusterIP");
    for port in items(spec, "ports") {
        absent(port, "protocol", "TCP");
        if port.get("targetPort").is_none_or(|t| *t == 0 || *t == "")
            && let Some(number) = port.get("port").cloned()
        {
            port.insert("targetPort".into(), number);
        }
        if port.get("nodePort").is_some_and(|n| *n == 0) {
            port.remove("nodePort");
        }
    }
    if spec.get("healthCheckNodePort").is_some_and(|n| *n == 0) {
        spec.remove("healthCheckNodePort");
    }
    let kind = spec["type"].as_str().unwrap_or_default().to_owned();
    let external_ips = spec.get("externalIPs").and_then(Value::as_array).is_some_and(|a| !a.is_empty());
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") || (kind == "ClusterIP" && external_ips) {
        absent(spec, "externalTrafficPolicy", "Cluster");
    }
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer" | "ClusterIP") {
        absent(spec, "internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        absent(spec, "allocateLoadBalancerNodePorts", true);
        if let Some(balancer) = present(root, "status").and_then(|s| present(s, "loadBalancer")) {
            for ingress in items(balancer, "ingress") {
                if ingress.get("ip").and_then(Value::as_str).is_some_and(|ip| !ip.is_empty()) {
                    absent(ingress, "ipMode", "VIP");
                }
            }
        }
    }
}

fn template(spec: &mut Object) {
    let template = child(spec, "template");
    child(template, "metadata");
    pod_spec(child(template, "spec"));
}

fn pod_spec(spec: &mut Object) {
    absent(spec, "dnsPolicy", "ClusterFirst");
    absent(spec, "restartPolicy", "Always");
    absent(spec, "terminationGracePeriodSeconds", 30);
    absent(spec, "schedulerName", "default-scheduler");
    child(spec, "securityContext");
    // `serviceAccount` is the old name of `serviceAccountName`; both are written.
    if let Some(name) = spec.get("serviceAccountName").or_else(|| spec.get("serviceAccount")).cloned() {
        spec.insert("serviceAccountName".into(), name.clone());
        spec.insert("serviceAccount".into(), name);
    }
    let host_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for it in items(spec, list) {
            container(it, host_network);
        }
    }
    for volume in items(spec, "volumes") {
        self::volume(volume);
    }
}

fn container(container: &mut Object, host_network: bool) {
    absent(container, "terminationMessagePath", "/dev/termination-log");
    absent(container, "terminationMessagePolicy", "File");
    let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
    let policy = if floating_tag(image) { "Always" } else { "IfNotPresent" };
    absent(container, "imagePullPolicy", policy);
    child(container, "resources");
    for port in items(container, "ports") {
        absent(port, "protocol", "TCP");
        if host_network
            && port.get("hostPort").is_none_or(|p| *p == 0)
            && let Some(number) = port.get("containerPort").cloned()
        {
            port.insert("hostPort".into(), number);
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = present(container, probe) {
            // Zero is how Go spells "not set" here.
            for (field, value) in
                [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
            {
                if probe.get(field).is_none_or(|v| *v == 0) {
                    probe.insert(field.into(), value.into());
                }
            }
            http_get(probe);
            if let Some(grpc) = present(probe, "grpc") {
                absent(grpc, "service", "");
            }
        }
    }
    if let Some(lifecycle) = present(container, "lifecycle") {
        for hook in ["postStart", "preStop"] {
            if let Some(hook) = present(lifecycle, hook) {
                http_get(hook);
            }
        }
    }
    for env in items(container, "env") {
        if let Some(reference) = present(env, "valueFrom").and_then(|f| present(f, "fieldRef")) {
            absent(reference, "apiVersion", "v1");
        }
    }
}

fn http_get(handler: &mut Object) {
    if let Some(http) = present(handler, "httpGet") {
        absent(http, "path", "/");
        absent(http, "scheme", "HTTP");
    }
}

/// No tag and no digest, or the tag `latest`.
fn floating_tag(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

fn requests_follow_limits(container: &mut Object) {
    let resources = child(container, "resources");
    let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else { return };
    let requests = child(resources, "requests");
    for (name, amount) in limits {
        requests.entry(name).or_insert(amount);
    }
}

fn volume(volume: &mut Object) {
    if volume.len() == 1 && volume.contains_key("name") {
        volume.insert("emptyDir".into(), json!({}));
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = present(volume, source) {
            absent(source, "defaultMode", 0o644);
        }
    }
    if let Some(downward) = present(volume, "downwardAPI") {
        downward_items(downward);
    }
    if let Some(path) = present(volume, "hostPath") {
        absent(path, "type", "");
    }
    if let Some(projected) = present(volume, "projected") {
        for source in items(projected, "sources") {
            if let Some(token) = present(source, "serviceAccountToken") {
                absent(token, "expirationSeconds", 3600);
            }
            if let Some(downward) = present(source, "downwardAPI") {
                downward_items(downward);
            }
        }
    }
    if let Some(spec) =
        present(volume, "ephemeral").and_then(|e| present(e, "volumeClaimTemplate")).map(|t| child(t, "spec"))
    {
        absent(spec, "volumeMode", "Filesystem");
    }
}

fn downward_items(source: &mut Object) {
    for item in items(source, "items") {
        if let Some(reference) = present(item, "fieldRef") {
            absent(reference, "apiVersion", "v1");
        }
    }
}

fn stateful_set(spec: &mut Object) {
    absent(spec, "replicas", 1);
    absent(spec, "revisionHistoryLimit", 10);
    absent(spec, "podManagementPolicy", "OrderedReady");
    let retention = child(spec, "persistentVolumeClaimRetentionPolicy");
    absent(retention, "whenDeleted", "Retain");
    absent(retention, "whenScaled", "Retain");
    let strategy = child(spec, "updateStrategy");
    absent(strategy, "type", "RollingUpdate");
    if strategy["type"] == "RollingUpdate" {
        absent(child(strategy, "rollingUpdate"), "partition", 0);
    }
    for claim in items(spec, "volumeClaimTemplates") {
        absent(claim, "apiVersion", "v1");
        absent(claim, "kind", "PersistentVolumeClaim");
        absent(child(claim, "spec"), "volumeMode", "Filesystem");
        absent(child(claim, "status"), "phase", "Pending");
    }
    template(spec);
}

fn job(root: &mut Object) {
    let spec = child(root, "spec");
    if !spec.contains_key("parallelism") {
        if !spec.contains_key("completions") {
            spec.insert("completions".into(), 1.into());
        }
        spec.insert("parallelism".into(), 1.into());
    }
    absent(spec, "backoffLimit", 6);
    absent(spec, "completionMode", "NonIndexed");
    absent(spec, "suspend", false);
    let replacement = if spec.contains_key("podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
    absent(spec, "podReplacementPolicy", replacement);
    template(spec);
    let labels = spec["template"]["metadata"].get("labels").cloned();
    if let Some(labels) = labels {
        child(root, "metadata").entry("labels").or_insert(labels);
    }
}

fn secret(root: &mut Object) {
    absent(root, "type", "Opaque");
    // Write-only convenience: it becomes data and is never stored.
    if let Some(Value::Object(texts)) = root.remove("stringData") {
        let data = child(root, "data");
        for (key, text) in texts {
            data.insert(key, base64(text.as_str().unwrap_or_default().as_bytes()).into());
        }
    }
}

fn network_policy(spec: &mut Object) {
    if !spec.contains_key("policyTypes") {
        let mut types = vec![Value::from("Ingress")];
        if spec.get("egress").and_then(Value::as_array).is_some_and(|e| !e.is_empty()) {
            types.push("Egress".into());
        }
        spec.insert("policyTypes".into(), types.into());
    }
    child(spec, "podSelector");
    for direction in ["ingress", "egress"] {
        for rule in items(spec, direction) {
            for port in items(rule, "ports") {
                absent(port, "protocol", "TCP");
            }
        }
    }
}

/// RFC 4648, standard alphabet with padding.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let n = chunk.iter().fold(0u32, |n, b| n << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let sextet = (n >> (18 - 6 * i)) & 63;
            out.push(if i <= chunk.len() { char::from(ALPHABET[sextet as usize]) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaulted(kind: &str, mut object: Value) -> Value {
        default(kind, &mut object);
        let once = object.clone();
        default(kind, &mut object);
        assert_eq!(object, once, "idempotent");
        object
    }

    #[test]
    fn seed_018_cluster_ip_is_the_default_type() {
        let s = defaulted("Service", json!({"spec": {"ports": [{"port": 80}]}}));
        assert_eq!(
            s["spec"],
            json!({"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
                   "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]})
        );
    }

    #[test]
    fn seed_020_protocol_defaults_to_tcp() {
        let s =
            defaulted("Service", json!({"spec": {"ports": [{"port": 53, "protocol": "UDP", "targetPort": "dns"}]}}));
        assert_eq!(s["spec"]["ports"][0], json!({"port": 53, "protocol": "UDP", "targetPort": "dns"}));
    }

    #[test]
    fn seed_068_affinity_timeout_defaults_to_three_hours() {
        let s = defaulted("Service", json!({"spec": {"sessionAffinity": "ClientIP"}}));
        assert_eq!(s["spec"]["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"], 10_800);
        let s = defaulted(
            "Service",
            json!({"spec": {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 2}}}}),
        );
        assert_eq!(s["spec"]["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"], 2);
    }

    #[test]
    fn seed_204_probe_defaults() {
        let d = defaulted(
            "Deployment",
            json!({"spec": {"template": {"spec": {"containers": [
                {"name": "c", "image": "nginx:1.25", "readinessProbe": {"httpGet": {"port": 80}, "initialDelaySeconds": 5}}]}}}}),
        );
        let probe = &d["spec"]["template"]["spec"]["containers"][0]["readinessProbe"];
        assert_eq!(
            *probe,
            json!({"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "initialDelaySeconds": 5,
                   "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3})
        );
        assert_eq!(
            d["spec"]["strategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}})
        );
        assert_eq!((&d["spec"]["replicas"], &d["spec"]["progressDeadlineSeconds"]), (&json!(1), &json!(600)));
    }

    #[test]
    fn image_pull_policy_follows_the_tag() {
        for (image, policy) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.25", "IfNotPresent"),
            ("localhost:5000/nginx", "Always"),
            ("localhost:5000/nginx:1", "IfNotPresent"),
            ("nginx@sha256:0000", "IfNotPresent"),
        ] {
            let p = defaulted("Pod", json!({"spec": {"containers": [{"name": "c", "image": image}]}}));
            assert_eq!(p["spec"]["containers"][0]["imagePullPolicy"], policy, "{image}");
        }
    }

    #[test]
    fn secrets_take_plain_text() {
        let s = defaulted("Secret", json!({"data": {"a": "eA=="}, "stringData": {"b": "hello", "c": "hello!"}}));
        assert_eq!(s, json!({"type": "Opaque", "data": {"a": "eA==", "b": "aGVsbG8=", "c": "aGVsbG8h"}}));
    }

    #[test]
    fn load_balancer_defaults() {
        let s = defaulted(
            "Service",
            json!({"spec": {"type": "LoadBalancer"}, "status": {"loadBalancer": {"ingress": [{"ip": "10.0.0.1"}]}}}),
        );
        assert_eq!(s["spec"]["allocateLoadBalancerNodePorts"], true);
        assert_eq!(s["spec"]["externalTrafficPolicy"], "Cluster");
        assert_eq!(s["status"]["loadBalancer"]["ingress"][0]["ipMode"], "VIP");
    }
}
