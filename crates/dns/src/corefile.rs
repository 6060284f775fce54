//! The Corefile, as far as it says something about a name server like this one: which zone, which upstream servers,
//! stub domains, hosts, TTLs. What would mean something that we do not do is refused by name, so that nobody believes
//! it to be in force; what is already true of this server (`errors`, `loop`, `loadbalance`, ...) is accepted.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
};

use model::names::{Name, PodNames};

use crate::{Config, Upstreams, forward::Hosts};

/// What is said in a Corefile.
#[derive(Clone, Debug, Default)]
pub struct Corefile {
    /// The cluster's domain, from `kubernetes`.
    pub zone: Option<Name>,
    /// Seconds, from `kubernetes { ttl }`.
    pub ttl: Option<u32>,
    pub pods: Option<PodNames>,
    pub upstreams: Option<Upstreams>,
    pub stubs: Vec<(Name, Vec<SocketAddr>)>,
    pub hosts: Hosts,
    /// Seconds, from `cache` of the root's block.
    pub cache: Option<u32>,
    /// From `autopath @kubernetes`.
    pub search_path: Option<bool>,
    /// From `prometheus`.
    pub metrics: Option<SocketAddr>,
    /// From `transfer { to }`.
    pub transfer_to: Vec<ipnet::IpNet>,
}

/// A line that cannot be honoured, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Corefile line {line}: {what}")]
pub struct Refused {
    pub line: usize,
    pub what: String,
}

/// One directive: its words, and the lines of its block.
#[derive(Debug)]
struct Directive<'a> {
    line: usize,
    words: Vec<&'a str>,
    block: Vec<Directive<'a>>,
}

impl Directive<'_> {
    fn refuse<T>(&self, what: impl Into<String>) -> Result<T, Refused> {
        Err(Refused { line: self.line, what: what.into() })
    }

    /// The one word behind the first, read as a T.
    fn value<T: std::str::FromStr>(&self, what: &str) -> Result<T, Refused> {
        match self.words.get(1).and_then(|w| w.parse().ok()) {
            Some(value) => Ok(value),
            None => self.refuse(format!("{} wants {what}", self.words[0])),
        }
    }
}

/// Directives up to the end of the text or of a block.
fn directives<'a>(
    lines: &mut impl Iterator<Item = (usize, &'a str)>,
    nested: bool,
) -> Result<Vec<Directive<'a>>, Refused> {
    let mut all = Vec::new();
    let mut last = 0;
    while let Some((line, text)) = lines.next() {
        last = line;
        let text = text.split('#').next().unwrap_or_default();
        let mut words: Vec<_> = text.split_whitespace().collect();
        match words.last() {
            None => continue,
            Some(&"}") if words.len() == 1 && nested => return Ok(all),
            Some(&"{") => {
                words.pop();
                let block = directives(lines, true)?;
                all.push(Directive { line, words, block });
            }
            Some(_) if words.iter().any(|w| matches!(*w, "{" | "}")) => {
                return Err(Refused { line, what: "a brace belongs at the end of a line, or on its own".into() });
            }
            Some(_) => all.push(Directive { line, words, block: Vec::new() }),
        }
    }
    if nested {
        return Err(Refused { line: last, what: "a block is not closed: } is missing".into() });
    }
    Ok(all)
}

impl Corefile {
    pub fn parse(text: &str) -> Result<Self, Refused> {
        let mut all = Self::default();
        for block in directives(&mut text.lines().enumerate().map(|(i, l)| (i + 1, l)), false)? {
            if block.words.is_empty() {
                return block.refuse("a server block wants a zone in front of {");
            }
            for address in &block.words {
                all.server(&block, address.trim_end_matches(','))?;
            }
        }
        Ok(all)
    }

    fn server(&mut self, block: &Directive<'_>, address: &str) -> Result<(), Refused> {
        if let Some((scheme, _)) = address.split_once("://")
            && scheme != "dns"
        {
            return block.refuse(format!("{scheme}:// is not served: DNS over UDP and TCP is"));
        }
        let zone = address.trim_start_matches("dns://");
        let zone = zone.rsplit_once(':').map_or(zone, |(zone, _port)| zone);
        let Ok(zone) = zone.parse::<Name>() else {
            return block.refuse(format!("{address} is not a zone"));
        };
        for plugin in &block.block {
            self.plugin(plugin, &zone)?;
        }
        Ok(())
    }

    fn plugin(&mut self, d: &Directive<'_>, zone: &Name) -> Result<(), Refused> {
        match d.words.first().copied().unwrap_or_default() {
            // True of this server whether or not somebody says so.
            "errors" | "loop" | "reload" | "loadbalance" | "health" | "ready" | "log" | "bufsize" | "nsid" | "minimal"
            | "cancel" | "any" => Ok(()),
            "prometheus" => {
                let text = d.words.get(1).copied().unwrap_or(":9153");
                let full = if text.starts_with(':') { format!("0.0.0.0{text}") } else { text.to_owned() };
                match full.parse() {
                    Ok(address) => self.metrics = Some(address),
                    Err(_) => return d.refuse(format!("prometheus {text}: not an address with a port")),
                }
                Ok(())
            }
            "kubernetes" => self.kubernetes(d),
            "forward" => self.forward(d, zone),
            "cache" => self.cache(d, zone),
            "hosts" => self.hosts(d),
            "autopath" if d.words.last() == Some(&"@kubernetes") => {
                self.search_path = Some(true);
                Ok(())
            }
            "transfer" => {
                for to in d.block.iter().filter(|o| o.words[0] == "to") {
                    for host in &to.words[1..] {
                        let nets: Vec<ipnet::IpNet> = match *host {
                            "*" => ["0.0.0.0/0", "::/0"].iter().filter_map(|n| n.parse().ok()).collect(),
                            host => host.parse::<IpAddr>().map(Into::into).or(host.parse()).into_iter().collect(),
                        };
                        if nets.is_empty() {
                            return to.refuse(format!("transfer to {host}: not an address or a network"));
                        }
                        self.transfer_to.extend(nets);
                    }
                }
                Ok(())
            }
            other => d.refuse(format!(
                "plugin {other} is not supported; there are kubernetes, forward, cache, hosts, prometheus, transfer and autopath"
            )),
        }
    }

    fn kubernetes(&mut self, d: &Directive<'_>) -> Result<(), Refused> {
        for zone in &d.words[1..] {
            let Ok(name) = zone.parse::<Name>() else { return d.refuse(format!("{zone} is not a zone")) };
            // Reverse zones are served for the ranges of the cluster.
            if zone.trim_end_matches('.').ends_with(".arpa") {
                continue;
            }
            if self.zone.is_some_and(|z| z != name) {
                return d.refuse(format!("{zone} is a second zone of the cluster; only one is served"));
            }
            self.zone = Some(name);
        }
        for option in &d.block {
            match option.words[0] {
                "ttl" => {
                    let ttl = option.value("a number of seconds up to 3600")?;
                    if ttl > 3600 {
                        return option.refuse("ttl wants a number of seconds up to 3600");
                    }
                    self.ttl = Some(ttl);
                }
                "pods" => {
                    self.pods = Some(match option.words.get(1) {
                        Some(&"disabled") => PodNames::Disabled,
                        Some(&"insecure") => PodNames::Insecure,
                        Some(&"verified") => PodNames::Verified,
                        _ => return option.refuse("pods wants disabled, insecure or verified"),
                    });
                }
                // Reverse names of others always fall through, and endpoints have the names of their pods.
                "fallthrough" | "upstream" => {}
                other => return option.refuse(format!("kubernetes option {other} is not supported")),
            }
        }
        Ok(())
    }

    fn forward(&mut self, d: &Directive<'_>, zone: &Name) -> Result<(), Refused> {
        let Some((from, to)) = d.words[1..].split_first() else { return d.refuse("forward wants FROM TO...") };
        let Ok(from) = from.parse::<Name>() else { return d.refuse(format!("{from} is not a zone")) };
        // `forward .` in the block of a stub domain is about that domain.
        let from = if from.is_empty() { *zone } else { from };
        for option in &d.block {
            match option.words[0] {
                "policy" | "max_concurrent" | "max_fails" | "expire" | "health_check" | "prefer_udp" | "next" => {}
                other => return option.refuse(format!("forward option {other} is not supported")),
            }
        }
        let mut servers = Vec::new();
        for server in to {
            if server.starts_with('/') {
                if !from.is_empty() || to.len() > 1 {
                    return d.refuse("a resolv.conf can only stand alone, and for all names");
                }
                self.upstreams = Some(Upstreams::ResolvConf(server.into()));
                return Ok(());
            }
            match server_address(server) {
                Some(address) => servers.push(address),
                None => {
                    return d.refuse(format!(
                        "forward to {server}: only plain addresses, with or without a port, are asked"
                    ));
                }
            }
        }
        if servers.is_empty() {
            return d.refuse("forward wants at least one server");
        }
        match from.is_empty() {
            true => self.upstreams = Some(Upstreams::Servers(servers)),
            false => self.stubs.push((from, servers)),
        }
        Ok(())
    }

    fn cache(&mut self, d: &Directive<'_>, zone: &Name) -> Result<(), Refused> {
        for option in &d.block {
            match option.words[0] {
                "success" | "denial" | "prefetch" | "serve_stale" | "servfail" | "disable" | "keepttl" => {}
                other => return option.refuse(format!("cache option {other} is not supported")),
            }
        }
        if zone.is_empty() && d.words.len() > 1 {
            self.cache = Some(d.value("a number of seconds")?);
        }
        Ok(())
    }

    fn hosts(&mut self, d: &Directive<'_>) -> Result<(), Refused> {
        if let Some(file) = d.words.get(1).filter(|w| w.starts_with('/')) {
            let read = std::fs::read_to_string(Path::new(file)).map_err(|e| e.to_string());
            if let Err(e) = read.and_then(|text| self.hosts.read(&text)) {
                return d.refuse(format!("hosts {file}: {e}"));
            }
        }
        for entry in &d.block {
            match entry.words[0] {
                "ttl" => self.hosts.ttl = entry.value("a number of seconds")?,
                "fallthrough" | "no_reverse" | "reload" => {}
                _ => {
                    if let Err(e) = self.hosts.read(&entry.words.join(" ")) {
                        return entry.refuse(format!("hosts: {e}"));
                    }
                }
            }
        }
        Ok(())
    }

    /// Puts what is said into `config`, and leaves the rest of it as it is.
    pub fn apply(self, config: &mut Config) {
        let zone = &mut config.zone;
        zone.name = self.zone.unwrap_or(zone.name);
        zone.ttl = self.ttl.unwrap_or(zone.ttl);
        zone.pods = self.pods.unwrap_or(zone.pods);
        config.search_path = self.search_path.unwrap_or(config.search_path);
        config.metrics = self.metrics.or(config.metrics);
        config.cache = self.cache.or(config.cache);
        if let Some(upstreams) = self.upstreams {
            config.upstreams = upstreams;
        }
        config.stubs.extend(self.stubs);
        if !self.hosts.is_empty() {
            config.hosts = self.hosts;
        }
        config.transfer_to.extend(self.transfer_to);
    }
}

/// `192.0.2.1`, `192.0.2.1:5353`, `[2001:db8::1]:53` or `2001:db8::1`.
fn server_address(text: &str) -> Option<SocketAddr> {
    let text = text.trim_start_matches("dns://");
    text.parse().ok().or_else(|| Some(SocketAddr::new(text.parse::<IpAddr>().ok()?, 53)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What kubeadm installs, and a stub domain.
    const KUBEADM: &str = ".:53 {
    errors
    health {
       lameduck 5s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
    }
    prometheus :9153
    hosts {
       192.0.2.7 db.example # by hand
       fallthrough
    }
    forward . 192.0.2.1 192.0.2.2:5353 {
       max_concurrent 1000
    }
    cache 30 {
       disable success cluster.local
       disable denial cluster.local
    }
    loop
    reload
    loadbalance
}
corp.example:53 {
    cache 30
    forward . 10.1.2.3
}
";

    #[test]
    fn what_kubeadm_installs_is_understood() {
        let mut config = Config::new(crate::tests::zone(), Vec::new());
        Corefile::parse(KUBEADM).unwrap().apply(&mut config);
        assert_eq!(config.zone.name.to_string(), "cluster.local.");
        assert_eq!((config.zone.ttl, config.zone.pods, config.cache), (30, PodNames::Insecure, Some(30)));
        let servers = ["192.0.2.1:53", "192.0.2.2:5353"].map(|s| s.parse().unwrap()).to_vec();
        assert_eq!(config.upstreams, Upstreams::Servers(servers));
        assert_eq!(config.stubs, [("corp.example".parse().unwrap(), vec!["10.1.2.3:53".parse().unwrap()])]);
        assert!(!config.hosts.is_empty());
        assert_eq!(config.metrics, Some("0.0.0.0:9153".parse().unwrap()));
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        for (text, says) in [
            (". {\n rewrite name a b\n}", "line 2: plugin rewrite is not supported"),
            (". {\n kubernetes cluster.local {\n  namespaces a\n }\n}", "line 3: kubernetes option namespaces is"),
            (". {\n forward . tls://192.0.2.1\n}", "line 2: forward to tls://192.0.2.1: only plain addresses"),
            ("tls://. {\n}", "line 1: tls:// is not served"),
            (". {\n errors\n", "line 2: a block is not closed"),
            (". {\n kubernetes a.b {\n ttl x\n }\n}", "line 3: ttl wants a number"),
            (". {\n hosts {\n x y\n }\n}", "line 3: hosts: line 1: no address"),
        ] {
            let error = Corefile::parse(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("Corefile {says}")), "{text}: {error}");
        }
    }
}
