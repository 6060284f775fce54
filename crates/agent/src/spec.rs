//! The OCI runtime specification of one container: what a pod's spec means for namespaces, mounts, users, capabilities
//! and cgroups. Pure: paths and values are given, nothing is read.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod, SecurityContext};
use serde_json::{Value, json};

use crate::image::{Image, user::User};

/// What container runtimes allow by default.
const CAPABILITIES: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];
const EVERY_CAPABILITY: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A file or directory of the host that appears in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub source: PathBuf,
    pub destination: PathBuf,
    pub read_only: bool,
    /// `rslave` or `rshared` for HostToContainer and Bidirectional.
    pub propagation: &'static str,
}

pub struct Inputs<'a> {
    pub pod: &'a Pod,
    pub container: &'a Container,
    pub image: &'a Image,
    pub user: &'a User,
    /// In the order in which they are set.
    pub env: &'a [(String, String)],
    pub mounts: &'a [Mount],
    /// Directory with the pod's `net`, `uts` and `ipc` files.
    pub namespaces: &'a Path,
    pub cgroup: &'a Path,
    /// The host's cgroups are version 2 only.
    pub unified: bool,
}

pub fn build(i: &Inputs<'_>) -> Result<Value, String> {
    let pod = i.pod.spec.as_ref().ok_or("the pod has no spec")?;
    let own = i.container.security_context.as_ref();
    let privileged = own.and_then(|s| s.privileged).unwrap_or(false);
    let host_network = pod.host_network.unwrap_or(false);
    let path = |name: &str| i.namespaces.join(name);

    let mut namespaces = vec![json!({"type": "mount"})];
    if !pod.host_pid.unwrap_or(false) {
        namespaces.push(json!({"type": "pid"}));
    }
    if !pod.host_ipc.unwrap_or(false) {
        namespaces.push(json!({"type": "ipc", "path": path("ipc")}));
    }
    if !host_network {
        namespaces.push(json!({"type": "uts", "path": path("uts")}));
        namespaces.push(json!({"type": "network", "path": path("net")}));
    }
    if i.unified && !privileged {
        namespaces.push(json!({"type": "cgroup"}));
    }

    let capabilities = capabilities(own, privileged)?;
    let mut process = json!({
        "terminal": i.container.tty.unwrap_or(false),
        "user": {"uid": i.user.uid, "gid": i.user.gid, "additionalGids": i.user.additional},
        "args": arguments(i)?,
        "env": environment(i),
        "cwd": working_dir(i),
        "noNewPrivileges": own.and_then(|s| s.allow_privilege_escalation) == Some(false),
        "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
        "oomScoreAdj": oom_score(i.pod, i.container),
    });
    // The kernel drops what an ordinary user may not have at execve; asking for it would only fail earlier.
    if i.user.uid != 0 {
        process["capabilities"]["effective"] = json!([]);
        process["capabilities"]["permitted"] = json!([]);
    }
    let (masked, read_only): (&[&str], &[&str]) = if privileged { (&[], &[]) } else { (&MASKED, &READONLY) };
    let device = json!({"allow": privileged, "access": "rwm"});
    let mut resources = resources(i.container)?;
    resources["devices"] = json!([device]);
    Ok(json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs", "readonly": own.and_then(|s| s.read_only_root_filesystem).unwrap_or(false)},
        "process": process,
        "mounts": mounts(i, privileged),
        "linux": {
            "cgroupsPath": i.cgroup,
            "resources": resources,
            "namespaces": namespaces,
            "maskedPaths": masked,
            "readonlyPaths": read_only,
        },
    }))
}

/// `command` replaces the image's entrypoint and, unless there are `args`, its arguments too.
fn arguments(i: &Inputs<'_>) -> Result<Vec<String>, String> {
    let known = |name: &str| i.env.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.clone());
    let expand = |list: &[String]| list.iter().map(|a| crate::env::expand(a, known)).collect::<Vec<_>>();
    let command = i.container.command.as_deref().filter(|c| !c.is_empty());
    let args = i.container.args.as_deref().filter(|a| !a.is_empty());
    let all = match (command, args) {
        (Some(command), args) => [expand(command), expand(args.unwrap_or_default())].concat(),
        (None, Some(args)) => [i.image.entrypoint.clone(), expand(args)].concat(),
        (None, None) => [i.image.entrypoint.clone(), i.image.cmd.clone()].concat(),
    };
    if all.is_empty() { Err("no command specified".into()) } else { Ok(all) }
}

fn environment(i: &Inputs<'_>) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let mut set = |entry: String| {
        let name = entry.split('=').next().unwrap_or_default().to_owned() + "=";
        out.retain(|e| !e.starts_with(&name));
        out.push(entry);
    };
    set(PATH.into());
    let hostname = crate::files::hostname(i.pod);
    set(format!("HOSTNAME={hostname}"));
    if i.container.tty.unwrap_or(false) {
        set("TERM=xterm".into());
    }
    if let Some(home) = &i.user.home {
        set(format!("HOME={home}"));
    }
    for entry in i.image.env.iter().filter(|e| e.contains('=')) {
        set(entry.clone());
    }
    for (name, value) in i.env {
        set(format!("{name}={value}"));
    }
    out
}

fn working_dir(i: &Inputs<'_>) -> String {
    let own = i.container.working_dir.as_deref().filter(|d| !d.is_empty());
    own.or(Some(i.image.working_dir.as_str()).filter(|d| !d.is_empty())).unwrap_or("/").to_owned()
}

fn capabilities(own: Option<&SecurityContext>, privileged: bool) -> Result<Vec<String>, String> {
    let name = |c: &str| c.trim_start_matches("CAP_").to_ascii_uppercase();
    let mut set: Vec<String> = if privileged {
        EVERY_CAPABILITY.iter().map(|c| (*c).to_owned()).collect()
    } else {
        CAPABILITIES.iter().map(|c| (*c).to_owned()).collect()
    };
    if let Some(wanted) = own.and_then(|s| s.capabilities.as_ref()) {
        let add: Vec<_> = wanted.add.iter().flatten().map(|c| name(c)).collect();
        let drop: Vec<_> = wanted.drop.iter().flatten().map(|c| name(c)).collect();
        if let Some(unknown) = add.iter().find(|c| *c != "ALL" && !EVERY_CAPABILITY.contains(&c.as_str())) {
            return Err(format!("unknown capability \"CAP_{unknown}\""));
        }
        if add.iter().any(|c| c == "ALL") {
            set = EVERY_CAPABILITY.iter().map(|c| (*c).to_owned()).collect();
        }
        if drop.iter().any(|c| c == "ALL") {
            set.clear();
        }
        set.extend(add.into_iter().filter(|c| c != "ALL"));
        set.retain(|c| !drop.contains(c));
        set.sort();
        set.dedup();
    }
    Ok(set.into_iter().map(|c| format!("CAP_{c}")).collect())
}

fn mounts(i: &Inputs<'_>, privileged: bool) -> Vec<Value> {
    let sys = if privileged { "rw" } else { "ro" };
    let mut all = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}),
        json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]}),
        json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", sys]}),
    ];
    if i.unified {
        all.push(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev", "relatime", sys]}));
    }
    // A mount inside another must come after it.
    let mut own: Vec<_> = i.mounts.iter().collect();
    own.sort_by_key(|m| m.destination.components().count());
    // One that replaces a default replaces it whole.
    all.retain(|m| !own.iter().any(|o| m["destination"].as_str().is_some_and(|d| Path::new(d) == o.destination)));
    all.extend(own.into_iter().map(|m| {
        let access = if m.read_only { "ro" } else { "rw" };
        json!({"destination": m.destination, "type": "bind", "source": m.source, "options": ["rbind", m.propagation, access]})
    }));
    all
}

fn resources(container: &Container) -> Result<Value, String> {
    let of = |map: fn(
        &k8s_openapi::api::core::v1::ResourceRequirements,
    ) -> Option<
        &std::collections::BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>,
    >,
              name: &str| {
        let found = container.resources.as_ref().and_then(map).and_then(|m| m.get(name));
        found.map(|q| quantity(&q.0).ok_or_else(|| format!("invalid quantity {:?} for {name}", q.0))).transpose()
    };
    let limit = |name| of(|r| r.limits.as_ref(), name);
    let request = |name| of(|r| r.requests.as_ref(), name);
    let mut out = json!({});
    let cpu_limit = limit("cpu")?;
    // Without a request the limit is one (API field documentation).
    let shares = request("cpu")?.or(cpu_limit).map_or(2, |cpu| ((cpu * 1024.0) as u64).clamp(2, 262_144));
    out["cpu"] = json!({"shares": shares});
    if let Some(cpu) = cpu_limit.filter(|c| *c > 0.0) {
        out["cpu"]["period"] = json!(100_000);
        out["cpu"]["quota"] = json!(((cpu * 100_000.0) as i64).max(1000));
    }
    if let Some(memory) = limit("memory")?.filter(|m| *m > 0.0) {
        out["memory"] = json!({"limit": memory as i64});
    }
    Ok(out)
}

/// Kubernetes' quantity notation as a number: `500m`, `64Mi`, `1e3`.
pub fn quantity(text: &str) -> Option<f64> {
    let at = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '-' || c == '+')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(at);
    let number: f64 = number.parse().ok()?;
    let factor = match suffix {
        "" => 1.0,
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024.0,
        "Mi" => 1024f64.powi(2),
        "Gi" => 1024f64.powi(3),
        "Ti" => 1024f64.powi(4),
        "Pi" => 1024f64.powi(5),
        "Ei" => 1024f64.powi(6),
        e if e.starts_with(['e', 'E']) => 10f64.powi(e[1..].parse().ok()?),
        _ => return None,
    };
    Some(number * factor)
}

/// `resourceFieldRef`: the amount in units of the divisor, rounded up.
pub fn resource_value(container: &Container, resource: &str, divisor: &str) -> Result<String, String> {
    let (kind, name) =
        resource.split_once('.').ok_or_else(|| format!("unsupported container resource : {resource}"))?;
    let resources = container.resources.as_ref();
    let map = match kind {
        "limits" => resources.and_then(|r| r.limits.as_ref()),
        "requests" => resources.and_then(|r| r.requests.as_ref()),
        _ => return Err(format!("unsupported container resource : {resource}")),
    };
    let divisor = quantity(divisor).filter(|d| *d > 0.0).unwrap_or(1.0);
    // An absent limit is what the node has.
    let amount = match map.and_then(|m| m.get(name)).and_then(|q| quantity(&q.0)) {
        Some(amount) => amount,
        None if kind == "requests" => 0.0,
        None if name == "cpu" => std::thread::available_parallelism().map_or(1.0, |n| n.get() as f64),
        None if name == "memory" => crate::node::memory_bytes() as f64,
        None => 0.0,
    };
    Ok(format!("{}", (amount / divisor).ceil() as i64))
}

/// Guaranteed, Burstable or BestEffort, by the requests and limits of all containers (API field documentation).
pub fn qos_class(pod: &Pod) -> &'static str {
    let Some(spec) = pod.spec.as_ref() else { return "BestEffort" };
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let (mut any, mut guaranteed) = (false, true);
    for container in all {
        let get = |limits: bool, name: &str| {
            let r = container.resources.as_ref()?;
            let map = if limits { r.limits.as_ref() } else { r.requests.as_ref() };
            map?.get(name).and_then(|q| quantity(&q.0)).filter(|q| *q > 0.0)
        };
        for name in ["cpu", "memory"] {
            let (limit, request) = (get(true, name), get(false, name));
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && request.or(limit) == limit;
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// Who the kernel kills first when memory runs out: kubelet's values.
fn oom_score(pod: &Pod, container: &Container) -> i32 {
    match qos_class(pod) {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let request = container.resources.as_ref().and_then(|r| r.requests.as_ref()).and_then(|m| m.get("memory"));
            let request = request.and_then(|q| quantity(&q.0)).unwrap_or(0.0);
            let share = 1000.0 - 1000.0 * request / (crate::node::memory_bytes().max(1) as f64);
            (share as i32).clamp(3, 999)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(spec: Value, image: &Image, env: &[(&str, &str)]) -> Result<Value, String> {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).expect("pod");
        let env: Vec<_> = env.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        let container = pod.spec.as_ref().expect("spec").containers[0].clone();
        build(&Inputs {
            pod: &pod,
            container: &container,
            image,
            user: &User::default(),
            env: &env,
            mounts: &[],
            namespaces: Path::new("/run/ns"),
            cgroup: Path::new("/portolan/x"),
            unified: false,
        })
    }

    fn image() -> Image {
        Image {
            entrypoint: vec!["/entry".into()],
            cmd: vec!["default".into()],
            env: vec!["PATH=/image".into(), "A=image".into()],
            ..Image::default()
        }
    }

    #[test]
    fn command_and_args_follow_the_documented_table() {
        let args = |c: Value| {
            let mut c = c;
            c["name"] = json!("c");
            made(json!({"containers": [c]}), &image(), &[("X", "1")]).map(|s| s["process"]["args"].clone())
        };
        assert_eq!(args(json!({})), Ok(json!(["/entry", "default"])));
        assert_eq!(
            args(json!({"args": ["a", "$(X)", "$$(X)", "$(Y)"]})),
            Ok(json!(["/entry", "a", "1", "$(X)", "$(Y)"]))
        );
        assert_eq!(args(json!({"command": ["c"]})), Ok(json!(["c"])));
        assert_eq!(args(json!({"command": ["c"], "args": ["a"]})), Ok(json!(["c", "a"])));
        let none = made(json!({"containers": [{"name": "c"}]}), &Image::default(), &[]);
        assert_eq!(none, Err("no command specified".into()));
    }

    #[test]
    fn the_containers_variables_win_over_the_images() {
        let s = made(json!({"containers": [{"name": "c"}]}), &image(), &[("A", "pod")]).expect("spec");
        assert_eq!(s["process"]["env"], json!(["HOSTNAME=p", "PATH=/image", "A=pod"]));
    }

    #[test]
    fn host_network_joins_no_network_namespace() {
        let types = |spec: Value| {
            let s = made(spec, &image(), &[]).expect("spec");
            let list = s["linux"]["namespaces"].as_array().cloned().unwrap_or_default();
            list.iter().map(|n| n["type"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(types(json!({"containers": [{"name": "c"}]})), ["mount", "pid", "ipc", "uts", "network"]);
        assert_eq!(types(json!({"hostNetwork": true, "containers": [{"name": "c"}]})), ["mount", "pid", "ipc"]);
    }

    #[test]
    fn capabilities_can_be_added_and_dropped() {
        let caps = |c: Value| {
            let spec = json!({"containers": [{"name": "c", "securityContext": {"capabilities": c}}]});
            made(spec, &image(), &[]).map(|s| s["process"]["capabilities"]["bounding"].clone())
        };
        assert_eq!(caps(json!({"drop": ["ALL"], "add": ["NET_ADMIN"]})), Ok(json!(["CAP_NET_ADMIN"])));
        let all = caps(json!({"add": ["NET_ADMIN"]})).expect("caps");
        assert_eq!(all.as_array().map(Vec::len), Some(15));
        assert_eq!(caps(json!({"add": ["WINGS"]})), Err("unknown capability \"CAP_WINGS\"".into()));
    }

    #[test]
    fn quantities_and_resources() {
        for (text, value) in
            [("500m", 0.5), ("64Mi", 67_108_864.0), ("1e3", 1000.0), ("2", 2.0), ("1.5Gi", 1_610_612_736.0)]
        {
            assert_eq!(quantity(text), Some(value), "{text}");
        }
        assert_eq!(quantity("ten"), None);
        let spec = json!({"containers": [{"name": "c", "resources": {"limits": {"cpu": "250m", "memory": "64Mi"}}}]});
        let s = made(spec.clone(), &image(), &[]).expect("spec");
        assert_eq!(s["linux"]["resources"]["cpu"], json!({"shares": 256, "quota": 25000, "period": 100000}));
        assert_eq!(s["linux"]["resources"]["memory"]["limit"], json!(67_108_864));
        let pod: Pod = serde_json::from_value(json!({"spec": spec})).expect("pod");
        assert_eq!(qos_class(&pod), "Guaranteed");
    }
}
