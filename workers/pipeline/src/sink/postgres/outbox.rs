//! Alerts that were not told yet, taken from the database and marked there when they are.

use std::time::SystemTime;

use corrente_config::pipeline::PostgresConnection;
use corrente_record::Timestamp;
use tokio_postgres::{Client, Error, Row};

use super::{
    alerts,
    derived::millis,
    session::{self, describe},
};
use crate::alerts::{
    deliver::{Channel, Kind, Telling},
    message::Alert,
};

/// Most alerts of a round.
const MOST: usize = 200;

/// The alerts of a pipeline.
pub struct Outbox {
    connection: PostgresConnection,
    pipeline: String,
    client: Option<Client>,
}

const COLUMNS: &str =
    "id, name, meter, metric, labels, summary, started_at, value, ended_at, end_value, published IS NOT NULL";

/// What a topic was not told yet.
const UNPUBLISHED: &str = "published IS NULL OR published = 'begun' AND ended_at IS NOT NULL";
/// What an Alertmanager does not know by now.
const UNPOSTED: &str = "ended_at IS NULL AND (posted_at IS NULL OR posted_at < now() - interval '1 minute') \
                        OR ended_at IS NOT NULL AND NOT posted_end";

impl Outbox {
    /// The alerts of a pipeline, in the database that `connection` leads to.
    #[must_use]
    pub fn new(connection: PostgresConnection, pipeline: String) -> Self {
        Self {
            connection,
            pipeline,
            client: None,
        }
    }

    /// Tells what was not told yet, as far as one round goes; gives how many.
    ///
    /// # Errors
    /// Why not, as a sentence. What was told then is told again.
    pub async fn round<C: Channel>(&mut self, channel: &mut C) -> Result<usize, String> {
        let mut client = match self.client.take().filter(|client| !client.is_closed()) {
            Some(client) => client,
            None => {
                let application = format!("corrente-alerts {}", self.pipeline);
                let mut client = session::connect(&self.connection, &application)
                    .await
                    .map_err(|error| error.to_string())?;
                alerts::create(&mut client).await.map_err(failed)?;
                client
            }
        };
        let told = self.tell(&mut client, channel).await?;
        self.client = Some(client);
        Ok(told)
    }

    async fn tell<C: Channel>(&self, client: &mut Client, channel: &mut C) -> Result<usize, String> {
        let (wanted, mark) = match channel.kind() {
            Kind::Topic => (
                UNPUBLISHED,
                "published = CASE WHEN id = ANY($2) THEN 'ended' ELSE 'begun' END",
            ),
            Kind::Alertmanager => (UNPOSTED, "posted_at = now(), posted_end = id = ANY($2)"),
        };
        let transaction = client.transaction().await.map_err(failed)?;
        let rows = transaction
            .query(
                &format!(
                    "SELECT {COLUMNS} FROM corrente.alerts WHERE pipeline = $1 AND ({wanted}) \
                     ORDER BY started_at, id LIMIT {MOST} FOR UPDATE SKIP LOCKED"
                ),
                &[&self.pipeline],
            )
            .await
            .map_err(failed)?;
        if rows.is_empty() {
            return Ok(0);
        }
        let alerts: Vec<Telling> = rows
            .iter()
            .map(|row| self.read(row))
            .collect::<Result<_, _>>()
            .map_err(failed)?;
        channel.tell(&alerts).await?;
        let ids: Vec<&str> = alerts.iter().map(|telling| telling.alert.id.as_str()).collect();
        let ended = alerts.iter().filter(|telling| telling.alert.ended.is_some());
        let ended: Vec<&str> = ended.map(|telling| telling.alert.id.as_str()).collect();
        transaction
            .execute(
                &format!("UPDATE corrente.alerts SET {mark} WHERE id = ANY($1)"),
                &[&ids, &ended],
            )
            .await
            .map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
        Ok(alerts.len())
    }

    fn read(&self, row: &Row) -> Result<Telling, Error> {
        let labels: serde_json::Value = row.try_get(4)?;
        let ended: Option<SystemTime> = row.try_get(8)?;
        let end_value: Option<f64> = row.try_get(9)?;
        let time = |time: SystemTime| Timestamp(millis(time));
        Ok(Telling {
            alert: Alert {
                id: row.try_get(0)?,
                pipeline: self.pipeline.clone(),
                name: row.try_get(1)?,
                meter: row.try_get(2)?,
                metric: row.try_get(3)?,
                labels: serde_json::from_value(labels).unwrap_or_default(),
                summary: row.try_get(5)?,
                started: time(row.try_get(6)?),
                value: row.try_get(7)?,
                ended: ended.map(|at| (time(at), end_value)),
            },
            begun: row.try_get(10)?,
        })
    }
}

fn failed(error: Error) -> String {
    format!("failed to look for alerts: {}", describe(&error))
}
