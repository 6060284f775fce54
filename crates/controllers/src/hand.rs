//! The hand that writes: every write is remembered together with how it will show up in the [`World`], so that the next
//! decision about the same object is made only from a world that contains it. Nothing is created twice.

use std::sync::{Mutex, PoisonError};

use cluster::{
    Error,
    write::{DeleteOptions, PatchKind, Propagation, Writer},
};
use model::{Kind, ObjectKey, parse};
use serde_json::Value;

use crate::world::{Table, World};

/// How a write is recognised.
#[derive(Debug)]
pub enum Write {
    /// The table has reached this resourceVersion.
    At(Table, u64),
    /// The object with this uid is gone or on its way out.
    Gone(Table, ObjectKey, String),
    /// The pod is on a node, or no longer there.
    Bound(ObjectKey),
}

impl Write {
    pub fn is_in(&self, world: &World) -> bool {
        match self {
            Self::At(table, revision) => world.revision(*table) >= *revision,
            Self::Gone(table, key, uid) => !world.is_alive(*table, key, uid),
            Self::Bound(key) => world.snapshot.pods.get(key).is_none_or(|p| p.node.is_some() || p.meta.deleting),
        }
    }
}

/// Writes for one decision about one object.
pub struct Hand<'a> {
    writer: &'a Writer,
    wrote: Mutex<Vec<Write>>,
}

impl<'a> Hand<'a> {
    pub fn new(writer: &'a Writer) -> Self {
        Self { writer, wrote: Mutex::default() }
    }

    pub fn into_writes(self) -> Vec<Write> {
        self.wrote.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, write: Write) {
        self.wrote.lock().unwrap_or_else(PoisonError::into_inner).push(write);
    }

    pub fn writer(&self) -> &Writer {
        self.writer
    }

    pub async fn create(&self, table: Table, namespace: &str, object: &Value) -> Result<Value, Error> {
        let made = self.writer.create(&table.resource(), namespace, object).await?;
        self.note(Write::At(table, parse::revision(&made)));
        Ok(made)
    }

    pub async fn update(&self, table: Table, object: &Value) -> Result<(), Error> {
        let made = self.writer.update(&table.resource(), "", object).await?;
        self.note(Write::At(table, parse::revision(&made)));
        Ok(())
    }

    /// `sub` is "" or "status".
    pub async fn patch(
        &self,
        table: Table,
        key: &ObjectKey,
        sub: &str,
        kind: PatchKind,
        patch: &Value,
    ) -> Result<(), Error> {
        let made = self.writer.patch(&table.resource(), key, sub, kind, patch).await?;
        self.note(Write::At(table, parse::revision(&made)));
        Ok(())
    }

    /// Deletes exactly the object with this uid. One that is gone already is no error.
    pub async fn delete(&self, table: Table, key: &ObjectKey, uid: &str) -> Result<(), Error> {
        let options = DeleteOptions {
            uid: Some(uid.into()).filter(|u: &String| !u.is_empty()),
            propagation: Some(Propagation::Background),
            ..DeleteOptions::default()
        };
        match self.writer.delete(&table.resource(), key, &options).await {
            Ok(_) => (),
            // Gone, or another object has its name by now: either way this one will leave the view.
            Err(e) if e.is_not_found() || e.is_conflict() => (),
            Err(e) => return Err(e),
        }
        self.note(Write::Gone(table, key.clone(), uid.into()));
        Ok(())
    }

    pub async fn bind(&self, pod: &ObjectKey, binding: &Value) -> Result<(), Error> {
        let resource = Table::Model(Kind::Pod).resource();
        self.writer.create_sub(&resource, pod, "binding", binding).await?;
        self.note(Write::Bound(pod.clone()));
        Ok(())
    }
}
