//! A watch: what happened to one resource since a revision, as a stream of JSON lines. Watchers keep no queue: each holds a
//! revision and reads the resource's history from there when it is woken, so a slow one costs no memory and delays nobody;
//! one that falls behind what the history holds is told 410 and lists again.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::body::Bytes;
use futures::{Stream, stream};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    handlers::Form,
    kinds::Kind,
    request::ListOptions,
    selector::Selection,
    status::Failure,
    store::{Event, EventKind, Store, Stored},
    table::{self, IncludeObject},
};

const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// Without `timeoutSeconds` a watch ends after this plus up to as much again.
const MIN_TIMEOUT_SECONDS: u64 = 1_800;
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";
/// How much is sent at once.
const CHUNK: usize = 64 << 10;

/// What comes before the live events.
enum Opening {
    /// The objects that exist, as ADDED; then, for a watch-list, the bookmark that ends them.
    State {
        items: std::vec::IntoIter<Arc<Stored>>,
        mark_end: bool,
    },
    Done,
}

pub struct Watch {
    store: Store,
    kind: &'static Kind,
    resource: Arc<str>,
    prefix: String,
    selection: Selection,
    form: Form,
    include: IncludeObject,
    changed: watch::Receiver<u64>,
    opening: Opening,
    /// Everything up to here was sent or does not concern this watch.
    revision: u64,
    bookmarks: bool,
    next_bookmark: Instant,
    ends: Instant,
    stopping: CancellationToken,
    /// Columns are sent with the first Table only.
    headers_sent: bool,
    over: bool,
}

impl Watch {
    #[expect(clippy::too_many_arguments, reason = "a watch is described by all of them, and made in one place")]
    pub fn start(
        store: Store,
        kind: &'static Kind,
        resource: Arc<str>,
        prefix: String,
        selection: Selection,
        form: Form,
        include: IncludeObject,
        options: &ListOptions,
        stopping: CancellationToken,
    ) -> Self {
        // Subscribe first: what happens between the list and the first wait is then seen.
        let changed = store.subscribe(&resource);
        let from_state = match options.send_initial_events {
            Some(wanted) => wanted,
            None => options.revision.unwrap_or(0) == 0,
        };
        let (revision, opening) = if from_state {
            let (revision, items) = store.list(&resource, &prefix);
            let mark_end = options.send_initial_events == Some(true) && options.bookmarks;
            (revision, Opening::State { items: items.into_iter(), mark_end })
        } else {
            (options.revision.filter(|r| *r > 0).unwrap_or_else(|| store.revision()), Opening::Done)
        };
        let timeout =
            options.timeout_seconds.unwrap_or_else(|| MIN_TIMEOUT_SECONDS + rand::random_range(0..MIN_TIMEOUT_SECONDS));
        let now = Instant::now();
        Self {
            store,
            kind,
            resource,
            prefix,
            selection,
            form,
            include,
            changed,
            opening,
            revision,
            bookmarks: options.bookmarks,
            next_bookmark: now + BOOKMARK_EVERY,
            ends: now + Duration::from_secs(timeout.min(86_400)),
            stopping,
            headers_sent: false,
            over: false,
        }
    }

    /// The body: JSON objects, one a line. Ends on timeout, shutdown, or after an ERROR event.
    pub fn frames(self) -> impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static {
        stream::unfold(self, |mut watch| async move { watch.next().await.map(|bytes| (Ok(bytes), watch)) })
    }

    async fn next(&mut self) -> Option<Bytes> {
        while !self.over {
            let mut out = Vec::new();
            self.opening_frames(&mut out);
            if out.is_empty() {
                self.live_frames(&mut out);
            }
            if !out.is_empty() {
                return Some(out.into());
            }
            tokio::select! {
                changed = self.changed.changed() => self.over = changed.is_err(),
                () = self.stopping.cancelled() => self.over = true,
                () = sleep_until(self.ends) => {
                    // A last bookmark, so that the client resumes from here.
                    self.over = true;
                    return self.bookmarks.then(|| self.bookmark(false));
                }
                () = sleep_until(self.next_bookmark) => {
                    self.next_bookmark = Instant::now() + BOOKMARK_EVERY;
                    if self.bookmarks {
                        return Some(self.bookmark(false));
                    }
                }
            }
        }
        None
    }

    fn opening_frames(&mut self, out: &mut Vec<u8>) {
        let Opening::State { items, mark_end } = &mut self.opening else { return };
        let mark_end = *mark_end;
        let mut batch = Vec::new();
        let mut bytes = 0;
        while bytes < CHUNK {
            let Some(item) = items.next() else { break };
            bytes += item.json.len();
            batch.push(item);
        }
        let last = bytes < CHUNK;
        batch.retain(|o| self.selection.matches(o));
        for item in &batch {
            self.frame(out, "ADDED", item);
        }
        if last {
            self.opening = Opening::Done;
            if mark_end {
                out.extend_from_slice(&self.bookmark(true));
            }
        } else if out.is_empty() {
            self.opening_frames(out);
        }
    }

    fn live_frames(&mut self, out: &mut Vec<u8>) {
        self.changed.mark_unchanged();
        let (events, revision) = match self.store.events_since(&self.resource, self.revision) {
            Ok(found) => found,
            Err(gone) => {
                let text = format!("too old resource version: {} ({})", gone.asked, gone.oldest);
                let error = json!({"type": "ERROR", "object": Failure::expired(text).value()});
                out.extend_from_slice(error.to_string().as_bytes());
                out.push(b'\n');
                self.over = true;
                return;
            }
        };
        for event in &events {
            if event.object.key.starts_with(&self.prefix) {
                self.event(out, event);
            }
            if out.len() >= CHUNK {
                self.revision = event.revision();
                return;
            }
        }
        self.revision = revision;
    }

    /// An event as this watch sees it: an object that starts or stops matching is added or deleted.
    fn event(&mut self, out: &mut Vec<u8>, event: &Event) {
        if self.selection.is_everything() {
            let kind = match event.kind {
                EventKind::Added => "ADDED",
                EventKind::Modified => "MODIFIED",
                EventKind::Deleted => "DELETED",
            };
            return self.frame(out, kind, &event.object);
        }
        let before = event.before.as_ref().filter(|o| self.selection.matches(o));
        let now = event.kind != EventKind::Deleted && self.selection.matches(&event.object);
        match (before, now) {
            (None, false) => {}
            (None, true) => self.frame(out, "ADDED", &event.object),
            (Some(_), true) => self.frame(out, "MODIFIED", &event.object),
            (Some(_), false) if event.kind == EventKind::Deleted => self.frame(out, "DELETED", &event.object),
            (Some(before), false) => {
                let mut last = before.value();
                last["metadata"]["resourceVersion"] = event.revision().to_string().into();
                self.value_frame(out, "DELETED", &last);
            }
        }
    }

    fn frame(&mut self, out: &mut Vec<u8>, kind: &str, object: &Arc<Stored>) {
        if matches!(self.form, Form::Json { .. } | Form::Yaml) {
            raw_frame(out, kind, &object.json);
        } else {
            self.value_frame(out, kind, &object.value());
        }
    }

    fn value_frame(&mut self, out: &mut Vec<u8>, kind: &str, object: &Value) {
        let shown = match self.form {
            Form::Json { .. } | Form::Yaml => object.to_string(),
            Form::Metadata(version) => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": version.as_str(), "metadata": object["metadata"]})
                    .to_string()
            }
            Form::Table(version) => {
                let meta = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
                let now = jiff::Timestamp::now().as_second();
                let rows = table::table(self.kind, version, &meta, &[object], self.include, self.headers_sent, now);
                self.headers_sent = true;
                rows.to_string()
            }
        };
        raw_frame(out, kind, shown.as_bytes());
    }

    fn bookmark(&self, initial_events_end: bool) -> Bytes {
        let mut meta = json!({"resourceVersion": self.revision.to_string(), "creationTimestamp": null});
        if initial_events_end {
            meta["annotations"] = json!({INITIAL_EVENTS_END: "true"});
        }
        let object = match self.form {
            Form::Json { .. } | Form::Yaml => {
                json!({"kind": self.kind.kind, "apiVersion": self.kind.api_version(), "metadata": meta})
            }
            Form::Metadata(version) => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": version.as_str(), "metadata": meta})
            }
            Form::Table(version) => {
                let row = json!({"cells": [], "object":
                    {"kind": "PartialObjectMetadata", "apiVersion": version.as_str(), "metadata": meta}});
                json!({"kind": "Table", "apiVersion": version.as_str(), "columnDefinitions": [], "rows": [row],
                    "metadata": {"resourceVersion": self.revision.to_string()}})
            }
        };
        let mut out = Vec::new();
        raw_frame(&mut out, "BOOKMARK", object.to_string().as_bytes());
        out.into()
    }
}

fn raw_frame(out: &mut Vec<u8>, kind: &str, object: &[u8]) {
    out.reserve(object.len() + 40);
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    out.extend_from_slice(object);
    out.extend_from_slice(b"}\n");
}
