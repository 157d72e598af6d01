//! What time it is, and sleeping by it: the system's clock, or one that a test sets.

use std::{fmt, sync::Arc, time::Duration};

use corrente_record::Timestamp;

#[cfg(target_os = "linux")]
use crate::alarm::Alarm;

/// The longest sleep where nobody says that the clock was set meanwhile.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// A clock on the wall; it may step.
#[derive(Clone, Default)]
pub struct Clock {
    shown: Option<Arc<dyn Fn() -> Timestamp + Send + Sync>>,
    #[cfg(target_os = "linux")]
    alarm: Option<Arc<Alarm>>,
}

impl Clock {
    /// The system's.
    #[must_use]
    pub fn system() -> Self {
        Self::default()
    }

    /// The system's, which is slept by with an alarm of the kernel.
    #[cfg(target_os = "linux")]
    #[must_use]
    pub fn with_alarm(alarm: Arc<Alarm>) -> Self {
        Self {
            shown: None,
            alarm: Some(alarm),
        }
    }

    /// One that shows what `now` returns.
    #[must_use]
    pub fn showing(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self {
            shown: Some(Arc::new(now)),
            ..Self::default()
        }
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.shown.as_ref().map_or_else(Timestamp::now, |now| now())
    }

    /// Sleeps so long from `now` on, or less: what is waited for is to be looked at again.
    pub async fn sleep(&self, now: Timestamp, pause: Duration) {
        #[cfg(target_os = "linux")]
        if let Some(alarm) = self.alarm.as_ref().filter(|alarm| alarm.works()) {
            let millis = pause.as_nanos().div_ceil(1_000_000);
            let due = now.0.saturating_add(i64::try_from(millis).unwrap_or(i64::MAX));
            return alarm.until(Timestamp(due)).await;
        }
        tokio::time::sleep(pause.min(LONGEST_SLEEP)).await;
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.shown.is_some() {
            "Clock(showing)"
        } else {
            "Clock(system)"
        })
    }
}
