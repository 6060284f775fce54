//! Strategic merge patch: a merge patch that knows which lists are maps by a key (from [`crate::schema`]) and obeys the
//! directives `$patch`, `$deleteFromPrimitiveList`, `$setElementOrder` and `$retainKeys`
//! (sig-api-machinery/strategic-merge-patch.md).

use serde_json::{Map, Value};

use super::PatchError;
use crate::{
    kinds::Kind,
    schema::{FieldType, Merge, Type, type_at, type_named},
};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM_LIST: &str = "$deleteFromPrimitiveList/";
const SET_ORDER: &str = "$setElementOrder/";

type Object = Map<String, Value>;

pub(super) fn merge(kind: &Kind, current: &Value, patch: Object) -> Result<Value, PatchError> {
    let Value::Object(current) = current.clone() else {
        return Err(PatchError::BadRequest("the stored object is not an object".into()));
    };
    merge_object(current, patch, type_named(kind.schema)).map(Value::Object)
}

fn bad(message: String) -> PatchError {
    PatchError::BadRequest(message)
}

/// `of` is `None` inside plain maps.
fn merge_object(mut original: Object, mut patch: Object, of: Option<&'static Type>) -> Result<Object, PatchError> {
    if let Some(directive) = patch.remove(DIRECTIVE) {
        match directive.as_str() {
            Some("replace") => return Ok(strip_object(patch)),
            Some("delete") => return Ok(Object::new()),
            Some("merge") => {}
            _ => return Err(bad(format!("unknown patch type: {}", super::go_print(&directive)))),
        }
    }
    if let Some(keys) = patch.remove(RETAIN_KEYS) {
        let keys = list(keys, RETAIN_KEYS)?;
        for key in patch.keys().filter(|k| !k.starts_with('$')) {
            if !patch[key].is_null() && !keys.iter().any(|k| k == key) {
                return Err(bad(format!(
                    "invalid patch: the patch must not have fields that are not in {RETAIN_KEYS}: {key}"
                )));
            }
        }
        original.retain(|name, _| keys.iter().any(|k| k == name));
    }
    let orders = take_prefixed(&mut patch, SET_ORDER)?;
    let deletions = take_prefixed(&mut patch, DELETE_FROM_LIST)?;
    let server_order: Vec<(String, Vec<Value>)> = orders
        .iter()
        .map(|(name, _)| (name.clone(), original.get(name).and_then(Value::as_array).cloned().unwrap_or_default()))
        .collect();
    for (name, gone) in deletions {
        if let Some(Value::Array(items)) = original.get_mut(&name) {
            items.retain(|item| !gone.contains(item));
        }
    }
    for (name, change) in patch {
        if change.is_null() {
            original.remove(&name);
            continue;
        }
        let field = of.and_then(|t| t.field(&name));
        let merged = match (original.remove(&name), change) {
            (Some(Value::Object(old)), Value::Object(new)) => {
                let inner = field.and_then(|f| match &f.kind {
                    FieldType::Object(i) => Some(type_at(*i)),
                    _ => None,
                });
                Value::Object(merge_object(old, new, inner)?)
            }
            (Some(Value::Array(old)), Value::Array(new)) => match field.map(|f| (f.merge, &f.kind)) {
                Some((Merge::Key(key), FieldType::List(of))) => Value::Array(merge_by_key(old, new, key, of)?),
                Some((Merge::Set, _)) => Value::Array(merge_set(old, new)),
                _ => Value::Array(strip_list(new)),
            },
            (None, Value::Array(new)) => match field.map(|f| (f.merge, &f.kind)) {
                // Deletions of what is not there must not be stored.
                Some((Merge::Key(key), FieldType::List(of))) => Value::Array(merge_by_key(Vec::new(), new, key, of)?),
                _ => Value::Array(strip_list(new)),
            },
            (_, change) => strip(change),
        };
        original.insert(name, merged);
    }
    for ((name, order), (_, before)) in orders.into_iter().zip(server_order) {
        let Some(Value::Array(items)) = original.remove(&name) else { continue };
        let key = of.and_then(|t| t.field(&name)).and_then(|f| match f.merge {
            Merge::Key(key) => Some(key),
            _ => None,
        });
        original.insert(name, Value::Array(reorder(items, &order, &before, key)));
    }
    Ok(original)
}

fn list(value: Value, what: &str) -> Result<Vec<Value>, PatchError> {
    match value {
        Value::Array(a) => Ok(a),
        other => Err(bad(format!("invalid patch: {what} must be a list, got {}", super::go_print(&other)))),
    }
}

/// Removes the directives that start with `prefix`: field and list.
fn take_prefixed(patch: &mut Object, prefix: &str) -> Result<Vec<(String, Vec<Value>)>, PatchError> {
    let names: Vec<String> = patch.keys().filter(|k| k.starts_with(prefix)).cloned().collect();
    names
        .into_iter()
        .map(|full| {
            let value = patch.remove(&full).unwrap_or_default();
            Ok((full[prefix.len()..].to_owned(), list(value, &full)?))
        })
        .collect()
}

fn merge_by_key(mut old: Vec<Value>, new: Vec<Value>, key: &str, of: &FieldType) -> Result<Vec<Value>, PatchError> {
    let inner = match of {
        FieldType::Object(i) => Some(type_at(*i)),
        _ => None,
    };
    let before = old.clone();
    let mut changes = Vec::new();
    let mut replace = false;
    for item in new {
        let Value::Object(mut item) = item else {
            return Err(bad(format!("invalid patch: the list is merged by {key:?}, its elements must be objects")));
        };
        match item.get(DIRECTIVE).map(|d| d.as_str().unwrap_or_default().to_owned()).as_deref() {
            Some("delete") => {
                let value = item.remove(key).ok_or_else(|| {
                    bad(format!(
                        "map: {} does not contain declared merge key: {key}",
                        super::go_print(&Value::Object(item.clone()))
                    ))
                })?;
                old.retain(|o| !same(o.get(key), Some(&value)));
            }
            Some("replace") => {
                item.remove(DIRECTIVE);
                replace = true;
                if !item.is_empty() {
                    changes.push(item);
                }
            }
            // `merge` is what happens to elements anyway.
            _ => changes.push(item),
        }
    }
    if replace {
        return Ok(changes.into_iter().map(|c| Value::Object(strip_object(c))).collect());
    }
    let mut order = Vec::new();
    for change in changes {
        let Some(value) = change.get(key).cloned() else {
            return Err(bad(format!(
                "map: {} does not contain declared merge key: {key}",
                super::go_print(&Value::Object(change))
            )));
        };
        match old.iter().position(|o| same(o.get(key), Some(&value))) {
            Some(at) => {
                let Value::Object(existing) = std::mem::take(&mut old[at]) else {
                    return Err(bad(format!("invalid patch: the stored list has an element without {key:?}")));
                };
                old[at] = Value::Object(merge_object(existing, change, inner)?);
            }
            None => old.push(Value::Object(merge_object(Object::new(), change, inner)?)),
        }
        order.push(Value::Object(Object::from_iter([(key.to_owned(), value)])));
    }
    Ok(reorder(old, &order, &before, Some(key)))
}

fn merge_set(mut old: Vec<Value>, new: Vec<Value>) -> Vec<Value> {
    let before = old.clone();
    for item in &new {
        if !old.contains(item) {
            old.push(item.clone());
        }
    }
    reorder(old, &new, &before, None)
}

/// Keys compare as text, so that 80 and "80" are one element.
fn same(a: Option<&Value>, b: Option<&Value>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => a == b || super::go_print(a) == super::go_print(b),
        _ => false,
    }
}

/// Elements that `order` names come in its order; the others keep their place relative to what was around them before.
fn reorder(items: Vec<Value>, order: &[Value], before: &[Value], key: Option<&str>) -> Vec<Value> {
    let identity = |v: &Value| key.map_or_else(|| Some(v.clone()), |k| v.get(k).cloned());
    let index = |among: &[Value], item: &Value| {
        let id = identity(item);
        among.iter().position(|o| same(identity(o).as_ref(), id.as_ref()))
    };
    let (mut named, others): (Vec<Value>, Vec<Value>) = items.into_iter().partition(|i| index(order, i).is_some());
    named.sort_by_key(|i| index(order, i));
    let mut out = Vec::with_capacity(named.len() + others.len());
    let (mut left, mut right) = (others.into_iter().peekable(), named.into_iter().peekable());
    loop {
        let take_left = match (left.peek(), right.peek()) {
            (None, None) => return out,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(l), Some(r)) => matches!((index(before, l), index(before, r)), (Some(l), Some(r)) if l < r),
        };
        out.extend(if take_left { left.next() } else { right.next() });
    }
}

/// A value that was not there before: without directives and nulls.
fn strip(value: Value) -> Value {
    match value {
        Value::Object(m) => Value::Object(strip_object(m)),
        Value::Array(a) => Value::Array(strip_list(a)),
        other => other,
    }
}

fn strip_object(map: Object) -> Object {
    map.into_iter()
        .filter(|(k, v)| {
            let directive =
                k == DIRECTIVE || k == RETAIN_KEYS || k.starts_with(DELETE_FROM_LIST) || k.starts_with(SET_ORDER);
            !directive && !v.is_null()
        })
        .map(|(k, v)| (k, strip(v)))
        .collect()
}

fn strip_list(items: Vec<Value>) -> Vec<Value> {
    let deleted = |v: &Value| v.get(DIRECTIVE).is_some_and(|d| d == "delete");
    let only_replace = |v: &Value| v.as_object().is_some_and(|m| m.len() == 1 && m.contains_key(DIRECTIVE));
    items.into_iter().filter(|v| !deleted(v) && !only_replace(v)).map(strip).collect()
}
