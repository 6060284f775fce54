//! Discovery.

/// Routes `/api`, `/apis`, `/api/v1`, `/apis/{group}`, `/apis/{group}/{version}` and `/version`. Merge it into the main router.
pub fn router<S: Clone + Send + Sync + 'static>() -> axum::Router<S> {
    axum::Router::new()
}
