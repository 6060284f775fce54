//! What every namespace is born with: the `default` ServiceAccount and the ConfigMap `kube-root-ca.crt`, by which pods
//! know the API server.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use cluster::{Error, write::PatchKind};
use model::{Kind, ObjectKey};
use serde_json::json;

use crate::{
    hand::Hand,
    queue,
    world::{Table, World, changed},
};

const ACCOUNT: &str = "default";
const ROOT: &str = "kube-root-ca.crt";

pub struct Controller {
    pub ca_pem: String,
}

impl queue::Controller for Controller {
    const NAME: &'static str = "serviceaccount-controller";
    /// A namespace's name.
    type Key = Arc<str>;

    fn is_ready(&self, world: &World) -> bool {
        world.snapshot.is_listed(Kind::Namespace) && world.accounts.listed && world.roots.listed
    }

    fn affected(&self, old: &World, new: &World, keys: &mut BTreeSet<Arc<str>>) {
        changed(&old.snapshot.namespaces, &new.snapshot.namespaces, |key, _, _| {
            keys.insert(key.name.clone());
        });
        changed(&old.accounts.map, &new.accounts.map, |key, _, _| {
            keys.insert(key.namespace.clone());
        });
        changed(&old.roots.map, &new.roots.map, |key, _, _| {
            keys.insert(key.namespace.clone());
        });
    }

    async fn reconcile(&self, world: &World, namespace: &Arc<str>, hand: &Hand<'_>) -> Result<Option<Duration>, Error> {
        if !world.takes_objects(namespace) {
            return Ok(None);
        }
        let known = |r: Result<(), Error>| match r {
            Err(e) if e.is_already_exists() => Ok(()),
            r => r,
        };
        if !world.accounts.map.contains_key(&ObjectKey::new(namespace.clone(), ACCOUNT)) {
            let account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
                "metadata": {"name": ACCOUNT, "namespace": &**namespace}});
            known(hand.create(Table::Accounts, namespace, &account).await.map(drop))?;
        }
        if self.ca_pem.is_empty() {
            return Ok(None);
        }
        let key = ObjectKey::new(namespace.clone(), ROOT);
        match world.roots.map.get(&key) {
            None => {
                let map = json!({"apiVersion": "v1", "kind": "ConfigMap",
                    "metadata": {"name": ROOT, "namespace": &**namespace,
                        "annotations": {"kubernetes.io/description": "The certificate authority of this cluster: by it pods verify the API server."}},
                    "data": {"ca.crt": self.ca_pem}});
                known(hand.create(Table::Roots, namespace, &map).await.map(drop))?;
            }
            Some(map) if map.ca.as_deref() != Some(&*self.ca_pem) => {
                let patch = json!({"data": {"ca.crt": self.ca_pem}});
                hand.patch(Table::Roots, &key, "", PatchKind::Merge, &patch).await?;
            }
            Some(_) => (),
        }
        Ok(None)
    }
}
