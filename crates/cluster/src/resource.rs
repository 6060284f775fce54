//! The address of a kind in the API: enough to make every path. Kinds are data, so that one watch and one writer serve
//! all of them.

/// A kind of object as the API serves it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resource {
    /// Empty for the core group.
    pub group: std::borrow::Cow<'static, str>,
    pub version: std::borrow::Cow<'static, str>,
    pub kind: std::borrow::Cow<'static, str>,
    pub plural: std::borrow::Cow<'static, str>,
    pub namespaced: bool,
}

impl Resource {
    pub const fn new(
        group: &'static str,
        version: &'static str,
        kind: &'static str,
        plural: &'static str,
        namespaced: bool,
    ) -> Self {
        use std::borrow::Cow::Borrowed;
        Self {
            group: Borrowed(group),
            version: Borrowed(version),
            kind: Borrowed(kind),
            plural: Borrowed(plural),
            namespaced,
        }
    }

    /// `v1`, `apps/v1`
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_string() } else { format!("{}/{}", self.group, self.version) }
    }

    /// The collection's path; an empty namespace means the whole cluster.
    pub fn path(&self, namespace: &str) -> String {
        let root = if self.group.is_empty() { "/api/" } else { "/apis/" };
        let api = self.api_version();
        if self.namespaced && !namespace.is_empty() {
            format!("{root}{api}/namespaces/{namespace}/{}", self.plural)
        } else {
            format!("{root}{api}/{}", self.plural)
        }
    }

    /// One object's path.
    pub fn object_path(&self, namespace: &str, name: &str) -> String {
        format!("{}/{name}", self.path(namespace))
    }
}

pub const NAMESPACE: Resource = Resource::new("", "v1", "Namespace", "namespaces", false);
pub const NODE: Resource = Resource::new("", "v1", "Node", "nodes", false);
pub const POD: Resource = Resource::new("", "v1", "Pod", "pods", true);
pub const SERVICE: Resource = Resource::new("", "v1", "Service", "services", true);
pub const ENDPOINTS: Resource = Resource::new("", "v1", "Endpoints", "endpoints", true);
pub const EVENT: Resource = Resource::new("", "v1", "Event", "events", true);
pub const CONFIG_MAP: Resource = Resource::new("", "v1", "ConfigMap", "configmaps", true);
pub const SECRET: Resource = Resource::new("", "v1", "Secret", "secrets", true);
pub const SERVICE_ACCOUNT: Resource = Resource::new("", "v1", "ServiceAccount", "serviceaccounts", true);
pub const ENDPOINT_SLICE: Resource = Resource::new("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", true);
pub const DEPLOYMENT: Resource = Resource::new("apps", "v1", "Deployment", "deployments", true);
pub const REPLICA_SET: Resource = Resource::new("apps", "v1", "ReplicaSet", "replicasets", true);
pub const STATEFUL_SET: Resource = Resource::new("apps", "v1", "StatefulSet", "statefulsets", true);
pub const DAEMON_SET: Resource = Resource::new("apps", "v1", "DaemonSet", "daemonsets", true);
pub const JOB: Resource = Resource::new("batch", "v1", "Job", "jobs", true);
pub const LEASE: Resource = Resource::new("coordination.k8s.io", "v1", "Lease", "leases", true);
