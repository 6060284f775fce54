//! Who a container runs as: the image's or the pod's user, with names looked up in the image's own files.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub additional: Vec<u32>,
    pub home: Option<String>,
}

/// `user` is `name`, `uid`, `name:group` or `uid:gid` as in an image's configuration; empty means root.
/// `layers` are directories, the lowest first.
pub fn lookup(layers: &[PathBuf], user: &str) -> Result<User, String> {
    let passwd = read(layers, "etc/passwd");
    let group = read(layers, "etc/group");
    let (who, of) = user.split_once(':').unwrap_or((user, ""));
    let who = if who.is_empty() { "0" } else { who };
    let entry =
        passwd.iter().find(|f| f[0] == who || (who.parse::<u32>().is_ok() && f.get(2).is_some_and(|u| u == who)));
    let (uid, primary) = match (entry, who.parse()) {
        (Some(f), _) => (number(f, 2)?, number(f, 3)?),
        (None, Ok(uid)) => (uid, 0),
        (None, Err(_)) => return Err(format!("unable to find user {who}: no matching entries in passwd file")),
    };
    let gid = match of {
        "" => primary,
        name => match (group.iter().find(|f| f[0] == name), name.parse()) {
            (Some(f), _) => number(f, 2)?,
            (None, Ok(gid)) => gid,
            (None, Err(_)) => return Err(format!("unable to find group {name}: no matching entries in group file")),
        },
    };
    // Memberships count only when the image does not name a group itself.
    let name = entry.map(|f| f[0].as_str());
    let member = |f: &&Vec<String>| of.is_empty() && f.get(3).is_some_and(|m| m.split(',').any(|m| Some(m) == name));
    let additional = group.iter().filter(member).filter_map(|f| f.get(2)?.parse().ok()).filter(|g| *g != gid).collect();
    let home = entry.and_then(|f| f.get(5)).filter(|h| !h.is_empty()).cloned();
    Ok(User { uid, gid, additional, home })
}

fn number(fields: &[String], at: usize) -> Result<u32, String> {
    fields
        .get(at)
        .and_then(|f| f.parse().ok())
        .ok_or_else(|| format!("the image's passwd or group entry of {:?} is damaged", fields.first()))
}

/// The colon-separated lines of the file in the uppermost layer that has it. A name hidden by a whiteout is absent.
fn read(layers: &[PathBuf], file: &str) -> Vec<Vec<String>> {
    let text = layers.iter().rev().find_map(|root| match open(root, file) {
        Ok(text) => Some(text),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(_) => Some(String::new()),
    });
    let text = text.unwrap_or_default();
    text.lines()
        .filter(|l| !l.starts_with('#') && l.contains(':'))
        .map(|l| l.split(':').map(str::to_owned).collect())
        .collect()
}

fn open(root: &Path, file: &str) -> io::Result<String> {
    let path = super::unpack::resolve(root, Path::new(file))?;
    let meta = fs::symlink_metadata(&path)?;
    if !meta.is_file() || meta.len() > 1 << 20 {
        return Err(io::Error::other("not a file of reasonable size"));
    }
    fs::read_to_string(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        let dir = tempfile::tempdir().expect("dir");
        fs::create_dir(dir.path().join("etc")).expect("etc");
        fs::write(
            dir.path().join("etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\nnginx:x:101:102:n:/var/www:/bin/false\n",
        )
        .expect("passwd");
        fs::write(dir.path().join("etc/group"), "root:x:0:\nnginx:x:102:\nextra:x:200:nginx,other\n").expect("group");
        let layers = vec![dir.path().to_owned()];
        let get = |u: &str| lookup(&layers, u);
        assert_eq!(get("").map(|u| (u.uid, u.gid, u.home)), Ok((0, 0, Some("/root".into()))));
        assert_eq!(get("nginx").map(|u| (u.uid, u.gid, u.additional)), Ok((101, 102, vec![200])));
        assert_eq!(get("101").map(|u| (u.uid, u.gid)), Ok((101, 102)));
        assert_eq!(get("nginx:extra").map(|u| (u.uid, u.gid, u.additional)), Ok((101, 200, vec![])));
        assert_eq!(get("1000:1000").map(|u| (u.uid, u.gid, u.home)), Ok((1000, 1000, None)));
        assert_eq!(get("nobody").unwrap_err(), "unable to find user nobody: no matching entries in passwd file");
    }
}
