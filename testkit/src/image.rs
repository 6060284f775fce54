//! Builds container images: layers from directories, a configuration, manifests in the forms registries really hold.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::cache::sha256;

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    Gzip,
    Zstd,
    None,
}

/// Which manifest formats describe the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// An OCI image manifest.
    Oci,
    /// A Docker schema 2 manifest.
    Docker,
    /// A Docker manifest list whose only usable entry is this machine's architecture.
    DockerList,
}

/// One compressed layer.
#[derive(Debug, Clone)]
pub struct Layer {
    pub bytes: Vec<u8>,
    /// `sha256:…` of the uncompressed archive.
    pub diff_id: String,
    pub compression: Compression,
}

impl Layer {
    /// The content of `root`, except the top-level names in `without`. The same content gives the same bytes.
    pub fn from_dir(root: &Path, without: &[&str], compression: Compression) -> Result<Layer> {
        let mut archive = tar::Builder::new(Vec::new());
        archive.follow_symlinks(false);
        append_dir(&mut archive, root, Path::new(""), without)?;
        Layer::from_tar(archive.into_inner()?, compression)
    }

    /// A ready-made archive, for layers no directory can hold (whiteouts, hard links, hostile names).
    pub fn from_tar(archive: Vec<u8>, compression: Compression) -> Result<Layer> {
        let diff_id = format!("sha256:{}", sha256(&archive));
        let bytes = match compression {
            Compression::Gzip => {
                let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                out.write_all(&archive)?;
                out.finish()?
            }
            Compression::Zstd => zstd::encode_all(archive.as_slice(), 3)?,
            Compression::None => archive,
        };
        Ok(Layer { bytes, diff_id, compression })
    }

    fn media_type(&self, form: Form) -> &'static str {
        match (form, self.compression) {
            (Form::Oci, Compression::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (Form::Oci, Compression::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
            (Form::Oci, Compression::None) => "application/vnd.oci.image.layer.v1.tar",
            _ => "application/vnd.docker.image.rootfs.diff.tar.gzip",
        }
    }
}

fn append_dir(archive: &mut tar::Builder<Vec<u8>>, root: &Path, inside: &Path, without: &[&str]) -> Result<()> {
    let mut names: Vec<_> = fs::read_dir(root.join(inside))?.map(|e| Ok(e?.file_name())).collect::<Result<_>>()?;
    names.sort();
    for name in names {
        if inside.as_os_str().is_empty() && without.iter().any(|w| w.as_bytes() == name.as_bytes()) {
            continue;
        }
        append(archive, root, &inside.join(&name), without)
            .with_context(|| format!("{}", inside.join(&name).display()))?;
    }
    Ok(())
}

fn append(archive: &mut tar::Builder<Vec<u8>>, root: &Path, inside: &Path, without: &[&str]) -> Result<()> {
    let path = root.join(inside);
    let metadata = fs::symlink_metadata(&path)?;
    let kind = metadata.file_type();
    if kind.is_socket() || kind.is_fifo() {
        return Ok(());
    }
    let mut header = tar::Header::new_gnu();
    header.set_metadata_in_mode(&metadata, tar::HeaderMode::Deterministic);
    header.set_mode(metadata.mode() & 0o7777);
    header.set_uid(metadata.uid().into());
    header.set_gid(metadata.gid().into());
    if kind.is_symlink() {
        header.set_size(0);
        archive.append_link(&mut header, inside, fs::read_link(&path)?)?;
    } else if kind.is_dir() {
        header.set_size(0);
        archive.append_data(&mut header, inside, std::io::empty())?;
        append_dir(archive, root, inside, without)?;
    } else {
        archive.append_data(&mut header, inside, fs::File::open(&path)?)?;
    }
    Ok(())
}

/// What a container runs when the pod does not say otherwise.
#[derive(Debug, Clone, Default)]
pub struct Run {
    pub entrypoint: Vec<&'static str>,
    pub command: Vec<&'static str>,
    pub environment: Vec<&'static str>,
    pub user: &'static str,
    pub directory: &'static str,
}

/// One image, ready to be pushed.
#[derive(Debug, Clone)]
pub struct Image {
    /// Repository and tag, such as `library/nginx:1.25`.
    pub name: String,
    pub form: Form,
    pub layers: Vec<Layer>,
    pub run: Run,
}

/// A manifest: its media type and its exact bytes.
#[derive(Debug, Clone)]
pub struct Manifest {
    pub media_type: &'static str,
    pub bytes: Vec<u8>,
}

impl Manifest {
    fn new(media_type: &'static str, value: &Value) -> Manifest {
        Manifest { media_type, bytes: value.to_string().into_bytes() }
    }

    /// `sha256:…`
    pub fn digest(&self) -> String {
        format!("sha256:{}", sha256(&self.bytes))
    }
}

impl Image {
    /// Repository without the tag.
    pub fn repository(&self) -> &str {
        self.name.rsplit_once(':').map_or(self.name.as_str(), |(repository, _)| repository)
    }

    pub fn tag(&self) -> &str {
        self.name.rsplit_once(':').map_or("latest", |(_, tag)| tag)
    }

    /// The image configuration as it is stored.
    pub fn config(&self) -> Vec<u8> {
        let mut environment = vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"];
        environment.extend(&self.run.environment);
        let mut config = json!({ "Env": environment, "Cmd": self.run.command, "WorkingDir": self.run.directory });
        if !self.run.entrypoint.is_empty() {
            config["Entrypoint"] = json!(self.run.entrypoint);
        }
        if !self.run.user.is_empty() {
            config["User"] = json!(self.run.user);
        }
        let diff_ids: Vec<&str> = self.layers.iter().map(|l| l.diff_id.as_str()).collect();
        let value = json!({
            "architecture": architecture(), "os": "linux", "created": "2026-11-21T00:00:00Z",
            "config": config, "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        value.to_string().into_bytes()
    }

    /// The manifests to store, the one the tag points to last.
    pub fn manifests(&self) -> Vec<Manifest> {
        let (manifest_type, config_type) = match self.form {
            Form::Oci => ("application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.config.v1+json"),
            Form::Docker | Form::DockerList => (
                "application/vnd.docker.distribution.manifest.v2+json",
                "application/vnd.docker.container.image.v1+json",
            ),
        };
        let config = self.config();
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|l| descriptor(l.media_type(self.form), &format!("sha256:{}", sha256(&l.bytes)), l.bytes.len()))
            .collect();
        let manifest = Manifest::new(
            manifest_type,
            &json!({
                "schemaVersion": 2, "mediaType": manifest_type,
                "config": descriptor(config_type, &format!("sha256:{}", sha256(&config)), config.len()),
                "layers": layers,
            }),
        );
        if self.form != Form::DockerList {
            return vec![manifest];
        }
        let list_type = "application/vnd.docker.distribution.manifest.list.v2+json";
        let mut here = descriptor(manifest_type, &manifest.digest(), manifest.bytes.len());
        here["platform"] = json!({ "architecture": architecture(), "os": "linux" });
        // Another platform comes first, so that a puller that just takes the first entry is found out. The registry
        // refuses a list with a missing manifest, so it names an existing one.
        let mut foreign = here.clone();
        foreign["platform"] = json!({ "architecture": "s390x", "os": "linux" });
        let list = json!({ "schemaVersion": 2, "mediaType": list_type, "manifests": [foreign, here] });
        vec![manifest, Manifest::new(list_type, &list)]
    }

    /// Unpacks the layers over one another as a runtime would see them (no whiteouts): for looking into an image.
    pub fn unpack(&self, root: &Path) -> Result<()> {
        for layer in &self.layers {
            let reader: Box<dyn Read + '_> = match layer.compression {
                Compression::Gzip => Box::new(flate2::read::GzDecoder::new(layer.bytes.as_slice())),
                Compression::Zstd => Box::new(zstd::Decoder::new(layer.bytes.as_slice())?),
                Compression::None => Box::new(layer.bytes.as_slice()),
            };
            let mut archive = tar::Archive::new(reader);
            archive.set_overwrite(true);
            archive.set_preserve_permissions(true);
            archive.unpack(root)?;
        }
        Ok(())
    }
}

fn descriptor(media_type: &str, digest: &str, size: usize) -> Value {
    json!({ "mediaType": media_type, "digest": digest, "size": size })
}

/// The name image indexes have for this machine's processor.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// A tar archive made entry by entry.
#[derive(Default)]
pub struct Archive(Option<tar::Builder<Vec<u8>>>);

impl Archive {
    fn builder(&mut self) -> &mut tar::Builder<Vec<u8>> {
        self.0.get_or_insert_with(|| tar::Builder::new(Vec::new()))
    }

    pub fn dir(&mut self, path: &str) -> Result<&mut Archive> {
        let mut header = header(tar::EntryType::Directory, 0, 0o755);
        self.builder().append_data(&mut header, path, std::io::empty())?;
        Ok(self)
    }

    pub fn file(&mut self, path: &str, content: &str) -> Result<&mut Archive> {
        let mut header = header(tar::EntryType::Regular, content.len() as u64, 0o644);
        self.builder().append_data(&mut header, path, content.as_bytes())?;
        Ok(self)
    }

    /// `path` becomes another name of the file `target` of the same archive.
    pub fn hard_link(&mut self, path: &str, target: &str) -> Result<&mut Archive> {
        let mut header = header(tar::EntryType::Link, 0, 0o644);
        self.builder().append_link(&mut header, path, target)?;
        Ok(self)
    }

    pub fn symlink(&mut self, path: &str, target: &str) -> Result<&mut Archive> {
        let mut header = header(tar::EntryType::Symlink, 0, 0o777);
        self.builder().append_link(&mut header, path, PathBuf::from(target))?;
        Ok(self)
    }

    pub fn finish(&mut self) -> Result<Vec<u8>> {
        Ok(self.0.take().unwrap_or_else(|| tar::Builder::new(Vec::new())).into_inner()?)
    }
}

fn header(kind: tar::EntryType, size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(form: Form, compression: Compression) -> Image {
        let archive = Archive::default().dir("a").expect("dir").file("a/b", "x").expect("file").finish().expect("tar");
        let layer = Layer::from_tar(archive, compression).expect("layer");
        Image { name: "library/x:1".into(), form, layers: vec![layer], run: Run::default() }
    }

    #[test]
    fn the_same_content_gives_the_same_digest_and_the_diff_id_ignores_compression() {
        let (one, two) = (sample(Form::Oci, Compression::Gzip), sample(Form::Oci, Compression::Zstd));
        assert_eq!(one.layers[0].diff_id, two.layers[0].diff_id);
        assert_ne!(one.layers[0].bytes, two.layers[0].bytes);
        assert_eq!(one.manifests()[0].digest(), sample(Form::Oci, Compression::Gzip).manifests()[0].digest());
    }

    #[test]
    fn a_list_points_to_the_manifest_for_this_machine() {
        let manifests = sample(Form::DockerList, Compression::Gzip).manifests();
        let list: Value = serde_json::from_slice(&manifests[1].bytes).expect("json");
        assert_eq!(list["manifests"][1]["digest"], json!(manifests[0].digest()));
        assert_eq!(list["manifests"][1]["platform"]["architecture"], json!(architecture()));
    }

    #[test]
    fn every_compression_unpacks_to_the_same_files() {
        for compression in [Compression::Gzip, Compression::Zstd, Compression::None] {
            let dir = tempfile::tempdir().expect("tempdir");
            sample(Form::Oci, compression).unpack(dir.path()).expect("unpack");
            assert_eq!(fs::read_to_string(dir.path().join("a/b")).expect("file"), "x");
        }
    }
}
