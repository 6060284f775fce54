//! The log as a redb file: one table of objects, one of two numbers. A commit is an fsync.

use std::{
    fs::{File, Permissions},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, TableError};

use super::log::{Entry, Loaded, Log, LogError};

const OBJECTS: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("objects");
const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");
const FORMAT: u64 = 1;

/// Everything is in memory already: the page cache only has to serve writes.
const CACHE_BYTES: usize = 4 << 20;

pub struct RedbLog {
    path: PathBuf,
    /// Gone after a failed write: redb refuses a database that saw an I/O error until it is opened again.
    database: Option<Database>,
}

impl RedbLog {
    /// Creates the file when it is missing.
    pub fn open(path: &Path) -> Result<Self, LogError> {
        let mut log = Self { path: path.to_owned(), database: None };
        log.reopen()?;
        Ok(log)
    }

    fn reopen(&mut self) -> Result<&Database, LogError> {
        let database = match self.database.take() {
            Some(open) => open,
            None => {
                self.make_private().map_err(|e| self.io(&e))?;
                redb::Builder::new().set_cache_size(CACHE_BYTES).create(&self.path).map_err(|e| self.explain(e))?
            }
        };
        Ok(self.database.insert(database))
    }

    /// Secrets are in it: nobody else may read it, whatever the umask. An empty file is a new database to redb.
    fn make_private(&self) -> std::io::Result<()> {
        let file = File::options().create(true).append(true).mode(0o600).open(&self.path)?;
        file.set_permissions(Permissions::from_mode(0o600))
    }

    fn explain(&self, error: DatabaseError) -> LogError {
        match error {
            DatabaseError::DatabaseAlreadyOpen => LogError::Locked { path: self.path.display().to_string() },
            other => self.io(&other),
        }
    }

    fn io(&self, error: &dyn std::fmt::Display) -> LogError {
        LogError::Io(format!("{}: {error}", self.path.display()))
    }

    fn commit(&mut self, batch: &[Entry]) -> Result<(), redb::Error> {
        let Some(database) = &self.database else { return Err(redb::Error::DatabaseClosed) };
        let transaction = database.begin_write()?;
        {
            let mut objects = transaction.open_table(OBJECTS)?;
            let mut newest = 0;
            for entry in batch {
                newest = newest.max(entry.revision);
                match &entry.json {
                    Some(json) => objects.insert(&*entry.key, (entry.revision, &**json))?,
                    None => objects.remove(&*entry.key)?,
                };
            }
            let mut numbers = transaction.open_table(NUMBERS)?;
            let before = numbers.get("revision")?.map_or(0, |n| n.value());
            numbers.insert("revision", before.max(newest))?;
            numbers.insert("format", FORMAT)?;
        }
        transaction.commit()?;
        Ok(())
    }

    fn read(&self) -> Result<(Loaded, u64), redb::Error> {
        let Some(database) = &self.database else { return Err(redb::Error::DatabaseClosed) };
        let mut loaded = Loaded { revision: 0, entries: Vec::new() };
        let mut format = FORMAT;
        let transaction = database.begin_read()?;
        match transaction.open_table(NUMBERS) {
            Ok(numbers) => {
                loaded.revision = numbers.get("revision")?.map_or(0, |n| n.value());
                format = numbers.get("format")?.map_or(FORMAT, |n| n.value());
            }
            Err(TableError::TableDoesNotExist(_)) => return Ok((loaded, format)),
            Err(e) => return Err(e.into()),
        }
        for row in transaction.open_table(OBJECTS)?.iter()? {
            let (key, value) = row?;
            let (revision, json) = value.value();
            loaded.entries.push(Entry { key: key.value().to_owned(), revision, json: Some(json.into()) });
        }
        Ok((loaded, format))
    }
}

impl Log for RedbLog {
    fn load(&mut self) -> Result<Loaded, LogError> {
        self.reopen()?;
        let (loaded, format) = self.read().map_err(|e| self.io(&e))?;
        if format > FORMAT {
            return Err(LogError::NewerFormat { path: self.path.display().to_string(), format });
        }
        Ok(loaded)
    }

    fn append(&mut self, batch: &[Entry]) -> Result<(), LogError> {
        self.reopen()?;
        self.commit(batch).map_err(|e| {
            self.database = None;
            self.io(&e)
        })
    }
}
