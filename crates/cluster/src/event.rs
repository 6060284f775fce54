//! Events: what an operator reads in `kubectl describe`. The same thing happening again raises the count of one Event
//! (as client-go's recorder does) instead of filling the store.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{Error, resource, write::PatchKind, write::Writer};

/// Distinct Events remembered for counting; beyond it the oldest knowledge is dropped and a new Event is begun.
const REMEMBERED: usize = 4096;
/// Events waiting to be written. More than that are dropped: they are for people, and people are slower.
const WAITING: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    Normal,
    Warning,
}

/// The object an Event is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct ObjectReference {
    pub api_version: String,
    pub kind: String,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// `spec.containers{web}` and the like; empty for the whole object.
    pub field_path: String,
}

impl ObjectReference {
    /// From a raw object with its kind and apiVersion.
    pub fn of(object: &Value) -> Self {
        let s = |v: &Value| v.as_str().unwrap_or_default().to_string();
        let m = &object["metadata"];
        Self {
            api_version: s(&object["apiVersion"]),
            kind: s(&object["kind"]),
            namespace: s(&m["namespace"]),
            name: s(&m["name"]),
            uid: s(&m["uid"]),
            field_path: String::new(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Occurrence {
    about: ObjectReference,
    kind: EventType,
    reason: String,
    message: String,
}

/// Records Events in the background; never blocks and never fails its caller.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Occurrence>,
}

impl Recorder {
    /// `component` is the Event's source ("deployment-controller"), `host` the node's name or empty.
    pub fn new(client: kube::Client, component: &'static str, host: &str) -> Self {
        let (queue, mut waiting) = mpsc::channel::<Occurrence>(WAITING);
        let (host, writer) = (host.to_string(), Writer::new(client, component));
        tokio::spawn(async move {
            let known = Mutex::new(HashMap::new());
            while let Some(occurrence) = waiting.recv().await {
                if let Err(e) = write(&writer, component, &host, &known, &occurrence).await {
                    tracing::warn!("Event {} of {} is lost: {e}", occurrence.reason, occurrence.about.name);
                }
            }
        });
        Self { queue }
    }

    pub fn normal(&self, about: &ObjectReference, reason: &str, message: impl Into<String>) {
        self.record(about, EventType::Normal, reason, message.into());
    }

    pub fn warning(&self, about: &ObjectReference, reason: &str, message: impl Into<String>) {
        self.record(about, EventType::Warning, reason, message.into());
    }

    fn record(&self, about: &ObjectReference, kind: EventType, reason: &str, mut message: String) {
        if let Some((end, _)) = message.char_indices().nth(1000) {
            message.truncate(end); // events/v1 allows a note of 1 kB
        }
        let occurrence = Occurrence { about: about.clone(), kind, reason: reason.into(), message };
        if self.queue.try_send(occurrence).is_err() {
            tracing::debug!("Event {reason} of {} is dropped: too many are waiting", about.name);
        }
    }
}

/// Name of the Event that counts an occurrence, and the count so far.
type Known = Mutex<HashMap<Arc<Occurrence>, (String, u64)>>;

async fn write(writer: &Writer, component: &str, host: &str, known: &Known, o: &Occurrence) -> Result<(), Error> {
    let now = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second()).unwrap_or_default().to_string();
    let namespace = if o.about.namespace.is_empty() { "default" } else { &o.about.namespace };
    let before = known.lock().unwrap_or_else(PoisonError::into_inner).get(o).cloned();
    if let Some((name, count)) = before {
        let patch = json!({"count": count + 1, "lastTimestamp": now});
        let key = model::ObjectKey::new(namespace, name.as_str());
        match writer.patch(&resource::EVENT, &key, "", PatchKind::Merge, &patch).await {
            Ok(_) => {
                known.lock().unwrap_or_else(PoisonError::into_inner).insert(Arc::new(o.clone()), (name, count + 1));
                return Ok(());
            }
            Err(e) if e.is_not_found() => (), // it expired: begin a new one
            Err(e) => return Err(e),
        }
    }
    // As client-go names them: unique by time, and the object is seen in the name.
    let name = format!("{}.{:016x}", o.about.name, jiff::Timestamp::now().as_nanosecond());
    let event = json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {"name": name, "namespace": namespace},
        "involvedObject": reference(&o.about),
        "reason": o.reason, "message": o.message,
        "source": if host.is_empty() { json!({"component": component}) } else { json!({"component": component, "host": host}) },
        "firstTimestamp": now, "lastTimestamp": now, "count": 1,
        "type": match o.kind { EventType::Normal => "Normal", EventType::Warning => "Warning" },
        "reportingComponent": component, "reportingInstance": host,
    });
    let created = writer.create(&resource::EVENT, namespace, &event).await?;
    let name = created["metadata"]["name"].as_str().unwrap_or_default().to_string();
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    if known.len() >= REMEMBERED {
        known.clear();
    }
    known.insert(Arc::new(o.clone()), (name, 1));
    Ok(())
}

fn reference(r: &ObjectReference) -> Value {
    let mut v = json!({"kind": r.kind, "name": r.name, "uid": r.uid, "apiVersion": r.api_version});
    if !r.namespace.is_empty() {
        v["namespace"] = r.namespace.as_str().into();
    }
    if !r.field_path.is_empty() {
        v["fieldPath"] = r.field_path.as_str().into();
    }
    v
}
