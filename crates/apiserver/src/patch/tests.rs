use serde_json::json;

use super::*;
use crate::kinds::find;

const SMP: &str = "application/strategic-merge-patch+json";
const MERGE: &str = "application/merge-patch+json";
const JSON: &str = "application/json-patch+json";

fn service() -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "finalizers": ["a", "b"]},
        "spec": {"selector": {"app": "web"}, "ports": [
            {"name": "http", "port": 80, "protocol": "TCP"}, {"name": "https", "port": 443, "protocol": "TCP"}]}})
}

fn patched(content_type: &str, current: &Value, patch: Value) -> Result<Value, PatchError> {
    let plural = format!("{}s", current["kind"].as_str().expect("kind").to_lowercase());
    let group = if plural == "deployments" { "apps" } else { "" };
    let kind = find(group, "v1", &plural).expect("kind");
    apply(kind, content_type, current, patch.to_string().as_bytes(), FieldValidation::Strict).map(|d| d.object)
}

#[test]
fn strategic_lists_merge_by_key() {
    let out =
        patched(SMP, &service(), json!({"spec": {"ports": [{"port": 443, "targetPort": 8443}]}})).expect("patched");
    assert_eq!(out["spec"]["ports"][0], json!({"name": "http", "port": 80, "protocol": "TCP"}));
    assert_eq!(out["spec"]["ports"][1], json!({"name": "https", "port": 443, "protocol": "TCP", "targetPort": 8443}));
    let out =
        patched(SMP, &service(), json!({"spec": {"ports": [{"port": 80, "$patch": "delete"}]}})).expect("patched");
    assert_eq!(out["spec"]["ports"], json!([{"name": "https", "port": 443, "protocol": "TCP"}]));
    let out =
        patched(SMP, &service(), json!({"spec": {"ports": [{"port": 9}, {"$patch": "replace"}]}})).expect("patched");
    assert_eq!(out["spec"]["ports"], json!([{"port": 9}]));
}

#[test]
fn strategic_order_and_sets() {
    let p = json!({"spec": {"$setElementOrder/ports": [{"port": 443}, {"port": 81}, {"port": 80}], "ports": [{"name": "new", "port": 81}]}});
    let out = patched(SMP, &service(), p).expect("patched");
    let ports: Vec<i64> =
        out["spec"]["ports"].as_array().expect("list").iter().filter_map(|p| p["port"].as_i64()).collect();
    assert_eq!(ports, [443, 81, 80]);
    let out = patched(SMP, &service(), json!({"metadata": {"finalizers": ["c"]}})).expect("patched");
    assert_eq!(out["metadata"]["finalizers"].as_array().map(Vec::len), Some(3), "{out}");
    let out =
        patched(SMP, &service(), json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}})).expect("patched");
    assert_eq!(out["metadata"]["finalizers"], json!(["b"]));
}

#[test]
fn strategic_maps_nulls_and_replacement() {
    let out = patched(SMP, &service(), json!({"spec": {"selector": {"app": null, "tier": "x"}}})).expect("patched");
    assert_eq!(out["spec"]["selector"], json!({"tier": "x"}));
    let out =
        patched(SMP, &service(), json!({"spec": {"selector": {"$patch": "replace", "a": "b"}}})).expect("patched");
    assert_eq!(out["spec"]["selector"], json!({"a": "b"}));
    let d = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
    let p = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
    assert_eq!(patched(SMP, &d, p).expect("patched")["spec"]["strategy"], json!({"type": "Recreate"}));
}

#[test]
fn what_kubectl_apply_sends_is_idempotent() {
    let current = service();
    let p = json!({"metadata": {"annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"}},
        "spec": {"$setElementOrder/ports": [{"port": 80}, {"port": 443}]}});
    let once = patched(SMP, &current, p.clone()).expect("patched");
    assert_eq!(patched(SMP, &once, p).expect("patched"), once);
}

#[test]
fn merge_and_json_patches() {
    let out = patched(MERGE, &service(), json!({"spec": {"ports": [{"port": 1}], "selector": null}})).expect("patched");
    assert_eq!(out["spec"], json!({"ports": [{"port": 1}]}));
    let p = json!([{"op": "test", "path": "/metadata/name", "value": "s"}, {"op": "replace", "path": "/spec/ports/0/port", "value": 81}]);
    assert_eq!(patched(JSON, &service(), p).expect("patched")["spec"]["ports"][0]["port"], 81);
    let missing = patched(JSON, &service(), json!([{"op": "remove", "path": "/spec/nosuch"}]));
    assert!(matches!(&missing, Err(PatchError::Unprocessable(m)) if m.contains("/spec/nosuch")), "{missing:?}");
    let test = patched(JSON, &service(), json!([{"op": "test", "path": "/metadata/name", "value": "x"}]));
    assert!(matches!(test, Err(PatchError::Unprocessable(_))));
    assert!(matches!(patched(JSON, &service(), json!({"op": "remove"})), Err(PatchError::BadRequest(_))));
}

#[test]
fn refusals() {
    let unknown = patched(SMP, &service(), json!({"spec": {"foo": 1}}));
    let Err(PatchError::Invalid(e)) = unknown else { panic!("{unknown:?}") };
    assert_eq!(
        e.to_string(),
        "patch: Invalid value: \"map[spec:map[foo:1]]\": strict decoding error: unknown field \"spec.foo\""
    );
    assert!(
        matches!(patched(SMP, &service(), json!({"spec": {"ports": [{"name": "x"}]}})), Err(PatchError::BadRequest(m)) if m.contains("merge key"))
    );
    assert!(matches!(patched(SMP, &service(), json!({"$patch": "explode"})), Err(PatchError::BadRequest(_))));
    assert!(matches!(
        patched("application/apply-patch+yaml", &service(), json!({})),
        Err(PatchError::UnsupportedMediaType(_))
    ));
    assert!(matches!(patched("text/plain", &service(), json!({})), Err(PatchError::UnsupportedMediaType(_))));
    for patch in ["", "[]", "3", "{\"a\""] {
        let kind = find("", "v1", "services").expect("kind");
        for content_type in [SMP, MERGE] {
            assert!(apply(kind, content_type, &service(), patch.as_bytes(), FieldValidation::Warn).is_err());
        }
    }
}
