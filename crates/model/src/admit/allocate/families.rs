//! `ipFamilyPolicy` and `ipFamilies`: what they default to and which the cluster cannot serve. It decides before any
//! address is taken.

use serde_json::{Value, json};

use super::super::{
    FieldError,
    service::{cluster_ips, strings},
};

type Errors = Vec<FieldError>;

fn policy(spec: &Value) -> &str {
    spec["ipFamilyPolicy"].as_str().unwrap_or("SingleStack")
}

/// An update of a PreferDualStack Service that changes none of the fields is left alone, whatever the cluster has become.
pub(super) fn settled(before: &Value, spec: &Value) -> bool {
    before["ipFamilyPolicy"] == "PreferDualStack"
        && spec["ipFamilyPolicy"] == "PreferDualStack"
        && strings(before, "clusterIPs") == strings(spec, "clusterIPs")
        && strings(before, "ipFamilies") == strings(spec, "ipFamilies")
}

fn family_of(ip: &str) -> &'static str {
    if ip.contains(':') { "IPv6" } else { "IPv4" }
}

fn other(family: &str) -> &'static str {
    if family == "IPv4" { "IPv6" } else { "IPv4" }
}

/// `configured`: the families of the cluster, the default first.
pub(super) fn initialize(before: Option<&Value>, spec: &mut Value, configured: &[&str]) -> Result<(), Errors> {
    if spec["type"] == "ExternalName" || before.is_some_and(|b| settled(b, spec)) {
        return Ok(());
    }
    let selectorless_headless =
        spec["clusterIP"] == "None" && spec["selector"].as_object().is_none_or(serde_json::Map::is_empty);
    if spec["ipFamilyPolicy"].is_null() {
        let known = before.and_then(|b| b["ipFamilyPolicy"].as_str());
        let default = if selectorless_headless { "RequireDualStack" } else { "SingleStack" };
        spec["ipFamilyPolicy"] = known.unwrap_or(default).into();
    }
    let errors = cluster_ips(spec);
    if !errors.is_empty() {
        return Err(errors);
    }
    let mut errors = Errors::new();
    if let Some(before) = before {
        reduce(before, spec, &mut errors);
    }
    let given = spec["ipFamilyPolicy"].clone();
    let ips = strings(spec, "clusterIPs");
    let mut families = strings(spec, "ipFamilies");
    if policy(spec) == "SingleStack" {
        for (count, what) in [(ips.len(), "cluster IPs"), (families.len(), "IP families")] {
            if count == 2 {
                let detail =
                    format!("must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified");
                errors.push(FieldError::invalid("spec.ipFamilyPolicy", given.clone(), detail));
            }
        }
    }
    for (i, ip) in ips.iter().enumerate().take_while(|(_, ip)| *ip != "None") {
        if i >= families.len() {
            let family = family_of(ip);
            if configured.contains(&family) {
                families.push(family.into());
            } else {
                let detail = format!("{family} is not configured on this cluster");
                errors.push(FieldError::invalid(format!("spec.clusterIPs[{i}]"), json!(ips), detail));
            }
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let default = configured.first().copied().unwrap_or("IPv4");
    let dual = policy(spec) != "SingleStack";
    if selectorless_headless {
        // Such a Service names its endpoints by hand: families the cluster does not have are its own business.
        if families.is_empty() {
            families.push(default.into());
        }
        if dual && families.len() < 2 {
            families.push(other(&families[0]).into());
        }
        spec["ipFamilies"] = json!(families);
        return Ok(());
    }
    if policy(spec) == "RequireDualStack" && configured.len() < 2 {
        let detail = "this cluster is not configured for dual-stack services";
        errors.push(FieldError::invalid("spec.ipFamilyPolicy", given, detail));
    }
    for (i, family) in families.iter().enumerate().filter(|(_, f)| !configured.contains(&f.as_str())) {
        let detail = "not configured on this cluster";
        errors.push(FieldError::invalid(format!("spec.ipFamilies[{i}]"), family.as_str(), detail));
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    if families.is_empty() {
        families.push(default.into());
    }
    if dual && families.len() == 1 && configured.len() == 2 {
        families.push(other(&families[0]).into());
    }
    spec["ipFamilies"] = json!(families);
    Ok(())
}

/// A Service that gives up its second family must say so with `SingleStack`.
fn reduce(before: &Value, spec: &mut Value, errors: &mut Errors) {
    let single = policy(spec) == "SingleStack";
    for (field, what) in [("clusterIPs", "cluster IP"), ("ipFamilies", "IP family")] {
        let (old, new) = (strings(before, field), strings(spec, field));
        if single {
            if old == new && new.len() > 1 {
                spec[field] = json!(new[..1]);
            }
        } else if !new.is_empty() && new.len() < old.len() {
            let detail = format!("must be 'SingleStack' to release the secondary {what}");
            errors.push(FieldError::invalid("spec.ipFamilyPolicy", spec["ipFamilyPolicy"].clone(), detail));
        }
    }
}
