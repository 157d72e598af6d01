//! `corrente dead-letters` as a person meets it, on a real PostgreSQL with a worker's tables.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::{Command, Output};

use corrente_config::PipelineConfig;
use corrente_pipeline::sink::{Sink as _, postgres::PostgresSink};
use serde_json::json;
use tokio_postgres::{Client, NoTls};

fn corrente(url: Option<&str>, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_corrente"));
    command
        .arg("dead-letters")
        .args(arguments)
        .env_remove("CORRENTE_DATABASE");
    if let Some(url) = url {
        command.env("CORRENTE_DATABASE", url);
    }
    command.output().unwrap()
}

fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn refused(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn a_database_that_cannot_be_used_is_said_in_a_sentence() {
    for (url, arguments, says) in [
        (None, &["list"][..], "nothing says which database"),
        (None, &["list", "--database", "/nowhere/url"], "/nowhere/url"),
        (Some("db:5432"), &["list"], "the database's URL cannot be read"),
        (
            Some("postgres://a@127.0.0.1:1/b"),
            &["list"],
            "failed to connect to the database",
        ),
    ] {
        let said = refused(&corrente(url, arguments));
        assert!(said.starts_with("corrente: ") && said.contains(says), "{said}");
    }
}

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: set CORRENTE_TEST_POSTGRES to its URL"]
async fn letters_are_listed_replayed_and_pruned() {
    let server = std::env::var("CORRENTE_TEST_POSTGRES").expect("CORRENTE_TEST_POSTGRES names no PostgreSQL");
    // A database of the test's own: first one without any table of ours.
    let name = format!("letters_{}", std::process::id());
    let admin = connect(&server).await;
    admin
        .batch_execute(&format!("CREATE DATABASE {name}"))
        .await
        .unwrap();
    let url = format!("{}/{name}", server.rsplit_once('/').unwrap().0);
    let said = refused(&corrente(Some(&url), &["list"]));
    assert!(said.contains("no table corrente.dead_letters"), "{said}");

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("url");
    std::fs::write(&file, &url).unwrap();
    let config: PipelineConfig = serde_json::from_value(json!({
        "namespace": "test", "name": "p", "group": "g", "topics": ["t"], "columns": {},
        "kafka": {"bootstrapServers": ["unused:9092"]},
        "sink": {"postgres": {"urlFile": file, "schema": "public", "table": "readings", "hypertable": null}},
        "batch": {"maxAge": "1s"},
    }))
    .unwrap();
    let mut sink = PostgresSink::new(&config).unwrap();
    sink.open().await.unwrap();
    assert_eq!(printed(&corrente(Some(&url), &["list"])), "no letters\n");
    let client = connect(&url).await;
    let letter = |offset: i64, record: &str| {
        format!(
            "INSERT INTO corrente.dead_letters \
             (pipeline, cluster, topic, partition, message_offset, payload, sqlstate, column_name, reason) \
             VALUES ('test/p', 'c', 't', 0, {offset}, '{record}', '23514', 'v', 'violates a check');"
        )
    };
    let record = r#"{"ts":"2026-11-20T22:20:00Z","meter":"m","v":1.5}"#;
    client
        .batch_execute(&(letter(7, record) + &letter(8, "noise")))
        .await
        .unwrap();
    let listed = printed(&corrente(
        None,
        &["list", "--payload", "--database", file.to_str().unwrap()],
    ));
    assert!(
        listed.contains("test/p  t/0 7  [23514] v: violates a check"),
        "{listed}"
    );
    assert!(listed.contains("    noise\n2 letters\n"), "{listed}");
    let some = printed(&corrente(
        Some(&url),
        &["list", "--offset", "8-", "--sqlstate", "23514"],
    ));
    assert!(some.ends_with("1 letter\n"), "{some}");

    // Nothing is not everything.
    let said = refused(&corrente(Some(&url), &["replay"]));
    assert!(said.contains("nothing says which letters"), "{said}");
    // No worker runs: the letters wait for one.
    let waiting = corrente(Some(&url), &["replay", "--pipeline", "test/p", "--wait", "0"]);
    assert_eq!(waiting.status.code(), Some(1));
    let said = String::from_utf8(waiting.stdout).unwrap();
    assert!(said.contains("2 letters not looked at within 0 s"), "{said}");
    assert_eq!(sink.replay().await.unwrap(), (2, 1));
    let listed = printed(&corrente(Some(&url), &["list", "--all"]));
    assert!(
        listed.contains("(replayed)") && listed.contains("not a record"),
        "{listed}"
    );
    // A worker while the command waits.
    let replaying = tokio::task::spawn_blocking({
        let url = url.clone();
        move || corrente(Some(&url), &["replay", "--everything"])
    });
    while sink.replay().await.unwrap().0 == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let again = replaying.await.unwrap();
    assert_eq!(again.status.code(), Some(1));
    let said = String::from_utf8(again.stdout).unwrap();
    assert!(
        said.contains("0 letters stored\n1 letter refused again"),
        "{said}"
    );
    assert_eq!(
        printed(&corrente(Some(&url), &["prune", "--everything"])),
        "1 letter removed\n"
    );
    assert_eq!(
        printed(&corrente(Some(&url), &["prune", "--pipeline", "test/p", "--all"])),
        "1 letter removed\n"
    );
    let rows: i64 = client
        .query_one("SELECT count(*) FROM readings", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(rows, 1);
    drop((client, sink));
    admin
        .batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)"))
        .await
        .unwrap();
}
