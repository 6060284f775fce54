//! What must exist in a cluster before anybody asks: the first namespaces, the range of Service addresses, and the Service
//! `default/kubernetes` whose endpoints are this server. Reconciled at each start, because addresses change.

use std::{net::IpAddr, time::Duration};

use serde_json::{Value, json};

use crate::{
    Config, Error,
    handlers::{Api, NewObject},
    kinds,
    status::Failure,
    store::{Change, Encoded, Expect, Write, WriteError},
};

const RETRY: Duration = Duration::from_millis(100);
const KUBERNETES: &str = "default/kubernetes";
const NAMESPACES: [&str; 4] = ["default", "kube-node-lease", "kube-public", "kube-system"];

pub(crate) async fn bootstrap(api: &Api, config: &Config) -> Result<(), Error> {
    let objects = wanted(config);
    for (group, version, plural, namespace, object) in objects {
        ensure(api, group, version, plural, namespace, object)
            .await
            .map_err(|failure| Error::Bootstrap(failure.message().to_owned()))?;
    }
    Ok(())
}

/// Makes `default/kubernetes` again when somebody deletes it: pods find the API by it. Runs until the server stops.
pub(crate) async fn keep(api: Api, config: Config) {
    let resources = ["core/services", "core/endpoints", "discovery.k8s.io/endpointslices"];
    let [mut services, mut endpoints, mut slices] = resources.map(|r| api.store.subscribe(&r.into()));
    // Without an address to advertise there are no endpoints to keep.
    let kept = resources.map(|r| (r, api.store.get(r, KUBERNETES).is_some()));
    loop {
        let stopped = tokio::select! {
            changed = services.changed() => changed.is_err(),
            changed = endpoints.changed() => changed.is_err(),
            changed = slices.changed() => changed.is_err(),
            () = api.stopping.cancelled() => true,
        };
        if stopped {
            return;
        }
        while kept.iter().any(|(resource, made)| *made && api.store.get(resource, KUBERNETES).is_none()) {
            let Err(error) = bootstrap(&api, &config).await else { break };
            // The address of the one that is gone becomes free a moment after watchers hear of its end.
            tracing::debug!(%error, "the Service default/kubernetes is missing and cannot be made again yet");
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = api.stopping.cancelled() => return,
            }
        }
    }
}

type Wanted = (&'static str, &'static str, &'static str, &'static str, Value);

fn wanted(config: &Config) -> Vec<Wanted> {
    let mut objects: Vec<Wanted> = Vec::new();
    for name in NAMESPACES {
        objects.push(("", "v1", "namespaces", "", json!({"metadata": {"name": name}})));
    }
    let cidrs: Vec<String> = config.service_cidrs.iter().map(ToString::to_string).collect();
    let range = json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": cidrs}});
    objects.push(("networking.k8s.io", "v1", "servicecidrs", "", range));

    let Some(first) = config.service_cidrs.first() else { return objects };
    let Some(cluster_ip) = first_host(first) else { return objects };
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let service = json!({
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": labels},
        "spec": {
            "type": "ClusterIP", "clusterIP": cluster_ip.to_string(), "clusterIPs": [cluster_ip.to_string()],
            "sessionAffinity": "None",
            "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": config.port}]
        }
    });
    objects.push(("", "v1", "services", "default", service));

    let mut addresses: Vec<&IpAddr> =
        config.advertise.iter().filter(|a| a.is_ipv4() == cluster_ip.is_ipv4() && !a.is_loopback()).collect();
    addresses.sort_unstable();
    if addresses.is_empty() {
        return objects;
    }
    let ips: Vec<Value> = addresses.iter().map(|a| json!({"ip": a.to_string()})).collect();
    let endpoints = json!({
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{"addresses": ips, "ports": [{"name": "https", "port": config.port, "protocol": "TCP"}]}]
    });
    objects.push(("", "v1", "endpoints", "default", endpoints));
    let each: Vec<Value> =
        addresses.iter().map(|a| json!({"addresses": [a.to_string()], "conditions": {"ready": true}})).collect();
    let slice = json!({
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": if cluster_ip.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": each,
        "ports": [{"name": "https", "port": config.port, "protocol": "TCP"}]
    });
    objects.push(("discovery.k8s.io", "v1", "endpointslices", "default", slice));
    objects
}

/// The first usable address of a range: 10.96.0.1 of 10.96.0.0/12.
pub(crate) fn first_host(range: &ipnet::IpNet) -> Option<IpAddr> {
    match range.network() {
        IpAddr::V4(a) => u32::from(a).checked_add(1).map(|n| IpAddr::V4(n.into())),
        IpAddr::V6(a) => u128::from(a).checked_add(1).map(|n| IpAddr::V6(n.into())),
    }
}

/// Creates the object, or makes what this server owns of it as it should be.
async fn ensure(
    api: &Api,
    group: &str,
    version: &str,
    plural: &str,
    namespace: &str,
    object: Value,
) -> Result<(), Failure> {
    let Some(kind) = kinds::find(group, version, plural) else { return Ok(()) };
    let name = object["metadata"]["name"].as_str().unwrap_or("").to_owned();
    let mut wanted = object;
    wanted["apiVersion"] = kind.api_version().into();
    wanted["kind"] = kind.kind.into();
    loop {
        let Ok(stored) = api.get(kind, namespace, &name) else {
            let new = NewObject { kind, namespace: namespace.to_owned(), object: wanted.clone(), dry_run: false };
            return match new.insert(api).await {
                Err(failure) if failure.code() != http::StatusCode::CONFLICT => Err(failure),
                _ => Ok(()),
            };
        };
        let old = stored.value();
        let mut new = old.clone();
        // Namespaces and ranges belong to the user once they exist.
        for field in ["subsets", "endpoints", "addressType", "ports"] {
            if let Some(value) = wanted.get(field) {
                new[field] = value.clone();
            }
        }
        if plural == "services" {
            new["spec"]["ports"] = wanted["spec"]["ports"].clone();
        }
        if new == old {
            return Ok(());
        }
        let write = Write {
            resource: crate::handlers::resource_of(kind),
            key: crate::handlers::key_of(namespace, &name),
            expect: Expect::Revision(stored.revision),
            change: Change::Put(Encoded::new(&new)),
        };
        match api.store.write(write).await {
            Ok(_) => return Ok(()),
            Err(WriteError::Conflict) => {}
            Err(other) => return Err(other.into()),
        }
    }
}
