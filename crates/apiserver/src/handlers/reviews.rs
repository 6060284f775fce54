//! Kinds that are questions: who am I, may I, is this token good; and the old form of binding. Nothing is kept.

use axum::response::Response;
use http::StatusCode;
use serde_json::{Value, json};

use super::{Api, Call, meta, reply, subresources};
use crate::{
    auth::{self, Action, MASTERS, User},
    kinds, schema,
    status::Failure,
};

pub(super) async fn answer(api: &Api, mut call: Call, verb: &str) -> Result<Response, Failure> {
    let kind = call.kind();
    if verb != "create" || !call.target.name.is_empty() || (kind.namespaced && call.target.namespace.is_empty()) {
        return Err(Failure::method_not_allowed(kind));
    }
    let decoded = schema::decode(kind, &call.content_type, &call.body, call.validation()?)?;
    call.warnings.extend(decoded.warnings);
    let mut object = decoded.object;
    let status = match kind.kind {
        "SelfSubjectReview" => json!({"userInfo": call.user.info()}),
        "TokenReview" => token_review(api, &object),
        "SelfSubjectAccessReview" => access(&call.user, &object["spec"]),
        "SubjectAccessReview" | "LocalSubjectAccessReview" => access(&subject(&object["spec"])?, &object["spec"]),
        "SelfSubjectRulesReview" => rules(&call.user),
        "Binding" => {
            let Some(pods) = kinds::find("", "v1", "pods") else { return Err(Failure::method_not_allowed(kind)) };
            let name = meta(&object, "name").to_owned();
            subresources::bind_pod(api, pods, &call.target.namespace, &name, &object, call.query.dry_run()?).await?;
            return Ok(subresources::created_status(call.form));
        }
        _ => return Err(Failure::method_not_allowed(kind)),
    };
    object["status"] = status;
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    object["metadata"]["creationTimestamp"] = Value::Null;
    let include = call.query.include_object()?;
    let response = reply::value(call.form, kind, include, StatusCode::CREATED, &object);
    Ok(reply::warn(response, &call.warnings))
}

fn token_review(api: &Api, review: &Value) -> Value {
    match api.authenticator.token(review["spec"]["token"].as_str().unwrap_or("")) {
        Some(user) => json!({"authenticated": true, "user": user.info()}),
        None => json!({"user": {}, "error": "invalid bearer token"}),
    }
}

fn subject(spec: &Value) -> Result<User, Failure> {
    let name = spec["user"].as_str().unwrap_or("");
    let groups: Vec<&str> = spec["groups"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if name.is_empty() && groups.is_empty() {
        return Err(Failure::bad_request("at least one of spec.user or spec.groups must be specified"));
    }
    Ok(User::new(name, &groups))
}

fn access(user: &User, spec: &Value) -> Value {
    let text = |value: &'_ Value, field: &str| value[field].as_str().unwrap_or("").to_owned();
    let answer = if spec["nonResourceAttributes"].is_object() {
        let a = &spec["nonResourceAttributes"];
        auth::authorize(user, &Action::Path { verb: &text(a, "verb"), path: &text(a, "path") })
    } else {
        let a = &spec["resourceAttributes"];
        let action = Action::Resource {
            verb: &text(a, "verb"),
            group: &text(a, "group"),
            resource: &text(a, "resource"),
            subresource: &text(a, "subresource"),
            namespace: &text(a, "namespace"),
            name: &text(a, "name"),
        };
        auth::authorize(user, &action)
    };
    match answer {
        Ok(()) => json!({"allowed": true}),
        Err(reason) => json!({"allowed": false, "reason": reason}),
    }
}

fn rules(user: &User) -> Value {
    let (resources, paths) = if user.is_in(MASTERS) {
        (
            json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]),
            json!([{"verbs": ["*"], "nonResourceURLs": ["*"]}]),
        )
    } else {
        (
            json!([
                {"verbs": ["create"], "apiGroups": ["authorization.k8s.io"],
                 "resources": ["selfsubjectaccessreviews", "selfsubjectrulesreviews"]},
                {"verbs": ["create"], "apiGroups": ["authentication.k8s.io"], "resources": ["selfsubjectreviews"]}
            ]),
            json!([{"verbs": ["get"], "nonResourceURLs": ["/api", "/api/*", "/apis", "/apis/*", "/healthz", "/livez",
                "/openapi/*", "/readyz", "/version"]}]),
        )
    };
    json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false})
}
