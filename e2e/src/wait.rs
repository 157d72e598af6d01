//! Waiting for a condition.

use std::{fmt::Debug, future::Future, time::Duration};

use anyhow::{Result, bail};
use tokio::time::Instant;

/// How often a condition is looked at.
const EVERY: Duration = Duration::from_millis(200);

/// Looks until `look` finds something, and returns it. `look` gives `Err` with what it saw instead.
///
/// # Errors
/// Where nothing was found within `limit`; the error says what was waited for and what was seen last.
pub async fn until<T, S, F>(what: &str, limit: Duration, mut look: impl FnMut() -> F) -> Result<T>
where
    S: Debug,
    F: Future<Output = Result<T, S>>,
{
    let deadline = Instant::now() + limit;
    loop {
        match look().await {
            Ok(found) => return Ok(found),
            Err(seen) if Instant::now() >= deadline => {
                bail!("waited {limit:?} for {what}; seen last: {seen:?}")
            }
            Err(_) => tokio::time::sleep(EVERY).await,
        }
    }
}

/// Seconds, for short call sites.
#[must_use]
pub fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}
