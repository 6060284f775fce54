//! Who is asking, and may they. Authentication: a client certificate of our own CA, or the bearer token in the data
//! directory; nobody else gets past health and version. Authorisation is one function, [`authorize`]: `system:masters` may
//! do everything, everybody who is known may read discovery, and all else is refused. Role-based rules belong there.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::header;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{kinds::Kind, request::Target, status::Failure};

pub const MASTERS: &str = "system:masters";
pub const AUTHENTICATED: &str = "system:authenticated";

/// The identity behind a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub name: Arc<str>,
    pub groups: Vec<Arc<str>>,
}

impl User {
    pub fn new(name: &str, groups: &[&str]) -> Self {
        Self { name: name.into(), groups: groups.iter().map(|g| Arc::from(*g)).collect() }
    }

    /// A part of this program.
    pub fn trusted(name: &str) -> Self {
        Self::new(name, &[MASTERS, AUTHENTICATED])
    }

    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| &**g == group)
    }

    /// `UserInfo` of the authentication API.
    pub fn info(&self) -> Value {
        json!({"username": &*self.name, "groups": self.groups.iter().map(|g| &**g).collect::<Vec<_>>()})
    }
}

/// What somebody wants to do.
#[derive(Debug, Clone, Copy)]
pub enum Action<'a> {
    Resource {
        verb: &'a str,
        group: &'a str,
        resource: &'a str,
        subresource: &'a str,
        namespace: &'a str,
        name: &'a str,
    },
    Path {
        verb: &'a str,
        path: &'a str,
    },
}

/// The one seam of authorisation. `Err` says why not, for reviews.
pub fn authorize(user: &User, action: &Action<'_>) -> Result<(), &'static str> {
    if user.is_in(MASTERS) {
        return Ok(());
    }
    match action {
        Action::Path { verb: "get", path } if user.is_in(AUTHENTICATED) && is_discovery(path) => Ok(()),
        Action::Resource { verb: "create", group, resource, .. }
            if user.is_in(AUTHENTICATED) && is_self_review(group, resource) =>
        {
            Ok(())
        }
        _ => Err("only members of system:masters are authorized"),
    }
}

/// `system:basic-user`: everybody may ask what they may do.
fn is_self_review(group: &str, resource: &str) -> bool {
    matches!(
        (group, resource),
        ("authorization.k8s.io", "selfsubjectaccessreviews" | "selfsubjectrulesreviews")
            | ("authentication.k8s.io", "selfsubjectreviews")
    )
}

/// `system:discovery`
fn is_discovery(path: &str) -> bool {
    let path = path.trim_end_matches('/');
    is_public(path)
        || path == "/api"
        || path == "/apis"
        || path.starts_with("/openapi/")
        || (path.starts_with("/api/") && path.matches('/').count() == 2)
        || (path.starts_with("/apis/") && path.matches('/').count() <= 3)
}

/// What anybody may read.
fn is_public(path: &str) -> bool {
    let first = path.trim_start_matches('/').split('/').next().unwrap_or("");
    matches!(first, "healthz" | "livez" | "readyz") || path == "/version" || path == "/version/"
}

/// A refused resource request, in upstream's words.
pub fn forbidden(user: &User, verb: &str, target: &Target) -> Failure {
    let Kind { group, plural, .. } = target.kind;
    let resource =
        if target.subresource.is_empty() { (*plural).to_owned() } else { format!("{plural}/{}", target.subresource) };
    let scope = if target.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {:?}", target.namespace)
    };
    let why = format!("User {:?} cannot {verb} resource {resource:?} in API group {group:?} {scope}", &*user.name);
    Failure::forbidden(target.kind, &target.name, &why)
}

/// Put into the request by the TLS listener when the client proved who it is.
#[derive(Debug, Clone)]
pub struct PeerCertificate(pub User);

/// Knows every secret that names a user.
#[derive(Debug)]
pub struct Authenticator {
    /// Digests, so that comparing takes the same time whatever was sent.
    tokens: Vec<([u8; 32], User)>,
}

impl Authenticator {
    pub fn new(admin_token: &str) -> Self {
        Self { tokens: vec![(digest(admin_token), User::new("portolan-admin", &[MASTERS, AUTHENTICATED]))] }
    }

    pub fn token(&self, token: &str) -> Option<User> {
        let asked = digest(token);
        self.tokens.iter().find(|(known, _)| *known == asked).map(|(_, user)| user.clone())
    }

    /// `None`: anonymous. `Err`: credentials were sent and are wrong.
    fn user(&self, request: &Request) -> Result<Option<User>, Failure> {
        if let Some(PeerCertificate(user)) = request.extensions().get() {
            return Ok(Some(user.clone()));
        }
        let Some(value) = request.headers().get(header::AUTHORIZATION) else { return Ok(None) };
        let token = value.to_str().ok().and_then(|v| {
            let (scheme, token) = v.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
        match token.and_then(|t| self.token(t)) {
            Some(user) => Ok(Some(user)),
            None => Err(Failure::unauthorized()),
        }
    }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// Finds out who is asking; strangers see health and version only.
pub async fn authenticate(State(who): State<Arc<Authenticator>>, mut request: Request, next: Next) -> Response {
    let user = match who.user(&request) {
        Ok(Some(user)) => user,
        Ok(None) if is_public(request.uri().path()) => User::new("system:anonymous", &["system:unauthenticated"]),
        Ok(None) => return Failure::unauthorized().into_response(),
        Err(refused) => return refused.into_response(),
    };
    request.extensions_mut().insert(user);
    next.run(request).await
}

/// Everything that is not an object: discovery, OpenAPI, health.
pub async fn authorize_paths(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let verb = request.method().as_str().to_ascii_lowercase();
    let allowed = is_public(path)
        || request
            .extensions()
            .get::<User>()
            .is_some_and(|u| authorize(u, &Action::Path { verb: &verb, path }).is_ok());
    if allowed {
        return next.run(request).await;
    }
    let name = request.extensions().get::<User>().map_or_else(|| "system:anonymous".into(), |u| u.name.clone());
    Failure::forbidden_path(&format!("User {:?} cannot {verb} path {path:?}", &*name)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masters_do_everything_and_others_only_discover() {
        let get = Action::Resource {
            verb: "get",
            group: "",
            resource: "services",
            subresource: "",
            namespace: "default",
            name: "x",
        };
        assert!(authorize(&User::trusted("controllers"), &get).is_ok());
        let bob = User::new("bob", &[AUTHENTICATED]);
        assert!(authorize(&bob, &get).is_err());
        for path in ["/api", "/apis", "/api/v1", "/apis/apps/v1", "/openapi/v3/api/v1", "/version"] {
            assert!(authorize(&bob, &Action::Path { verb: "get", path }).is_ok(), "{path}");
        }
        assert!(authorize(&bob, &Action::Path { verb: "get", path: "/metrics" }).is_err());
    }

    #[test]
    fn forbidden_reads_like_upstream() {
        let target = Target::parse("/api/v1/namespaces/default/services/x").expect("path").expect("target");
        assert_eq!(
            forbidden(&User::new("bob", &[]), "get", &target).message(),
            "services \"x\" is forbidden: User \"bob\" cannot get resource \"services\" in API group \"\" in the \
             namespace \"default\""
        );
    }
}
