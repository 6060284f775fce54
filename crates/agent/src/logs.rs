//! Container logs over HTTP, as kubelet serves them: `GET /containerLogs/{namespace}/{pod}/{container}`. Reads the CRI
//! files that shims write, rotated ones included; following ends when the container has ended.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path as UrlPath, Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::json;
use sys::inotify::DirWatch;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::{Pods, pod::PodTask, pod::status::Phase, shim::crilog};

/// As in `kubectl logs`; unknown parameters are ignored.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Options {
    follow: Flag,
    previous: Flag,
    timestamps: Flag,
    tail_lines: Option<u64>,
    since_seconds: Option<i64>,
    since_time: Option<String>,
    limit_bytes: Option<u64>,
}

/// A boolean as Go's clients send it: `true`, `1`, or nothing at all after the name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Flag(bool);

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Ok(Self(!matches!(text.as_str(), "false" | "0" | "f" | "F" | "False" | "FALSE")))
    }
}

pub fn router(pods: Arc<Pods>) -> Router {
    Router::new().route("/containerLogs/{namespace}/{pod}/{container}", get(serve)).with_state(pods)
}

pub fn refuse(code: StatusCode, reason: &str, message: String) -> Response {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
        "reason": reason, "code": code.as_u16()});
    (code, Json(status)).into_response()
}

async fn serve(
    State(pods): State<Arc<Pods>>,
    UrlPath((namespace, pod, container)): UrlPath<(String, String, String)>,
    Query(options): Query<Options>,
) -> Response {
    let bad = |message: String| refuse(StatusCode::BAD_REQUEST, "BadRequest", message);
    let Some(task) = pods.find(&namespace, &pod) else {
        return refuse(StatusCode::NOT_FOUND, "NotFound", format!("pods {pod:?} not found"));
    };
    let since = match since(&options) {
        Ok(since) => since,
        Err(message) => return bad(message),
    };
    let file = match which(&task, &pod, &container, options.previous.0) {
        Ok(file) => file,
        Err(message) => return bad(message),
    };
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(async move {
        let out = Out { sender, left: options.limit_bytes, timestamps: options.timestamps.0, mid_line: false };
        if let Err(e) = stream(&task, &container, &file, &options, since, out).await {
            tracing::debug!(log = %file.display(), error = %e, "stopped sending a log");
        }
    });
    ([(header::CONTENT_TYPE, "text/plain")], Body::from_stream(ReceiverStream::new(receiver))).into_response()
}

fn since(options: &Options) -> Result<Option<Timestamp>, String> {
    if let Some(text) = &options.since_time {
        return text.parse().map(Some).map_err(|e| format!("invalid sinceTime {text:?}: {e}"));
    }
    match options.since_seconds {
        Some(s) if s <= 0 => Err("sinceSeconds: Invalid value: must be greater than 0".into()),
        Some(s) => Ok(Timestamp::now().checked_sub(SignedDuration::from_secs(s)).ok()),
        None => Ok(None),
    }
}

/// The log file asked for, or kubelet's reason why there is none.
fn which(task: &PodTask, pod: &str, container: &str, previous: bool) -> Result<PathBuf, String> {
    task.read(|state| {
        let slot = state.slots.iter().find(|s| s.name == container);
        let slot = slot.ok_or_else(|| format!("container {container} is not valid for pod {pod}"))?;
        if previous {
            // While a container waits to be started again, the run that ended last is the previous one.
            let ended = matches!(slot.phase, Phase::Waiting { .. }) && slot.last.is_some();
            let file = if ended { slot.log.clone() } else { slot.previous_log.clone() };
            return file
                .filter(|f| f.exists())
                .ok_or_else(|| format!("previous terminated container {container:?} in pod {pod:?} not found"));
        }
        match (&slot.log, &slot.phase) {
            (Some(log), _) => Ok(log.clone()),
            (None, Phase::Waiting { reason, .. }) => {
                let why = match reason.as_str() {
                    "ErrImagePull" | "ImagePullBackOff" => "trying and failing to pull image",
                    "ErrImageNeverPull" => "container's image can't be pulled",
                    other => other,
                };
                Err(format!("container {container:?} in pod {pod:?} is waiting to start: {why}"))
            }
            (None, _) => Err(format!("container {container:?} in pod {pod:?} is terminated")),
        }
    })
}

/// One record of the CRI log.
struct Record<'a> {
    time: &'a str,
    /// The line goes on in the next record.
    partial: bool,
    text: &'a [u8],
}

fn record(line: &[u8]) -> Option<Record<'_>> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let _stream = parts.next()?;
    let tag = parts.next()?;
    let text = parts.next()?;
    Some(Record { time, partial: tag.first() == Some(&b'P'), text })
}

/// Where lines go: with or without their time, up to a number of bytes.
struct Out {
    sender: mpsc::Sender<io::Result<Bytes>>,
    left: Option<u64>,
    timestamps: bool,
    mid_line: bool,
}

impl Out {
    fn format(&mut self, r: &Record<'_>, out: &mut Vec<u8>) {
        if self.timestamps && !self.mid_line {
            out.extend_from_slice(r.time.as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(r.text);
        if !r.partial {
            out.push(b'\n');
        }
        self.mid_line = r.partial;
    }

    /// False when nobody listens any more or the limit is reached.
    async fn send(&mut self, mut bytes: Vec<u8>) -> bool {
        if let Some(left) = &mut self.left {
            bytes.truncate((*left).try_into().unwrap_or(usize::MAX));
            *left -= bytes.len() as u64;
        }
        let sent = bytes.is_empty() || self.sender.send(Ok(bytes.into())).await.is_ok();
        sent && self.left != Some(0)
    }
}

/// Reads records of one file and remembers the unfinished one at its end.
struct Tail {
    reader: BufReader<File>,
    inode: u64,
    rest: Vec<u8>,
}

impl Tail {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let inode = file.metadata()?.ino();
        Ok(Self { reader: BufReader::with_capacity(64 * 1024, file), inode, rest: Vec::new() })
    }

    /// The next complete line without its end, `None` at the end of what is there now.
    fn line(&mut self) -> io::Result<Option<Vec<u8>>> {
        self.reader.read_until(b'\n', &mut self.rest)?;
        if self.rest.last() != Some(&b'\n') {
            return Ok(None);
        }
        self.rest.pop();
        Ok(Some(std::mem::take(&mut self.rest)))
    }
}

async fn stream(
    task: &PodTask,
    container: &str,
    path: &Path,
    options: &Options,
    since: Option<Timestamp>,
    mut out: Out,
) -> io::Result<()> {
    // Watch before reading, so that nothing written in between is missed.
    let dir = path.parent().ok_or_else(|| io::Error::other("a log without a directory"))?;
    let watch = if options.follow.0 { Some(DirWatch::new(dir)?) } else { None };
    let wanted = |r: &Record<'_>| since.is_none_or(|s| r.time.parse::<Timestamp>().is_ok_and(|t| t >= s));
    let mut kept: VecDeque<Vec<u8>> = VecDeque::new();
    let mut current = None;
    let mut n = 0;
    while crilog::rotated(path, n + 1).exists() {
        n += 1;
    }
    for n in (0..=n).rev() {
        let mut tail = match Tail::open(&crilog::rotated(path, n)) {
            Ok(tail) => tail,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        let mut batch = Vec::new();
        while let Some(line) = tail.line()? {
            let Some(r) = record(&line) else { continue };
            if !wanted(&r) {
                continue;
            }
            if let Some(limit) = options.tail_lines {
                kept.push_back(line);
                if kept.len() as u64 > limit {
                    kept.pop_front();
                }
                continue;
            }
            out.format(&r, &mut batch);
            if batch.len() > 32 * 1024 && !out.send(std::mem::take(&mut batch)).await {
                return Ok(());
            }
        }
        if !out.send(batch).await {
            return Ok(());
        }
        current = Some(tail);
    }
    let mut batch = Vec::new();
    for line in kept {
        if let Some(r) = record(&line) {
            out.format(&r, &mut batch);
        }
    }
    if !out.send(batch).await {
        return Ok(());
    }
    match watch {
        Some(watch) => follow(task, container, path, current, &wanted, watch, out).await,
        None => Ok(()),
    }
}

async fn follow(
    task: &PodTask,
    container: &str,
    path: &Path,
    mut current: Option<Tail>,
    wanted: &(dyn Fn(&Record<'_>) -> bool + Sync),
    watch: DirWatch,
    mut out: Out,
) -> io::Result<()> {
    let mut changes = task.changes();
    loop {
        changes.borrow_and_update();
        // Asked before the last read: what it wrote before it ended is then in the file.
        let ended = task.read(|s| {
            let slot = s.slots.iter().find(|s| s.name == container);
            slot.is_none_or(|s| s.live.is_none() || s.log.as_deref() != Some(path))
        });
        loop {
            if current.is_none() {
                current = Tail::open(path).ok();
            }
            let Some(tail) = &mut current else { break };
            let mut batch = Vec::new();
            while let Some(line) = tail.line()? {
                if let Some(r) = record(&line).filter(|r| wanted(r)) {
                    out.format(&r, &mut batch);
                }
            }
            if !out.send(batch).await {
                return Ok(());
            }
            // Rotated: the open file is complete, the next one has the name.
            match std::fs::metadata(path) {
                Ok(m) if m.ino() != tail.inode => current = None,
                _ => break,
            }
        }
        if ended {
            return Ok(());
        }
        tokio::select! {
            woken = watch.changed() => woken?,
            changed = changes.changed() => if changed.is_err() { return Ok(()) },
            () = out.sender.closed() => return Ok(()),
        }
    }
}

/// The last lines of a log without times, for a termination message.
pub fn tail(path: &Path, lines: usize, bytes: usize) -> String {
    let mut text = Vec::new();
    if File::open(path).and_then(|mut f| f.read_to_end(&mut text)).is_err() {
        return String::new();
    }
    let all: Vec<_> = text.split(|b| *b == b'\n').filter_map(record).collect();
    let mut out = Vec::new();
    for r in &all[all.len().saturating_sub(lines)..] {
        out.extend_from_slice(r.text);
        out.push(b'\n');
    }
    let cut = out.len().saturating_sub(bytes);
    String::from_utf8_lossy(&out[cut..]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_parsed_and_partial_ones_joined() {
        let r = record(b"2026-11-21T00:00:00.000000000Z stdout P a b c").expect("record");
        assert!(r.partial && r.text == b"a b c");
        assert!(record(b"garbage").is_none());
        let (sender, _receiver) = mpsc::channel(1);
        let mut out = Out { sender, left: None, timestamps: true, mid_line: false };
        let mut bytes = Vec::new();
        for line in ["T stdout P one", "T stdout F two", "U stderr F three"] {
            out.format(&record(line.as_bytes()).expect("record"), &mut bytes);
        }
        assert_eq!(bytes, b"T onetwo\nU three\n");
    }

    #[test]
    fn the_tail_of_a_log_is_its_last_lines() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("0.log");
        std::fs::write(&path, "T stdout F one\nT stdout F two\nT stderr F three\n").expect("write");
        assert_eq!(tail(&path, 2, 100), "two\nthree\n");
        assert_eq!(tail(&path, 2, 6), "three\n");
    }

    #[test]
    fn flags_are_gos() {
        let q = |s: &str| Query::<Options>::try_from_uri(&format!("/x?{s}").parse().expect("uri")).map(|q| q.0);
        let o = q("follow=true&tailLines=5&timestamps=1&previous=false").expect("options");
        assert!(o.follow.0 && o.timestamps.0 && !o.previous.0 && o.tail_lines == Some(5));
        assert!(q("tailLines=x").is_err());
        assert!(since(&Options { since_seconds: Some(0), ..Options::default() }).is_err());
    }
}
