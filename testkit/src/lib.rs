//! What the tests of the whole program stand on: a private world to run it in, a real OCI registry with real images, the
//! kubectl of today and an old one, and a probe for packets and HTTP.
//!
//! Everything that touches a network does so in a [`Lab`]: its own network, mount, process, cgroup and hostname
//! namespaces, gone without a trace when the test process ends, however it ends. The host's network is never changed.
//! Nothing here knows what the right answers are; that is for the tests to say.

pub mod cache;
pub mod debian;
pub mod http;
pub mod image;
pub mod images;
pub mod kubectl;
pub mod lab;
pub mod place;
pub mod program;
pub mod registry;
pub mod table;
pub mod upstream;
pub mod wait;

pub use kubectl::{Kubectl, Output};
pub use lab::Lab;
pub use place::Place;
pub use program::{Exit, Up};
pub use registry::Registry;
pub use upstream::Upstream;
pub use wait::until;
