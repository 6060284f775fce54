//! One pod from its first sight to its last trace: namespaces, volumes, init containers, containers, status, end. One
//! task per pod. Which pods there are is decided elsewhere; what a single container does is in [`run`].

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as ContainerSpec, Pod};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use serde_json::{Value, json};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    Context,
    container::{Container, remove_cgroup},
    env, event, files,
    network::Sandbox,
    volume,
};

mod before;
pub mod prepare;
pub mod run;
pub mod status;

use run::{End, Restart, Run};
use status::{Phase, State};

/// What the pod is to be.
#[derive(Clone)]
pub struct Desired {
    pub pod: Arc<Pod>,
    /// The API has no such pod any more.
    pub gone: bool,
    /// The agent stops; containers get this long.
    pub shutdown: Option<Duration>,
}

/// What an earlier agent left of the pod.
#[derive(Default)]
pub struct Adopted {
    pub sandbox: Option<Sandbox>,
    pub containers: HashMap<String, Arc<Container>>,
}

pub struct PodTask {
    pub ctx: Arc<Context>,
    pub dirs: prepare::Dirs,
    uid: String,
    desired: watch::Sender<Desired>,
    state: Mutex<State>,
    /// Counts changes of `state`.
    version: watch::Sender<u64>,
    written: tokio::sync::Mutex<Option<Value>>,
    stop: CancellationToken,
    /// No more grace.
    pub force: CancellationToken,
}

impl PodTask {
    pub fn new(ctx: Arc<Context>, pod: Arc<Pod>) -> Arc<Self> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let dirs = prepare::Dirs::of(&ctx.config.data_dir, &uid);
        let state = before::first_state(&pod, ctx.host_ip, &dirs);
        Arc::new(Self {
            dirs,
            uid,
            desired: watch::Sender::new(Desired { pod, gone: false, shutdown: None }),
            state: Mutex::new(state),
            version: watch::Sender::new(0),
            written: tokio::sync::Mutex::new(None),
            stop: CancellationToken::new(),
            force: CancellationToken::new(),
            ctx,
        })
    }

    pub fn uid(&self) -> &str {
        &self.uid
    }

    pub fn pod(&self) -> Arc<Pod> {
        self.desired.borrow().pod.clone()
    }

    /// Tells the task what changed.
    pub fn want(&self, change: impl FnOnce(&mut Desired)) {
        self.desired.send_modify(change);
    }

    pub fn read<T>(&self, f: impl FnOnce(&State) -> T) -> T {
        f(&self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn update<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let out = f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.version.send_modify(|v| *v += 1);
        out
    }

    /// Wakes when the state has changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Wakes when the pod's object has changed.
    fn edits(&self) -> watch::Receiver<Desired> {
        self.desired.subscribe()
    }

    fn image_of(&self, container: &str) -> Option<String> {
        let pod = self.pod();
        let spec = pod.spec.as_ref()?;
        let mut all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        all.find(|c| c.name == container)?.image.clone()
    }

    /// `name_namespace(uid)`, as kubelet's messages have it.
    fn full_name(&self) -> String {
        let pod = self.pod();
        let text = |s: &Option<String>| s.clone().unwrap_or_default();
        format!("{}_{}({})", text(&pod.metadata.name), text(&pod.metadata.namespace), self.uid)
    }

    fn probe_ip(&self) -> IpAddr {
        self.read(|s| s.ips.first().copied().unwrap_or(s.host_ip))
    }

    /// How long containers get to end, by what is known now.
    fn grace(&self) -> Duration {
        let desired = self.desired.borrow();
        if let Some(grace) = desired.shutdown {
            return grace;
        }
        if desired.gone {
            return Duration::from_secs(1);
        }
        let own = desired.pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds).unwrap_or(30);
        Duration::from_secs(desired.pod.metadata.deletion_grace_period_seconds.unwrap_or(own).max(1) as u64)
    }

    /// Resolves when the grace period, counted from `began`, was made shorter and is over.
    async fn shortened(&self, began: Instant) {
        let mut edits = self.edits();
        let before = self.grace();
        loop {
            if edits.changed().await.is_err() {
                return std::future::pending().await;
            }
            let now = self.grace();
            if now < before {
                return tokio::time::sleep_until(began + now).await;
            }
        }
    }

    fn api(&self) -> Api<Pod> {
        let namespace = self.pod().metadata.namespace.clone().unwrap_or_default();
        Api::namespaced(self.ctx.client.clone(), &namespace)
    }

    /// The whole life. Returns when nothing of the pod is left on this node, or when the agent stops.
    pub async fn run(self: Arc<Self>, adopted: Adopted) {
        let pod = self.pod();
        self.update(|s| before::adopt(s, &pod, &adopted));
        let writer = tokio::spawn(self.clone().keep_status());
        let over = self.read(|s| s.finished);
        if !over {
            self.until_end(adopted).await;
        }
        self.clear().await;
        let mut edits = self.edits();
        let desired = edits.wait_for(|d| d.gone || d.shutdown.is_some() || deleting(&d.pod)).await.map(|d| d.clone());
        writer.abort();
        let Ok(desired) = desired else { return };
        if desired.shutdown.is_some() {
            volume::unmount(&self.dirs.root);
            return;
        }
        if !desired.gone {
            self.sync().await;
            self.delete().await;
        }
        let root = self.dirs.root.clone();
        let _ = tokio::task::spawn_blocking(move || volume::remove(&root)).await;
    }

    /// Runs the containers until all have ended, stopping them when that is wanted.
    async fn until_end(&self, adopted: Adopted) {
        let life = self.life(adopted);
        tokio::pin!(life);
        let mut edits = self.edits();
        let started = self.read(|s| s.start_time);
        let deadline = self.pod().spec.as_ref().and_then(|s| s.active_deadline_seconds);
        let left = deadline.map(|d| Duration::from_secs(d.max(0) as u64).saturating_sub(since(started)));
        let expired = async {
            match left {
                Some(left) => tokio::time::sleep(left).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(expired);
        let mut expiring = true;
        loop {
            let stop = {
                let d = edits.borrow_and_update();
                d.gone || d.shutdown.is_some() || deleting(&d.pod)
            };
            if stop {
                self.stop.cancel();
            }
            tokio::select! {
                () = &mut life => break,
                _ = edits.changed() => {}
                () = &mut expired, if expiring => {
                    expiring = false;
                    let message = "Pod was active on the node longer than the specified deadline";
                    self.event(event::Kind::Normal, "DeadlineExceeded", message.into());
                    self.update(|s| s.failed = Some(("DeadlineExceeded".into(), message.into())));
                    self.stop.cancel();
                }
            }
        }
        // An agent that stops says nothing about its pods: the next one runs them again.
        if self.desired.borrow().shutdown.is_none() {
            self.update(|s| s.finished = true);
        }
    }

    fn event(&self, kind: event::Kind, reason: &'static str, message: String) {
        self.ctx.events.publish(&self.pod(), "", kind, reason, message);
    }

    async fn life(&self, mut adopted: Adopted) {
        if self.stop.is_cancelled() && adopted.containers.is_empty() {
            return;
        }
        let sandbox = match adopted.sandbox.take() {
            Some(sandbox) => sandbox,
            None => match self.sandbox().await {
                Some(sandbox) => sandbox,
                None => return,
            },
        };
        let ips: Vec<IpAddr> = vec![sandbox.ip.unwrap_or(self.ctx.host_ip)];
        self.update(|s| {
            s.ips.clone_from(&ips);
            s.sandbox = true;
        });
        let runtime = env::Runtime { pod_ips: ips, host_ips: vec![self.ctx.host_ip] };
        let Some(volumes) = self.volumes(&runtime).await else { return };
        self.containers(&volumes, &runtime, adopted.containers).await;
    }

    /// Tries until the namespaces and the network are there; `None` when the pod is stopped first.
    async fn sandbox(&self) -> Option<Sandbox> {
        let pod = self.pod();
        let spec = pod.spec.as_ref()?;
        let host = spec.host_network.unwrap_or(false);
        let sysctls: Vec<_> = spec
            .security_context
            .iter()
            .flat_map(|c| c.sysctls.iter().flatten())
            .map(|s| (s.name.clone(), s.value.clone()))
            .collect();
        let hostname = files::hostname(&pod);
        let mut wait = Duration::from_secs(1);
        loop {
            match self.ctx.network.add(&self.uid, &hostname, host, sysctls.clone()).await {
                Ok(sandbox) => return Some(sandbox),
                Err(e) => {
                    let message = format!("Failed to create pod sandbox: {e}");
                    self.event(event::Kind::Warning, "FailedCreatePodSandBox", message);
                    if self.stopped_within(&mut wait).await {
                        return None;
                    }
                }
            }
        }
    }

    async fn volumes(&self, runtime: &env::Runtime) -> Option<BTreeMap<String, PathBuf>> {
        let mut wait = Duration::from_secs(1);
        loop {
            let pod = self.pod();
            let made = match prepare::etc(&self.ctx, &pod, &self.dirs, runtime) {
                Ok(()) => volume::prepare(&self.ctx.client, &pod, &self.dirs.volumes(), runtime)
                    .await
                    .map_err(|e| e.to_string()),
                Err(e) => Err(format!("cannot write the pod's files below {}: {e}", self.dirs.root.display())),
            };
            match made {
                Ok(volumes) => return Some(volumes),
                Err(message) => {
                    self.event(event::Kind::Warning, "FailedMount", message);
                    if self.stopped_within(&mut wait).await {
                        return None;
                    }
                }
            }
        }
    }

    /// Waits, longer each time; true when the pod is stopped meanwhile.
    async fn stopped_within(&self, wait: &mut Duration) -> bool {
        let now = *wait;
        *wait = (now * 2).min(Duration::from_secs(120));
        tokio::time::timeout(now, self.stop.cancelled()).await.is_ok()
    }

    /// Init containers one after the other, then all containers together; sidecars accompany them and end last.
    async fn containers(
        &self,
        volumes: &BTreeMap<String, PathBuf>,
        runtime: &env::Runtime,
        mut adopted: HashMap<String, Arc<Container>>,
    ) {
        let pod = self.pod();
        let Some(spec) = pod.spec.as_ref() else { return };
        let policy = match spec.restart_policy.as_deref() {
            Some("OnFailure") => Restart::OnFailure,
            Some("Never") => Restart::Never,
            _ => Restart::Always,
        };
        let run = |index, spec: &ContainerSpec, restart, stop| Run {
            task: self,
            spec: Arc::new(spec.clone()),
            index,
            restart,
            volumes,
            runtime,
            stop,
            started: CancellationToken::new(),
        };
        let mut sidecars: FuturesUnordered<BoxFuture<'_, usize>> = FuturesUnordered::new();
        let mut tokens: Vec<(usize, CancellationToken)> = Vec::new();
        let inits = spec.init_containers.as_deref().unwrap_or_default();
        let resumed = self.read(|s| s.initialized);
        let mut go_on = true;
        for (index, init) in inits.iter().enumerate() {
            if init.restart_policy.as_deref() == Some("Always") {
                let stop = CancellationToken::new();
                let run = run(index, init, Restart::Always, stop.clone());
                let started = run.started.clone();
                let adopted = adopted.remove(&init.name);
                tokens.push((index, stop));
                sidecars.push(async move { run.live(adopted).await }.map(move |_| index).boxed());
                let ready = async {
                    tokio::select! {
                        () = started.cancelled() => true,
                        () = self.stop.cancelled() => false,
                    }
                };
                go_on = drive(&mut sidecars, ready).await;
            } else if resumed {
                // Already completed when the pod was adopted.
            } else {
                // An init container is run again until it succeeds, unless the pod is never restarted.
                let restart = if policy == Restart::Never { Restart::Never } else { Restart::OnFailure };
                let run = run(index, init, restart, self.stop.child_token());
                let adopted = adopted.remove(&init.name);
                go_on = drive(&mut sidecars, run.live(adopted)).await == End::Done(0);
            }
            if !go_on {
                break;
            }
        }
        if go_on {
            self.update(|s| s.initialized = true);
            let mut lives = FuturesUnordered::new();
            for (at, container) in spec.containers.iter().enumerate() {
                let index = inits.len() + at;
                let adopted = adopted.remove(&container.name);
                if adopted.is_none() && self.over_before(index, policy) {
                    continue;
                }
                lives.push(run(index, container, policy, self.stop.child_token()).live(adopted));
            }
            let all = async { while lives.next().await.is_some() {} };
            drive(&mut sidecars, all).await;
        }
        for (index, token) in tokens.into_iter().rev() {
            token.cancel();
            while let Some(ended) = sidecars.next().await {
                if ended == index {
                    break;
                }
            }
        }
    }

    /// True when the container ended under an earlier agent in a way that its restart policy leaves alone.
    fn over_before(&self, index: usize, policy: Restart) -> bool {
        self.update(|s| {
            let slot = &mut s.slots[index];
            let Some(last) = slot.last.clone().filter(|_| slot.restart_count > 0) else { return false };
            if policy.wants(last.exit_code) {
                return false;
            }
            slot.restart_count -= 1;
            slot.phase = Phase::Terminated(last);
            true
        })
    }

    /// Gives back what only running containers need.
    async fn clear(&self) {
        if self.ctx.network.has(&self.uid) {
            self.ctx.network.remove(&self.uid).await;
        }
        let cgroup = self.ctx.config.cgroup.join(&self.uid);
        let _ = tokio::task::spawn_blocking(move || remove_cgroup(&cgroup)).await;
    }

    async fn keep_status(self: Arc<Self>) {
        let mut changes = self.changes();
        loop {
            changes.borrow_and_update();
            self.sync().await;
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Writes the status unless it is what was written last. Tries until it is accepted or the pod is gone.
    pub async fn sync(&self) {
        let mut written = self.written.lock().await;
        let mut wait = Duration::from_millis(50);
        loop {
            let (pod, silent) = {
                let desired = self.desired.borrow();
                (desired.pod.clone(), desired.gone || desired.shutdown.is_some())
            };
            // The lock is taken without counting a change: this is the reader of changes.
            let status = {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                status::compute(&pod, &mut state, Timestamp::now())
            };
            if silent || written.as_ref() == Some(&status) {
                return;
            }
            // The uid keeps the status of an old pod away from a new one of the same name.
            let patch = json!({"metadata": {"uid": self.uid}, "status": status});
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            match self.api().patch_status(name, &PatchParams::default(), &Patch::Merge(&patch)).await {
                Ok(_) => {
                    *written = Some(status);
                    return;
                }
                Err(kube::Error::Api(s)) if matches!(s.code, 404 | 409) => return,
                Err(e) => {
                    tracing::warn!(pod = %self.full_name(), error = %e, "cannot write the pod's status");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(Duration::from_secs(5));
                }
            }
        }
    }

    /// The last word: the object goes once its containers have ended.
    async fn delete(&self) {
        let pod = self.pod();
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let mut wait = Duration::from_millis(50);
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: Some(self.uid.clone()), resource_version: None }),
            ..DeleteParams::default()
        };
        let mut edits = self.edits();
        loop {
            match self.api().delete(name, &params).await {
                Ok(_) => return,
                Err(kube::Error::Api(s)) if matches!(s.code, 404 | 409) => return,
                Err(e) => tracing::warn!(pod = %self.full_name(), error = %e, "cannot delete the ended pod"),
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => wait = (wait * 2).min(Duration::from_secs(5)),
                _ = edits.wait_for(|d| d.gone || d.shutdown.is_some()) => return,
            }
        }
    }
}

/// Resolves with `future`, while the sidecars go on living.
async fn drive<T>(sidecars: &mut FuturesUnordered<BoxFuture<'_, usize>>, future: impl Future<Output = T>) -> T {
    tokio::pin!(future);
    loop {
        tokio::select! {
            out = &mut future => return out,
            Some(_) = sidecars.next(), if !sidecars.is_empty() => {}
        }
    }
}

fn deleting(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

fn since(t: Timestamp) -> Duration {
    Timestamp::now().duration_since(t).try_into().unwrap_or_default()
}
