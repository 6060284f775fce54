//! Why a Service works or not, in one place: Events, conditions, warnings and `why` all say what is found here. It looks
//! only at the snapshot, so that it never says anything but what the other roles acted on.

use std::{collections::BTreeMap, fmt, sync::Arc};

use crate::{
    object::{Addressing, Pod, Service, selects},
    slices,
    snapshot::{ServiceKey, Snapshot},
};

/// Pods named in one finding.
const NAMED: usize = 3;

/// One thing to know about a Service's endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    NoService(ServiceKey),
    /// An alias: the name behind it.
    Alias(Arc<str>),
    /// No selector, and nobody has written endpoints.
    NobodyWrites,
    /// The selector matches nothing; which labels come near, with the number of pods that carry them.
    NoMatch {
        selector: String,
        near: Vec<(String, usize)>,
    },
    /// Pods are selected but not ready: how many of how many, and why, for the first few.
    NotReady {
        count: usize,
        of: usize,
        pods: Vec<(Arc<str>, Arc<str>)>,
    },
    /// Pods have no container port of the name a `targetPort` asks for.
    NoSuchPort {
        port: Arc<str>,
        count: usize,
        of: usize,
    },
    /// Every pod is a ready endpoint, or an endpoint somebody wrote.
    Ready {
        count: usize,
    },
}

impl Finding {
    /// The Service cannot work, or not whole, because of it.
    pub fn is_problem(&self) -> bool {
        !matches!(self, Self::Ready { .. } | Self::Alias(_))
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pods = |n: usize| if n == 1 { "1 pod".to_string() } else { format!("{n} pods") };
        match self {
            Self::NoService(key) => write!(f, "there is no Service {key}"),
            Self::Alias(name) => {
                write!(f, "it is an alias of {name}: DNS answers with that name, nothing is load-balanced")
            }
            Self::NobodyWrites => f.write_str(
                "it has no selector and nobody has written endpoints: add spec.selector, or create an EndpointSlice",
            ),
            Self::NoMatch { selector, near } => {
                write!(f, "selector {selector} matches 0 pods")?;
                for (label, n) in near {
                    write!(f, "; {} {label}", if *n == 1 { "1 pod has".into() } else { format!("{n} pods have") })?;
                }
                Ok(())
            }
            Self::NotReady { count, of, pods: named } => {
                write!(f, "{count} of {} not ready", pods(*of))?;
                for (i, (name, reason)) in named.iter().enumerate() {
                    let reason = if reason.is_empty() { "no reason given" } else { reason };
                    write!(f, "{} {name} ({reason})", if i == 0 { ":" } else { "," })?;
                }
                if *count > named.len() { f.write_str(", ...") } else { Ok(()) }
            }
            Self::NoSuchPort { port, count, of } => {
                write!(
                    f,
                    "{count} of {} have no container port named {port:?}: targetPort finds nothing there",
                    pods(*of)
                )
            }
            Self::Ready { count } => write!(f, "{count} ready {}", if *count == 1 { "endpoint" } else { "endpoints" }),
        }
    }
}

/// What there is to say about the endpoints of a Service, worst first. Never empty.
pub fn endpoints(snapshot: &Snapshot, key: &ServiceKey) -> Vec<Finding> {
    let Some(service) = snapshot.services.get(key) else { return vec![Finding::NoService(key.clone())] };
    if let Addressing::ExternalName(name) = &service.addressing {
        return vec![Finding::Alias(name.clone())];
    }
    let Some(selector) = &service.selector else {
        let count = snapshot.slices_of(key).iter().flat_map(|s| &s.endpoints).filter(|e| e.ready).count();
        return vec![if count == 0 { Finding::NobodyWrites } else { Finding::Ready { count } }];
    };
    let selected: Vec<&Arc<Pod>> = snapshot
        .pods_in(&key.namespace)
        .filter(|p| selects(selector, &p.meta.labels) && !p.terminal() && !p.meta.deleting)
        .collect();
    if selected.is_empty() {
        return vec![no_match(snapshot, service)];
    }
    let mut findings = Vec::new();
    let serves = |p: &Pod| p.ready || service.publish_not_ready;
    let waiting: Vec<_> = selected.iter().filter(|p| !serves(p)).collect();
    if !waiting.is_empty() {
        let pods = waiting.iter().take(NAMED).map(|p| (p.meta.key.name.clone(), p.reason.clone())).collect();
        findings.push(Finding::NotReady { count: waiting.len(), of: selected.len(), pods });
    }
    for port in &service.ports {
        let without = selected.iter().filter(|p| slices::resolve(port, p).is_none()).count();
        if let (true, crate::object::TargetPort::Name(name)) = (without > 0, &port.target) {
            findings.push(Finding::NoSuchPort { port: name.clone(), count: without, of: selected.len() });
        }
    }
    let ready = selected.len() - waiting.len();
    if ready > 0 {
        findings.push(Finding::Ready { count: ready });
    }
    findings
}

fn no_match(snapshot: &Snapshot, service: &Service) -> Finding {
    let selector = service.selector.clone().unwrap_or_default();
    let text: Vec<_> = selector.iter().map(|(k, v)| format!("{k}={v}")).collect();
    // Pods with the same label keys and other values are what a typing mistake leaves.
    let mut near: BTreeMap<String, usize> = BTreeMap::new();
    for pod in snapshot.pods_in(&service.meta.key.namespace) {
        for (k, wanted) in &selector {
            if let Some(v) = pod.meta.labels.get(k).filter(|v| *v != wanted) {
                *near.entry(format!("{k}={v}")).or_default() += 1;
            }
        }
    }
    let mut near: Vec<_> = near.into_iter().collect();
    near.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    near.truncate(NAMED);
    Finding::NoMatch { selector: text.join(","), near }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::parse;

    fn snapshot(service: &Value, pods: &[Value]) -> (Snapshot, ServiceKey) {
        let mut s = Snapshot::default();
        let svc = parse::service(service).0.unwrap();
        let key = svc.meta.key.clone();
        s.services.insert(key.clone(), Arc::new(svc));
        for p in pods {
            let pod = parse::pod(p).0.unwrap();
            s.pods.insert(pod.meta.key.clone(), Arc::new(pod));
        }
        (s, key)
    }

    fn svc() -> Value {
        json!({"metadata": {"name": "x", "namespace": "default"}, "spec": {"clusterIP": "10.96.0.5", "selector": {"app": "web"},
            "ports": [{"port": 80, "targetPort": "http"}]}})
    }

    fn pod(name: &str, app: &str, status: &Value) -> Value {
        json!({"metadata": {"name": name, "namespace": "default", "labels": {"app": app}}, "spec": {}, "status": status})
    }

    fn texts(s: &(Snapshot, ServiceKey)) -> Vec<String> {
        endpoints(&s.0, &s.1).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn seed_171_a_selector_that_misses_names_the_near_misses() {
        let pods: Vec<_> = (0..3).map(|i| pod(&format!("p{i}"), "web-app", &json!({}))).collect();
        assert_eq!(texts(&snapshot(&svc(), &pods)), ["selector app=web matches 0 pods; 3 pods have app=web-app"]);
    }

    #[test]
    fn unready_pods_say_why() {
        let waiting = json!({"containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff"}}}]});
        assert_eq!(
            texts(&snapshot(&svc(), &[pod("a", "web", &waiting)])),
            [
                "1 of 1 pod not ready: a (ImagePullBackOff)",
                "1 of 1 pod have no container port named \"http\": targetPort finds nothing there",
            ]
        );
    }
}
