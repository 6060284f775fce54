//! The one diff: what has to be created, updated and deleted so that what is there becomes what is wanted.

use std::collections::BTreeMap;

use crate::object::ObjectKey;

/// Writes that make a set of API objects equal to what is wanted. Order within a list is the order to write in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes<T> {
    pub create: Vec<T>,
    pub update: Vec<T>,
    pub delete: Vec<ObjectKey>,
}

impl<T> Default for Changes<T> {
    fn default() -> Self {
        Self { create: Vec::new(), update: Vec::new(), delete: Vec::new() }
    }
}

impl<T> Changes<T> {
    pub fn is_empty(&self) -> bool {
        self.create.is_empty() && self.update.is_empty() && self.delete.is_empty()
    }
}

/// Differences between two sorted maps: an entry of `want` that is missing is created, one that differs is updated,
/// and what only `have` holds is deleted.
pub fn between<V: Clone + PartialEq>(have: &BTreeMap<ObjectKey, V>, want: &BTreeMap<ObjectKey, V>) -> Changes<V> {
    let mut changes = Changes::default();
    for (key, wanted) in want {
        match have.get(key) {
            None => changes.create.push(wanted.clone()),
            Some(there) if there != wanted => changes.update.push(wanted.clone()),
            Some(_) => (),
        }
    }
    changes.delete = have.keys().filter(|k| !want.contains_key(k)).cloned().collect();
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn between_names_each_difference_once() {
        let map = |entries: &[(&str, u8)]| entries.iter().map(|(k, v)| (ObjectKey::new("n", *k), *v)).collect();
        let changes = between(&map(&[("a", 1), ("b", 2), ("c", 3)]), &map(&[("b", 2), ("c", 4), ("d", 5)]));
        assert_eq!(changes, Changes { create: vec![5], update: vec![4], delete: vec![ObjectKey::new("n", "a")] });
        assert!(between(&map(&[("a", 1)]), &map(&[("a", 1)])).is_empty());
    }
}
