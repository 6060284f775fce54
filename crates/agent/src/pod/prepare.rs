//! From a pod's spec to the arguments of one container start: environment, user, files and mounts. Fails with the words
//! kubelet shows in `CreateContainerConfigError`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::{Container as ContainerSpec, Pod};
use serde_json::Value;

use crate::{
    Context,
    env::{self, References, Runtime},
    files,
    image::{Image, user},
    network,
    spec::{self, Mount},
    volume,
};

/// Directories of one pod below the data directory.
#[derive(Clone, Debug)]
pub struct Dirs {
    pub root: PathBuf,
}

impl Dirs {
    pub fn of(data: &Path, uid: &str) -> Self {
        Self { root: data.join("pods").join(uid) }
    }
    pub fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }
    pub fn etc(&self, file: &str) -> PathBuf {
        self.root.join("etc").join(file)
    }
    pub fn log(&self, container: &str, run: i32) -> PathBuf {
        self.root.join("logs").join(container).join(format!("{run}.log"))
    }
    pub fn termination(&self, container: &str, run: i32) -> PathBuf {
        self.root.join("termination").join(format!("{container}-{run}"))
    }
}

/// Writes the pod's `resolv.conf`, `hosts` and `hostname`.
pub fn etc(ctx: &Context, pod: &Pod, dirs: &Dirs, runtime: &Runtime) -> std::io::Result<()> {
    fs::create_dir_all(dirs.root.join("etc"))?;
    let host = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let resolver =
        files::Resolver { domain: &ctx.config.cluster_domain, cluster_dns: &ctx.config.cluster_dns, host: &host };
    fs::write(dirs.etc("resolv.conf"), files::resolv_conf(pod, &resolver))?;
    let own = fs::read_to_string("/etc/hosts").unwrap_or_default();
    fs::write(dirs.etc("hosts"), files::hosts(pod, &runtime.pod_ips, &ctx.config.cluster_domain, &own))?;
    let host_network = pod.spec.as_ref().and_then(|s| s.host_network).unwrap_or(false);
    let hostname = if host_network { ctx.config.node_name.clone() } else { files::hostname(pod) };
    fs::write(dirs.etc("hostname"), format!("{hostname}\n"))
}

/// What is known only when a container is about to start.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    pub image: &'a Image,
    pub runtime: &'a Runtime,
    /// Directories by volume name.
    pub volumes: &'a BTreeMap<String, PathBuf>,
    pub cgroup: &'a Path,
    /// The file behind `terminationMessagePath`.
    pub termination: &'a Path,
}

/// The OCI spec of the container, with its files made.
pub async fn container(
    ctx: &Context,
    pod: &Pod,
    container: &ContainerSpec,
    inputs: &Inputs<'_>,
) -> Result<Value, String> {
    let Inputs { image, runtime, volumes, cgroup, termination } = *inputs;
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let pod_spec = pod.spec.as_ref().ok_or("the pod has no spec")?;
    let references = fetch(ctx, namespace, container).await?;
    let links = pod_spec.enable_service_links.unwrap_or(true);
    let snapshot = ctx.snapshot_for(pod).await;
    let services = env::service_variables(&snapshot, namespace, links);
    let env = env::variables(pod, container, &references, runtime, &services)?;
    let user = user(ctx, pod, container, image)?;
    let dirs = Dirs::of(&ctx.config.data_dir, uid);

    let mut mounts = Vec::new();
    for file in ["resolv.conf", "hosts", "hostname"] {
        let destination = Path::new("/etc").join(file);
        mounts.push(Mount { source: dirs.etc(file), destination, read_only: false, propagation: "rprivate" });
    }
    if let Some(parent) = termination.parent() {
        fs::create_dir_all(parent).map_err(|e| e.to_string())?;
    }
    fs::write(termination, "").map_err(|e| format!("make the termination message file: {e}"))?;
    open_to_all(termination);
    let path = container.termination_message_path.as_deref().unwrap_or("/dev/termination-log");
    mounts.push(Mount {
        source: termination.to_owned(),
        destination: path.into(),
        read_only: false,
        propagation: "rprivate",
    });
    let known = |name: &str| env.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
    for m in container.volume_mounts.iter().flatten() {
        let volume = volumes
            .get(&m.name)
            .ok_or_else(|| format!("cannot find volume {:?} to mount into container {:?}", m.name, container.name))?;
        let sub = match (&m.sub_path, &m.sub_path_expr) {
            (Some(sub), _) if !sub.is_empty() => Some(sub.clone()),
            (_, Some(expr)) if !expr.is_empty() => Some(env::expand(expr, known)),
            _ => None,
        };
        let source = match sub {
            Some(sub) => volume::sub_path(volume, &sub)?,
            None => volume.clone(),
        };
        let propagation = match m.mount_propagation.as_deref() {
            Some("HostToContainer") => "rslave",
            Some("Bidirectional") => "rshared",
            _ => "rprivate",
        };
        let destination = Path::new("/").join(&m.mount_path);
        // A mount of one's own over one of the pod's files wins.
        mounts.retain(|o| o.destination != destination);
        mounts.push(Mount { source, destination, read_only: m.read_only.unwrap_or(false), propagation });
    }
    spec::build(&spec::Inputs {
        pod,
        container,
        image,
        user: &user,
        env: &env,
        mounts: &mounts,
        namespaces: &network::namespaces(&ctx.config.run_dir, uid),
        cgroup,
        unified: ctx.unified,
    })
}

fn open_to_all(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let _ = fs::set_permissions(path, fs::Permissions::from_mode(0o666));
}

async fn fetch(ctx: &Context, namespace: &str, container: &ContainerSpec) -> Result<References, String> {
    let (maps, secrets) = env::referenced(container);
    let mut out = References::default();
    for name in maps {
        if !out.config_maps.contains_key(&name) {
            let data = volume::config_map(&ctx.client, namespace, &name).await?;
            let text = |d: BTreeMap<String, Vec<u8>>| {
                d.into_iter().map(|(k, v)| (k, String::from_utf8_lossy(&v).into_owned())).collect()
            };
            out.config_maps.insert(name, data.map(text));
        }
    }
    for name in secrets {
        if !out.secrets.contains_key(&name) {
            let data = volume::secret(&ctx.client, namespace, &name).await?;
            out.secrets.insert(name, data);
        }
    }
    Ok(out)
}

/// The pod's security context over the image's user; names are the image's own.
fn user(ctx: &Context, pod: &Pod, container: &ContainerSpec, image: &Image) -> Result<user::User, String> {
    let pod_context = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let own = container.security_context.as_ref();
    let run_as = own.and_then(|c| c.run_as_user).or_else(|| pod_context.and_then(|c| c.run_as_user));
    let group = own.and_then(|c| c.run_as_group).or_else(|| pod_context.and_then(|c| c.run_as_group));
    let text = run_as.map_or_else(|| image.user.clone(), |uid| uid.to_string());
    let layers_dir = ctx.images.layers_dir();
    let layers: Vec<_> = image.layers.iter().map(|l| layers_dir.join(l)).collect();
    let mut user = user::lookup(&layers, &text)?;
    if let Some(group) = group {
        user.gid = group as u32;
    }
    let must_not_be_root =
        own.and_then(|c| c.run_as_non_root).or_else(|| pod_context.and_then(|c| c.run_as_non_root)).unwrap_or(false);
    if must_not_be_root && user.uid == 0 {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let what = if run_as == Some(0) {
            "container's runAsUser breaks non-root policy"
        } else {
            "container has runAsNonRoot and image will run as root"
        };
        return Err(format!("{what} (pod: \"{name}_{namespace}({uid})\", container: {})", container.name));
    }
    for gid in pod_context.iter().flat_map(|c| c.supplemental_groups.iter().flatten().chain(c.fs_group.iter())) {
        user.additional.push(*gid as u32);
    }
    Ok(user)
}
