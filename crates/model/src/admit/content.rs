//! The smaller kinds: Endpoints, EndpointSlice, ConfigMap, Secret, Ingress, Lease and friends.

use serde_json::{Value, json};

use super::{ErrorKind, FieldError, format, list, meta, service};

type Errors = Vec<FieldError>;

/// Upstream's limits for one slice (`pkg/apis/discovery/validation`).
const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;
const MAX_PORTS: usize = 20_000;
/// ConfigMaps and Secrets, in bytes.
const MAX_DATA: usize = 1024 * 1024;

fn text<'a>(of: &'a Value, field: &str) -> &'a str {
    of[field].as_str().unwrap_or_default()
}

pub(super) fn validate(kind: &str, object: &Value) -> Errors {
    let mut errors = Errors::new();
    match kind {
        "Endpoints" => endpoints(object, &mut errors),
        "EndpointSlice" => endpoint_slice(object, &mut errors),
        "ConfigMap" => data(object, &["data", "binaryData"], &mut errors),
        "Secret" => {
            data(object, &["data"], &mut errors);
            secret(object, &mut errors);
        }
        "Ingress" => ingress(object, &mut errors),
        "Lease" => {
            for field in ["leaseDurationSeconds", "leaseTransitions"] {
                let value = object["spec"][field].as_i64();
                let (bad, why) = if field == "leaseDurationSeconds" {
                    (value.is_some_and(|v| v <= 0), "must be greater than 0")
                } else {
                    (value.is_some_and(|v| v < 0), "must be greater than or equal to 0")
                };
                if bad {
                    errors.push(FieldError::invalid(format!("spec.{field}"), value, why));
                }
            }
        }
        "NetworkPolicy" => errors.extend(meta::label_selector(&object["spec"]["podSelector"], "spec.podSelector")),
        "PersistentVolumeClaim" => {
            let spec = &object["spec"];
            if list(spec, "accessModes").is_empty() {
                errors.push(FieldError::required("spec.accessModes", "at least 1 access mode is required"));
            }
            if spec["resources"]["requests"]["storage"].is_null() {
                errors.push(FieldError::required("spec.resources[storage]", ""));
            }
        }
        "ServiceCIDR" => service_cidr(object, &mut errors),
        "IPAddress" => {
            if object["spec"]["parentRef"].is_null() {
                errors.push(FieldError::required("spec.parentRef", ""));
            }
        }
        "RoleBinding" | "ClusterRoleBinding" => {
            let role = &object["roleRef"];
            if !matches!(text(role, "kind"), "Role" | "ClusterRole") {
                errors.push(FieldError::not_supported("roleRef.kind", text(role, "kind"), &["ClusterRole", "Role"]));
            }
            if text(role, "name").is_empty() {
                errors.push(FieldError::required("roleRef.name", ""));
            }
        }
        "Event" => {
            let namespace = text(&object["involvedObject"], "namespace");
            let own = text(&object["metadata"], "namespace");
            if !namespace.is_empty() && namespace != own {
                errors.push(FieldError::invalid(
                    "involvedObject.namespace",
                    namespace,
                    "does not match event.namespace",
                ));
            }
        }
        _ => {}
    }
    errors
}

pub(super) fn validate_update(kind: &str, old: &Value, new: &Value) -> Errors {
    let mut errors = Errors::new();
    let mut fixed = |field: &str, value: Value, detail: &str| errors.push(FieldError::invalid(field, value, detail));
    match kind {
        "EndpointSlice" if old["addressType"] != new["addressType"] => {
            fixed("addressType", new["addressType"].clone(), "field is immutable");
        }
        "RoleBinding" | "ClusterRoleBinding" if old["roleRef"] != new["roleRef"] => {
            fixed("roleRef", new["roleRef"].clone(), "cannot change roleRef");
        }
        "PersistentVolumeClaim" => {
            let masked = |claim: &Value| {
                let mut spec = claim["spec"].clone();
                if let Some(map) = spec.as_object_mut() {
                    map.remove("resources");
                    map.remove("volumeAttributesClassName");
                    // Binding fills these in.
                    map.remove("volumeName");
                    map.remove("storageClassName");
                }
                spec
            };
            if masked(old) != masked(new) {
                errors.push(FieldError::forbidden(
                    "spec",
                    "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
                ));
            }
        }
        "ConfigMap" | "Secret" => {
            if kind == "Secret" && old["type"] != new["type"] {
                fixed("type", new["type"].clone(), "field is immutable");
            }
            if old["immutable"] == true {
                for field in ["immutable", "data", "binaryData"] {
                    if old.get(field) != new.get(field) {
                        errors.push(FieldError::forbidden(field, "field is immutable when `immutable` is set"));
                    }
                }
            }
        }
        _ => {}
    }
    errors
}

fn endpoints(object: &Value, errors: &mut Errors) {
    for (i, subset) in list(object, "subsets").iter().enumerate() {
        let at = format!("subsets[{i}]");
        if list(subset, "addresses").is_empty() && list(subset, "notReadyAddresses").is_empty() {
            errors.push(FieldError::required(at.clone(), "must specify `addresses` or `notReadyAddresses`"));
        }
        for field in ["addresses", "notReadyAddresses"] {
            for (j, address) in list(subset, field).iter().enumerate() {
                let ip = text(address, "ip");
                endpoint_ip(ip, &format!("{at}.{field}[{j}].ip"), errors);
                let hostname = text(address, "hostname");
                if !hostname.is_empty() {
                    let path = format!("{at}.{field}[{j}].hostname");
                    errors.extend(
                        format::dns_label(hostname).into_iter().map(|m| FieldError::invalid(path.clone(), hostname, m)),
                    );
                }
            }
        }
        let ports = list(subset, "ports");
        for (j, port) in ports.iter().enumerate() {
            let path = format!("{at}.ports[{j}]");
            match text(port, "name") {
                "" if ports.len() > 1 => errors.push(FieldError::required(format!("{path}.name"), "")),
                "" => {}
                name => errors.extend(
                    format::dns_label(name).into_iter().map(|m| FieldError::invalid(format!("{path}.name"), name, m)),
                ),
            }
            let number = port["port"].as_i64().unwrap_or(0);
            errors.extend(
                format::port_number(number).into_iter().map(|m| FieldError::invalid(format!("{path}.port"), number, m)),
            );
            service::protocol(port, &path, errors);
        }
    }
}

fn endpoint_ip(ip: &str, path: &str, errors: &mut Errors) {
    match format::ip(ip) {
        Err(message) => errors.push(FieldError::invalid(path, ip, message)),
        Ok(parsed) => {
            errors.extend(format::special_ip(&parsed).into_iter().map(|m| FieldError::invalid(path, ip, m)));
        }
    }
}

fn endpoint_slice(object: &Value, errors: &mut Errors) {
    let address_type = text(object, "addressType");
    match address_type {
        "" => errors.push(FieldError::required("addressType", "")),
        "IPv4" | "IPv6" | "FQDN" => {}
        other => errors.push(FieldError::not_supported("addressType", other, &["FQDN", "IPv4", "IPv6"])),
    }
    let endpoints = list(object, "endpoints");
    if endpoints.len() > MAX_ENDPOINTS {
        errors.push(FieldError::too_many("endpoints", endpoints.len(), MAX_ENDPOINTS));
    } else {
        for (i, endpoint) in endpoints.iter().enumerate() {
            slice_endpoint(endpoint, address_type, &format!("endpoints[{i}]"), errors);
        }
    }
    let ports = list(object, "ports");
    if ports.len() > MAX_PORTS {
        errors.push(FieldError::too_many("ports", ports.len(), MAX_PORTS));
        return;
    }
    let mut names: Vec<&str> = Vec::new();
    for (i, port) in ports.iter().enumerate() {
        let path = format!("ports[{i}]");
        let name = text(port, "name");
        if !name.is_empty() {
            errors.extend(
                format::dns_label(name).into_iter().map(|m| FieldError::invalid(format!("{path}.name"), name, m)),
            );
        }
        if names.contains(&name) {
            errors.push(FieldError::duplicate(format!("{path}.name"), name));
        }
        names.push(name);
        service::protocol(port, &path, errors);
        if let Some(number) = port["port"].as_i64() {
            errors.extend(
                format::port_number(number).into_iter().map(|m| FieldError::invalid(format!("{path}.port"), number, m)),
            );
        }
    }
}

fn slice_endpoint(endpoint: &Value, address_type: &str, path: &str, errors: &mut Errors) {
    let addresses = service::strings(endpoint, "addresses");
    if addresses.is_empty() {
        errors.push(FieldError::required(format!("{path}.addresses"), "must contain at least 1 address"));
    } else if addresses.len() > MAX_ADDRESSES {
        errors.push(FieldError::too_many(format!("{path}.addresses"), addresses.len(), MAX_ADDRESSES));
    }
    for (i, address) in addresses.iter().enumerate() {
        let at = format!("{path}.addresses[{i}]");
        match address_type {
            "FQDN" => {
                errors.extend(
                    format::dns_subdomain(address)
                        .into_iter()
                        .map(|m| FieldError::invalid(at.clone(), address.as_str(), m)),
                );
            }
            "IPv4" | "IPv6" => match address.parse::<std::net::IpAddr>() {
                Ok(ip) if ip.is_ipv4() == (address_type == "IPv4") => endpoint_ip(address, &at, errors),
                _ => errors.push(FieldError::invalid(
                    at,
                    address.as_str(),
                    format!("must be a valid {address_type} address"),
                )),
            },
            _ => {}
        }
    }
    let hostname = text(endpoint, "hostname");
    if !hostname.is_empty() {
        let at = format!("{path}.hostname");
        errors.extend(format::dns_label(hostname).into_iter().map(|m| FieldError::invalid(at.clone(), hostname, m)));
    }
    let node = text(endpoint, "nodeName");
    if !node.is_empty() {
        let at = format!("{path}.nodeName");
        errors.extend(format::dns_subdomain(node).into_iter().map(|m| FieldError::invalid(at.clone(), node, m)));
    }
}

fn data(object: &Value, fields: &[&str], errors: &mut Errors) {
    let mut total = 0;
    for field in fields {
        for (key, value) in object[*field].as_object().into_iter().flatten() {
            errors.extend(
                format::config_key(key)
                    .into_iter()
                    .map(|m| FieldError::invalid(format!("{field}[{key}]"), key.as_str(), m)),
            );
            let length = value.as_str().map_or(0, str::len);
            // base64 is a third longer than what it stands for
            let plain = if *field == "binaryData" || fields.len() == 1 { length / 4 * 3 } else { length };
            total += plain;
            if *field == "binaryData" && object["data"].get(key).is_some() {
                let detail = format!("duplicate of key present in data: {key}");
                errors.push(FieldError::invalid(format!("binaryData[{key}]"), key.as_str(), detail));
            }
        }
    }
    if total > MAX_DATA {
        errors.push(FieldError::too_long("", MAX_DATA));
    }
}

fn secret(object: &Value, errors: &mut Errors) {
    let needed: &[&str] = match text(object, "type") {
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        _ => &[],
    };
    for key in needed.iter().filter(|k| object["data"].get(**k).is_none()) {
        errors.push(FieldError::required(format!("data[{key}]"), ""));
    }
}

fn ingress(object: &Value, errors: &mut Errors) {
    let spec = &object["spec"];
    if list(spec, "rules").is_empty() && spec["defaultBackend"].is_null() {
        errors.push(FieldError::invalid("spec", json!([]), "either `defaultBackend` or `rules` must be specified"));
    }
    for (i, rule) in list(spec, "rules").iter().enumerate() {
        for (j, path) in list(&rule["http"], "paths").iter().enumerate() {
            let at = format!("spec.rules[{i}].http.paths[{j}]");
            match text(path, "pathType") {
                "" => errors.push(FieldError::required(format!("{at}.pathType"), "pathType must be specified")),
                "Exact" | "Prefix" => {
                    if !text(path, "path").starts_with('/') {
                        errors.push(FieldError::invalid(
                            format!("{at}.path"),
                            text(path, "path"),
                            "must be an absolute path",
                        ));
                    }
                }
                "ImplementationSpecific" => {}
                other => {
                    let known = ["Exact", "ImplementationSpecific", "Prefix"];
                    errors.push(FieldError::not_supported(format!("{at}.pathType"), other, &known));
                }
            }
        }
    }
}

fn service_cidr(object: &Value, errors: &mut Errors) {
    let cidrs = service::strings(&object["spec"], "cidrs");
    if cidrs.is_empty() {
        errors.push(FieldError::required("spec.cidrs", "at least one CIDR required"));
    }
    if cidrs.len() > 2 {
        errors.push(FieldError::invalid("spec", json!(cidrs), "may only hold up to 2 values"));
    }
    for (i, cidr) in cidrs.iter().enumerate() {
        if let Err(message) = format::cidr(cidr) {
            errors.push(FieldError::new(ErrorKind::Invalid, format!("spec.cidrs[{i}]"), cidr.as_str(), message));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{default, validate_create};
    use super::*;

    fn refusals(kind: &str, mut object: Value) -> Vec<String> {
        object["metadata"] = json!({"name": "x"});
        default(kind, &mut object);
        validate_create(kind, &object).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn loopback_endpoints_are_refused() {
        let e = json!({"subsets": [{"addresses": [{"ip": "127.0.0.1"}], "ports": [{"port": 80}]}]});
        assert_eq!(
            refusals("Endpoints", e),
            [
                "subsets[0].addresses[0].ip: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)"
            ]
        );
        let s = json!({"addressType": "IPv4", "endpoints": [{"addresses": ["127.0.0.1"]}, {"addresses": ["::2"]}, {"addresses": []}]});
        assert_eq!(
            refusals("EndpointSlice", s),
            [
                "endpoints[0].addresses[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
                "endpoints[1].addresses[0]: Invalid value: \"::2\": must be a valid IPv4 address",
                "endpoints[2].addresses: Required value: must contain at least 1 address"
            ]
        );
    }

    #[test]
    fn seed_086_portless_endpoints_are_fine() {
        assert!(refusals("Endpoints", json!({"subsets": [{"addresses": [{"ip": "10.0.0.1"}]}]})).is_empty());
        assert!(
            refusals("EndpointSlice", json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}]}))
                .is_empty()
        );
    }

    #[test]
    fn slices_are_bounded() {
        let many: Vec<Value> =
            (0..1001).map(|i| json!({"addresses": [format!("10.0.{}.{}", i / 256, i % 256)]})).collect();
        assert_eq!(
            refusals("EndpointSlice", json!({"addressType": "IPv4", "endpoints": many})),
            ["endpoints: Too many: 1001: must have at most 1000 items"]
        );
    }

    #[test]
    fn config_keys() {
        assert!(refusals("ConfigMap", json!({"data": {"a.b_C-1": "x"}})).is_empty());
        assert!(
            refusals("ConfigMap", json!({"data": {"a/b": "x"}}))[0]
                .starts_with("data[a/b]: Invalid value: \"a/b\": a valid config key")
        );
        assert_eq!(
            refusals("ConfigMap", json!({"data": {"a": "x".repeat(2 << 20)}})),
            ["[]: Too long: may not be more than 1048576 bytes"]
        );
    }
}
