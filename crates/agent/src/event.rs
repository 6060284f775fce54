//! Events about pods, in kubelet's words. Sending never delays or fails the caller; a repeated event is counted, not
//! written again. What is worth an Event is decided by whoever calls.

use std::{collections::HashMap, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::sync::mpsc;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Normal,
    Warning,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

#[derive(Debug)]
struct Record {
    namespace: String,
    pod: String,
    uid: String,
    /// `spec.containers{name}`, or empty when it is about the whole pod.
    field_path: String,
    kind: Kind,
    reason: &'static str,
    message: String,
}

#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::UnboundedSender<Record>,
}

/// Events not sent because the server refuses them are tried this often, then dropped: they are advice, not state.
const TRIES: u32 = 3;
/// Distinct events remembered for counting.
const REMEMBERED: usize = 4096;

impl Recorder {
    /// Starts the task that sends; it ends with the last recorder.
    pub fn start(client: Client, node: String) -> Self {
        let (queue, mut inbox) = mpsc::unbounded_channel::<Record>();
        tokio::spawn(async move {
            let mut seen: HashMap<(String, String, String), (String, i32)> = HashMap::new();
            while let Some(record) = inbox.recv().await {
                let key =
                    (record.uid.clone(), record.field_path.clone(), format!("{}{}", record.reason, record.message));
                let api: Api<Event> = Api::namespaced(client.clone(), &record.namespace);
                if let Some((name, count)) = seen.get_mut(&key) {
                    *count += 1;
                    let patch = json!({"count": *count, "lastTimestamp": now()});
                    if api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.is_ok() {
                        continue;
                    }
                }
                if seen.len() >= REMEMBERED {
                    seen.clear();
                }
                if let Some(name) = create(&api, &node, &record).await {
                    seen.insert(key, (name, 1));
                }
            }
        });
        Self { queue }
    }

    /// About the pod, or about one of its containers when `container` is its field path's tail (see [`field_path`]).
    pub fn publish(&self, pod: &Pod, field_path: &str, kind: Kind, reason: &'static str, message: String) {
        let meta = &pod.metadata;
        let text = |s: &Option<String>| s.clone().unwrap_or_default();
        let record = Record {
            namespace: text(&meta.namespace),
            pod: text(&meta.name),
            uid: text(&meta.uid),
            field_path: field_path.to_owned(),
            kind,
            reason,
            message,
        };
        tracing::debug!(pod = %record.pod, reason, message = %record.message, "event");
        // The task lives as long as any recorder, so this cannot fail before the program ends.
        let _ = self.queue.send(record);
    }
}

/// How an Event names one container of its pod.
pub fn field_path(container: &str, init: bool) -> String {
    if init { format!("spec.initContainers{{{container}}}") } else { format!("spec.containers{{{container}}}") }
}

fn now() -> String {
    format!("{:.0}", Timestamp::now())
}

async fn create(api: &Api<Event>, node: &str, r: &Record) -> Option<String> {
    let suffix = Timestamp::now().as_nanosecond() as u64;
    let name = format!("{}.{suffix:x}", r.pod);
    let event = json!({
        "metadata": {"name": name, "namespace": r.namespace},
        "involvedObject": {"apiVersion": "v1", "kind": "Pod", "namespace": r.namespace, "name": r.pod, "uid": r.uid,
            "fieldPath": r.field_path},
        "type": r.kind.as_str(), "reason": r.reason, "message": r.message, "count": 1,
        "firstTimestamp": now(), "lastTimestamp": now(),
        "source": {"component": "kubelet", "host": node},
        "reportingComponent": "kubelet", "reportingInstance": node,
    });
    let event: Event = match serde_json::from_value(event) {
        Ok(event) => event,
        Err(e) => {
            tracing::warn!(error = %e, "cannot build an event");
            return None;
        }
    };
    for attempt in 0..TRIES {
        match api.create(&PostParams::default(), &event).await {
            Ok(_) => return Some(name),
            // The namespace is gone or going: nobody will read it.
            Err(kube::Error::Api(status)) if (400..500).contains(&status.code) => return None,
            Err(e) => {
                tracing::debug!(error = %e, "cannot write an event");
                tokio::time::sleep(Duration::from_millis(200 << attempt)).await;
            }
        }
    }
    None
}
