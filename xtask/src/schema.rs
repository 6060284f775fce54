//! Writes `crates/apiserver/src/schema/types.txt`: names, types and merge keys of every field of the built-in kinds, read
//! from the sources of the k8s-openapi crate (its `JsonSchema` and `DeepMerge` implementations). Descriptions are left out.
//! Run it after raising the Kubernetes version; the result is committed, so the API server needs none of this at run time.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

/// Folders of the crate, relative to `src/v1_36`, whose types are wanted together with all they refer to.
const GROUPS: &[&str] = &[
    "api/apps/v1",
    "api/authentication/v1",
    "api/authorization/v1",
    "api/autoscaling/v1",
    "api/autoscaling/v2",
    "api/batch/v1",
    "api/coordination/v1",
    "api/core/v1",
    "api/discovery/v1",
    "api/events/v1",
    "api/networking/v1",
    "api/policy/v1",
    "api/rbac/v1",
    "api/scheduling/v1",
    "api/storage/v1",
    "apimachinery/pkg/apis/meta/v1",
];

/// Types that are one value on the wire.
const SCALARS: &[(&str, &str)] = &[
    ("apimachinery.pkg.apis.meta.v1.Time", "time"),
    ("apimachinery.pkg.apis.meta.v1.MicroTime", "microtime"),
    ("apimachinery.pkg.api.resource.Quantity", "quantity"),
    ("apimachinery.pkg.util.intstr.IntOrString", "intstr"),
    ("apimachinery.pkg.runtime.RawExtension", "raw"),
    ("apimachinery.pkg.apis.meta.v1.FieldsV1", "raw"),
    ("apimachinery.pkg.apis.meta.v1.Patch", "raw"),
];

/// Lists that only server-side apply merges; a strategic merge patch replaces them (they have no `patchStrategy` upstream).
const REPLACED: &[&str] = &["claims", "drivers", "resources", "volumeClaimTemplates"];

/// `source` is the unpacked k8s-openapi crate; found in cargo's registry when not given.
pub fn run(source: Option<&Path>, out: &Path) -> Result<(), String> {
    let source = match source {
        Some(s) => s.to_owned(),
        None => find_crate()?,
    };
    let version = source.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let root = source.join("src/v1_36");
    let mut types = BTreeMap::new();
    let mut wanted: Vec<String> = Vec::new();
    for group in GROUPS {
        for file in rust_files(&root.join(group))? {
            if let Some(t) = parse_file(&file, &root)? {
                wanted.push(t.name.clone());
                types.insert(t.name.clone(), t);
            }
        }
    }
    // What they refer to, wherever it lives.
    let mut seen = BTreeSet::new();
    while let Some(name) = wanted.pop() {
        if !seen.insert(name.clone()) || SCALARS.iter().any(|(n, _)| *n == name) {
            continue;
        }
        if !types.contains_key(&name) {
            let (folder, type_name) = name.rsplit_once('.').ok_or("a type without a module")?;
            for file in rust_files(&root.join(folder.replace('.', "/")))? {
                if let Some(t) = parse_file(&file, &root)?
                    && t.name.rsplit('.').next() == Some(type_name)
                {
                    types.insert(t.name.clone(), t);
                }
            }
        }
        let found = types.get(&name).ok_or_else(|| format!("type {name} not found"))?;
        wanted.extend(found.fields.iter().flat_map(|f| f.refers.clone()));
    }

    let mut text = format!("# From {version} by `cargo xtask schema`. Do not edit: see xtask/src/schema.rs.\n");
    text.push_str("# type, then its fields: name, type (`!` required), `~key` merged by that key, `~` merged as a\n# set; with `=` only server-side apply merges it.\n");
    for (name, t) in types.iter().filter(|(n, _)| !SCALARS.iter().any(|(s, _)| s == n)) {
        let _ = writeln!(text, "{}", short(name));
        for f in &t.fields {
            let required = if f.required { "!" } else { "" };
            let replaced = REPLACED.contains(&f.name.as_str())
                || f.merge.as_deref() == Some("") && !matches!(f.name.as_str(), "finalizers" | "podCIDRs");
            let sign = if replaced { '=' } else { '~' };
            let merge = f.merge.as_ref().map(|k| format!(" {sign}{k}")).unwrap_or_default();
            let _ = writeln!(text, " {} {}{required}{merge}", f.name, f.kind);
        }
    }
    fs::write(out, text).map_err(|e| format!("{}: {e}", out.display()))
}

struct Type {
    name: String,
    fields: Vec<Field>,
}

struct Field {
    name: String,
    kind: String,
    required: bool,
    merge: Option<String>,
    refers: Vec<String>,
}

fn find_crate() -> Result<PathBuf, String> {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|h| Path::new(&h).join(".cargo")))
        .ok_or("neither CARGO_HOME nor HOME is set")?;
    let mut found = Vec::new();
    for registry in fs::read_dir(home.join("registry/src")).map_err(|e| e.to_string())?.flatten() {
        for dir in fs::read_dir(registry.path()).map_err(|e| e.to_string())?.flatten() {
            if dir.file_name().to_string_lossy().starts_with("k8s-openapi-") {
                found.push(dir.path());
            }
        }
    }
    found.sort();
    found.pop().ok_or_else(|| "k8s-openapi is not in cargo's registry: build the workspace first".to_owned())
}

fn rust_files(dir: &Path) -> Result<Vec<PathBuf>, String> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .map_err(|e| format!("{}: {e}", dir.display()))?
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "rs") && p.file_name().is_some_and(|n| n != "mod.rs"))
        .collect();
    files.sort();
    Ok(files)
}

/// `io.k8s.api.core.v1.Pod` is `core.v1.Pod`, `...pkg.apis.meta.v1.ObjectMeta` is `meta.v1.ObjectMeta`.
fn short(name: &str) -> String {
    let name = name.strip_prefix("api.").unwrap_or(name);
    name.strip_prefix("apimachinery.pkg.apis.").unwrap_or(name).to_owned()
}

fn parse_file(file: &Path, root: &Path) -> Result<Option<Type>, String> {
    let text = fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
    let Some(at) = text.find("impl crate::schemars::JsonSchema for ") else { return Ok(None) };
    let rest = &text[at + "impl crate::schemars::JsonSchema for ".len()..];
    let type_name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    let module = file.parent().and_then(|p| p.strip_prefix(root).ok()).map(|p| p.to_string_lossy().replace('/', "."));
    let name = format!("{}.{type_name}", module.unwrap_or_default());
    let Some(start) = rest.find("json_schema!(") else { return Ok(None) };
    let mut parser = Parser { bytes: rest.as_bytes(), at: start + "json_schema!(".len() };
    let schema = parser.value().map_err(|e| format!("{}: {e}", file.display()))?;
    let merges = merges(&text);
    let required: Vec<&str> = match schema.get("required") {
        Some(Node::List(l)) => l.iter().filter_map(Node::text).collect(),
        _ => Vec::new(),
    };
    let mut fields = Vec::new();
    if let Some(Node::Map(properties)) = schema.get("properties") {
        for (key, node) in properties {
            let mut refers = Vec::new();
            let kind = kind_of(node, &mut refers);
            let folded = fold(key);
            let merge = merges.iter().find(|(f, _)| *f == folded).map(|(_, k)| k.clone());
            fields.push(Field { name: key.clone(), kind, required: required.contains(&key.as_str()), merge, refers });
        }
    }
    fields.sort_by(|a, b| a.name.cmp(&b.name));
    // Merge keys are JSON names; the Rust name of the key folds to the same letters.
    Ok(Some(Type { name, fields }))
}

/// Field (folded) to merge key, from the `DeepMerge` implementation.
fn merges(text: &str) -> Vec<(String, String)> {
    let mut out = Vec::new();
    for (what, marker) in [("map", "merge_strategies::list::map("), ("set", "merge_strategies::list::set(")] {
        for (at, _) in text.match_indices(marker) {
            let call = &text[at + marker.len()..];
            let Some(field) = call.split("&mut self.").nth(1) else { continue };
            let field: String = field.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let key = if what == "map" {
                let keys: Vec<&str> =
                    call.split("&[").nth(1).and_then(|k| k.split(']').next()).map_or(vec![], |k| {
                        k.split("lhs.").skip(1).filter_map(|p| p.split([' ', ')']).next()).collect()
                    });
                match keys.as_slice() {
                    [one] => camel(one),
                    _ => continue,
                }
            } else {
                String::new()
            };
            out.push((fold(&field), key));
        }
    }
    out
}

fn fold(name: &str) -> String {
    name.chars().filter(|c| *c != '_').flat_map(char::to_lowercase).collect()
}

fn camel(rust: &str) -> String {
    let mut out = String::new();
    let mut upper = false;
    for c in rust.trim_end_matches('_').chars() {
        match c {
            '_' => upper = true,
            c if upper => {
                out.extend(c.to_uppercase());
                upper = false;
            }
            c => out.push(c),
        }
    }
    out.replace("Id", "ID")
}

fn kind_of(node: &Node, refers: &mut Vec<String>) -> String {
    if let Node::Ref(path) = node {
        let name = path.trim_start_matches("crate::").replace("::", ".");
        refers.push(name.clone());
        return SCALARS.iter().find(|(n, _)| *n == name).map_or_else(|| short(&name), |(_, k)| (*k).to_owned());
    }
    let format = node.get("format").and_then(Node::text);
    match node.get("type").and_then(Node::text) {
        Some("string") if format == Some("byte") => "bytes".into(),
        Some("string") => "s".into(),
        Some("boolean") => "b".into(),
        Some("integer") => if format == Some("int64") { "i64" } else { "i32" }.into(),
        Some("number") => "f64".into(),
        Some("array") => {
            format!("[]{}", node.get("items").map_or("raw".into(), |i| kind_of(i, refers)))
        }
        Some("object") => match node.get("additionalProperties") {
            Some(values) => format!("{{}}{}", kind_of(values, refers)),
            None => "raw".into(),
        },
        _ => "raw".into(),
    }
}

enum Node {
    Text(String),
    Ref(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
    Other,
}

impl Node {
    fn get(&self, key: &str) -> Option<&Node> {
        match self {
            Self::Map(m) => m.iter().find(|(k, _)| k == key).map(|(_, v)| v),
            _ => None,
        }
    }
    fn text(&self) -> Option<&str> {
        match self {
            Self::Text(t) => Some(t),
            _ => None,
        }
    }
}

/// Reads the little Rust that `json_schema!` holds: JSON with trailing commas, and `subschema_for::<Type>()` expressions.
struct Parser<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Parser<'_> {
    fn skip_space(&mut self) {
        while self.bytes.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
    }

    fn value(&mut self) -> Result<Node, String> {
        self.skip_space();
        match self.bytes.get(self.at) {
            Some(b'{') => self.map(),
            Some(b'[') => self.list(),
            Some(b'"') => Ok(Node::Text(self.string()?)),
            Some(b'(') => self.expression(),
            Some(_) => {
                let start = self.at;
                while self.bytes.get(self.at).is_some_and(|b| !matches!(b, b',' | b'}' | b']')) {
                    self.at += 1;
                }
                let text = String::from_utf8_lossy(&self.bytes[start..self.at]);
                Ok(referred(&text).map_or(Node::Other, Node::Ref))
            }
            None => Err("ends too early".into()),
        }
    }

    fn map(&mut self) -> Result<Node, String> {
        self.at += 1;
        let mut out = Vec::new();
        loop {
            self.skip_space();
            match self.bytes.get(self.at) {
                Some(b'}') => {
                    self.at += 1;
                    return Ok(Node::Map(out));
                }
                Some(b',') => self.at += 1,
                Some(b'"') => {
                    let key = self.string()?;
                    self.skip_space();
                    self.at += 1;
                    out.push((key, self.value()?));
                }
                other => return Err(format!("unexpected {:?} in a map at {}", other.map(|b| *b as char), self.at)),
            }
        }
    }

    fn list(&mut self) -> Result<Node, String> {
        self.at += 1;
        let mut out = Vec::new();
        loop {
            self.skip_space();
            match self.bytes.get(self.at) {
                Some(b']') => {
                    self.at += 1;
                    return Ok(Node::List(out));
                }
                Some(b',') => self.at += 1,
                Some(_) => out.push(self.value()?),
                None => return Err("a list does not end".into()),
            }
        }
    }

    fn string(&mut self) -> Result<String, String> {
        self.at += 1;
        let start = self.at;
        while let Some(b) = self.bytes.get(self.at) {
            match b {
                b'\\' => self.at += 2,
                b'"' => {
                    let text = String::from_utf8_lossy(&self.bytes[start..self.at]).into_owned();
                    self.at += 1;
                    return Ok(text);
                }
                _ => self.at += 1,
            }
        }
        Err("a string does not end".into())
    }

    /// `( ... subschema_for::<PATH>() ... )`
    fn expression(&mut self) -> Result<Node, String> {
        let start = self.at;
        let mut depth = 0usize;
        while let Some(b) = self.bytes.get(self.at) {
            match b {
                b'(' => depth += 1,
                b')' => {
                    depth -= 1;
                    if depth == 0 {
                        self.at += 1;
                        let text = String::from_utf8_lossy(&self.bytes[start..self.at]).into_owned();
                        return referred(&text).map(Node::Ref).ok_or_else(|| format!("no type in {text}"));
                    }
                }
                b'"' => {
                    self.string()?;
                    continue;
                }
                _ => {}
            }
            self.at += 1;
        }
        Err("an expression does not end".into())
    }
}

fn referred(expression: &str) -> Option<String> {
    expression.split("subschema_for::<").nth(1).and_then(|t| t.split(">()").next()).map(str::to_owned)
}
