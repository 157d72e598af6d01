//! How far each partition is stored, in collections beside the rows.
//!
//! `corrente_offsets` has a document for each pipeline, cluster, topic and partition: the next offset, the epoch of
//! the claim that may move it, and the fingerprint of the last message. It moves by a conditional update, so
//! that of two workers that think they own a partition the later one alone gets on. `writing` is the offset up to
//! which a batch was begun; where rows have no unique key, what lies before it may be there already.
//!
//! `corrente_streams` has the high-water marks. They are raised after the rows are stored and before the offset
//! moves, so that a mark never stands for a row that is not there.

use std::collections::HashMap;

use futures::TryStreamExt as _;
use mongodb::{
    Database,
    bson::{Bson, Document, doc},
    error::Error,
    options::ReturnDocument,
};

use crate::{
    assignment::{Fingerprint, Position},
    batch::{Batch, Place},
    sink::Claimed,
};

const OFFSETS: &str = "corrente_offsets";
const STREAMS: &str = "corrente_streams";

/// What the offset's document says of a batch.
#[derive(Debug, PartialEq, Eq)]
pub enum Fence {
    /// It was, and is now, ours. The batch may be there in part, up to this offset.
    Open(Option<i64>),
    /// The batch is stored already: an earlier answer was lost.
    Stored,
    /// Another worker has the partition, for this reason.
    Closed(String),
}

fn id(pipeline: &str, place: &Place) -> String {
    format!("{pipeline} {} {}", place.cluster, place.partition)
}

/// Takes a partition over.
pub async fn claim(database: &Database, pipeline: &str, place: &Place) -> Result<Claimed, Error> {
    let (topic, partition) = (&*place.partition.topic, place.partition.partition);
    let named =
        doc! {"pipeline": pipeline, "cluster": &*place.cluster, "topic": topic, "partition": partition};
    let found = database
        .collection::<Document>(OFFSETS)
        .find_one_and_update(
            doc! {"_id": id(pipeline, place)},
            doc! {"$inc": {"epoch": 1i64}, "$setOnInsert": named},
        )
        .upsert(true)
        .return_document(ReturnDocument::After)
        .await?
        .unwrap_or_default();
    let streams = doc! {"pipeline": pipeline, "topic": topic, "partition": partition};
    let mut cursor = database.collection::<Document>(STREAMS).find(streams).await?;
    let mut marks = HashMap::new();
    while let Some(mark) = cursor.try_next().await? {
        if let (Ok(stream), Some(seq)) = (mark.get_str("stream"), whole(&mark, "seq")) {
            marks.insert(stream.to_owned(), u64::try_from(seq).unwrap_or(0));
        }
    }
    let crc = |name: &str| whole(&found, name).and_then(|crc| u32::try_from(crc).ok());
    let last = Fingerprint {
        timestamp: whole(&found, "last_timestamp"),
        key_crc: crc("last_key_crc"),
        payload_crc: crc("last_payload_crc"),
    };
    let nothing = Fingerprint {
        timestamp: None,
        key_crc: None,
        payload_crc: None,
    };
    Ok(Claimed {
        epoch: whole(&found, "epoch").unwrap_or(0),
        position: whole(&found, "next_offset").map(|next_offset| Position {
            next_offset,
            last: Some(last).filter(|last| *last != nothing),
        }),
        marks,
    })
}

/// A whole number of a document, whatever sort of number a person may have made of it.
fn whole(document: &Document, name: &str) -> Option<i64> {
    match document.get(name)? {
        Bson::Int64(number) => Some(*number),
        Bson::Int32(number) => Some(i64::from(*number)),
        Bson::Double(number) if number.fract() == 0.0 => Some(*number as i64),
        _ => None,
    }
}

/// Where a batch has to find the offset.
fn expected(pipeline: &str, batch: &Batch) -> Document {
    doc! {"_id": id(pipeline, &batch.place), "epoch": batch.epoch, "next_offset": batch.previous}
}

/// Notes that a batch is begun, before its first row is written.
pub async fn begin(database: &Database, pipeline: &str, batch: &Batch) -> Result<Fence, Error> {
    let before = database
        .collection::<Document>(OFFSETS)
        .find_one_and_update(
            expected(pipeline, batch),
            doc! {"$max": {"writing": batch.next_offset}},
        )
        .return_document(ReturnDocument::Before)
        .await?;
    match before {
        Some(before) => Ok(Fence::Open(whole(&before, "writing"))),
        None => compare(database, pipeline, batch).await,
    }
}

/// Raises the marks and moves the offset past a batch whose rows are stored.
pub async fn advance(
    database: &Database,
    pipeline: &str,
    batch: &Batch,
    marks: &[(String, u64)],
) -> Result<Fence, Error> {
    let (topic, partition) = (&*batch.place.partition.topic, batch.place.partition.partition);
    if !marks.is_empty() {
        let updates: Vec<Document> = marks
            .iter()
            .map(|(stream, seq)| {
                let named =
                    doc! {"pipeline": pipeline, "topic": topic, "partition": partition, "stream": stream};
                doc! {
                    "q": {"_id": format!("{pipeline} {} {stream}", batch.place.partition)},
                    "u": {"$max": {"seq": i64::try_from(*seq).unwrap_or(i64::MAX)}, "$setOnInsert": named},
                    "upsert": true,
                }
            })
            .collect();
        let command = doc! {"update": STREAMS, "updates": updates, "writeConcern": {"w": "majority"}};
        let answer = database.run_command(command).await?;
        if let Some(errors) = answer.get("writeErrors") {
            return Err(Error::custom(format!("the marks were not taken: {errors}")));
        }
    }
    let set = doc! {
        "next_offset": batch.next_offset,
        "last_timestamp": batch.last.timestamp,
        "last_key_crc": batch.last.key_crc.map(i64::from),
        "last_payload_crc": batch.last.payload_crc.map(i64::from),
    };
    let moved = database
        .collection::<Document>(OFFSETS)
        .update_one(expected(pipeline, batch), doc! {"$set": set})
        .await?;
    if moved.matched_count == 1 {
        return Ok(Fence::Open(None));
    }
    compare(database, pipeline, batch).await
}

/// Why the offset is not where a batch has to find it.
async fn compare(database: &Database, pipeline: &str, batch: &Batch) -> Result<Fence, Error> {
    let found = database
        .collection::<Document>(OFFSETS)
        .find_one(doc! {"_id": id(pipeline, &batch.place)})
        .await?;
    Ok(match found {
        None => Fence::Closed(format!("its document in {OFFSETS} is gone")),
        Some(found) => match (whole(&found, "epoch"), whole(&found, "next_offset")) {
            (Some(epoch), next) if epoch == batch.epoch && next == Some(batch.next_offset) => Fence::Stored,
            (Some(epoch), next) if epoch == batch.epoch => Fence::Closed(format!(
                "the next offset is {next:?} in {OFFSETS}, and was {:?} here: somebody changed it",
                batch.previous
            )),
            (epoch, _) => Fence::Closed(format!(
                "another worker has taken it: the epoch is {epoch:?}, ours is {}",
                batch.epoch
            )),
        },
    })
}
