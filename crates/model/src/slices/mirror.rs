//! Hand-written Endpoints of a Service without a selector, copied into EndpointSlices (KEP-752 mirroring), so that one
//! kind tells every reader where connections go.

use std::{net::IpAddr, sync::Arc};

use serde_json::Value;

use super::{Arrangement, Groups, SliceSpec, address_type, endpoints, labels};
use crate::{
    diff::Changes,
    object::{Endpoint, EndpointPort, EndpointSlice, IpFamily, ObjectKey, Protocol, Service, unusable_endpoint},
};

/// The value of [`super::MANAGED_BY`] on mirrored slices.
pub const CONTROLLER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";

/// Writes that make the mirrored slices of one Service name right. Without a Service, with a selector, or when the
/// Endpoints ask not to be mirrored, there are to be none. An ExternalName is not load-balanced, so it has none either.
pub fn reconcile(
    service: Option<&Service>,
    source: Option<&Value>,
    existing: &[Arc<EndpointSlice>],
) -> Changes<SliceSpec> {
    let ours: Vec<_> =
        existing.iter().filter(|s| s.managed_by.as_deref() == Some(CONTROLLER) && !s.meta.deleting).cloned().collect();
    let wanted = service
        .filter(|s| s.selector.is_none() && !matches!(s.addressing, crate::object::Addressing::ExternalName(_)))
        .zip(source.filter(|s| mirrored(s)));
    let Some((service, source)) = wanted else {
        return Changes { delete: ours.iter().map(|s| s.meta.key.clone()).collect(), ..Changes::default() };
    };
    let mut groups = Groups::new();
    for subset in source["subsets"].as_array().into_iter().flatten() {
        let mut ports: Vec<_> = subset["ports"].as_array().into_iter().flatten().filter_map(port).collect();
        ports.sort();
        for (field, ready) in [("addresses", true), ("notReadyAddresses", false)] {
            for a in subset[field].as_array().into_iter().flatten().take(endpoints::MAX_ADDRESSES) {
                let Some(endpoint) = endpoint(a, ready) else { continue };
                let family = address_type(IpFamily::of(&endpoint.addresses[0]));
                groups.entry((family, ports.clone())).or_default().push(endpoint);
            }
        }
    }
    let families = groups.keys().map(|(f, _)| *f).collect();
    let labels = labels(service, CONTROLLER);
    let service = &service.meta.key;
    Arrangement { service, labels, changes: Changes::default() }.arrange(groups, &families, ours)
}

fn mirrored(source: &Value) -> bool {
    let m = &source["metadata"];
    m["labels"][SKIP] != "true"
        && !endpoints::ours(source)
        && m["annotations"][LEADER].is_null()
        && m["deletionTimestamp"].is_null()
}

fn port(p: &Value) -> Option<EndpointPort> {
    let protocol = match p["protocol"].as_str() {
        None | Some("") => Protocol::Tcp,
        Some(text) => text.parse().ok()?,
    };
    Some(EndpointPort {
        name: p["name"].as_str().unwrap_or_default().into(),
        protocol,
        port: Some(p["port"].as_u64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0)?),
        app_protocol: p["appProtocol"].as_str().map(Into::into),
    })
}

fn endpoint(a: &Value, ready: bool) -> Option<Endpoint> {
    let ip: IpAddr = a["ip"].as_str()?.parse::<IpAddr>().ok()?.to_canonical();
    if unusable_endpoint(&ip) {
        return None;
    }
    let text = |v: &Value| v.as_str().filter(|s| !s.is_empty()).map(Arc::<str>::from);
    let target = &a["targetRef"];
    let is_pod = target["kind"] == "Pod";
    Some(Endpoint {
        addresses: vec![ip],
        ready,
        serving: ready,
        terminating: false,
        hostname: text(&a["hostname"]),
        node: text(&a["nodeName"]),
        zone: None,
        hint_zones: Vec::new(),
        hint_nodes: Vec::new(),
        pod: is_pod.then(|| {
            let s = |v: &Value| v.as_str().unwrap_or_default().to_string();
            ObjectKey::new(s(&target["namespace"]), s(&target["name"]))
        }),
        pod_uid: if is_pod { text(&target["uid"]) } else { None },
    })
}
