//! OpenAPI.

/// Routes `/openapi/v2`, `/openapi/v3` and `/openapi/v3/...`. Merge it into the main router.
pub fn router<S: Clone + Send + Sync + 'static>() -> axum::Router<S> {
    axum::Router::new()
}
