//! Which slot of a frontend holds which endpoint. Slots stay put when others come and go, so that a change is a few
//! elements and a remembered client keeps its endpoint. Any assignment is right; a stable one is cheap.

use model::route::Backend;

/// Puts every wanted value (sorted) into one of as many slots, leaving those that may stay where they are.
/// `have` are the slots there are now, in any order. The result is indexed by slot.
pub fn assign<T: Ord + Copy>(have: impl IntoIterator<Item = (u16, T)>, wanted: &[T]) -> Vec<T> {
    let mut slots: Vec<Option<T>> = vec![None; wanted.len()];
    let mut placed = vec![false; wanted.len()];
    for (slot, backend) in have {
        if let (Some(free), Ok(i)) = (slots.get_mut(usize::from(slot)), wanted.binary_search(&backend))
            && free.is_none()
            && !placed[i]
        {
            *free = Some(backend);
            placed[i] = true;
        }
    }
    let mut rest = wanted.iter().zip(&placed).filter(|(_, placed)| !**placed).map(|(b, _)| *b);
    slots.into_iter().filter_map(|s| s.or_else(|| rest.next())).collect()
}

/// Gives every wanted backend a number of its own that it keeps for as long as it is wanted. A number that became
/// free is used again as late as possible: clients remembered under it are to spread over all, not to follow one.
pub fn number(have: impl IntoIterator<Item = (u16, Backend)>, wanted: &[Backend]) -> Vec<(u16, Backend)> {
    let mut out: Vec<(u16, Backend)> = Vec::with_capacity(wanted.len());
    let mut known = vec![false; wanted.len()];
    let mut next = 0u16;
    let mut used = std::collections::BTreeSet::new();
    for (id, backend) in have {
        next = next.max(id.wrapping_add(1));
        if let Ok(i) = wanted.binary_search(&backend)
            && !known[i]
            && used.insert(id)
        {
            known[i] = true;
            out.push((id, backend));
        }
    }
    for (backend, _) in wanted.iter().zip(&known).filter(|(_, known)| !**known).take(usize::from(u16::MAX)) {
        while !used.insert(next) {
            next = next.wrapping_add(1);
        }
        out.push((next, *backend));
    }
    out.sort_unstable();
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn backend(n: u8) -> Backend {
        Backend { ip: [10, 0, 0, n].into(), port: 80 }
    }

    proptest! {
        #[test]
        fn every_wanted_backend_has_one_slot_and_few_move(
            before in prop::collection::btree_set(0u8..30, 0..20), after in prop::collection::btree_set(0u8..30, 0..20),
        ) {
            let list = |set: &BTreeSet<u8>| set.iter().map(|n| backend(*n)).collect::<Vec<_>>();
            let old = assign([], &list(&before));
            let have = || old.iter().enumerate().map(|(i, b)| (i as u16, *b));
            let new = assign(have(), &list(&after));
            let mut sorted = new.clone();
            sorted.sort();
            prop_assert_eq!(&sorted, &list(&after));
            let moved = new.iter().zip(&old).filter(|(a, b)| a != b).count();
            prop_assert!(moved <= before.difference(&after).count(), "only a slot that was vacated changes");

            let ids = number(have(), &list(&after));
            prop_assert_eq!(ids.iter().map(|(_, b)| *b).collect::<BTreeSet<_>>(), list(&after).into_iter().collect());
            prop_assert_eq!(ids.iter().map(|(i, _)| *i).collect::<BTreeSet<_>>().len(), after.len());
            for (id, b) in have() {
                let now = ids.iter().find(|(i, _)| *i == id).map(|(_, b)| *b);
                prop_assert!(now == Some(b) || !list(&after).contains(&b), "a number is never given away from a living backend");
            }
        }
    }
}
