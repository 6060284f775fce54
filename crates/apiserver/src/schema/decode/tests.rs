use serde_json::{Value, json};

use super::*;
use crate::kinds::find;

fn service(body: &str, validation: FieldValidation) -> Result<Decoded, DecodeError> {
    decode(find("", "v1", "services").expect("services"), "application/json", body.as_bytes(), validation)
}

fn message(result: Result<Decoded, DecodeError>) -> String {
    match result {
        Err(DecodeError::BadRequest(m)) => m,
        other => panic!("expected a BadRequest, got {other:?}"),
    }
}

#[test]
fn wrong_types_are_refused_in_kube_apiservers_words() {
    let e = message(service(r#"{"spec":{"ports":[{"port":"eighty"}]}}"#, FieldValidation::Ignore));
    assert_eq!(
        e,
        "Service in version \"v1\" cannot be handled as a Service: json: cannot unmarshal string into Go struct field \
         ServicePort.spec.ports.port of type int32"
    );
    let e = message(service(r#"{"spec":{"ports":{"port":80}}}"#, FieldValidation::Ignore));
    assert!(
        e.ends_with("cannot unmarshal object into Go struct field ServiceSpec.spec.ports of type []v1.ServicePort"),
        "{e}"
    );
    let e = message(service(r#"{"metadata":{"labels":{"a":1}}}"#, FieldValidation::Ignore));
    assert!(
        e.ends_with("cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string"),
        "{e}"
    );
    let e = message(service(r#"{"spec":{"ports":[{"port":3000000000}]}}"#, FieldValidation::Ignore));
    assert!(
        e.ends_with(
            "cannot unmarshal number 3000000000 into Go struct field ServicePort.spec.ports.port of type int32"
        ),
        "{e}"
    );
    let e = message(service(r#"{"spec":{"ports":[{"port":80.5}]}}"#, FieldValidation::Ignore));
    assert!(e.contains("cannot unmarshal number 80.5 into"), "{e}");
    let e = message(service(r#"{"spec":{"type":true}}"#, FieldValidation::Ignore));
    assert!(e.ends_with("of type v1.ServiceType"), "{e}");
}

#[test]
fn unknown_and_duplicate_fields_by_field_validation() {
    let body = r#"{"spec":{"foo":1,"ports":[{"port":80,"port":81,"bar":[{}]}]}}"#;
    let e = message(service(body, FieldValidation::Strict));
    assert_eq!(
        e,
        "Service in version \"v1\" cannot be handled as a Service: strict decoding error: unknown field \"spec.foo\", \
         duplicate field \"spec.ports[0].port\", unknown field \"spec.ports[0].bar\""
    );
    let warned = service(body, FieldValidation::Warn).expect("decoded");
    assert_eq!(warned.warnings[0], "unknown field \"spec.foo\"");
    assert_eq!(warned.object["spec"], json!({"ports": [{"port": 81}]}), "unknown fields are never kept");
    assert!(service(body, FieldValidation::Ignore).expect("decoded").warnings.is_empty());
}

#[test]
fn kinds_and_versions_must_fit() {
    let d = service(r#"{"metadata":{"name":"a"}}"#, FieldValidation::Strict).expect("defaults to the endpoint's kind");
    assert_eq!((&d.object["kind"], &d.object["apiVersion"]), (&json!("Service"), &json!("v1")));
    assert_eq!(
        message(service(r#"{"kind":"Pod","apiVersion":"v1"}"#, FieldValidation::Ignore)),
        "Pod in version \"v1\" cannot be handled as a Service: converting (v1.Pod) to (core.Service): unknown conversion"
    );
    assert_eq!(
        message(service("", FieldValidation::Ignore)),
        "the object provided is unrecognized (must be of type Service): couldn't get version/kind; json parse error: \
         unexpected end of JSON input (<empty>)"
    );
    assert!(
        message(service(r#"{"kind":1}"#, FieldValidation::Ignore))
            .contains("cannot unmarshal number into Go struct field .kind")
    );
    assert!(
        message(service("{\"kind\":\"Service\",}", FieldValidation::Ignore))
            .contains("invalid character '}' looking for beginning of")
    );
    assert!(matches!(
        decode(
            find("", "v1", "pods").expect("pods"),
            "application/vnd.kubernetes.protobuf",
            b"",
            FieldValidation::Ignore
        ),
        Err(DecodeError::UnsupportedMediaType(_))
    ));
}

#[test]
fn deep_nesting_and_garbage_are_bounded() {
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    message(service(&deep, FieldValidation::Strict));
    let deep = format!("{}{}", "{\"a\":".repeat(50_000), "}".repeat(50_000));
    message(service(&deep, FieldValidation::Strict));
    for body in ["[", "nul", "\"x", "{\"spec\":", "1e999", "[]", "3", "\u{0}", "{\"metadata\":[]}"] {
        message(service(body, FieldValidation::Strict));
    }
    let yaml = format!("a: {}", "[".repeat(5_000));
    let pods = find("", "v1", "pods").expect("pods");
    assert!(decode(pods, "application/yaml", yaml.as_bytes(), FieldValidation::Strict).is_err());
}

#[test]
fn yaml_bodies() {
    let yaml = b"kind: ConfigMap\napiVersion: v1\nmetadata: {name: a}\ndata:\n  80: x\n  b: |\n    two\n    lines\n";
    let cm = find("", "v1", "configmaps").expect("configmaps");
    let d = decode(cm, "application/yaml", yaml, FieldValidation::Strict).expect("yaml");
    assert_eq!(d.object["data"], json!({"80": "x", "b": "two\nlines\n"}));
    let wrong = decode(cm, "application/yaml", b"data: {a: 1}", FieldValidation::Strict);
    assert!(message(wrong).ends_with("cannot unmarshal number into Go struct field ConfigMap.data of type string"));
}

#[test]
fn empties_are_dropped_but_choices_stay() {
    let pods = find("", "v1", "pods").expect("pods");
    let body = json!({"metadata": {"name": "p", "labels": {}, "creationTimestamp": null},
        "spec": {"nodeName": "", "hostAliases": [], "replicas": null,
                 "volumes": [{"name": "v", "emptyDir": {}}], "automountServiceAccountToken": false,
                 "containers": [{"name": "c", "resources": {"requests": {"cpu": 0.5, "memory": "1024Mi"}}, "env": [{"name": "A", "value": ""}]}]}});
    let d = decode(pods, "", body.to_string().as_bytes(), FieldValidation::Ignore).expect("decoded");
    assert_eq!(d.object["metadata"], json!({"name": "p"}));
    assert_eq!(d.object["spec"]["volumes"], json!([{"name": "v", "emptyDir": {}}]));
    assert_eq!(d.object["spec"]["automountServiceAccountToken"], json!(false));
    assert!(d.object["spec"].get("nodeName").is_none() && d.object["spec"].get("hostAliases").is_none());
    assert_eq!(d.object["spec"]["containers"][0]["resources"]["requests"], json!({"cpu": "500m", "memory": "1Gi"}));
    let again = check(pods, d.object.clone(), FieldValidation::Strict).expect("stable");
    assert_eq!(again.object, d.object);
}

#[test]
fn int_or_string_time_and_bytes() {
    let d = service(r#"{"spec":{"ports":[{"targetPort":"http"},{"targetPort":8080}]}}"#, FieldValidation::Strict)
        .expect("ok");
    assert_eq!(d.object["spec"]["ports"], json!([{"targetPort": "http"}, {"targetPort": 8080}]));
    assert!(
        message(service(r#"{"spec":{"ports":[{"targetPort":{}}]}}"#, FieldValidation::Strict))
            .contains("of type int32")
    );
    let e = message(service(r#"{"metadata":{"creationTimestamp":"yesterday"}}"#, FieldValidation::Strict));
    assert!(e.contains("parsing time \"yesterday\" as"), "{e}");
    let secrets = find("", "v1", "secrets").expect("secrets");
    let e = message(decode(secrets, "", br#"{"data":{"a":"*"}}"#, FieldValidation::Strict));
    assert!(e.ends_with("illegal base64 data at input byte 0"), "{e}");
    let leases = find("coordination.k8s.io", "v1", "leases").expect("leases");
    let d = decode(leases, "", br#"{"spec":{"renewTime":"2026-11-21T01:02:03.5+01:00"}}"#, FieldValidation::Strict)
        .expect("ok");
    assert_eq!(d.object["spec"]["renewTime"], Value::from("2026-11-21T00:02:03.500000Z"));
}
