//! The Kubernetes API for one machine, as an axum Router.

pub mod discovery;
pub mod kinds;
pub mod openapi;
pub mod patch;
pub mod schema;
pub mod table;
