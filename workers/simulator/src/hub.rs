//! The connections of one endpoint: how many there are, who is the oldest, and who gets a late answer.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    faults::{
        Recipient,
        engine::{Admission, ConnectionId},
        script::Later,
    },
    line::Line,
};

/// An endpoint as its connections see it.
pub struct Hub {
    line: Line,
    began: Instant,
    next: AtomicU64,
    served: Mutex<BTreeMap<ConnectionId, Seat>>,
    ended: CancellationToken,
}

/// A connection that is served.
struct Seat {
    close: CancellationToken,
    mail: mpsc::UnboundedSender<Vec<u8>>,
}

/// What a connection that is served gets.
pub struct Place {
    /// Its number.
    pub number: ConnectionId,
    /// When it is to be closed.
    pub close: CancellationToken,
    /// Late answers.
    pub mail: mpsc::UnboundedReceiver<Vec<u8>>,
    hub: Arc<Hub>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.hub.seats().remove(&self.number);
        self.hub.line.forget(self.number);
    }
}

/// What becomes of a new connection.
pub enum Entry {
    /// It is served here.
    Serve(Place),
    /// It is reset.
    Refuse,
    /// It is taken, and never served.
    Ignore,
}

impl Hub {
    /// An endpoint with these meters, whose faults began at `began`, until it is ended.
    #[must_use]
    pub fn new(line: Line, began: Instant, ended: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            line,
            began,
            next: AtomicU64::new(0),
            served: Mutex::default(),
            ended,
        })
    }

    /// The meters.
    #[must_use]
    pub fn line(&self) -> &Line {
        &self.line
    }

    /// How long it has been served.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// A connection has come.
    pub fn enter(self: &Arc<Self>) -> Entry {
        let mut seats = self.seats();
        match self.line.admit(self.now(), seats.len()) {
            Admission::Refuse => return Entry::Refuse,
            Admission::Ignore => return Entry::Ignore,
            Admission::ServeInsteadOfOldest => {
                if let Some((_, oldest)) = seats.pop_first() {
                    oldest.close.cancel();
                }
            }
            Admission::Serve => {}
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let close = self.ended.child_token();
        let (sender, mail) = mpsc::unbounded_channel();
        let seat = Seat {
            close: close.clone(),
            mail: sender,
        };
        seats.insert(number, seat);
        Entry::Serve(Place {
            number,
            close,
            mail,
            hub: Arc::clone(self),
        })
    }

    /// Sends an answer when it is late enough, if there is anyone left to get it.
    pub fn send_later(self: &Arc<Self>, number: ConnectionId, later: Later) {
        let hub = Arc::clone(self);
        let pause = later.after.unwrap_or_default();
        tokio::spawn(async move {
            let sent = async {
                tokio::time::sleep(pause).await;
                let seats = hub.seats();
                let seat = match later.to {
                    Recipient::Same => seats.get(&number),
                    Recipient::Newest => seats.last_key_value().map(|(_, seat)| seat),
                };
                // Whoever leaves at this moment does not get it.
                seat.map(|seat| seat.mail.send(later.bytes))
            };
            hub.ended.run_until_cancelled(sent).await;
        });
    }

    fn seats(&self) -> MutexGuard<'_, BTreeMap<ConnectionId, Seat>> {
        // The list is whole between any two of its calls.
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
