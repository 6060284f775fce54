//! What each role is told about this node, derived from one [`Config`].

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::Context;
use apiserver::{BoxFuture, NodeDialer};
use axum::{Router, body::Body};
use http::{Request, Response};
use ipnet::IpNet;
use model::{Kind, pool::Pool};
use tokio::sync::watch;
use tower::ServiceExt;

use crate::config::Config;

/// The way from the API server to this node's agent, which starts later than the API server.
#[derive(Clone, Default)]
pub struct LocalNode(Arc<OnceLock<Router>>);

impl LocalNode {
    pub fn connect(&self, router: Router) {
        // There is one agent: a second call cannot happen, and would change nothing.
        let _ = self.0.set(router);
    }
}

impl NodeDialer for LocalNode {
    fn request(&self, node: &str, request: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, String>> {
        let router = self.0.get().cloned().ok_or_else(|| format!("node {node} is starting; try again"));
        Box::pin(async move { router?.oneshot(request).await.map_err(|never| match never {}) })
    }
}

/// What an outside client's write to a Service waits for, so that the name is there when `kubectl apply` returns.
#[derive(Clone, Default)]
pub struct Readers(Arc<OnceLock<(watch::Receiver<u64>, dns::Directories)>>);

/// Milliseconds are usual. A reader that is late must not hold up the API.
const SETTLE: Duration = Duration::from_millis(500);

impl Readers {
    pub fn connect(&self, applied: watch::Receiver<u64>, directories: dns::Directories) {
        let _ = self.0.set((applied, directories));
    }

    fn settled(&self) -> apiserver::Settled {
        let this = self.clone();
        Arc::new(move |revision| {
            let this = this.clone();
            Box::pin(async move {
                // Not connected: it starts, and what it has is taken in before anybody is told that it is ready.
                let Some((mut applied, directories)) = this.0.get().cloned() else { return };
                let taken_in =
                    applied.wait_for(|_| directories.current().snapshot().revision_of(Kind::Service) >= revision);
                if tokio::time::timeout(SETTLE, taken_in).await.is_err() {
                    tracing::info!(revision, "DNS is late with a Service");
                }
            })
        })
    }
}

fn net(range: ipnet::Ipv4Net) -> IpNet {
    IpNet::V4(range)
}

pub fn apiserver_config(config: &Config, nodes: LocalNode, readers: &Readers) -> apiserver::Config {
    let options = &config.options;
    apiserver::Config {
        kubeconfig: Some(options.dirs.kubeconfig()),
        service_cidrs: vec![net(options.service_cluster_ip_range)],
        node_port_range: options.service_node_port_range.0.clone(),
        cluster_domain: options.cluster_domain.clone(),
        advertise: vec![config.gateway.into()],
        port: options.secure_port,
        nodes: Arc::new(nodes),
        settled: Some(readers.settled()),
        endpoints_warning: options.endpoints_warning,
        ..apiserver::Config::new(&options.dirs.data_dir)
    }
}

pub fn agent_config(config: &Config) -> agent::Config {
    let options = &config.options;
    let mut routes = vec![net(options.service_cluster_ip_range)];
    routes.extend(&options.lb_pools);
    agent::Config {
        node_ip: Some(config.node_ip),
        pod_cidr: net(config.pod_cidr),
        routes,
        cluster_domain: options.cluster_domain.clone(),
        cluster_dns: vec![config.dns_service_ip.into()],
        mirrors: options.registry_mirrors.clone(),
        ..agent::Config::new(&options.node_name, &options.dirs.data_dir, &options.dirs.run_dir)
    }
}

pub fn proxy_config(config: &Config) -> proxy::Config {
    proxy::Config {
        node_name: config.options.node_name.as_str().into(),
        service_cidrs: vec![net(config.options.service_cluster_ip_range)],
        cluster_cidrs: vec![net(config.options.cluster_cidr)],
        node_port_addresses: config.options.node_port_addresses.clone(),
        localhost_node_ports: true,
        // Nobody beyond this machine has a route to its pods.
        masquerade_outbound: true,
        pod_interface: Some(agent_config(config).bridge.into()),
        ..proxy::Config::default()
    }
}

pub fn controllers_config(config: &Config) -> anyhow::Result<controllers::Config> {
    let options = &config.options;
    let ca = options.dirs.data_dir.join("pki/ca.crt");
    let pool = Pool { name: "default".into(), ranges: options.lb_pools.clone(), auto_assign: true };
    Ok(controllers::Config {
        pools: vec![pool],
        ca_pem: std::fs::read_to_string(&ca).with_context(|| format!("{}", ca.display()))?,
    })
}

pub fn dns_config(config: &Config) -> anyhow::Result<dns::Config> {
    let options = &config.options;
    let mut zone = model::names::Zone::new(&options.cluster_domain)?;
    zone.reverse = vec![net(options.service_cluster_ip_range), net(options.cluster_cidr)];
    let gateway = IpAddr::V4(config.gateway);
    let mut dns = dns::Config::new(zone, vec![SocketAddr::new(gateway, 53)]);
    dns.own_addresses = vec![config.dns_service_ip.into()];
    dns.metrics = Some(SocketAddr::new(gateway, 9153));
    if !options.dns_upstreams.is_empty() {
        dns.upstreams = dns::Upstreams::Servers(options.dns_upstreams.iter().map(|u| u.0).collect());
    }
    Ok(dns)
}
