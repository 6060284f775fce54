//! The image `portolan.dev/echo`: this very program, alone in a directory. It needs no registry.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use sha2::{Digest, Sha256};

use super::{Image, hex};

pub const NAME: &str = "portolan.dev/echo";

/// With any tag, or none.
pub fn is(name: &str) -> bool {
    name.strip_prefix(NAME).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
}

/// Makes the layer on first use; it is named after the identity of the program's file, so a new build makes a new one.
pub fn image(root: &Path) -> io::Result<Image> {
    let program = Path::new("/proc/self/exe");
    let meta = fs::metadata(program)?;
    let identity = format!("echo {} {} {} {}", meta.dev(), meta.ino(), meta.size(), meta.mtime_nsec());
    let layer = hex(&Sha256::digest(identity))[..24].to_owned();
    let target = root.join("layers").join(&layer);
    if !target.is_dir() {
        make(root, program, &target)?;
    }
    Ok(Image {
        id: format!("{NAME}:{layer}"),
        repo_digest: format!("{NAME}:{layer}"),
        size: meta.size(),
        layers: vec![layer],
        entrypoint: vec!["/portolan".into(), "echo".into()],
        env: vec!["PATH=/".into()],
        working_dir: "/".into(),
        ..Image::default()
    })
}

fn make(root: &Path, program: &Path, target: &Path) -> io::Result<()> {
    let temporary = tempfile::tempdir_in(root.join("tmp"))?;
    let dir = temporary.path();
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    // A hard link costs nothing; across file systems it must be a copy.
    let real = fs::read_link(program)?;
    let binary = dir.join("portolan");
    if fs::hard_link(&real, &binary).is_err() {
        fs::copy(program, &binary)?;
    }
    fs::create_dir(dir.join("etc"))?;
    fs::write(dir.join("etc/passwd"), "root:x:0:0:root:/:/portolan\nnobody:x:65534:65534:nobody:/:/portolan\n")?;
    fs::write(dir.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
    fs::create_dir(dir.join("tmp"))?;
    fs::set_permissions(dir.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    match fs::rename(dir, target) {
        // Another pod was faster.
        Err(_) if target.is_dir() => Ok(()),
        other => other,
    }
}
