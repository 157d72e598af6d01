//! The dead letters in the database: for the worker, which publishes and replays them, and for the command line, which
//! lists them and asks for a replay.
//!
//! A replay is asked for in the table, and done by a worker, because only the worker has the pipeline's configuration
//! and stores by it: the letter goes the way that it went the first time. Letter and row change in one transaction, so
//! that a letter is stored once, whoever asks for it and how often.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use corrente_config::pipeline::PostgresConnection;
use corrente_runtime::broker::{Incoming, Messages, TopicPartition};
use tokio_postgres::{Client, Error, Row, Transaction, types::ToSql};

use super::session;
use crate::{
    batch::{Batch, DeadLetter, Place},
    batcher::Run,
};

/// Most letters that are replayed in one go.
const REPLAYED: i64 = 500;

/// A letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// Its number in the table.
    pub id: i64,
    /// When it was set aside, in milliseconds since the epoch.
    pub at: i64,
    /// The pipeline, with its namespace.
    pub pipeline: String,
    /// The Kafka cluster.
    pub cluster: String,
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
    /// The key.
    pub key: Option<Vec<u8>>,
    /// The record, as it came.
    pub payload: Vec<u8>,
    /// The database's code, where the database refused it.
    pub sqlstate: Option<String>,
    /// The column that it concerns.
    pub column: Option<String>,
    /// What is wrong.
    pub reason: String,
    /// Whether a replay of it was asked for, and is not done.
    pub asked: bool,
    /// Whether it was replayed, and is in the table.
    pub replayed: bool,
}

/// The columns of a [`Letter`], of a table named `l`.
pub(crate) const COLUMNS: &str = "l.id, (extract(epoch FROM l.at) * 1000)::bigint, l.pipeline, l.cluster, l.topic, \
     l.partition, l.message_offset, l.key, l.payload, l.sqlstate, l.column_name, l.reason, \
     l.replay_asked_at IS NOT NULL AND l.replayed_at IS NULL, l.replayed_at IS NOT NULL";

impl Letter {
    /// A letter of a row of [`COLUMNS`].
    pub(crate) fn of(row: &Row) -> Result<Self, Error> {
        Ok(Self {
            id: row.try_get(0)?,
            at: row.try_get(1)?,
            pipeline: row.try_get(2)?,
            cluster: row.try_get(3)?,
            topic: row.try_get(4)?,
            partition: row.try_get(5)?,
            offset: row.try_get(6)?,
            key: row.try_get(7)?,
            payload: row.try_get::<_, Option<Vec<u8>>>(8)?.unwrap_or_default(),
            sqlstate: row.try_get(9)?,
            column: row.try_get(10)?,
            reason: row.try_get(11)?,
            asked: row.try_get(12)?,
            replayed: row.try_get(13)?,
        })
    }
}

/// Which letters are meant; what is `None` or empty says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of this pipeline, with its namespace.
    pub pipeline: Option<String>,
    /// From this topic.
    pub topic: Option<String>,
    /// From this partition.
    pub partition: Option<i32>,
    /// From this offset on.
    pub from_offset: Option<i64>,
    /// Up to and with this offset.
    pub to_offset: Option<i64>,
    /// With this SQLSTATE.
    pub sqlstate: Option<String>,
    /// About this column.
    pub column: Option<String>,
    /// With this in the reason.
    pub reason: Option<String>,
    /// With one of these numbers.
    pub ids: Vec<i64>,
    /// Older than so many seconds.
    pub older_than: Option<i64>,
    /// Younger than so many seconds.
    pub younger_than: Option<i64>,
    /// Whether those are meant too that were replayed.
    pub replayed: bool,
}

impl Filter {
    /// The condition on a table named `l`, and its parameters, from `$1` on.
    fn sql(&self) -> (String, Vec<&(dyn ToSql + Sync)>) {
        fn some<T: ToSql + Sync>(value: Option<&T>) -> Option<&(dyn ToSql + Sync)> {
            value.map(|value| value as _)
        }
        let all = [
            ("l.pipeline = ?", some(self.pipeline.as_ref())),
            ("l.topic = ?", some(self.topic.as_ref())),
            ("l.partition = ?", some(self.partition.as_ref())),
            ("l.message_offset >= ?", some(self.from_offset.as_ref())),
            ("l.message_offset <= ?", some(self.to_offset.as_ref())),
            ("l.sqlstate = ?", some(self.sqlstate.as_ref())),
            ("l.column_name = ?", some(self.column.as_ref())),
            ("strpos(l.reason, ?) > 0", some(self.reason.as_ref())),
            (
                "l.id = ANY (?)",
                some(Some(&self.ids).filter(|ids| !ids.is_empty())),
            ),
            (
                "l.at < now() - ?::bigint * interval '1 second'",
                some(self.older_than.as_ref()),
            ),
            (
                "l.at >= now() - ?::bigint * interval '1 second'",
                some(self.younger_than.as_ref()),
            ),
        ];
        let (mut conditions, mut parameters) = (vec![], vec![]);
        if !self.replayed {
            conditions.push("l.replayed_at IS NULL".to_owned());
        }
        for (condition, parameter) in all {
            if let Some(parameter) = parameter {
                parameters.push(parameter);
                conditions.push(condition.replace('?', &format!("${}", parameters.len())));
            }
        }
        conditions.push("true".to_owned());
        (conditions.join(" AND "), parameters)
    }
}

/// Connects to a database by its URL.
///
/// # Errors
/// A sentence without the URL, which holds a password.
pub async fn connect(url: &str) -> Result<Client, String> {
    let besides = PostgresConnection::default();
    session::connect_to(url, "the database's URL", "corrente dead-letters", &besides)
        .await
        .map_err(|error| error.to_string())
}

/// Whether the database has dead letters at all: no worker has stored in it otherwise.
///
/// # Errors
/// What the database says.
pub async fn exist(client: &Client) -> Result<bool, Error> {
    let there = "SELECT to_regclass('corrente.dead_letters_published') IS NOT NULL";
    client.query_one(there, &[]).await?.try_get(0)
}

/// The oldest letters that are meant, at most `most`, and how many there are in all.
///
/// # Errors
/// What the database says.
pub async fn list(client: &Client, filter: &Filter, most: u32) -> Result<(Vec<Letter>, u64), Error> {
    let (condition, parameters) = filter.sql();
    let count = format!("SELECT count(*) FROM corrente.dead_letters l WHERE {condition}");
    let count: i64 = client.query_one(&count, &parameters).await?.try_get(0)?;
    let letters =
        format!("SELECT {COLUMNS} FROM corrente.dead_letters l WHERE {condition} ORDER BY l.id LIMIT {most}");
    let letters = client.query(&letters, &parameters).await?;
    let letters = letters.iter().map(Letter::of).collect::<Result<_, _>>()?;
    Ok((letters, u64::try_from(count).unwrap_or(0)))
}

/// Asks for a replay of the letters that are meant and not replayed yet; gives their numbers.
///
/// # Errors
/// What the database says.
pub async fn ask(client: &Client, filter: &Filter) -> Result<Vec<i64>, Error> {
    let (condition, parameters) = filter.sql();
    let ask = format!(
        "UPDATE corrente.dead_letters l SET replay_asked_at = now() \
         WHERE {condition} AND l.replayed_at IS NULL RETURNING l.id"
    );
    let asked = client.query(&ask, &parameters).await?;
    asked.iter().map(|row| row.try_get(0)).collect()
}

/// What came of a replay so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Letters that are in the table now.
    pub replayed: u64,
    /// Letters that no worker has looked at yet.
    pub waiting: u64,
    /// Letters that were refused once more, by the reason, with one of their numbers.
    pub refused: Vec<(String, i64, u64)>,
}

/// What came of the letters with these numbers.
///
/// # Errors
/// What the database says.
pub async fn outcome(client: &Client, ids: &[i64]) -> Result<Outcome, Error> {
    let row = client
        .query_one(
            "SELECT count(*) FILTER (WHERE replayed_at IS NOT NULL), \
             count(*) FILTER (WHERE replayed_at IS NULL AND replay_asked_at IS NOT NULL) \
             FROM corrente.dead_letters WHERE id = ANY ($1)",
            &[&ids],
        )
        .await?;
    let number = |number: i64| u64::try_from(number).unwrap_or(0);
    let refused = client
        .query(
            "SELECT reason, min(id), count(*) FROM corrente.dead_letters \
             WHERE id = ANY ($1) AND replayed_at IS NULL AND replay_asked_at IS NULL GROUP BY reason ORDER BY 3 DESC",
            &[&ids],
        )
        .await?;
    Ok(Outcome {
        replayed: number(row.try_get(0)?),
        waiting: number(row.try_get(1)?),
        refused: refused
            .iter()
            .map(|row| Ok((row.try_get(0)?, row.try_get(1)?, number(row.try_get(2)?))))
            .collect::<Result<_, Error>>()?,
    })
}

/// Removes the letters that are meant, replayed or not; gives how many there were.
///
/// # Errors
/// What the database says.
pub async fn prune(client: &Client, filter: &Filter) -> Result<u64, Error> {
    let (condition, parameters) = filter.sql();
    let prune = format!("DELETE FROM corrente.dead_letters l WHERE {condition}");
    client.execute(&prune, &parameters).await
}

/// Removes the letters of a pipeline that are older than so many milliseconds: all, or those that were published.
#[cfg(feature = "kafka")]
pub(crate) async fn expire(
    client: &Client,
    pipeline: &str,
    millis: i64,
    only_published: bool,
) -> Result<u64, Error> {
    client
        .execute(
            "DELETE FROM corrente.dead_letters l WHERE l.pipeline = $1 \
             AND l.at < now() - $2::bigint * interval '1 millisecond' \
             AND (l.replay_asked_at IS NULL OR l.replayed_at IS NOT NULL) \
             AND (NOT $3 OR EXISTS ( \
                 SELECT FROM corrente.dead_letters_published p \
                 WHERE (p.pipeline, p.cluster, p.topic, p.partition) = (l.pipeline, l.cluster, l.topic, l.partition) \
                 AND l.id <= p.id))",
            &[&pipeline, &millis, &only_published],
        )
        .await
}

/// Letters of one partition that are to be replayed.
pub(super) struct Asked {
    /// Their records.
    pub batch: Batch,
    /// By offset.
    letters: BTreeMap<i64, Known>,
}

/// What is known of a letter that is to be replayed.
struct Known {
    /// Its number.
    id: i64,
    /// Whether the ledger of completeness counts it as refused.
    counted: bool,
    /// Its record.
    payload: Vec<u8>,
}

impl Asked {
    /// The records of the letters that were counted as refused and are not any more: all but those that are `dead` once
    /// more.
    pub fn taken_back<'a>(&'a self, dead: &'a [DeadLetter<'_>]) -> impl Iterator<Item = &'a [u8]> {
        let again: HashSet<i64> = dead.iter().map(|letter| letter.origin.offset).collect();
        self.letters
            .iter()
            .filter(move |(offset, letter)| letter.counted && !again.contains(offset))
            .map(|(_, letter)| letter.payload.as_slice())
    }
}

/// The letters of a pipeline for which somebody asked, by partition.
pub(super) async fn asked(client: &Client, pipeline: &str) -> Result<Vec<Asked>, Error> {
    let sql = format!(
        "SELECT {COLUMNS}, coalesce(l.counted, false) FROM corrente.dead_letters l \
         WHERE l.pipeline = $1 AND l.replay_asked_at IS NOT NULL AND l.replayed_at IS NULL ORDER BY l.id LIMIT {REPLAYED}"
    );
    let mut places: BTreeMap<Place, BTreeMap<i64, (Letter, bool)>> = BTreeMap::new();
    for row in client.query(&sql, &[&pipeline]).await? {
        let (letter, counted) = (Letter::of(&row)?, row.try_get(14)?);
        let place = Place {
            cluster: letter.cluster.as_str().into(),
            partition: TopicPartition {
                topic: letter.topic.as_str().into(),
                partition: letter.partition,
            },
        };
        // An offset comes again in a topic that was made anew: its second letter has its turn later.
        places
            .entry(place)
            .or_default()
            .entry(letter.offset)
            .or_insert((letter, counted));
    }
    let asked = places.into_iter().filter_map(|(place, letters)| {
        let messages: Messages = letters
            .values()
            .map(|(letter, _)| Incoming {
                offset: letter.offset,
                timestamp: None,
                key: letter.key.as_deref(),
                payload: Some(&letter.payload),
            })
            .collect();
        let run = Run {
            messages: Arc::new(messages),
            range: 0..letters.len(),
        };
        Some(Asked {
            batch: Batch::build(place, 0, None, vec![run], Arc::default())?,
            letters: letters
                .into_iter()
                .map(|(offset, (letter, counted))| {
                    let Letter { id, payload, .. } = letter;
                    let known = Known { id, counted, payload };
                    (offset, known)
                })
                .collect(),
        })
    });
    Ok(asked.collect())
}

/// Locks the letters; false where one of them is replayed already, or gone.
pub(super) async fn lock(transaction: &Transaction<'_>, asked: &Asked) -> Result<bool, Error> {
    let ids: Vec<i64> = asked.letters.values().map(|letter| letter.id).collect();
    let locked = transaction
        .query(
            "SELECT id FROM corrente.dead_letters WHERE id = ANY ($1) AND replayed_at IS NULL \
             AND replay_asked_at IS NOT NULL ORDER BY id FOR UPDATE",
            &[&ids],
        )
        .await?;
    Ok(locked.len() == ids.len())
}

/// Says what came of them: `dead` are those that were refused once more.
pub(super) async fn settle(
    transaction: &Transaction<'_>,
    asked: &Asked,
    dead: &[DeadLetter<'_>],
) -> Result<(), Error> {
    let ids = asked.letters.iter();
    let mut stored: BTreeMap<i64, i64> = ids.map(|(offset, letter)| (*offset, letter.id)).collect();
    let refused: Vec<i64> = dead
        .iter()
        .filter_map(|letter| stored.remove(&letter.origin.offset))
        .collect();
    let states: Vec<Option<&str>> = dead.iter().map(|l| l.refusal.sqlstate.as_deref()).collect();
    let columns: Vec<Option<&str>> = dead.iter().map(|l| l.refusal.column.as_deref()).collect();
    let reasons: Vec<String> = dead
        .iter()
        .map(|l| l.refusal.reason.replace('\0', "\u{fffd}"))
        .collect();
    transaction
        .execute(
            "UPDATE corrente.dead_letters l \
             SET replay_asked_at = NULL, sqlstate = r.sqlstate, column_name = r.column_name, reason = r.reason \
             FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[]) r (id, sqlstate, column_name, reason) \
             WHERE l.id = r.id",
            &[&refused, &states, &columns, &reasons],
        )
        .await?;
    let stored: Vec<i64> = stored.into_values().collect();
    transaction
        .execute(
            "UPDATE corrente.dead_letters SET replayed_at = now() WHERE id = ANY ($1)",
            &[&stored],
        )
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_numbers_its_parameters() {
        let all = Filter {
            replayed: true,
            ..Filter::default()
        };
        assert_eq!(all.sql().0, "true");
        let some = Filter {
            topic: Some("t".to_owned()),
            ids: vec![1, 2],
            ..Filter::default()
        };
        let (condition, parameters) = some.sql();
        assert_eq!(
            condition,
            "l.replayed_at IS NULL AND l.topic = $1 AND l.id = ANY ($2) AND true"
        );
        assert_eq!(parameters.len(), 2);
    }
}
