//! The volumes of a pod as directories of the host: emptyDir, configMap, secret, downwardAPI, projected and hostPath.
//! Answers with paths; where they appear in a container is the caller's.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs, io,
    os::unix::{
        ffi::OsStringExt,
        fs::{PermissionsExt, chown, symlink},
    },
    path::{Component, Path, PathBuf},
};

use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, HostPathVolumeSource, KeyToPath, Pod, Secret, Volume, VolumeProjection,
};
use kube::{Api, Client};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::env::{self, Runtime};

/// Files by relative path: content and, when the API names one, the mode.
type Files = BTreeMap<String, (Vec<u8>, Option<i32>)>;

/// A volume that cannot be had now, in the words of kubelet's Event `FailedMount`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("MountVolume.SetUp failed for volume {volume:?} : {cause}")]
pub struct Error {
    pub volume: String,
    pub cause: String,
}

/// Prepares every volume of the pod below `dir` and returns their paths by name.
pub async fn prepare(
    client: &Client,
    pod: &Pod,
    dir: &Path,
    runtime: &Runtime,
) -> Result<BTreeMap<String, PathBuf>, Error> {
    let mut out = BTreeMap::new();
    for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
        let path = one(client, pod, volume, dir, runtime)
            .await
            .map_err(|cause| Error { volume: volume.name.clone(), cause })?;
        out.insert(volume.name.clone(), path);
    }
    Ok(out)
}

async fn one(client: &Client, pod: &Pod, volume: &Volume, dir: &Path, runtime: &Runtime) -> Result<PathBuf, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let group = pod.spec.as_ref().and_then(|s| s.security_context.as_ref()).and_then(|c| c.fs_group);
    let target = dir.join(&volume.name);
    let text = |e: io::Error| e.to_string();
    if let Some(host) = &volume.host_path {
        return host_path(host).map_err(|e| format!("hostPath {}: {e}", host.path));
    }
    fs::create_dir_all(&target).map_err(text)?;
    if let Some(empty) = &volume.empty_dir {
        if empty.medium.as_deref() == Some("Memory") && !is_mount(&target) {
            let size = empty.size_limit.as_ref().and_then(|q| crate::spec::quantity(&q.0));
            let options = size.map_or_else(|| "mode=0777".to_owned(), |s| format!("mode=0777,size={}", s as u64));
            mount(Some("tmpfs"), &target, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
                .map_err(|e| format!("mount a tmpfs: {e}"))?;
        }
        let mode = if group.is_some() { 0o2777 } else { 0o777 };
        chown(&target, None, group.map(|g| g as u32)).map_err(text)?;
        fs::set_permissions(&target, fs::Permissions::from_mode(mode)).map_err(text)?;
        return Ok(target);
    }
    let (files, mode) = if let Some(map) = &volume.config_map {
        let data = config_map(client, namespace, &map.name).await?;
        let what = format!("configmap {:?}", map.name);
        (select(data, map.items.as_deref(), map.optional, &what, namespace)?, map.default_mode)
    } else if let Some(source) = &volume.secret {
        let name = source.secret_name.as_deref().unwrap_or_default();
        let data = secret(client, namespace, name).await?;
        (
            select(data, source.items.as_deref(), source.optional, &format!("secret {name:?}"), namespace)?,
            source.default_mode,
        )
    } else if let Some(down) = &volume.downward_api {
        (downward(pod, down.items.as_deref().unwrap_or_default(), runtime)?, down.default_mode)
    } else if let Some(projected) = &volume.projected {
        let mut all = Files::new();
        for source in projected.sources.iter().flatten() {
            all.extend(project(client, pod, namespace, source, runtime).await?);
        }
        (all, projected.default_mode)
    } else {
        return Err(
            "this kind of volume is not supported; use emptyDir, configMap, secret, downwardAPI, projected or hostPath"
                .into(),
        );
    };
    write(&target, &files, mode.unwrap_or(0o644), group).map_err(text)?;
    Ok(target)
}

async fn project(
    client: &Client,
    pod: &Pod,
    namespace: &str,
    source: &VolumeProjection,
    runtime: &Runtime,
) -> Result<Files, String> {
    if let Some(map) = &source.config_map {
        let data = config_map(client, namespace, &map.name).await?;
        return select(data, map.items.as_deref(), map.optional, &format!("configmap {:?}", map.name), namespace);
    }
    if let Some(s) = &source.secret {
        let data = secret(client, namespace, &s.name).await?;
        return select(data, s.items.as_deref(), s.optional, &format!("secret {:?}", s.name), namespace);
    }
    if let Some(down) = &source.downward_api {
        return downward(pod, down.items.as_deref().unwrap_or_default(), runtime);
    }
    Err("serviceAccountToken and clusterTrustBundle projections are not supported yet".into())
}

/// The contents of a ConfigMap, `None` when there is none of that name.
pub async fn config_map(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<Option<BTreeMap<String, Vec<u8>>>, String> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let found = api.get_opt(name).await.map_err(|e| format!("cannot read configmap {name:?}: {e}"))?;
    Ok(found.map(|m| {
        let text = m.data.into_iter().flatten().map(|(k, v)| (k, v.into_bytes()));
        text.chain(m.binary_data.into_iter().flatten().map(|(k, v)| (k, v.0))).collect()
    }))
}

/// The contents of a Secret, `None` when there is none of that name.
pub async fn secret(client: &Client, namespace: &str, name: &str) -> Result<Option<BTreeMap<String, Vec<u8>>>, String> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let found = api.get_opt(name).await.map_err(|e| format!("cannot read secret {name:?}: {e}"))?;
    Ok(found.map(|s| s.data.into_iter().flatten().map(|(k, v)| (k, v.0)).collect()))
}

fn select(
    data: Option<BTreeMap<String, Vec<u8>>>,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    what: &str,
    namespace: &str,
) -> Result<Files, String> {
    let optional = optional == Some(true);
    let Some(data) = data else {
        return if optional { Ok(Files::new()) } else { Err(format!("{what} not found")) };
    };
    let Some(items) = items.filter(|i| !i.is_empty()) else {
        return Ok(data.into_iter().map(|(k, v)| (k, (v, None))).collect());
    };
    let mut out = Files::new();
    for item in items {
        match data.get(&item.key) {
            Some(value) => drop(out.insert(item.path.clone(), (value.clone(), item.mode))),
            None if optional => {}
            None => {
                let kind = what.split(' ').next().unwrap_or(what);
                return Err(format!("{kind} references non-existent config key: {}", item.key));
            }
        }
    }
    tracing::trace!(namespace, what, files = out.len(), "selected");
    Ok(out)
}

fn downward(pod: &Pod, items: &[DownwardAPIVolumeFile], runtime: &Runtime) -> Result<Files, String> {
    let mut out = Files::new();
    for item in items {
        let value = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => env::field_value(pod, &field.field_path, runtime)?,
            (None, Some(resource)) => {
                let name = resource.container_name.as_deref().unwrap_or_default();
                let container = pod.spec.iter().flat_map(|s| &s.containers).find(|c| c.name == name);
                let container = container.ok_or_else(|| format!("container {name:?} not found"))?;
                let divisor = resource.divisor.as_ref().map_or("1", |d| d.0.as_str());
                crate::spec::resource_value(container, &resource.resource, divisor)?
            }
            _ => continue,
        };
        out.insert(item.path.clone(), (value.into_bytes(), item.mode));
    }
    Ok(out)
}

/// All files change at one instant: they live in a directory that the link `..data` points to, and the link is replaced.
fn write(target: &Path, files: &Files, default_mode: i32, group: Option<i64>) -> io::Result<()> {
    fs::set_permissions(target, fs::Permissions::from_mode(0o755))?;
    let stamp = format!("..{}", jiff::Timestamp::now().as_nanosecond());
    let fresh = target.join(&stamp);
    fs::create_dir(&fresh)?;
    for (name, (content, mode)) in files {
        if !Path::new(name).components().all(|c| matches!(c, Component::Normal(_))) || name.starts_with("..") {
            return Err(io::Error::other(format!("the path {name:?} must be relative and must not contain '..'")));
        }
        let path = fresh.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, content)?;
        chown(&path, None, group.map(|g| g as u32))?;
        let mode = mode.unwrap_or(default_mode) as u32 | if group.is_some() { 0o440 } else { 0 };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    }
    let data = target.join("..data");
    let before = fs::read_link(&data).ok();
    let link = target.join("..data_tmp");
    let _ = fs::remove_file(&link);
    symlink(&stamp, &link)?;
    fs::rename(&link, &data)?;
    for name in files.keys() {
        let Some(Component::Normal(first)) = Path::new(name).components().next() else { continue };
        let visible = target.join(first);
        if fs::symlink_metadata(&visible).is_err() {
            symlink(Path::new("..data").join(first), &visible)?;
        }
    }
    if let Some(before) = before {
        let _ = fs::remove_dir_all(target.join(before));
    }
    Ok(())
}

fn host_path(source: &HostPathVolumeSource) -> io::Result<PathBuf> {
    let path = PathBuf::from(&source.path);
    let kind = source.type_.as_deref().unwrap_or_default();
    match kind {
        "DirectoryOrCreate" => fs::create_dir_all(&path)?,
        "FileOrCreate" => drop(fs::File::options().create(true).append(true).open(&path)?),
        _ => {}
    }
    // kubelet makes a missing directory when no type is given.
    if kind.is_empty() && !path.exists() {
        fs::create_dir_all(&path)?;
    }
    let meta = fs::metadata(&path)?;
    let wrong =
        |what: &str| Err(io::Error::other(format!("hostPath type check failed: {} is not a {what}", source.path)));
    match kind {
        "Directory" | "DirectoryOrCreate" if !meta.is_dir() => wrong("directory"),
        "File" | "FileOrCreate" if !meta.is_file() => wrong("file"),
        _ => Ok(path),
    }
}

fn is_mount(path: &Path) -> bool {
    mount_points().iter().any(|m| m == path)
}

/// Unmounts what is mounted below the directory.
pub fn unmount(dir: &Path) {
    for target in mount_points().iter().rev().filter(|m| m.starts_with(dir)) {
        let _ = umount2(target, MntFlags::MNT_DETACH);
    }
}

/// In the order in which they were mounted.
pub fn mount_points() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().filter_map(|l| l.split(' ').nth(4)).map(unescape).collect()
}

/// mountinfo writes space, tab, newline and backslash as three octal digits (proc(5)).
fn unescape(field: &str) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|_| byte == b'\\').and_then(|d| std::str::from_utf8(d).ok());
        match digits.and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(escaped) => {
                out.push(escaped);
                rest = &tail[3..];
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    OsString::from_vec(out).into()
}

/// Removes the directory and everything in it; file systems mounted there go first, so that nothing beyond is deleted.
pub fn remove(dir: &Path) {
    unmount(dir);
    if let Err(e) = fs::remove_dir_all(dir)
        && e.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(dir = %dir.display(), error = %e, "cannot remove a pod's directory");
    }
}

/// `subPath` below a volume, made if missing; links inside the volume cannot lead out of it.
pub fn sub_path(volume: &Path, sub: &str) -> Result<PathBuf, String> {
    let wrong = || format!("subPath {sub:?} must be relative and must not contain '..'");
    if !Path::new(sub).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(wrong());
    }
    let path = crate::image::resolve_inside(volume, Path::new(sub)).map_err(|e| e.to_string())?;
    if !path.exists() {
        fs::create_dir_all(&path).map_err(|e| format!("make subPath {sub:?}: {e}"))?;
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_with_spaces_are_read_as_they_are() {
        assert_eq!(unescape("/var/my\\040data/x"), Path::new("/var/my data/x"));
        assert_eq!(unescape("/a\\134b\\9"), Path::new("/a\\b\\9"));
    }

    #[test]
    fn files_are_replaced_at_one_instant_and_old_ones_go() {
        let dir = tempfile::tempdir().expect("dir");
        let files = |v: &str| {
            Files::from([
                ("a".to_owned(), (v.as_bytes().to_vec(), None)),
                ("d/b".to_owned(), (b"x".to_vec(), Some(0o400))),
            ])
        };
        write(dir.path(), &files("1"), 0o644, None).expect("write");
        assert_eq!(fs::read(dir.path().join("a")).expect("a"), b"1");
        assert_eq!(fs::metadata(dir.path().join("d/b")).expect("b").permissions().mode() & 0o777, 0o400);
        write(dir.path(), &files("2"), 0o644, None).expect("write");
        assert_eq!(fs::read(dir.path().join("a")).expect("a"), b"2");
        let stamps = fs::read_dir(dir.path())
            .expect("dir")
            .flatten()
            .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
            .count();
        assert_eq!(stamps, 1);
        let evil = Files::from([("../x".to_owned(), (vec![], None))]);
        assert!(write(dir.path(), &evil, 0o644, None).is_err());
    }

    #[test]
    fn missing_keys_and_objects_are_named() {
        let item = KeyToPath { key: "k".into(), path: "p".into(), mode: None };
        let what = "configmap \"c\"";
        assert_eq!(select(None, None, None, what, "d"), Err("configmap \"c\" not found".into()));
        assert_eq!(select(None, None, Some(true), what, "d"), Ok(Files::new()));
        let missing = select(Some(BTreeMap::new()), Some(&[item]), None, what, "d");
        assert_eq!(missing, Err("configmap references non-existent config key: k".into()));
    }

    #[test]
    fn sub_paths_stay_inside() {
        let dir = tempfile::tempdir().expect("dir");
        assert!(sub_path(dir.path(), "../x").is_err());
        assert!(sub_path(dir.path(), "/etc").is_err());
        symlink("/etc", dir.path().join("l")).expect("link");
        assert_eq!(sub_path(dir.path(), "l"), Ok(dir.path().join("etc")));
        assert!(sub_path(dir.path(), "a/b").expect("made").is_dir());
    }
}
