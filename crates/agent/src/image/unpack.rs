//! One layer's tar into one directory, ready to be an overlay's lower: whiteouts become the overlay's own marks. Nothing
//! a layer says can reach outside its directory: every path is resolved inside it, symbolic links included.

use std::{
    fs::{self, File},
    io::{self, BufReader, Read},
    os::unix::fs::{PermissionsExt, chown, lchown, symlink},
    path::{Component, Path, PathBuf},
};

use nix::{
    sys::stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat},
    sys::time::TimeSpec,
};
use sha2::{Digest, Sha256};
use tar::{Archive, Entry, EntryType};

/// Uncompressed bytes in one layer after which it is taken for a bomb.
const MAX_BYTES: u64 = 64 << 30;
const MAX_LINKS: u32 = 40;

/// Unpacks `blob` below `temporary`, checks that its uncompressed digest is `diff_id`, and moves it to `target`.
pub fn layer(blob: &Path, temporary: &Path, diff_id: &str, target: &Path) -> io::Result<()> {
    let dir = tempfile::tempdir_in(temporary)?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    let mut hashing = Hashing { inner: decoder(File::open(blob)?)?, hash: Sha256::new(), seen: 0 };
    unpack(&mut hashing, dir.path())?;
    // The digest covers everything, the padding after the archive's end included.
    io::copy(&mut hashing, &mut io::sink())?;
    let got = format!("sha256:{}", super::hex(&hashing.hash.finalize()));
    if got != diff_id {
        return Err(io::Error::other(format!("the content has digest {got}, the image says {diff_id}")));
    }
    fs::rename(dir.path(), target)
}

/// By what the data begins with: media types are often wrong, magic numbers are not.
fn decoder(file: File) -> io::Result<Box<dyn Read>> {
    let mut reader = BufReader::with_capacity(128 * 1024, file);
    let head = io::BufRead::fill_buf(&mut reader)?;
    Ok(match head {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::Decoder::with_buffer(reader)?),
        _ => Box::new(reader),
    })
}

struct Hashing<R> {
    inner: R,
    hash: Sha256,
    seen: u64,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hash.update(&buf[..n]);
        self.seen += n as u64;
        if self.seen > MAX_BYTES {
            return Err(io::Error::other(format!("the layer is larger than {MAX_BYTES} bytes uncompressed")));
        }
        Ok(n)
    }
}

fn unpack(reader: &mut dyn Read, root: &Path) -> io::Result<()> {
    let mut archive = Archive::new(reader);
    // Set last, deepest first: writing into a directory changes its time, and a read-only one would refuse.
    let mut directories = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        one(&mut entry, &path, root, &mut directories)
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
    }
    for (path, mode, time) in directories.into_iter().rev() {
        // A later entry may have replaced the directory.
        if fs::symlink_metadata(&path).is_ok_and(|m| m.is_dir()) {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
            touch(&path, time);
        }
    }
    Ok(())
}

fn one(
    entry: &mut Entry<'_, &mut dyn Read>,
    path: &Path,
    root: &Path,
    directories: &mut Vec<(PathBuf, u32, i64)>,
) -> io::Result<()> {
    let Some((parent, name)) = split(path)? else { return Ok(()) };
    let parent = resolve(root, &parent)?;
    fs::create_dir_all(&parent)?;
    if let Some(hidden) = name.strip_prefix(".wh.") {
        return whiteout(&parent, hidden);
    }
    let target = parent.join(&name);
    let header = entry.header().clone();
    // Simple tools leave the last three blank.
    let (mode, time) = (header.mode()? & 0o7777, header.mtime().unwrap_or(0) as i64);
    let (uid, gid) = (header.uid().unwrap_or(0) as u32, header.gid().unwrap_or(0) as u32);
    let kind = header.entry_type();
    let existing = fs::symlink_metadata(&target).ok();
    if let Some(existing) = &existing
        && !(existing.is_dir() && kind == EntryType::Directory)
    {
        if existing.is_dir() { fs::remove_dir_all(&target)? } else { fs::remove_file(&target)? }
    }
    match kind {
        EntryType::Directory => {
            if !existing.is_some_and(|m| m.is_dir()) {
                fs::create_dir(&target)?;
            }
            chown(&target, Some(uid), Some(gid))?;
            directories.push((target.clone(), mode, time));
        }
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            let mut file = File::create_new(&target)?;
            io::copy(entry, &mut file)?;
            chown(&target, Some(uid), Some(gid))?;
            // After chown, which clears the set-uid bits.
            file.set_permissions(fs::Permissions::from_mode(mode))?;
        }
        EntryType::Symlink => {
            let to = entry.link_name()?.ok_or_else(|| io::Error::other("a symbolic link without a target"))?;
            symlink(to, &target)?;
            lchown(&target, Some(uid), Some(gid))?;
        }
        EntryType::Link => {
            let to = entry.link_name()?.ok_or_else(|| io::Error::other("a hard link without a target"))?;
            let Some((dir, name)) = split(&to)? else { return Err(io::Error::other("a hard link to the root")) };
            let source = resolve(root, &dir)?.join(name);
            // Linking to a link is fine: hard_link(2) does not follow it.
            return fs::hard_link(source, &target);
        }
        EntryType::Fifo => {
            nix::unistd::mkfifo(&target, Mode::from_bits_truncate(mode))?;
            chown(&target, Some(uid), Some(gid))?;
        }
        // The runtime makes the devices a container may use; those of a layer would be a way around that.
        _ => return Ok(()),
    }
    for extension in entry.pax_extensions().ok().flatten().into_iter().flatten().flatten() {
        if let Some(key) = extension.key().ok().and_then(|k| k.strip_prefix("SCHILY.xattr."))
            // Marks of the overlay itself are ours to set.
            && !key.starts_with("trusted.")
        {
            let _ = xattr::set(&target, key, extension.value_bytes());
        }
    }
    if kind != EntryType::Directory {
        touch(&target, time);
    }
    Ok(())
}

/// `.wh.NAME` hides NAME of the layers below, `.wh..wh..opq` the whole directory (OCI image layer specification).
fn whiteout(parent: &Path, hidden: &str) -> io::Result<()> {
    if hidden == ".wh..opq" {
        return xattr::set(parent, "trusted.overlay.opaque", b"y");
    }
    if hidden.is_empty() || hidden == "." || hidden == ".." || hidden.starts_with(".wh.") {
        return Ok(());
    }
    let target = parent.join(hidden);
    if fs::symlink_metadata(&target).is_ok() {
        return Ok(());
    }
    Ok(mknod(&target, SFlag::S_IFCHR, Mode::empty(), 0)?)
}

/// Parent and name of an entry's path, `None` for the root itself. A path that climbs out is refused, not clipped:
/// an honest image has none.
fn split(path: &Path) -> io::Result<Option<(PathBuf, String)>> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(p) => clean.push(p),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(io::Error::other("the path leads out of the image"));
            }
        }
    }
    let Some(name) = clean.file_name() else { return Ok(None) };
    let name = name.to_str().ok_or_else(|| io::Error::other("the name is not UTF-8"))?.to_owned();
    Ok(Some((clean.parent().map(Path::to_owned).unwrap_or_default(), name)))
}

/// `path` below `root`, following the links that are there as a process inside the root would: `..` stops at the root.
/// Parts that do not exist yet are taken as they are.
pub(crate) fn resolve(root: &Path, path: &Path) -> io::Result<PathBuf> {
    let mut inside = PathBuf::new();
    let mut todo: Vec<std::ffi::OsString> = path.components().rev().map(|c| c.as_os_str().to_owned()).collect();
    let mut links = 0;
    while let Some(part) = todo.pop() {
        match Path::new(&part).components().next() {
            Some(Component::Normal(_)) => {}
            Some(Component::ParentDir) => {
                inside.pop();
                continue;
            }
            Some(Component::RootDir) => {
                inside.clear();
                continue;
            }
            _ => continue,
        }
        let next = inside.join(&part);
        match fs::read_link(root.join(&next)) {
            Ok(to) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(io::Error::other("too many levels of symbolic links"));
                }
                todo.extend(to.components().rev().map(|c| c.as_os_str().to_owned()));
            }
            Err(_) => inside = next,
        }
    }
    Ok(root.join(inside))
}

fn touch(path: &Path, seconds: i64) {
    let time = TimeSpec::new(seconds, 0);
    // A file system that cannot keep the time is no reason to refuse the image.
    let _ = utimensat(nix::fcntl::AT_FDCWD, path, &time, &time, UtimensatFlags::NoFollowSymlink);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    use tar::{Builder, Header};

    struct Tar(Builder<Vec<u8>>);

    impl Tar {
        fn new() -> Self {
            Self(Builder::new(Vec::new()))
        }
        /// Names are written raw: the builder itself refuses the hostile ones.
        fn add(&mut self, kind: EntryType, name: &str, link: Option<&str>, data: &[u8]) -> &mut Self {
            let mut h = Header::new_gnu();
            let raw = h.as_old_mut();
            raw.name[..name.len()].copy_from_slice(name.as_bytes());
            if let Some(link) = link {
                raw.linkname[..link.len()].copy_from_slice(link.as_bytes());
            }
            h.set_entry_type(kind);
            h.set_size(data.len() as u64);
            h.set_mode(0o4751);
            h.set_uid(7);
            h.set_gid(8);
            h.set_mtime(1_000_000);
            h.set_cksum();
            self.0.append(&h, data).expect("append");
            self
        }
        fn done(self) -> Vec<u8> {
            self.0.into_inner().expect("tar")
        }
    }

    fn apply(bytes: &[u8], compress: &str) -> (tempfile::TempDir, io::Result<PathBuf>) {
        let dir = tempfile::tempdir().expect("dir");
        let blob = match compress {
            "gzip" => {
                let mut w = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                w.write_all(bytes).expect("gzip");
                w.finish().expect("gzip")
            }
            "zstd" => zstd::encode_all(bytes, 1).expect("zstd"),
            _ => bytes.to_vec(),
        };
        fs::write(dir.path().join("blob"), blob).expect("blob");
        let digest = format!("sha256:{}", super::super::hex(&Sha256::digest(bytes)));
        let target = dir.path().join("out");
        let result = layer(&dir.path().join("blob"), dir.path(), &digest, &target).map(|()| target);
        (dir, result)
    }

    #[test]
    fn seed_205_layers_plain_gzip_and_zstd_keep_owners_modes_times_and_links() {
        for compress in ["", "gzip", "zstd"] {
            let mut t = Tar::new();
            t.add(EntryType::Directory, "usr/", None, b"")
                .add(EntryType::Regular, "usr/file", None, b"hello")
                .add(EntryType::Link, "usr/hard", Some("usr/file"), b"")
                .add(EntryType::Symlink, "link", Some("usr"), b"")
                .add(EntryType::Regular, "link/through", None, b"x");
            let (_dir, out) = apply(&t.done(), compress);
            let out = out.expect(compress);
            let meta = fs::metadata(out.join("usr/file")).expect("file");
            assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777, meta.mtime()), (7, 8, 0o4751, 1_000_000));
            assert_eq!(meta.ino(), fs::metadata(out.join("usr/hard")).expect("hard").ino());
            assert_eq!(fs::read(out.join("usr/through")).expect("through the link"), b"x");
            assert_eq!(fs::metadata(out.join("usr")).expect("usr").mtime(), 1_000_000);
        }
    }

    #[test]
    fn whiteouts_become_overlay_marks() {
        let mut t = Tar::new();
        t.add(EntryType::Regular, "etc/.wh.gone", None, b"").add(EntryType::Regular, "opt/.wh..wh..opq", None, b"");
        let (_dir, out) = apply(&t.done(), "gzip");
        let out = out.expect("unpack");
        let gone = fs::symlink_metadata(out.join("etc/gone")).expect("whiteout");
        assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
        assert_eq!(xattr::get(out.join("opt"), "trusted.overlay.opaque").expect("xattr").as_deref(), Some(&b"y"[..]));
    }

    #[test]
    fn nothing_is_written_outside() {
        let outside = tempfile::tempdir().expect("dir");
        let to = outside.path().to_str().expect("utf8");
        let mut t = Tar::new();
        t.add(EntryType::Symlink, "escape", Some(to), b"").add(EntryType::Regular, "escape/file", None, b"x");
        let (_dir, out) = apply(&t.done(), "");
        assert!(fs::read_dir(outside.path()).expect("dir").next().is_none());
        // The link is followed inside the image's own root, as the container would see it.
        assert!(out.expect("unpack").join(to.trim_start_matches('/')).join("file").is_file());

        let mut t = Tar::new();
        t.add(EntryType::Symlink, "up", Some("../../../../../.."), b"").add(EntryType::Regular, "up/x", None, b"x");
        let (_dir, out) = apply(&t.done(), "");
        assert!(out.expect("unpack").join("x").is_file());

        for hostile in ["../evil", "a/../../evil"] {
            let mut t = Tar::new();
            t.add(EntryType::Regular, hostile, None, b"x");
            let (_dir, out) = apply(&t.done(), "");
            let text = out.expect_err("refused").to_string();
            assert!(text.contains("leads out of the image"), "{text}");
        }

        let mut t = Tar::new();
        t.add(EntryType::Link, "passwd", Some("../../../../etc/passwd"), b"");
        assert!(apply(&t.done(), "").1.is_err());
        let mut t = Tar::new();
        t.add(EntryType::Symlink, "etc", Some("/etc"), b"").add(EntryType::Link, "passwd", Some("etc/passwd"), b"");
        assert!(apply(&t.done(), "").1.is_err(), "the host's file is not reachable through a link");
    }

    #[test]
    fn a_wrong_digest_leaves_nothing() {
        let mut t = Tar::new();
        t.add(EntryType::Regular, "a", None, b"x");
        let dir = tempfile::tempdir().expect("dir");
        fs::write(dir.path().join("blob"), t.done()).expect("blob");
        let target = dir.path().join("out");
        let e = layer(&dir.path().join("blob"), dir.path(), "sha256:00", &target).expect_err("refused");
        assert!(e.to_string().contains("the image says sha256:00"), "{e}");
        assert!(!target.exists());
    }
}
