//! The Node object and its Lease: that this machine is there, what it has, and that it is alive.

use std::{net::IpAddr, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Node};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::Context;

/// As kubelet: a Lease of 40 s renewed every 10 s, the status at least every 5 min.
const RENEW: Duration = Duration::from_secs(10);
const LEASE_SECONDS: i32 = 40;
const STATUS_EVERY: u32 = 30;
const VERSION: &str = "v1.36.0+portolan";

pub fn memory_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// The address under which others reach this machine: the one its default route starts from. `None` without such a route.
pub fn default_address() -> Option<IpAddr> {
    // Connecting a datagram socket sends nothing; it only asks the kernel for a route.
    let socket = std::net::UdpSocket::bind(("0.0.0.0", 0)).ok()?;
    socket.connect(("192.0.2.1", 9)).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_unspecified() && !ip.is_loopback()).then_some(ip)
}

/// Creates the Node or brings it up to date. Fails only when the API server refuses or cannot be reached.
pub async fn register(ctx: &Context) -> Result<(), kube::Error> {
    let api: Api<Node> = Api::all(ctx.client.clone());
    let name = &ctx.config.node_name;
    let cidr = ctx.config.pod_cidr.trunc().to_string();
    let labels = labels(name);
    let node = json!({
        "metadata": {"name": name, "labels": labels},
        "spec": {"podCIDR": cidr, "podCIDRs": [cidr]},
        "status": status(ctx, None),
    });
    let node: Node = serde_json::from_value(node).map_err(kube::Error::SerdeError)?;
    match api.create(&PostParams::default(), &node).await {
        Ok(_) => {}
        Err(kube::Error::Api(s)) if s.code == 409 => {
            let found = api.get(name).await?;
            let assigned = found.spec.as_ref().and_then(|s| s.pod_cidr.as_ref()).is_some();
            let mut patch = json!({"metadata": {"labels": labels}});
            // A pod range is assigned once.
            if !assigned {
                patch["spec"] = json!({"podCIDR": cidr, "podCIDRs": [cidr]});
            }
            api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        }
        Err(e) => return Err(e),
    }
    write_status(ctx, &api).await
}

async fn write_status(ctx: &Context, api: &Api<Node>) -> Result<(), kube::Error> {
    let name = &ctx.config.node_name;
    let before = api.get(name).await?;
    let patch = json!({"status": status(ctx, Some(&before))});
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
}

fn labels(name: &str) -> Value {
    json!({
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux", "beta.kubernetes.io/os": "linux",
        "kubernetes.io/arch": arch(), "beta.kubernetes.io/arch": arch(),
    })
}

fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "arm" => "arm",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

fn status(ctx: &Context, before: Option<&Node>) -> Value {
    let now = format!("{:.0}", Timestamp::now());
    let condition = |kind: &str, ready: bool, reason: &str, message: &str| {
        let word = if ready { "True" } else { "False" };
        let old = before.and_then(|n| n.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == kind));
        let since = old.filter(|c| c.status == word).and_then(|c| c.last_transition_time.as_ref());
        let since = since.map_or_else(|| now.clone(), |t| format!("{:.0}", t.0));
        json!({"type": kind, "status": word, "reason": reason, "message": message, "lastHeartbeatTime": now,
            "lastTransitionTime": since})
    };
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let kib = memory_bytes() / 1024;
    let disk = nix::sys::statvfs::statvfs(&ctx.config.data_dir).map_or(0, |s| s.blocks() * s.fragment_size() / 1024);
    let resources = json!({"cpu": cpus.to_string(), "memory": format!("{kib}Ki"), "ephemeral-storage": format!("{disk}Ki"),
        "pods": ctx.config.max_pods.to_string(), "hugepages-1Gi": "0", "hugepages-2Mi": "0"});
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    json!({
        "addresses": [{"type": "InternalIP", "address": ctx.host_ip}, {"type": "Hostname", "address": ctx.config.node_name}],
        "capacity": resources, "allocatable": resources,
        "conditions": [
            condition("MemoryPressure", false, "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
            condition("DiskPressure", false, "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            condition("PIDPressure", false, "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
            condition("Ready", true, "KubeletReady", "kubelet is posting ready status"),
        ],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
        "nodeInfo": {
            "architecture": arch(), "operatingSystem": "linux", "osImage": os_image(),
            "kernelVersion": read("/proc/sys/kernel/osrelease"), "bootID": read("/proc/sys/kernel/random/boot_id"),
            "machineID": read("/etc/machine-id"), "systemUUID": read("/etc/machine-id"),
            "containerRuntimeVersion": concat!("portolan://", env!("CARGO_PKG_VERSION")),
            "kubeletVersion": VERSION, "kubeProxyVersion": "",
        },
    })
}

fn os_image() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    name.map(|n| n.trim_matches('"').to_owned()).unwrap_or_else(|| "Linux".into())
}

/// Keeps the Lease and the status fresh until `stop`.
pub async fn heartbeat(ctx: std::sync::Arc<Context>, stop: CancellationToken) {
    let leases: Api<Lease> = Api::namespaced(ctx.client.clone(), "kube-node-lease");
    let nodes: Api<Node> = Api::all(ctx.client.clone());
    let name = &ctx.config.node_name;
    let mut beats = 0;
    loop {
        let now = format!("{:.6}", Timestamp::now());
        let spec = json!({"holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now});
        let patch = Patch::Merge(json!({"spec": spec}));
        let renewed = match leases.patch(name, &PatchParams::default(), &patch).await {
            Err(kube::Error::Api(s)) if s.code == 404 => {
                let lease = json!({"metadata": {"name": name, "namespace": "kube-node-lease"}, "spec": spec});
                match serde_json::from_value(lease) {
                    Ok(lease) => leases.create(&PostParams::default(), &lease).await.map(drop),
                    Err(e) => Err(kube::Error::SerdeError(e)),
                }
            }
            other => other.map(drop),
        };
        if let Err(e) = renewed {
            tracing::debug!(error = %e, "cannot renew the node's lease");
        }
        beats += 1;
        if beats % STATUS_EVERY == 0
            && let Err(e) = write_status(&ctx, &nodes).await
        {
            tracing::warn!(error = %e, "cannot refresh the node's status");
        }
        tokio::select! {
            () = tokio::time::sleep(RENEW) => {}
            () = stop.cancelled() => return,
        }
    }
}
