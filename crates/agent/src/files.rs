//! The files every container finds in its /etc: `resolv.conf`, `hosts` and `hostname`, word for word as kubelet writes
//! them. Pure text: who mounts them is not decided here.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;

/// What the cluster and the host contribute to name resolution.
#[derive(Clone, Debug, Default)]
pub struct Resolver<'a> {
    /// `cluster.local`
    pub domain: &'a str,
    pub cluster_dns: &'a [IpAddr],
    /// The host's own resolv.conf.
    pub host: &'a str,
}

/// resolv.conf(5) limits that kubelet applies.
const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCH: usize = 32;

#[derive(Default)]
struct Dns {
    search: Vec<String>,
    servers: Vec<String>,
    options: Vec<(String, Option<String>)>,
}

impl Dns {
    fn parse(text: &str) -> Self {
        let mut dns = Self::default();
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => dns.servers.extend(words.next().map(str::to_owned)),
                // The last one counts (resolv.conf(5)).
                Some("search" | "domain") => dns.search = words.map(|w| w.to_owned()).collect(),
                Some("options") => dns.options.extend(words.map(option)),
                _ => {}
            }
        }
        dns
    }

    fn text(mut self) -> String {
        self.search.truncate(MAX_SEARCH);
        self.servers.truncate(MAX_NAMESERVERS);
        let mut out = String::new();
        if !self.search.is_empty() {
            out += &format!("search {}\n", self.search.join(" "));
        }
        for server in &self.servers {
            out += &format!("nameserver {server}\n");
        }
        if !self.options.is_empty() {
            let words: Vec<_> = self
                .options
                .iter()
                .map(|(n, v)| v.as_ref().map_or_else(|| n.clone(), |v| format!("{n}:{v}")))
                .collect();
            out += &format!("options {}\n", words.join(" "));
        }
        out
    }
}

fn option(word: &str) -> (String, Option<String>) {
    match word.split_once(':') {
        Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
        None => (word.to_owned(), None),
    }
}

/// By `dnsPolicy` and `dnsConfig` (KEP-504).
pub fn resolv_conf(pod: &Pod, resolver: &Resolver<'_>) -> String {
    let spec = pod.spec.as_ref();
    let host_network = spec.and_then(|s| s.host_network).unwrap_or(false);
    let policy = spec.and_then(|s| s.dns_policy.as_deref()).unwrap_or("ClusterFirst");
    let host = Dns::parse(resolver.host);
    let cluster = match policy {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !host_network,
        _ => false,
    };
    let mut dns = if policy == "None" {
        Dns::default()
    } else if cluster && !resolver.cluster_dns.is_empty() {
        let (namespace, domain) = (pod.metadata.namespace.as_deref().unwrap_or("default"), resolver.domain);
        let mut search = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
        for own in host.search {
            if !search.contains(&own) {
                search.push(own);
            }
        }
        Dns {
            search,
            servers: resolver.cluster_dns.iter().map(ToString::to_string).collect(),
            options: vec![("ndots".into(), Some("5".into()))],
        }
    } else {
        host
    };
    if let Some(config) = spec.and_then(|s| s.dns_config.as_ref()) {
        for server in config.nameservers.iter().flatten() {
            if !dns.servers.contains(server) {
                dns.servers.push(server.clone());
            }
        }
        for domain in config.searches.iter().flatten() {
            if !dns.search.contains(domain) {
                dns.search.push(domain.clone());
            }
        }
        for o in config.options.iter().flatten() {
            let Some(name) = o.name.clone() else { continue };
            match dns.options.iter_mut().find(|(n, _)| *n == name) {
                Some(found) => found.1 = o.value.clone(),
                None => dns.options.push((name, o.value.clone())),
            }
        }
    }
    dns.text()
}

/// The host name a pod sees: `spec.hostname`, else its name, cut to the 63 bytes the kernel's users expect.
pub fn hostname(pod: &Pod) -> String {
    let own = pod.spec.as_ref().and_then(|s| s.hostname.clone()).filter(|h| !h.is_empty());
    let name = own.or_else(|| pod.metadata.name.clone()).unwrap_or_default();
    let cut = name.get(..63).unwrap_or(&name);
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// `host.subdomain.namespace.svc.domain` when `spec.subdomain` is set.
pub fn fqdn(pod: &Pod, domain: &str) -> Option<String> {
    let subdomain = pod.spec.as_ref().and_then(|s| s.subdomain.as_deref()).filter(|s| !s.is_empty())?;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    Some(format!("{}.{subdomain}.{namespace}.svc.{domain}", hostname(pod)))
}

/// `host_file` is the host's own /etc/hosts, for pods on the host's network.
pub fn hosts(pod: &Pod, ips: &[IpAddr], domain: &str, host_file: &str) -> String {
    let host_network = pod.spec.as_ref().and_then(|s| s.host_network).unwrap_or(false);
    let mut out = if host_network {
        format!("# Kubernetes-managed hosts file (host network).\n{host_file}")
    } else {
        let mut text = String::from(
            "# Kubernetes-managed hosts file.\n\
             127.0.0.1\tlocalhost\n\
             ::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::0\tip6-localnet\n\
             fe00::0\tip6-mcastprefix\n\
             fe00::1\tip6-allnodes\n\
             fe00::2\tip6-allrouters\n",
        );
        let hostname = hostname(pod);
        for ip in ips {
            match fqdn(pod, domain) {
                Some(full) => text += &format!("{ip}\t{full}\t{hostname}\n"),
                None => text += &format!("{ip}\t{hostname}\n"),
            }
        }
        text
    };
    let aliases = pod.spec.as_ref().and_then(|s| s.host_aliases.as_deref()).unwrap_or_default();
    if !aliases.is_empty() {
        out += "\n# Entries added by HostAliases.\n";
        for alias in aliases {
            let names = alias.hostnames.as_deref().unwrap_or_default();
            out += &format!("{}\t{}\n", alias.ip, names.join("\t"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(namespace: &str, spec: serde_json::Value) -> Pod {
        let mut spec = spec;
        spec["containers"] = json!([]);
        serde_json::from_value(json!({"metadata": {"name": "web-0", "namespace": namespace}, "spec": spec}))
            .expect("pod")
    }

    fn conf(pod: &Pod) -> String {
        let dns = ["10.96.0.10".parse().expect("ip")];
        let host = "nameserver 192.0.2.1\nsearch example.org\noptions timeout:1\n";
        resolv_conf(pod, &Resolver { domain: "cluster.local", cluster_dns: &dns, host })
    }

    #[test]
    fn seed_141_resolv_conf_has_three_lines() {
        let dns = ["10.96.0.10".parse().expect("ip")];
        let text =
            resolv_conf(&pod("default", json!({})), &Resolver { domain: "cluster.local", cluster_dns: &dns, host: "" });
        assert_eq!(
            text,
            "search default.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n"
        );
    }

    #[test]
    fn seed_142_the_pods_own_namespace_comes_first_and_the_hosts_domains_last() {
        assert!(conf(&pod("team", json!({}))).starts_with(
            "search team.svc.cluster.local svc.cluster.local cluster.local example.org\nnameserver 10.96.0.10\n"
        ));
    }

    #[test]
    fn seed_143_dns_policy_and_options_override() {
        let host = "search example.org\nnameserver 192.0.2.1\noptions timeout:1\n";
        assert_eq!(conf(&pod("default", json!({"dnsPolicy": "Default"}))), host);
        assert_eq!(conf(&pod("default", json!({"hostNetwork": true}))), host);
        assert!(
            conf(&pod("default", json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"})))
                .contains("10.96.0.10")
        );
        let none = json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.2.3.4"], "searches": ["a.b"],
            "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}});
        assert_eq!(conf(&pod("default", none)), "search a.b\nnameserver 1.2.3.4\noptions ndots:2 edns0\n");
        let merged = json!({"dnsConfig": {"options": [{"name": "ndots", "value": "1"}]}});
        assert!(conf(&pod("default", merged)).ends_with("options ndots:1\n"));
    }

    #[test]
    fn hosts_is_kubelets() {
        let ips = ["10.244.0.5".parse().expect("ip")];
        let text = hosts(&pod("default", json!({})), &ips, "cluster.local", "");
        assert!(
            text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n")
                && text.ends_with("\n10.244.0.5\tweb-0\n")
        );
        let named = json!({"subdomain": "nginx", "hostAliases": [{"ip": "1.1.1.1", "hostnames": ["a", "b"]}]});
        let text = hosts(&pod("default", named), &ips, "cluster.local", "");
        assert!(text.contains("10.244.0.5\tweb-0.nginx.default.svc.cluster.local\tweb-0\n"));
        assert!(text.ends_with("\n# Entries added by HostAliases.\n1.1.1.1\ta\tb\n"));
        assert!(
            hosts(&pod("d", json!({"hostNetwork": true})), &[], "x", "127.0.0.1 me\n")
                .contains("(host network).\n127.0.0.1 me")
        );
    }
}
