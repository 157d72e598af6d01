//! Windows of the time before their table was made.
//!
//! Windows are made anew where a batch touches them, so that a table which is added to a pipeline later would begin with
//! what comes. Whoever makes it notes so in `corrente.backfills`, and the upkeep goes through the readings that were there:
//! meter by meter, of each from the newest reading to the oldest, some thousands of readings in a transaction of its own,
//! which ends with how far it is. It does what a batch does, behind the lock of the one meter: so it can be broken off
//! anywhere, goes on with another worker, and holds up nobody for more than a moment.

use std::time::{Duration, Instant, SystemTime};

use tokio_postgres::{Client, Error};

use super::{
    super::{
        derived::{self, Derived},
        layout::Layout,
        table::Table,
    },
    Round,
};

/// Readings of a meter in one transaction.
const READINGS: i64 = 2_000;
/// How long a round goes on with it: there is other upkeep to do.
const BUDGET: Duration = Duration::from_secs(2);

/// Goes on with what is noted, for a while. `tables` are the tables of windows.
pub async fn go_on(
    client: &mut Client,
    table: &Table,
    derived: &mut Derived,
    tables: &[String],
) -> Result<Round, Error> {
    let began = Instant::now();
    loop {
        let Some(note) = Note::first(client, &table.schema, tables).await? else {
            return Ok(Round::default());
        };
        if began.elapsed() > BUDGET {
            return Ok(Round {
                notices: vec![note.notice()],
                more: true,
            });
        }
        note.step(client, table, derived).await?;
    }
}

/// How far a table of windows is filled.
struct Note {
    schema: String,
    windows: String,
    /// The meter that is under way; those before it in order are done.
    meter: Option<String>,
    /// Its readings from here on are done.
    reached: Option<SystemTime>,
}

impl Note {
    async fn first(client: &Client, schema: &str, tables: &[String]) -> Result<Option<Self>, Error> {
        let row = client
            .query_opt(
                "SELECT table_name, meter, reached FROM corrente.backfills \
                 WHERE table_schema = $1 AND table_name = ANY ($2) ORDER BY table_name LIMIT 1",
                &[&schema, &tables],
            )
            .await?;
        row.map(|row| {
            Ok(Self {
                schema: schema.to_owned(),
                windows: row.try_get(0)?,
                meter: row.try_get(1)?,
                reached: row.try_get(2)?,
            })
        })
        .transpose()
    }

    fn notice(&self) -> String {
        format!(
            "the windows {} are being made of the readings that were there before them, meter by meter: {} is under way",
            self.windows,
            self.meter.as_deref().unwrap_or("the first")
        )
    }

    async fn step(&self, client: &mut Client, table: &Table, derived: &mut Derived) -> Result<(), Error> {
        let readings = table.quoted();
        let Some(meter) = &self.meter else {
            return self.next_meter(client, &readings).await;
        };
        // The oldest of the next so many, and the newest.
        let sql = format!(
            "SELECT min(ts), max(ts) FROM (SELECT ts FROM {readings} WHERE meter = $1 \
             AND ($2::timestamptz IS NULL OR ts < $2) ORDER BY ts DESC LIMIT {READINGS}) AS r"
        );
        let row = client.query_one(&sql, &[meter, &self.reached]).await?;
        let (Some(oldest), Some(newest)) = (
            row.try_get::<_, Option<SystemTime>>(0)?,
            row.try_get::<_, Option<SystemTime>>(1)?,
        ) else {
            return self.next_meter(client, &readings).await;
        };
        derived.begin_stretch(
            meter,
            derived::floor_millis(oldest),
            derived::floor_millis(newest) + 1,
        );
        let transaction = client.transaction().await?;
        let scope = format!("{}.{}", table.schema, table.name);
        derived::lock(&transaction, &scope, std::slice::from_ref(meter)).await?;
        let layout = Layout::read(&transaction, &table.schema, &table.name).await?;
        derived.write(&transaction, &layout).await?;
        transaction
            .execute(
                "UPDATE corrente.backfills SET reached = $3 WHERE table_schema = $1 AND table_name = $2",
                &[&self.schema, &self.windows, &oldest],
            )
            .await?;
        transaction.commit().await
    }

    /// Goes to the next meter; after the last one nothing is left to do.
    async fn next_meter(&self, client: &Client, readings: &str) -> Result<(), Error> {
        let next = format!("SELECT min(meter) FROM {readings} WHERE $1::text IS NULL OR meter > $1");
        let next: Option<String> = client.query_one(&next, &[&self.meter]).await?.try_get(0)?;
        let sql = match next {
            Some(_) => {
                "UPDATE corrente.backfills SET meter = $3, reached = NULL WHERE table_schema = $1 AND table_name = $2"
            }
            None => {
                "DELETE FROM corrente.backfills WHERE table_schema = $1 AND table_name = $2 AND $3::text IS NULL"
            }
        };
        client.execute(sql, &[&self.schema, &self.windows, &next]).await?;
        if next.is_none() && self.meter.is_some() {
            tracing::info!(
                windows = self.windows,
                "made the windows of the readings that were there before"
            );
        }
        Ok(())
    }
}
