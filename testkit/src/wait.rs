//! Waiting for a condition, the only way tests wait.

use std::time::{Duration, Instant};

/// How often a condition is looked at again. Small against everything that is waited for, large against its cost.
const STEP: Duration = Duration::from_millis(15);

/// The value `condition` gives as soon as it gives one.
///
/// # Panics
/// When `limit` has passed; the message names `what` was waited for and the reason the condition gave last.
#[track_caller]
pub fn until<T>(limit: Duration, what: &str, mut condition: impl FnMut() -> Result<T, String>) -> T {
    match until_or(limit, &mut condition) {
        Ok(value) => value,
        Err(reason) => panic!("waited {limit:?} for {what}; last: {reason}"),
    }
}

/// Like [`until`], but hands back the last reason instead of a panic.
pub fn until_or<T>(limit: Duration, mut condition: impl FnMut() -> Result<T, String>) -> Result<T, String> {
    let started = Instant::now();
    loop {
        match condition() {
            Ok(value) => return Ok(value),
            Err(reason) if started.elapsed() >= limit => return Err(reason),
            Err(_) => pause(STEP),
        }
    }
}

/// Lets time pass where time itself is the matter under test (a probe period, the next look at a condition).
pub fn pause(time: Duration) {
    std::thread::park_timeout(time);
}
