//! Deployments, ReplicaSets, StatefulSets, DaemonSets and Jobs: selectors that match their templates and never change.

use serde_json::Value;

use super::{FieldError, list, meta, pod};

type Errors = Vec<FieldError>;

pub(super) fn validate(kind: &str, object: &Value) -> Errors {
    let spec = &object["spec"];
    let mut errors = Errors::new();
    for field in [
        "replicas",
        "minReadySeconds",
        "revisionHistoryLimit",
        "parallelism",
        "completions",
        "backoffLimit",
        "ttlSecondsAfterFinished",
    ] {
        pod::not_negative(spec, field, "spec", &mut errors);
    }
    if kind == "Job" {
        job(spec, &mut errors);
        return errors;
    }
    let selector = &spec["selector"];
    let labels = &spec["template"]["metadata"]["labels"];
    if selector.is_null() {
        errors.push(FieldError::required("spec.selector", ""));
    } else {
        errors.extend(meta::label_selector(selector, "spec.selector"));
        if selector.as_object().is_some_and(serde_json::Map::is_empty) {
            let detail = format!("empty selector is invalid for {}", kind.to_lowercase());
            errors.push(FieldError::invalid("spec.selector", selector.clone(), detail));
        }
        if !meta::selector_matches(selector, labels) {
            let shown = if labels.is_null() { Value::Object(serde_json::Map::new()) } else { labels.clone() };
            let detail = "`selector` does not match template `labels`";
            errors.push(FieldError::invalid("spec.template.metadata.labels", shown, detail));
        }
    }
    errors.extend(pod::validate_template(&spec["template"], "spec.template"));
    let template = &spec["template"]["spec"];
    if !template["restartPolicy"].is_null() && template["restartPolicy"] != "Always" {
        let policy = template["restartPolicy"].clone();
        errors.push(FieldError::not_supported("spec.template.spec.restartPolicy", policy, &["Always"]));
    }
    if !template["activeDeadlineSeconds"].is_null() {
        errors.push(FieldError::forbidden(
            "spec.template.spec.activeDeadlineSeconds",
            format!("activeDeadlineSeconds in {kind} is not Supported"),
        ));
    }
    match kind {
        "Deployment" => deployment(spec, &mut errors),
        "StatefulSet" => stateful_set(spec, &mut errors),
        "DaemonSet" => daemon_set(spec, &mut errors),
        _ => {}
    }
    errors
}

fn deployment(spec: &Value, errors: &mut Errors) {
    let strategy = &spec["strategy"];
    match strategy["type"].as_str().unwrap_or_default() {
        "RollingUpdate" => rolling(&strategy["rollingUpdate"], "spec.strategy.rollingUpdate", errors),
        "Recreate" => {
            if !strategy["rollingUpdate"].is_null() {
                errors.push(FieldError::forbidden(
                    "spec.strategy.rollingUpdate",
                    "may not be specified when strategy `type` is 'Recreate'",
                ));
            }
        }
        other => errors.push(FieldError::not_supported("spec.strategy.type", other, &["Recreate", "RollingUpdate"])),
    }
    if let Some(deadline) = spec["progressDeadlineSeconds"].as_i64() {
        pod::not_negative(spec, "progressDeadlineSeconds", "spec", errors);
        if deadline <= spec["minReadySeconds"].as_i64().unwrap_or(0) {
            errors.push(FieldError::invalid(
                "spec.progressDeadlineSeconds",
                deadline,
                "must be greater than minReadySeconds",
            ));
        }
    }
}

/// `maxUnavailable` and `maxSurge`: numbers or percentages, not both zero.
fn rolling(rolling: &Value, path: &str, errors: &mut Errors) {
    let unavailable = int_or_percent(&rolling["maxUnavailable"], &format!("{path}.maxUnavailable"), errors);
    let surge = int_or_percent(&rolling["maxSurge"], &format!("{path}.maxSurge"), errors);
    if unavailable == Some(0) && surge == Some(0) {
        errors.push(FieldError::invalid(
            format!("{path}.maxUnavailable"),
            rolling["maxUnavailable"].clone(),
            "may not be 0 when `maxSurge` is 0",
        ));
    }
    if rolling["maxUnavailable"].is_string() && unavailable.is_some_and(|u| u > 100) {
        errors.push(FieldError::invalid(
            format!("{path}.maxUnavailable"),
            rolling["maxUnavailable"].clone(),
            "must not be greater than 100%",
        ));
    }
}

fn int_or_percent(value: &Value, path: &str, errors: &mut Errors) -> Option<i64> {
    match value {
        Value::Null => None,
        Value::String(text) => {
            let percent = text
                .strip_suffix('%')
                .filter(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit()))
                .and_then(|d| d.parse().ok());
            if percent.is_none() {
                errors.push(FieldError::invalid(
                    path,
                    text.as_str(),
                    "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex \
                     used for validation is '[0-9]+%')",
                ));
            }
            percent
        }
        other => {
            let number = other.as_i64().unwrap_or(0);
            if number < 0 {
                errors.push(FieldError::invalid(path, number, "must be greater than or equal to 0"));
            }
            Some(number)
        }
    }
}

fn stateful_set(spec: &Value, errors: &mut Errors) {
    let policy = spec["podManagementPolicy"].as_str().unwrap_or_default();
    if !matches!(policy, "OrderedReady" | "Parallel") {
        errors.push(FieldError::invalid("spec.podManagementPolicy", policy, "must be 'OrderedReady' or 'Parallel'"));
    }
    let strategy = &spec["updateStrategy"];
    match strategy["type"].as_str().unwrap_or_default() {
        "OnDelete" => {
            if !strategy["rollingUpdate"].is_null() {
                errors.push(FieldError::invalid(
                    "spec.updateStrategy.rollingUpdate",
                    strategy["rollingUpdate"].clone(),
                    "only allowed for updateStrategy 'RollingUpdate'",
                ));
            }
        }
        "RollingUpdate" => {
            pod::not_negative(&strategy["rollingUpdate"], "partition", "spec.updateStrategy.rollingUpdate", errors);
        }
        _ => errors.push(FieldError::invalid(
            "spec.updateStrategy",
            strategy.clone(),
            "must be 'RollingUpdate' or 'OnDelete'",
        )),
    }
    for (i, claim) in list(spec, "volumeClaimTemplates").iter().enumerate() {
        if claim["metadata"]["name"].as_str().unwrap_or_default().is_empty() {
            errors.push(FieldError::required(format!("spec.volumeClaimTemplates[{i}].metadata.name"), ""));
        }
    }
}

fn daemon_set(spec: &Value, errors: &mut Errors) {
    let strategy = &spec["updateStrategy"];
    match strategy["type"].as_str().unwrap_or_default() {
        "OnDelete" => {}
        "RollingUpdate" => rolling(&strategy["rollingUpdate"], "spec.updateStrategy.rollingUpdate", errors),
        other => {
            errors.push(FieldError::not_supported("spec.updateStrategy.type", other, &["OnDelete", "RollingUpdate"]))
        }
    }
}

fn job(spec: &Value, errors: &mut Errors) {
    if spec["selector"].is_null() {
        errors.push(FieldError::required("spec.selector", ""));
    } else if !meta::selector_matches(&spec["selector"], &spec["template"]["metadata"]["labels"]) {
        errors.push(FieldError::invalid(
            "spec.template.metadata.labels",
            spec["template"]["metadata"]["labels"].clone(),
            "`selector` does not match template `labels`",
        ));
    }
    errors.extend(pod::validate_template(&spec["template"], "spec.template"));
    if spec["template"]["spec"]["restartPolicy"] == "Always" {
        errors.push(FieldError::required("spec.template.spec.restartPolicy", "valid values: \"OnFailure\", \"Never\""));
    }
}

const STATEFUL_MUTABLE: &str = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', \
'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";

/// What may not change.
pub(super) fn validate_update(kind: &str, old: &Value, new: &Value) -> Errors {
    let (before, after) = (&old["spec"], &new["spec"]);
    let mut errors = Errors::new();
    let mut fixed = |field: &str| {
        if before.get(field) != after.get(field) {
            errors.push(FieldError::invalid(format!("spec.{field}"), after[field].clone(), "field is immutable"));
        }
    };
    match kind {
        "StatefulSet" => {
            let masked = |spec: &Value| {
                let mut spec = spec.clone();
                if let Some(map) = spec.as_object_mut() {
                    for field in [
                        "replicas",
                        "ordinals",
                        "template",
                        "updateStrategy",
                        "revisionHistoryLimit",
                        "persistentVolumeClaimRetentionPolicy",
                        "minReadySeconds",
                    ] {
                        map.remove(field);
                    }
                }
                spec
            };
            if masked(before) != masked(after) {
                errors.push(FieldError::forbidden("spec", STATEFUL_MUTABLE));
            }
        }
        "Job" => {
            fixed("selector");
            fixed("completionMode");
            // A suspended Job that never started may get other node placement; this server does not offer that.
            fixed("template");
        }
        _ => fixed("selector"),
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{default, validate_create, validate_update as update};
    use super::*;

    fn deployment(selector: Value, labels: Value) -> Value {
        let mut d = json!({"metadata": {"name": "d"}, "spec": {"selector": selector,
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "x"}]}}}});
        default("Deployment", &mut d);
        d
    }

    fn texts(errors: Errors) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn selectors_match_templates() {
        let good = deployment(json!({"matchLabels": {"app": "a"}}), json!({"app": "a", "x": "y"}));
        assert!(validate_create("Deployment", &good).is_empty());
        let bad = deployment(json!({"matchLabels": {"app": "a"}}), json!({"app": "b"}));
        assert_eq!(
            texts(validate_create("Deployment", &bad)),
            [
                "spec.template.metadata.labels: Invalid value: {\"app\":\"b\"}: `selector` does not match template `labels`"
            ]
        );
        let none = deployment(Value::Null, json!({"app": "b"}));
        assert_eq!(texts(validate_create("Deployment", &none)), ["spec.selector: Required value"]);
    }

    #[test]
    fn selectors_never_change() {
        let old = deployment(json!({"matchLabels": {"app": "a"}}), json!({"app": "a", "b": "c"}));
        let new = deployment(json!({"matchLabels": {"b": "c"}}), json!({"app": "a", "b": "c"}));
        assert_eq!(
            texts(update("Deployment", &old, &new)),
            ["spec.selector: Invalid value: {\"matchLabels\":{\"b\":\"c\"}}: field is immutable"]
        );
        let mut scaled = old.clone();
        scaled["spec"]["replicas"] = 3.into();
        assert!(update("Deployment", &old, &scaled).is_empty());
        let e = texts(update("StatefulSet", &old, &new));
        assert!(e.iter().any(|e| e.starts_with("spec: Forbidden: updates to statefulset spec")), "{e:?}");
    }

    #[test]
    fn strategies() {
        let mut d = deployment(json!({"matchLabels": {"app": "a"}}), json!({"app": "a"}));
        d["spec"]["strategy"] =
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}});
        assert_eq!(
            texts(validate_create("Deployment", &d)),
            ["spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 when `maxSurge` is 0"]
        );
        d["spec"]["strategy"] = json!({"type": "Recreate", "rollingUpdate": {}});
        assert_eq!(
            texts(validate_create("Deployment", &d)),
            ["spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'"]
        );
        d["spec"]["strategy"] = json!({"type": "Recreate"});
        d["spec"]["replicas"] = (-1).into();
        assert_eq!(
            texts(validate_create("Deployment", &d)),
            ["spec.replicas: Invalid value: -1: must be greater than or equal to 0"]
        );
    }
}
