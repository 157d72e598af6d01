//! The account: what was acknowledged against what is stored.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
    message::Headers as _,
};

use tokio_postgres::Client;

use crate::{
    plant::{LETTERS, PIPELINE, Plant},
    producers::{is_forbidden, is_misfit, precedes_noise},
};

/// What is stored of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Stored {
    rows: u64,
    distinct: u64,
    least: u64,
    most: u64,
}

fn count(seqs: u64, which: impl Fn(u64) -> bool) -> u64 {
    (1..=seqs).filter(|seq| which(*seq)).count() as u64
}

/// Rows that a stream is to have.
fn good(plant: &Plant, stream: &str, seqs: u64) -> u64 {
    match plant.fed.contains_key(stream) {
        true => count(seqs, |seq| !is_misfit(seq) && !is_forbidden(seq)),
        false => seqs,
    }
}

async fn stored(client: &Client) -> BTreeMap<String, Stored> {
    let rows = client
        .query(
            "SELECT stream, count(*), count(DISTINCT seq), min(seq), max(seq) FROM readings GROUP BY stream",
            &[],
        )
        .await
        .unwrap();
    let number = |row: &tokio_postgres::Row, at| u64::try_from(row.get::<_, i64>(at)).unwrap();
    rows.iter()
        .map(|row| {
            let stored = Stored {
                rows: number(row, 1),
                distinct: number(row, 2),
                least: number(row, 3),
                most: number(row, 4),
            };
            (row.get(0), stored)
        })
        .collect()
}

async fn one(client: &Client, sql: &str) -> u64 {
    u64::try_from(
        client
            .query_one(sql, &[&PIPELINE])
            .await
            .unwrap()
            .get::<_, i64>(0),
    )
    .unwrap()
}

/// Waits until the table has as many rows as it is to have, and holds both accounts together.
pub async fn check(mut plant: Plant, patience: Duration) {
    let client = plant.database().connect().await.unwrap();
    let expected: u64 = plant
        .account
        .iter()
        .map(|(stream, seqs)| good(&plant, stream, *seqs))
        .sum();
    let bad: u64 = plant
        .fed
        .values()
        .map(|seqs| count(*seqs, |seq| is_misfit(seq) || is_forbidden(seq)))
        .sum();
    let until = Instant::now() + patience;
    loop {
        let rows: i64 = client
            .query_one("SELECT count(*) FROM readings", &[])
            .await
            .unwrap()
            .get(0);
        if rows as u64 >= expected || Instant::now() > until {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // Failing from here on is worth a look at what was said.
    let mut wrong = differences(&plant, &client, bad).await;
    wrong.extend(unpublished(&plant, &client).await);
    let claims = one(
        &client,
        "SELECT coalesce(sum(epoch), 0)::bigint FROM corrente.offsets WHERE pipeline = $1",
    )
    .await;
    println!(
        "{:7.1} s  {} streams, {expected} rows to be stored, {bad} to be refused; {claims} claims",
        plant.seconds(),
        plant.account.len(),
    );
    if !wrong.is_empty() {
        plant.keep_logs();
        panic!("{}", wrong.join("\n"));
    }
}

/// Which letters did not come to their topic.
async fn unpublished(plant: &Plant, client: &Client) -> Option<String> {
    let rows = client.query("SELECT pipeline || '/' || id FROM corrente.dead_letters", &[]);
    let mut missing: BTreeSet<String> = rows.await.unwrap().iter().map(|row| row.get(0)).collect();
    let (kafka, count) = (plant.kafka(), missing.len());
    let reading = tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", kafka)
            .set("group.id", "check")
            .create()
            .unwrap();
        let mut all = TopicPartitionList::new();
        all.add_partition_offset(LETTERS, 0, Offset::Beginning).unwrap();
        consumer.assign(&all).unwrap();
        let (until, mut messages) = (Instant::now() + Duration::from_secs(60), 0);
        while !missing.is_empty() && Instant::now() < until {
            if let Some(Ok(message)) = consumer.poll(Duration::from_millis(200)) {
                let headers = message.headers().unwrap();
                let id = headers.iter().find(|header| header.key == "x-dead-letter-id");
                missing.remove(std::str::from_utf8(id.unwrap().value.unwrap()).unwrap());
                messages += 1;
            }
        }
        (missing, messages)
    });
    let (missing, messages) = reading.await.unwrap();
    println!("{count} letters, {messages} messages until each had come");
    (!missing.is_empty()).then(|| format!("{} letters of {count} were not published", missing.len()))
}

async fn differences(plant: &Plant, client: &Client, bad: u64) -> Vec<String> {
    let mut wrong = vec![];
    let found = stored(client).await;
    for (stream, seqs) in &plant.account {
        let (found, rows) = (
            found.get(stream).copied().unwrap_or_default(),
            good(plant, stream, *seqs),
        );
        let whole = found.rows == rows && found.distinct == rows && found.most <= *seqs && found.least >= 1;
        if !whole {
            wrong.push(format!(
                "{stream}: {seqs} acknowledged, {rows} to be stored, {found:?}"
            ));
        }
    }
    for stream in found.keys().filter(|stream| !plant.account.contains_key(*stream)) {
        wrong.push(format!("{stream} is in the table, and nobody sent it"));
    }
    // The bad records, each once: by stream and seq, whatever offsets they came at.
    let letters = one(
        client,
        "SELECT count(*) FROM corrente.dead_letters WHERE pipeline = $1 AND payload LIKE '{%'",
    )
    .await;
    let distinct = one(
        client,
        "SELECT count(DISTINCT payload) FROM corrente.dead_letters WHERE pipeline = $1 AND payload LIKE '{%'",
    )
    .await;
    if (letters, distinct) != (bad, bad) {
        wrong.push(format!(
            "{bad} bad records: {letters} letters of {distinct} payloads"
        ));
    }
    // What is no record has no seq: each offset once, and each line at least once.
    let noise: u64 = plant.fed.values().map(|seqs| count(*seqs, precedes_noise)).sum();
    let lines = one(
        client,
        "SELECT count(DISTINCT payload) FROM corrente.dead_letters WHERE pipeline = $1 AND payload LIKE 'noise%'",
    )
    .await;
    let doubled = one(
        client,
        "SELECT count(*) - count(DISTINCT (topic, partition, message_offset)) FROM corrente.dead_letters \
         WHERE pipeline = $1",
    )
    .await;
    if (lines, doubled) != (noise, 0) {
        wrong.push(format!(
            "{noise} lines of noise: {lines} letters; {doubled} offsets twice"
        ));
    }
    wrong
}
