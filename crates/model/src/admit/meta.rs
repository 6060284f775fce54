//! `metadata`: names, labels, annotations, owners, finalizers (`ValidateObjectMeta` and `ValidateObjectMetaUpdate`).

use serde_json::Value;

use super::{ErrorKind, FieldError, format, list};

/// All annotations of an object together, in bytes.
const MAX_ANNOTATIONS: usize = 256 * 1024;

/// The rule for names of the kind. `prefix`: the text is a `generateName`, whose last dash is followed by more.
fn name_errors(kind: &str, name: &str, prefix: bool) -> Vec<String> {
    let masked;
    let name = if prefix && name.ends_with('-') && name.len() > 1 {
        masked = format!("{}a", &name[..name.len() - 1]);
        masked.as_str()
    } else {
        name
    };
    match kind {
        "Service" => format::dns_1035_label(name),
        "Namespace" => format::dns_label(name),
        "Role" | "ClusterRole" | "RoleBinding" | "ClusterRoleBinding" => format::path_segment(name),
        "IPAddress" => format::ip(name).err().into_iter().collect(),
        _ => format::dns_subdomain(name),
    }
}

/// `path` is "metadata".
pub fn validate(kind: &str, meta: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let text = |field: &str| meta[field].as_str().unwrap_or_default();
    let (name, generate) = (text("name"), text("generateName"));
    if !generate.is_empty() {
        for message in name_errors(kind, generate, true) {
            errors.push(FieldError::invalid(format!("{path}.generateName"), generate, message));
        }
    }
    if name.is_empty() {
        errors.push(FieldError::required(format!("{path}.name"), "name or generateName is required"));
    } else {
        for message in name_errors(kind, name, false) {
            errors.push(FieldError::invalid(format!("{path}.name"), name, message));
        }
    }
    if meta["generation"].as_i64().is_some_and(|g| g < 0) {
        errors.push(FieldError::invalid(
            format!("{path}.generation"),
            meta["generation"].clone(),
            "must be greater than or equal to 0",
        ));
    }
    errors.extend(labels(&meta["labels"], &format!("{path}.labels")));
    errors.extend(annotations(&meta["annotations"], &format!("{path}.annotations")));
    errors.extend(owners(&meta["ownerReferences"], &format!("{path}.ownerReferences")));
    for (i, finalizer) in list(meta, "finalizers").iter().enumerate() {
        let finalizer = finalizer.as_str().unwrap_or_default();
        let field = format!("{path}.finalizers");
        for message in format::qualified_name(finalizer) {
            errors.push(FieldError::invalid(field.clone(), finalizer, message));
        }
        if !finalizer.contains('/') && !matches!(finalizer, "kubernetes" | "orphan" | "foregroundDeletion") {
            errors.push(FieldError::invalid(
                format!("{field}[{i}]"),
                finalizer,
                "name is neither a standard finalizer name nor is it fully qualified",
            ));
        }
    }
    errors
}

pub fn validate_update(old: &Value, new: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for field in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        if old.get(field) != new.get(field) && new.get(field).is_some() {
            let value = new[field].clone();
            errors.push(FieldError::invalid(format!("{path}.{field}"), value, "field is immutable"));
        }
    }
    if old.get("deletionTimestamp").is_some() {
        let before = list(old, "finalizers");
        let added: Vec<String> = list(new, "finalizers")
            .iter()
            .filter(|f| !before.contains(f))
            .map(|f| format!("{:?}", f.as_str().unwrap_or_default()))
            .collect();
        if !added.is_empty() {
            errors.push(FieldError::forbidden(
                format!("{path}.finalizers"),
                format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                    added.join(", ")
                ),
            ));
        }
    }
    errors
}

/// A map of labels: an object's, a selector's, a template's.
pub fn labels(labels: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (key, value) in labels.as_object().into_iter().flatten() {
        for message in format::qualified_name(key) {
            errors.push(FieldError::invalid(path, key.as_str(), message));
        }
        let value = value.as_str().unwrap_or_default();
        for message in format::label_value(value) {
            errors.push(FieldError::invalid(path, value, message));
        }
    }
    errors
}

pub fn annotations(annotations: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut total = 0;
    for (key, value) in annotations.as_object().into_iter().flatten() {
        for message in format::qualified_name(&key.to_lowercase()) {
            errors.push(FieldError::invalid(path, key.as_str(), message));
        }
        total += key.len() + value.as_str().map_or(0, str::len);
    }
    if total > MAX_ANNOTATIONS {
        errors.push(FieldError::too_long(path, MAX_ANNOTATIONS));
    }
    errors
}

fn owners(owners: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut controller: Option<String> = None;
    for owner in owners.as_array().into_iter().flatten() {
        let text = |field: &str| owner[field].as_str().unwrap_or_default();
        if text("apiVersion").is_empty() {
            errors.push(FieldError::invalid(format!("{path}.apiVersion"), "", "version must not be empty"));
        }
        for field in ["kind", "name", "uid"] {
            if text(field).is_empty() {
                errors.push(FieldError::invalid(format!("{path}.{field}"), "", format!("{field} must not be empty")));
            }
        }
        if owner["controller"] == true {
            let this = format!("{}/{}", text("kind"), text("name"));
            match &controller {
                Some(first) => errors.push(FieldError::new(
                    ErrorKind::Invalid,
                    path,
                    owners.clone(),
                    format!("Only one reference can have Controller set to true. Found \"true\" in references for {first} and {this}"),
                )),
                None => controller = Some(this),
            }
        }
    }
    errors
}

/// A `LabelSelector` (`matchLabels` and `matchExpressions`).
pub fn label_selector(selector: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = labels(&selector["matchLabels"], &format!("{path}.matchLabels"));
    for (i, expression) in list(selector, "matchExpressions").iter().enumerate() {
        let at = format!("{path}.matchExpressions[{i}]");
        let values = list(expression, "values");
        match expression["operator"].as_str().unwrap_or_default() {
            "In" | "NotIn" => {
                if values.is_empty() {
                    errors.push(FieldError::required(
                        format!("{at}.values"),
                        "must be specified when `operator` is 'In' or 'NotIn'",
                    ));
                }
            }
            "Exists" | "DoesNotExist" => {
                if !values.is_empty() {
                    errors.push(FieldError::forbidden(
                        format!("{at}.values"),
                        "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                    ));
                }
            }
            other => {
                errors.push(FieldError::invalid(format!("{at}.operator"), other, "not a valid selector operator"));
            }
        }
        let key = expression["key"].as_str().unwrap_or_default();
        for message in format::qualified_name(key) {
            errors.push(FieldError::invalid(format!("{at}.key"), key, message));
        }
        for (j, value) in values.iter().enumerate() {
            let value = value.as_str().unwrap_or_default();
            for message in format::label_value(value) {
                errors.push(FieldError::invalid(format!("{at}.values[{j}]"), value, message));
            }
        }
    }
    errors
}

/// A `LabelSelector` selects these labels. An empty selector selects everything.
pub fn selector_matches(selector: &Value, labels: &Value) -> bool {
    let value = |key: &str| labels.get(key).and_then(Value::as_str);
    let by_labels = selector["matchLabels"].as_object().into_iter().flatten().all(|(k, v)| value(k) == v.as_str());
    by_labels
        && list(selector, "matchExpressions").iter().all(|e| {
            let found = value(e["key"].as_str().unwrap_or_default());
            let listed = found.is_some_and(|f| list(e, "values").iter().any(|v| v == f));
            match e["operator"].as_str().unwrap_or_default() {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => found.is_some(),
                "DoesNotExist" => found.is_none(),
                _ => false,
            }
        })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn texts(errors: Vec<FieldError>) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn names_by_kind() {
        assert!(validate("Service", &json!({"name": "web"}), "metadata").is_empty());
        let e = texts(validate("Service", &json!({"name": "1web"}), "metadata"));
        assert!(e[0].starts_with("metadata.name: Invalid value: \"1web\": a DNS-1035 label must consist of"), "{e:?}");
        assert!(validate("Pod", &json!({"name": "1web.x"}), "metadata").is_empty());
        assert!(validate("ClusterRole", &json!({"name": "system:node"}), "metadata").is_empty());
        assert_eq!(
            texts(validate("Pod", &json!({}), "metadata")),
            ["metadata.name: Required value: name or generateName is required"]
        );
        assert!(validate("Pod", &json!({"name": "a-x7", "generateName": "a-"}), "metadata").is_empty());
    }

    #[test]
    fn labels_annotations_owners() {
        let e = texts(validate("Pod", &json!({"name": "a", "labels": {"a b": "c d"}}), "metadata"));
        assert_eq!(e.len(), 2);
        assert!(e[0].starts_with("metadata.labels: Invalid value: \"a b\": name part must consist of"));
        let big = json!({"name": "a", "annotations": {"a": "x".repeat(300_000)}});
        assert_eq!(
            texts(validate("Pod", &big, "metadata")),
            ["metadata.annotations: Too long: may not be more than 262144 bytes"]
        );
        let owner = json!({"apiVersion": "v1", "kind": "A", "name": "a", "uid": "u", "controller": true});
        assert_eq!(validate("Pod", &json!({"name": "a", "ownerReferences": [owner, owner]}), "metadata").len(), 1);
    }

    #[test]
    fn immutable_metadata() {
        let old = json!({"name": "a", "uid": "1", "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x/y"]});
        let mut new = old.clone();
        new["uid"] = "2".into();
        new["finalizers"] = json!(["x/y", "a/b"]);
        assert_eq!(
            texts(validate_update(&old, &new, "metadata")),
            [
                "metadata.uid: Invalid value: \"2\": field is immutable",
                "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new \
                 finalizers []string{\"a/b\"}"
            ]
        );
    }

    #[test]
    fn selectors() {
        let s = json!({"matchLabels": {"a": "1"}, "matchExpressions": [{"key": "b", "operator": "In", "values": ["x", "y"]}]});
        assert!(selector_matches(&s, &json!({"a": "1", "b": "y"})));
        assert!(!selector_matches(&s, &json!({"a": "1", "b": "z"})));
        assert!(label_selector(&s, "spec.selector").is_empty());
        let bad = json!({"matchExpressions": [{"key": "b", "operator": "Near"}]});
        assert_eq!(
            texts(label_selector(&bad, "spec.selector")),
            ["spec.selector.matchExpressions[0].operator: Invalid value: \"Near\": not a valid selector operator"]
        );
    }
}
