//! The shape of the workspace, as `ARCHITECTURE.md` describes it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

const FLOORS: [(&str, u8); 9] = [
    ("portolan-model", 0),
    ("portolan-cluster", 1),
    ("portolan-sys", 1),
    ("portolan-apiserver", 2),
    ("portolan-controllers", 2),
    ("portolan-proxy", 2),
    ("portolan-dns", 2),
    ("portolan-agent", 2),
    ("portolan", 3),
];

/// What would let the model do anything but think.
const NOT_IN_MODEL: [&str; 12] =
    ["tokio", "kube", "libc", "nix", "rand", "tracing", "log", "redb", "hyper", "axum", "k8s-openapi", "chrono"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

fn metadata() -> Metadata {
    MetadataCommand::new().manifest_path(root().join("Cargo.toml")).no_deps().exec().expect("cargo metadata")
}

/// Names of the normal dependencies of each package of the workspace.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let normal = |p: &cargo_metadata::Package| {
        p.dependencies.iter().filter(|d| d.kind == DependencyKind::Normal).map(|d| d.name.to_string()).collect()
    };
    metadata().packages.iter().map(|p| (p.name.to_string(), normal(p))).collect()
}

#[test]
fn every_crate_has_a_floor() {
    let floors: BTreeSet<&str> = FLOORS.iter().map(|f| f.0).collect();
    let outside = BTreeSet::from(["portolan-testkit", "portolan-tests", "xtask"]);
    for name in dependencies().keys() {
        assert!(floors.contains(name.as_str()) || outside.contains(name.as_str()), "{name} has no floor");
    }
}

#[test]
fn dependencies_point_down_and_roles_do_not_know_each_other() {
    let floors = BTreeMap::from(FLOORS);
    for (name, needs) in dependencies() {
        let Some(floor) = floors.get(name.as_str()) else { continue };
        for need in needs.iter().filter_map(|n| floors.get_key_value(n.as_str())) {
            assert!(need.1 < floor, "{name} (floor {floor}) depends on {} (floor {})", need.0, need.1);
        }
        assert!(!needs.contains("portolan-testkit"), "{name} ships with the testkit");
    }
}

#[test]
fn the_model_is_pure_and_the_apiserver_needs_only_the_model() {
    let dependencies = dependencies();
    for forbidden in NOT_IN_MODEL {
        assert!(!dependencies["portolan-model"].contains(forbidden), "model depends on {forbidden}");
    }
    for other in ["portolan-cluster", "portolan-sys"] {
        assert!(!dependencies["portolan-apiserver"].contains(other), "apiserver depends on {other}");
    }
    for word in ["std::time::Instant::now", "SystemTime::now", "std::fs", "std::net::TcpStream", "println!"] {
        for file in rust_files(&root().join("crates/model/src")) {
            let text = fs::read_to_string(&file).expect("a source file");
            assert!(!text.contains(word), "{} uses {word}", file.display());
        }
    }
}

#[test]
fn unsafe_code_is_in_sys_only_and_each_block_is_justified() {
    for package in ["crates", "testkit", "tests", "xtask"] {
        for file in rust_files(&root().join(package)) {
            let text = fs::read_to_string(&file).expect("a source file");
            let in_sys = file.starts_with(root().join("crates/sys"));
            let lines: Vec<&str> = text.lines().collect();
            for (i, _) in lines.iter().enumerate().filter(|(_, line)| opens_unsafe(line)) {
                assert!(in_sys, "{}:{}: unsafe outside sys", file.display(), i + 1);
                let before = &lines[i.saturating_sub(8)..=i];
                assert!(
                    before.iter().any(|l| l.contains("SAFETY:")),
                    "{}:{}: no SAFETY comment",
                    file.display(),
                    i + 1
                );
            }
        }
    }
}

/// Whether code (not a comment or a text) opens an unsafe block, function or implementation here.
fn opens_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or("");
    ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"]
        .iter()
        .any(|w| code.find(w).is_some_and(|at| code[..at].matches('"').count() % 2 == 0))
}

#[test]
fn no_source_file_is_too_long() {
    let mut long = Vec::new();
    for package in ["crates", "testkit", "tests", "xtask"] {
        for file in rust_files(&root().join(package)) {
            let lines = fs::read_to_string(&file).expect("a source file").lines().count();
            if lines > 700 {
                long.push(format!("{} has {lines} lines", file.display()));
            }
        }
    }
    assert!(long.is_empty(), "files want to stay under 600 lines: {long:#?}");
}

#[test]
fn no_module_is_called_mod_rs_and_every_module_says_what_it_is() {
    for file in rust_files(&root().join("crates")) {
        assert!(file.file_name().is_some_and(|n| n != "mod.rs"), "{}: use foo.rs beside foo/", file.display());
        let text = fs::read_to_string(&file).expect("a source file");
        let of_tests = file.components().any(|c| c.as_os_str() == "tests");
        let tests = of_tests || file.file_stem().and_then(|n| n.to_str()).is_some_and(|n| n.ends_with("tests"));
        if !tests && file.components().any(|c| c.as_os_str() == "src") {
            assert!(text.starts_with("//!"), "{} has no //! header", file.display());
        }
    }
}

#[test]
fn the_architecture_file_names_only_paths_that_exist() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    for word in text.split(|c: char| c.is_whitespace() || "`()[],;".contains(c)) {
        let word = word.trim_end_matches(['.', ':', '/']);
        if word.contains('/')
            && ["crates/", "docs/", "examples/", "testkit/", "tests/", "xtask/"].iter().any(|d| word.starts_with(d))
        {
            let plain = !word.contains(['*', '{', '<', '|', '…']);
            assert!(!plain || root().join(word).exists(), "ARCHITECTURE.md names {word}, which is not there");
        }
    }
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("a directory").filter_map(Result::ok) {
        let path = entry.path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}
