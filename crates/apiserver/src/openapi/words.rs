//! What `kubectl explain` says about the kinds this program is about. Fields that are not here have no description.

/// Type, field ("" for the type itself), text; sorted.
const WORDS: &[(&str, &str, &str)] = &[
    (
        "apps.v1.Deployment",
        "",
        "Keeps a number of equal pods running and replaces them step by step when their template changes.",
    ),
    ("apps.v1.DeploymentSpec", "minReadySeconds", "Seconds a pod must have been ready before it counts as available."),
    (
        "apps.v1.DeploymentSpec",
        "progressDeadlineSeconds",
        "Seconds without progress after which a rollout counts as failed. Default 600.",
    ),
    ("apps.v1.DeploymentSpec", "replicas", "How many pods to keep. Default 1."),
    ("apps.v1.DeploymentSpec", "revisionHistoryLimit", "Old ReplicaSets kept for a rollback. Default 10."),
    (
        "apps.v1.DeploymentSpec",
        "selector",
        "Labels of the pods that belong to it. They must be in the template and never change.",
    ),
    ("apps.v1.DeploymentSpec", "strategy", "How old pods are replaced by new ones."),
    ("apps.v1.DeploymentSpec", "template", "The pods to make."),
    ("apps.v1.StatefulSet", "", "Keeps pods with stable names, each with its own storage, started in order."),
    (
        "core.v1.ClientIPConfig",
        "timeoutSeconds",
        "Seconds a client without traffic stays with its endpoint: 1 to 86400, default 10800.",
    ),
    ("core.v1.Container", "", "A process of a pod, from an image."),
    ("core.v1.Container", "image", "Image to run, as NAME[:TAG][@DIGEST]."),
    ("core.v1.Container", "name", "Name of the container, unique in its pod."),
    ("core.v1.Container", "ports", "Ports the container listens on. A Service may refer to them by name."),
    ("core.v1.Container", "readinessProbe", "Check that decides whether the pod takes traffic of its Services."),
    (
        "core.v1.EndpointAddress",
        "ip",
        "Address of the endpoint. Loopback, link-local and multicast addresses are refused.",
    ),
    ("core.v1.EndpointSubset", "addresses", "Endpoints that are ready."),
    ("core.v1.EndpointSubset", "notReadyAddresses", "Endpoints that are not ready and get no traffic."),
    ("core.v1.EndpointSubset", "ports", "Ports of all addresses of the subset."),
    ("core.v1.Endpoints", "", "The addresses behind the Service of the same name. EndpointSlice is its successor."),
    ("core.v1.LoadBalancerIngress", "hostname", "Name the load balancer is reached by, when it has no address."),
    ("core.v1.LoadBalancerIngress", "ip", "Address the load balancer is reached by."),
    (
        "core.v1.LoadBalancerIngress",
        "ipMode",
        "VIP: nodes answer for the address themselves. Proxy: something in front of them does.",
    ),
    ("core.v1.Pod", "", "Containers that run together on one node and share its network address."),
    ("core.v1.PodSpec", "containers", "Containers of the pod, at least one. They cannot be added or removed later."),
    ("core.v1.PodSpec", "hostname", "Host name of the pod; its own name by default."),
    ("core.v1.PodSpec", "nodeName", "Node that runs the pod; the scheduler fills it in."),
    ("core.v1.PodSpec", "subdomain", "Name of a headless Service under which the pod gets a DNS name of its own."),
    ("core.v1.Probe", "failureThreshold", "Failures in a row that count as failed. Default 3."),
    ("core.v1.Probe", "initialDelaySeconds", "Seconds to wait after the start of the container."),
    ("core.v1.Probe", "periodSeconds", "Seconds between two checks. Default 10."),
    ("core.v1.Probe", "successThreshold", "Successes in a row that count as success. Default 1."),
    ("core.v1.Probe", "timeoutSeconds", "Seconds after which a check has failed. Default 1."),
    (
        "core.v1.Service",
        "",
        "A stable address and name for a changing set of pods, with the load balanced between them.",
    ),
    ("core.v1.Service", "spec", "What the Service should be."),
    ("core.v1.Service", "status", "What the Service is; written by the server."),
    (
        "core.v1.ServicePort",
        "appProtocol",
        "Protocol spoken inside TCP or UDP, as a hint (https, kubernetes.io/h2c, ...).",
    ),
    (
        "core.v1.ServicePort",
        "name",
        "Name of the port. Needed when there are several; it is also the name in DNS SRV records.",
    ),
    (
        "core.v1.ServicePort",
        "nodePort",
        "Port on every node, for type NodePort and LoadBalancer. Chosen automatically unless given.",
    ),
    ("core.v1.ServicePort", "port", "Port the Service listens on."),
    ("core.v1.ServicePort", "protocol", "TCP (default), UDP or SCTP."),
    (
        "core.v1.ServicePort",
        "targetPort",
        "Port of the pods: a number, or the name of a container port. The Service's port by default.",
    ),
    (
        "core.v1.ServiceSpec",
        "allocateLoadBalancerNodePorts",
        "Whether a LoadBalancer Service gets node ports. Default true.",
    ),
    (
        "core.v1.ServiceSpec",
        "clusterIP",
        "Address of the Service inside the cluster; None makes it headless. Chosen automatically unless given.",
    ),
    (
        "core.v1.ServiceSpec",
        "clusterIPs",
        "All cluster addresses, at most one of each family; the first equals clusterIP.",
    ),
    (
        "core.v1.ServiceSpec",
        "externalIPs",
        "Addresses routed to the nodes from outside for which they shall accept the Service's traffic.",
    ),
    ("core.v1.ServiceSpec", "externalName", "DNS name that clients are sent to (type ExternalName)."),
    (
        "core.v1.ServiceSpec",
        "externalTrafficPolicy",
        "Cluster: traffic from outside goes to any endpoint. Local: only to endpoints of the node it came to, with the client's address kept.",
    ),
    (
        "core.v1.ServiceSpec",
        "healthCheckNodePort",
        "Port on which each node tells load balancers whether it has endpoints (LoadBalancer with policy Local).",
    ),
    (
        "core.v1.ServiceSpec",
        "internalTrafficPolicy",
        "Cluster: traffic from inside goes to any endpoint. Local: only to endpoints of the client's own node.",
    ),
    ("core.v1.ServiceSpec", "ipFamilies", "Address families of the Service, IPv4 or IPv6, the first one preferred."),
    ("core.v1.ServiceSpec", "ipFamilyPolicy", "SingleStack, PreferDualStack or RequireDualStack."),
    (
        "core.v1.ServiceSpec",
        "loadBalancerClass",
        "Which implementation serves this LoadBalancer; the default one when absent.",
    ),
    ("core.v1.ServiceSpec", "loadBalancerIP", "Address asked of the load balancer."),
    (
        "core.v1.ServiceSpec",
        "loadBalancerSourceRanges",
        "Ranges of clients that may use the load balancer; everybody when empty.",
    ),
    ("core.v1.ServiceSpec", "ports", "Ports of the Service. Only headless and ExternalName Services may have none."),
    ("core.v1.ServiceSpec", "publishNotReadyAddresses", "Whether DNS answers with pods that are not ready."),
    (
        "core.v1.ServiceSpec",
        "selector",
        "Labels of the pods behind the Service. Without it, somebody else writes the endpoints.",
    ),
    ("core.v1.ServiceSpec", "sessionAffinity", "ClientIP keeps a client on one endpoint; None (default) does not."),
    ("core.v1.ServiceSpec", "sessionAffinityConfig", "How long session affinity lasts."),
    (
        "core.v1.ServiceSpec",
        "trafficDistribution",
        "Which endpoints are preferred: PreferSameZone (PreferClose) or PreferSameNode.",
    ),
    ("core.v1.ServiceSpec", "type", "ClusterIP (default), NodePort, LoadBalancer or ExternalName."),
    ("core.v1.ServiceStatus", "conditions", "Conditions of the Service."),
    ("core.v1.ServiceStatus", "loadBalancer", "Where the load balancer is reached."),
    ("discovery.v1.Endpoint", "addresses", "Addresses of the endpoint; consumers use the first."),
    ("discovery.v1.Endpoint", "conditions", "Whether the endpoint is ready, serving, terminating."),
    ("discovery.v1.Endpoint", "nodeName", "Node it runs on."),
    ("discovery.v1.Endpoint", "targetRef", "Object the endpoint stands for, mostly a Pod."),
    ("discovery.v1.Endpoint", "zone", "Zone it runs in."),
    (
        "discovery.v1.EndpointSlice",
        "",
        "A part of the endpoints of the Service named by its label kubernetes.io/service-name.",
    ),
    ("discovery.v1.EndpointSlice", "addressType", "IPv4, IPv6 or FQDN; never changes."),
    ("discovery.v1.EndpointSlice", "endpoints", "Endpoints, at most 1000."),
    ("discovery.v1.EndpointSlice", "ports", "Ports of all endpoints of the slice. None means every port."),
    ("meta.v1.ObjectMeta", "annotations", "Notes of tools and people; nothing is selected by them."),
    ("meta.v1.ObjectMeta", "labels", "Key and value pairs to select objects by."),
    ("meta.v1.ObjectMeta", "name", "Name of the object, unique for its kind in its namespace; never changes."),
    ("meta.v1.ObjectMeta", "namespace", "Namespace the object lives in; never changes."),
];

/// The description of a type (`field` empty) or of one of its fields.
pub(super) fn description(of: &str, field: &str) -> Option<&'static str> {
    WORDS.binary_search_by(|(t, f, _)| (*t, *f).cmp(&(of, field))).ok().map(|i| WORDS[i].2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::type_named;

    #[test]
    fn words_are_sorted_and_about_what_exists() {
        assert!(WORDS.is_sorted_by_key(|(t, f, _)| (*t, *f)));
        for (t, f, text) in WORDS {
            let found = type_named(t).unwrap_or_else(|| panic!("{t}"));
            assert!(f.is_empty() || found.field(f).is_some(), "{t}.{f}");
            assert!(text.ends_with('.'));
        }
    }
}
