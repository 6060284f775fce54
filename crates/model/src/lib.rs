//! What Kubernetes Services mean. Everything here is a pure function of its arguments: no sockets, no clock,
//! no randomness, no logging. The other crates fetch the facts, call these functions, and make the world agree.

pub mod admit;
pub mod diff;
pub mod map;
pub mod names;
pub mod object;
pub mod parse;
pub mod pool;
pub mod route;
pub mod slices;
pub mod snapshot;
pub mod verdict;
pub mod workload;

pub use object::*;
pub use snapshot::{Kind, ServiceKey, Snapshot};
