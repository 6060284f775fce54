//! ClusterIP, nodePort and healthCheckNodePort: who has which. In memory, rebuilt from the list of Services at start.

use ipnet::IpNet;
use serde_json::Value;

use super::FieldError;

/// What is handed out. Make it with [`Allocations::new`], then [`Allocations::adopt`] every stored Service.
#[derive(Debug)]
pub struct Allocations {
    _cidrs: Vec<IpNet>,
    _ports: std::ops::RangeInclusive<u16>,
}

/// What one write took and what it will give back. Pass it to [`Allocations::commit`] once the write is durable, or to
/// [`Allocations::rollback`] when it failed.
#[derive(Debug, Default)]
#[must_use = "commit it after the write, or roll it back"]
pub struct Reservation {}

impl Allocations {
    pub fn new(cidrs: Vec<IpNet>, ports: std::ops::RangeInclusive<u16>) -> Self {
        Self { _cidrs: cidrs, _ports: ports }
    }

    /// Takes in a stored Service at start. Conflicts with earlier ones are tolerated: first come, first kept.
    pub fn adopt(&mut self, _service: &Value) {}

    /// Allocates what `new` needs and does not have, writing it into `new`; checks and takes what it asks for. `old` is the
    /// stored Service on an update. `pick` is a random number that chooses among the free ones.
    pub fn reserve(&mut self, _old: Option<&Value>, _new: &mut Value, _pick: u64) -> Result<Reservation, Vec<FieldError>> {
        Ok(Reservation::default())
    }

    /// The write is durable: what the old object held and the new one does not is free again.
    pub fn commit(&mut self, _reservation: Reservation) {}

    /// The write failed (or was a dry run): what it took is free again.
    pub fn rollback(&mut self, _reservation: Reservation) {}

    /// The Service is gone.
    pub fn release(&mut self, _service: &Value) {}
}
