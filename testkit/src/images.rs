//! The images of the tests, each the real program from Debian's packages under the name the manifests use.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::debian::{self, run};
use crate::image::{Archive, Compression, Form, Image, Layer, Run};

/// Changes whenever what is built below changes, so that a cached registry is built anew.
pub const RECIPE: &str = "7";

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\n\
    redis:x:999:999:redis:/var/lib/redis:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nwww-data:x:33:\nredis:x:999:\nnogroup:x:65534:\n";

/// Serves the package's default page, and its pod's name under /hostname so that a client can see who answered.
const NGINX: &str = "user www-data;\nworker_processes 1;\nerror_log /dev/stderr notice;\npid /run/nginx.pid;\n\
    events { worker_connections 512; }\nhttp {\n  access_log /dev/stdout;\n  default_type text/html;\n  server {\n    \
    listen 80 default_server;\n    server_name _;\n    root /usr/share/nginx/html;\n    location / { index index.html; }\n    \
    location = /hostname { default_type text/plain; return 200 \"$hostname\\n\"; }\n  }\n}\n";

/// All images, in the order they are pushed.
pub fn all(scratch: &Path) -> Result<Vec<Image>> {
    let base = base(&scratch.join("base"))?;
    let nginx = nginx(&scratch.join("nginx"))?;
    let redis = redis(&scratch.join("redis"))?;
    let netshoot = netshoot(&scratch.join("netshoot"))?;
    let shell = Run { command: vec!["sh"], ..Run::default() };
    let web = Run { command: vec!["nginx", "-g", "daemon off;"], ..Run::default() };
    let store = Run {
        entrypoint: vec!["redis-server"],
        command: vec!["--protected-mode", "no", "--dir", "/data"],
        directory: "/data",
        user: "redis",
        ..Run::default()
    };
    let image = |name: &str, form, layers: &[&Layer], run: &Run| Image {
        name: name.to_owned(),
        form,
        layers: layers.iter().map(|l| (*l).clone()).collect(),
        run: run.clone(),
    };
    let zstd = zstd_layer()?;
    let (lower, upper) = whiteouts()?;
    let mark = |text: &str| Layer::from_tar(Archive::default().file("version", text)?.finish()?, Compression::Gzip);
    Ok(vec![
        image("library/busybox:latest", Form::Oci, &[&base], &shell),
        image("library/nginx:1.19", Form::Docker, &[&base, &nginx, &mark("1.19\n")?], &web),
        image("library/nginx:1.25", Form::DockerList, &[&base, &nginx, &mark("1.25\n")?], &web),
        image("library/redis:latest", Form::Oci, &[&base, &redis], &store),
        image("nicolaka/netshoot:latest", Form::Oci, &[&base, &netshoot], &shell),
        image("portolan-test/zstd:latest", Form::Oci, &[&base, &zstd], &shell),
        image("portolan-test/whiteouts:latest", Form::Oci, &[&base, &lower, &upper], &shell),
    ])
}

/// busybox with all its applets, and the few files every system has.
fn base(root: &Path) -> Result<Layer> {
    debian::unpack(&["busybox-static"], root)?;
    for dir in ["dev", "etc", "proc", "root", "run", "sys", "tmp", "var/log", "var/www", "home"] {
        fs::create_dir_all(root.join(dir))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    fs::write(root.join("etc/passwd"), PASSWD)?;
    fs::write(root.join("etc/group"), GROUP)?;
    fs::write(root.join("etc/nsswitch.conf"), "passwd: files\ngroup: files\nhosts: files dns\n")?;
    let busybox = root.join("usr/bin/busybox");
    for applet in run(Command::new(&busybox).arg("--list"))?.lines().filter(|a| *a != "busybox") {
        let place = root.join("usr/bin").join(applet);
        if place.symlink_metadata().is_err() {
            symlink("busybox", place)?;
        }
    }
    Layer::from_dir(root, &[], Compression::Gzip)
}

/// Links that the base layer has already.
const LINKS: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

fn nginx(root: &Path) -> Result<Layer> {
    debian::unpack(&["nginx", "nginx-common"], root)?;
    fs::create_dir_all(root.join("var/log/nginx"))?;
    fs::create_dir_all(root.join("var/lib/nginx"))?;
    fs::write(root.join("etc/nginx/nginx.conf"), NGINX)?;
    works(root, &["/usr/sbin/nginx", "-v"])?;
    Layer::from_dir(root, &LINKS, Compression::Gzip)
}

fn redis(root: &Path) -> Result<Layer> {
    debian::unpack(&["redis-server", "redis-tools"], root)?;
    let data = root.join("data");
    fs::create_dir_all(&data)?;
    std::os::unix::fs::chown(&data, Some(999), Some(999))?;
    works(root, &["/usr/bin/redis-server", "--version"])?;
    works(root, &["/usr/bin/redis-cli", "--version"])?;
    Layer::from_dir(root, &LINKS, Compression::Gzip)
}

/// dig, host, nslookup, curl, getent, redis-cli and what busybox has.
fn netshoot(root: &Path) -> Result<Layer> {
    debian::unpack(&["bind9-dnsutils", "bind9-host", "curl", "libc-bin", "redis-tools"], root)?;
    works(root, &["/usr/bin/dig", "-v"])?;
    works(root, &["/usr/bin/host", "-V"])?;
    works(root, &["/usr/bin/curl", "--version"])?;
    works(root, &["/usr/bin/getent", "--version"])?;
    Layer::from_dir(root, &LINKS, Compression::Gzip)
}

fn zstd_layer() -> Result<Layer> {
    Layer::from_tar(Archive::default().file("compressed-with", "zstd\n")?.finish()?, Compression::Zstd)
}

/// A lower and an upper layer in which files are removed, a directory is emptied, a file becomes a directory.
fn whiteouts() -> Result<(Layer, Layer)> {
    let lower = Archive::default()
        .file("keep", "kept\n")?
        .file("gone", "must not be seen\n")?
        .dir("emptied")?
        .file("emptied/old", "must not be seen\n")?
        .dir("part")?
        .file("part/gone", "must not be seen\n")?
        .file("part/keep", "kept\n")?
        .file("becomes-dir", "a file\n")?
        .hard_link("second-name", "keep")?
        .symlink("link", "part/keep")?
        .finish()?;
    let upper = Archive::default()
        .file(".wh.gone", "")?
        .dir("emptied")?
        .file("emptied/.wh..wh..opq", "")?
        .file("emptied/new", "new\n")?
        .dir("part")?
        .file("part/.wh.gone", "")?
        .dir("becomes-dir")?
        .file("becomes-dir/inside", "new\n")?
        .finish()?;
    Ok((Layer::from_tar(lower, Compression::Gzip)?, Layer::from_tar(upper, Compression::Gzip)?))
}

/// The program starts inside `root`: no library is missing.
fn works(root: &Path, command: &[&str]) -> Result<()> {
    let (program, arguments) = command.split_first().context("an empty command")?;
    if !root.join(program.trim_start_matches('/')).exists() {
        bail!("the packages hold no {program}");
    }
    run(Command::new("chroot").arg(root).arg(program).args(arguments)).map(drop)
}
