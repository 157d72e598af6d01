//! A line: the one connection of an endpoint, and the manners on it.
//!
//! For each read, in this order:
//! 1. Connect where there is no connection, unless the last try was too recent (see [`crate::backoff`]).
//! 2. Keep the pause that the endpoint or the meter wants between an answer and the next request.
//! 3. Ask. An exception 06 (busy) is asked again after a pause. After anything else that is no answer and no
//!    exception the connection is dropped; see [`crate::client`].
//! 4. A timeout is asked again as often as the caller allows. A connection that broke is made anew and asked
//!    once more where it had been used before: servers close idle connections when they like.

use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    backoff::{self, Backoff},
    client::{ConnectError, Connector, ModbusClient, ReadBlock, ReadError, Registers},
};

/// How often a unit that says it is busy is asked again.
const BUSY_RETRIES: u32 = 3;
/// How long it is left to itself before that.
const BUSY_PAUSE: Duration = Duration::from_millis(100);

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

impl Outcome {
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
    backoff: Backoff,
    down: Option<ConnectError>,
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
            backoff: Backoff::new(backoff::ENDPOINT),
            down: None,
        }
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
    /// how often it may be asked again after a timeout.
    ///
    /// # Errors
    /// Where nothing is read.
    pub async fn read(
        &mut self,
        block: ReadBlock,
        pause: Duration,
        retries: u32,
    ) -> Result<Registers, LineError> {
        let (mut timeouts, mut busy) = (0, 0);
        loop {
            self.connected().await?;
            let fresh = !self.used;
            match self.ask(block, pause).await {
                Err(ReadError::Exception(exception)) if exception.is_busy() && busy < BUSY_RETRIES => {
                    busy += 1;
                    sleep(BUSY_PAUSE).await;
                }
                Err(ReadError::Timeout(_)) if timeouts < retries => timeouts += 1,
                Err(ReadError::Connection(_)) if !fresh => {}
                result => return Ok(result?),
            }
        }
    }

    async fn ask(&mut self, block: ReadBlock, pause: Duration) -> Result<Registers, ReadError> {
        let Some(client) = &mut self.client else {
            return Err(ReadError::Connection("there is no connection".to_owned()));
        };
        if let Some(next) = self.last.and_then(|last| last.checked_add(self.pause.max(pause))) {
            sleep_until(next).await;
        }
        let started = Instant::now();
        // Whoever cancels this leaves an answer outstanding.
        self.owed = true;
        let result = client.read(block).await;
        self.owed = matches!(result, Err(ReadError::Timeout(_)));
        self.used = true;
        self.last = Some(Instant::now());
        let outcome = match &result {
            Ok(_) => Outcome::Answered,
            Err(ReadError::Exception(_)) => Outcome::Exception,
            Err(ReadError::Timeout(_)) => Outcome::Timeout,
            Err(ReadError::Connection(_)) => Outcome::Broken,
        };
        self.observer.request(outcome, started.elapsed());
        if matches!(outcome, Outcome::Timeout | Outcome::Broken) {
            self.client = None;
        }
        result
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
        match self.connector.connect(self.owed).await {
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
