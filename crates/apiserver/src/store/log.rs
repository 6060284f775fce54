//! What the store asks of whatever keeps its writes. Narrow on purpose: a file today, etcd as well later.

/// One object as the log keeps it.
pub struct Entry {
    /// `/registry/{group or core}/{plural}/{namespace}/{name}`
    pub key: String,
    pub revision: u64,
    /// `None` deletes.
    pub json: Option<Box<[u8]>>,
}

/// Everything that is there, at one revision.
pub struct Loaded {
    pub revision: u64,
    pub entries: Vec<Entry>,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum LogError {
    #[error(
        "{path} is in use by another process: another portolan runs on this data directory. Stop it (portolan down), or \
         choose another --data-dir"
    )]
    Locked { path: String },
    #[error("{path} was written by a newer version (format {format}): use that version, or another --data-dir")]
    NewerFormat { path: String, format: u64 },
    #[error("{0}")]
    Io(String),
}

/// A durable map from key to object with one growing revision. Called from one thread.
pub trait Log: Send {
    /// Reads everything. Called once, before the first append.
    fn load(&mut self) -> Result<Loaded, LogError>;

    /// Makes the batch durable, all or nothing, and the newest revision in it the log's revision. After an error nothing is
    /// known: the caller repeats what it still wants in its next batch.
    fn append(&mut self, batch: &[Entry]) -> Result<(), LogError>;
}
