//! The log of a foreground `up`: what changed between two snapshots, in words.

use model::{Addressing, Exposure, PodPhase, Service, Snapshot};

fn endpoints(snapshot: &Snapshot, service: &Service) -> (usize, usize) {
    let all = snapshot.slices_of(&service.meta.key).iter().flat_map(|s| &s.endpoints);
    let (mut ready, mut known) = (0, 0);
    for endpoint in all {
        known += 1;
        ready += usize::from(endpoint.ready);
    }
    (ready, known)
}

fn describe(service: &Service) -> String {
    let ports = service.ports.iter().map(|p| format!("{}/{}", p.port, p.protocol)).collect::<Vec<_>>().join(", ");
    match &service.addressing {
        Addressing::ExternalName(to) => format!("is another name for {to}"),
        Addressing::Headless => "is headless".to_owned(),
        Addressing::ClusterIp(ips) => {
            let mut at: Vec<_> = ips.iter().map(ToString::to_string).collect();
            if let Exposure::LoadBalancer(lb) = &service.exposure {
                at.extend(lb.ingress.iter().map(|i| i.ip.to_string()));
            }
            let mut text = format!("listens at {} on {ports}", at.join(" and "));
            let node_ports: Vec<_> = service.ports.iter().filter_map(|p| p.node_port).map(|p| p.to_string()).collect();
            if !node_ports.is_empty() {
                text.push_str(&format!(", node port {}", node_ports.join(", ")));
            }
            text
        }
    }
}

/// One line a change, oldest kind first: Services, endpoints, pods, nodes.
pub fn lines(old: &Snapshot, new: &Snapshot) -> Vec<String> {
    let mut lines = Vec::new();
    for change in old.services.changes(&new.services, |a, b| a == b) {
        let key = change.key;
        match (change.old, change.new) {
            (_, None) => lines.push(format!("service {key} is gone")),
            (before, Some(now)) => {
                let words = describe(now);
                if before.is_none_or(|b| describe(b) != words) {
                    lines.push(format!("service {key} {words}"));
                }
            }
        }
    }
    for change in old.slices.changes(&new.slices, |a, b| a == b) {
        if let Some(service) = new.services.get(change.key) {
            let (ready, known) = endpoints(new, service);
            if endpoints(old, service) != (ready, known) {
                let rest = known - ready;
                let rest = if rest > 0 { format!(", {rest} not ready") } else { String::new() };
                let noun = if ready == 1 { "endpoint" } else { "endpoints" };
                lines.push(format!("service {} has {ready} {noun}{rest}", change.key));
            }
        }
    }
    for change in old.pods.changes(&new.pods, |a, b| a == b) {
        let key = change.key;
        match (change.old, change.new) {
            (_, None) => lines.push(format!("pod {key} is gone")),
            (None, Some(pod)) if !pod.ready => lines.push(format!("pod {key} is new")),
            (before, Some(pod)) => {
                let was = |f: &dyn Fn(&model::Pod) -> bool| before.is_some_and(|b| f(b));
                if pod.ready && !was(&|b| b.ready) {
                    let at = pod.ips.first().map(|ip| format!(" at {ip}")).unwrap_or_default();
                    lines.push(format!("pod {key} is ready{at}"));
                } else if pod.meta.deleting && !was(&|b| b.meta.deleting) {
                    lines.push(format!("pod {key} is terminating"));
                } else if pod.meta.deleting {
                    // Its end is told; the stages on the way are not news.
                } else if !pod.ready && was(&|b| b.ready) {
                    lines.push(format!("pod {key} is not ready any more{}", because(&pod.reason)));
                } else if pod.phase == PodPhase::Failed && !was(&|b| b.phase == PodPhase::Failed) {
                    lines.push(format!("pod {key} failed{}", because(&pod.reason)));
                } else if !pod.ready && !pod.reason.is_empty() && !was(&|b| b.reason == pod.reason) {
                    lines.push(format!("pod {key} is waiting{}", because(&pod.reason)));
                }
            }
        }
    }
    for change in old.nodes.changes(&new.nodes, |a, b| a.ready == b.ready) {
        match change.new {
            Some(node) if node.ready => lines.push(format!("node {} is ready", change.key)),
            Some(_) => lines.push(format!("node {} is not ready", change.key)),
            None => lines.push(format!("node {} is gone", change.key)),
        }
    }
    lines
}

fn because(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(": {reason}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overview::tests::{snapshot, web};

    #[test]
    fn changes_are_told_once_and_in_words() {
        let empty = Snapshot::default();
        let one = snapshot(&web(&["10.244.0.2"], &["10.244.0.3"]));
        assert_eq!(
            lines(&empty, &one),
            [
                "service default/web listens at 10.96.0.7 and 10.112.0.1 on 80/TCP, 443/TCP, node port 30080, 30443",
                "service default/web has 1 endpoint, 1 not ready",
            ]
        );
        let two = snapshot(&web(&["10.244.0.2", "10.244.0.3"], &[]));
        assert_eq!(lines(&one, &two), ["service default/web has 2 endpoints"]);
        assert_eq!(lines(&two, &two), [""; 0]);
        assert_eq!(lines(&two, &empty)[0], "service default/web is gone");
    }
}
