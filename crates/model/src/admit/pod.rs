//! Pods and pod templates: the rules of `ValidatePodSpec` that a small node has a use for, and what may change in a pod.

use serde_json::Value;

use super::{ErrorKind, FieldError, format, list, meta, service};

type Errors = Vec<FieldError>;

fn text<'a>(of: &'a Value, field: &str) -> &'a str {
    of[field].as_str().unwrap_or_default()
}

fn invalid_all(errors: &mut Errors, path: &str, value: &str, messages: Vec<String>) {
    errors.extend(messages.into_iter().map(|m| FieldError::invalid(path, value, m)));
}

/// `spec.template` of a workload, at `path`.
pub(super) fn validate_template(template: &Value, path: &str) -> Errors {
    let mut errors = meta::labels(&template["metadata"]["labels"], &format!("{path}.metadata.labels"));
    errors.extend(meta::annotations(&template["metadata"]["annotations"], &format!("{path}.metadata.annotations")));
    errors.extend(validate_spec(&template["spec"], &format!("{path}.spec")));
    errors
}

pub(super) fn validate_spec(spec: &Value, path: &str) -> Errors {
    let mut errors = Errors::new();
    let volumes = volumes(spec, path, &mut errors);
    let host_network = spec["hostNetwork"] == true;
    let mut names: Vec<String> = Vec::new();
    let containers = list(spec, "containers");
    if containers.is_empty() {
        errors.push(FieldError::required(format!("{path}.containers"), ""));
    }
    for (field, init) in [("containers", false), ("initContainers", true)] {
        for (i, container) in list(spec, field).iter().enumerate() {
            let at = format!("{path}.{field}[{i}]");
            let name = text(container, "name");
            if !name.is_empty() && names.iter().any(|n| n == name) {
                errors.push(FieldError::duplicate(format!("{at}.name"), name));
            }
            names.push(name.to_owned());
            self::container(container, init, host_network, &volumes, &at, &mut errors);
        }
    }
    host_ports(spec, path, &mut errors);
    choice(spec, "restartPolicy", &["Always", "Never", "OnFailure"], path, &mut errors);
    choice(spec, "dnsPolicy", &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"], path, &mut errors);
    dns(spec, path, &mut errors);
    for (field, rule) in [
        ("nodeName", format::dns_subdomain as fn(&str) -> Vec<String>),
        ("serviceAccountName", format::dns_subdomain),
        ("hostname", format::dns_label),
        ("subdomain", format::dns_label),
        ("schedulerName", format::dns_subdomain),
    ] {
        let value = text(spec, field);
        if !value.is_empty() {
            invalid_all(&mut errors, &format!("{path}.{field}"), value, rule(value));
        }
    }
    errors.extend(meta::labels(&spec["nodeSelector"], &format!("{path}.nodeSelector")));
    for (i, alias) in list(spec, "hostAliases").iter().enumerate() {
        let ip = text(alias, "ip");
        if let Err(message) = format::ip(ip) {
            errors.push(FieldError::invalid(format!("{path}.hostAliases[{i}].ip"), ip, message));
        }
        for (j, name) in service::strings(alias, "hostnames").iter().enumerate() {
            invalid_all(
                &mut errors,
                &format!("{path}.hostAliases[{i}].hostnames[{j}]"),
                name,
                format::dns_subdomain(name),
            );
        }
    }
    not_negative(spec, "terminationGracePeriodSeconds", path, &mut errors);
    if let Some(deadline) = spec["activeDeadlineSeconds"].as_i64()
        && !(1..=i64::from(i32::MAX)).contains(&deadline)
    {
        errors.push(FieldError::invalid(
            format!("{path}.activeDeadlineSeconds"),
            deadline,
            "must be between 1 and 2147483647, inclusive",
        ));
    }
    errors
}

fn choice(of: &Value, field: &str, known: &[&str], path: &str, errors: &mut Errors) {
    let field_path = format!("{path}.{field}");
    match text(of, field) {
        "" => errors.push(FieldError::required(field_path, "")),
        value if !known.contains(&value) => errors.push(FieldError::not_supported(field_path, value, known)),
        _ => {}
    }
}

pub(super) fn not_negative(of: &Value, field: &str, path: &str, errors: &mut Errors) {
    if let Some(value) = of[field].as_i64().filter(|v| *v < 0) {
        errors.push(FieldError::invalid(format!("{path}.{field}"), value, "must be greater than or equal to 0"));
    }
}

fn dns(spec: &Value, path: &str, errors: &mut Errors) {
    let config = &spec["dnsConfig"];
    let servers = service::strings(config, "nameservers");
    if text(spec, "dnsPolicy") == "None" {
        if config.is_null() {
            errors.push(FieldError::required(
                format!("{path}.dnsConfig"),
                "must provide `dnsConfig` when `dnsPolicy` is None",
            ));
        } else if servers.is_empty() {
            errors.push(FieldError::required(
                format!("{path}.dnsConfig.nameservers"),
                "must provide at least one DNS nameserver when `dnsPolicy` is None",
            ));
        }
    }
    if servers.len() > 3 {
        let detail = "must not have more than 3 nameservers";
        errors.push(FieldError::invalid(
            format!("{path}.dnsConfig.nameservers"),
            config["nameservers"].clone(),
            detail,
        ));
    }
    for (i, server) in servers.iter().enumerate() {
        if let Err(message) = format::ip(server) {
            errors.push(FieldError::invalid(format!("{path}.dnsConfig.nameservers[{i}]"), server.as_str(), message));
        }
    }
}

/// Names of the volumes that may be mounted.
fn volumes(spec: &Value, path: &str, errors: &mut Errors) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for (i, volume) in list(spec, "volumes").iter().enumerate() {
        let at = format!("{path}.volumes[{i}]");
        let name = text(volume, "name");
        if name.is_empty() {
            errors.push(FieldError::required(format!("{at}.name"), ""));
        } else {
            invalid_all(errors, &format!("{at}.name"), name, format::dns_label(name));
            if names.iter().any(|n| n == name) {
                errors.push(FieldError::duplicate(format!("{at}.name"), name));
            }
            names.push(name.to_owned());
        }
        let sources = volume.as_object().into_iter().flatten().filter(|(k, _)| *k != "name");
        let sources: Vec<&String> = sources.map(|(k, _)| k).collect();
        match sources.as_slice() {
            [] => errors.push(FieldError::required(at.clone(), "must specify a volume type")),
            [_] => {}
            [_, more @ ..] => errors.extend(
                more.iter()
                    .map(|s| FieldError::forbidden(format!("{at}.{s}"), "may not specify more than 1 volume type")),
            ),
        }
        for (source, field) in [
            ("hostPath", "path"),
            ("configMap", "name"),
            ("secret", "secretName"),
            ("persistentVolumeClaim", "claimName"),
        ] {
            if volume[source].is_object() && text(&volume[source], field).is_empty() {
                errors.push(FieldError::required(format!("{at}.{source}.{field}"), ""));
            }
        }
    }
    names
}

fn container(container: &Value, init: bool, host_network: bool, volumes: &[String], path: &str, errors: &mut Errors) {
    let name = text(container, "name");
    if name.is_empty() {
        errors.push(FieldError::required(format!("{path}.name"), ""));
    } else {
        invalid_all(errors, &format!("{path}.name"), name, format::dns_label(name));
    }
    let image = text(container, "image");
    if image.is_empty() {
        errors.push(FieldError::required(format!("{path}.image"), ""));
    } else if image.trim() != image {
        errors.push(FieldError::invalid(
            format!("{path}.image"),
            image,
            "must not have leading or trailing whitespace",
        ));
    }
    container_ports(list(container, "ports"), host_network, &format!("{path}.ports"), errors);
    for (i, env) in list(container, "env").iter().enumerate() {
        let at = format!("{path}.env[{i}]");
        match text(env, "name") {
            "" => errors.push(FieldError::required(format!("{at}.name"), "")),
            name => invalid_all(errors, &format!("{at}.name"), name, format::env_name(name)),
        }
        let from = &env["valueFrom"];
        if from.is_object() {
            if !text(env, "value").is_empty() {
                errors.push(FieldError::invalid(
                    format!("{at}.valueFrom"),
                    "",
                    "may not be specified when `value` is not empty",
                ));
            }
            if from.as_object().is_some_and(|m| m.len() != 1) {
                errors.push(FieldError::invalid(
                    format!("{at}.valueFrom"),
                    "",
                    "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`",
                ));
            }
        }
    }
    let mut mounted: Vec<&str> = Vec::new();
    for (i, mount) in list(container, "volumeMounts").iter().enumerate() {
        let at = format!("{path}.volumeMounts[{i}]");
        let (name, place) = (text(mount, "name"), text(mount, "mountPath"));
        if name.is_empty() {
            errors.push(FieldError::required(format!("{at}.name"), ""));
        } else if !volumes.iter().any(|v| v == name) {
            errors.push(FieldError::new(ErrorKind::NotFound, format!("{at}.name"), name, ""));
        }
        if place.is_empty() {
            errors.push(FieldError::required(format!("{at}.mountPath"), ""));
        } else if mounted.contains(&place) {
            errors.push(FieldError::invalid(format!("{at}.mountPath"), place, "must be unique"));
        }
        mounted.push(place);
    }
    choice(container, "imagePullPolicy", &["Always", "IfNotPresent", "Never"], path, errors);
    let restartable = text(container, "restartPolicy") == "Always";
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let at = format!("{path}.{probe}");
        let value = &container[probe];
        if !value.is_object() {
            continue;
        }
        if init && !restartable {
            errors.push(FieldError::forbidden(at, "may not be set for init containers without restartPolicy=Always"));
            continue;
        }
        handler(value, &at, errors);
        for field in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
        {
            not_negative(value, field, &at, errors);
        }
        if probe != "readinessProbe"
            && let Some(successes) = value["successThreshold"].as_i64().filter(|s| *s != 1)
        {
            errors.push(FieldError::invalid(format!("{at}.successThreshold"), successes, "must be 1"));
        }
    }
    for hook in ["postStart", "preStop"] {
        if container["lifecycle"][hook].is_object() {
            handler(&container["lifecycle"][hook], &format!("{path}.lifecycle.{hook}"), errors);
        }
    }
    resources(&container["resources"], &format!("{path}.resources"), errors);
}

/// Exactly one of exec, httpGet, tcpSocket, grpc, sleep.
fn handler(handler: &Value, path: &str, errors: &mut Errors) {
    let mut found = 0;
    for action in ["exec", "httpGet", "tcpSocket", "grpc", "sleep"] {
        let value = &handler[action];
        if !value.is_object() {
            continue;
        }
        found += 1;
        let at = format!("{path}.{action}");
        if found > 1 {
            errors.push(FieldError::forbidden(at, "may not specify more than 1 handler type"));
            continue;
        }
        match action {
            "exec" => {
                if list(value, "command").is_empty() {
                    errors.push(FieldError::required(format!("{at}.command"), ""));
                }
            }
            "httpGet" => {
                if text(value, "path").is_empty() {
                    errors.push(FieldError::required(format!("{at}.path"), ""));
                }
                service::target_port(&value["port"], &format!("{at}.port"), errors);
                choice(value, "scheme", &["HTTP", "HTTPS"], &at, errors);
            }
            "tcpSocket" => service::target_port(&value["port"], &format!("{at}.port"), errors),
            "grpc" => {
                let port = value["port"].as_i64().unwrap_or(0);
                errors.extend(
                    format::port_number(port).into_iter().map(|m| FieldError::invalid(format!("{at}.port"), port, m)),
                );
            }
            _ => not_negative(value, "seconds", &at, errors),
        }
    }
    if found == 0 {
        errors.push(FieldError::required(path, "must specify a handler type"));
    }
}

fn container_ports(ports: &[Value], host_network: bool, path: &str, errors: &mut Errors) {
    let mut names: Vec<&str> = Vec::new();
    for (i, port) in ports.iter().enumerate() {
        let at = format!("{path}[{i}]");
        let name = text(port, "name");
        if !name.is_empty() {
            invalid_all(errors, &format!("{at}.name"), name, format::port_name(name));
            if names.contains(&name) {
                errors.push(FieldError::duplicate(format!("{at}.name"), name));
            }
            names.push(name);
        }
        let number = port["containerPort"].as_i64().unwrap_or(0);
        if number == 0 {
            errors.push(FieldError::required(format!("{at}.containerPort"), ""));
        } else {
            errors.extend(
                format::port_number(number)
                    .into_iter()
                    .map(|m| FieldError::invalid(format!("{at}.containerPort"), number, m)),
            );
        }
        if let Some(host) = port["hostPort"].as_i64().filter(|p| *p != 0) {
            errors.extend(
                format::port_number(host).into_iter().map(|m| FieldError::invalid(format!("{at}.hostPort"), host, m)),
            );
            if host_network && host != number {
                errors.push(FieldError::invalid(
                    format!("{at}.containerPort"),
                    number,
                    "must match `hostPort` when `hostNetwork` is true",
                ));
            }
        }
        service::protocol(port, &at, errors);
    }
}

/// Two containers of a pod cannot have the same port of the node.
fn host_ports(spec: &Value, path: &str, errors: &mut Errors) {
    let mut seen: Vec<(String, i64, String)> = Vec::new();
    for (i, container) in list(spec, "containers").iter().enumerate() {
        for (j, port) in list(container, "ports").iter().enumerate() {
            let Some(number) = port["hostPort"].as_i64().filter(|p| *p != 0) else { continue };
            let key = (text(port, "protocol").to_owned(), number, text(port, "hostIP").to_owned());
            if seen.contains(&key) {
                let shown = format!("{}/{}/{}", key.0, if key.2.is_empty() { "0.0.0.0" } else { &key.2 }, key.1);
                errors.push(FieldError::duplicate(format!("{path}.containers[{i}].ports[{j}].hostPort"), shown));
            }
            seen.push(key);
        }
    }
}

fn resources(resources: &Value, path: &str, errors: &mut Errors) {
    for what in ["limits", "requests"] {
        for (name, amount) in resources[what].as_object().into_iter().flatten() {
            let amount = amount.as_str().unwrap_or_default();
            if amount.starts_with('-') {
                errors.push(FieldError::invalid(
                    format!("{path}.{what}[{name}]"),
                    amount,
                    "must be greater than or equal to 0",
                ));
            }
        }
    }
}

const IMMUTABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,\
`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// What may change in a pod that exists.
pub(super) fn validate_update(old: &Value, new: &Value) -> Errors {
    let (before, after) = (&old["spec"], &new["spec"]);
    for field in ["containers", "initContainers"] {
        if list(before, field).len() != list(after, field).len() {
            return vec![FieldError::forbidden(
                format!("spec.{field}"),
                "pod updates may not add or remove containers",
            )];
        }
    }
    let mut errors = Errors::new();
    let (had, has) = (list(before, "tolerations"), list(after, "tolerations"));
    // Only `tolerationSeconds` of an existing toleration may differ.
    let same = |a: &Value, b: &Value| ["key", "operator", "value", "effect"].iter().all(|f| a[*f] == b[*f]);
    if !had.iter().all(|t| has.iter().any(|n| same(t, n))) {
        errors.push(FieldError::forbidden(
            "spec.tolerations",
            "existing toleration can not be modified except its tolerationSeconds",
        ));
    }
    let (old_deadline, new_deadline) =
        (before["activeDeadlineSeconds"].as_i64(), after["activeDeadlineSeconds"].as_i64());
    match (old_deadline, new_deadline) {
        (Some(o), Some(n)) if n > o => errors.push(FieldError::invalid(
            "spec.activeDeadlineSeconds",
            n,
            format!("must be less than or equal to previous value {o}"),
        )),
        (Some(_), None) => errors.push(FieldError::invalid(
            "spec.activeDeadlineSeconds",
            Value::Null,
            "must not update from a positive integer to nil value",
        )),
        _ => {}
    }
    if masked(before) != masked(after) {
        errors.push(FieldError::forbidden("spec", IMMUTABLE));
    }
    errors
}

/// The spec without what may change.
fn masked(spec: &Value) -> Value {
    let mut spec = spec.clone();
    if let Some(map) = spec.as_object_mut() {
        map.remove("activeDeadlineSeconds");
        map.remove("tolerations");
        // Scheduling gates are removed one by one until the pod may be bound.
        map.remove("schedulingGates");
        if map.get("terminationGracePeriodSeconds").and_then(Value::as_i64).is_some_and(|s| s < 0) {
            map.insert("terminationGracePeriodSeconds".into(), 1.into());
        }
    }
    for field in ["containers", "initContainers"] {
        for container in spec.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(map) = container.as_object_mut() {
                map.remove("image");
            }
        }
    }
    spec
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{default, validate_create};
    use super::*;

    fn pod(spec: Value) -> Value {
        let mut pod = json!({"metadata": {"name": "p"}, "spec": spec});
        default("Pod", &mut pod);
        pod
    }

    fn refusals(spec: Value) -> Vec<String> {
        validate_create("Pod", &pod(spec)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn containers() {
        assert_eq!(refusals(json!({})), ["spec.containers: Required value"]);
        assert_eq!(
            refusals(json!({"containers": [{"name": "a", "image": "x"}, {"name": "a"}]})),
            ["spec.containers[1].name: Duplicate value: \"a\"", "spec.containers[1].image: Required value"]
        );
        assert_eq!(
            refusals(json!({"containers": [{"name": "a", "image": "x", "ports": [{"containerPort": 70_000}]}]})),
            ["spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive"]
        );
        assert_eq!(
            refusals(
                json!({"containers": [{"name": "a", "image": "x", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]})
            ),
            ["spec.containers[0].volumeMounts[0].name: Not found: \"v\""]
        );
        assert_eq!(
            refusals(json!({"restartPolicy": "Sometimes", "containers": [{"name": "a", "image": "x"}]})),
            [
                "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"Never\", \"OnFailure\""
            ]
        );
    }

    #[test]
    fn probes() {
        let with =
            |probe: Value| refusals(json!({"containers": [{"name": "a", "image": "x", "readinessProbe": probe}]}));
        assert!(with(json!({"httpGet": {"port": 80}})).is_empty());
        assert_eq!(with(json!({})), ["spec.containers[0].readinessProbe: Required value: must specify a handler type"]);
        assert_eq!(
            with(json!({"tcpSocket": {"port": 80}, "exec": {"command": ["true"]}})),
            ["spec.containers[0].readinessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type"]
        );
        assert_eq!(
            with(json!({"tcpSocket": {"port": 0}, "periodSeconds": -1})),
            [
                "spec.containers[0].readinessProbe.tcpSocket.port: Invalid value: 0: must be between 1 and 65535, inclusive",
                "spec.containers[0].readinessProbe.periodSeconds: Invalid value: -1: must be greater than or equal to 0"
            ]
        );
    }

    #[test]
    fn a_running_pod_changes_only_its_images() {
        let old = pod(json!({"containers": [{"name": "a", "image": "x:1"}]}));
        let mut new = old.clone();
        new["spec"]["containers"][0]["image"] = "x:2".into();
        assert!(validate_update(&old, &new).is_empty());
        new["spec"]["hostname"] = "h".into();
        let e = validate_update(&old, &new);
        assert!(
            e[0].to_string().starts_with(
                "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`"
            )
        );
        new["spec"]["containers"] = json!([]);
        assert_eq!(validate_update(&old, &new)[0].field, "spec.containers");
    }
}
