//! Images: references, what is stored, and making sure an image is there before a container needs it. Layers are
//! content-addressed by the digest of their uncompressed tar and shared by all images; every file appears by rename,
//! so a crash leaves a temporary file and never half an image. Decides nothing about back-off: the pod does.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use futures::{FutureExt, future::Shared};
use oci_client::Reference;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

mod builtin;
mod pull;
mod unpack;
pub mod user;

/// A registry that stands in for another: `docker.io=http://127.0.0.1:5000`. When a host has mirrors, only they are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// The registry as images name it.
    pub host: String,
    /// `host[:port]` to ask instead.
    pub address: String,
    /// Plain HTTP.
    pub plain: bool,
}

impl std::str::FromStr for Mirror {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let wrong = || format!("{s:?} is not HOST=URL, for example docker.io=http://127.0.0.1:5000");
        let (host, url) = s.split_once('=').ok_or_else(wrong)?;
        let (plain, address) = match (url.strip_prefix("http://"), url.strip_prefix("https://")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => return Err(wrong()),
        };
        let address = address.trim_end_matches('/');
        if host.is_empty() || address.is_empty() || address.contains('/') {
            return Err(wrong());
        }
        Ok(Self { host: host.into(), address: address.into(), plain })
    }
}

/// What a container needs to know of an image.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Image {
    /// `sha256:...` of the image's configuration.
    pub id: String,
    /// `docker.io/library/nginx@sha256:...`, as `imageID` in a container's status.
    pub repo_digest: String,
    /// Compressed bytes of all layers and the configuration.
    pub size: u64,
    /// Directory names below `layers`, the lowest first.
    pub layers: Vec<String>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<String>,
    pub working_dir: String,
    pub user: String,
    pub stop_signal: Option<String>,
}

/// Why an image is not there; `reason` is the waiting reason of the container.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    InvalidName(String),
    #[error("Container image {0:?} is not present with pull policy of Never")]
    NeverPull(String),
    #[error("{0}")]
    Pull(String),
}

impl Error {
    pub fn reason(&self) -> &'static str {
        match self {
            Self::InvalidName(_) => "InvalidImageName",
            Self::NeverPull(_) => "ErrImageNeverPull",
            Self::Pull(_) => "ErrImagePull",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    Always,
    IfNotPresent,
    Never,
}

type Pulling = Shared<futures::future::BoxFuture<'static, Result<Arc<Image>, Error>>>;

/// The images of this node.
#[derive(Clone)]
pub struct Images {
    inner: Arc<Inner>,
}

struct Inner {
    root: PathBuf,
    mirrors: Vec<Mirror>,
    clients: pull::Clients,
    /// By normalised reference: a second pod waits for the first one's pull.
    pulling: Mutex<HashMap<String, Pulling>>,
    /// By layer name, so that two images which share a layer fetch it once.
    layers: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// `nginx:1.25` is `docker.io/library/nginx:1.25`; a name without tag or digest means `latest`.
pub fn normalise(name: &str) -> Result<Reference, Error> {
    let invalid = |cause: String| {
        let what = format!("couldn't parse image name {name:?}: {cause}");
        Error::InvalidName(format!("Failed to apply default image tag {name:?}: {what}"))
    };
    let reference: Reference = name.parse().map_err(|e| invalid(format!("invalid reference format: {e}")))?;
    if reference.repository().bytes().any(|b| b.is_ascii_uppercase()) {
        let repository = reference.repository();
        return Err(invalid(format!("invalid reference format: repository name ({repository}) must be lowercase")));
    }
    Ok(reference)
}

/// `imagePullPolicy` when the API server has not filled it in: `Always` for `latest`, which moves.
pub fn default_policy(name: &str) -> Policy {
    match name.parse::<Reference>() {
        Ok(r) if r.digest().is_none() && r.tag().unwrap_or("latest") == "latest" => Policy::Always,
        _ => Policy::IfNotPresent,
    }
}

impl Images {
    /// Opens the store below `root` and removes what an interrupted pull left.
    pub fn open(root: &Path, mirrors: Vec<Mirror>) -> io::Result<Self> {
        for dir in ["layers", "images", "refs", "tmp"] {
            fs::create_dir_all(root.join(dir))?;
        }
        for entry in fs::read_dir(root.join("tmp"))?.flatten() {
            let _ = if entry.file_type().is_ok_and(|t| t.is_dir()) {
                fs::remove_dir_all(entry.path())
            } else {
                fs::remove_file(entry.path())
            };
        }
        let clients = pull::Clients::new();
        let inner =
            Inner { root: root.to_owned(), mirrors, clients, pulling: Mutex::default(), layers: Mutex::default() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Where layers are; the names in [`Image::layers`] are relative to it.
    pub fn layers_dir(&self) -> PathBuf {
        self.inner.root.join("layers")
    }

    /// The stored image of that name, if any. Never asks a registry.
    pub fn stored(&self, name: &str) -> Result<Option<Arc<Image>>, Error> {
        if builtin::is(name) {
            return self.builtin().map(Some);
        }
        let reference = normalise(name)?;
        Ok(self.inner.lookup(&reference).map(Arc::new))
    }

    fn builtin(&self) -> Result<Arc<Image>, Error> {
        builtin::image(&self.inner.root)
            .map(Arc::new)
            .map_err(|e| Error::Pull(format!("cannot make the built-in image from this program's own file: {e}")))
    }

    /// Pulls unless the policy is satisfied by what is stored. `on_pull` is called when a pull is about to happen.
    /// Returns whether it was pulled.
    pub async fn ensure(
        &self,
        name: &str,
        policy: Policy,
        on_pull: impl FnOnce(),
    ) -> Result<(Arc<Image>, bool), Error> {
        if builtin::is(name) {
            return Ok((self.builtin()?, false));
        }
        let reference = normalise(name)?;
        let stored = self.inner.lookup(&reference).map(Arc::new);
        match (policy, stored) {
            (Policy::IfNotPresent | Policy::Never, Some(image)) => return Ok((image, false)),
            (Policy::Never, None) => return Err(Error::NeverPull(name.to_owned())),
            _ => {}
        }
        on_pull();
        let pulling = {
            let mut map = self.inner.pulling.lock().unwrap_or_else(|e| e.into_inner());
            let inner = self.inner.clone();
            let key = reference.whole();
            map.entry(key.clone())
                .or_insert_with(|| {
                    // A task of its own: a pod that goes away must not stop the pull that others wait for.
                    let task = tokio::spawn(async move {
                        let result = inner.pull(&reference).await;
                        inner.pulling.lock().unwrap_or_else(|e| e.into_inner()).remove(&key);
                        result
                    });
                    task.map(|r| r.unwrap_or_else(|e| Err(Error::Pull(format!("the pull stopped: {e}")))))
                        .boxed()
                        .shared()
                })
                .clone()
        };
        pulling.await.map(|image| (image, true))
    }
}

impl Inner {
    fn ref_path(&self, reference: &Reference) -> PathBuf {
        self.root.join("refs").join(hex(&Sha256::digest(reference.whole())))
    }

    fn lookup(&self, reference: &Reference) -> Option<Image> {
        let image: Image = crate::shim::read_json(&self.ref_path(reference)).ok()?;
        // Somebody may have removed layers by hand: then it is simply not present.
        image.layers.iter().all(|l| self.root.join("layers").join(l).is_dir()).then_some(image)
    }

    fn layer_lock(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        self.layers.lock().unwrap_or_else(|e| e.into_inner()).entry(name.to_owned()).or_default().clone()
    }
}

pub(crate) use unpack::resolve as resolve_inside;

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised_as_docker_does() {
        for (name, whole) in [
            ("nginx:1.25", "docker.io/library/nginx:1.25"),
            ("nginx", "docker.io/library/nginx:latest"),
            ("nicolaka/netshoot", "docker.io/nicolaka/netshoot:latest"),
            ("localhost:5000/x:1", "localhost:5000/x:1"),
            ("registry.k8s.io/pause:3.9", "registry.k8s.io/pause:3.9"),
        ] {
            assert_eq!(normalise(name).expect(name).whole(), whole);
        }
        for bad in ["UPPER/case", "", "a b", "nginx:"] {
            let e = normalise(bad).expect_err(bad);
            assert_eq!(e.reason(), "InvalidImageName");
            assert!(e.to_string().contains("couldn't parse image name"), "{e}");
        }
    }

    #[test]
    fn latest_is_pulled_always() {
        assert_eq!(default_policy("nginx"), Policy::Always);
        assert_eq!(default_policy("nginx:latest"), Policy::Always);
        assert_eq!(default_policy("nginx:1.25"), Policy::IfNotPresent);
        assert_eq!(default_policy(&format!("nginx@sha256:{}", "a".repeat(64))), Policy::IfNotPresent);
    }

    #[test]
    fn mirrors_are_host_and_url() {
        let m: Mirror = "docker.io=http://127.0.0.1:5000/".parse().expect("mirror");
        assert_eq!(m, Mirror { host: "docker.io".into(), address: "127.0.0.1:5000".into(), plain: true });
        for bad in ["docker.io", "docker.io=127.0.0.1:5000", "=http://x", "docker.io=http://", "a=http://b/c"] {
            assert!(bad.parse::<Mirror>().is_err(), "{bad}");
        }
    }
}
