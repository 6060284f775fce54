//! Every option of a stand-alone node in one tree, validated before anything is opened or made.
//! Option names are kube-apiserver's, kube-proxy's and kubelet's wherever they have one.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    str::FromStr,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use ipnet::{IpNet, Ipv4Net};

/// Where the state of one instance lives.
#[derive(Args, Clone, Debug)]
pub struct Dirs {
    /// Objects, keys, kubeconfig and images; survives `down`
    #[arg(long, env = "PORTOLAN_DATA_DIR", value_name = "DIR", default_value = "/var/lib/portolan")]
    pub data_dir: PathBuf,
    /// What exists only while it runs: network namespaces, containers, the admin socket
    #[arg(long, env = "PORTOLAN_RUN_DIR", value_name = "DIR", default_value = "/run/portolan")]
    pub run_dir: PathBuf,
}

impl Dirs {
    pub fn kubeconfig(&self) -> PathBuf {
        self.data_dir.join("kubeconfig")
    }
    pub fn admin_socket(&self) -> PathBuf {
        self.run_dir.join("admin.sock")
    }
    pub fn instance(&self) -> PathBuf {
        self.run_dir.join("instance.json")
    }
}

#[derive(Args, Clone, Debug)]
pub struct Options {
    #[command(flatten)]
    pub dirs: Dirs,
    /// Addresses of Services; the first belongs to the API server, the tenth to DNS
    #[arg(long, value_name = "CIDR", default_value = "10.96.0.0/12")]
    pub service_cluster_ip_range: Ipv4Net,
    /// Addresses of pods; each node takes a /24 of it
    #[arg(long, value_name = "CIDR", default_value = "10.244.0.0/16")]
    pub cluster_cidr: Ipv4Net,
    /// Ports for Services of type NodePort
    #[arg(long, value_name = "FROM-TO", default_value = "30000-32767")]
    pub service_node_port_range: PortRange,
    /// Node addresses at which Services of type NodePort answer (may be given more than once) [default: all]
    #[arg(long = "nodeport-addresses", value_name = "CIDR", value_delimiter = ',')]
    pub node_port_addresses: Vec<IpNet>,
    /// Addresses for Services of type LoadBalancer (may be given more than once)
    #[arg(long = "lb-pool", value_name = "CIDR", default_value = "10.112.0.0/24")]
    pub lb_pools: Vec<IpNet>,
    /// The zone the cluster's DNS is authoritative for
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Name servers for everything outside the zone [default: those of /etc/resolv.conf]
    #[arg(long = "dns-upstream", value_name = "ADDRESS[:PORT]")]
    pub dns_upstreams: Vec<Upstream>,
    /// Name of the node
    #[arg(long, value_name = "NAME", default_value = "portolan")]
    pub node_name: String,
    /// Address the node is known by [default: the one that leads to the default route]
    #[arg(long, value_name = "ADDRESS")]
    pub node_ip: Option<IpAddr>,
    /// Port of the API server on loopback
    #[arg(long, value_name = "PORT", default_value_t = 6443, value_parser = clap::value_parser!(u16).range(1..))]
    pub secure_port: u16,
    /// Pull images of a registry from somewhere else, such as docker.io=http://127.0.0.1:5000 (may be given more than once)
    #[arg(long = "registry-mirror", value_name = "HOST=URL")]
    pub registry_mirrors: Vec<agent::image::Mirror>,
    /// Answer requests for v1 Endpoints with kube-apiserver's deprecation warning
    #[arg(long)]
    pub endpoints_warning: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRange(pub RangeInclusive<u16>);

impl FromStr for PortRange {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let wrong = || format!("{s:?} is not a port range; write it as FROM-TO, such as 30000-32767");
        let (from, to) = s.split_once('-').ok_or_else(wrong)?;
        let (from, to): (u16, u16) = (from.parse().map_err(|_| wrong())?, to.parse().map_err(|_| wrong())?);
        if from == 0 || from > to { Err(wrong()) } else { Ok(Self(from..=to)) }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0.start(), self.0.end())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upstream(pub SocketAddr);

impl FromStr for Upstream {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        s.parse::<SocketAddr>()
            .or_else(|_| s.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53)))
            .map(Self)
            .map_err(|_| format!("{s:?} is not a name server; write an address such as 192.0.2.53 or 192.0.2.53:5353"))
    }
}

/// The validated options with everything that follows from them.
#[derive(Clone, Debug)]
pub struct Config {
    pub options: Options,
    pub pod_cidr: Ipv4Net,
    /// First address of `pod_cidr`: the bridge, and the pods' way out.
    pub gateway: Ipv4Addr,
    pub node_ip: IpAddr,
    /// Tenth address of the Service range.
    pub dns_service_ip: Ipv4Addr,
}

impl Config {
    pub fn new(options: Options) -> Result<Self> {
        let services = options.service_cluster_ip_range.trunc();
        ensure!(
            (12..=28).contains(&services.prefix_len()),
            "--service-cluster-ip-range {services}: choose a prefix length from 12 to 28"
        );
        let pods = options.cluster_cidr.trunc();
        ensure!(
            (8..=24).contains(&pods.prefix_len()),
            "--cluster-cidr {pods}: choose a prefix length from 8 to 24, each node takes a /24 of it"
        );
        let mut ranges = vec![("--service-cluster-ip-range", IpNet::V4(services)), ("--cluster-cidr", IpNet::V4(pods))];
        ranges.extend(options.lb_pools.iter().map(|p| ("--lb-pool", p.trunc())));
        for (i, (name, net)) in ranges.iter().enumerate() {
            for (other_name, other) in &ranges[..i] {
                if net.contains(other) || other.contains(net) {
                    bail!("{name} {net} overlaps {other_name} {other}; give them separate ranges");
                }
            }
        }
        let domain = options.cluster_domain.trim_end_matches('.').to_ascii_lowercase();
        ensure!(is_domain(&domain), "--cluster-domain {:?} is not a DNS name", options.cluster_domain);
        ensure!(is_domain(&options.node_name), "--node-name {:?} is not a DNS name in lower case", options.node_name);
        let dirs = Dirs {
            data_dir: std::path::absolute(&options.dirs.data_dir).context("--data-dir")?,
            run_dir: std::path::absolute(&options.dirs.run_dir).context("--run-dir")?,
        };
        let pod_cidr = Ipv4Net::new(pods.network(), 24).context("--cluster-cidr")?;
        let nth = |net: Ipv4Net, n: u32| Ipv4Addr::from(u32::from(net.network()) + n);
        let gateway = nth(pod_cidr, 1);
        Ok(Self {
            pod_cidr,
            gateway,
            node_ip: options.node_ip.or_else(default_route_address).unwrap_or(IpAddr::V4(gateway)),
            dns_service_ip: nth(services, 10),
            options: Options {
                service_cluster_ip_range: services,
                cluster_cidr: pods,
                cluster_domain: domain,
                dirs,
                ..options
            },
        })
    }
}

fn is_domain(s: &str) -> bool {
    s.len() <= 253
        && s.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

/// The source address the kernel would use towards the default route. Connecting a UDP socket sends nothing.
fn default_route_address() -> Option<IpAddr> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    socket.local_addr().ok().map(|a| a.ip()).filter(|ip| !ip.is_unspecified() && !ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    fn config(args: &[&str]) -> Result<Config> {
        Config::new(Cli::try_parse_from([&["portolan"], args].concat())?.options)
    }

    #[test]
    fn seed_005_cidrs_are_configurable() {
        let c = config(&["--service-cluster-ip-range=10.0.0.0/24", "--cluster-cidr=10.1.0.0/16"]).unwrap();
        assert_eq!(c.pod_cidr.to_string(), "10.1.0.0/24");
        assert_eq!(c.gateway.to_string(), "10.1.0.1");
        assert_eq!(c.dns_service_ip.to_string(), "10.0.0.10");
    }

    #[test]
    fn seed_131_dns_is_the_tenth_address() {
        assert_eq!(config(&[]).unwrap().dns_service_ip.to_string(), "10.96.0.10");
    }

    #[test]
    fn overlapping_ranges_are_refused_by_name() {
        let e = config(&["--cluster-cidr=10.96.0.0/16"]).unwrap_err().to_string();
        assert_eq!(
            e,
            "--cluster-cidr 10.96.0.0/16 overlaps --service-cluster-ip-range 10.96.0.0/12; give them separate ranges"
        );
        assert!(config(&["--lb-pool=10.244.3.0/24"]).unwrap_err().to_string().starts_with("--lb-pool 10.244.3.0/24"));
    }

    #[test]
    fn wrong_values_say_how_to_write_them() {
        for (args, says) in [
            (["--service-node-port-range=9-8"], "write it as FROM-TO"),
            (["--registry-mirror=docker.io"], "is not HOST=URL"),
            (["--dns-upstream=nowhere"], "is not a name server"),
            (["--node-name=Not_A_Name"], "is not a DNS name"),
            (["--cluster-domain=a..b"], "is not a DNS name"),
        ] {
            let e = config(&args).unwrap_err().to_string();
            assert!(e.contains(says), "{args:?}: {e}");
        }
    }
}
