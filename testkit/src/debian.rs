//! Debian's packages as raw material: downloaded and unpacked privately, so that no service of theirs ever starts.

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::cache;

/// Programs the tests call on the host by name, and the package that brings each.
const TOOLS: [(&str, &str); 7] = [
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("conntrack", "conntrack"),
    ("dig", "dnsutils"),
    ("curl", "curl"),
    ("busybox", "busybox-static"),
    ("nsenter", "util-linux"),
];

/// Installs those of [`TOOLS`] that are missing. Says nothing and runs nothing when all are there.
pub fn install_tools() -> Result<()> {
    let missing: BTreeSet<&str> = TOOLS.iter().filter(|(tool, _)| find_on_path(tool).is_none()).map(|t| t.1).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !nix::unistd::geteuid().is_root() {
        let list: Vec<&str> = missing.into_iter().collect();
        bail!(
            "the tests need packages that only root can install; as root, run: apt-get install -y {}",
            list.join(" ")
        );
    }
    println!("installing {}", missing.iter().copied().collect::<Vec<_>>().join(" "));
    fresh_lists()?;
    let mut command = apt("apt-get");
    command.args(["install", "-y", "-q", "--no-install-recommends"]).args(&missing);
    run(&mut command).map(drop)
}

/// Where `program` is on PATH (with the directories only root has there), if anywhere.
pub fn find_on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// `packages` with the libraries they need, unpacked into `root` (merged-/usr layout), without documentation.
pub fn unpack(packages: &[&str], root: &Path) -> Result<()> {
    for dir in ["bin", "sbin", "lib", "lib64"] {
        fs::create_dir_all(root.join("usr").join(dir))?;
        symlink(Path::new("usr").join(dir), root.join(dir))?;
    }
    for deb in download(&closure(packages)?)? {
        let mut tar = Command::new("dpkg-deb").arg("--fsys-tarfile").arg(&deb).stdout(Stdio::piped()).spawn()?;
        let stream = tar.stdout.take().context("dpkg-deb has no output")?;
        let mut untar = Command::new("tar");
        untar.args(["-x", "--keep-directory-symlink", "--no-same-owner", "-C"]).arg(root).stdin(stream);
        run(&mut untar).with_context(|| format!("unpacking {}", deb.display()))?;
        if !tar.wait()?.success() {
            bail!("dpkg-deb could not read {}", deb.display());
        }
    }
    for waste in ["usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/lintian", "usr/share/bug"] {
        let _ = fs::remove_dir_all(root.join(waste));
    }
    Ok(())
}

/// One program of a package (without its dependencies), unpacked into the cache.
pub fn program(package: &str, path: &str) -> Result<PathBuf> {
    let dir = cache::entry(package, path, |dir| {
        for deb in download(&BTreeSet::from([package.to_owned()]))? {
            run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(dir))?;
        }
        if !dir.join(path).is_file() {
            bail!("package {package} holds no {path}");
        }
        Ok(())
    })?;
    Ok(dir.join(path))
}

/// `packages` and, transitively, the libraries they depend on. Programs they depend on are not followed: what is wanted
/// is a small root file system, not a system.
fn closure(packages: &[&str]) -> Result<BTreeSet<String>> {
    let mut found: BTreeSet<String> = packages.iter().map(|p| (*p).to_owned()).collect();
    let mut open: VecDeque<String> = found.iter().cloned().collect();
    while let Some(package) = open.pop_front() {
        for need in depends(&package)? {
            let library = need.starts_with("lib") || need.starts_with("lua-") || need.ends_with("-libs");
            let wanted = (library && !need.starts_with("libnginx")) || need.starts_with("zlib1g");
            if wanted && found.insert(need.clone()) {
                open.push_back(need);
            }
        }
    }
    Ok(found)
}

/// Direct dependencies, the first of each list of alternatives.
fn depends(package: &str) -> Result<Vec<String>> {
    let mut command = apt("apt-cache");
    command.args(["depends", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks", "--no-replaces"]);
    let text = match run(command.args(["--no-enhances", package])) {
        Ok(text) => text,
        Err(_) => {
            fresh_lists()?;
            run(&mut command)?
        }
    };
    let mut chosen = Vec::new();
    let mut alternative = false;
    for line in text.lines().skip(1) {
        let line = line.trim_end();
        let Some((kind, name)) = line.trim_start().split_once("Depends: ") else { continue };
        if !alternative && !name.starts_with('<') {
            chosen.push(name.to_owned());
        }
        alternative = kind.starts_with('|');
    }
    Ok(chosen)
}

/// The .deb files of `packages`, fetched when the cache has none.
fn download(packages: &BTreeSet<String>) -> Result<Vec<PathBuf>> {
    let dir = cache::dir().join("debs");
    fs::create_dir_all(&dir)?;
    let have = |package: &str| -> Result<Option<PathBuf>> {
        let prefix = format!("{package}_");
        let mut files = fs::read_dir(&dir)?.filter_map(Result::ok).map(|e| e.path());
        Ok(files.find(|f| f.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&prefix)) && ends_deb(f)))
    };
    let _lock = cache::lock("debs")?;
    let mut missing = Vec::new();
    for package in packages {
        if have(package)?.is_none() {
            missing.push(package.as_str());
        }
    }
    if !missing.is_empty() {
        let mut command = apt("apt-get");
        command.arg("download").args(&missing).current_dir(&dir);
        if run(&mut command).is_err() {
            fresh_lists()?;
            run(&mut command)?;
        }
    }
    packages.iter().map(|p| have(p)?.with_context(|| format!("apt-get download brought no {p}"))).collect()
}

fn ends_deb(file: &Path) -> bool {
    file.extension().is_some_and(|e| e == "deb")
}

fn fresh_lists() -> Result<()> {
    let mut command = apt("apt-get");
    command.args(["update", "-q"]);
    run(&mut command).map(drop)
}

fn apt(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C").stdin(Stdio::null());
    if program == "apt-get" {
        // Other programs may hold the lock for a moment; packages may not start their services.
        command.args(["-o", "DPkg::Lock::Timeout=300", "-o", "APT::Sandbox::User=root"]).env("RUNLEVEL", "1");
    }
    command
}

/// Runs to the end; the standard output, or an error with what the program said.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("starting {:?}", command.get_program()))?;
    if !output.status.success() {
        bail!("{command:?} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
