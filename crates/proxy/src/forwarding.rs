//! Whether the node forwards its pods' packets at all. A Docker host drops by default what is forwarded (policy of
//! iptables' `FORWARD`), which no rule of ours can overrule; that one chain is shared, so the pods' interface is added
//! to its end. Anybody else's chain is theirs: then the administrator is told.

use std::sync::Arc;

use sys::nft::{Error, Forwarding, Kernel};

use crate::layout;

pub struct Gate {
    interface: Arc<str>,
    /// What was said last, not to say it again.
    told: Forwarding,
}

impl Gate {
    pub fn new(interface: Arc<str>) -> Self {
        Self { interface, told: Forwarding::default() }
    }

    /// Opens what can be opened and tells what cannot. Cheap, and does nothing when all is well.
    pub fn open(&mut self) -> Result<(), Error> {
        let found = Kernel::open()?.admit_forwarding(&self.interface, layout::TABLE)?;
        let interface = &self.interface;
        for chain in &found.opened {
            tracing::info!("{chain} drops what is forwarded: added rules that accept {interface}'s packets");
        }
        for chain in found.blocking.iter().filter(|c| !self.told.blocking.contains(c)) {
            tracing::warn!(
                "the firewall chain {chain} drops what is forwarded, so pods cannot reach each other or the outside; \
                 allow their interface: nft add rule {chain} iifname {interface} accept; \
                 nft add rule {chain} oifname {interface} accept"
            );
        }
        self.told = found;
        Ok(())
    }
}

/// Takes back what any proxy opened.
pub fn close() -> Result<(), Error> {
    let mut kernel = Kernel::open()?;
    // Somebody may change the firewall between looking and removing.
    for _ in 0..5 {
        match kernel.retract_forwarding(layout::TABLE) {
            Err(Error::Interrupted | Error::Refused { .. }) => {}
            done => return done.map(drop),
        }
    }
    kernel.retract_forwarding(layout::TABLE).map(drop)
}
