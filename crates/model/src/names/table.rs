//! A persistent hash table: a clone shares every bucket, a change copies one. Readers keep the old value for as long as
//! they like; lookups cost one hash and one short scan, whatever the size.

use std::{
    borrow::Borrow,
    hash::{Hash, Hasher},
    sync::Arc,
};

/// Mean entries in a bucket before the table doubles.
const LOAD: usize = 6;

type Bucket<K, V> = Arc<Vec<(u64, K, V)>>;

#[derive(Debug)]
pub(super) struct Table<K, V> {
    /// A power of two of them, or none.
    buckets: Arc<Vec<Bucket<K, V>>>,
    len: usize,
}

impl<K, V> Clone for Table<K, V> {
    fn clone(&self) -> Self {
        Self { buckets: self.buckets.clone(), len: self.len }
    }
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { buckets: Arc::default(), len: 0 }
    }
}

/// Multiply and rotate, eight octets at a time. What is in a table was let in by the API server and has unlike hashes by
/// mere chance; those who only ask cannot make a bucket longer, so nothing stronger is needed.
#[derive(Default)]
struct Quick(u64);

impl Quick {
    fn word(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl Hasher for Quick {
    fn write(&mut self, octets: &[u8]) {
        let (words, rest) = octets.as_chunks::<8>();
        for word in words {
            self.word(u64::from_le_bytes(*word));
        }
        if !rest.is_empty() {
            let mut last = [0; 8];
            last[..rest.len()].copy_from_slice(rest);
            self.word(u64::from_le_bytes(last) ^ (rest.len() as u64) << 56);
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.word(value.into());
    }

    fn write_u64(&mut self, value: u64) {
        self.word(value);
    }

    fn write_usize(&mut self, value: usize) {
        self.word(value as u64);
    }

    /// Buckets are chosen by the low bits, which a product mixes least.
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }
}

fn hash<Q: Hash + ?Sized>(key: &Q) -> u64 {
    let mut hasher = Quick::default();
    key.hash(&mut hasher);
    hasher.finish()
}

impl<K: Hash + Eq + Clone, V: Clone> Table<K, V> {
    fn bucket(&self, hash: u64) -> usize {
        hash as usize & (self.buckets.len() - 1)
    }

    pub fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        if self.buckets.is_empty() {
            return None;
        }
        let hash = hash(key);
        self.buckets[self.bucket(hash)].iter().find(|(h, k, _)| *h == hash && k.borrow() == key).map(|(_, _, v)| v)
    }

    pub fn insert(&mut self, key: K, value: V) {
        if self.len >= self.buckets.len() * LOAD {
            self.grow();
        }
        let hash = hash(&key);
        let at = self.bucket(hash);
        let bucket = Arc::make_mut(&mut Arc::make_mut(&mut self.buckets)[at]);
        match bucket.iter_mut().find(|(h, k, _)| *h == hash && *k == key) {
            Some(entry) => entry.2 = value,
            None => {
                bucket.push((hash, key, value));
                self.len += 1;
            }
        }
    }

    pub fn remove<Q>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        if self.get(key).is_none() {
            return;
        }
        let hash = hash(key);
        let at = self.bucket(hash);
        let bucket = Arc::make_mut(&mut Arc::make_mut(&mut self.buckets)[at]);
        bucket.retain(|(h, k, _)| *h != hash || k.borrow() != key);
        self.len -= 1;
    }

    fn grow(&mut self) {
        let size = (self.buckets.len() * 2).max(8);
        let mut buckets: Vec<Vec<(u64, K, V)>> = Vec::new();
        buckets.resize_with(size, Vec::new);
        for (h, k, v) in self.buckets.iter().flat_map(|b| b.iter()) {
            buckets[*h as usize & (size - 1)].push((*h, k.clone(), v.clone()));
        }
        self.buckets = Arc::new(buckets.into_iter().map(Arc::new).collect());
    }

    #[cfg(test)]
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.buckets.iter().flat_map(|b| b.iter().map(|(_, k, v)| (k, v)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        #[test]
        fn behaves_as_a_map(ops in prop::collection::vec((any::<bool>(), 0u16..400, any::<u8>()), 0..1000)) {
            let (mut table, mut model) = (Table::default(), HashMap::new());
            let mut earlier = (table.clone(), model.clone());
            for (i, (add, k, v)) in ops.into_iter().enumerate() {
                if add {
                    table.insert(k, v);
                    model.insert(k, v);
                } else {
                    table.remove(&k);
                    model.remove(&k);
                }
                prop_assert_eq!(table.get(&k), model.get(&k));
                if i == 300 {
                    earlier = (table.clone(), model.clone());
                }
            }
            for (t, m) in [(&table, &model), (&earlier.0, &earlier.1)] {
                prop_assert_eq!(t.len, m.len());
                prop_assert_eq!(t.iter().count(), m.len());
                prop_assert!(m.iter().all(|(k, v)| t.get(k) == Some(v)));
            }
        }
    }
}
