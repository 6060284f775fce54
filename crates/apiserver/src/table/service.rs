//! Services, their endpoints, and what routes to them.

use serde_json::Value;

use super::{AGE, Column, NAME, NONE, Printer, age, items, label_selector, labels, name, string_or, text, wide};

/// Entries of a list that are shown; the rest becomes "+ N more...".
const SHOWN: usize = 3;

pub(super) static SERVICE: Printer = Printer {
    columns: &[
        NAME,
        text("Type", "How the Service is reached."),
        text("Cluster-IP", "Address inside the cluster."),
        text("External-IP", "Addresses or name outside the cluster."),
        text("Port(s)", "Ports and, after a colon, node ports."),
        AGE,
        wide("Selector", "Labels of the pods behind it."),
    ],
    row: |s, now| {
        vec![
            name(s),
            string_or(&s["spec"]["type"], "").into(),
            string_or(items(&s["spec"], "clusterIPs").first().unwrap_or(&s["spec"]["clusterIP"]), NONE).into(),
            external_ip(s).into(),
            ports(s).into(),
            age(s, now),
            labels(&s["spec"]["selector"]).into(),
        ]
    },
};

fn external_ip(service: &Value) -> String {
    let spec = &service["spec"];
    let mut ips: Vec<String> =
        items(spec, "externalIPs").iter().filter_map(|v| v.as_str().map(str::to_owned)).collect();
    match spec["type"].as_str().unwrap_or_default() {
        "ExternalName" => string_or(&spec["externalName"], ""),
        "LoadBalancer" => {
            let mut all = balanced(service);
            all.append(&mut ips);
            if all.is_empty() { "<pending>".into() } else { all.join(",") }
        }
        "ClusterIP" | "NodePort" => {
            if ips.is_empty() {
                NONE.into()
            } else {
                ips.join(",")
            }
        }
        _ => "<unknown>".into(),
    }
}

/// Addresses and names of `status.loadBalancer`, each once, in order.
fn balanced(object: &Value) -> Vec<String> {
    let mut out: Vec<String> = items(&object["status"]["loadBalancer"], "ingress")
        .iter()
        .map(|i| string_or(&i["ip"], i["hostname"].as_str().unwrap_or_default()))
        .filter(|s| !s.is_empty())
        .collect();
    out.sort();
    out.dedup();
    out
}

fn ports(service: &Value) -> String {
    let list: Vec<String> = items(&service["spec"], "ports")
        .iter()
        .map(|p| {
            let protocol = p["protocol"].as_str().unwrap_or("TCP");
            match p["nodePort"].as_i64().filter(|n| *n > 0) {
                Some(node) => format!("{}:{node}/{protocol}", p["port"]),
                None => format!("{}/{protocol}", p["port"]),
            }
        })
        .collect();
    if list.is_empty() { NONE.into() } else { list.join(",") }
}

fn more(list: impl Iterator<Item = String>, empty: &str) -> String {
    let all: Vec<String> = list.collect();
    match all.len() {
        0 => empty.into(),
        n if n > SHOWN => format!("{} + {} more...", all[..SHOWN].join(","), n - SHOWN),
        _ => all.join(","),
    }
}

/// `host:port`, with brackets around IPv6.
fn host_port(ip: &str, port: &Value) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

pub(super) static ENDPOINTS: Printer = Printer {
    columns: &[NAME, text("Endpoints", "Ready addresses with their ports."), AGE],
    row: |e, now| {
        let mut all = Vec::new();
        for subset in items(e, "subsets") {
            let ips = || items(subset, "addresses").iter().map(|a| a["ip"].as_str().unwrap_or_default());
            let ports = items(subset, "ports");
            if ports.is_empty() {
                all.extend(ips().map(str::to_owned));
            }
            for port in ports {
                all.extend(ips().map(|ip| host_port(ip, &port["port"])));
            }
        }
        vec![name(e), more(all.into_iter(), NONE).into(), age(e, now)]
    },
};

pub(super) static ENDPOINT_SLICE: Printer = Printer {
    columns: &[
        NAME,
        text("AddressType", "IPv4, IPv6 or FQDN."),
        text("Ports", "Ports of every endpoint of the slice."),
        text("Endpoints", "Addresses of the slice."),
        AGE,
    ],
    row: |s, now| {
        let port = |p: &Value| p["port"].as_i64().map_or_else(|| string_or(&p["name"], "*"), |n| n.to_string());
        let addresses = items(s, "endpoints").iter().flat_map(|e| items(e, "addresses"));
        vec![
            name(s),
            string_or(&s["addressType"], "").into(),
            more(items(s, "ports").iter().map(port), "<unset>").into(),
            more(addresses.map(|a| string_or(a, "")), "<unset>").into(),
            age(s, now),
        ]
    },
};

pub(super) static INGRESS: Printer = Printer {
    columns: &[
        NAME,
        text("Class", "Ingress class."),
        text("Hosts", "Host names of its rules."),
        text("Address", "Where it is reached."),
        text("Ports", "Ports it listens on."),
        AGE,
    ],
    row: |i, now| {
        let spec = &i["spec"];
        let hosts = items(spec, "rules").iter().map(|r| string_or(&r["host"], "")).filter(|h| !h.is_empty());
        let ports = if items(spec, "tls").is_empty() { "80" } else { "80, 443" };
        vec![
            name(i),
            string_or(&spec["ingressClassName"], NONE).into(),
            more(hosts, "*").into(),
            balanced(i).join(",").into(),
            ports.into(),
            age(i, now),
        ]
    },
};

pub(super) static INGRESS_CLASS: Printer = Printer {
    columns: &[
        NAME,
        text("Controller", "Who implements the class."),
        text("Parameters", "Object that configures it."),
        AGE,
    ],
    row: |c, now| {
        let parameters = &c["spec"]["parameters"];
        let shown = if parameters.is_object() {
            let kind = string_or(&parameters["kind"], "");
            let kind = match parameters["apiGroup"].as_str().filter(|g| !g.is_empty()) {
                Some(group) => format!("{kind}.{group}"),
                None => kind,
            };
            format!("{kind}/{}", string_or(&parameters["name"], ""))
        } else {
            NONE.into()
        };
        vec![name(c), string_or(&c["spec"]["controller"], "").into(), shown.into(), age(c, now)]
    },
};

pub(super) static NETWORK_POLICY: Printer = Printer {
    columns: &[NAME, text("Pod-Selector", "Pods it is about."), AGE],
    row: |p, now| vec![name(p), label_selector(&p["spec"]["podSelector"]).into(), age(p, now)],
};

pub(super) static SERVICE_CIDR: Printer = Printer {
    columns: &[NAME, text("CIDRs", "Ranges of cluster addresses."), AGE],
    row: |c, now| {
        let cidrs: Vec<&str> = items(&c["spec"], "cidrs").iter().filter_map(Value::as_str).collect();
        vec![name(c), cidrs.join(",").into(), age(c, now)]
    },
};

const PARENT: Column = text("ParentRef", "Object that holds the address.");

pub(super) static IP_ADDRESS: Printer = Printer {
    columns: &[NAME, PARENT, AGE],
    row: |a, now| {
        let parent = &a["spec"]["parentRef"];
        let shown: Vec<&str> = ["resource", "group", "namespace", "name"]
            .iter()
            .filter_map(|f| parent[*f].as_str().filter(|s| !s.is_empty()))
            .collect();
        vec![name(a), shown.join("/").into(), age(a, now)]
    },
};
