//! API to containers: the small kubelet of one node. It makes the pods that the API assigns to its node exist (images,
//! namespaces, addresses, containers), tells the API how they are, and serves their logs and streams. It knows Services only as
//! environment variables; where their packets go is the proxy's.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    net::IpAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{StreamExt, future::join_all};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt, watcher},
};
use model::Snapshot;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::{Mode, umask},
};
use sha2::{Digest, Sha256};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

mod container;
mod env;
mod event;
mod files;
pub mod image;
mod logs;
mod network;
mod node;
mod pod;
mod probe;
pub mod shim;
mod spec;
mod streams;
mod volume;

use container::{Container, Runtime, remove_cgroup};
use pod::{Adopted, PodTask};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot set up the pod network: {0}")]
    Network(String),
    #[error("cannot use {path}: {source}")]
    Directory { path: PathBuf, source: io::Error },
    #[error("cannot register the node {name:?}: {source}")]
    Register { name: String, source: kube::Error },
    #[error("{0}")]
    Config(String),
}

/// Everything an agent must be told.
#[derive(Clone, Debug)]
pub struct Config {
    pub node_name: String,
    /// The node's InternalIP; `None` takes the address of the default route, or else the bridge's.
    pub node_ip: Option<IpAddr>,
    /// Kept over restarts: images, logs, volumes.
    pub data_dir: PathBuf,
    /// Lost with a reboot, as are the processes it describes: namespaces, containers, the ledger.
    pub run_dir: PathBuf,
    /// This node's share of the cluster's pod range.
    pub pod_cidr: IpNet,
    /// Ranges the node itself reaches through the bridge: Service addresses and load balancer addresses.
    pub routes: Vec<IpNet>,
    pub cluster_domain: String,
    /// What `/etc/resolv.conf` names for `ClusterFirst`.
    pub cluster_dns: Vec<IpAddr>,
    pub mirrors: Vec<image::Mirror>,
    /// Program and arguments to which the shim's own are appended.
    pub shim: Vec<String>,
    pub bridge: String,
    /// Parent of all containers' cgroups.
    pub cgroup: PathBuf,
    pub max_pods: u32,
    pub log_max_bytes: u64,
    pub log_max_files: u32,
    /// How long containers get when the agent shuts down.
    pub shutdown_grace: Duration,
}

impl Config {
    /// The defaults of a stand-alone node.
    pub fn new(node_name: &str, data_dir: &Path, run_dir: &Path) -> Self {
        let net = |s: &str| s.parse().expect("a constant range");
        Self {
            node_name: node_name.into(),
            node_ip: None,
            data_dir: data_dir.into(),
            run_dir: run_dir.into(),
            pod_cidr: net("10.244.0.0/24"),
            routes: vec![net("10.96.0.0/12"), net("10.112.0.0/24")],
            cluster_domain: "cluster.local".into(),
            cluster_dns: vec!["10.96.0.10".parse().expect("a constant address")],
            mirrors: vec![],
            shim: vec!["/proc/self/exe".into(), "__shim".into()],
            bridge: "portolan0".into(),
            cgroup: cgroup(run_dir),
            max_pods: 250,
            log_max_bytes: 10 << 20,
            log_max_files: 5,
            shutdown_grace: Duration::from_secs(2),
        }
    }

    /// The bridge's address: the first of the pod range.
    pub fn gateway(&self) -> IpAddr {
        network::gateway(self.pod_cidr)
    }

    fn validate(&self) -> Result<(), Error> {
        for path in [&self.data_dir, &self.run_dir] {
            // Both appear in an overlay's mount options, where these separate and escape.
            if !path.is_absolute() || path.to_string_lossy().contains([',', ':', '\\']) {
                let path = path.display();
                return Err(Error::Config(format!("{path}: must be an absolute path without ',', ':' and '\\'")));
            }
        }
        if self.shim.is_empty() || self.bridge.is_empty() || self.bridge.len() > 15 {
            return Err(Error::Config("the shim's program and a bridge name of 1 to 15 bytes are needed".into()));
        }
        Ok(())
    }

    fn runtime(&self, uppers: PathBuf) -> Runtime {
        Runtime {
            run: self.run_dir.join("containers"),
            uppers,
            layers: self.data_dir.join("images").join("layers"),
            namespaces: self.run_dir.join("ns"),
            shim: self.shim.clone(),
            log_max_bytes: self.log_max_bytes,
            log_max_files: self.log_max_files,
        }
    }
}

/// Two agents on one machine have two run directories, and must not clean up each other's cgroups.
fn cgroup(run_dir: &Path) -> PathBuf {
    if run_dir == Path::new("/run/portolan") {
        return "/portolan".into();
    }
    let hash = image::hex(&Sha256::digest(run_dir.as_os_str().as_encoded_bytes()));
    format!("/portolan-{}", &hash[..8]).into()
}

/// What every pod's task shares.
pub(crate) struct Context {
    config: Config,
    client: Client,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    images: image::Images,
    network: network::Network,
    runtime: Arc<Runtime>,
    events: event::Recorder,
    host_ip: IpAddr,
    /// cgroup version 2 only.
    unified: bool,
}

impl Context {
    /// A snapshot that is at least as new as the pod: Services made before it are then in it. The wait is bounded, for a
    /// late snapshot must not keep a pod from starting.
    async fn snapshot_for(&self, pod: &Pod) -> Arc<Snapshot> {
        let revision = pod.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0);
        let mut snapshot = self.snapshot.clone();
        let new_enough = snapshot.wait_for(|s| s.is_complete() && s.revision >= revision);
        if let Ok(Ok(found)) = tokio::time::timeout(Duration::from_secs(2), new_enough).await {
            return found.clone();
        }
        self.snapshot.borrow().clone()
    }
}

/// The pods of this node by uid.
#[derive(Default)]
pub(crate) struct Pods {
    map: Mutex<HashMap<String, (Arc<PodTask>, JoinHandle<()>)>>,
}

impl Pods {
    fn get(&self, uid: &str) -> Option<Arc<PodTask>> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner).get(uid).map(|(t, _)| t.clone())
    }

    /// The newest pod of that name: an old one may still be ending.
    fn find(&self, namespace: &str, name: &str) -> Option<Arc<PodTask>> {
        let map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        let named = map.values().map(|(t, _)| t).filter(|t| {
            let pod = t.pod();
            pod.metadata.name.as_deref() == Some(name) && pod.metadata.namespace.as_deref() == Some(namespace)
        });
        named.max_by_key(|t| t.pod().metadata.creation_timestamp.clone().map(|t| t.0)).cloned()
    }

    fn all(&self) -> Vec<Arc<PodTask>> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner).values().map(|(t, _)| t.clone()).collect()
    }
}

/// A running agent.
pub struct Agent {
    ctx: Arc<Context>,
    pods: Arc<Pods>,
    stop: CancellationToken,
    watching: Mutex<Option<JoinHandle<()>>>,
}

impl Agent {
    /// Sets the node up, registers it, and begins to run its pods; pods that an earlier agent left running go on. Ends
    /// with `cancel` or [`Agent::shutdown`]; only the latter stops containers.
    pub async fn start(
        config: Config,
        client: Client,
        snapshot: watch::Receiver<Arc<Snapshot>>,
        cancel: CancellationToken,
    ) -> Result<Self, Error> {
        config.validate()?;
        let fail = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Directory { path, source }
        };
        // What containers find must not depend on the umask of whoever typed the command; shims inherit it from here.
        umask(Mode::S_IWGRP | Mode::S_IWOTH);
        let (data, run) = (&config.data_dir, &config.run_dir);
        for dir in
            [data.join("containers"), data.join("images"), data.join("pods"), run.join("containers"), run.join("ns")]
        {
            // Environments and volumes hold Secrets, layers hold setuid programs: neither is for the host's other users.
            fs::create_dir_all(&dir)
                .and_then(|()| fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)))
                .map_err(fail(&dir))?;
        }
        let uppers = uppers(&config).map_err(fail(&config.data_dir))?;
        let runtime = Arc::new(config.runtime(uppers));
        let images_dir = config.data_dir.join("images");
        let images = image::Images::open(&images_dir, config.mirrors.clone()).map_err(fail(&images_dir))?;
        let network = network::Network::start(&config).await?;
        let host_ip = config.node_ip.or_else(node::default_address).unwrap_or_else(|| config.gateway());
        let ctx = Arc::new(Context {
            events: event::Recorder::start(client.clone(), config.node_name.clone()),
            unified: Path::new("/sys/fs/cgroup/cgroup.controllers").exists(),
            config,
            client,
            snapshot,
            images,
            network,
            runtime,
            host_ip,
        });
        node::register(&ctx).await.map_err(|source| Error::Register { name: ctx.config.node_name.clone(), source })?;
        let stop = cancel.child_token();
        tokio::spawn(node::heartbeat(ctx.clone(), stop.clone()));
        let pods = Arc::new(Pods::default());
        forget_uppers(&ctx.runtime);
        let leftovers = Leftovers::find(&ctx);
        let watching = tokio::spawn(watch_pods(ctx.clone(), pods.clone(), leftovers, stop.clone()));
        Ok(Self { ctx, pods, stop, watching: Mutex::new(Some(watching)) })
    }

    /// What kubelet serves: container logs, and programs' streams. Whoever mounts it decides who may ask.
    pub fn router(&self) -> axum::Router {
        logs::router(self.pods.clone()).merge(streams::router(self.pods.clone(), self.ctx.runtime.clone()))
    }

    /// Stops and removes all containers, then the network: nothing of the agent is left but its data directory.
    pub async fn shutdown(&self) -> Result<(), Error> {
        self.stop.cancel();
        let watching = self.watching.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(watching) = watching {
            let _ = watching.await;
        }
        let grace = self.ctx.config.shutdown_grace;
        let ending = std::mem::take(&mut *self.pods.map.lock().unwrap_or_else(PoisonError::into_inner));
        for (task, _) in ending.values() {
            task.want(|d| d.shutdown = Some(grace));
        }
        let ended = join_all(ending.into_values().map(|(_, join)| join));
        if tokio::time::timeout(grace + Duration::from_secs(10), ended).await.is_err() {
            tracing::warn!("some containers did not end in time; killing them");
        }
        let config = self.ctx.config.clone();
        let _ = tokio::task::spawn_blocking(move || kill_leftovers(&config)).await;
        self.ctx.network.stop().await
    }
}

/// Removes what an agent that was killed left on this machine: containers, namespaces, links, routes, cgroups, kernel
/// parameters. Processes are found by their records, never by name. The data directory's state stays.
pub async fn cleanup(config: &Config) -> Result<(), Error> {
    let own = config.clone();
    let _ = tokio::task::spawn_blocking(move || kill_leftovers(&own)).await;
    network::cleanup(config).await
}

fn kill_leftovers(config: &Config) {
    // Both places where upper directories may be.
    for uppers in [config.data_dir.join("containers"), config.run_dir.join("uppers")] {
        let runtime = config.runtime(uppers);
        for container in runtime.found() {
            container.kill_blocking(5000);
            runtime.clear(&container.id, container.cgroup());
        }
        // A kill in the middle of the trial in [`uppers`] leaves its mount.
        volume::unmount(&runtime.uppers);
        for entry in fs::read_dir(&runtime.uppers).into_iter().flatten().flatten() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    volume::unmount(&config.data_dir.join("pods"));
    remove_cgroup(&config.cgroup);
    volume::remove(&config.run_dir.join("containers"));
    volume::remove(&config.run_dir.join("uppers"));
}

/// Where writable layers go: the data directory, or the run directory when the former cannot hold an overlay's upper
/// directory (as when it is itself on an overlay).
fn uppers(config: &Config) -> io::Result<PathBuf> {
    let preferred = config.data_dir.join("containers");
    let probe = tempfile::tempdir_in(&preferred)?;
    let dir = |name: &str| probe.path().join(name);
    for name in ["lower", "upper", "work", "merged"] {
        fs::create_dir(dir(name))?;
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        dir("lower").display(),
        dir("upper").display(),
        dir("work").display()
    );
    let merged = dir("merged");
    if mount(Some("overlay"), &merged, Some("overlay"), MsFlags::empty(), Some(options.as_str())).is_ok() {
        umount2(&merged, MntFlags::MNT_DETACH)?;
        return Ok(preferred);
    }
    let other = config.run_dir.join("uppers");
    tracing::warn!(
        "the file system of {} cannot hold containers' writable layers; they go to {}, in memory if that is a tmpfs",
        preferred.display(),
        other.display()
    );
    fs::create_dir_all(&other)?;
    Ok(other)
}

/// After a reboot the run directory is empty: writable layers without a container are of no use to anybody.
fn forget_uppers(runtime: &Runtime) {
    for entry in fs::read_dir(&runtime.uppers).into_iter().flatten().flatten() {
        if !runtime.run.join(entry.file_name()).exists() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Removes the logs and volumes of pods that the API does not know.
fn forget_pods(config: &Config, known: &HashSet<String>) {
    for entry in fs::read_dir(config.data_dir.join("pods")).into_iter().flatten().flatten() {
        if !entry.file_name().to_str().is_some_and(|uid| known.contains(uid)) {
            volume::remove(&entry.path());
        }
    }
}

/// What an earlier agent left, by pod.
struct Leftovers {
    by_pod: HashMap<String, Adopted>,
}

impl Leftovers {
    fn find(ctx: &Context) -> Self {
        let mut by_pod: HashMap<String, Adopted> = HashMap::new();
        for container in ctx.runtime.found() {
            let pod = by_pod.entry(container.meta.pod_uid.clone()).or_default();
            let name = container.meta.name.clone();
            match pod.containers.get(&name) {
                Some(other) if other.meta.restart_count > container.meta.restart_count => clear(ctx, &container),
                _ => {
                    if let Some(older) = pod.containers.insert(name, container) {
                        clear(ctx, &older);
                    }
                }
            }
        }
        for sandbox in network::found(&ctx.config.run_dir) {
            let pod = by_pod.entry(sandbox.uid.clone()).or_default();
            pod.sandbox = Some(sandbox);
        }
        Self { by_pod }
    }

    fn take(&mut self, uid: &str) -> Adopted {
        self.by_pod.remove(uid).unwrap_or_default()
    }

    /// Ends what no pod of the API claims.
    async fn drop_unclaimed(&mut self, ctx: &Arc<Context>) {
        for (uid, adopted) in std::mem::take(&mut self.by_pod) {
            tracing::info!(pod = %uid, "removing what was left of a pod that is no more");
            let other = ctx.clone();
            let ended = tokio::task::spawn_blocking(move || {
                for container in adopted.containers.values() {
                    clear(&other, container);
                }
            });
            let _ = ended.await;
            ctx.network.remove(&uid).await;
            remove_cgroup(&ctx.config.cgroup.join(&uid));
        }
    }
}

fn clear(ctx: &Context, container: &Container) {
    container.kill_blocking(5000);
    ctx.runtime.clear(&container.id, container.cgroup());
}

/// Follows the pods assigned to this node and tells each one's task.
async fn watch_pods(ctx: Arc<Context>, pods: Arc<Pods>, mut leftovers: Leftovers, stop: CancellationToken) {
    let api: Api<Pod> = Api::all(ctx.client.clone());
    let config = watcher::Config::default().fields(&format!("spec.nodeName={}", ctx.config.node_name));
    let mut events = watcher(api, config).default_backoff().boxed();
    let mut seen = HashSet::new();
    let mut listed = false;
    let uid = |pod: &Pod| pod.metadata.uid.clone().unwrap_or_default();
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return,
            event = events.next() => event,
        };
        match event {
            None => return,
            Some(Err(e)) => tracing::warn!(error = %e, "cannot watch pods; trying again"),
            Some(Ok(watcher::Event::Init)) => seen.clear(),
            Some(Ok(watcher::Event::InitApply(pod))) => {
                seen.insert(uid(&pod));
                apply(&ctx, &pods, &mut leftovers, pod);
            }
            Some(Ok(watcher::Event::InitDone)) => {
                for task in pods.all() {
                    if !seen.contains(task.uid()) {
                        task.want(|d| d.gone = true);
                    }
                }
                if !listed {
                    listed = true;
                    leftovers.drop_unclaimed(&ctx).await;
                    forget_pods(&ctx.config, &seen);
                }
            }
            Some(Ok(watcher::Event::Apply(pod))) => apply(&ctx, &pods, &mut leftovers, pod),
            Some(Ok(watcher::Event::Delete(pod))) => {
                if let Some(task) = pods.get(&uid(&pod)) {
                    task.want(|d| d.gone = true);
                }
            }
        }
    }
}

fn apply(ctx: &Arc<Context>, pods: &Arc<Pods>, leftovers: &mut Leftovers, pod: Pod) {
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let pod = Arc::new(pod);
    let mut map = pods.map.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((task, _)) = map.get(&uid) {
        task.want(|d| d.pod = pod);
        return;
    }
    let task = PodTask::new(ctx.clone(), pod);
    let (run, registry, key) = (task.clone(), pods.clone(), uid.clone());
    let adopted = leftovers.take(&uid);
    let join = tokio::spawn(async move {
        run.run(adopted).await;
        registry.map.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    });
    map.insert(uid, (task, join));
}
