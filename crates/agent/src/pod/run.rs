//! One container of a pod over all its restarts: image, start, hooks, probes, end, back-off. Each outcome is written to
//! the container's slot; what it means for the pod is decided elsewhere.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as ContainerSpec, LifecycleHandler};
use nix::sys::signal::Signal;
use tokio::{sync::mpsc, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    PodTask, prepare,
    status::{Phase, Slot, Terminated},
};
use crate::{
    container::{Container, Meta, Runtime},
    env,
    event::{Kind as EventKind, field_path},
    image::{self, Image},
    probe,
    shim::{Exit, exec::ExecResult},
};

/// Waits between tries: 10 s, doubling to 5 min.
#[derive(Debug, Default)]
pub struct Backoff {
    current: Option<Duration>,
}

const FIRST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(300);
/// A container that ran this long starts with a clean slate.
const RESET: Duration = Duration::from_secs(600);

impl Backoff {
    pub fn next(&mut self) -> Duration {
        let next = self.current.map_or(FIRST, |c| (c * 2).min(LONGEST));
        self.current = Some(next);
        next
    }
}

/// When a container is started again after it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    Always,
    OnFailure,
    Never,
}

impl Restart {
    pub fn wants(self, code: i32) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => code != 0,
            Self::Never => false,
        }
    }
}

/// How a container's life was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The pod was asked to stop.
    Stopped,
    /// It ended with this code and is not started again.
    Done(i32),
}

/// One container's share of what the pod task knows.
pub struct Run<'a> {
    pub task: &'a PodTask,
    pub spec: Arc<ContainerSpec>,
    pub index: usize,
    pub restart: Restart,
    pub volumes: &'a BTreeMap<String, PathBuf>,
    pub runtime: &'a env::Runtime,
    /// Cancelled when this container is to be stopped for good.
    pub stop: CancellationToken,
    /// Cancelled once its startup probe has passed.
    pub started: CancellationToken,
}

enum Launch {
    Running(Arc<Container>),
    Failed,
    Stopped,
}

impl Run<'_> {
    fn slot<T>(&self, f: impl FnOnce(&mut Slot) -> T) -> T {
        self.task.update(|state| f(&mut state.slots[self.index]))
    }

    fn event(&self, kind: EventKind, reason: &'static str, message: String) {
        let init = self.slot_init();
        self.task.ctx.events.publish(&self.task.pod(), &field_path(&self.spec.name, init), kind, reason, message);
    }

    fn slot_init(&self) -> bool {
        self.task.read(|s| s.slots[self.index].init)
    }

    /// The life of the container, from an adopted run or from nothing.
    pub async fn live(self, mut adopted: Option<Arc<Container>>) -> End {
        let mut backoff = Backoff::default();
        loop {
            let container = match adopted.take() {
                Some(container) => container,
                None => match self.launch().await {
                    Launch::Running(container) => container,
                    Launch::Stopped => return End::Stopped,
                    Launch::Failed => {
                        if !self.restart.wants(128) {
                            return End::Done(128);
                        }
                        if self.pause(&mut backoff, Duration::ZERO).await {
                            return End::Stopped;
                        }
                        continue;
                    }
                },
            };
            let exit = self.attend(&container).await;
            let ran = exit.at.duration_since(container.started_at).try_into().unwrap_or_default();
            self.record(&container, &exit);
            self.task.ctx.runtime.remove(&container).await;
            if self.stop.is_cancelled() {
                return End::Stopped;
            }
            if !self.restart.wants(exit.code) {
                return End::Done(exit.code);
            }
            if self.pause(&mut backoff, ran).await {
                return End::Stopped;
            }
        }
    }

    /// Waits before the next start; the first restart is at once. True when the pod is stopped meanwhile.
    async fn pause(&self, backoff: &mut Backoff, ran: Duration) -> bool {
        if ran >= RESET {
            *backoff = Backoff::default();
        }
        let first = backoff.current.is_none() && !self.task.read(|s| s.slots[self.index].restart_count > 0);
        let delay = if first { Duration::ZERO } else { backoff.next() };
        if !delay.is_zero() {
            let (pod, name) = (self.task.full_name(), &self.spec.name);
            self.event(
                EventKind::Warning,
                "BackOff",
                format!("Back-off restarting failed container {name} in pod {pod}"),
            );
            let text = humantime(delay);
            let message = format!("back-off {text} restarting failed container={name} pod={pod}");
            self.slot(|s| s.phase = Phase::waiting("CrashLoopBackOff", message));
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = self.stop.cancelled() => return true,
            }
        }
        self.slot(|s| s.restart_count += 1);
        self.stop.is_cancelled()
    }

    async fn launch(&self) -> Launch {
        let mut backoff = Backoff::default();
        let image = loop {
            let failure = tokio::select! {
                image = self.image() => match image {
                    Ok(image) => break image,
                    Err(failure) => failure,
                },
                () = self.stop.cancelled() => return Launch::Stopped,
            };
            if self.wait_for_image(&failure, &mut backoff).await {
                return Launch::Stopped;
            }
        };
        let mut wait = Duration::from_secs(1);
        loop {
            match self.start(&image).await {
                Ok(launch) => return launch,
                Err(message) => {
                    self.event(EventKind::Warning, "Failed", format!("Error: {message}"));
                    self.slot(|s| s.phase = Phase::waiting("CreateContainerConfigError", message));
                    tokio::select! {
                        () = tokio::time::sleep(wait) => wait = (wait * 2).min(Duration::from_secs(60)),
                        () = self.stop.cancelled() => return Launch::Stopped,
                    }
                }
            }
        }
    }

    async fn image(&self) -> Result<Arc<Image>, image::Error> {
        let name = self.task.image_of(&self.spec.name).unwrap_or_else(|| self.spec.image.clone().unwrap_or_default());
        let policy = match self.spec.image_pull_policy.as_deref() {
            Some("Always") => image::Policy::Always,
            Some("Never") => image::Policy::Never,
            Some("IfNotPresent") => image::Policy::IfNotPresent,
            _ => image::default_policy(&name),
        };
        self.slot(|s| s.image = name.clone());
        let began = Instant::now();
        let (image, pulled) = self
            .task
            .ctx
            .images
            .ensure(&name, policy, || self.event(EventKind::Normal, "Pulling", format!("Pulling image {name:?}")))
            .await?;
        let message = if pulled {
            let took = humantime(Duration::from_millis(began.elapsed().as_millis() as u64));
            let size = image.size;
            format!(
                "Successfully pulled image {name:?} in {took} ({took} including waiting). Image size: {size} bytes."
            )
        } else {
            format!("Container image {name:?} already present on machine")
        };
        self.event(EventKind::Normal, "Pulled", message);
        Ok(image)
    }

    /// Shows why there is no image, then waits; true when the pod is stopped meanwhile.
    async fn wait_for_image(&self, failure: &image::Error, backoff: &mut Backoff) -> bool {
        let name = self.spec.image.as_deref().unwrap_or_default();
        let reason = failure.reason();
        match failure {
            image::Error::Pull(cause) => {
                self.event(EventKind::Warning, "Failed", format!("Failed to pull image {name:?}: {cause}"));
                self.event(EventKind::Warning, "Failed", format!("Error: {reason}"));
            }
            image::Error::InvalidName(cause) => {
                self.event(EventKind::Warning, "InspectFailed", cause.clone());
                self.event(EventKind::Warning, "Failed", format!("Error: {reason}"));
            }
            image::Error::NeverPull(_) => {
                self.event(EventKind::Warning, "ErrImageNeverPull", failure.to_string());
                self.event(EventKind::Warning, "Failed", format!("Error: {reason}"));
            }
        }
        let message = match failure {
            image::Error::Pull(cause) => format!("failed to pull image {name:?}: {cause}"),
            other => other.to_string(),
        };
        self.slot(|s| s.phase = Phase::waiting(reason, message.clone()));
        let delay = backoff.next();
        // The error itself is shown for the first tenth of the wait, then that it is waiting.
        let shown = delay / 10;
        tokio::select! {
            () = tokio::time::sleep(shown) => {}
            () = self.stop.cancelled() => return true,
        }
        if let image::Error::Pull(_) = failure {
            self.event(EventKind::Normal, "BackOff", format!("Back-off pulling image {name:?}"));
            self.event(EventKind::Warning, "Failed", "Error: ImagePullBackOff".into());
            let message = format!("Back-off pulling image {name:?}: {reason}: {message}");
            self.slot(|s| s.phase = Phase::waiting("ImagePullBackOff", message));
        }
        tokio::select! {
            () = tokio::time::sleep(delay - shown) => false,
            () = self.stop.cancelled() => true,
        }
    }

    /// `Err` is a configuration that cannot be honoured yet.
    async fn start(&self, image: &Arc<Image>) -> Result<Launch, String> {
        let task = self.task;
        let (ctx, pod, name) = (&task.ctx, task.pod(), &self.spec.name);
        let run = task.read(|s| s.slots[self.index].restart_count);
        let id = Runtime::new_id();
        let cgroup = ctx.config.cgroup.join(task.uid()).join(&id);
        let termination = task.dirs.termination(name, run);
        let inputs = prepare::Inputs {
            image,
            runtime: self.runtime,
            volumes: self.volumes,
            cgroup: &cgroup,
            termination: &termination,
        };
        let spec = prepare::container(ctx, &pod, &self.spec, &inputs).await?;
        if self.stop.is_cancelled() {
            return Ok(Launch::Stopped);
        }
        let meta = Meta {
            pod_uid: task.uid().to_owned(),
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            pod: pod.metadata.name.clone().unwrap_or_default(),
            name: name.clone(),
            restart_count: run,
            image: task.read(|s| s.slots[self.index].image.clone()),
            image_id: image.repo_digest.clone(),
            stop_signal: image.stop_signal.as_deref().and_then(signal_number).unwrap_or(Signal::SIGTERM as i32),
            termination_message: termination,
            log: task.dirs.log(name, run),
            stdin: self.spec.stdin.unwrap_or(false),
            stdin_once: self.spec.stdin_once.unwrap_or(false),
            tty: self.spec.tty.unwrap_or(false),
        };
        let lower = image.layers.iter().rev().cloned().collect();
        match ctx.runtime.start(&id, meta, lower, cgroup, &spec).await {
            Ok(container) => {
                self.event(EventKind::Normal, "Created", format!("Created container: {name}"));
                self.event(EventKind::Normal, "Started", format!("Started container {name}"));
                Ok(Launch::Running(container))
            }
            Err(cause) => {
                let message = format!("failed to create task: {cause}");
                self.event(EventKind::Warning, "Failed", format!("Error: {message}"));
                let ended = Terminated {
                    exit_code: 128,
                    signal: None,
                    reason: "StartError".into(),
                    message,
                    started_at: None,
                    finished_at: Timestamp::now(),
                    container_id: container_id(&id),
                };
                self.slot(|s| {
                    s.last = Some(ended.clone());
                    s.phase = Phase::Terminated(ended);
                    s.container_id = container_id(&id);
                });
                Ok(Launch::Failed)
            }
        }
    }

    /// From start to end: hooks, probes, and stopping it when the pod stops or a probe says so.
    async fn attend(&self, container: &Arc<Container>) -> Exit {
        let id = container_id(&container.id);
        // An adopted container is what the last agent found it to be, until a probe says otherwise.
        let known = self.task.read(|s| s.slots[self.index].live.is_some() && s.slots[self.index].container_id == id);
        let passed = known && self.task.read(|s| s.slots[self.index].started);
        let startup = self.spec.startup_probe.is_some() && !passed;
        self.slot(|s| {
            s.phase = Phase::Running { since: container.started_at };
            s.container_id = id;
            s.image_id.clone_from(&container.meta.image_id);
            s.restart_count = container.meta.restart_count;
            let before = s.log.replace(container.meta.log.clone());
            s.previous_log = before.filter(|l| *l != container.meta.log).or_else(|| s.previous_log.take());
            s.live = Some(container.clone());
            s.started = !startup;
            let trusted = known && s.ready;
            s.ready = !startup && (self.spec.readiness_probe.is_none() || trusted);
        });
        if !startup {
            self.started.cancel();
        }
        let exit = container.wait();
        tokio::pin!(exit);
        // Reports come from tasks that end with the set.
        let mut probes = JoinSet::new();
        let (sender, mut reports) = mpsc::channel(8);
        let killing = tokio::sync::Notify::new();
        let grace = Mutex::new(None);
        let terminate = async {
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = killing.notified() => {}
            }
            let own = *grace.lock().unwrap_or_else(PoisonError::into_inner);
            self.terminate(container, own).await;
            std::future::pending::<()>().await;
        };
        tokio::pin!(terminate);
        if let Some(hook) = self.spec.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) {
            tokio::select! {
                exit = &mut exit => return exit,
                () = &mut terminate => {}
                done = self.hook(container, hook) => if let Err(e) = done {
                    self.event(EventKind::Warning, "FailedPostStartHook", format!("PostStartHook failed: {e}"));
                    killing.notify_one();
                }
            }
        }
        let target = probe::Target {
            ip: self.task.probe_ip(),
            spec: self.spec.clone(),
            container: container.clone(),
            runtime: self.task.ctx.runtime.clone(),
        };
        let begin = |probes: &mut JoinSet<()>, kind| {
            let spec = match kind {
                probe::Kind::Startup => &self.spec.startup_probe,
                probe::Kind::Readiness => &self.spec.readiness_probe,
                probe::Kind::Liveness => &self.spec.liveness_probe,
            };
            if let Some(spec) = spec {
                probes.spawn(probe::run(kind, spec.clone(), target.clone(), sender.clone()));
            }
        };
        if startup {
            begin(&mut probes, probe::Kind::Startup);
        } else {
            begin(&mut probes, probe::Kind::Readiness);
            begin(&mut probes, probe::Kind::Liveness);
        }
        let mut edits = self.task.edits();
        loop {
            tokio::select! {
                exit = &mut exit => return exit,
                () = &mut terminate => {}
                Ok(()) = edits.changed() => {
                    let wanted = self.task.image_of(&self.spec.name);
                    if wanted.is_some_and(|i| i != container.meta.image) {
                        self.killed(format!("Container {} definition changed, will be restarted", self.spec.name));
                        killing.notify_one();
                    }
                }
                Some(report) = reports.recv() => match report {
                    probe::Report::Attempt(kind, text) => {
                        self.event(EventKind::Warning, "Unhealthy", format!("{} probe failed: {text}", kind.word()));
                    }
                    probe::Report::Passed(probe::Kind::Startup) => {
                        self.started.cancel();
                        self.slot(|s| { s.started = true; s.ready = self.spec.readiness_probe.is_none(); });
                        begin(&mut probes, probe::Kind::Readiness);
                        begin(&mut probes, probe::Kind::Liveness);
                    }
                    probe::Report::Passed(probe::Kind::Readiness) => self.slot(|s| s.ready = true),
                    probe::Report::Failed(probe::Kind::Readiness) => self.slot(|s| s.ready = false),
                    probe::Report::Passed(probe::Kind::Liveness) => {}
                    // A pod that is going away is not restarted for being unwell.
                    probe::Report::Failed(_) if self.stop.is_cancelled() => {}
                    probe::Report::Failed(kind) => {
                        let probe = if kind == probe::Kind::Startup { &self.spec.startup_probe } else { &self.spec.liveness_probe };
                        *grace.lock().unwrap_or_else(PoisonError::into_inner) =
                            probe.as_ref().and_then(|p| p.termination_grace_period_seconds);
                        let word = kind.word().to_lowercase();
                        self.killed(format!("Container {} failed {word} probe, will be restarted", self.spec.name));
                        killing.notify_one();
                    }
                },
            }
        }
    }

    fn killed(&self, message: String) {
        self.event(EventKind::Normal, "Killing", message);
    }

    /// preStop hook, the image's stop signal, the rest of the grace period, KILL. The end itself is seen elsewhere.
    async fn terminate(&self, container: &Container, grace: Option<i64>) {
        let stopping = self.stop.is_cancelled();
        if stopping {
            self.killed(format!("Stopping container {}", self.spec.name));
        }
        let task = self.task;
        let grace = match grace.filter(|_| !stopping) {
            Some(own) => Duration::from_secs(own.max(1) as u64),
            None => task.grace(),
        };
        let began = Instant::now();
        let mut deadline = began + grace;
        if let Some(hook) = self.spec.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref()) {
            tokio::select! {
                done = self.hook(container, hook) => if let Err(e) = done {
                    self.event(EventKind::Warning, "FailedPreStopHook", format!("PreStopHook failed: {e}"));
                },
                () = tokio::time::sleep_until(deadline) => {}
                () = task.force.cancelled() => {}
            }
            // However long the hook took, the program gets a moment to end.
            deadline = deadline.max(Instant::now() + Duration::from_secs(2));
        }
        container.signal(Signal::try_from(container.meta.stop_signal).unwrap_or(Signal::SIGTERM));
        tokio::select! {
            () = tokio::time::sleep_until(deadline) => {}
            () = task.force.cancelled() => {}
            () = task.shortened(began) => {}
        }
        container.signal(Signal::SIGKILL);
    }

    async fn hook(&self, container: &Container, hook: &LifecycleHandler) -> Result<(), String> {
        // The pod's grace period bounds a hook; this is only a bound for one that has none.
        let limit = Duration::from_secs(3600);
        if let Some(exec) = &hook.exec {
            let command = exec.command.as_deref().unwrap_or_default();
            return match self.task.ctx.runtime.exec(container, command, limit).await {
                ExecResult::Exited { code: 0, .. } => Ok(()),
                ExecResult::Exited { code, output } => {
                    Err(format!("command '{}' exited with {code}: {output:?}", command.join(" ")))
                }
                ExecResult::TimedOut { .. } => Err(format!("command '{}' timed out", command.join(" "))),
                ExecResult::Failed(e) => Err(e),
            };
        }
        if let Some(sleep) = &hook.sleep {
            tokio::time::sleep(Duration::from_secs(sleep.seconds.max(0) as u64)).await;
            return Ok(());
        }
        if let Some(http) = &hook.http_get {
            let target = probe::Target {
                ip: self.task.probe_ip(),
                spec: self.spec.clone(),
                container: self.task.read(|s| s.slots[self.index].live.clone()).ok_or("the container has ended")?,
                runtime: self.task.ctx.runtime.clone(),
            };
            return probe::http_get(http, &target, limit).await.map_err(|e| e.text().to_owned());
        }
        Ok(())
    }

    fn record(&self, container: &Container, exit: &Exit) {
        let reason = match (exit.oom, exit.code) {
            (true, _) => "OOMKilled",
            (false, 0) => "Completed",
            _ => "Error",
        };
        let ended = Terminated {
            exit_code: exit.code,
            // The API carries the code of a killed program as 128 + signal and leaves the signal out.
            signal: None,
            reason: reason.into(),
            message: self.termination_message(container, exit.code),
            started_at: Some(container.started_at),
            finished_at: exit.at,
            container_id: container_id(&container.id),
        };
        self.slot(|s| {
            s.live = None;
            s.ready = false;
            s.started = false;
            s.last = Some(ended.clone());
            s.phase = Phase::Terminated(ended);
        });
    }

    fn termination_message(&self, container: &Container, code: i32) -> String {
        const MAX: usize = 4096;
        let text = std::fs::read(&container.meta.termination_message).unwrap_or_default();
        let mut text = String::from_utf8_lossy(&text[..text.len().min(MAX)]).into_owned();
        let fall_back = self.spec.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
        if text.is_empty() && fall_back && code != 0 {
            text = crate::logs::tail(&container.meta.log, 80, 2048);
        }
        text
    }
}

pub fn container_id(id: &str) -> String {
    format!("portolan://{id}")
}

/// As Go prints a duration: `1.5s`, `1m20s`, `850ms`.
pub fn humantime(d: Duration) -> String {
    let (seconds, millis) = (d.as_secs(), d.subsec_millis());
    match (seconds, millis) {
        (0, ms) => format!("{ms}ms"),
        (s, ms) if s < 60 && ms > 0 => format!("{}s", f64::from(s as u32 * 1000 + ms) / 1000.0),
        (s, _) if s < 60 => format!("{s}s"),
        (s, _) => format!("{}m{}s", s / 60, s % 60),
    }
}

/// `SIGQUIT`, `QUIT` or `3`, as an image's StopSignal may say.
fn signal_number(text: &str) -> Option<i32> {
    let full = if text.starts_with("SIG") { text.to_owned() } else { format!("SIG{text}") };
    text.parse().ok().or_else(|| full.parse::<Signal>().ok().map(|s| s as i32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_doubles_to_five_minutes() {
        let mut b = Backoff::default();
        let all: Vec<_> = (0..7).map(|_| b.next().as_secs()).collect();
        assert_eq!(all, [10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(humantime(Duration::from_secs(80)), "1m20s");
        assert_eq!(humantime(Duration::from_millis(1500)), "1.5s");
        assert_eq!(signal_number("SIGQUIT"), Some(3));
        assert_eq!(signal_number("15"), Some(15));
        assert_eq!(signal_number("nonsense"), None);
    }

    #[test]
    fn restart_policies() {
        assert!(Restart::Always.wants(0) && Restart::OnFailure.wants(1));
        assert!(!Restart::OnFailure.wants(0) && !Restart::Never.wants(1));
    }
}
