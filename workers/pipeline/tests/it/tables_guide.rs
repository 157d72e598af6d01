//! What docs/guides/tables.md shows is loaded, and its questions have answers.

use corrente_config::{PipelineConfig, pipeline::SinkConfig};
use corrente_runtime::memory::MemoryBroker;

use crate::{
    database::Database,
    guide,
    support::{Worker, producer, send, wait},
    upkeep::round,
};

const GUIDE: &str = include_str!("../../../../docs/guides/tables.md");

/// The pipeline of the guide, in the places of a test.
fn pipeline(db: &Database) -> PipelineConfig {
    let mut config = guide::pipeline(GUIDE);
    (config.namespace, config.name) = ("test".to_owned(), db.pipeline.clone());
    let SinkConfig::Postgres {
        connection,
        schema,
        tables,
        ..
    } = &mut config.sink
    else {
        panic!("not PostgreSQL");
    };
    (connection.url_file, *schema) = (db.url_file(), db.schema.clone());
    tables.views.as_mut().unwrap().schema = format!("{}_bi", db.schema);
    config
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn the_questions_of_the_guide_have_answers() {
    let db = Database::new().await;
    let config = pipeline(&db);
    let broker = MemoryBroker::new(1);
    let producer = producer(&broker, "site");
    for minute in 0..60u64 {
        let (slot, energy) = (format!("2026-01-01T10:{minute:02}:00Z"), 1000 + 10 * minute);
        let payload = format!(
            r#"{{"ts":"{slot}","meter":"feeder-3","slot":"{slot}","stream":"s","seq":{minute},"quality":"good",
                "voltage_l1_n":229.{minute:02},"energy_active_import":{energy}}}"#
        );
        send(&producer, 0, &payload);
    }
    let worker = Worker::start(&config, broker.source(&config.topics), db.sink(&config));
    wait("the readings", async || worker.report().rows == 60).await;
    worker.stop().await;
    // What this database cannot have is said, and nothing else.
    let said = round(&config, "2026-01-01T12:00:00Z").await;
    assert!(
        said.notices
            .iter()
            .all(|notice| notice.contains("compressAfter") || notice.contains("CREATEROLE")),
        "{said:?}"
    );
    db.client
        .batch_execute(&format!("SET search_path = {0}, {0}_bi", db.schema))
        .await
        .unwrap();
    let questions = guide::blocks(GUIDE, "sql");
    assert!(questions.len() >= 6);
    for question in questions {
        let answer = db.client.query(question, &[]).await;
        let rows = answer.unwrap_or_else(|error| panic!("{error:?} in {question}"));
        assert!(!rows.is_empty(), "no answer to {question}");
    }
    let figures = "SELECT (SELECT sum(missing) FROM completeness WHERE bucket < '2026-01-01 12:00Z'), \
         (SELECT max(energy_active_import_max) FROM readings_15m), \
         (SELECT round(max(energy)) FROM demand_15min), (SELECT voltage_l1_n FROM latest)";
    assert_eq!(db.text(figures).await, "60|1590|150|229.59");
    db.client
        .batch_execute(&format!(
            "RESET search_path; DROP SCHEMA {}_bi CASCADE",
            db.schema
        ))
        .await
        .unwrap();
    db.forget_tables().await;
    db.drop().await;
}
