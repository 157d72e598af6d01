//! PostgreSQL, with TimescaleDB or without.
//!
//! One transaction per batch:
//! 1. `ledger`: the partition's row is locked; epoch and offset must be ours;
//! 2. `copy`: the rows, which `rows` and `encode` make into the bytes of a binary COPY while the first are on their way;
//!    where the database refuses some, the transaction is begun anew, and `search` finds them;
//! 3. `beside`: what is kept in step with the rows;
//! 4. `ledger`: dead letters, the streams' marks, and the offset;
//! 5. commit.
//!
//! Dead letters that are to be replayed go the same way ([`PostgresSink::replay`]): their own rows are locked in place
//! of the partition's, and told what came of it. Where repeats are known by a key, [`keyed`] has the index and the way
//! around it.
//!
//! The table is made and widened before it, by `table`. After any failure the connection is dropped and
//! made anew by `session`: whatever was half done is gone with it, and what was learned of the table is
//! learned again.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use corrente_config::{
    PipelineConfig,
    pipeline::{PostgresConnection, SinkConfig},
};
use corrente_crds::tables::{Layout as Shape, PartitionBy};
use corrente_record::Timestamp;
use tokio::sync::Notify;
use tokio_postgres::Client;

use self::{
    beside::Beside,
    care::partitions::{self, Partitions, Places},
    copy::{Copied, Streamed, Target},
    fault::failed,
    keyed::Keyed,
    layout::Layout,
    ledger::{ClaimError, Claimant, Fence},
    letters::Asked,
    narrow::Narrow,
    rows::Plan,
    session::Statements,
    table::Table,
    watch::Watch,
};
use crate::{
    batch::{Batch, DeadLetter, Place, Rows},
    sink::{Claimed, Sink, SinkError, Stored},
    transform::Chain,
};

pub mod address;
mod alerts;
pub mod beside;
pub mod care;
mod copy;
mod derivation;
mod derived;
mod encode;
mod fault;
mod keyed;
mod layout;
mod ledger;
pub mod letters;
mod narrow;
#[cfg(feature = "kafka")]
pub mod outbox;
mod rows;
mod search;
pub(crate) mod session;
mod table;
mod takeover;
mod watch;

/// The longest that a job may go on without a sign of progress; the connection is given up then.
const ANSWER: Duration = Duration::from_secs(120);
/// How often a batch is begun anew because somebody altered the table meanwhile, or because of what is in it.
const TRIES: usize = 10;
/// Most dead letters of a batch that are told one by one in the log.
const TOLD: usize = 10;

/// A writer of the PostgreSQL sink, with a connection of its own.
pub struct PostgresSink {
    shared: Arc<Shared>,
    beside: Vec<Box<dyn Beside>>,
    watch: Arc<Watch>,
    session: Option<Session>,
}

/// What the writers of a sink have in common.
struct Shared {
    connection: PostgresConnection,
    pipeline: String,
    table: Table,
    /// Set where the table is narrow.
    narrow: Option<Arc<Narrow>>,
    /// The key by which repeats are known, where they are known by one.
    keyed: Option<Keyed>,
    renamed_from: Option<String>,
    chain: Chain,
    /// What says what is kept beside the rows.
    config: PipelineConfig,
    /// The outcomes of batches whose commits were sent: what to answer where only the confirmation was lost.
    sent: Mutex<HashMap<Place, (i64, Stored)>>,
}

struct Session {
    client: Client,
    statements: Statements,
    layout: Layout,
    plan: Plan,
    /// Where rows have a place, where the table is cut into partitions.
    places: Option<Places>,
    /// In how many rows of the last batch there was one that the database refused: it will refuse some of the next one
    /// too.
    refusing: Option<usize>,
    /// Whether the last batch had keys that the table had already: the next one will have some too.
    repeating: bool,
}

/// Of about how many rows one is bad, where nothing is known yet but that there is one.
const DISTANCE: usize = 1000;

/// What a batch is made of.
enum Work<'a> {
    /// Messages of a partition, whose row is locked and moved past them.
    Messages(&'a Batch),
    /// Dead letters, which are locked and told what came of them.
    Letters(&'a Asked),
}

impl Work<'_> {
    fn batch(&self) -> &Batch {
        match self {
            Self::Messages(batch) => batch,
            Self::Letters(asked) => &asked.batch,
        }
    }
}

/// How a transaction ended.
enum Ended {
    Stored(Stored),
    /// The table is not what the layout says.
    Altered,
    /// The table lacks columns or partitions.
    Missing,
    /// The database refused rows, which are to be searched for.
    Refused,
    /// There are keys that the table had already.
    Repeats,
}

impl PostgresSink {
    /// The sink of a pipeline; `None` where the configuration names another kind.
    #[must_use]
    pub fn new(config: &PipelineConfig) -> Option<Self> {
        let (connection, table) = Self::table_of(config)?;
        let narrow = (table.tables.layout == Shape::Narrow).then(|| Narrow {
            declared: table.declared.clone(),
            labels: table.tables.labels.clone(),
        });
        Some(Self::of(Arc::new(Shared {
            connection,
            pipeline: format!("{}/{}", config.namespace, config.name),
            table,
            narrow: narrow.map(Arc::new),
            keyed: config.once.key.clone().map(Keyed::new),
            renamed_from: config.once.renamed_from.clone(),
            chain: Chain::of(config),
            config: config.clone(),
            sent: Mutex::default(),
        })))
    }

    fn of(shared: Arc<Shared>) -> Self {
        let application = format!("corrente-pipeline {}", shared.pipeline);
        Self {
            beside: beside::of(&shared.config),
            watch: Arc::new(Watch::new(shared.connection.clone(), application)),
            shared,
            session: None,
        }
    }

    /// The way to the database, and the table; `None` where the configuration names another kind of sink.
    fn table_of(config: &PipelineConfig) -> Option<(PostgresConnection, Table)> {
        let SinkConfig::Postgres {
            connection,
            schema,
            table,
            hypertable,
            tables,
        } = &config.sink
        else {
            return None;
        };
        let table = Table {
            schema: schema.clone(),
            name: table.clone(),
            hypertable: *hypertable,
            declared: config.columns.clone(),
            tables: (**tables).clone(),
        };
        Some((connection.clone(), table))
    }

    /// The connection there is, or a new one.
    async fn session(&mut self) -> Result<Session, SinkError> {
        if let Some(session) = self.session.take().filter(|session| !session.client.is_closed()) {
            return Ok(session);
        }
        let shared = &self.shared;
        let mut client = self.watch.connect().await?;
        ledger::create(&mut client)
            .await
            .map_err(failed("make the tables of the schema corrente"))?;
        let layout = shared.table.ensure(&mut client).await?;
        if let Some(keyed) = &shared.keyed {
            let (quoted, name) = (shared.table.quoted(), &shared.table.name);
            keyed.ensure(&mut client, &quoted, name).await?;
        }
        for beside in &mut self.beside {
            beside.prepare(&mut client).await?;
        }
        let places = partitions::read(&client, &shared.table).await;
        let places = places.map_err(failed("read the table's partitions"))?;
        let places = places.map(|partitions| shared.places(partitions));
        let plan = Plan::of(shared.narrow.clone());
        Ok(Session {
            client,
            statements: Statements::default(),
            layout,
            plan,
            places,
            refusing: None,
            repeating: false,
        })
    }

    /// Makes the columns and the partitions that the batch needs.
    async fn widen(shared: &Shared, session: &mut Session, work: &Work<'_>) -> Result<(), SinkError> {
        let table = &shared.table;
        let missing = table.missing(&session.layout, shared.rows(work));
        if !missing.is_empty() {
            session.layout = table.widen(&mut session.client, &missing).await?;
            session.plan = Plan::of(shared.narrow.clone());
        }
        let Some(places) = &session.places else {
            return Ok(());
        };
        let (mut instants, mut rows) = (BTreeSet::new(), shared.rows(work));
        while let Some(row) = rows.next() {
            if places.hold(row.record.ts.0) == Ok(false) {
                instants.insert(row.record.ts.0);
            }
        }
        if !instants.is_empty() {
            let instants: Vec<i64> = instants.into_iter().collect();
            let made = table.make_partitions(&mut session.client, &instants).await?;
            session.places = made.map(|partitions| shared.places(partitions));
        }
        Ok(())
    }

    /// Stores a batch; the session is ours to drop where that fails.
    async fn store_in(
        &mut self,
        session: &mut Session,
        work: Work<'_>,
        answered: &Notify,
    ) -> Result<Stored, SinkError> {
        let shared = self.shared.clone();
        let table = &shared.table;
        for _ in 0..TRIES {
            match self.transact(&shared, session, &work, answered).await? {
                Ended::Stored(stored) => {
                    session.plan.settle();
                    return Ok(stored);
                }
                Ended::Refused => session.refusing = Some(DISTANCE),
                Ended::Repeats => session.repeating = true,
                Ended::Missing => Self::widen(&shared, session, &work).await?,
                Ended::Altered => {
                    let read = Layout::read(&session.client, &table.schema, &table.name).await;
                    session.layout = read.map_err(failed("read the table's columns"))?;
                    session.plan = Plan::of(shared.narrow.clone());
                    if session.layout.columns.is_empty() {
                        break;
                    }
                }
            }
        }
        Err(SinkError::Retry(format!(
            "the table {} keeps changing, or is gone",
            table.quoted()
        )))
    }

    /// One transaction.
    async fn transact(
        &mut self,
        shared: &Shared,
        session: &mut Session,
        work: &Work<'_>,
        answered: &Notify,
    ) -> Result<Ended, SinkError> {
        let (failed, batch) = (failed("store a batch"), work.batch());
        let (table, statements) = (&shared.table, &mut session.statements);
        let transaction = session.client.transaction().await.map_err(&failed)?;
        match work {
            Work::Messages(batch) => {
                takeover::mark(&transaction, statements, &shared.pipeline, &batch.place)
                    .await
                    .map_err(&failed)?;
                let fence = ledger::fence(&transaction, statements, &shared.pipeline, batch).await;
                match fence.map_err(&failed)? {
                    Fence::Open => {}
                    Fence::Stored => return Ok(Ended::Stored(shared.confirmed(batch))),
                    Fence::Closed(reason) => return Err(SinkError::Fenced(reason)),
                }
            }
            Work::Letters(asked) => {
                if !letters::lock(&transaction, asked).await.map_err(&failed)? {
                    let reason = "somebody else has replayed some of the letters".to_owned();
                    return Err(SinkError::Fenced(reason));
                }
            }
        }
        // From here on nobody can alter a column; whether somebody did is looked at once. Constraints that would be
        // checked at the commit, for all rows together, are checked at each.
        let lock = format!(
            "LOCK TABLE ONLY {} IN ROW EXCLUSIVE MODE; SET CONSTRAINTS ALL IMMEDIATE",
            table.quoted()
        );
        transaction.batch_execute(&lock).await.map_err(&failed)?;
        let stamp = Layout::stamp_now(&transaction, statements, &table.schema, &table.name).await;
        if stamp.map_err(&failed)? != session.layout.stamp {
            return Ok(Ended::Altered);
        }
        for beside in &mut self.beside {
            beside.begin(&batch.place);
        }
        if let Some(places) = &mut session.places {
            places.oldest = shared.oldest();
        }
        let quoted = table.quoted();
        let into = Target {
            table: &quoted,
            layout: &session.layout,
            keyed: shared.keyed.as_ref(),
            plan: &mut session.plan,
            places: session.places.as_ref(),
            statements,
        };
        let Copied {
            rows,
            repeats,
            refused: mut dead,
            mut sorted,
            ..
        } = if session.refusing.is_some() || session.repeating {
            let distance = session.refusing.unwrap_or(usize::MAX);
            let told = !self.beside.is_empty();
            let copied =
                copy::search(&transaction, into, || shared.rows(work), distance, told, answered).await;
            let Some(copied) = copied.map_err(&failed)? else {
                return Ok(Ended::Missing);
            };
            let by_database = |letter: &&DeadLetter<'_>| letter.refusal.sqlstate.is_some();
            let bad = copied.refused.iter().filter(by_database).count();
            session.refusing = usize::try_from(copied.rows).unwrap_or(0).checked_div(bad);
            session.repeating = copied.repeats > 0;
            observe(&mut self.beside, shared.rows(work), &copied);
            copied
        } else {
            let rows = shared.rows(work);
            let streamed = copy::stream(&transaction, into, rows, &mut self.beside, answered).await;
            match streamed.map_err(&failed)? {
                Streamed::Copied(copied) => copied,
                Streamed::Refused => return Ok(Ended::Refused),
                Streamed::Repeat => return Ok(Ended::Repeats),
                Streamed::Missing => return Ok(Ended::Missing),
            }
        };
        sorted.duplicates += repeats;
        dead.append(&mut sorted.dead);
        dead.sort_by_key(|letter| letter.origin.offset);
        let mut counted = vec![false; dead.len()];
        for beside in &mut self.beside {
            match work {
                Work::Messages(_) => {
                    for (letter, counted) in dead.iter().zip(&mut counted) {
                        *counted |= beside.set_aside(letter.origin.payload);
                    }
                }
                // Letters that are refused once more were told when they were set aside.
                Work::Letters(asked) => asked
                    .taken_back(&dead)
                    .for_each(|payload| beside.taken_back(payload)),
            }
            beside.write(&transaction).await?;
        }
        if let Work::Letters(asked) = work {
            letters::settle(&transaction, asked, &dead)
                .await
                .map_err(&failed)?;
            transaction.commit().await.map_err(&failed)?;
            return Ok(Ended::Stored(Stored::new(rows, dead.len() as u64, sorted)));
        }
        ledger::dead_letters(&transaction, &shared.pipeline, &batch.place, &dead, &counted)
            .await
            .map_err(&failed)?;
        let marks = &sorted.marks;
        ledger::advance(
            &transaction,
            &mut session.statements,
            &shared.pipeline,
            batch,
            marks,
        )
        .await
        .map_err(&failed)?;
        let stored = Stored::new(rows, dead.len() as u64, sorted);
        shared
            .sent()
            .insert(batch.place.clone(), (batch.next_offset, stored.clone()));
        transaction.commit().await.map_err(&failed)?;
        tell(batch, &dead);
        Ok(Ended::Stored(stored))
    }
}

impl PostgresSink {
    /// Replays dead letters that somebody has asked for, up to some hundreds; gives how many were looked at, and how
    /// many of them are in the table now. The others say anew what is wrong with them.
    ///
    /// # Errors
    /// As for [`Sink::store`]; [`SinkError::Fenced`] where another has replayed them meanwhile.
    pub async fn replay(&mut self) -> Result<(u64, u64), SinkError> {
        let (answered, watch) = (Notify::new(), self.watch.clone());
        bounded(ANSWER, &answered, &watch, async {
            let mut session = self.session().await?;
            let asked = letters::asked(&session.client, &self.shared.pipeline).await;
            let (mut seen, mut stored) = (0, 0);
            for asked in asked.map_err(failed("look for dead letters to replay"))? {
                seen += asked.batch.count as u64;
                let done = self
                    .store_in(&mut session, Work::Letters(&asked), &answered)
                    .await?;
                stored += done.rows;
            }
            self.session = Some(session);
            Ok((seen, stored))
        })
        .await
    }
}

impl Shared {
    /// The places of a table that is cut into partitions.
    fn places(&self, partitions: Partitions) -> Places {
        Places {
            partitions,
            by: self.table.tables.partition_by.unwrap_or(PartitionBy::Month),
            oldest: self.oldest(),
        }
    }

    /// Rows before this instant are older than the retention.
    fn oldest(&self) -> i64 {
        let kept = self
            .table
            .tables
            .retention
            .and_then(|kept| i64::try_from(kept.as_millis()).ok());
        kept.map_or(i64::MIN, |kept| Timestamp::now().0.saturating_sub(kept))
    }

    /// Begins a pass over a batch.
    fn rows<'b>(&'b self, work: &Work<'b>) -> Rows<'b> {
        match work {
            Work::Messages(batch) if self.keyed.is_none() => batch.rows(&self.chain),
            Work::Messages(batch) => batch.unnumbered_rows(&self.chain),
            Work::Letters(asked) => asked.batch.unnumbered_rows(&self.chain),
        }
    }

    fn sent(&self) -> MutexGuard<'_, HashMap<Place, (i64, Stored)>> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What became of a batch that was stored without our knowing. Another process may have done it: then what was
    /// refused is known from the dead letters alone, and counts as stored here.
    fn confirmed(&self, batch: &Batch) -> Stored {
        match self.sent().get(&batch.place) {
            Some((next, stored)) if *next == batch.next_offset => stored.clone(),
            _ => {
                let (mut rows, mut count) = (self.rows(&Work::Messages(batch)), 0);
                while rows.next().is_some() {
                    count += 1;
                }
                let sorted = rows.finish();
                Stored::new(count, sorted.dead.len() as u64, sorted)
            }
        }
    }
}

/// Tells the rows that are stored to what is kept beside them: all but the refused ones and the repeats.
fn observe(beside: &mut [Box<dyn Beside>], mut rows: Rows<'_>, copied: &Copied<'_>) {
    if beside.is_empty() {
        return;
    }
    let refused = copied.refused.iter().map(|letter| letter.origin.offset);
    let not: HashSet<i64> = refused.chain(copied.left_out.iter().copied()).collect();
    while let Some(row) = rows.next() {
        if !not.contains(&row.origin.offset) {
            for beside in &mut *beside {
                beside.observe(row.record);
            }
        }
    }
}

/// Says what was set aside. A topic of anything but records would fill the log: of many, some.
fn tell(batch: &Batch, dead: &[DeadLetter<'_>]) {
    for letter in dead.iter().take(TOLD) {
        tracing::warn!(
            partition = %batch.place.partition,
            offset = letter.origin.offset,
            column = letter.refusal.column,
            sqlstate = letter.refusal.sqlstate,
            reason = letter.refusal.reason,
            "set aside in corrente.dead_letters"
        );
    }
    if let Some(more) = dead.len().checked_sub(TOLD).filter(|more| *more > 0) {
        tracing::warn!(
            partition = %batch.place.partition,
            more,
            "more of the same batch are set aside in corrente.dead_letters"
        );
    }
}

/// Bounds a job by `limit`, so that a server that stands still is left, and leaves a connection that [`watch`] finds
/// lost. Each sign on `answered` gives it as long again: a batch of which the database refuses many rows is long, but it
/// comes to its end.
async fn bounded<T>(
    limit: Duration,
    answered: &Notify,
    watch: &Watch,
    job: impl Future<Output = Result<T, SinkError>>,
) -> Result<T, SinkError> {
    tokio::pin!(job);
    loop {
        tokio::select! {
            // What was done in time counts, however late it is looked at.
            biased;
            outcome = &mut job => return outcome,
            () = answered.notified() => {}
            lost = watch.lost() => return Err(SinkError::unreachable(lost)),
            () = tokio::time::sleep(limit) => {
                return Err(SinkError::unreachable(format!(
                    "the database has not answered for {} s. The connection is given up, and the batch is tried again",
                    limit.as_secs()
                )));
            }
        }
    }
}

impl Sink for PostgresSink {
    async fn open(&mut self) -> Result<(), SinkError> {
        let watch = self.watch.clone();
        let session = bounded(ANSWER, &Notify::new(), &watch, self.session()).await?;
        self.session = Some(session);
        Ok(())
    }

    async fn claim(&mut self, place: &Place) -> Result<Claimed, SinkError> {
        let watch = self.watch.clone();
        bounded(ANSWER, &Notify::new(), &watch, async {
            let mut session = self.session().await?;
            let shared = &self.shared;
            let stored_in = format!("{}.{}", shared.table.schema, shared.table.name);
            let claimant = Claimant {
                pipeline: &shared.pipeline,
                renamed_from: shared.renamed_from.as_deref(),
                stored_in: &stored_in,
            };
            let claimed = takeover::claim(&mut session.client, claimant, place).await;
            let claimed = claimed.map_err(|error| match error {
                ClaimError::Database(error) => failed("claim a partition")(error),
                taken => SinkError::Retry(taken.to_string()),
            })?;
            self.session = Some(session);
            Ok(claimed)
        })
        .await
    }

    async fn tidy(&mut self, place: &Place, low: i64) -> Result<(), SinkError> {
        let watch = self.watch.clone();
        bounded(ANSWER, &Notify::new(), &watch, async {
            let session = self.session().await?;
            let dropped = ledger::tidy(&session.client, &self.shared.pipeline, place, low).await;
            let dropped = dropped.map_err(failed("drop marks of streams that ended"))?;
            if dropped > 0 {
                tracing::info!(partition = %place.partition, dropped, "dropped marks of streams that ended");
            }
            self.session = Some(session);
            Ok(())
        })
        .await
    }

    fn another(&self) -> Option<Self> {
        Some(Self::of(self.shared.clone()))
    }

    async fn store(&mut self, batch: &Arc<Batch>) -> Result<Stored, SinkError> {
        let (answered, watch) = (Notify::new(), self.watch.clone());
        bounded(ANSWER, &answered, &watch, async {
            let mut session = self.session().await?;
            let stored = self
                .store_in(&mut session, Work::Messages(batch), &answered)
                .await?;
            self.session = Some(session);
            Ok(stored)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_job_may_be_long_but_not_stand_still() {
        let (limit, answered) = (Duration::from_millis(30), Notify::new());
        let watch = Watch::new(PostgresConnection::default(), String::new());
        let long = bounded(limit, &answered, &watch, async {
            for _ in 0..5 {
                tokio::time::sleep(limit * 2 / 3).await;
                answered.notify_one();
            }
            Ok(())
        });
        assert!(long.await.is_ok());
        let hung: Result<(), _> = bounded(limit, &answered, &watch, std::future::pending()).await;
        assert!(matches!(hung, Err(SinkError::Fault(fault)) if fault.reason.contains("has not answered")));
    }
}
