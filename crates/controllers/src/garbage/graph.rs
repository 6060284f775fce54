//! Who belongs to whom: every object of every kind in a few words, and the edges between them.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use cluster::Resource;
use model::{ObjectKey, parse};
use serde_json::Value;

pub type Uid = Arc<str>;

/// The finalizers by which a client asked for an order of deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finalizer {
    Foreground,
    Orphan,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerRef {
    pub api_version: Arc<str>,
    pub kind: Arc<str>,
    pub name: Arc<str>,
    pub uid: Uid,
    /// `blockOwnerDeletion`
    pub blocks: bool,
}

impl OwnerRef {
    /// Any version of the group will do: versions are views of the same object.
    pub fn is_of(&self, resource: &Resource) -> bool {
        let group = self.api_version.split_once('/').map_or("", |(g, _)| g);
        *self.kind == *resource.kind && *group == *resource.group
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Index of its kind.
    pub kind: usize,
    pub key: ObjectKey,
    pub uid: Uid,
    pub owners: Vec<OwnerRef>,
    pub deleting: bool,
    pub finalizer: Option<Finalizer>,
}

impl Item {
    /// `None` for an object without name or uid.
    pub fn read(kind: usize, v: &Value) -> Option<Self> {
        let m = &v["metadata"];
        let uid = m["uid"].as_str().filter(|u| !u.is_empty())?;
        let text = |v: &Value| -> Arc<str> { v.as_str().unwrap_or_default().into() };
        let owners = m["ownerReferences"].as_array().into_iter().flatten().map(|o| OwnerRef {
            api_version: text(&o["apiVersion"]),
            kind: text(&o["kind"]),
            name: text(&o["name"]),
            uid: text(&o["uid"]),
            blocks: o["blockOwnerDeletion"] == true,
        });
        let finalizers = m["finalizers"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let finalizer = finalizers.filter_map(|f| match f {
            "foregroundDeletion" => Some(Finalizer::Foreground),
            "orphan" => Some(Finalizer::Orphan),
            _ => None,
        });
        Some(Self {
            kind,
            key: parse::key(v)?,
            uid: uid.into(),
            owners: owners.collect(),
            deleting: !m["deletionTimestamp"].is_null(),
            finalizer: finalizer.last(),
        })
    }
}

#[derive(Debug, Default)]
pub struct Graph {
    pub items: HashMap<Uid, Item>,
    /// By kind.
    names: Vec<HashMap<ObjectKey, Uid>>,
    children: HashMap<Uid, HashSet<Uid>>,
    /// By kind: what a list that is coming in has named.
    seen: Vec<Option<HashSet<ObjectKey>>>,
    complete: Vec<bool>,
    /// Objects whose situation may have changed.
    pub look: HashSet<Uid>,
}

impl Graph {
    pub fn new(kinds: usize) -> Self {
        Self {
            names: vec![HashMap::new(); kinds],
            seen: vec![None; kinds],
            complete: vec![false; kinds],
            ..Self::default()
        }
    }

    pub fn is_complete(&self) -> bool {
        self.complete.iter().all(|c| *c)
    }

    pub fn children_of(&self, uid: &Uid) -> impl Iterator<Item = &Uid> {
        self.children.get(uid).into_iter().flatten()
    }

    pub fn listing(&mut self, kind: usize) {
        self.seen[kind] = Some(HashSet::new());
    }

    pub fn listed(&mut self, kind: usize) {
        if let Some(seen) = self.seen[kind].take() {
            let gone: Vec<_> = self.names[kind].keys().filter(|k| !seen.contains(k)).cloned().collect();
            for key in gone {
                self.remove(kind, &key);
            }
        }
        self.complete[kind] = true;
    }

    pub fn put(&mut self, item: Item) {
        let (kind, key, uid) = (item.kind, item.key.clone(), item.uid.clone());
        if let Some(seen) = &mut self.seen[kind] {
            seen.insert(key.clone());
        }
        if let Some(before) = self.names[kind].insert(key.clone(), uid.clone())
            && before != uid
        {
            self.forget(&before);
        }
        if self.items.get(&uid) == Some(&item) {
            return;
        }
        self.unlink(&uid);
        for owner in &item.owners {
            self.children.entry(owner.uid.clone()).or_default().insert(uid.clone());
        }
        if item.deleting {
            // Its children have an owner that is leaving now.
            self.look.extend(self.children.get(&uid).into_iter().flatten().cloned());
        }
        if !item.owners.is_empty() || item.finalizer.is_some() {
            self.look.insert(uid.clone());
        }
        self.items.insert(uid, item);
    }

    pub fn remove(&mut self, kind: usize, key: &ObjectKey) {
        if let Some(uid) = self.names[kind].remove(key) {
            self.forget(&uid);
        }
    }

    fn forget(&mut self, uid: &Uid) {
        self.unlink(uid);
        if let Some(item) = self.items.remove(uid) {
            // Owners that wait for it to go are one step further.
            self.look.extend(item.owners.into_iter().map(|o| o.uid));
        }
        self.look.extend(self.children.get(uid).into_iter().flatten().cloned());
    }

    fn unlink(&mut self, uid: &Uid) {
        let Some(item) = self.items.get(uid) else { return };
        for owner in &item.owners {
            if let Some(children) = self.children.get_mut(&owner.uid) {
                children.remove(uid);
                if children.is_empty() {
                    self.children.remove(&owner.uid);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn item(name: &str, owner: Option<&str>) -> Item {
        let owners = owner.map(|o| json!([{"apiVersion": "v1", "kind": "X", "name": o, "uid": o}]));
        Item::read(0, &json!({"metadata": {"name": name, "namespace": "n", "uid": name, "ownerReferences": owners}}))
            .unwrap()
    }

    #[test]
    fn children_of_what_goes_are_looked_at() {
        let mut g = Graph::new(1);
        g.listing(0);
        g.put(item("a", None));
        g.put(item("b", Some("a")));
        g.listed(0);
        assert!(g.is_complete());
        g.look.clear();
        g.remove(0, &ObjectKey::new("n", "a"));
        assert_eq!(g.look, HashSet::from(["b".into()]));
        g.look.clear();
        g.listing(0);
        g.listed(0);
        assert!(g.items.is_empty() && g.look.contains("a"), "the owner that may wait is named");
        assert!(g.children.is_empty());
    }
}
