//! One timer of the kernel for all that waits for a time of day.
//!
//! 1. Whoever sleeps until a time is entered under it. Where it is the first, the timer is set to it.
//! 2. The timer rings: all whose time has come are woken, and the timer is set to the next.
//! 3. The system's clock is set: the kernel says so (`TFD_TIMER_CANCEL_ON_SET`), and all are woken to look again.
//!
//! Not tokio's timers, which keep whole milliseconds and wake the process once more for each time that is over
//! 64 ms away, to sort it into a finer wheel: half of an idle poller's wake-ups, and up to 2 ms of lateness.

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind},
    os::fd::OwnedFd,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use corrente_record::Timestamp;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;

/// Wakes sleepers at times of day.
#[derive(Debug)]
pub struct Alarm {
    timer: AsyncFd<OwnedFd>,
    sleepers: Mutex<Sleepers>,
}

#[derive(Debug, Default)]
struct Sleepers {
    /// By their time; the number tells those of one time apart.
    waiting: BTreeMap<(Timestamp, u64), Waker>,
    numbers: u64,
    /// What the timer is set to.
    set: Option<Timestamp>,
    /// The timer cannot be used any more.
    is_broken: bool,
}

impl Sleepers {
    /// Wakes all whose time has come; gives the first of the others.
    fn wake(&mut self, now: Timestamp) -> Option<Timestamp> {
        while let Some(first) = self.waiting.first_entry() {
            let (due, _) = *first.key();
            if due > now {
                return Some(due);
            }
            first.remove().wake();
        }
        None
    }
}

impl Alarm {
    /// An alarm. It rings while [`Alarm::ring`] runs, on the runtime that it is made on.
    ///
    /// # Errors
    /// Where the process has no file handle left.
    pub fn new() -> io::Result<Arc<Self>> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Realtime, flags)?;
        // What is unsound of it are types that close their descriptor, or give another, while it is registered.
        #[expect(
            deprecated,
            reason = "its successor is `unsafe`, for types that an OwnedFd is not of"
        )]
        let timer = AsyncFd::new(timer)?;
        Ok(Arc::new(Self {
            timer,
            sleepers: Mutex::default(),
        }))
    }

    /// Sleeps until a time of day, or until the clock is set. May return early, and does so at once where the
    /// timer is broken.
    pub fn until(&self, due: Timestamp) -> Sleep<'_> {
        Sleep {
            alarm: self,
            due,
            number: None,
        }
    }

    /// Whether it can still be slept by.
    #[must_use]
    pub fn works(&self) -> bool {
        !self.lock().is_broken
    }

    /// Wakes sleepers, until dropped or the timer fails.
    pub async fn ring(self: Arc<Self>) {
        let error = loop {
            match self.rung().await {
                Ok(()) => self.wake(Timestamp::now()),
                // The clock was set.
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::CANCELED.raw_os_error()) => {
                    self.wake(Timestamp(i64::MAX));
                }
                Err(error) => break error,
            }
        };
        tracing::error!(%error, "the kernel's timer failed; the runtime's is used");
        self.lock().is_broken = true;
        self.wake(Timestamp(i64::MAX));
    }

    async fn rung(&self) -> io::Result<()> {
        loop {
            let mut ready = self.timer.readable().await?;
            // What it reads is how often it rang.
            match rustix::io::read(self.timer.get_ref(), &mut [0; 8]) {
                Ok(_) => {
                    ready.clear_ready();
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) => {
                    ready.clear_ready();
                    return Err(error.into());
                }
            }
        }
    }

    /// Wakes all whose time has come, and sets the timer to the next.
    fn wake(&self, now: Timestamp) {
        let mut sleepers = self.lock();
        sleepers.set = None;
        if let Some(next) = sleepers.wake(now) {
            self.set(&mut sleepers, next);
        }
    }

    fn set(&self, sleepers: &mut Sleepers, due: Timestamp) {
        // 0 would switch it off.
        let millis = due.0.max(1);
        let spec = Itimerspec {
            it_interval: Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: Timespec {
                tv_sec: millis / 1_000,
                tv_nsec: millis % 1_000 * 1_000_000,
            },
        };
        let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
        match timerfd_settime(self.timer.get_ref(), flags, &spec) {
            Ok(_) => return sleepers.set = Some(due),
            // The clock was set since the timer was. The timer is set all the same.
            Err(rustix::io::Errno::CANCELED) => sleepers.set = Some(due),
            Err(error) => {
                tracing::error!(%error, "the kernel's timer cannot be set; the runtime's is used");
                sleepers.is_broken = true;
            }
        }
        sleepers.wake(Timestamp(i64::MAX));
    }

    fn lock(&self) -> MutexGuard<'_, Sleepers> {
        // Every step leaves it whole.
        self.sleepers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A sleep; see [`Alarm::until`].
#[derive(Debug)]
pub struct Sleep<'a> {
    alarm: &'a Alarm,
    due: Timestamp,
    /// Under which it is entered.
    number: Option<u64>,
}

impl Future for Sleep<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let due = self.due;
        let mut sleepers = self.alarm.lock();
        match self.number {
            Some(number) => match sleepers.waiting.get_mut(&(due, number)) {
                Some(waker) => waker.clone_from(context.waker()),
                None => return Poll::Ready(()),
            },
            None => {
                if sleepers.set.is_none_or(|set| due < set) {
                    self.alarm.set(&mut sleepers, due);
                }
                if sleepers.is_broken {
                    return Poll::Ready(());
                }
                sleepers.numbers += 1;
                let number = sleepers.numbers;
                sleepers.waiting.insert((due, number), context.waker().clone());
                drop(sleepers);
                self.number = Some(number);
            }
        }
        Poll::Pending
    }
}

impl Drop for Sleep<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            // The timer may ring for nobody then, once.
            self.alarm.lock().waiting.remove(&(self.due, number));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn after(millis: i64) -> Timestamp {
        Timestamp(Timestamp::now().0 + millis)
    }

    #[tokio::test]
    async fn wakes_each_at_its_time_and_in_order() {
        let alarm = Alarm::new().unwrap();
        tokio::spawn(alarm.clone().ring());
        let order: Arc<Mutex<Vec<i64>>> = Arc::default();
        let mut sleeps = tokio::task::JoinSet::new();
        for millis in [40, 10, 10, 90, -5, 70] {
            let (alarm, order, due) = (alarm.clone(), order.clone(), after(millis));
            sleeps.spawn(async move {
                alarm.until(due).await;
                assert!(Timestamp::now() >= due);
                order.lock().unwrap().push(millis);
            });
        }
        while let Some(ended) = sleeps.join_next().await {
            ended.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), [-5, 10, 10, 40, 70, 90]);
        assert!(alarm.lock().waiting.is_empty());
    }

    #[tokio::test]
    async fn who_is_dropped_is_forgotten_and_holds_up_nobody() {
        let alarm = Alarm::new().unwrap();
        tokio::spawn(alarm.clone().ring());
        // The timer is set to the one that goes.
        let gone = tokio::time::timeout(Duration::from_millis(1), alarm.until(after(20))).await;
        assert!(gone.is_err());
        assert!(alarm.lock().waiting.is_empty());
        let due = after(40);
        alarm.until(due).await;
        assert!(Timestamp::now() >= due);
    }

    #[tokio::test]
    async fn a_clock_that_is_set_wakes_everybody() {
        let alarm = Alarm::new().unwrap();
        let mut sleep = std::pin::pin!(alarm.until(after(3_600_000)));
        assert!(futures::poll!(sleep.as_mut()).is_pending());
        // What the kernel's word for it leads to; setting the clock of the machine is not for a test.
        alarm.wake(Timestamp(i64::MAX));
        assert!(futures::poll!(sleep.as_mut()).is_ready());
    }

    #[tokio::test]
    async fn a_broken_timer_lets_nobody_sleep() {
        let alarm = Alarm::new().unwrap();
        alarm.lock().is_broken = true;
        alarm.until(after(3_600_000)).await;
        assert!(!alarm.works());
    }
}
