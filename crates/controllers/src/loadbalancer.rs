//! Addresses for Services of type LoadBalancer ([`model::pool`]), written to their status. One decision covers them all,
//! because they share the pools.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use cluster::{Error, event::Recorder, write::PatchKind};
use model::{
    Kind, ObjectKey, Service,
    pool::{self, Allocation, Pool},
};
use serde_json::json;

use crate::{
    about,
    hand::Hand,
    queue,
    world::{Table, World, changed},
};

pub struct Controller {
    pools: Vec<Pool>,
    events: Recorder,
    /// What a Service was last told, so that it is told once.
    told: Mutex<HashMap<ObjectKey, String>>,
}

impl Controller {
    pub fn new(pools: Vec<Pool>, events: Recorder) -> Self {
        Self { pools, events, told: Mutex::default() }
    }

    /// True when this is news to the Service.
    fn tell(&self, key: &ObjectKey, text: &str) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.insert(key.clone(), text.into()).as_deref() != Some(text)
    }
}

impl queue::Controller for Controller {
    const NAME: &'static str = "portolan-loadbalancer";
    type Key = ();

    fn is_ready(&self, world: &World) -> bool {
        world.snapshot.is_listed(Kind::Service)
    }

    fn affected(&self, old: &World, new: &World, keys: &mut BTreeSet<()>) {
        changed(&old.snapshot.services, &new.snapshot.services, |key, before, after| {
            let lb = |s: Option<&std::sync::Arc<Service>>| s.is_some_and(|s| pool::ours(s).is_some());
            if lb(before) || lb(after) {
                keys.insert(());
            }
            if after.is_none() {
                self.told.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
            }
        });
    }

    async fn reconcile(&self, world: &World, (): &(), hand: &Hand<'_>) -> Result<Option<Duration>, Error> {
        let services = &world.snapshot.services;
        let mut result = Ok(None);
        for (key, outcome) in pool::assign(services.values(), &self.pools) {
            let Some((service, lb)) = services.get(&key).and_then(|s| Some((s, pool::ours(s)?))) else { continue };
            let me = about("v1", "Service", &service.meta);
            let have: Vec<_> = lb.ingress.iter().map(|i| i.ip).collect();
            let want: Vec<_> = outcome.iter().flatten().map(|a| a.ip).collect();
            if have != want {
                let ingress: Vec<_> = want.iter().map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect();
                let status = if ingress.is_empty() { json!({"ingress": null}) } else { json!({"ingress": ingress}) };
                let patch = json!({"status": {"loadBalancer": status}});
                match hand.patch(Table::Model(Kind::Service), &key, "status", PatchKind::Merge, &patch).await {
                    Ok(()) => (),
                    Err(e) if e.is_not_found() => continue,
                    Err(e) => {
                        result = Err(e); // the others still get theirs
                        continue;
                    }
                }
            }
            match outcome {
                Ok(list) if have != want => {
                    let text = shown(&list);
                    self.tell(&key, &text);
                    self.events.normal(&me, "AddressAllocated", text);
                }
                Ok(_) => (),
                Err(refusal) => {
                    let text = refusal.to_string();
                    if self.tell(&key, &text) {
                        self.events.warning(&me, "AllocationFailed", format!("No address for this Service: {text}"));
                    }
                }
            }
        }
        result
    }
}

fn shown(list: &[Allocation]) -> String {
    let parts: Vec<_> = list.iter().map(|a| format!("Assigned {} pool={}", a.ip, a.pool)).collect();
    parts.join("; ")
}
