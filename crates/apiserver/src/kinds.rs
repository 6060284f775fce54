//! The one table of kinds. A row drives discovery, decoding, patching, Tables and OpenAPI; adding a kind is adding a row.
//! What the fields of a kind are is [`crate::schema`]'s business, what its values may be is `model::admit`'s.

/// Where `/scale` reads and writes (autoscaling/v1 Scale), as paths inside the object.
#[derive(Debug, Clone, Copy)]
pub struct ScalePaths {
    pub spec_replicas: &'static [&'static str],
    pub status_replicas: &'static [&'static str],
    /// A `LabelSelector` in the spec; it is printed in `status.selector` of the Scale.
    pub selector: &'static [&'static str],
}

/// A subresource as discovery shows it. `/status` and `/scale` follow from [`Kind::has_status`] and [`Kind::scale`].
#[derive(Debug, Clone, Copy)]
pub struct Subresource {
    pub name: &'static str,
    /// Group and version of the body when they are not the parent's ("" and "" when they are).
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub verbs: &'static [&'static str],
}

/// One resource of the API.
#[derive(Debug)]
pub struct Kind {
    /// "" for the core group.
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub namespaced: bool,
    /// In discovery's (alphabetical) order. A review has `create` only and is never stored.
    pub verbs: &'static [&'static str],
    /// Has a `/status` subresource, and its main endpoint does not write `status`.
    pub has_status: bool,
    /// `metadata.generation` counts changes of the spec.
    pub has_generation: bool,
    pub scale: Option<ScalePaths>,
    pub subresources: &'static [Subresource],
    /// Name of its type in [`crate::schema`].
    pub schema: &'static str,
}

impl Kind {
    /// `v1`, `apps/v1`.
    pub fn api_version(&self) -> &'static str {
        if self.group.is_empty() { self.version } else { group_version(self.group) }
    }

    /// `ServiceList`
    pub fn list_kind(&self) -> String {
        format!("{}List", self.kind)
    }

    /// `services` or `deployments.apps`: how messages name a resource.
    pub fn qualified_resource(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// `Service` or `Deployment.apps`: how `"x" is invalid` messages name a kind.
    pub fn qualified_kind(&self) -> String {
        if self.group.is_empty() { self.kind.to_owned() } else { format!("{}.{}", self.kind, self.group) }
    }

    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }

    /// Objects of this kind are kept; reviews and bindings are only answered.
    pub fn stored(&self) -> bool {
        self.has_verb("get")
    }

    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }
}

/// Every group has one version so far; a table keeps [`Kind::api_version`] free of allocation.
fn group_version(group: &str) -> &'static str {
    GROUP_VERSIONS.iter().find(|gv| gv.split('/').next() == Some(group)).copied().unwrap_or("v1")
}

const GROUP_VERSIONS: &[&str] = &[
    "apps/v1",
    "authentication.k8s.io/v1",
    "authorization.k8s.io/v1",
    "autoscaling/v1",
    "batch/v1",
    "coordination.k8s.io/v1",
    "discovery.k8s.io/v1",
    "events.k8s.io/v1",
    "networking.k8s.io/v1",
    "policy/v1",
    "rbac.authorization.k8s.io/v1",
    "scheduling.k8s.io/v1",
    "storage.k8s.io/v1",
];

const ALL: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const NO_COLLECTION: &[&str] = &["create", "delete", "get", "list", "patch", "update", "watch"];
const CREATE: &[&str] = &["create"];
const GET: &[&str] = &["get"];
const CONNECT: &[&str] = &["create", "get"];
const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];

const REPLICAS: Option<ScalePaths> = Some(ScalePaths {
    spec_replicas: &["spec", "replicas"],
    status_replicas: &["status", "replicas"],
    selector: &["spec", "selector"],
});

const fn own(name: &'static str, kind: &'static str, verbs: &'static [&'static str]) -> Subresource {
    Subresource { name, group: "", version: "", kind, verbs }
}

/// A plain stored kind; rows change what differs.
const BASE: Kind = Kind {
    group: "",
    version: "v1",
    kind: "",
    plural: "",
    singular: "",
    short_names: &[],
    categories: &[],
    namespaced: true,
    verbs: ALL,
    has_status: false,
    has_generation: false,
    scale: None,
    subresources: &[],
    schema: "",
};

const CORE: Kind = BASE;
const APPS: Kind = Kind { group: "apps", has_generation: true, has_status: true, ..BASE };
const NETWORKING: Kind = Kind { group: "networking.k8s.io", has_generation: true, ..BASE };
const RBAC: Kind = Kind { group: "rbac.authorization.k8s.io", ..BASE };
const REVIEW: Kind = Kind { verbs: CREATE, namespaced: false, ..BASE };
const AUTHN: Kind = Kind { group: "authentication.k8s.io", ..REVIEW };
const AUTHZ: Kind = Kind { group: "authorization.k8s.io", ..REVIEW };

static KINDS: &[Kind] = &[
    Kind { kind: "Binding", plural: "bindings", singular: "binding", verbs: CREATE, schema: "core.v1.Binding", ..CORE },
    Kind {
        kind: "ConfigMap",
        plural: "configmaps",
        singular: "configmap",
        short_names: &["cm"],
        schema: "core.v1.ConfigMap",
        ..CORE
    },
    Kind {
        kind: "Endpoints",
        plural: "endpoints",
        singular: "endpoints",
        short_names: &["ep"],
        schema: "core.v1.Endpoints",
        ..CORE
    },
    Kind { kind: "Event", plural: "events", singular: "event", short_names: &["ev"], schema: "core.v1.Event", ..CORE },
    Kind {
        kind: "LimitRange",
        plural: "limitranges",
        singular: "limitrange",
        short_names: &["limits"],
        schema: "core.v1.LimitRange",
        ..CORE
    },
    Kind {
        kind: "Namespace",
        plural: "namespaces",
        singular: "namespace",
        short_names: &["ns"],
        namespaced: false,
        verbs: NO_COLLECTION,
        has_status: true,
        subresources: &[own("finalize", "Namespace", &["update"])],
        schema: "core.v1.Namespace",
        ..CORE
    },
    Kind {
        kind: "Node",
        plural: "nodes",
        singular: "node",
        short_names: &["no"],
        namespaced: false,
        has_status: true,
        schema: "core.v1.Node",
        ..CORE
    },
    Kind {
        kind: "PersistentVolumeClaim",
        plural: "persistentvolumeclaims",
        singular: "persistentvolumeclaim",
        short_names: &["pvc"],
        has_status: true,
        schema: "core.v1.PersistentVolumeClaim",
        ..CORE
    },
    Kind {
        kind: "PersistentVolume",
        plural: "persistentvolumes",
        singular: "persistentvolume",
        short_names: &["pv"],
        namespaced: false,
        has_status: true,
        schema: "core.v1.PersistentVolume",
        ..CORE
    },
    Kind {
        kind: "Pod",
        plural: "pods",
        singular: "pod",
        short_names: &["po"],
        categories: &["all"],
        has_status: true,
        has_generation: true,
        subresources: &[
            own("attach", "PodAttachOptions", CONNECT),
            own("binding", "Binding", CREATE),
            Subresource { name: "eviction", group: "policy", version: "v1", kind: "Eviction", verbs: CREATE },
            own("exec", "PodExecOptions", CONNECT),
            own("log", "Pod", GET),
            own("portforward", "PodPortForwardOptions", CONNECT),
            own("proxy", "PodProxyOptions", PROXY),
        ],
        schema: "core.v1.Pod",
        ..CORE
    },
    Kind {
        kind: "PodTemplate",
        plural: "podtemplates",
        singular: "podtemplate",
        schema: "core.v1.PodTemplate",
        ..CORE
    },
    Kind {
        kind: "ResourceQuota",
        plural: "resourcequotas",
        singular: "resourcequota",
        short_names: &["quota"],
        has_status: true,
        schema: "core.v1.ResourceQuota",
        ..CORE
    },
    Kind { kind: "Secret", plural: "secrets", singular: "secret", schema: "core.v1.Secret", ..CORE },
    Kind {
        kind: "ServiceAccount",
        plural: "serviceaccounts",
        singular: "serviceaccount",
        short_names: &["sa"],
        schema: "core.v1.ServiceAccount",
        ..CORE
    },
    Kind {
        kind: "Service",
        plural: "services",
        singular: "service",
        short_names: &["svc"],
        categories: &["all"],
        has_status: true,
        subresources: &[own("proxy", "ServiceProxyOptions", PROXY)],
        schema: "core.v1.Service",
        ..CORE
    },
    Kind {
        kind: "ControllerRevision",
        plural: "controllerrevisions",
        singular: "controllerrevision",
        has_status: false,
        has_generation: false,
        schema: "apps.v1.ControllerRevision",
        ..APPS
    },
    Kind {
        kind: "DaemonSet",
        plural: "daemonsets",
        singular: "daemonset",
        short_names: &["ds"],
        categories: &["all"],
        schema: "apps.v1.DaemonSet",
        ..APPS
    },
    Kind {
        kind: "Deployment",
        plural: "deployments",
        singular: "deployment",
        short_names: &["deploy"],
        categories: &["all"],
        scale: REPLICAS,
        schema: "apps.v1.Deployment",
        ..APPS
    },
    Kind {
        kind: "ReplicaSet",
        plural: "replicasets",
        singular: "replicaset",
        short_names: &["rs"],
        categories: &["all"],
        scale: REPLICAS,
        schema: "apps.v1.ReplicaSet",
        ..APPS
    },
    Kind {
        kind: "StatefulSet",
        plural: "statefulsets",
        singular: "statefulset",
        short_names: &["sts"],
        categories: &["all"],
        scale: REPLICAS,
        schema: "apps.v1.StatefulSet",
        ..APPS
    },
    Kind {
        kind: "SelfSubjectReview",
        plural: "selfsubjectreviews",
        singular: "selfsubjectreview",
        schema: "authentication.v1.SelfSubjectReview",
        ..AUTHN
    },
    Kind {
        kind: "TokenReview",
        plural: "tokenreviews",
        singular: "tokenreview",
        schema: "authentication.v1.TokenReview",
        ..AUTHN
    },
    Kind {
        kind: "LocalSubjectAccessReview",
        plural: "localsubjectaccessreviews",
        singular: "localsubjectaccessreview",
        namespaced: true,
        schema: "authorization.v1.LocalSubjectAccessReview",
        ..AUTHZ
    },
    Kind {
        kind: "SelfSubjectAccessReview",
        plural: "selfsubjectaccessreviews",
        singular: "selfsubjectaccessreview",
        schema: "authorization.v1.SelfSubjectAccessReview",
        ..AUTHZ
    },
    Kind {
        kind: "SelfSubjectRulesReview",
        plural: "selfsubjectrulesreviews",
        singular: "selfsubjectrulesreview",
        schema: "authorization.v1.SelfSubjectRulesReview",
        ..AUTHZ
    },
    Kind {
        kind: "SubjectAccessReview",
        plural: "subjectaccessreviews",
        singular: "subjectaccessreview",
        schema: "authorization.v1.SubjectAccessReview",
        ..AUTHZ
    },
    Kind {
        group: "batch",
        kind: "Job",
        plural: "jobs",
        singular: "job",
        categories: &["all"],
        has_status: true,
        has_generation: true,
        schema: "batch.v1.Job",
        ..BASE
    },
    Kind {
        group: "coordination.k8s.io",
        kind: "Lease",
        plural: "leases",
        singular: "lease",
        schema: "coordination.v1.Lease",
        ..BASE
    },
    Kind {
        group: "discovery.k8s.io",
        kind: "EndpointSlice",
        plural: "endpointslices",
        singular: "endpointslice",
        has_generation: true,
        schema: "discovery.v1.EndpointSlice",
        ..BASE
    },
    Kind {
        kind: "Ingress",
        plural: "ingresses",
        singular: "ingress",
        short_names: &["ing"],
        has_status: true,
        schema: "networking.v1.Ingress",
        ..NETWORKING
    },
    Kind {
        kind: "IngressClass",
        plural: "ingressclasses",
        singular: "ingressclass",
        namespaced: false,
        schema: "networking.v1.IngressClass",
        ..NETWORKING
    },
    Kind {
        kind: "IPAddress",
        plural: "ipaddresses",
        singular: "ipaddress",
        short_names: &["ip"],
        namespaced: false,
        has_generation: false,
        schema: "networking.v1.IPAddress",
        ..NETWORKING
    },
    Kind {
        kind: "NetworkPolicy",
        plural: "networkpolicies",
        singular: "networkpolicy",
        short_names: &["netpol"],
        schema: "networking.v1.NetworkPolicy",
        ..NETWORKING
    },
    Kind {
        kind: "ServiceCIDR",
        plural: "servicecidrs",
        singular: "servicecidr",
        namespaced: false,
        has_status: true,
        has_generation: false,
        schema: "networking.v1.ServiceCIDR",
        ..NETWORKING
    },
    Kind {
        group: "policy",
        kind: "PodDisruptionBudget",
        plural: "poddisruptionbudgets",
        singular: "poddisruptionbudget",
        short_names: &["pdb"],
        has_status: true,
        has_generation: true,
        schema: "policy.v1.PodDisruptionBudget",
        ..BASE
    },
    Kind {
        kind: "ClusterRoleBinding",
        plural: "clusterrolebindings",
        singular: "clusterrolebinding",
        namespaced: false,
        schema: "rbac.v1.ClusterRoleBinding",
        ..RBAC
    },
    Kind {
        kind: "ClusterRole",
        plural: "clusterroles",
        singular: "clusterrole",
        namespaced: false,
        schema: "rbac.v1.ClusterRole",
        ..RBAC
    },
    Kind {
        kind: "RoleBinding",
        plural: "rolebindings",
        singular: "rolebinding",
        schema: "rbac.v1.RoleBinding",
        ..RBAC
    },
    Kind { kind: "Role", plural: "roles", singular: "role", schema: "rbac.v1.Role", ..RBAC },
    Kind {
        group: "storage.k8s.io",
        kind: "StorageClass",
        plural: "storageclasses",
        singular: "storageclass",
        short_names: &["sc"],
        namespaced: false,
        schema: "storage.v1.StorageClass",
        ..BASE
    },
];

/// Every kind, core group first, groups and resources in order.
pub fn all() -> &'static [Kind] {
    KINDS
}

/// By the path `/apis/{group}/{version}/{plural}`; `group` is "" for core.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|k| k.plural == plural && k.group == group && k.version == version)
}

/// By what an object says of itself.
pub fn find_kind(api_version: &str, kind: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|k| k.kind == kind && k.api_version() == api_version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_complete_and_unique() {
        let mut seen = std::collections::BTreeSet::new();
        for k in all() {
            assert!(seen.insert((k.group, k.plural)), "{} twice", k.plural);
            assert!(!k.kind.is_empty() && !k.singular.is_empty() && !k.schema.is_empty(), "{k:?}");
            assert_eq!(k.singular, k.kind.to_lowercase());
            assert!(k.verbs.is_sorted());
            let expected = if k.group.is_empty() { k.version.to_owned() } else { format!("{}/{}", k.group, k.version) };
            assert_eq!(k.api_version(), expected);
            assert_eq!(find(k.group, k.version, k.plural).map(|f| f.kind), Some(k.kind));
            assert_eq!(find_kind(k.api_version(), k.kind).map(|f| f.plural), Some(k.plural));
        }
    }

    #[test]
    fn seed_191_short_names() {
        for (short, plural) in [
            ("svc", "services"),
            ("ep", "endpoints"),
            ("deploy", "deployments"),
            ("sts", "statefulsets"),
            ("po", "pods"),
        ] {
            let k = all().iter().find(|k| k.short_names.contains(&short)).expect("short name");
            assert_eq!(k.plural, plural);
        }
    }
}
