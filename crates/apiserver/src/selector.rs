//! Which objects a list, watch or deletecollection is about: label selectors, field selectors, and the fields each kind
//! lets itself be selected by.

use std::{borrow::Cow, collections::BTreeMap};

use serde::Deserialize;
use serde_json::Value;

use crate::{kinds::Kind, store::Stored};

#[derive(Debug, Clone, PartialEq, Eq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    DoesNotExist(String),
    GreaterThan(String, i64),
    LessThan(String, i64),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct FieldTerm {
    path: String,
    equal: bool,
    value: String,
}

/// Everything that must hold. The empty selection matches every object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    labels: Vec<Requirement>,
    fields: Vec<FieldTerm>,
}

impl Selection {
    /// `label` and `field` as in the query. The error is the message of a 400.
    pub fn parse(kind: &Kind, label: Option<&str>, field: Option<&str>) -> Result<Self, String> {
        let labels = label.map_or(Ok(Vec::new()), parse_labels)?;
        let fields = field.map_or(Ok(Vec::new()), parse_fields)?;
        for term in &fields {
            supported(kind, &term.path)?;
        }
        Ok(Self { labels, fields })
    }

    /// Narrows to one name, as a watch on a named object does.
    pub fn named(mut self, name: &str) -> Self {
        self.fields.push(FieldTerm { path: "metadata.name".into(), equal: true, value: name.into() });
        self
    }

    pub fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub fn matches(&self, object: &Stored) -> bool {
        self.fields_match(object) && self.labels_match(object)
    }

    fn labels_match(&self, object: &Stored) -> bool {
        if self.labels.is_empty() {
            return true;
        }
        let Ok(head) = serde_json::from_slice::<Head<'_>>(&object.json) else { return false };
        let labels = head.metadata.labels.unwrap_or_default();
        self.labels.iter().all(|r| r.holds(|key| labels.get(key).map(AsRef::as_ref)))
    }

    fn fields_match(&self, object: &Stored) -> bool {
        let mut parsed = None;
        self.fields.iter().all(|term| {
            let equal = match term.path.as_str() {
                "metadata.name" => object.name() == term.value,
                "metadata.namespace" => object.namespace() == term.value,
                path => field_text(parsed.get_or_insert_with(|| object.value()), path) == term.value,
            };
            equal == term.equal
        })
    }
}

impl Requirement {
    fn holds<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        let number = |key: &str| label(key).and_then(|v| v.parse::<i64>().ok());
        match self {
            Self::In(key, values) => label(key).is_some_and(|v| values.iter().any(|w| w == v)),
            Self::NotIn(key, values) => label(key).is_none_or(|v| values.iter().all(|w| w != v)),
            Self::Exists(key) => label(key).is_some(),
            Self::DoesNotExist(key) => label(key).is_none(),
            Self::GreaterThan(key, bound) => number(key).is_some_and(|n| n > *bound),
            Self::LessThan(key, bound) => number(key).is_some_and(|n| n < *bound),
        }
    }
}

/// Just the labels of a serialised object, borrowed where they hold no escapes.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow, default)]
    metadata: HeadMeta<'a>,
}

#[derive(Deserialize, Default)]
struct HeadMeta<'a> {
    #[serde(borrow, default)]
    labels: Option<BTreeMap<Cow<'a, str>, Cow<'a, str>>>,
}

/// Fields beside `metadata.name` and `metadata.namespace` (`AddFieldLabelConversionFunc` upstream).
fn selectable(kind: &Kind) -> &'static [&'static str] {
    match (kind.group, kind.kind) {
        ("", "Pod") => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ],
        ("", "Node") => &["spec.unschedulable"],
        ("", "Namespace") => &["status.phase"],
        ("", "Secret") => &["type"],
        ("", "Service") => &["spec.clusterIP", "spec.type"],
        ("", "Event") | ("events.k8s.io", "Event") => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        ("apps", "ReplicaSet") => &["status.replicas"],
        ("batch", "Job") => &["status.successful"],
        ("networking.k8s.io", "IPAddress") => &["spec.parentRef.name"],
        _ => &[],
    }
}

fn supported(kind: &Kind, path: &str) -> Result<(), String> {
    let extra = selectable(kind);
    if path == "metadata.name" || path == "metadata.namespace" || extra.contains(&path) {
        return Ok(());
    }
    Err(if extra.is_empty() {
        format!("{path:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")
    } else {
        format!("field label not supported: {path}")
    })
}

/// A field as selectors compare it: absent strings are "", absent booleans and numbers their zero.
fn field_text(object: &Value, path: &str) -> String {
    let found = path.split('.').try_fold(object, |v, key| v.get(key));
    match (found, path) {
        (Some(Value::String(s)), _) => s.clone(),
        (Some(Value::Array(_)), "status.podIPs") => object["status"]["podIPs"]
            .as_array()
            .map(|ips| ips.iter().filter_map(|ip| ip["ip"].as_str()).collect::<Vec<_>>().join(","))
            .unwrap_or_default(),
        (Some(Value::Object(source)), "source") => source.get("component").and_then(Value::as_str).unwrap_or("").into(),
        (None | Some(Value::Null), "spec.unschedulable" | "spec.hostNetwork") => "false".into(),
        (None | Some(Value::Null), "status.replicas" | "status.successful") => "0".into(),
        (None | Some(Value::Null), _) => String::new(),
        (Some(other), _) => other.to_string(),
    }
}

fn parse_fields(text: &str) -> Result<Vec<FieldTerm>, String> {
    let mut terms = Vec::new();
    for part in text.split(',').filter(|p| !p.is_empty()) {
        let (path, equal, value) = if let Some((path, value)) = part.split_once("!=") {
            (path, false, value)
        } else if let Some((path, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
            (path, true, value)
        } else {
            return Err(format!("invalid selector: '{text}'; can't understand '{part}'"));
        };
        terms.push(FieldTerm { path: path.trim().into(), equal, value: value.trim().into() });
    }
    Ok(terms)
}

fn parse_labels(text: &str) -> Result<Vec<Requirement>, String> {
    let mut rest = Lexer { text, at: 0 };
    let mut requirements = Vec::new();
    loop {
        match rest.next()? {
            Token::End if requirements.is_empty() => return Ok(requirements),
            Token::Not => {
                let key = rest.word("identifier")?;
                requirements.push(Requirement::DoesNotExist(checked_key(key)?));
            }
            Token::Word(key) => requirements.push(requirement(checked_key(key)?, &mut rest)?),
            other => return Err(unexpected(&other, "!, identifier, or 'end of string'")),
        }
        match rest.next()? {
            Token::End => return Ok(requirements),
            Token::Comma => {}
            other => return Err(unexpected(&other, "',' or 'end of string'")),
        }
    }
}

fn requirement(key: String, rest: &mut Lexer<'_>) -> Result<Requirement, String> {
    Ok(match rest.peek()? {
        Token::End | Token::Comma => Requirement::Exists(key),
        operator => {
            rest.next()?;
            match operator {
                Token::Equal => Requirement::In(key, vec![rest.value()?]),
                Token::NotEqual => Requirement::NotIn(key, vec![rest.value()?]),
                Token::Greater => Requirement::GreaterThan(key, rest.number()?),
                Token::Less => Requirement::LessThan(key, rest.number()?),
                Token::Word("in") => Requirement::In(key, rest.set()?),
                Token::Word("notin") => Requirement::NotIn(key, rest.set()?),
                other => return Err(unexpected(&other, "in, notin, =, ==, !=, gt, lt")),
            }
        }
    })
}

fn unexpected(found: &Token<'_>, expected: &str) -> String {
    let found = match found {
        Token::End => "",
        Token::Word(w) => w,
        Token::Comma => ",",
        Token::Not => "!",
        Token::Equal => "=",
        Token::NotEqual => "!=",
        Token::Greater => ">",
        Token::Less => "<",
        Token::Open => "(",
        Token::Close => ")",
    };
    format!("unable to parse requirement: found '{found}', expected: {expected}")
}

/// Prefix/name, where the name has at most 63 characters of `[A-Za-z0-9_.-]` and ends in alphanumerics.
fn checked_key(key: &str) -> Result<String, String> {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(p, n)| (Some(p), n));
    let ok = is_label_text(name, 63)
        && !name.is_empty()
        && prefix.is_none_or(|p| !p.is_empty() && p.len() <= 253 && is_label_text(p, 253));
    if ok {
        return Ok(key.to_owned());
    }
    Err(format!(
        "unable to parse requirement: <nil>: Invalid value: {key:?}: name part must consist of alphanumeric characters, '-', \
         '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', \
         regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
    ))
}

fn checked_value(value: &str) -> Result<String, String> {
    if is_label_text(value, 63) {
        return Ok(value.to_owned());
    }
    Err(format!(
        "unable to parse requirement: values[0]: Invalid value: {value:?}: a valid label must be an empty string or consist \
         of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. \
         'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
    ))
}

fn is_label_text(text: &str, max: usize) -> bool {
    let bytes = text.as_bytes();
    text.len() <= max
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && bytes.first().is_none_or(u8::is_ascii_alphanumeric)
        && bytes.last().is_none_or(u8::is_ascii_alphanumeric)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    Comma,
    Not,
    Equal,
    NotEqual,
    Greater,
    Less,
    Open,
    Close,
    End,
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    fn next(&mut self) -> Result<Token<'a>, String> {
        let rest = &self.text[self.at..];
        let trimmed = rest.trim_start();
        self.at += rest.len() - trimmed.len();
        let special = |c: char| c.is_whitespace() || matches!(c, ',' | '!' | '=' | '>' | '<' | '(' | ')');
        let (token, len) = match trimmed.as_bytes() {
            [] => (Token::End, 0),
            [b'!', b'=', ..] => (Token::NotEqual, 2),
            [b'!', ..] => (Token::Not, 1),
            [b'=', b'=', ..] => (Token::Equal, 2),
            [b'=', ..] => (Token::Equal, 1),
            [b'>', ..] => (Token::Greater, 1),
            [b'<', ..] => (Token::Less, 1),
            [b',', ..] => (Token::Comma, 1),
            [b'(', ..] => (Token::Open, 1),
            [b')', ..] => (Token::Close, 1),
            _ => {
                let len = trimmed.find(special).unwrap_or(trimmed.len());
                (Token::Word(&trimmed[..len]), len)
            }
        };
        self.at += len;
        Ok(token)
    }

    fn peek(&mut self) -> Result<Token<'a>, String> {
        let at = self.at;
        let token = self.next();
        self.at = at;
        token
    }

    fn word(&mut self, expected: &str) -> Result<&'a str, String> {
        match self.next()? {
            Token::Word(w) => Ok(w),
            other => Err(unexpected(&other, expected)),
        }
    }

    /// A value may be empty: `a=` or `a=,b`.
    fn value(&mut self) -> Result<String, String> {
        match self.peek()? {
            Token::End | Token::Comma => Ok(String::new()),
            _ => checked_value(self.word("identifier")?),
        }
    }

    fn number(&mut self) -> Result<i64, String> {
        let word = self.word("integer")?;
        word.parse().map_err(|_| {
            format!("unable to parse requirement: values[0]: Invalid value: {word:?}: for 'Gt', 'Lt' operators, the value must be an integer")
        })
    }

    fn set(&mut self) -> Result<Vec<String>, String> {
        match self.next()? {
            Token::Open => {}
            other => return Err(unexpected(&other, "'('")),
        }
        let mut values = Vec::new();
        loop {
            match self.next()? {
                Token::Word(w) => values.push(checked_value(w)?),
                Token::Comma => values.push(String::new()),
                Token::Close if values.is_empty() => {
                    values.push(String::new());
                    return Ok(values);
                }
                other => return Err(unexpected(&other, "',', ')' or identifier")),
            }
            match self.next()? {
                Token::Comma => {}
                Token::Close => return Ok(values),
                other => return Err(unexpected(&other, "',' or ')'")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;
    use serde_json::json;

    fn pod(value: Value) -> Stored {
        Stored { key: "default/web".into(), revision: 1, json: value.to_string().into_bytes().into() }
    }

    fn matches(label: &str, labels: Value) -> bool {
        let kind = kinds::find("", "v1", "pods").expect("pods");
        let selection = Selection::parse(kind, Some(label), None).expect(label);
        selection.matches(&pod(json!({"metadata": {"labels": labels}})))
    }

    #[test]
    fn label_selectors_of_every_form() {
        let web = json!({"app": "web", "tier": "front", "n": "7"});
        for (selector, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier=front", true),
            ("app!=web", false),
            ("missing!=x", true),
            ("app in (web, api)", true),
            ("app notin (web,api)", false),
            ("missing notin (a)", true),
            ("app", true),
            ("!app", false),
            ("!missing , app in (web)", true),
            ("n>6", true),
            ("n < 7", false),
            ("app=", false),
            ("example.com/app", false),
        ] {
            assert_eq!(matches(selector, web.clone()), expected, "{selector}");
        }
        assert!(!matches("a=b", Value::Null));
    }

    #[test]
    fn bad_label_selectors_are_refused() {
        let kind = kinds::find("", "v1", "pods").expect("pods");
        for bad in ["a in b", "a in (b", "=x", "a b", "a,,b", "a=b=c", "-a", "a=$", "(", "a>x", "ü=x", "a in (b,c))"] {
            assert!(Selection::parse(kind, Some(bad), None).is_err(), "{bad}");
        }
    }

    #[test]
    fn field_selectors() {
        let pods = kinds::find("", "v1", "pods").expect("pods");
        let object = pod(json!({"metadata": {}, "spec": {"nodeName": "n1"}, "status": {"phase": "Running"}}));
        for (selector, expected) in [
            ("metadata.name=web", true),
            ("metadata.name!=web", false),
            ("metadata.namespace=default,spec.nodeName=n1", true),
            ("status.phase!=Running", false),
            ("spec.hostNetwork=false", true),
        ] {
            let selection = Selection::parse(pods, None, Some(selector)).expect(selector);
            assert_eq!(selection.matches(&object), expected, "{selector}");
        }
        assert_eq!(
            Selection::parse(pods, None, Some("spec.foo=1")).expect_err("unknown"),
            "field label not supported: spec.foo"
        );
        let maps = kinds::find("", "v1", "configmaps").expect("configmaps");
        assert!(Selection::parse(maps, None, Some("data.x=1")).is_err());
    }
}
