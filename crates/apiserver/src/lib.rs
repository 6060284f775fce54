//! The Kubernetes API for one machine, as an axum Router.
//!
//! [`ApiServer::open`] reads or makes the state and the certificates; [`ApiServer::router`] answers whoever proves who they
//! are, [`ApiServer::trusted`] answers this program's own parts; [`ApiServer::serve`] puts the former behind TLS.

use std::{
    fmt,
    future::Future,
    net::IpAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex},
};

use axum::{
    Extension, Router,
    body::Body,
    extract::State,
    middleware::{Next, from_fn, from_fn_with_state},
    response::IntoResponse,
    routing::get,
};
use http::{Request, Response};
use ipnet::IpNet;
use model::admit::allocate::Allocations;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub mod auth;
mod bootstrap;
pub mod discovery;
mod handlers;
pub mod kinds;
pub mod openapi;
pub mod patch;
mod protobuf;
pub mod request;
pub mod schema;
pub mod selector;
mod serve;
pub mod status;
pub mod store;
pub mod stream;
mod sweep;
pub mod table;
pub mod tls;
mod watch;

use crate::{
    auth::{Authenticator, User},
    handlers::Api,
    store::{LogError, Store},
    tls::Pki,
};

pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// How requests that only a pod's node can answer (its logs, its ports) reach that node.
pub trait NodeDialer: Send + Sync {
    /// `request` has a kubelet's path: `/containerLogs/{namespace}/{pod}/{container}?...`, or `/exec/...` and `/attach/...`,
    /// whose bodies carry [`stream`]'s frames both ways at once. The error says why the node cannot be reached.
    fn request(&self, node: &str, request: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, String>>;

    /// A connection to a port of a pod, for port-forward. Unless the node knows better, to the pod's address.
    fn connect(&self, to: stream::PodPort) -> BoxFuture<'static, Result<stream::Connection, String>> {
        stream::dial_address(to)
    }
}

/// For a server without nodes.
#[derive(Debug, Clone, Copy)]
pub struct NoNodes;

impl NodeDialer for NoNodes {
    fn request(&self, node: &str, _request: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, String>> {
        let error = format!("no node called {node:?} is known to this API server");
        Box::pin(async move { Err(error) })
    }
}

/// One node in this process: every request goes to its router.
#[derive(Debug, Clone)]
pub struct LocalNode(pub Router);

impl NodeDialer for LocalNode {
    fn request(&self, _node: &str, request: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, String>> {
        let router = self.0.clone();
        Box::pin(async move {
            use tower::ServiceExt;
            router.oneshot(request).await.map_err(|never| match never {})
        })
    }
}

/// See [`Config::settled`].
pub type Settled = Arc<dyn Fn(u64) -> BoxFuture<'static, ()> + Send + Sync>;

#[derive(Clone)]
pub struct Config {
    /// Holds `state.redb`, `token` and `pki/`. Made when missing.
    pub data_dir: PathBuf,
    /// Where the kubeconfig is written; `data_dir/kubeconfig` when `None`.
    pub kubeconfig: Option<PathBuf>,
    /// The ranges of ClusterIPs, at most one of each family; the first is the primary.
    pub service_cidrs: Vec<IpNet>,
    pub node_port_range: RangeInclusive<u16>,
    /// `cluster.local`
    pub cluster_domain: String,
    /// Addresses at which pods reach this server: the endpoints of `default/kubernetes`.
    pub advertise: Vec<IpAddr>,
    /// The port of those addresses and of the kubeconfig.
    pub port: u16,
    /// More names and addresses for the server's certificate.
    pub extra_sans: Vec<String>,
    pub nodes: Arc<dyn NodeDialer>,
    /// Called with the revision of the newest write to Services before such a write is answered to an outside client:
    /// resolves when this machine's DNS and load balancer have taken it in. It bounds its own time.
    pub settled: Option<Settled>,
    /// Warn users of v1 Endpoints that EndpointSlices replace them, as upstream does since 1.33.
    pub endpoints_warning: bool,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("data_dir", &self.data_dir)
            .field("kubeconfig", &self.kubeconfig)
            .field("service_cidrs", &self.service_cidrs)
            .field("node_port_range", &self.node_port_range)
            .field("cluster_domain", &self.cluster_domain)
            .field("advertise", &self.advertise)
            .field("port", &self.port)
            .field("extra_sans", &self.extra_sans)
            .field("endpoints_warning", &self.endpoints_warning)
            .finish_non_exhaustive()
    }
}

impl Config {
    /// A server on 127.0.0.1:6443 with upstream's ranges and no nodes.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            kubeconfig: None,
            service_cidrs: vec![IpNet::new_assert(IpAddr::from([10, 96, 0, 0]), 12)],
            node_port_range: 30_000..=32_767,
            cluster_domain: "cluster.local".into(),
            advertise: Vec::new(),
            port: 6443,
            extra_sans: Vec::new(),
            nodes: Arc::new(NoNodes),
            settled: None,
            endpoints_warning: true,
        }
    }
}

/// Why the server cannot start. The texts say what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("{}: {cause}", path.display())]
    File { path: PathBuf, cause: String },
    #[error("a certificate could not be made: {0}")]
    Pki(String),
    #[error("{}: {cause}. The file is damaged; remove the pki directory beside it to make new certificates", path.display())]
    Damaged { path: PathBuf, cause: String },
    #[error("a cluster without its first objects is no cluster: {0}")]
    Bootstrap(String),
}

impl Error {
    pub(crate) fn file(path: &Path, error: &std::io::Error) -> Self {
        Self::File { path: path.to_owned(), cause: error.to_string() }
    }

    pub(crate) fn pki(error: &rcgen::Error) -> Self {
        Self::Pki(error.to_string())
    }

    pub(crate) fn damaged(path: &Path, error: &rcgen::Error) -> Self {
        Self::Damaged { path: path.to_owned(), cause: error.to_string() }
    }
}

/// An open API server. Dropping it closes the store.
pub struct ApiServer {
    api: Api,
    tls: Arc<rustls::ServerConfig>,
    kubeconfig: PathBuf,
    settled: Option<Settled>,
}

impl ApiServer {
    /// Opens the data directory, makes what a new cluster needs, and writes the kubeconfig.
    pub async fn open(config: Config) -> Result<Self, Error> {
        std::fs::create_dir_all(&config.data_dir).map_err(|e| Error::file(&config.data_dir, &e))?;
        // The store first: its lock tells a second server to leave everything else alone.
        let store = Store::open(&config.data_dir)?;
        let pki = Pki::open(&config.data_dir)?;
        let (names, addresses) = server_names(&config);
        let tls = Arc::new(pki.server_config(&names, &addresses)?);
        let kubeconfig = config.kubeconfig.clone().unwrap_or_else(|| config.data_dir.join("kubeconfig"));
        pki.write_kubeconfig(&kubeconfig, &format!("https://127.0.0.1:{}", config.port))?;

        let mut allocations = Allocations::new(config.service_cidrs.clone(), config.node_port_range.clone());
        for service in store.list("core/services", "").1 {
            allocations.adopt(&service.value());
        }
        let api = Api::new(handlers::Inner {
            store,
            allocations: Mutex::new(allocations),
            authenticator: Arc::new(Authenticator::new(&pki.token)),
            nodes: config.nodes.clone(),
            endpoints_warning: config.endpoints_warning,
            stopping: CancellationToken::new(),
        });
        bootstrap::bootstrap(&api, &config).await?;
        tokio::spawn(sweep::expire_events(api.clone()));
        let settled = config.settled.clone();
        tokio::spawn(bootstrap::keep(api.clone(), config));
        Ok(Self { api, tls, kubeconfig, settled })
    }

    /// Where the kubeconfig is.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The newest revision: `resourceVersion` of the last write.
    pub fn revision(&self) -> u64 {
        self.api.store.revision()
    }

    /// The API for clients that must say who they are.
    pub fn router(&self) -> Router {
        let settle = from_fn_with_state((self.api.clone(), self.settled.clone()), settle);
        self.routes().layer(settle).layer(from_fn_with_state(self.api.authenticator.clone(), auth::authenticate))
    }

    /// The API for a part of this program, which acts as `user` in `system:masters`.
    pub fn trusted(&self, user: &str) -> Router {
        self.routes().layer(Extension(User::trusted(user)))
    }

    fn routes(&self) -> Router {
        let health = || async { "ok" };
        Router::new()
            .route("/healthz", get(health))
            .route("/livez", get(health))
            .route("/readyz", get(health))
            .route("/healthz/{check}", get(health))
            .route("/livez/{check}", get(health))
            .route("/readyz/{check}", get(health))
            .route("/", get(root))
            .merge(discovery::router())
            .merge(openapi::router())
            .layer(from_fn(auth::authorize_paths))
            .fallback(handlers::handle)
            .with_state(self.api.clone())
    }

    /// Serves TLS until `stop`, then ends watches and finishes requests under way.
    pub async fn serve(&self, listener: TcpListener, stop: CancellationToken) {
        let serving = serve::serve(listener, self.tls.clone(), self.router(), stop.clone());
        let stopping = self.api.stopping.clone();
        tokio::join!(serving, async move {
            stop.cancelled().await;
            stopping.cancel();
        });
    }

    /// Ends watches and streams, waits for writes under way and closes the data directory.
    pub fn close(&self) {
        self.api.stopping.cancel();
        self.api.store.close();
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.close();
    }
}

/// Whoever was told that a Service is written may look its name up at once: the answer waits for those who read.
async fn settle(
    State((api, settled)): State<(Api, Option<Settled>)>,
    request: axum::extract::Request,
    next: Next,
) -> axum::response::Response {
    let writes = !matches!(*request.method(), http::Method::GET | http::Method::HEAD | http::Method::OPTIONS)
        && request.uri().path().split('/').any(|segment| segment == "services");
    let response = next.run(request).await;
    if let Some(settled) = settled.filter(|_| writes && response.status().is_success()) {
        let newest = *api.store.subscribe(&Arc::from("core/services")).borrow();
        settled(newest).await;
    }
    response
}

async fn root() -> impl IntoResponse {
    let paths = ["/api", "/api/v1", "/apis", "/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz", "/version"];
    status::json_body(&serde_json::json!({ "paths": paths }))
}

/// Everything a client may call this server.
fn server_names(config: &Config) -> (Vec<String>, Vec<IpAddr>) {
    let domain = &config.cluster_domain;
    let mut names: Vec<String> = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
        .iter()
        .map(|n| (*n).to_owned())
        .collect();
    names.push(format!("kubernetes.default.svc.{domain}"));
    let mut addresses = vec![IpAddr::from([127, 0, 0, 1]), IpAddr::from(std::net::Ipv6Addr::LOCALHOST)];
    addresses.extend(&config.advertise);
    addresses.extend(config.service_cidrs.iter().filter_map(bootstrap::first_host));
    for san in &config.extra_sans {
        match san.parse() {
            Ok(address) => addresses.push(address),
            Err(_) => names.push(san.clone()),
        }
    }
    (names, addresses)
}

#[cfg(test)]
mod tests;
