//! The API edge: how the roles reach the Kubernetes API (in this process or over the network), how they see it
//! ([`view`], [`objects`]) and how they write to it ([`write`], [`event`]). It refuses to know what is right: it carries
//! facts to the pure functions of `model` and their answers back.

pub mod connect;
pub mod discovery;
pub mod event;
pub mod objects;
pub mod resource;
pub mod view;
pub mod watch;
pub mod write;

pub use resource::Resource;

/// What talking to the API can end in. The text says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the kubeconfig {path} cannot be used: {cause}. Give the path of a readable kubeconfig with --kubeconfig")]
    Kubeconfig { path: String, cause: String },
    /// The API server refused; `reason` is the Status reason (`Conflict`, `NotFound`, ...).
    #[error("the API server refused to {what}: {message}")]
    Refused { what: String, code: u16, reason: String, message: String },
    #[error("the API server cannot be reached to {what}: {cause}")]
    Unreachable { what: String, cause: String },
    #[error("the API server's answer to {what} is not understood: {cause}")]
    Answer { what: String, cause: String },
}

impl Error {
    pub(crate) fn of(what: &str, e: kube::Error) -> Self {
        match e {
            kube::Error::Api(status) => Self::Refused {
                what: what.into(),
                code: status.code,
                reason: status.reason.clone(),
                message: if status.message.is_empty() { status.reason.clone() } else { status.message.clone() },
            },
            kube::Error::SerdeError(e) => Self::Answer { what: what.into(), cause: e.to_string() },
            e => Self::Unreachable { what: what.into(), cause: cause_chain(&e) },
        }
    }

    fn has_reason(&self, wanted: &str, status: u16) -> bool {
        matches!(self, Self::Refused { code, reason, .. } if reason == wanted || (reason.is_empty() && *code == status))
    }

    /// The object changed since it was read: read again and retry.
    pub fn is_conflict(&self) -> bool {
        self.has_reason("Conflict", 409)
    }

    pub fn is_already_exists(&self) -> bool {
        self.has_reason("AlreadyExists", 0)
    }

    pub fn is_not_found(&self) -> bool {
        self.has_reason("NotFound", 404)
    }

    /// The resourceVersion is too old to continue from: list again.
    pub fn is_expired(&self) -> bool {
        matches!(self, Self::Refused { code: 410, .. })
            || self.has_reason("Expired", 410)
            || self.has_reason("Gone", 410)
    }
}

/// Libraries nest the telling part ("connection refused") below general words.
fn cause_chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(s) = source {
        let part = s.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        source = s.source();
    }
    text
}
