//! What is fetched or built once per machine: packages, image layers, the filled registry, old programs.
//!
//! Entries are named after a hash of what they are made from, so a changed recipe is a new entry and a half-made one is
//! never seen: each is built beside its place and renamed into it under a lock.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// `target/testkit` of this workspace.
pub fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/testkit")
}

/// Where logs of labs are kept for reading after a failure.
pub fn logs() -> PathBuf {
    dir().join("logs")
}

/// Lower-case hexadecimal SHA-256.
pub fn sha256(bytes: impl AsRef<[u8]>) -> String {
    Sha256::digest(bytes.as_ref()).iter().map(|b| format!("{b:02x}")).collect()
}

/// The directory `name-<hash of recipe>`, made by `build` (which is given an empty directory) when it is not there yet.
pub fn entry(name: &str, recipe: &str, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let hash = sha256(recipe);
    let place = dir().join(format!("{name}-{}", &hash[..16]));
    if place.is_dir() {
        return Ok(place);
    }
    let _lock = lock(name)?;
    if place.is_dir() {
        return Ok(place);
    }
    let unfinished = dir().join(format!("{name}.unfinished"));
    remove(&unfinished)?;
    fs::create_dir_all(&unfinished)?;
    build(&unfinished).with_context(|| format!("building the test cache entry {name}"))?;
    fs::rename(&unfinished, &place).with_context(|| format!("moving {} into place", unfinished.display()))?;
    Ok(place)
}

/// Holds other test processes off `name` until the returned file is dropped.
pub fn lock(name: &str) -> Result<File> {
    fs::create_dir_all(dir())?;
    let file = File::create(dir().join(format!("{name}.lock")))?;
    file.lock()?;
    Ok(file)
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("removing {}", dir.display()))
        }
        _ => Ok(()),
    }
}
