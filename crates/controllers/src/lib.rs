//! API to API: the controllers a cluster needs so that Services have something to balance. Each is a pure function of
//! `model` and a thin loop ([`queue`]) that asks it again whenever something it reads has changed. They never call each
//! other; they meet in the API.

mod account;
mod deployment;
mod endpoints;
mod endpointslice;
mod garbage;
mod hand;
mod loadbalancer;
mod mirroring;
mod namespace;
mod node;
mod queue;
mod replicaset;
mod schedule;
mod statefulset;
mod world;

use std::sync::Arc;

use cluster::event::{ObjectReference, Recorder};
use model::{Meta, Snapshot, pool::Pool};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

pub use world::World;

/// What the controllers are told beside the API.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Addresses for Services of type LoadBalancer. Without any, such Services wait.
    pub pools: Vec<Pool>,
    /// The certificate of the cluster's CA in PEM, published as `kube-root-ca.crt` in every namespace.
    pub ca_pem: String,
}

/// Starts every controller. They stop when `stop` is cancelled or the set is dropped.
pub fn spawn(
    client: kube::Client,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    config: Config,
    stop: CancellationToken,
) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let world = world::spawn(&client, snapshot, &mut tasks);
    let events = |component| Recorder::new(client.clone(), component, "");
    let mut start = Start { tasks: &mut tasks, client: client.clone(), world, stop: stop.clone() };
    start.run(deployment::Controller { events: events("deployment-controller") });
    start.run(replicaset::Controller { events: events("replicaset-controller") });
    start.run(statefulset::Controller { events: events("statefulset-controller") });
    start.run(schedule::Controller::new(events("default-scheduler")));
    start.run(endpointslice::Controller);
    start.run(endpoints::Controller::default());
    start.run(mirroring::Controller);
    start.run(loadbalancer::Controller::new(config.pools, events("portolan-loadbalancer")));
    start.run(namespace::Controller::default());
    start.run(account::Controller { ca_pem: config.ca_pem });
    start.run(node::Controller { events: events("node-controller"), state: node::State::default() });
    let garbage = garbage::run(client);
    tasks.spawn(async move {
        tokio::select! {
            () = garbage => (),
            () = stop.cancelled() => (),
        }
    });
    tasks
}

struct Start<'a> {
    tasks: &'a mut JoinSet<()>,
    client: kube::Client,
    world: watch::Receiver<Arc<World>>,
    stop: CancellationToken,
}

impl Start<'_> {
    fn run<C: queue::Controller>(&mut self, controller: C) {
        let (client, world, stop) = (self.client.clone(), self.world.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                () = queue::run(controller, client, world) => (),
                () = stop.cancelled() => (),
            }
        });
    }
}

/// What an Event about a parsed object refers to.
fn about(api_version: &str, kind: &str, meta: &Meta) -> ObjectReference {
    ObjectReference {
        api_version: api_version.into(),
        kind: kind.into(),
        namespace: meta.key.namespace.to_string(),
        name: meta.key.name.to_string(),
        uid: meta.uid.to_string(),
        field_path: String::new(),
    }
}
