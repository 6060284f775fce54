//! `portolan dns`: the name server alone, against any kube-apiserver, in place of CoreDNS.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use model::names::{Name, Zone};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::Upstream;

#[derive(clap::Args, Debug)]
pub struct Dns {
    /// The cluster to answer for
    #[arg(long, value_name = "FILE", env = "KUBECONFIG")]
    kubeconfig: PathBuf,
    /// Where to serve DNS, over UDP and TCP (may be given more than once)
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:53")]
    listen: Vec<SocketAddr>,
    /// Where to serve /metrics, /health, /ready and /debug [default: 0.0.0.0:9153]
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<SocketAddr>,
    /// The cluster's domain [default: cluster.local]
    #[arg(long, value_name = "DOMAIN")]
    cluster_domain: Option<Name>,
    /// Ranges of Services and pods, whose reverse names are answered (may be given more than once)
    #[arg(long = "reverse", value_name = "CIDR", default_values = ["10.96.0.0/12", "10.244.0.0/16"])]
    reverse: Vec<IpNet>,
    /// Name servers for everything outside the zone [default: those of /etc/resolv.conf]
    #[arg(long = "dns-upstream", value_name = "ADDRESS[:PORT]")]
    upstreams: Vec<Upstream>,
    /// A domain with name servers of its own, such as corp.example=10.1.2.3 (may be given more than once)
    #[arg(long = "stub-domain", value_name = "DOMAIN=ADDRESS[:PORT]")]
    stubs: Vec<Stub>,
    /// A name with a known address, such as db.example=192.0.2.7 (may be given more than once)
    #[arg(long = "host", value_name = "NAME=ADDRESS")]
    hosts: Vec<Host>,
    /// Settings in CoreDNS's form, from a file; what is not supported is refused
    #[arg(long, value_name = "FILE", conflicts_with = "config_map")]
    corefile: Option<PathBuf>,
    /// The same from the key Corefile of a ConfigMap, such as kube-system/coredns
    #[arg(long, value_name = "NAMESPACE/NAME")]
    config_map: Option<String>,
    /// Sources that are answered beside the cluster's nodes and pods and this host; 0.0.0.0/0 for everybody
    #[arg(long, value_name = "CIDR")]
    allow: Vec<IpNet>,
    /// Hosts that may transfer the zone (AXFR)
    #[arg(long, value_name = "CIDR")]
    transfer_to: Vec<IpNet>,
    /// Queries a second that one source may ask over UDP before it is told to use TCP; 0 for any number
    #[arg(long, value_name = "NUMBER", default_value_t = 20_000)]
    source_rate: u32,
    /// Keep the last good state here, and answer from it after a restart until the API server has been heard
    #[arg(long, value_name = "FILE")]
    keep: Option<PathBuf>,
    /// Share the ports with another `portolan dns` that says so too: start the new one, then stop the old one
    #[arg(long)]
    share_port: bool,
    /// Let pods walk their search path themselves, instead of answering at its first step
    #[arg(long)]
    no_search_path: bool,
}

/// `DOMAIN=SERVER`
#[derive(Clone, Debug)]
struct Stub(Name, SocketAddr);

impl FromStr for Stub {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (domain, server) = text
            .split_once('=')
            .ok_or_else(|| format!("{text:?}: write it as DOMAIN=ADDRESS, such as corp.example=10.1.2.3"))?;
        Ok(Self(domain.parse().map_err(|e| format!("{domain:?}: {e}"))?, server.parse::<Upstream>()?.0))
    }
}

/// `NAME=ADDRESS`
#[derive(Clone, Debug)]
struct Host(Name, IpAddr);

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?}: write it as NAME=ADDRESS, such as db.example=192.0.2.7");
        let (name, address) = text.split_once('=').ok_or_else(wrong)?;
        Ok(Self(name.parse().map_err(|e| format!("{name:?}: {e}"))?, address.parse().map_err(|_| wrong())?))
    }
}

pub fn run(options: Dns) -> Result<i32> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("portolan-dns")
        .enable_all()
        .build()
        .context("could not start threads")?;
    runtime.block_on(serve(options))
}

async fn serve(options: Dns) -> Result<i32> {
    let client = cluster::connect::kubeconfig(&options.kubeconfig).await?;
    let corefile = match (&options.corefile, &options.config_map) {
        (Some(path), _) => Some(std::fs::read_to_string(path).with_context(|| path.display().to_string())?),
        (None, Some(name)) => Some(config_map(&client, name).await?),
        (None, None) => None,
    };
    let config = config(options, corefile.as_deref())?;
    let stop = CancellationToken::new();
    let (snapshots, view) = cluster::view::spawn(client);
    let server = dns::Server::start(config, snapshots, stop.clone()).await?;
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {}, () = server.stopped() => {} }
    stop.cancel();
    server.stopped().await;
    view.abort();
    Ok(0)
}

/// Flags, and beneath them what a Corefile says.
fn config(options: Dns, corefile: Option<&str>) -> Result<dns::Config> {
    let mut zone = Zone::new("cluster.local")?;
    zone.reverse = options.reverse;
    let mut config = dns::Config::new(zone, options.listen);
    config.metrics = Some(SocketAddr::from(([0, 0, 0, 0], 9153)));
    config.allow_cluster = true;
    if let Some(text) = corefile {
        dns::Corefile::parse(text)?.apply(&mut config);
    }
    config.zone.name = options.cluster_domain.unwrap_or(config.zone.name);
    config.metrics = options.metrics.or(config.metrics);
    if !options.upstreams.is_empty() {
        config.upstreams = dns::Upstreams::Servers(options.upstreams.iter().map(|u| u.0).collect());
    }
    for Stub(domain, server) in options.stubs {
        match config.stubs.iter_mut().find(|(d, _)| *d == domain) {
            Some((_, servers)) => servers.push(server),
            None => config.stubs.push((domain, vec![server])),
        }
    }
    for Host(name, address) in options.hosts {
        config.hosts.add(address, name);
    }
    config.allow.extend(options.allow);
    config.transfer_to.extend(options.transfer_to);
    config.source_rate = options.source_rate;
    config.keep = options.keep;
    config.share_port = options.share_port;
    config.search_path &= !options.no_search_path;
    Ok(config)
}

/// The text under the key `Corefile`.
async fn config_map(client: &kube::Client, name: &str) -> Result<String> {
    let Some((namespace, name)) = name.split_once('/') else {
        bail!("--config-map {name}: write it as NAMESPACE/NAME")
    };
    let path = cluster::resource::CONFIG_MAP.object_path(namespace, name);
    let object: serde_json::Value = client
        .request(http::Request::get(path).body(Vec::new())?)
        .await
        .with_context(|| format!("cannot read ConfigMap {namespace}/{name}"))?;
    let text = object["data"]["Corefile"].as_str();
    text.map(str::to_owned).with_context(|| format!("ConfigMap {namespace}/{name} has no key Corefile"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        dns: Dns,
    }

    fn parse(arguments: &[&str]) -> Dns {
        Cli::try_parse_from([&["dns", "--kubeconfig", "/x"], arguments].concat()).unwrap().dns
    }

    #[test]
    fn flags_stand_above_the_corefile() {
        let corefile =
            ". {\n kubernetes corp.local {\n ttl 5\n }\n forward . 192.0.2.1\n}\nx.example {\n forward . 192.0.2.9\n}";
        let c = config(parse(&["--dns-upstream=192.0.2.2", "--stub-domain=x.example=192.0.2.3:54"]), Some(corefile))
            .unwrap();
        assert_eq!((c.zone.name.to_string().as_str(), c.zone.ttl), ("corp.local.", 5));
        assert_eq!(c.upstreams, dns::Upstreams::Servers(vec!["192.0.2.2:53".parse().unwrap()]));
        assert_eq!(c.stubs[0].1, ["192.0.2.9:53".parse().unwrap(), "192.0.2.3:54".parse().unwrap()]);
        assert!(c.allow_cluster && c.search_path);
        let refused = config(parse(&[]), Some(". {\n rewrite stop\n}")).unwrap_err().to_string();
        assert!(refused.starts_with("Corefile line 2: plugin rewrite is not supported"), "{refused}");
    }
}
