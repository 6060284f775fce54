//! A changed `spec.replicas` in the middle of a rollout: every ReplicaSet grows or shrinks by its share, so that the
//! mixture of versions, and with it the risk, stays what it was.

use super::{DESIRED, MAX, Set, Step, Strategy};

impl Step<'_> {
    /// `spec.replicas` is not what the ReplicaSets were last sized for.
    pub(super) fn scaling_event(&self) -> bool {
        let d = self.deployment;
        self.old.iter().chain(&self.new).filter(|s| s.replicas > 0).any(|s| {
            s.rs.meta.annotations.get(DESIRED).and_then(|n| n.parse::<u32>().ok()).is_some_and(|n| n != d.replicas)
        })
    }

    pub(super) fn scale_proportionally(&mut self) {
        let d = self.deployment;
        let active: Vec<usize> = (0..self.old.len()).filter(|i| self.old[*i].replicas > 0).collect();
        let new_active = self.new.as_ref().is_some_and(|n| n.replicas > 0);
        match (active.as_slice(), new_active) {
            ([], _) if self.new.is_some() => return self.scale_new(d.replicas),
            ([], _) if !self.old.is_empty() => return self.scale_old(self.old.len() - 1, d.replicas),
            ([only], false) => return self.scale_old(*only, d.replicas),
            _ => (),
        }
        let saturated = self.new.as_ref().is_some_and(|n| {
            n.replicas == d.replicas
                && n.rs.meta.annotations.get(DESIRED).map(AsRef::as_ref) == Some(d.replicas.to_string().as_str())
                && n.rs.status.available == d.replicas
        });
        if saturated {
            for i in active {
                self.scale_old(i, 0);
            }
            return;
        }
        if !matches!(d.strategy, Strategy::RollingUpdate { .. }) {
            return;
        }
        self.share(&active, new_active);
    }

    fn share(&mut self, active: &[usize], new_active: bool) {
        let d = self.deployment;
        // `None` stands for the new set.
        let mut order: Vec<Option<usize>> = active.iter().map(|i| Some(*i)).collect();
        if new_active {
            order.push(None);
        }
        let total: i64 = order.iter().filter_map(|i| self.at(*i)).map(|s| i64::from(s.replicas)).sum();
        let allowed = if d.replicas > 0 { i64::from(d.replicas + d.max_surge()) } else { 0 };
        let to_add = allowed - total;
        // Bigger ones first; among equals newer ones grow first and older ones shrink first.
        order.sort_by_key(|i| {
            let size = self.at(*i).map_or(0, |s| s.replicas);
            let age = i.map_or(i64::MAX, |i| i64::try_from(i).unwrap_or(i64::MAX));
            (std::cmp::Reverse(size), if to_add > 0 { -age } else { age })
        });
        let mut sizes = Vec::new();
        let mut added = 0;
        for i in &order {
            let Some(set) = self.at(*i) else { continue };
            let part = self.part(set, to_add, added);
            added += part;
            sizes.push(i64::from(set.replicas) + part);
        }
        if let Some(first) = sizes.first_mut() {
            *first = (*first + to_add - added).max(0);
        }
        for (i, size) in order.into_iter().zip(sizes) {
            let size = u32::try_from(size).unwrap_or(0);
            match i {
                Some(i) => self.resize_old(i, size),
                None => self.resize_new(size),
            }
        }
    }

    fn at(&self, i: Option<usize>) -> Option<&Set> {
        match i {
            Some(i) => self.old.get(i),
            None => self.new.as_ref(),
        }
    }

    /// The part of `to_add` that falls to one ReplicaSet, never past what is left of it.
    fn part(&self, set: &Set, to_add: i64, added: i64) -> i64 {
        let d = self.deployment;
        if set.replicas == 0 || to_add == 0 || to_add == added {
            return 0;
        }
        let has = i64::from(set.replicas);
        let share = if d.replicas == 0 {
            -has
        } else {
            let sized_for = set.rs.meta.annotations.get(MAX).and_then(|n| n.parse::<i64>().ok());
            let sized_for = sized_for.unwrap_or(i64::from(super::count(&d.status["replicas"]))).max(1);
            let scaled = has * i64::from(d.replicas + d.max_surge());
            (2 * scaled + sized_for) / (2 * sized_for) - has
        };
        let left = to_add - added;
        if to_add > 0 { share.min(left) } else { share.max(left) }
    }

    /// Also refreshes the annotations of sets whose size stays: they are now sized for the new number.
    fn resize_old(&mut self, i: usize, to: u32) {
        let (set, annotations) = (self.old[i].clone(), self.size_annotations());
        self.patch(&set, to, annotations);
        self.old[i].replicas = to;
    }

    fn resize_new(&mut self, to: u32) {
        if let Some(set) = self.new.clone() {
            let annotations = self.size_annotations();
            self.patch(&set, to, annotations);
            self.new = Some(Set { replicas: to, ..set });
        }
    }
}
