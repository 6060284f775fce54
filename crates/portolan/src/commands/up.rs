//! `portolan up`: start, apply, show, and tell what changes until Ctrl-C.

use std::{
    io::IsTerminal,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use console::style;
use indicatif::{ProgressBar, ProgressStyle};
use model::{Exposure, ObjectKey, PodPhase, Snapshot, selects};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use super::Up;
use crate::say::{note, say};
use crate::{
    admin,
    app::{self, App},
    apply::{self, Applied, Applier, Manifest},
    config::Config,
    journal, overview,
};

pub fn run(options: Up) -> Result<i32> {
    let begun = Instant::now();
    app::require_root("portolan up")?;
    let manifests = apply::read(&options.files)?;
    let config = Config::new(options.options)?;
    start_logging();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("portolan")
        .enable_all()
        .build()
        .context("could not start threads")?;
    let code = runtime.block_on(foreground(config, manifests, Duration::from_secs(options.wait), begun));
    runtime.shutdown_timeout(Duration::from_secs(2));
    code
}

/// Diagnostics go to stderr; what `up` tells people is printed apart from them.
fn start_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    let ansi = console::colors_enabled_stderr();
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(ansi)
        .log_internal_errors(false)
        .with_writer(std::io::stderr)
        .try_init();
}

async fn foreground(config: Config, manifests: Vec<Manifest>, wait: Duration, begun: Instant) -> Result<i32> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut stopped = std::pin::pin!(async move {
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {}, _ = hangup.recv() => {} }
    });
    let Some(app) = App::start(config, &mut stopped).await? else { return Ok(130) };
    say!("Ready after {} ms.", begun.elapsed().as_millis());
    let outcome = tokio::select! {
        r = show(&app, &manifests, wait) => match r {
            Ok(never) => match never {},
            Err(e) => Err(e),
        },
        () = &mut stopped => Ok(0),
    };
    note!("stopping");
    app.stop().await?;
    outcome
}

enum Never {}

async fn show(app: &App, manifests: &[Manifest], wait: Duration) -> Result<Never> {
    let mut snapshot = app.snapshot.clone();
    let mut applied = Vec::new();
    let mut applier = Applier::new(app.client.clone());
    for manifest in manifests {
        let one = applier.apply(manifest).await?;
        say!("{} {}", one.resource, one.outcome);
        applied.push(one);
    }
    if !applied.is_empty() {
        wait_for_pods(&mut snapshot, &applied, wait).await?;
    }
    let mut last = snapshot.borrow_and_update().clone();
    print_ways(app, &last);
    loop {
        snapshot.changed().await.context("the cluster's view ended")?;
        let now = snapshot.borrow_and_update().clone();
        let time = clock();
        for line in journal::lines(&last, &now) {
            say!("{} {line}", style(&time).dim());
        }
        last = now;
    }
}

fn clock() -> String {
    jiff::Timestamp::now().strftime("%H:%M:%S").to_string()
}

fn print_ways(app: &App, snapshot: &Snapshot) {
    let rows = overview::rows(snapshot, &admin::place(&app.config));
    say!("\n{}\n", overview::table(&rows));
    say!("DNS answers at {} for pods and this machine.", app.config.dns_service_ip);
    say!("For kubectl, in another terminal:\n");
    say!("    {}\n", style(format!("export KUBECONFIG={}", app.config.options.dirs.kubeconfig().display())).bold());
    say!("Ctrl-C stops it and removes everything it made. What changes from here on:\n");
}

/// What the applied workloads and Services still lack.
#[derive(Debug, Default, PartialEq, Eq)]
struct Progress {
    ready: usize,
    /// The first reason a pod gives.
    reason: Option<String>,
    /// Every applied Service has its address, and its endpoints agree with the pods.
    settled: bool,
}

fn progress(snapshot: &Snapshot, applied: &[Applied]) -> Progress {
    let mut p = Progress { settled: true, ..Progress::default() };
    for one in applied {
        let namespace = one.namespace.as_deref().unwrap_or_default();
        if one.kind == "Service" {
            p.settled &= settled(snapshot, namespace, &one.name);
        }
        for pod in snapshot.pods_in(namespace) {
            // Pods of a workload carry its name; a bare pod is its own.
            let name = &pod.meta.key.name;
            let of_it = match one.kind.as_str() {
                "Pod" => **name == *one.name,
                "Deployment" | "StatefulSet" | "ReplicaSet" | "DaemonSet" => {
                    name.strip_prefix(one.name.as_str()).is_some_and(|rest| rest.starts_with('-'))
                        && pod.meta.controller.is_some()
                }
                _ => false,
            };
            if of_it && !pod.meta.deleting && pod.phase != PodPhase::Succeeded {
                p.ready += usize::from(pod.ready);
                if p.reason.is_none() && !pod.ready && !pod.reason.is_empty() && !passing(&pod.reason) {
                    p.reason = Some(format!("{name}: {}", pod.reason));
                }
            }
        }
    }
    p
}

/// Stages that every pod goes through say nothing about what keeps one.
fn passing(reason: &str) -> bool {
    ["ContainerCreating", "ContainersNotReady", "PodInitializing"].iter().any(|stage| reason.starts_with(stage))
}

fn settled(snapshot: &Snapshot, namespace: &str, name: &str) -> bool {
    let Some(service) = snapshot.services.get(&ObjectKey::new(namespace, name)) else { return false };
    let addressed =
        !matches!(&service.exposure, Exposure::LoadBalancer(lb) if lb.ingress.is_empty() && lb.class.is_none());
    let Some(selector) = service.selector.as_ref().filter(|s| !s.is_empty()) else { return addressed };
    let pods = snapshot.pods_in(namespace).filter(|p| p.ready && !p.meta.deleting && selects(selector, &p.meta.labels));
    let slices = snapshot.slices_of(&service.meta.key);
    addressed && slices.iter().flat_map(|s| &s.endpoints).filter(|e| e.ready).count() >= pods.count()
}

async fn wait_for_pods(
    snapshot: &mut watch::Receiver<Arc<Snapshot>>,
    applied: &[Applied],
    patience: Duration,
) -> Result<()> {
    let wanted: usize = applied.iter().map(|a| a.replicas).sum();
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(wanted as u64) } else { ProgressBar::hidden() };
    bar.set_style(ProgressStyle::with_template("{spinner} pods ready {pos}/{len} {msg}")?);
    bar.enable_steady_tick(Duration::from_millis(120));
    let deadline = tokio::time::Instant::now() + patience;
    let mut last_reason = None;
    loop {
        let p = progress(&snapshot.borrow_and_update().clone(), applied);
        bar.set_position(p.ready.min(wanted) as u64);
        bar.set_message(p.reason.clone().unwrap_or_default());
        if p.ready >= wanted && p.settled {
            bar.finish_and_clear();
            if wanted > 0 {
                say!("{wanted} of {wanted} pods are ready.");
            }
            return Ok(());
        }
        if p.reason.is_some() && p.reason != last_reason {
            bar.suspend(|| say!("waiting for {}", p.reason.as_deref().unwrap_or_default()));
            last_reason.clone_from(&p.reason);
        }
        let changed = tokio::time::timeout_at(deadline, snapshot.changed()).await;
        match changed {
            Ok(r) => r.context("the cluster's view ended")?,
            Err(_) => {
                bar.finish_and_clear();
                let reason = p.reason.map(|r| format!(" ({r})")).unwrap_or_default();
                say!("{} of {wanted} pods are ready after {} s{reason}; going on.", p.ready, patience.as_secs());
                return Ok(());
            }
        }
    }
}
