//! Services: `ValidateService`, `ValidateServiceUpdate` and the predicates that the other steps of admission share.

use serde_json::{Value, json};

use super::{FieldError, format, list, meta};

type Errors = Vec<FieldError>;

/// Strings of a list field; empty when absent.
pub(super) fn strings(of: &Value, field: &str) -> Vec<String> {
    list(of, field).iter().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

fn text<'a>(of: &'a Value, field: &str) -> &'a str {
    of[field].as_str().unwrap_or_default()
}

pub(super) fn needs_cluster_ip(spec: &Value) -> bool {
    matches!(text(spec, "type"), "ClusterIP" | "NodePort" | "LoadBalancer" | "")
}

pub(super) fn needs_node_port(spec: &Value) -> bool {
    match text(spec, "type") {
        "NodePort" => true,
        "LoadBalancer" => spec["allocateLoadBalancerNodePorts"] != false,
        _ => false,
    }
}

pub(super) fn needs_health_check(spec: &Value) -> bool {
    text(spec, "type") == "LoadBalancer" && text(spec, "externalTrafficPolicy") == "Local"
}

pub(super) fn needs_external_policy(spec: &Value) -> bool {
    match text(spec, "type") {
        "NodePort" | "LoadBalancer" => true,
        "ClusterIP" => !list(spec, "externalIPs").is_empty(),
        _ => false,
    }
}

/// `clusterIP: None`
pub(super) fn is_headless(spec: &Value) -> bool {
    matches!(list(spec, "clusterIPs"), [only] if only == "None")
}

pub(super) fn validate(service: &Value) -> Errors {
    let spec = &service["spec"];
    let mut errors = Errors::new();
    let kind = text(spec, "type");
    let headless = is_headless(spec);
    let ports = list(spec, "ports");
    if ports.is_empty() && !headless && kind != "ExternalName" {
        errors.push(FieldError::required("spec.ports", ""));
    }
    match kind {
        "LoadBalancer" | "NodePort" if headless => {
            errors.push(FieldError::invalid(
                "spec.clusterIPs[0]",
                "None",
                format!("may not be set to 'None' for {kind} services"),
            ));
        }
        "ExternalName" => external_name(spec, &mut errors),
        _ => {}
    }
    let mut names = Vec::new();
    for (i, port) in ports.iter().enumerate() {
        service_port(port, ports.len() > 1, &mut names, &format!("spec.ports[{i}]"), &mut errors);
    }
    errors.extend(meta::labels(&spec["selector"], "spec.selector"));
    affinity(spec, &mut errors);
    errors.extend(cluster_ips(spec));
    for (i, ip) in strings(spec, "externalIPs").iter().enumerate() {
        let field = format!("spec.externalIPs[{i}]");
        match format::ip(ip) {
            Err(message) => errors.push(FieldError::invalid(field, ip.as_str(), message)),
            Ok(parsed) => errors.extend(
                format::special_ip(&parsed).into_iter().map(|m| FieldError::invalid(field.clone(), ip.as_str(), m)),
            ),
        }
    }
    let types = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    if kind.is_empty() {
        errors.push(FieldError::required("spec.type", ""));
    } else if !types.contains(&kind) {
        errors.push(FieldError::not_supported("spec.type", kind, &types));
    }
    port_numbers(kind, ports, &mut errors);
    load_balancer(service, &mut errors);
    errors.extend(load_balancer_class(None, spec));
    traffic_policies(spec, &mut errors);
    errors
}

fn external_name(spec: &Value, errors: &mut Errors) {
    for field in ["clusterIPs", "ipFamilies"] {
        if !list(spec, field).is_empty() {
            errors.push(FieldError::forbidden(format!("spec.{field}"), "may not be set for ExternalName services"));
        }
    }
    if !spec["ipFamilyPolicy"].is_null() {
        errors.push(FieldError::forbidden("spec.ipFamilyPolicy", "may not be set for ExternalName services"));
    }
    let given = text(spec, "externalName");
    let name = given.strip_suffix('.').unwrap_or(given);
    if name.is_empty() {
        errors.push(FieldError::required("spec.externalName", ""));
    } else {
        errors
            .extend(format::dns_subdomain(name).into_iter().map(|m| FieldError::invalid("spec.externalName", name, m)));
    }
}

fn service_port(port: &Value, require_name: bool, names: &mut Vec<String>, path: &str, errors: &mut Errors) {
    let name = text(port, "name");
    if name.is_empty() {
        if require_name {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        }
    } else {
        errors
            .extend(format::dns_label(name).into_iter().map(|m| FieldError::invalid(format!("{path}.name"), name, m)));
        if names.iter().any(|n| n == name) {
            errors.push(FieldError::duplicate(format!("{path}.name"), name));
        } else {
            names.push(name.to_owned());
        }
    }
    let number = port["port"].as_i64().unwrap_or(0);
    errors.extend(
        format::port_number(number).into_iter().map(|m| FieldError::invalid(format!("{path}.port"), number, m)),
    );
    protocol(port, path, errors);
    target_port(&port["targetPort"], &format!("{path}.targetPort"), errors);
    if let Some(application) = port["appProtocol"].as_str() {
        errors.extend(
            format::qualified_name(application)
                .into_iter()
                .map(|m| FieldError::invalid(format!("{path}.appProtocol"), application, m)),
        );
    }
}

pub(super) fn protocol(port: &Value, path: &str, errors: &mut Errors) {
    match text(port, "protocol") {
        "" => errors.push(FieldError::required(format!("{path}.protocol"), "")),
        "TCP" | "UDP" | "SCTP" => {}
        other => errors.push(FieldError::not_supported(format!("{path}.protocol"), other, &["SCTP", "TCP", "UDP"])),
    }
}

/// A number or the name of a container port.
pub(super) fn target_port(target: &Value, path: &str, errors: &mut Errors) {
    match target {
        Value::String(name) => {
            errors.extend(format::port_name(name).into_iter().map(|m| FieldError::invalid(path, name.as_str(), m)));
        }
        other => {
            let number = other.as_i64().unwrap_or(0);
            errors.extend(format::port_number(number).into_iter().map(|m| FieldError::invalid(path, number, m)));
        }
    }
}

fn affinity(spec: &Value, errors: &mut Errors) {
    let config = &spec["sessionAffinityConfig"];
    let path = "spec.sessionAffinityConfig";
    match text(spec, "sessionAffinity") {
        "" => errors.push(FieldError::required("spec.sessionAffinity", "")),
        "ClientIP" => {
            let needed = "when session affinity type is ClientIP";
            if config.is_null() {
                errors.push(FieldError::required(path, needed));
            } else if config["clientIP"].is_null() {
                errors.push(FieldError::required(format!("{path}.clientIP"), needed));
            } else {
                let field = format!("{path}.clientIP.timeoutSeconds");
                match config["clientIP"]["timeoutSeconds"].as_i64() {
                    None => errors.push(FieldError::required(field, needed)),
                    Some(1..=86_400) => {}
                    Some(other) => {
                        errors.push(FieldError::invalid(field, other, "must be greater than 0 and less than 86400"));
                    }
                }
            }
        }
        "None" => {
            if !config.is_null() {
                errors.push(FieldError::forbidden(path, "must not be set when session affinity is None"));
            }
        }
        other => errors.push(FieldError::not_supported("spec.sessionAffinity", other, &["ClientIP", "None"])),
    }
}

/// `clusterIP`, `clusterIPs`, `ipFamilies` and `ipFamilyPolicy` agree. Allocation relies on this, so it asks first.
pub(super) fn cluster_ips(spec: &Value) -> Errors {
    let mut errors = Errors::new();
    if text(spec, "type") == "ExternalName" {
        return errors;
    }
    let ip = text(spec, "clusterIP");
    let ips = strings(spec, "clusterIPs");
    let field = "spec.clusterIPs";
    match ips.first() {
        None if !ip.is_empty() => errors.push(FieldError::required(field, "")),
        Some(_) if ip.is_empty() => {
            errors.push(FieldError::invalid(field, json!(ips), "must be empty when `clusterIP` is not specified"));
        }
        Some(first) if first != ip => {
            errors.push(FieldError::invalid(field, json!(ips), "first value must match `clusterIP`"));
        }
        _ => {}
    }
    let families = strings(spec, "ipFamilies");
    for (i, family) in families.iter().enumerate() {
        let at = format!("spec.ipFamilies[{i}]");
        if !matches!(family.as_str(), "IPv4" | "IPv6") {
            errors.push(FieldError::not_supported(at.clone(), family.as_str(), &["IPv4", "IPv6"]));
        }
        if families[..i].contains(family) {
            errors.push(FieldError::duplicate(at, family.as_str()));
        }
    }
    if let Some(policy) = spec["ipFamilyPolicy"].as_str() {
        let policies = ["PreferDualStack", "RequireDualStack", "SingleStack"];
        if !policies.contains(&policy) {
            errors.push(FieldError::not_supported("spec.ipFamilyPolicy", policy, &policies));
        }
    }
    let mut broken = false;
    for (i, ip) in ips.iter().enumerate() {
        if i == 0 && ip == "None" {
            if ips.len() > 1 {
                broken = true;
                errors.push(FieldError::invalid(field, json!(ips), "'None' must be the first and only value"));
            }
        } else if let Err(message) = format::ip(ip) {
            broken = true;
            errors.push(FieldError::invalid(format!("{field}[{i}]"), ip.as_str(), message));
        }
    }
    if ips.len() > 2 {
        errors.push(FieldError::invalid(field, json!(ips), "may only hold up to 2 values"));
    }
    if broken {
        return errors;
    }
    let is_v6 = |ip: &String| ip.contains(':');
    if ips.len() > 1 && ips.iter().all(is_v6) | ips.iter().all(|ip| !is_v6(ip)) {
        errors.push(FieldError::invalid(field, json!(ips), "may specify no more than one IP for each IP family"));
    }
    if !is_headless(spec) {
        for (i, (ip, family)) in ips.iter().zip(&families).enumerate() {
            let fits = match family.as_str() {
                "IPv4" => !is_v6(ip),
                "IPv6" => is_v6(ip),
                _ => true,
            };
            if !fits {
                let message = format!("expected an {family} value as indicated by `ipFamilies[{i}]`");
                errors.push(FieldError::invalid(format!("{field}[{i}]"), ip.as_str(), message));
            }
        }
    }
    errors
}

fn port_numbers(kind: &str, ports: &[Value], errors: &mut Errors) {
    let node_port = |p: &Value| p["nodePort"].as_i64().unwrap_or(0);
    if kind == "ClusterIP" {
        for (i, _) in ports.iter().enumerate().filter(|(_, p)| node_port(p) != 0) {
            errors.push(FieldError::forbidden(
                format!("spec.ports[{i}].nodePort"),
                "may not be used when `type` is 'ClusterIP'",
            ));
        }
    }
    for (i, port) in ports.iter().enumerate() {
        let same = |p: &&Value| text(p, "protocol") == text(port, "protocol") && node_port(p) == node_port(port);
        if node_port(port) != 0 && ports[..i].iter().any(|p| same(&p)) {
            errors.push(FieldError::duplicate(format!("spec.ports[{i}].nodePort"), node_port(port)));
        }
    }
    for (i, port) in ports.iter().enumerate() {
        if ports[..i].iter().any(|p| text(p, "protocol") == text(port, "protocol") && p["port"] == port["port"]) {
            let key = json!({"port": port["port"], "protocol": text(port, "protocol")});
            errors.push(FieldError::duplicate(format!("spec.ports[{i}]"), key));
        }
    }
}

fn load_balancer(service: &Value, errors: &mut Errors) {
    let spec = &service["spec"];
    let balanced = text(spec, "type") == "LoadBalancer";
    let only = "may only be used when `type` is 'LoadBalancer'";
    let ranges = strings(spec, "loadBalancerSourceRanges");
    const ANNOTATION: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
    if !ranges.is_empty() {
        // Upstream spells this path with a capital letter.
        let path = "spec.LoadBalancerSourceRanges";
        if !balanced {
            errors.push(FieldError::forbidden(path, only));
        }
        for (i, range) in ranges.iter().enumerate() {
            if let Err(message) = format::cidr(range.trim()) {
                errors.push(FieldError::invalid(format!("{path}[{i}]"), range.trim(), message));
            }
        }
    } else if let Some(value) = service["metadata"]["annotations"].get(ANNOTATION).and_then(Value::as_str) {
        let path = format!("metadata.annotations[{ANNOTATION}]");
        if !balanced {
            errors.push(FieldError::forbidden(path.clone(), only));
        }
        for range in value.split(',').map(str::trim).filter(|_| !value.trim().is_empty()) {
            if let Err(message) = format::cidr(range) {
                errors.push(FieldError::invalid(path.clone(), range, message));
            }
        }
    }
    match spec["allocateLoadBalancerNodePorts"].is_null() {
        false if !balanced => errors.push(FieldError::forbidden("spec.allocateLoadBalancerNodePorts", only)),
        true if balanced => errors.push(FieldError::required("allocateLoadBalancerNodePorts", "")),
        _ => {}
    }
}

fn load_balancer_class(before: Option<&Value>, spec: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = "spec.loadBalancerClass";
    let balanced = |s: &Value| text(s, "type") == "LoadBalancer";
    let class = spec["loadBalancerClass"].as_str();
    if let Some(before) = before
        && balanced(before)
        && balanced(spec)
        && before["loadBalancerClass"].as_str() != class
    {
        errors.push(FieldError::invalid(path, spec["loadBalancerClass"].clone(), "may not change once set"));
    }
    match class {
        Some(class) if balanced(spec) => {
            errors.extend(format::qualified_name(class).into_iter().map(|m| FieldError::invalid(path, class, m)));
        }
        Some(_) => errors.push(FieldError::forbidden(path, "may only be used when `type` is 'LoadBalancer'")),
        None => {}
    }
    errors
}

fn traffic_policies(spec: &Value, errors: &mut Errors) {
    let policies = ["Cluster", "Local"];
    let external = text(spec, "externalTrafficPolicy");
    let path = "spec.externalTrafficPolicy";
    if !needs_external_policy(spec) {
        if !external.is_empty() {
            errors.push(FieldError::invalid(path, external, "may only be set for externally-accessible services"));
        }
    } else if external.is_empty() {
        errors.push(FieldError::required(path, ""));
    } else if !policies.contains(&external) {
        errors.push(FieldError::not_supported(path, external, &policies));
    }
    let health = spec["healthCheckNodePort"].as_i64().unwrap_or(0);
    let path = "spec.healthCheckNodePort";
    if !needs_health_check(spec) {
        if health != 0 {
            errors.push(FieldError::invalid(
                path,
                health,
                "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
            ));
        }
    } else if health == 0 {
        errors.push(FieldError::required(path, ""));
    } else {
        errors.extend(format::port_number(health).into_iter().map(|m| FieldError::invalid(path, health, m)));
    }
    let path = "spec.internalTrafficPolicy";
    match spec["internalTrafficPolicy"].as_str() {
        None => {
            if matches!(text(spec, "type"), "NodePort" | "LoadBalancer" | "ClusterIP") {
                errors.push(FieldError::required(path, ""));
            }
        }
        Some(policy) if !policies.contains(&policy) => errors.push(FieldError::not_supported(path, policy, &policies)),
        Some(_) => {}
    }
    if let Some(distribution) = spec["trafficDistribution"].as_str() {
        let known = ["PreferClose", "PreferSameNode", "PreferSameZone"];
        if !known.contains(&distribution) {
            errors.push(FieldError::not_supported("spec.trafficDistribution", distribution, &known));
        }
    }
}

/// What may not change (the rest is [`validate`] of the new object).
pub(super) fn validate_update(old: &Value, new: &Value) -> Errors {
    let (before, after) = (&old["spec"], &new["spec"]);
    let mut errors = Errors::new();
    if text(before, "type") != "ExternalName" && text(after, "type") != "ExternalName" {
        cluster_ips_update(before, after, &mut errors);
        families_update(before, after, &mut errors);
    }
    errors
        .extend(load_balancer_class(Some(before), after).into_iter().filter(|e| e.detail == "may not change once set"));
    if needs_health_check(before)
        && needs_health_check(after)
        && before["healthCheckNodePort"] != after["healthCheckNodePort"]
    {
        errors.push(FieldError::forbidden("spec.healthCheckNodePort", "field is immutable"));
    }
    errors
}

fn cluster_ips_update(before: &Value, after: &Value, errors: &mut Errors) {
    if is_headless(before) && is_headless(after) {
        return;
    }
    let (old, new) = (strings(before, "clusterIPs"), strings(after, "clusterIPs"));
    let once_set =
        |i: usize| FieldError::invalid(format!("spec.clusterIPs[{i}]"), json!(new), "may not change once set");
    if old.len() == new.len() {
        errors.extend(old.iter().zip(&new).enumerate().filter(|(_, (o, n))| o != n).map(|(i, _)| once_set(i)));
        return;
    }
    if new.is_empty() {
        errors.push(FieldError::invalid("spec.clusterIPs[0]", json!(new), "primary clusterIP can not be unset"));
    }
    if let (Some(o), Some(n)) = (old.first(), new.first())
        && o != n
    {
        errors.push(once_set(0));
    }
    if old.len() > new.len() && new.len() == 1 && text(after, "ipFamilyPolicy") != "SingleStack" {
        errors.push(FieldError::invalid(
            "spec.ipFamilyPolicy",
            after["ipFamilyPolicy"].clone(),
            "must be set to 'SingleStack' when releasing the secondary clusterIP",
        ));
    }
}

fn families_update(before: &Value, after: &Value, errors: &mut Errors) {
    if is_headless(before) || is_headless(after) {
        return;
    }
    let (old, new) = (strings(before, "ipFamilies"), strings(after, "ipFamilies"));
    let once_set = || FieldError::invalid("spec.ipFamilies[0]", json!(new), "may not change once set");
    if old.len() == new.len() {
        errors.extend(old.iter().zip(&new).filter(|(o, n)| o != n).map(|_| once_set()));
        return;
    }
    if let (Some(o), Some(n)) = (old.first(), new.first())
        && o != n
    {
        errors.push(once_set());
    }
    if old.len() > new.len() && new.len() == 1 && text(after, "ipFamilyPolicy") != "SingleStack" {
        errors.push(FieldError::invalid(
            "spec.ipFamilyPolicy",
            after["ipFamilyPolicy"].clone(),
            "must be set to 'SingleStack' when releasing the secondary ipFamily",
        ));
    }
}

/// Advice about a Service, accepted or refused.
pub(super) fn warnings(service: &Value) -> Vec<String> {
    let spec = &service["spec"];
    let mut out = Vec::new();
    if is_headless(spec) && text(spec, "sessionAffinity") == "ClientIP" {
        out.push("spec.SessionAffinity is ignored for headless services".into());
    }
    if !text(spec, "externalTrafficPolicy").is_empty() && !needs_external_policy(spec) {
        out.push(
            "spec.externalTrafficPolicy has a meaning only for type NodePort or LoadBalancer: add `type: NodePort` or \
             `type: LoadBalancer`, or remove the field"
                .into(),
        );
    }
    if text(spec, "type") == "ExternalName" && text(spec, "externalName").parse::<std::net::IpAddr>().is_ok() {
        out.push("spec.externalName is an address: clients get a CNAME to it, which resolves nowhere".into());
    }
    out
}

#[cfg(test)]
mod tests;
