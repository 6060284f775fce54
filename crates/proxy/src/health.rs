//! `healthCheckNodePort`: tells an external load balancer whether this node has endpoints of a Service under
//! `externalTrafficPolicy: Local`. Path, status codes and JSON are kube-proxy's. Which sockets are open is
//! [`crate::listen`]'s affair.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::{
    Router,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use model::{
    Exposure, ServiceKey, Snapshot, TrafficPolicy,
    route::{HEADLESS_LABEL, SERVICE_PROXY_NAME},
};
use tokio::sync::watch;

/// What is answered at one port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub service: ServiceKey,
    /// Addresses of ready endpoints on this node.
    pub local: usize,
}

/// By port. Two Services on one port: the older has it.
pub type Checks = BTreeMap<u16, Check>;

pub fn checks(snapshot: &Snapshot, node: &str) -> Checks {
    let mut owners: BTreeMap<u16, (&str, &ServiceKey)> = BTreeMap::new();
    for service in snapshot.services.values() {
        let labels = &service.meta.labels;
        let foreign = labels.contains_key(SERVICE_PROXY_NAME) || labels.contains_key(HEADLESS_LABEL);
        let balanced = matches!(service.exposure, Exposure::LoadBalancer(_));
        if let Some(port) = service.health_check_node_port
            && service.external_policy == TrafficPolicy::Local
            && balanced
            && !foreign
        {
            let claim = (&*service.meta.creation_timestamp, &service.meta.key);
            let owner = owners.entry(port).or_insert(claim);
            *owner = (*owner).min(claim);
        }
    }
    let check = |service: &ServiceKey| {
        let endpoints = snapshot.slices_of(service).iter().flat_map(|s| &s.endpoints);
        let here = endpoints.filter(|e| e.ready && e.node.as_deref() == Some(node));
        let local: BTreeSet<_> = here.filter_map(|e| e.addresses.first()).collect();
        Check { service: service.clone(), local: local.len() }
    };
    owners.into_iter().map(|(port, (_, service))| (port, check(service))).collect()
}

/// What one port answers, to any request.
pub fn router(port: u16, checks: watch::Receiver<Arc<Checks>>, healthy: watch::Receiver<bool>) -> Router {
    Router::new().fallback(move || async move {
        match checks.borrow().get(&port) {
            Some(check) => answer(check, *healthy.borrow()),
            None => StatusCode::NOT_FOUND.into_response(),
        }
    })
}

fn answer(check: &Check, healthy: bool) -> Response {
    let status = if check.local > 0 && healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let (namespace, name, local) = (&check.service.namespace, &check.service.name, check.local);
    let headers = [
        ("content-type", "application/json".to_owned()),
        ("x-content-type-options", "nosniff".to_owned()),
        ("x-load-balancing-endpoint-weight", local.to_string()),
    ];
    // Names are DNS labels: nothing in them needs escaping.
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{namespace}\",\n\t\t\"name\": \"{name}\"\n\t}},\n\
         \t\"localEndpoints\": {local},\n\t\"serviceProxyHealthy\": {healthy}\n}}"
    );
    (status, headers, body).into_response()
}
