//! Where the API is: a Router in this process, or an address in a kubeconfig. Everything else is the same.

use std::{convert::Infallible, path::Path};

use axum::{Router, body::Body};
use tower::ServiceExt;

use crate::Error;

/// A client whose requests are calls into `router`: no socket, no TLS, no token.
pub fn in_process(router: Router) -> kube::Client {
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let router = router.clone();
        async move {
            Ok::<_, Infallible>(router.oneshot(request.map(Body::new)).await.unwrap_or_else(|never| match never {}))
        }
    });
    kube::Client::new(service, "default")
}

/// A client for the current context of the kubeconfig at `path`.
pub async fn kubeconfig(path: &Path) -> Result<kube::Client, Error> {
    let fail = |cause: String| Error::Kubeconfig { path: path.display().to_string(), cause };
    let file = kube::config::Kubeconfig::read_from(path).map_err(|e| fail(crate::cause_chain(&e)))?;
    let options = kube::config::KubeConfigOptions::default();
    let config =
        kube::Config::from_custom_kubeconfig(file, &options).await.map_err(|e| fail(crate::cause_chain(&e)))?;
    kube::Client::try_from(config).map_err(|e| fail(crate::cause_chain(&e)))
}
