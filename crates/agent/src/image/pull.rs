//! Fetching an image over the OCI distribution protocol: which registry to ask, what to verify, what to store.
//! Every digest is checked: the manifest's and the blobs' by the client, the layers' uncompressed digests here.

use std::{net::IpAddr, sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use oci_client::{
    Client, Reference,
    client::{ClientConfig, ClientProtocol},
    errors::OciDistributionError,
    manifest::{OciDescriptor, OciImageManifest},
    secrets::RegistryAuth,
};
use tokio::io::AsyncWriteExt;

use super::{Error, Image, Inner, unpack};

/// Layers fetched at the same time.
const PARALLEL: usize = 3;
/// A configuration is a small JSON document; a registry that sends more lies.
const MAX_CONFIG: i64 = 8 << 20;

/// One client for TLS and one for plain HTTP, which is spoken only with mirrors that say so and registries on this machine.
pub struct Clients {
    secure: Client,
    plain: Client,
}

impl Clients {
    pub fn new() -> Self {
        // The program links one TLS provider; whoever comes first installs it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = |protocol| {
            Client::new(ClientConfig {
                protocol,
                connect_timeout: Some(Duration::from_secs(10)),
                read_timeout: Some(Duration::from_secs(60)),
                user_agent: concat!("portolan/", env!("CARGO_PKG_VERSION")),
                ..ClientConfig::default()
            })
        };
        Self { secure: client(ClientProtocol::Https), plain: client(ClientProtocol::Http) }
    }
}

/// A registry on this machine, whatever its port.
fn local(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    host == "localhost" || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl Inner {
    /// Asks the mirrors of the image's registry in turn, or the registry itself when it has none.
    pub(super) async fn pull(&self, reference: &Reference) -> Result<Arc<Image>, Error> {
        let mut failures = Vec::new();
        let mut targets = Vec::new();
        for mirror in self.mirrors.iter().filter(|m| m.host == reference.registry()) {
            let mut via = reference.clone();
            via.set_mirror_registry(mirror.address.clone());
            targets.push((via, mirror.plain));
        }
        if targets.is_empty() {
            targets.push((reference.clone(), local(reference.registry())));
        }
        for (via, plain) in targets {
            let (client, scheme) = if plain { (&self.clients.plain, "http") } else { (&self.clients.secure, "https") };
            match self.pull_from(client, reference, &via).await {
                Ok(image) => return Ok(Arc::new(image)),
                Err(e) => failures.push(format!("{scheme}://{}: {e}", via.resolve_registry())),
            }
        }
        let whole = reference.whole();
        Err(Error::Pull(format!("failed to pull and unpack image {whole:?}: {}", failures.join("; "))))
    }

    async fn pull_from(&self, client: &Client, reference: &Reference, via: &Reference) -> Result<Image, String> {
        let (manifest, digest, list_digest) = client
            .pull_image_manifest_and_list_digest(via, &RegistryAuth::Anonymous)
            .await
            .map_err(|e| format!("failed to resolve reference: {}", cause(&e)))?;
        let config = self.fetch_config(client, via, &manifest.config).await?;
        let diff_ids: Vec<String> = serde_json::from_value(config["rootfs"]["diff_ids"].clone())
            .map_err(|_| "the image's configuration has no rootfs.diff_ids".to_owned())?;
        if diff_ids.len() != manifest.layers.len() {
            let (a, b) = (manifest.layers.len(), diff_ids.len());
            return Err(format!("the manifest names {a} layers and the configuration {b}"));
        }
        let mut fetches = Vec::new();
        for (blob, diff_id) in manifest.layers.iter().zip(&diff_ids) {
            fetches.push(self.layer(client, via, blob, diff_id).boxed());
        }
        let layers: Vec<String> = stream::iter(fetches).buffered(PARALLEL).try_collect().await?;
        // The digest by which the user would name the image: the list's when there is one.
        let named = list_digest.unwrap_or(digest);
        let image = describe(reference, &manifest, &named, &config, layers);
        crate::shim::write_json(&self.ref_path(reference), &image).map_err(|e| format!("record the image: {e}"))?;
        Ok(image)
    }

    async fn fetch_config(
        &self,
        client: &Client,
        via: &Reference,
        blob: &OciDescriptor,
    ) -> Result<serde_json::Value, String> {
        if blob.size > MAX_CONFIG {
            return Err(format!("the image's configuration claims {} bytes, more than {MAX_CONFIG}", blob.size));
        }
        let mut bytes = Bounded { bytes: Vec::new(), limit: MAX_CONFIG as usize };
        client
            .pull_blob(via, blob, &mut bytes)
            .await
            .map_err(|e| format!("fetch the configuration {}: {}", blob.digest, cause(&e)))?;
        serde_json::from_slice(&bytes.bytes).map_err(|e| format!("the image's configuration is not JSON: {e}"))
    }

    /// Returns the layer's name below `layers`, fetching it unless it is there.
    async fn layer(
        &self,
        client: &Client,
        via: &Reference,
        blob: &OciDescriptor,
        diff_id: &str,
    ) -> Result<String, String> {
        let hash =
            diff_id.strip_prefix("sha256:").filter(|h| h.len() == 64 && h.bytes().all(|b| b.is_ascii_hexdigit()));
        let name =
            hash.ok_or_else(|| format!("the layer digest {diff_id:?} is not a SHA-256 digest"))?[..24].to_owned();
        let lock = self.layer_lock(&name);
        let _held = lock.lock().await;
        let target = self.root.join("layers").join(&name);
        if target.is_dir() {
            return Ok(name);
        }
        let file = tempfile::NamedTempFile::new_in(self.root.join("tmp")).map_err(|e| format!("make a file: {e}"))?;
        let out = file.reopen().map_err(|e| format!("open a file: {e}"))?;
        let mut out = tokio::io::BufWriter::new(tokio::fs::File::from_std(out));
        client
            .pull_blob(via, blob, &mut out)
            .await
            .map_err(|e| format!("fetch layer {}: {}", blob.digest, cause(&e)))?;
        out.flush().await.map_err(|e| format!("write layer {}: {e}", blob.digest))?;
        let (temporary, want, digest) = (self.root.join("tmp"), diff_id.to_owned(), blob.digest.clone());
        tokio::task::spawn_blocking(move || unpack::layer(file.path(), &temporary, &want, &target))
            .await
            .map_err(|e| format!("unpack layer {digest}: {e}"))?
            .map_err(|e| format!("unpack layer {digest}: {e}"))?;
        Ok(name)
    }
}

fn describe(
    reference: &Reference,
    manifest: &OciImageManifest,
    digest: &str,
    config: &serde_json::Value,
    layers: Vec<String>,
) -> Image {
    let run = &config["config"];
    let list = |key: &str| serde_json::from_value::<Vec<String>>(run[key].clone()).unwrap_or_default();
    let text = |key: &str| run[key].as_str().unwrap_or_default().to_owned();
    let bytes = manifest.layers.iter().map(|l| l.size).sum::<i64>() + manifest.config.size;
    Image {
        id: manifest.config.digest.clone(),
        repo_digest: format!("{}/{}@{digest}", reference.registry(), reference.repository()),
        size: bytes.max(0) as u64,
        layers,
        entrypoint: list("Entrypoint"),
        cmd: list("Cmd"),
        env: list("Env"),
        working_dir: text("WorkingDir"),
        user: text("User"),
        stop_signal: run["StopSignal"].as_str().map(str::to_owned),
    }
}

/// What to tell a person: the registry's own words, or the innermost reason of a failed connection.
fn cause(error: &OciDistributionError) -> String {
    match error {
        OciDistributionError::ImageManifestNotFoundError(_) => "not found".into(),
        OciDistributionError::RegistryError { envelope, url } => {
            use oci_client::errors::OciErrorCode as Code;
            let unknown = |c: &Code| matches!(c, Code::ManifestUnknown | Code::NameUnknown | Code::NotFound);
            if envelope.errors.iter().any(|e| unknown(&e.code)) {
                return "not found".into();
            }
            let said: Vec<_> = envelope.errors.iter().map(|e| e.message.as_str()).collect();
            format!("{} says: {}", url, said.join(", "))
        }
        OciDistributionError::ServerError { code, .. } if *code == 404 => "not found".into(),
        OciDistributionError::ServerError { code, message, .. } => format!("HTTP status {code}: {message}"),
        OciDistributionError::UnauthorizedError { .. } | OciDistributionError::AuthenticationFailure(_) => {
            "authorization failed: the repository does not exist or needs credentials".into()
        }
        other => {
            let mut text = other.to_string();
            let mut next = std::error::Error::source(other);
            while let Some(inner) = next {
                text = inner.to_string();
                next = inner.source();
            }
            text
        }
    }
}

/// Memory that refuses to grow past a limit, whatever the registry sends.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
}

impl tokio::io::AsyncWrite for Bounded {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        data: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        if self.bytes.len() + data.len() > self.limit {
            return std::task::Poll::Ready(Err(std::io::Error::other("the registry sends more than it announced")));
        }
        self.bytes.extend_from_slice(data);
        std::task::Poll::Ready(Ok(data.len()))
    }
    fn poll_flush(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }
    fn poll_shutdown(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_this_machine_only() {
        for near in ["localhost", "localhost:5001", "127.0.0.1:43069", "[::1]:5000"] {
            assert!(local(near), "{near}");
        }
        for far in ["docker.io", "192.0.2.1:5000", "localhost.example.org", "registry:5000"] {
            assert!(!local(far), "{far}");
        }
    }
}
