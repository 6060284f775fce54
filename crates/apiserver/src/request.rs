//! What a URL asks for: the kind, the object, the subresource and the options in the query. Pure; it refuses paths that
//! try to be clever, and leaves whether the thing exists or may be done to others.

use axum::http::Method;
use model::admit::{ErrorKind, FieldError};

use crate::{
    kinds::{self, Kind},
    schema::FieldValidation,
    status::Failure,
    table::IncludeObject,
};

/// Where in the API a request points.
#[derive(Debug, Clone)]
pub struct Target {
    pub kind: &'static Kind,
    /// Empty for cluster-scoped kinds and for requests over all namespaces.
    pub namespace: String,
    /// Empty for collections.
    pub name: String,
    pub subresource: String,
    /// Path elements below the subresource (`proxy/some/path`).
    pub rest: String,
}

impl Target {
    /// `None`: nothing is served at this path. `Err`: a name no object can have.
    pub fn parse(path: &str) -> Result<Option<Self>, Failure> {
        let mut parts = path.trim_start_matches('/').split('/');
        let (group, version) = match parts.next() {
            Some("api") => (String::new(), parts.next()),
            Some("apis") => (parts.next().unwrap_or("").to_owned(), parts.next()),
            _ => return Ok(None),
        };
        let Some(version) = version else { return Ok(None) };
        let parts: Vec<String> = parts
            .map(decode)
            .collect::<Option<_>>()
            .ok_or_else(|| Failure::bad_request("the request path holds a percent-encoding that is not UTF-8"))?;
        let parts: &[String] = match parts.as_slice() {
            [rest @ .., last] if last.is_empty() && !rest.is_empty() && rest.len() < 5 => rest,
            all => all,
        };
        let find = |plural: &str| kinds::find(&group, version, plural);
        let target = match parts {
            [ns, namespace, sub] if ns == "namespaces" && group.is_empty() && is_namespace_sub(sub) => {
                find("namespaces").map(|kind| Self::new(kind, "", namespace, sub, &[]))
            }
            [ns, namespace, plural, rest @ ..] if ns == "namespaces" => match find(plural) {
                Some(kind) if kind.namespaced => {
                    checked(namespace)?;
                    let (name, rest) = rest.split_first().map_or(("", rest), |(n, r)| (n.as_str(), r));
                    let (sub, rest) = rest.split_first().map_or(("", rest), |(s, r)| (s.as_str(), r));
                    Some(Self::new(kind, namespace, name, sub, rest))
                }
                _ => None,
            },
            [plural, rest @ ..] => match find(plural) {
                Some(kind) if !kind.namespaced || rest.is_empty() => {
                    let (name, rest) = rest.split_first().map_or(("", rest), |(n, r)| (n.as_str(), r));
                    let (sub, rest) = rest.split_first().map_or(("", rest), |(s, r)| (s.as_str(), r));
                    Some(Self::new(kind, "", name, sub, rest))
                }
                _ => None,
            },
            [] => None,
        };
        if let Some(t) = &target
            && !t.name.is_empty()
        {
            checked(&t.name)?;
        }
        Ok(target)
    }

    fn new(kind: &'static Kind, namespace: &str, name: &str, sub: &str, rest: &[String]) -> Self {
        Self { kind, namespace: namespace.into(), name: name.into(), subresource: sub.into(), rest: rest.join("/") }
    }

    /// The request's verb as authorisation and discovery name it.
    pub fn verb(&self, method: &Method, watch: bool) -> Option<&'static str> {
        Some(match (method, self.name.is_empty()) {
            (&Method::GET | &Method::HEAD, true) => {
                if watch {
                    "watch"
                } else {
                    "list"
                }
            }
            (&Method::GET | &Method::HEAD, false) => {
                if watch && self.subresource.is_empty() {
                    "watch"
                } else {
                    "get"
                }
            }
            (&Method::POST, _) => "create",
            (&Method::PUT, false) => "update",
            (&Method::PATCH, false) => "patch",
            (&Method::DELETE, true) => "deletecollection",
            (&Method::DELETE, false) => "delete",
            _ => return None,
        })
    }
}

fn is_namespace_sub(sub: &str) -> bool {
    matches!(sub, "status" | "finalize")
}

/// Names that would mean another path (`k8s.io/apimachinery/pkg/api/validation/path`).
fn checked(name: &str) -> Result<(), Failure> {
    let why = match name {
        "." | ".." => format!("may not be '{name}'"),
        n if n.contains('/') => "may not contain '/'".into(),
        n if n.contains('%') => "may not contain '%'".into(),
        n if n.len() > 1024 || n.contains('\0') => "is not a name".into(),
        _ => return Ok(()),
    };
    Err(Failure::bad_request(format!("invalid resource name {name:?}: [{why}]")))
}

/// Percent-decoding of one path element.
fn decode(text: &str) -> Option<String> {
    percent_decode(text, false)
}

fn percent_decode(text: &str, plus_is_space: bool) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        out.push(match b {
            b'%' => {
                let high = char::from(bytes.next()?).to_digit(16)?;
                let low = char::from(bytes.next()?).to_digit(16)?;
                u8::try_from(high * 16 + low).ok()?
            }
            b'+' if plus_is_space => b' ',
            other => other,
        });
    }
    String::from_utf8(out).ok()
}

/// The query string, decoded. Later values of a name lose to the first.
#[derive(Debug, Default, Clone)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let bad = || Failure::bad_request("the query string holds a bad percent-encoding");
        let mut pairs = Vec::new();
        for pair in text.split('&').filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = percent_decode(name, true).ok_or_else(bad)?;
            pairs.push((name, percent_decode(value, true).ok_or_else(bad)?));
        }
        Ok(Self(pairs))
    }

    /// The value, unless it is missing or empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str()).filter(|v| !v.is_empty())
    }

    /// Every value of a name that may be repeated.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    fn given(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// A boolean option; upstream takes everything but "false" and "0" for true.
    pub fn flag(&self, name: &str) -> bool {
        self.given(name).is_some_and(|v| !matches!(v.to_ascii_lowercase().as_str(), "false" | "0"))
    }

    pub fn number(&self, name: &str) -> Result<Option<i64>, Failure> {
        let Some(text) = self.get(name) else { return Ok(None) };
        text.parse()
            .map(Some)
            .map_err(|_| Failure::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax")))
    }

    pub fn field_validation(&self) -> Result<FieldValidation, Failure> {
        Ok(match self.get("fieldValidation") {
            None | Some("Warn") => FieldValidation::Warn,
            Some("Ignore") => FieldValidation::Ignore,
            Some("Strict") => FieldValidation::Strict,
            Some(other) => {
                let error = FieldError::not_supported("fieldValidation", other, &["Ignore", "Strict", "Warn"]);
                return Err(Failure::invalid_options("CreateOptions", &[error]));
            }
        })
    }

    pub fn dry_run(&self) -> Result<bool, Failure> {
        let mut all = false;
        for (_, value) in self.0.iter().filter(|(n, _)| n == "dryRun") {
            if value != "All" {
                let error = FieldError::not_supported("dryRun", value.as_str(), &["All"]);
                return Err(Failure::invalid_options("CreateOptions", &[error]));
            }
            all = true;
        }
        Ok(all)
    }

    pub fn include_object(&self) -> Result<IncludeObject, Failure> {
        Ok(match self.get("includeObject") {
            None | Some("Metadata") => IncludeObject::Metadata,
            Some("None") => IncludeObject::None,
            Some("Object") => IncludeObject::Object,
            Some(other) => return Err(Failure::bad_request(format!("unrecognized includeObject value: {other:?}"))),
        })
    }
}

/// How a list or watch relates to the revision it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    Unset,
    Exact,
    NotOlderThan,
}

/// The options of a list or watch.
#[derive(Debug, Clone)]
pub struct ListOptions {
    /// `None`: not given.
    pub revision: Option<u64>,
    pub revision_match: Match,
    /// 0: no limit.
    pub limit: usize,
    pub resume: Option<String>,
    pub timeout_seconds: Option<u64>,
    pub bookmarks: bool,
    pub send_initial_events: Option<bool>,
}

impl ListOptions {
    pub fn parse(query: &Query, watch: bool) -> Result<Self, Failure> {
        let revision = query.get("resourceVersion").map(parse_revision).transpose()?;
        let send_initial_events = query.given("sendInitialEvents").map(|_| query.flag("sendInitialEvents"));
        let resume = query.get("continue").map(str::to_owned);
        let mut errors = Vec::new();
        let forbidden = |field: &str, why: &str| FieldError::forbidden(field, why);
        let given = query.get("resourceVersionMatch");
        let revision_match = match given {
            None => Match::Unset,
            Some("Exact") => Match::Exact,
            Some("NotOlderThan") => Match::NotOlderThan,
            Some(other) => {
                errors.push(FieldError::new(
                    ErrorKind::NotSupported,
                    "resourceVersionMatch",
                    other,
                    "supported values: \"Exact\", \"NotOlderThan\", \"\"",
                ));
                Match::Unset
            }
        };
        if watch {
            if send_initial_events.is_some() && revision_match != Match::NotOlderThan {
                errors.push(forbidden(
                    "resourceVersionMatch",
                    "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                ));
            }
            if given.is_some() && send_initial_events.is_none() {
                errors.push(forbidden(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                ));
            }
        } else {
            if given.is_some() && revision.is_none() {
                errors.push(forbidden(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden unless resourceVersion is provided",
                ));
            }
            if given.is_some() && resume.is_some() {
                errors.push(forbidden(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden if continue is provided",
                ));
            }
            if revision_match == Match::Exact && revision == Some(0) {
                errors.push(forbidden(
                    "resourceVersionMatch",
                    "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
                ));
            }
            if send_initial_events.is_some() {
                errors.push(forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
            }
        }
        if !errors.is_empty() {
            return Err(Failure::invalid_options("ListOptions", &errors));
        }
        Ok(Self {
            revision,
            revision_match,
            limit: query.number("limit")?.and_then(|n| usize::try_from(n).ok()).unwrap_or(0),
            resume,
            timeout_seconds: query.number("timeoutSeconds")?.and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0),
            bookmarks: query.flag("allowWatchBookmarks"),
            send_initial_events,
        })
    }
}

pub fn parse_revision(text: &str) -> Result<u64, Failure> {
    text.parse().map_err(|_| {
        let error = FieldError::invalid(
            "resourceVersion",
            text,
            format!("strconv.ParseUint: parsing {text:?}: invalid syntax"),
        );
        Failure::invalid_options("ListOptions", &[error])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(path: &str) -> Option<(&'static str, String, String, String)> {
        let t = Target::parse(path).expect(path)?;
        Some((t.kind.plural, t.namespace, t.name, t.subresource))
    }

    #[test]
    fn paths_of_every_shape() {
        let all = |k, n: &str, o: &str, s: &str| Some((k, n.to_owned(), o.to_owned(), s.to_owned()));
        assert_eq!(target("/api/v1/services"), all("services", "", "", ""));
        assert_eq!(target("/api/v1/namespaces/a/services/x"), all("services", "a", "x", ""));
        assert_eq!(target("/api/v1/namespaces/a/services/x/status"), all("services", "a", "x", "status"));
        assert_eq!(target("/api/v1/namespaces/a"), all("namespaces", "", "a", ""));
        assert_eq!(target("/api/v1/namespaces/a/finalize"), all("namespaces", "", "a", "finalize"));
        assert_eq!(target("/api/v1/namespaces/"), all("namespaces", "", "", ""));
        assert_eq!(target("/apis/apps/v1/namespaces/a/deployments/x/scale"), all("deployments", "a", "x", "scale"));
        assert_eq!(target("/api/v1/nodes/n1"), all("nodes", "", "n1", ""));
        assert_eq!(target("/api/v1/pods/x"), None);
        assert_eq!(target("/api/v1/namespaces/a/nodes/n1"), None);
        assert_eq!(target("/apis/apps/v2/deployments"), None);
        assert_eq!(target("/"), None);
        assert_eq!(target("/api"), None);
    }

    #[test]
    fn path_tricks_are_refused() {
        for path in [
            "/api/v1/namespaces/a/services/..",
            "/api/v1/namespaces/../services/x",
            "/api/v1/namespaces/a/services/x%2fy",
            "/api/v1/namespaces/a/services/%2e%2e",
            "/api/v1/namespaces/a/services/x%00",
            "/api/v1/namespaces/a/services/%ff",
            "/api/v1/namespaces/a/services/%zz",
        ] {
            assert_eq!(Target::parse(path).expect_err(path).code(), 400, "{path}");
        }
    }

    #[test]
    fn list_options_that_contradict_each_other() {
        let parse = |q: &str, watch| ListOptions::parse(&Query::parse(q).expect(q), watch);
        assert!(parse("resourceVersion=5&resourceVersionMatch=Exact&limit=10", false).is_ok());
        assert!(
            parse("sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true", true).is_ok()
        );
        for (query, watch) in [
            ("resourceVersionMatch=Exact", false),
            ("resourceVersion=0&resourceVersionMatch=Exact", false),
            ("resourceVersion=5&resourceVersionMatch=Newest", false),
            ("sendInitialEvents=true", false),
            ("sendInitialEvents=true", true),
            ("resourceVersion=x", true),
        ] {
            assert_eq!(parse(query, watch).expect_err(query).code(), 422, "{query}");
        }
        assert_eq!(parse("limit=x", false).expect_err("limit").code(), 400);
    }
}
