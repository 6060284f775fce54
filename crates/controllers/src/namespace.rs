//! Namespaces on their way out: everything in them goes first, then the finalizer that held them.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use cluster::{Error, discovery, resource};
use model::{Kind, ObjectKey};

use crate::{
    hand::Hand,
    queue,
    world::{World, changed},
};

/// The finalizer in `spec.finalizers` that is this controller's.
const FINALIZER: &str = "kubernetes";
const FIRST_LOOK: Duration = Duration::from_millis(20);
const LAST_LOOK: Duration = Duration::from_secs(2);

#[derive(Default)]
pub struct Controller {
    /// How long the last wait for contents to go was: pods take their grace period.
    waited: Mutex<HashMap<Arc<str>, Duration>>,
}

impl queue::Controller for Controller {
    const NAME: &'static str = "namespace-controller";
    type Key = Arc<str>;

    fn is_ready(&self, world: &World) -> bool {
        world.snapshot.is_listed(Kind::Namespace)
    }

    fn affected(&self, old: &World, new: &World, keys: &mut BTreeSet<Arc<str>>) {
        changed(&old.snapshot.namespaces, &new.snapshot.namespaces, |key, _, after| {
            if after.is_some_and(|n| n.meta.deleting) {
                keys.insert(key.name.clone());
            }
        });
        // The last pod to go is what a namespace usually waits for.
        changed(&old.snapshot.pods, &new.snapshot.pods, |key, _, after| {
            if after.is_none() && !new.takes_objects(&key.namespace) {
                keys.insert(key.namespace.clone());
            }
        });
    }

    async fn reconcile(&self, world: &World, name: &Arc<str>, hand: &Hand<'_>) -> Result<Option<Duration>, Error> {
        let key = ObjectKey::new("", name.clone());
        if !world.snapshot.namespaces.get(&key).is_some_and(|n| n.meta.deleting && n.finalizers) {
            self.waited.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
            return Ok(None);
        }
        let writer = hand.writer();
        let kinds = discovery::resources(writer.client(), &["list", "deletecollection"]).await?;
        let mut empty = true;
        for kind in kinds.iter().filter(|k| k.namespaced) {
            if !writer.is_empty(kind, name).await? {
                writer.delete_collection(kind, name).await?;
                empty &= writer.is_empty(kind, name).await?;
            }
        }
        if !empty {
            let mut waited = self.waited.lock().unwrap_or_else(PoisonError::into_inner);
            let wait = waited.get(name).map_or(FIRST_LOOK, |w| (*w * 2).min(LAST_LOOK));
            waited.insert(name.clone(), wait);
            return Ok(Some(wait));
        }
        let mut namespace = match writer.get(&resource::NAMESPACE, &key).await {
            Err(e) if e.is_not_found() => return Ok(None),
            r => r?,
        };
        if let Some(list) = namespace["spec"]["finalizers"].as_array_mut() {
            list.retain(|f| f != FINALIZER);
        }
        match writer.update(&resource::NAMESPACE, "finalize", &namespace).await {
            Err(e) if e.is_not_found() => Ok(None),
            r => r.map(|_| None),
        }
    }
}
