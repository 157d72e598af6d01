//! A line: the one connection of an endpoint, and the manners on it.
//!
//! For each read, in this order:
//! 1. Connect where there is no connection, unless the last try was too recent (see [`crate::backoff`]).
//! 2. Keep the pause that the endpoint or the meter wants between an answer and the next request.
//! 3. Ask. After anything that is no answer and no exception the connection is dropped; see [`crate::client`].
//! 4. A timeout is asked again as often as the caller allows. A connection that broke is made anew and asked
//!    once more where it had been used before: servers close idle connections when they like. So is one that is
//!    refused or closed right after another was dropped here: a gateway that takes one connection may not have noticed.
//!
//! On the way it measures: what requests cost ([`corrente_modbus::cost`]), how long the gateway holds its line after a
//! question that nobody answers ([`crate::hold`]), and for how much of the time the line was busy.

use std::time::Duration;

use corrente_modbus::{CostModel, cost::Estimator, plan::carried};
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    backoff::{self, Backoff},
    client::{ConnectError, Connector, ModbusClient, OnRead, ReadBlock, ReadError, Registers},
    hold::Hold,
};

/// How often a unit that says it is busy is asked again.
pub const BUSY_RETRIES: u32 = 3;
/// How long it is left to itself before that.
pub const BUSY_PAUSE: Duration = Duration::from_millis(100);
/// For how long a gateway may not have noticed that a connection was dropped.
const LATELY: Duration = Duration::from_secs(2);
/// How long it is given to notice.
const SETTLE: Duration = Duration::from_millis(100);
/// What an answer usually takes, until it is measured.
const USUAL: Duration = Duration::from_millis(50);

/// Why a read on a line gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// There is no connection: this concerns every unit of the line.
    #[error(transparent)]
    Down(#[from] ConnectError),
    /// The unit did not answer, or not usefully.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// What a line counts, for the metrics. Each is called with the endpoint's name.
pub trait LineObserver: Send + Sync {
    /// A request ended.
    fn request(&self, _outcome: Outcome, _took: Duration) {}
    /// A connection was made, or not; with the reason.
    fn connection(&self, _result: Result<(), &str>) {}
}

impl LineObserver for () {}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With registers.
    Answered,
    /// With an exception.
    Exception,
    /// Without an answer in time.
    Timeout,
    /// With a broken connection.
    Broken,
}

/// Waits until `pause` has passed since the last answer. Not for a pause of none: timers count in milliseconds,
/// rounded up, and each request would wait for one.
async fn keep_pause(last: Option<Instant>, pause: Duration) {
    if !pause.is_zero()
        && let Some(next) = last.and_then(|last| last.checked_add(pause))
    {
        sleep_until(next).await;
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl Outcome {
    fn of(result: &Result<Registers, ReadError>) -> Self {
        match result {
            Ok(_) => Self::Answered,
            Err(ReadError::Exception(_)) => Self::Exception,
            Err(ReadError::Timeout(_)) => Self::Timeout,
            Err(ReadError::Connection(_)) => Self::Broken,
        }
    }

    /// The word in the metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Exception => "exception",
            Self::Timeout => "timeout",
            Self::Broken => "broken",
        }
    }
}

/// The connection of an endpoint.
pub struct Line<C: Connector, O = ()> {
    connector: C,
    observer: O,
    pause: Duration,
    client: Option<C::Client>,
    /// Rises with each connection, so that what was learned on one is not believed on the next.
    generation: u64,
    /// Whether an answer was outstanding when the last connection was dropped.
    owed: bool,
    used: bool,
    last: Option<Instant>,
    /// When a connection was dropped here with an answer outstanding, until the next has proved itself.
    hung_up: Option<Instant>,
    backoff: Backoff,
    down: Option<ConnectError>,
    hold: Hold,
    cost: Estimator,
    busy: Duration,
}

impl<C: Connector, O: LineObserver> Line<C, O> {
    /// A line that is not connected yet. `pause` is kept between an answer and the next request.
    pub fn new(connector: C, pause: Duration, observer: O) -> Self {
        Self {
            connector,
            observer,
            pause,
            client: None,
            generation: 0,
            owed: false,
            used: false,
            last: None,
            hung_up: None,
            backoff: Backoff::new(backoff::ENDPOINT),
            down: None,
            hold: Hold::new(Duration::ZERO),
            cost: Estimator::new(CostModel::default()),
            busy: Duration::ZERO,
        }
    }

    /// The same line with what is known of it beforehand: the timeout of a request, and what a request is assumed
    /// to cost.
    #[must_use]
    pub fn assuming(self, timeout: Duration, cost: CostModel) -> Self {
        Self {
            hold: Hold::new(timeout),
            cost: Estimator::new(cost),
            ..self
        }
    }

    /// How long the line is held by questions that nobody answers.
    #[must_use]
    pub fn hold(&self) -> &Hold {
        &self.hold
    }

    /// See [`Hold::queue`].
    pub fn queue(&mut self) {
        self.hold.queue(Instant::now());
    }

    /// See [`Hold::prolong`].
    pub fn prolong(&mut self) {
        self.hold.prolong(Instant::now());
    }

    /// What requests were seen to cost.
    pub fn cost(&mut self) -> &mut Estimator {
        &mut self.cost
    }

    /// For how long the line was busy since it began: connecting, asking, and keeping the pauses that it asks for.
    #[must_use]
    pub fn busy(&self) -> Duration {
        self.busy
    }

    /// The number of the connection; it changes when a new one is made.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether there is a connection at the moment.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.client.is_some()
    }

    /// Reads a block. `pause` is what this meter wants between an answer and the next request, and `retries`
    /// how often it may be asked again after a timeout. A unit that says it is busy (exception 06) is the caller's
    /// to ask again: others may be due meanwhile.
    ///
    /// # Errors
    /// Where nothing is read.
    pub async fn read(
        &mut self,
        block: ReadBlock,
        pause: Duration,
        retries: u32,
    ) -> Result<Registers, LineError> {
        let began = Instant::now();
        let result = self.read_again(block, pause, retries).await;
        self.busy += began.elapsed();
        result
    }

    /// Reads blocks of several units ahead of their turns, as many at a time as the connection was made for, and calls
    /// `on` with what became of each as it comes, by its place in `blocks`. What `on` is not called for was not
    /// answered: there was no connection, or it was spent before.
    pub async fn read_ahead(&mut self, blocks: &[ReadBlock], on: &mut OnRead<'_>) {
        let began = Instant::now();
        let usual = blocks.first().map_or(USUAL, |block| self.usual(*block));
        if self.connected().await.is_ok()
            && let Some(client) = &mut self.client
        {
            keep_pause(self.last, self.pause).await;
            self.owed = true;
            let (mut before, mut spent, mut timed_out) = (Instant::now(), false, false);
            let (sent, cost, observer) = (before, &mut self.cost, &self.observer);
            let (hold, mut is_first) = (&mut self.hold, true);
            let watch: &mut OnRead<'_> = &mut |at, result| {
                // What an answer adds to the time of all is what its request costs.
                let now = Instant::now();
                let took = now - std::mem::replace(&mut before, now);
                let outcome = Outcome::of(&result);
                if let (Outcome::Answered, Some(block)) = (outcome, blocks.get(at)) {
                    cost.observe(carried(block.function, block.count.into()), micros(took));
                }
                if matches!(outcome, Outcome::Answered | Outcome::Exception) && std::mem::take(&mut is_first)
                {
                    // The others waited for each other.
                    hold.answered(sent, now, usual);
                }
                timed_out |= outcome == Outcome::Timeout;
                spent |= matches!(outcome, Outcome::Timeout | Outcome::Broken);
                observer.request(outcome, took);
                on(at, result);
            };
            client.read_many(blocks, watch).await;
            let now = Instant::now();
            (self.owed, self.used, self.last) = (timed_out, true, Some(now));
            if timed_out {
                self.hold.timed_out(sent.max(before), now);
                self.hung_up = Some(now);
            }
            if spent {
                self.client = None;
            }
        }
        self.busy += began.elapsed();
    }

    /// The same as [`Line::read`] for a caller with nothing else to do: a unit that says it is busy is asked again after pauses.
    ///
    /// # Errors
    /// Where nothing is read.
    pub async fn read_patiently(
        &mut self,
        block: ReadBlock,
        pause: Duration,
        retries: u32,
    ) -> Result<Registers, LineError> {
        for _ in 0..BUSY_RETRIES {
            match self.read(block, pause, retries).await {
                Err(LineError::Read(ReadError::Exception(exception))) if exception.is_busy() => {
                    sleep(BUSY_PAUSE).await;
                }
                result => return result,
            }
        }
        self.read(block, pause, retries).await
    }

    async fn read_again(
        &mut self,
        block: ReadBlock,
        pause: Duration,
        retries: u32,
    ) -> Result<Registers, LineError> {
        let mut timeouts = 0;
        loop {
            self.connected().await?;
            let fresh = !self.used;
            match self.ask(block, pause).await {
                Err(ReadError::Timeout(_)) if timeouts < retries => timeouts += 1,
                Err(ReadError::Connection(_)) if !fresh || self.settle().await => {}
                result => return Ok(result?),
            }
        }
    }

    /// A gateway that takes one connection refuses the next as long as it has not noticed that the one before is gone.
    /// Where that may be so, gives it a moment, once, and says so.
    async fn settle(&mut self) -> bool {
        let hung_up = self.hung_up.take();
        let lately = hung_up.is_some_and(|at| at.elapsed() < LATELY);
        if lately {
            sleep(SETTLE).await;
        }
        lately
    }

    async fn ask(&mut self, block: ReadBlock, pause: Duration) -> Result<Registers, ReadError> {
        let Some(client) = &mut self.client else {
            return Err(ReadError::Connection("there is no connection".to_owned()));
        };
        keep_pause(self.last, self.pause.max(pause)).await;
        let started = Instant::now();
        // Whoever cancels this leaves an answer outstanding.
        self.owed = true;
        let result = client.read(block).await;
        self.owed = matches!(result, Err(ReadError::Timeout(_)));
        self.used = true;
        let now = Instant::now();
        let took = now - started;
        self.last = Some(now);
        let outcome = Outcome::of(&result);
        match outcome {
            Outcome::Answered | Outcome::Exception => self.hold.answered(started, now, self.usual(block)),
            Outcome::Timeout => self.hold.timed_out(started, now),
            Outcome::Broken => {}
        }
        match outcome {
            Outcome::Answered | Outcome::Exception => self.hung_up = None,
            Outcome::Timeout => self.hung_up = Some(now),
            Outcome::Broken => {}
        }
        if outcome == Outcome::Answered {
            let registers = carried(block.function, block.count.into());
            self.cost.observe(registers, micros(took));
        }
        self.observer.request(outcome, took);
        if matches!(outcome, Outcome::Timeout | Outcome::Broken) {
            self.client = None;
        }
        result
    }

    fn usual(&self, block: ReadBlock) -> Duration {
        self.cost.measured().map_or(USUAL, |cost| {
            let registers = u64::from(carried(block.function, block.count.into()));
            Duration::from_micros(cost.round_trip_micros + registers * cost.register_micros)
        })
    }

    async fn connected(&mut self) -> Result<(), ConnectError> {
        if !self.owed && self.client.as_ref().is_some_and(|client| !client.is_outdated()) {
            return Ok(());
        }
        self.client = None;
        if let Some(down) = &self.down
            && self.backoff.left(Instant::now()).is_some()
        {
            return Err(down.clone());
        }
        let mut result = self.connector.connect(self.owed).await;
        if result.is_err() && self.settle().await {
            result = self.connector.connect(self.owed).await;
        }
        match result {
            Ok(client) => {
                self.observer.connection(Ok(()));
                self.client = Some(client);
                self.generation += 1;
                self.owed = false;
                self.used = false;
                self.down = None;
                self.backoff.succeeded();
                Ok(())
            }
            Err(error) => {
                self.observer.connection(Err(&error.reason));
                self.backoff.failed(Instant::now());
                self.down = Some(error.clone());
                Err(error)
            }
        }
    }
}
