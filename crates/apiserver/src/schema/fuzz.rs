//! Bodies nobody would write: objects of the right shape with the wrong values, and shapes that are wrong. Whatever comes
//! in, decoding, admission, patching and printing answer and do not panic.

use model::admit::{self, allocate::Allocations};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Map, Value, json};

use super::{FieldType, FieldValidation, check, decode, type_at, type_named};
use crate::{
    kinds, patch,
    table::{self, IncludeObject, TableVersion},
};

const TEXTS: &[&str] = &[
    "",
    "a",
    "None",
    "ClusterIP",
    "NodePort",
    "LoadBalancer",
    "ExternalName",
    "Local",
    "Cluster",
    "ClientIP",
    "TCP",
    "UDP",
    "10.96.0.7",
    "fd00::1",
    "300.1.1.1",
    "10.0.0.0/8",
    "IPv4",
    "IPv6",
    "PreferDualStack",
    "RollingUpdate",
    "Always",
    "é\u{0}\u{202e}",
    "a/b",
    "25%",
    "2026-11-21T00:00:00Z",
    "Running",
    "True",
    "ReplicaSet",
    "kubernetes",
    "100m",
    "80",
];
const NUMBERS: &[i64] = &[0, 1, -1, 80, 443, 30_080, 65_535, 65_536, i32::MAX as i64, i32::MIN as i64];

/// A value of the type, with luck a sensible one.
fn value(kind: &FieldType, rng: &mut StdRng, depth: usize) -> Value {
    let text = |rng: &mut StdRng| Value::from(TEXTS[rng.random_range(0..TEXTS.len())]);
    if rng.random_ratio(1, 60) {
        return [Value::Null, json!(true), json!(7), json!("x"), json!([]), json!({})][rng.random_range(0..6)].clone();
    }
    match kind {
        FieldType::String => text(rng),
        FieldType::Int32 | FieldType::Int64 => NUMBERS[rng.random_range(0..NUMBERS.len())].into(),
        FieldType::Float => json!(0.5),
        FieldType::Bool => rng.random_bool(0.5).into(),
        FieldType::Bytes => "eA==".into(),
        FieldType::Time | FieldType::MicroTime => "2026-11-21T00:00:00Z".into(),
        FieldType::Quantity => ["1", "100m", "128Mi", "0", "1e3", "-1", "x"][rng.random_range(0..7)].into(),
        FieldType::IntOrString if rng.random_bool(0.5) => text(rng),
        FieldType::IntOrString => NUMBERS[rng.random_range(0..NUMBERS.len())].into(),
        FieldType::Raw => json!({"any": ["thing"]}),
        FieldType::List(of) => (0..rng.random_range(0..4)).map(|_| value(of, rng, depth + 1)).collect(),
        FieldType::Map(of) => (0..rng.random_range(0..3))
            .map(|_| (TEXTS[rng.random_range(0..TEXTS.len())].to_owned(), value(of, rng, depth + 1)))
            .collect::<Map<_, _>>()
            .into(),
        FieldType::Object(index) => {
            let mut out = Map::new();
            for field in &type_at(*index).fields {
                let likely = if depth < 3 { 0.6 } else { 0.25 };
                if depth < 12 && rng.random_bool(likely) {
                    out.insert(field.name.into(), value(&field.kind, rng, depth + 1));
                }
            }
            out.into()
        }
    }
}

/// Keys with null: nothing that is stored has one.
fn nulls(value: &Value) -> Vec<String> {
    match value {
        Value::Object(map) => {
            map.iter().flat_map(|(k, v)| if v.is_null() { vec![k.clone()] } else { nulls(v) }).collect()
        }
        Value::Array(list) => list.iter().flat_map(nulls).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn no_object_makes_admission_patching_or_printing_panic() {
    let mut rng = StdRng::seed_from_u64(0x506f_7274_6f6c_616e);
    let mut allocations = Allocations::new(vec!["10.96.0.0/24".parse().expect("cidr")], 30_000..=30_100);
    let mut accepted = 0;
    for round in 0..40 {
        for kind in kinds::all() {
            let index = super::TYPES.by_name[kind.schema];
            let mut body = value(&FieldType::Object(index), &mut rng, 0);
            if let Some(map) = body.as_object_mut() {
                map.remove("apiVersion");
                map.remove("kind");
            }
            let Ok(decoded) = decode(kind, "", body.to_string().as_bytes(), FieldValidation::Warn) else { continue };
            accepted += 1;
            let mut object = decoded.object;
            assert_eq!(
                check(kind, object.clone(), FieldValidation::Strict).map(|d| d.object),
                Ok(object.clone()),
                "decoding is stable"
            );
            let stored = object.clone();
            admit::default(kind.kind, &mut object);
            admit::prepare_create(kind.kind, &mut object);
            if kind.kind == "Service"
                && let Ok(reservation) = allocations.reserve(None, &mut object, round)
            {
                if round % 2 == 0 { allocations.commit(reservation) } else { allocations.rollback(reservation) }
            }
            for error in admit::validate_create(kind.kind, &object) {
                assert!(!error.to_string().is_empty() && error.cause().is_object());
            }
            admit::warnings(kind.kind, &object);
            assert_eq!(nulls(&object), Vec::<String>::new(), "{} {stored}", kind.kind);
            // An update to something else of the same kind.
            let mut new = value(&FieldType::Object(index), &mut rng, 0);
            if let Some(map) = new.as_object_mut() {
                map.insert("apiVersion".into(), kind.api_version().into());
                map.insert("kind".into(), kind.kind.into());
            }
            if let Ok(patched) = patch::apply(
                kind,
                "application/merge-patch+json",
                &stored,
                new.to_string().as_bytes(),
                FieldValidation::Ignore,
            ) {
                let mut new = patched.object;
                admit::default(kind.kind, &mut new);
                admit::prepare_update(kind.kind, &object, &mut new);
                if kind.kind == "Service"
                    && let Ok(reservation) = allocations.reserve(Some(&object), &mut new, round)
                {
                    allocations.commit(reservation);
                }
                admit::validate_update(kind.kind, &object, &new);
                assert_eq!(nulls(&new), Vec::<String>::new(), "{} {object}", kind.kind);
                admit::prepare_status_update(kind.kind, &object, &mut new);
                allocations.release(&new);
            }
            let _ = patch::apply(
                kind,
                "application/strategic-merge-patch+json",
                &stored,
                new.to_string().as_bytes(),
                FieldValidation::Strict,
            );
            table::table(
                kind,
                TableVersion::V1,
                &json!({}),
                &[&object, &stored],
                IncludeObject::Metadata,
                false,
                1_795_219_200,
            );
        }
    }
    assert!(accepted > 100, "the generator makes too little that decodes: {accepted}");
}

#[test]
fn no_bytes_make_decoding_panic() {
    let mut rng = StdRng::seed_from_u64(7);
    let services = kinds::find("", "v1", "services").expect("kind");
    let good = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "labels": {"x": "y"}},
        "spec": {"ports": [{"name": "http", "port": 80, "targetPort": "web"}], "selector": {"app": "web"}}});
    let yaml = b"apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  ports:\n  - port: 80\n    targetPort: &a web\n  - *a\n".to_vec();
    for seed in [good.to_string().into_bytes(), yaml] {
        for _ in 0..2000 {
            let mut body = seed.clone();
            for _ in 0..rng.random_range(1..6) {
                let at = rng.random_range(0..body.len());
                match rng.random_range(0..4) {
                    0 => body[at] = rng.random(),
                    1 => body.truncate(at.max(1)),
                    2 => body.insert(at, b"{}[]\",:-&*!\n 0"[rng.random_range(0..14)]),
                    _ => {
                        body.remove(at);
                        if body.is_empty() {
                            body.push(b'{');
                        }
                    }
                }
            }
            for content_type in ["application/json", "application/yaml"] {
                let _ = decode(services, content_type, &body, FieldValidation::Strict);
            }
            for patch_type in [
                "application/json-patch+json",
                "application/merge-patch+json",
                "application/strategic-merge-patch+json",
            ] {
                let _ = patch::apply(services, patch_type, &good, &body, FieldValidation::Strict);
            }
        }
    }
    assert!(type_named("no.such.Type").is_none());
}
