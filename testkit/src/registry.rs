//! A real OCI registry, Debian's docker-registry, on loopback of a lab, filled through its own HTTP API.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use crate::cache::{self, sha256};
use crate::http::{self, Response};
use crate::image::Image;
use crate::place::{Place, Running};
use crate::{Lab, debian, images, wait};

/// Where it listens in the lab.
pub const ADDRESS: &str = "127.0.0.1:5000";

const LIMIT: Duration = Duration::from_secs(60);

/// The registry while it runs; it stops when dropped.
pub struct Registry {
    _process: Running,
    place: Place,
}

impl Registry {
    /// Starts one in `lab` that holds all of [`images`].
    pub fn start(lab: &Lab) -> Result<Registry> {
        Registry::serve(lab, &storage()?)
    }

    fn serve(lab: &Lab, storage: &Path) -> Result<Registry> {
        let program = debian::program("docker-registry", "usr/bin/docker-registry")?;
        let config = lab.dir().join("registry.yaml");
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
                 http: {{addr: \"{ADDRESS}\", relativeurls: true}}\n",
                storage.display()
            ),
        )?;
        let log = File::create(lab.logs().join(format!("{}-registry.log", lab.name())))?;
        let place = lab.node();
        let mut command = place.command(program);
        command.arg("serve").arg(&config).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let process = Running::spawn(&mut command)?;
        let registry = Registry { _process: process, place };
        let ready = || match registry.call("GET", "/v2/", &[], Vec::new()) {
            Ok(answer) if answer.status == 200 => Ok(()),
            Ok(answer) => Err(format!("HTTP {}", answer.status)),
            Err(e) => Err(format!("{e:#}")),
        };
        wait::until_or(LIMIT, ready).map_err(|e| anyhow!("docker-registry does not answer on {ADDRESS}: {e}"))?;
        Ok(registry)
    }

    /// Pushes one image, as any client would.
    pub fn push(&self, image: &Image) -> Result<()> {
        let repository = image.repository();
        for layer in &image.layers {
            self.push_blob(repository, &layer.bytes)?;
        }
        self.push_blob(repository, &image.config())?;
        let manifests = image.manifests();
        for (i, manifest) in manifests.iter().enumerate() {
            let reference = if i + 1 == manifests.len() { image.tag().to_owned() } else { manifest.digest() };
            let path = format!("/v2/{repository}/manifests/{reference}");
            let answer = self.call("PUT", &path, &[("Content-Type", manifest.media_type)], manifest.bytes.clone())?;
            expect(&answer, 201, &path)?;
        }
        Ok(())
    }

    fn push_blob(&self, repository: &str, bytes: &[u8]) -> Result<()> {
        let digest = format!("sha256:{}", sha256(bytes));
        let path = format!("/v2/{repository}/blobs/{digest}");
        if self.call("HEAD", &path, &[], Vec::new())?.status == 200 {
            return Ok(());
        }
        let path = format!("/v2/{repository}/blobs/uploads/");
        let answer = self.call("POST", &path, &[], Vec::new())?;
        expect(&answer, 202, &path)?;
        let place = answer.headers.get("location").context("the registry named no place for the upload")?;
        let separator = if place.contains('?') { '&' } else { '?' };
        let path = format!("{place}{separator}digest={digest}");
        let answer = self.call("PUT", &path, &[("Content-Type", "application/octet-stream")], bytes.to_vec())?;
        expect(&answer, 201, &path)
    }

    /// One request to the registry from inside the lab.
    pub fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Result<Response> {
        let address: SocketAddr = ADDRESS.parse()?;
        self.place.enter(|| Ok(http::request(address, method, path, headers, &body, LIMIT)?))
    }
}

fn expect(answer: &Response, status: u16, path: &str) -> Result<()> {
    if answer.status != status {
        bail!("{path}: the registry answered {} {}", answer.status, answer.text());
    }
    Ok(())
}

/// The filled storage directory, built and pushed once per machine.
pub fn storage() -> Result<PathBuf> {
    cache::entry("registry", images::RECIPE, |dir| {
        let scratch = tempfile::tempdir_in(cache::dir())?;
        let lab = Lab::new("fill")?;
        let registry = Registry::serve(&lab, dir)?;
        for image in images::all(scratch.path())? {
            registry.push(&image).with_context(|| format!("pushing {}", image.name))?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_holds_every_image_under_its_name() {
        let lab = Lab::new("registry").expect("a lab");
        let registry = Registry::start(&lab).expect("a registry");
        let catalog = registry.call("GET", "/v2/_catalog", &[], Vec::new()).expect("an answer").text();
        for repository in ["library/busybox", "library/nginx", "library/redis", "nicolaka/netshoot"] {
            assert!(catalog.contains(repository), "{catalog}");
        }
        let tags = registry.call("GET", "/v2/library/nginx/tags/list", &[], Vec::new()).expect("an answer").text();
        assert!(tags.contains("1.19") && tags.contains("1.25"), "{tags}");
        let accept = [("Accept", "application/vnd.docker.distribution.manifest.list.v2+json")];
        let list = registry.call("GET", "/v2/library/nginx/manifests/1.25", &accept, Vec::new()).expect("an answer");
        assert!(list.headers["content-type"].contains("manifest.list"), "{list:?}");
        let missing = registry.call("GET", "/v2/library/nginx/manifests/9.99", &[], Vec::new()).expect("an answer");
        assert_eq!(missing.status, 404);
    }
}
