//! The loop: the newest snapshot compiled, compared with what is there, and made so. No change is ever the unit of
//! work, so none can be lost; after an error what is there is unknown, and it is read before the next try.

use model::Snapshot;

use crate::Error;

/// Something outside this process that is to equal a function of the snapshot.
pub trait Target {
    type Desired;
    /// Pure. `have` lets numbers and slots stay stable; it never changes the meaning.
    fn compile(&self, snapshot: &Snapshot, have: &Self::Desired) -> Self::Desired;
    /// Reads back what is really there: at start, after a failure, and when something else may have changed it.
    fn observe(&mut self) -> Result<Self::Desired, Error>;
    /// Makes `have` into `want`: one atomic step where the kernel allows, make-before-break where not.
    fn apply(&mut self, have: &Self::Desired, want: &Self::Desired) -> Result<(), Error>;
    /// Somebody may have changed what is there since the last `observe` or `apply`. Cheap.
    fn drifted(&mut self) -> Result<bool, Error>;
}

/// A target with what is known to be there.
pub struct Reconciler<T: Target> {
    pub target: T,
    have: Option<T::Desired>,
}

impl<T: Target> Reconciler<T> {
    pub fn new(target: T) -> Self {
        Self { target, have: None }
    }

    /// What the target holds, when that is known.
    pub fn have(&self) -> Option<&T::Desired> {
        self.have.as_ref()
    }

    /// Nothing is known any more: the next `reconcile` observes first.
    pub fn forget(&mut self) {
        self.have = None;
    }

    /// Makes the target equal to the snapshot. Returns what was there before. A snapshot that is not complete is not
    /// acted on: absence would mean nothing.
    pub fn reconcile(&mut self, snapshot: &Snapshot) -> Result<Option<T::Desired>, Error> {
        if !snapshot.is_complete() {
            return Ok(None);
        }
        let have = match self.have.take() {
            Some(have) => have,
            None => self.target.observe()?,
        };
        let want = self.target.compile(snapshot, &have);
        self.target.apply(&have, &want)?;
        self.have = Some(want);
        Ok(Some(have))
    }
}
