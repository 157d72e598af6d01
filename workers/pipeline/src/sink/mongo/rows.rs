//! Documents into the collection: those that are there already are left, those that are refused are told, the rest
//! are stored.

use std::collections::HashSet;

use futures::TryStreamExt as _;
use mongodb::{
    Collection, Database,
    bson::{Bson, DateTime, Document, doc},
    error::{Error, ErrorKind},
    options::{TimeseriesGranularity, TimeseriesOptions},
};

/// A key is there already.
const DUPLICATE_KEY: i32 = 11000;
/// What a server says that does not know time-series collections: an unknown field (MongoDB before 5), or that it
/// is not implemented.
const UNKNOWN: [i32; 3] = [40415, 238, 72];
/// The collection is there.
const NAMESPACE_EXISTS: i32 = 48;

/// What a collection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A plain one, whose `_id` is unique.
    Plain,
    /// A time-series collection, which has no unique keys.
    TimeSeries,
}

/// What became of documents.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Inserted {
    /// The refused ones, by their place, with the reasons.
    pub refused: Vec<(usize, String)>,
    /// How many were there already.
    pub repeated: u64,
}

/// Makes the collection where it is missing, with an index over meter and time.
pub async fn ensure(database: &Database, name: &str, time_series: bool) -> Result<Shape, Error> {
    if let Some(shape) = shape(database, name).await? {
        return Ok(shape);
    }
    let mut made = Err(None);
    if time_series {
        let options = TimeseriesOptions::builder()
            .time_field("ts".to_owned())
            .meta_field(Some("meter".to_owned()))
            .granularity(Some(TimeseriesGranularity::Seconds))
            .build();
        made = database
            .create_collection(name)
            .timeseries(options)
            .await
            .map_err(Some);
    }
    match made {
        Err(None) => plain(database, name).await?,
        Err(Some(error)) if code(&error).is_some_and(|code| UNKNOWN.contains(&code)) => {
            tracing::info!(%error, collection = name, "the server has no time-series collections: a plain one is made");
            plain(database, name).await?;
        }
        // Another worker made it meanwhile.
        Err(Some(error)) if code(&error) == Some(NAMESPACE_EXISTS) => {}
        Err(Some(error)) => return Err(error),
        Ok(()) => {}
    }
    Ok(shape(database, name).await?.unwrap_or(Shape::Plain))
}

async fn plain(database: &Database, name: &str) -> Result<(), Error> {
    match database.create_collection(name).await {
        Err(error) if code(&error) == Some(NAMESPACE_EXISTS) => {}
        other => other?,
    }
    let command = doc! {
        "createIndexes": name,
        "indexes": [{"key": {"meter": 1, "ts": -1}, "name": "meter_ts"}],
    };
    database.run_command(command).await.map(|_| ())
}

async fn shape(database: &Database, name: &str) -> Result<Option<Shape>, Error> {
    let command = doc! {"listCollections": 1, "filter": {"name": name}};
    let answer = database.run_command(command).await?;
    let batch = answer
        .get_document("cursor")
        .and_then(|cursor| cursor.get_array("firstBatch"));
    Ok(batch
        .ok()
        .and_then(|batch| batch.first())
        .and_then(Bson::as_document)
        .map(|found| match found.get_str("type") {
            Ok("timeseries") => Shape::TimeSeries,
            _ => Shape::Plain,
        }))
}

/// The server's number for an error of a command.
fn code(error: &Error) -> Option<i32> {
    match &*error.kind {
        ErrorKind::Command(command) => Some(command.code),
        _ => None,
    }
}

/// Inserts documents. In a time-series collection those up to `doubtful` in number may be there already, and are
/// looked for first.
pub async fn insert(
    collection: &Collection<Document>,
    shape: Shape,
    doubtful: bool,
    documents: &[Document],
) -> Result<Inserted, Error> {
    let mut inserted = Inserted::default();
    let mut known = HashSet::new();
    if shape == Shape::TimeSeries && doubtful {
        let all: Vec<usize> = (0..documents.len()).collect();
        known = there(collection, documents, &all).await?;
    }
    let places: Vec<usize> = (0..documents.len()).filter(|at| !known.contains(at)).collect();
    inserted.repeated = known.len() as u64;
    if places.is_empty() {
        return Ok(inserted);
    }
    let fresh = places.iter().filter_map(|at| documents.get(*at));
    let Err(error) = collection.insert_many(fresh).ordered(false).await else {
        return Ok(inserted);
    };
    let ErrorKind::InsertMany(failure) = &*error.kind else {
        return Err(error);
    };
    if failure.write_concern_error.is_some() {
        return Err(error);
    }
    let errors = failure.write_errors.as_deref().unwrap_or_default();
    // A key of another index than that of `_id` may be the one that is there: then the record is not.
    let taken: Vec<usize> = errors
        .iter()
        .filter(|error| error.code == DUPLICATE_KEY)
        .filter_map(|error| places.get(error.index).copied())
        .collect();
    let there = there(collection, documents, &taken).await?;
    inserted.repeated += there.len() as u64;
    for error in errors {
        match places.get(error.index) {
            Some(at) if there.contains(at) => {}
            Some(at) => inserted.refused.push((
                *at,
                format!("MongoDB refuses it ({}): {}", error.code, error.message),
            )),
            None => {}
        }
    }
    Ok(inserted)
}

/// Which of some documents are in the collection, by their `_id`; and by their time, where a time-series collection
/// finds nothing fast by another key.
async fn there(
    collection: &Collection<Document>,
    documents: &[Document],
    places: &[usize],
) -> Result<HashSet<usize>, Error> {
    let of = |at: &usize| documents.get(*at);
    let ids: Vec<&Bson> = places
        .iter()
        .filter_map(of)
        .filter_map(|found| found.get("_id"))
        .collect();
    if ids.is_empty() {
        return Ok(HashSet::new());
    }
    let times = || {
        places
            .iter()
            .filter_map(of)
            .filter_map(|found| found.get_datetime("ts").ok().copied())
    };
    let (first, last): (Option<DateTime>, Option<DateTime>) = (times().min(), times().max());
    let filter = doc! {"ts": {"$gte": first, "$lte": last}, "_id": {"$in": ids}};
    let mut cursor = collection.find(filter).projection(doc! {"_id": 1}).await?;
    let mut found = HashSet::new();
    while let Some(document) = cursor.try_next().await? {
        found.extend(document.get_str("_id").ok().map(str::to_owned));
    }
    let is_there = |at: &&usize| {
        let id = of(at).and_then(|document| document.get_str("_id").ok());
        id.is_some_and(|id| found.contains(id))
    };
    Ok(places.iter().filter(is_there).copied().collect())
}
