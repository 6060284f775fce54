//! A sorted map in two levels whose clone shares everything. A [`crate::Snapshot`] is replaced whole on every
//! change; with 10,000 Services that is only cheap if a change copies one small chunk and a diff skips what is shared.

use std::{cmp::Ordering, sync::Arc};

/// Entries in one chunk before it is split. A change copies one chunk and the list of chunks.
const CHUNK: usize = 64;

/// A persistent sorted map. `clone` is one reference count; `insert` and `remove` copy `O(len / 64 + 64)` pointers.
#[derive(Debug)]
pub struct Map<K, V> {
    chunks: Arc<Vec<Arc<Vec<(K, V)>>>>,
    len: usize,
}

impl<K, V> Clone for Map<K, V> {
    fn clone(&self) -> Self {
        Self { chunks: self.chunks.clone(), len: self.len }
    }
}

impl<K, V> Default for Map<K, V> {
    fn default() -> Self {
        Self { chunks: Arc::default(), len: 0 }
    }
}

/// One difference between two maps: the key with what was there and what is there now.
#[derive(Debug, PartialEq, Eq)]
pub struct Change<'a, K, V> {
    pub key: &'a K,
    pub old: Option<&'a V>,
    pub new: Option<&'a V>,
}

impl<K: Ord + Clone, V: Clone> Map<K, V> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn chunk_of(&self, key: &K) -> usize {
        self.chunks.partition_point(|c| c.first().is_some_and(|(k, _)| k <= key)).saturating_sub(1)
    }

    pub fn get(&self, key: &K) -> Option<&V> {
        let chunk = self.chunks.get(self.chunk_of(key))?;
        let at = chunk.binary_search_by(|(k, _)| k.cmp(key)).ok()?;
        Some(&chunk[at].1)
    }

    pub fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    /// Returns what the key held before.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let at = self.chunk_of(&key);
        let chunks = Arc::make_mut(&mut self.chunks);
        let Some(chunk) = chunks.get_mut(at) else {
            chunks.push(Arc::new(vec![(key, value)]));
            self.len = 1;
            return None;
        };
        let entries = Arc::make_mut(chunk);
        match entries.binary_search_by(|(k, _)| k.cmp(&key)) {
            Ok(i) => Some(std::mem::replace(&mut entries[i].1, value)),
            Err(i) => {
                entries.insert(i, (key, value));
                self.len += 1;
                if entries.len() > CHUNK {
                    let right = entries.split_off(CHUNK / 2);
                    chunks.insert(at + 1, Arc::new(right));
                }
                None
            }
        }
    }

    pub fn remove(&mut self, key: &K) -> Option<V> {
        let at = self.chunk_of(key);
        let i = self.chunks.get(at)?.binary_search_by(|(k, _)| k.cmp(key)).ok()?;
        let chunks = Arc::make_mut(&mut self.chunks);
        let entries = Arc::make_mut(&mut chunks[at]);
        let (_, value) = entries.remove(i);
        if entries.is_empty() {
            chunks.remove(at);
        }
        self.len -= 1;
        Some(value)
    }

    /// In key order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.chunks.iter().flat_map(|c| c.iter().map(|(k, v)| (k, v)))
    }

    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(k, _)| k)
    }

    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, v)| v)
    }

    /// In key order, from the first key for which `before` is false. `before` must be true for a prefix of the keys.
    pub fn iter_from(&self, before: impl Fn(&K) -> bool) -> impl Iterator<Item = (&K, &V)> {
        let at = self.chunks.partition_point(|c| c.last().is_some_and(|(k, _)| before(k)));
        let skip = self.chunks.get(at).map_or(0, |c| c.partition_point(|(k, _)| before(k)));
        self.chunks[at.min(self.chunks.len())..].iter().flat_map(|c| c.iter().map(|(k, v)| (k, v))).skip(skip)
    }

    /// True when both are the same value in memory, which implies that they are equal.
    pub fn ptr_eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.chunks, &other.chunks)
    }

    /// The entries in which `new` differs from `self`, in key order. `same` may say "equal" cheaply (`Arc::ptr_eq`);
    /// chunks that both maps share are not looked into.
    pub fn changes<'a>(&'a self, new: &'a Self, same: impl Fn(&V, &V) -> bool) -> Vec<Change<'a, K, V>> {
        let mut out = Vec::new();
        if self.ptr_eq(new) {
            return out;
        }
        let (a, b) = (&*self.chunks, &*new.chunks);
        // Positions: chunk and entry. Two cursors walk in key order and jump over a shared chunk when both stand at its start.
        let (mut ac, mut ai, mut bc, mut bi) = (0, 0, 0, 0);
        loop {
            if ai == 0 && bi == 0 && ac < a.len() && bc < b.len() && Arc::ptr_eq(&a[ac], &b[bc]) {
                ac += 1;
                bc += 1;
                continue;
            }
            let left = a.get(ac).map(|c| &c[ai]);
            let right = b.get(bc).map(|c| &c[bi]);
            let order = match (left, right) {
                (None, None) => return out,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((l, _)), Some((r, _))) => l.cmp(r),
            };
            match order {
                Ordering::Less => out.extend(left.map(|(k, v)| Change { key: k, old: Some(v), new: None })),
                Ordering::Greater => out.extend(right.map(|(k, v)| Change { key: k, old: None, new: Some(v) })),
                Ordering::Equal => {
                    if let (Some((k, v)), Some((_, w))) = (left, right)
                        && !same(v, w)
                    {
                        out.push(Change { key: k, old: Some(v), new: Some(w) });
                    }
                }
            }
            if order != Ordering::Greater {
                ai += 1;
                if ai == a[ac].len() {
                    (ac, ai) = (ac + 1, 0);
                }
            }
            if order != Ordering::Less {
                bi += 1;
                if bi == b[bc].len() {
                    (bc, bi) = (bc + 1, 0);
                }
            }
        }
    }
}

impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for Map<K, V> {
    fn from_iter<T: IntoIterator<Item = (K, V)>>(iter: T) -> Self {
        let mut map = Self::default();
        for (k, v) in iter {
            map.insert(k, v);
        }
        map
    }
}

impl<K: Ord + Clone, V: Clone + PartialEq> PartialEq for Map<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.changes(other, |a, b| a == b).is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn behaves_as_a_sorted_map(ops in prop::collection::vec((any::<bool>(), 0u16..600, any::<u8>()), 0..1500)) {
            let (mut map, mut model) = (Map::default(), BTreeMap::new());
            let mut snapshots = vec![(map.clone(), model.clone())];
            for (i, (add, k, v)) in ops.into_iter().enumerate() {
                if add {
                    prop_assert_eq!(map.insert(k, v), model.insert(k, v));
                } else {
                    prop_assert_eq!(map.remove(&k), model.remove(&k));
                }
                prop_assert_eq!(map.len(), model.len());
                prop_assert_eq!(map.get(&k), model.get(&k));
                if i % 200 == 0 {
                    snapshots.push((map.clone(), model.clone()));
                }
            }
            prop_assert!(map.iter().eq(model.iter()));
            prop_assert!(map.iter_from(|k| *k < 300).eq(model.range(300..)));
            for (old, old_model) in &snapshots {
                // A snapshot taken earlier never changes, and the diff rebuilds the present from it.
                prop_assert!(old.iter().eq(old_model.iter()));
                let mut rebuilt = old_model.clone();
                for c in old.changes(&map, |a, b| a == b) {
                    prop_assert_eq!(c.old, old_model.get(c.key));
                    match c.new {
                        Some(v) => rebuilt.insert(*c.key, *v),
                        None => rebuilt.remove(c.key),
                    };
                }
                prop_assert_eq!(&rebuilt, &model);
            }
        }
    }
}
