//! Reading the workload kinds. Templates are kept as they are: they are copied, not understood.

use std::sync::Arc;

use serde_json::Value;

use super::{Parsed, Strings, read::Reader};
use crate::workload::{
    IntOrPercent, Selector, count,
    deployment::{Deployment, Strategy},
    replicaset::{ReplicaSet, Status},
    statefulset::{StatefulSet, Update},
};

/// `spec.replicas`: 1 when it is not given.
fn replicas(spec: &Value) -> u32 {
    if spec["replicas"].is_null() { 1 } else { count(&spec["replicas"]) }
}

fn selector(r: &mut Reader<'_>, spec: &Value) -> Option<Selector> {
    let selector = Selector::parse(&spec["selector"]);
    if selector.is_none() {
        r.problem("spec.selector", "Invalid value: it selects nothing");
    }
    selector
}

pub fn replica_set(v: &Value) -> Parsed<ReplicaSet> {
    let mut strings = Strings::default();
    let mut r = Reader::new("ReplicaSet", v, &mut strings);
    let object = r.meta(v).map(|meta| ReplicaSet {
        meta,
        replicas: replicas(&v["spec"]),
        selector: selector(&mut r, &v["spec"]),
        min_ready_seconds: count(&v["spec"]["minReadySeconds"]),
        template: Arc::new(v["spec"]["template"].clone()),
        status: Status::parse(&v["status"]),
    });
    (object, r.problems)
}

pub fn deployment(v: &Value) -> Parsed<Deployment> {
    let mut strings = Strings::default();
    let mut r = Reader::new("Deployment", v, &mut strings);
    let (spec, status) = (&v["spec"], &v["status"]);
    let rolling = &spec["strategy"]["rollingUpdate"];
    let object = r.meta(v).map(|meta| Deployment {
        meta,
        replicas: replicas(spec),
        selector: selector(&mut r, spec),
        selector_object: Arc::new(spec["selector"].clone()),
        template: Arc::new(spec["template"].clone()),
        strategy: if spec["strategy"]["type"] == "Recreate" {
            Strategy::Recreate
        } else {
            Strategy::RollingUpdate {
                max_surge: IntOrPercent::parse(&rolling["maxSurge"], IntOrPercent::Percent(25)),
                max_unavailable: IntOrPercent::parse(&rolling["maxUnavailable"], IntOrPercent::Percent(25)),
            }
        },
        min_ready_seconds: count(&spec["minReadySeconds"]),
        paused: spec["paused"] == true,
        history_limit: spec["revisionHistoryLimit"].as_u64().map_or(10, |n| usize::try_from(n).unwrap_or(usize::MAX)),
        progress_deadline_seconds: spec["progressDeadlineSeconds"]
            .as_u64()
            .map_or(600, |n| u32::try_from(n).unwrap_or(u32::MAX)),
        status: status.clone(),
    });
    (object, r.problems)
}

pub fn stateful_set(v: &Value) -> Parsed<StatefulSet> {
    let mut strings = Strings::default();
    let mut r = Reader::new("StatefulSet", v, &mut strings);
    let (spec, status) = (&v["spec"], &v["status"]);
    let object = r.meta(v).map(|meta| StatefulSet {
        meta,
        replicas: replicas(spec),
        start: count(&spec["ordinals"]["start"]),
        selector: selector(&mut r, spec),
        template: Arc::new(spec["template"].clone()),
        service_name: spec["serviceName"].as_str().unwrap_or_default().into(),
        parallel: spec["podManagementPolicy"] == "Parallel",
        update: if spec["updateStrategy"]["type"] == "OnDelete" {
            Update::OnDelete
        } else {
            Update::Rolling { partition: count(&spec["updateStrategy"]["rollingUpdate"]["partition"]) }
        },
        min_ready_seconds: count(&spec["minReadySeconds"]),
        claims: spec["volumeClaimTemplates"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|c| c["metadata"]["name"].as_str().map(str::to_string))
            .collect(),
        status: status.clone(),
    });
    (object, r.problems)
}
