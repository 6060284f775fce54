//! The composition root of a stand-alone node: reads from top to bottom in the order in which things start.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::{
        linux::net::SocketAddrExt,
        unix::{fs::PermissionsExt, net::UnixListener},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use agent::Agent;
use anyhow::{Context, Result, bail};
use apiserver::ApiServer;
use kube::Client;
use model::Snapshot;
use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::Signal,
};
use proxy::Proxy;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sys::process::{self, Pidfd};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    admin,
    apply::{Applier, Manifest},
    config::{Config, Dirs},
    node,
};

/// Far above what the first state takes (milliseconds), even on a machine under load.
const READY: Duration = Duration::from_secs(30);

pub fn require_root(command: &str) -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    bail!(
        "{command} makes network namespaces, mounts and kernel rules, which needs root; type: sudo {}",
        std::env::args().collect::<Vec<_>>().join(" ")
    )
}

/// Held as long as the instance lives; the kernel lets go of it when the process ends, however it ends.
pub struct Lock(#[expect(dead_code, reason = "held, not read")] Flock<File>);

/// Two instances on one data directory would each overwrite the other's objects.
pub fn lock(dirs: &Dirs) -> Result<Lock> {
    let dir = &dirs.data_dir;
    fs::create_dir_all(dir).with_context(|| format!("cannot make the data directory {}", dir.display()))?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o711))?;
    let path = dir.join("lock");
    let mut file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot write to the data directory {}", dir.display()))?;
    match Flock::lock(file.try_clone()?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => {
            file.set_len(0)?;
            write!(file, "{}", std::process::id())
                .with_context(|| format!("cannot write to the data directory {}", dir.display()))?;
            Ok(Lock(lock))
        }
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
            let pid = fs::read_to_string(&path).unwrap_or_default();
            bail!(
                "another portolan (process {pid}) uses the data directory {}; stop it with `portolan down`",
                dir.display()
            )
        }
        Err((_, error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// The bridge and the kernel's table exist once in a network namespace, and so may the program. An abstract Unix socket
/// belongs to the namespace and goes with the process, however that ends.
fn lock_node() -> Result<UnixListener> {
    let name = std::os::unix::net::SocketAddr::from_abstract_name("portolan")?;
    UnixListener::bind_addr(&name).map_err(|e| match e.kind() {
        ErrorKind::AddrInUse => anyhow::anyhow!(
            "another portolan runs on this machine and owns the bridge portolan0 and the nftables table portolan; stop it with `portolan down` (with its --run-dir, if it has one of its own)"
        ),
        _ => anyhow::anyhow!("cannot tell whether another portolan runs here: {e}"),
    })
}

/// What `down` must know about an instance that may have been killed.
#[derive(Debug, Serialize, Deserialize)]
pub struct Instance {
    pub pid: i32,
    start_time: u64,
    /// The command line of `portolan up`, from which its configuration follows again,
    arguments: Vec<String>,
    /// but for relative paths and the environment.
    data_dir: PathBuf,
    run_dir: PathBuf,
}

impl Instance {
    fn here(dirs: &Dirs) -> Result<Self> {
        let pid = i32::try_from(std::process::id())?;
        Ok(Self {
            pid,
            start_time: process::start_time(pid)?,
            arguments: std::env::args().collect(),
            data_dir: dirs.data_dir.clone(),
            run_dir: dirs.run_dir.clone(),
        })
    }

    fn write(&self, dirs: &Dirs) -> Result<()> {
        let path = dirs.instance();
        let temporary = path.with_extension("tmp");
        fs::write(&temporary, serde_json::to_vec(self)?).with_context(|| format!("{}", temporary.display()))?;
        fs::rename(&temporary, &path).with_context(|| format!("{}", path.display()))
    }

    pub fn read(dirs: &Dirs) -> Result<Option<Self>> {
        match fs::read(dirs.instance()) {
            Ok(bytes) => {
                Ok(Some(serde_json::from_slice(&bytes).with_context(|| format!("{}", dirs.instance().display()))?))
            }
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| format!("{}", dirs.instance().display())),
        }
    }

    /// The configuration it runs or ran with.
    pub fn config(&self) -> Result<Config> {
        let mut options = crate::commands::options_of(&self.arguments)?;
        options.dirs = Dirs { data_dir: self.data_dir.clone(), run_dir: self.run_dir.clone() };
        Config::new(options)
    }

    /// `None` when it does not run any more.
    pub fn process(&self) -> Result<Option<Running>> {
        match Pidfd::open_started(self.pid, self.start_time) {
            Ok(fd) => Ok((!fd.ended()).then_some(Running(fd))),
            Err(e) if e.kind() == ErrorKind::NotFound || e.raw_os_error() == Some(libc::ESRCH) => Ok(None),
            Err(e) => Err(e).context("cannot look at the running instance"),
        }
    }
}

pub struct Running(Pidfd);

impl Running {
    pub fn terminate(&self) -> io::Result<()> {
        self.0.signal(Signal::SIGTERM)
    }

    /// True when it ended within the time.
    pub fn wait(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        loop {
            let left = until.saturating_duration_since(Instant::now()).as_millis();
            if self.0.wait_blocking(u16::try_from(left.min(30_000)).unwrap_or(u16::MAX)) {
                return true;
            }
            if left == 0 {
                return false;
            }
        }
    }
}

/// Removes everything an instance of this configuration made on the host. Harmless when there is nothing.
pub async fn sweep(config: &Config) -> Result<()> {
    proxy::cleanup().context("removing the kernel's table")?;
    agent::cleanup(&node::agent_config(config)).await.context("removing containers and pod networks")?;
    remove_run_dir(&config.options.dirs.run_dir)
}

fn remove_run_dir(run_dir: &Path) -> Result<()> {
    match fs::remove_dir_all(run_dir) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e).with_context(|| format!("{}", run_dir.display())),
        _ => Ok(()),
    }
}

pub struct App {
    pub config: Config,
    pub client: Client,
    pub snapshot: watch::Receiver<Arc<Snapshot>>,
    parts: Parts,
    _locks: (Lock, UnixListener),
}

/// What has been started so far and has to be ended in order, whether or not the start came to its end.
#[derive(Default)]
struct Parts {
    stop: CancellationToken,
    server: Option<Arc<ApiServer>>,
    agent: Option<Agent>,
    proxy: Option<Proxy>,
    controllers: JoinSet<()>,
}

impl Parts {
    /// Ends the pods and takes everything back; the data directory stays for the next start.
    async fn end(mut self, config: &Config) -> Result<()> {
        // The node first, while the API still takes its reports.
        if let Some(agent) = self.agent.take() {
            agent.shutdown().await.context("ending the pods")?;
        }
        self.stop.cancel();
        self.controllers.shutdown().await;
        if let Some(server) = self.server.take() {
            server.close();
        }
        if let Some(mut proxy) = self.proxy.take() {
            tokio::task::spawn_blocking(move || proxy.join()).await?;
        }
        sweep(config).await
    }
}

impl App {
    /// Nothing is left behind on an error, nor when `interrupted` comes first; then there is no `App`.
    pub async fn start(config: Config, interrupted: impl Future<Output = ()>) -> Result<Option<Self>> {
        let locks = (lock(&config.options.dirs)?, lock_node()?);
        // What can fail for reasons of the host comes first, while there is nothing to take back.
        let listener = listen((Ipv4Addr::LOCALHOST, config.options.secure_port).into())?;
        let mut parts = Parts::default();
        let hurry = CancellationToken::new();
        let composed = {
            let mut composing = std::pin::pin!(compose(&config, &mut parts, listener, &hurry));
            tokio::select! {
                composed = &mut composing => Some(composed),
                // Not dropped in the middle: a request that the kernel has not answered yet could still take effect
                // after everything was taken back. All steps are short but the last, which looks at `hurry`.
                () = interrupted => {
                    hurry.cancel();
                    let _ = composing.await;
                    None
                }
            }
        };
        match composed {
            Some(Ok((client, snapshot))) => Ok(Some(Self { config, client, snapshot, parts, _locks: locks })),
            failed => {
                let ended = parts.end(&config).await;
                match (failed, ended) {
                    (Some(Err(error)), Err(also)) => {
                        Err(error.context(format!("and then cleaning up failed: {also:#}")))
                    }
                    (Some(Err(error)), Ok(())) | (_, Err(error)) => Err(error),
                    (_, Ok(())) => Ok(None),
                }
            }
        }
    }

    pub async fn stop(self) -> Result<()> {
        self.parts.end(&self.config).await
    }
}

type View = (Client, watch::Receiver<Arc<Snapshot>>);

async fn compose(
    config: &Config,
    parts: &mut Parts,
    listener: std::net::TcpListener,
    hurry: &CancellationToken,
) -> Result<View> {
    let dirs = &config.options.dirs;
    let stop = parts.stop.clone();
    fs::create_dir_all(&dirs.run_dir)
        .with_context(|| format!("cannot make the run directory {}", dirs.run_dir.display()))?;
    fs::set_permissions(&dirs.run_dir, fs::Permissions::from_mode(0o711))?;
    Instance::here(dirs)?.write(dirs)?;

    // The API, and a view of it that everybody else reads.
    let local = node::LocalNode::default();
    let readers = node::Readers::default();
    let server = ApiServer::open(node::apiserver_config(config, local.clone(), &readers)).await?;
    let server = parts.server.insert(Arc::new(server)).clone();
    serve(&server, listener, &stop)?;
    let client = cluster::connect::in_process(server.trusted("system:portolan"));
    let (snapshot, _view) = cluster::view::spawn(client.clone());

    // The node's network, then what listens on it.
    let agent = node::agent_config(config);
    let agent = Agent::start(agent, client.clone(), snapshot.clone(), stop.child_token()).await?;
    local.connect(parts.agent.insert(agent).router());
    let on_bridge = listen(SocketAddr::new(config.gateway.into(), config.options.secure_port))?;
    serve(&server, on_bridge, &stop)?;
    let dns = dns::Server::start(node::dns_config(config)?, snapshot.clone(), stop.child_token()).await?;
    readers.connect(dns.applied(), dns.directories());
    publish_dns(&client, config).await?;

    // What makes Services of it.
    let proxy = Proxy::start(node::proxy_config(config), snapshot.clone(), stop.child_token())?;
    let proxy = parts.proxy.insert(proxy);
    parts.controllers =
        controllers::spawn(client.clone(), snapshot.clone(), node::controllers_config(config)?, stop.child_token());
    tokio::select! {
        ready = ready(&snapshot, proxy, &dns) => ready?,
        () = hurry.cancelled() => bail!("interrupted"),
    }
    let facts = admin::Facts { config: config.clone(), snapshot: snapshot.clone(), applied: proxy.applied() };
    admin::serve(&dirs.admin_socket(), facts, stop).await?;
    Ok((client, snapshot))
}

/// Names are answered and rules are in the kernel: what is said to be ready is.
async fn ready(snapshot: &watch::Receiver<Arc<Snapshot>>, proxy: &Proxy, dns: &dns::Server) -> Result<()> {
    let complete = async {
        let revision = snapshot.clone().wait_for(|s| s.is_complete()).await?.revision;
        proxy.applied().wait_for(|applied| *applied >= revision).await?;
        dns.applied().wait_for(|applied| *applied >= revision).await?;
        Ok::<_, watch::error::RecvError>(())
    };
    tokio::time::timeout(READY, complete)
        .await
        .context("the load balancer and DNS have not taken in the first state; the log says why (RUST_LOG=info)")?
        .context("a part ended while it started")
}

fn serve(server: &Arc<ApiServer>, listener: std::net::TcpListener, stop: &CancellationToken) -> Result<()> {
    let (server, listener, stop) = (server.clone(), TcpListener::from_std(listener)?, stop.child_token());
    tokio::spawn(async move { server.serve(listener, stop).await });
    Ok(())
}

fn listen(address: SocketAddr) -> Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address).map_err(|e| match e.kind() {
        ErrorKind::AddrInUse => {
            anyhow::anyhow!("{address} is in use by another program; stop that one, or choose another --secure-port")
        }
        _ => anyhow::anyhow!("cannot listen on {address}: {e}"),
    })?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The Service `kube-system/kube-dns` as every cluster has it, with this node's server behind it.
async fn publish_dns(client: &Client, config: &Config) -> Result<()> {
    let ports = [("dns", "UDP", 53), ("dns-tcp", "TCP", 53), ("metrics", "TCP", 9153)];
    let labels =
        json!({ "k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS", "kubernetes.io/cluster-service": "true" });
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": "kube-dns", "namespace": "kube-system", "labels": labels },
        "spec": {
            "clusterIP": config.dns_service_ip,
            "ports": ports.map(|(name, protocol, port)| json!({ "name": name, "protocol": protocol, "port": port, "targetPort": port })),
        },
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": "kube-dns-node", "namespace": "kube-system",
            "labels": { "kubernetes.io/service-name": "kube-dns", "endpointslice.kubernetes.io/managed-by": "portolan.dev" },
        },
        "addressType": "IPv4",
        "ports": ports.map(|(name, protocol, port)| json!({ "name": name, "protocol": protocol, "port": port })),
        "endpoints": [{
            "addresses": [IpAddr::V4(config.gateway)],
            "conditions": { "ready": true, "serving": true, "terminating": false },
            "nodeName": config.options.node_name,
        }],
    });
    let mut applier = Applier::new(client.clone());
    for object in [service, slice] {
        applier.apply(&Manifest { file: "kube-dns".into(), object }).await?;
    }
    Ok(())
}
