//! One kind, followed for ever: list in pages, then watch from there; again from the last revision when the stream
//! ends; a new list when that revision is gone. Objects pass through one at a time and are not kept.

use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use serde::{
    Deserialize,
    de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;

use crate::{Error, Resource};

/// Objects in one page of a list: bounds the text held at a time.
const PAGE: usize = 500;
/// The server ends a watch after this time; it is then continued. The stream is given up a little later than that.
const WATCH_SECONDS: u64 = 290;
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(10);

/// What happened to a kind.
#[derive(Debug)]
pub enum Delta {
    /// A complete list begins: what is not seen until [`Delta::Listed`] no longer exists.
    Listing,
    Put(Value),
    /// The last state of a deleted object.
    Gone(Value),
    /// The list is complete and as of this resourceVersion.
    Listed(u64),
    /// Nothing changed up to this resourceVersion.
    Bookmark(u64),
}

/// Follows `resource` in the whole cluster (or what `query`, e.g. `fieldSelector=...`, leaves of it), calling `sink` for
/// each delta, until `sink` returns false.
pub async fn follow(client: &kube::Client, resource: &Resource, query: &str, mut sink: impl FnMut(Delta) -> bool) {
    let mut retry = FIRST_RETRY;
    let mut revision: Option<u64> = None;
    loop {
        let started = Instant::now();
        let step = match revision {
            None => list(client, resource, query, &mut sink).await.map(|r| revision = Some(r)),
            Some(from) => {
                let mut at = from;
                let end = watch(client, resource, query, &mut at, &mut sink).await;
                revision = Some(at);
                // A watch that ends as soon as it begins is a server in trouble: do not hammer it.
                if end.is_ok() && started.elapsed() < FIRST_RETRY {
                    tokio::time::sleep(FIRST_RETRY).await;
                }
                end
            }
        };
        match step {
            Ok(()) => retry = FIRST_RETRY,
            Err(Stop::Reader) => return,
            Err(Stop::Failed(e)) if e.is_expired() => {
                // A list can expire too, between two pages; it must not be repeated without a pause.
                if revision.take().is_none() {
                    tokio::time::sleep(FIRST_RETRY).await;
                }
            }
            Err(Stop::Failed(e)) => {
                tracing::warn!("following {} is interrupted, next try in {retry:?}: {e}", resource.plural);
                tokio::time::sleep(retry).await;
                retry = (retry * 2).min(LAST_RETRY);
            }
        }
    }
}

enum Stop {
    /// Nobody reads any more.
    Reader,
    Failed(Error),
}

async fn list(
    client: &kube::Client,
    resource: &Resource,
    query: &str,
    sink: &mut impl FnMut(Delta) -> bool,
) -> Result<u64, Stop> {
    let what = format!("list {}", resource.plural);
    let tell = |d, sink: &mut dyn FnMut(Delta) -> bool| if sink(d) { Ok(()) } else { Err(Stop::Reader) };
    tell(Delta::Listing, sink)?;
    let mut next = String::new();
    loop {
        let token = if next.is_empty() { String::new() } else { format!("&continue={}", escape(&next)) };
        let url = format!("{}?limit={PAGE}{token}{}{query}", resource.path(""), and(query));
        let request = http::Request::get(url)
            .body(Vec::new())
            .map_err(|e| Stop::Failed(Error::Answer { what: what.clone(), cause: e.to_string() }))?;
        let text = client.request_text(request).await.map_err(|e| Stop::Failed(Error::of(&what, e)))?;
        let mut alive = true;
        let page = read_page(&text, |item| alive = alive && sink(Delta::Put(item)))
            .map_err(|e| Stop::Failed(Error::Answer { what: what.clone(), cause: e.to_string() }))?;
        if !alive {
            return Err(Stop::Reader);
        }
        match page.more.filter(|c| !c.is_empty()) {
            Some(more) => next = more,
            None => {
                let revision = page.resource_version.and_then(|r| r.parse().ok()).unwrap_or(0);
                tell(Delta::Listed(revision), sink)?;
                return Ok(revision);
            }
        }
    }
}

async fn watch(
    client: &kube::Client,
    resource: &Resource,
    query: &str,
    at: &mut u64,
    sink: &mut impl FnMut(Delta) -> bool,
) -> Result<(), Stop> {
    let what = format!("watch {}", resource.plural);
    let url = format!(
        "{}?watch=1&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}&resourceVersion={at}{}{query}",
        resource.path(""),
        and(query)
    );
    let fail = |cause: String| Stop::Failed(Error::Unreachable { what: what.clone(), cause });
    let request = http::Request::get(url)
        .header(http::header::ACCEPT, "application/json")
        .header(http::header::ACCEPT_ENCODING, "identity")
        .body(kube::client::Body::empty())
        .map_err(|e| fail(e.to_string()))?;
    let response = client.send(request).await.map_err(|e| Stop::Failed(Error::of(&what, e)))?;
    let status = response.status();
    let mut body = std::pin::pin!(http_body_util::BodyDataStream::new(response.into_body()));
    if !status.is_success() {
        return Err(Stop::Failed(refusal(&what, status.as_u16(), &mut body).await));
    }
    let mut lines = Lines::default();
    let patience = Duration::from_secs(WATCH_SECONDS + 15);
    loop {
        let chunk = match tokio::time::timeout(patience, body.next()).await {
            Err(_) => return Err(fail("the stream fell silent".into())),
            Ok(None) => return Ok(()),
            Ok(Some(Err(e))) => {
                tracing::debug!("{what}: stream ended: {e}");
                return Ok(());
            }
            Ok(Some(Ok(chunk))) => chunk,
        };
        lines.push(&chunk);
        while let Some(line) = lines.next_line() {
            let event: Line = serde_json::from_slice(&line)
                .map_err(|e| Stop::Failed(Error::Answer { what: what.clone(), cause: e.to_string() }))?;
            let revision = model::parse::revision(&event.object);
            let delta = match event.kind.as_str() {
                "ADDED" | "MODIFIED" => Delta::Put(event.object),
                "DELETED" => Delta::Gone(event.object),
                "BOOKMARK" => Delta::Bookmark(revision),
                "ERROR" => return Err(Stop::Failed(status_error(&what, &event.object))),
                _ => continue,
            };
            *at = revision.max(*at);
            if !sink(delta) {
                return Err(Stop::Reader);
            }
        }
    }
}

fn and(query: &str) -> &'static str {
    if query.is_empty() { "" } else { "&" }
}

/// Percent-encoding for a query value; continue tokens are opaque.
fn escape(s: &str) -> String {
    s.bytes()
        .map(|b| match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(b).to_string(),
            b => format!("%{b:02X}"),
        })
        .collect()
}

fn status_error(what: &str, status: &Value) -> Error {
    Error::Refused {
        what: what.into(),
        code: status["code"].as_u64().and_then(|c| u16::try_from(c).ok()).unwrap_or(0),
        reason: status["reason"].as_str().unwrap_or_default().into(),
        message: status["message"].as_str().unwrap_or_default().into(),
    }
}

async fn refusal<B, E>(what: &str, code: u16, body: &mut B) -> Error
where
    B: Stream<Item = Result<bytes::Bytes, E>> + Unpin,
{
    let mut text = Vec::new();
    while let Some(Ok(chunk)) = body.next().await {
        text.extend_from_slice(&chunk);
        if text.len() > 65_536 {
            break;
        }
    }
    match serde_json::from_slice::<Value>(&text) {
        Ok(status) if status["kind"] == "Status" => status_error(what, &status),
        _ => Error::Refused {
            what: what.into(),
            code,
            reason: String::new(),
            message: String::from_utf8_lossy(&text).trim().into(),
        },
    }
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "type")]
    kind: String,
    object: Value,
}

/// Splits a byte stream at newlines.
#[derive(Default)]
struct Lines {
    buffer: Vec<u8>,
    /// How much of the buffer holds no newline.
    searched: usize,
}

impl Lines {
    fn push(&mut self, chunk: &[u8]) {
        self.buffer.extend_from_slice(chunk);
    }

    fn next_line(&mut self) -> Option<Vec<u8>> {
        loop {
            let Some(end) = self.buffer[self.searched..].iter().position(|b| *b == b'\n') else {
                self.searched = self.buffer.len();
                return None;
            };
            let rest = self.buffer.split_off(self.searched + end + 1);
            let line = std::mem::replace(&mut self.buffer, rest);
            self.searched = 0;
            if line.len() > 1 {
                return Some(line);
            }
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    resource_version: Option<String>,
    #[serde(rename = "continue")]
    more: Option<String>,
}

/// Reads a List, handing out its items one by one so that only one of them is in memory as a value.
fn read_page(text: &str, item: impl FnMut(Value)) -> Result<Page, serde_json::Error> {
    struct List<F>(F);
    impl<'de, F: FnMut(Value)> Visitor<'de> for List<F> {
        type Value = Page;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a List object")
        }
        fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Page, A::Error> {
            let mut page = Page::default();
            while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
                match key.as_ref() {
                    "metadata" => page = map.next_value()?,
                    "items" => map.next_value_seed(Items(&mut self.0))?,
                    _ => {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
            }
            Ok(page)
        }
    }
    struct Items<'a, F>(&'a mut F);
    impl<'de, F: FnMut(Value)> DeserializeSeed<'de> for Items<'_, F> {
        type Value = ();
        fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
            d.deserialize_any(self)
        }
    }
    impl<'de, F: FnMut(Value)> Visitor<'de> for Items<'_, F> {
        type Value = ();
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a list of objects")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
            while let Some(v) = seq.next_element()? {
                (self.0)(v);
            }
            Ok(())
        }
        /// `items: null` is how an empty Go slice may arrive.
        fn visit_unit<E>(self) -> Result<(), E> {
            Ok(())
        }
    }
    serde_json::Deserializer::from_str(text).deserialize_map(List(item))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_survive_any_split() {
        let text = b"{\"a\":1}\n\n{\"b\":2}\n{\"c\"";
        for cut in 0..text.len() {
            let mut lines = Lines::default();
            let mut got = Vec::new();
            for part in [&text[..cut], &text[cut..]] {
                lines.push(part);
                while let Some(l) = lines.next_line() {
                    got.push(String::from_utf8(l).unwrap());
                }
            }
            assert_eq!(got, ["{\"a\":1}\n", "{\"b\":2}\n"]);
        }
    }

    #[test]
    fn a_page_hands_out_items_and_keeps_its_token() {
        let mut names = Vec::new();
        let text = r#"{"kind":"PodList","items":[{"metadata":{"name":"a"}},{"metadata":{"name":"b"}}],"metadata":{"resourceVersion":"7","continue":"x/y="}}"#;
        let page = read_page(text, |v| names.push(v["metadata"]["name"].clone())).unwrap();
        assert_eq!(names, ["a", "b"]);
        assert_eq!((page.resource_version.as_deref(), page.more.as_deref()), (Some("7"), Some("x/y=")));
        assert_eq!(escape("x/y="), "x%2Fy%3D");
        assert!(read_page(r#"{"items":null,"metadata":{}}"#, |_| ()).is_ok());
    }
}
