//! Events are news, not state: they are removed an hour after they last happened.

use std::time::Duration;

use serde_json::Value;

use crate::{
    handlers::Api,
    store::{Change, Encoded, Expect, Stored, Write},
};

const EVENT_TTL_SECONDS: i64 = 3_600;
const EVERY: Duration = Duration::from_secs(60);
const EVENTS: &str = "core/events";

/// Runs until the server stops.
pub(crate) async fn expire_events(api: Api) {
    loop {
        tokio::select! {
            () = api.stopping.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        let before = jiff::Timestamp::now().as_second() - EVENT_TTL_SECONDS;
        sweep(&api, before).await;
    }
}

async fn sweep(api: &Api, before: i64) {
    let (_, events) = api.store.list(EVENTS, "");
    for event in events {
        let value = event.value();
        if last_seen(&value) >= before {
            continue;
        }
        if let Err(error) = remove(api, &event, &value).await {
            tracing::debug!(key = %event.key, %error, "an old Event stays for now");
        }
    }
}

async fn remove(api: &Api, event: &Stored, value: &Value) -> Result<(), crate::store::WriteError> {
    let write = Write {
        resource: EVENTS.into(),
        key: event.key.clone(),
        expect: Expect::Revision(event.revision),
        change: Change::Delete(Encoded::new(value)),
    };
    api.store.write(write).await.map(|_| ())
}

/// Seconds since the epoch; an Event without any time counts as old.
fn last_seen(event: &Value) -> i64 {
    [
        &event["lastTimestamp"],
        &event["series"]["lastObservedTime"],
        &event["eventTime"],
        &event["metadata"]["creationTimestamp"],
    ]
    .iter()
    .filter_map(|t| t.as_str()?.parse::<jiff::Timestamp>().ok())
    .map(jiff::Timestamp::as_second)
    .max()
    .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_newest_time_of_an_event_counts() {
        let event = json!({"metadata": {"creationTimestamp": "2026-11-21T00:00:00Z"}, "lastTimestamp": null,
            "eventTime": "2026-11-21T01:00:00.123456Z", "series": {"lastObservedTime": "2026-11-21T02:00:00.000000Z"}});
        assert_eq!(last_seen(&event), "2026-11-21T02:00:00Z".parse::<jiff::Timestamp>().expect("time").as_second());
        assert_eq!(last_seen(&json!({})), 0);
    }
}
