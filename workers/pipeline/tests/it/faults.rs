//! Faults that pass: each is told with a sentence, nothing is lost or doubled, and order is kept.
//!
//! The database is a process of the test's own, which can be set read-only and can run out of everything.

use std::{os::unix::fs::MetadataExt as _, path::PathBuf, process::Command, time::Duration};

use corrente_config::PipelineConfig;
use corrente_crds::pipeline::ColumnType;
use corrente_pipeline::{
    fault::FaultKind,
    sink::{Sink as _, SinkError},
};
use corrente_runtime::memory::MemoryBroker;
use tokio_postgres::Client;

use crate::{
    database::{Database, connect},
    servers,
    support::{Worker, producer, record, send, source, wait},
    topic::Topic,
};

/// A database server of the test's own, in which the worker's user is no superuser.
struct Server {
    server: servers::Database,
    /// The superuser.
    admin: Client,
    folder: tempfile::TempDir,
}

impl Server {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = servers::Database::start(folder.path()).await;
        let admin = server.connect().await.unwrap();
        admin
            .batch_execute("CREATE ROLE worker LOGIN; GRANT ALL ON DATABASE postgres TO worker; GRANT ALL ON SCHEMA public TO worker")
            .await
            .unwrap();
        Self {
            server,
            admin,
            folder,
        }
    }

    /// A schema for the worker, as the worker's user.
    async fn database(&self) -> Database {
        let db = Database::at(&self.server.url()).await;
        let url = self.server.url().replace("postgres@", "worker@");
        std::fs::write(db.url_file(), url).unwrap();
        db
    }

    async fn run(&self, sql: &str) {
        self.admin.batch_execute(sql).await.unwrap();
    }
}

/// A worker on a broker within the process, and what it has been sent.
struct Running {
    broker: MemoryBroker,
    worker: Worker,
    sent: u64,
}

impl Running {
    /// A worker that has stored its first records.
    async fn start(db: &Database) -> Self {
        let config = db.config("t", None);
        let broker = MemoryBroker::new(2);
        let worker = Worker::start(&config, broker.source(&config.topics), db.sink(&config));
        let mut running = Self {
            broker,
            worker,
            sent: 0,
        };
        running.send();
        running.stored(db).await;
        running
    }

    /// Sends some more to both partitions.
    fn send(&mut self) {
        let producer = producer(&self.broker, "t");
        for seq in self.sent..self.sent + 50 {
            for partition in 0..2 {
                send(&producer, partition, &record(&format!("s{partition}"), seq));
            }
        }
        self.sent += 50;
    }

    /// Waits until all is in the table and nothing is wrong.
    async fn stored(&self, db: &Database) {
        db.wait_for(2 * self.sent).await;
        wait("no trouble", async || self.worker.report().trouble.is_none()).await;
    }

    /// The trouble says so, has a beginning, and keeps it through further tries.
    async fn trouble(&self, says: &str) {
        self.worker.trouble(says).await;
        let first = self.worker.report().trouble.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        if let Some(later) = self.worker.report().trouble {
            assert!(
                later.since >= first.since && later.reason.contains(says),
                "{later:?}"
            );
        }
    }

    /// Every record is stored once, in order, and none is set aside.
    async fn end(self, db: Database) {
        self.stored(&db).await;
        self.worker.stop().await;
        db.assert_exactly(2, self.sent).await;
        assert_eq!(db.dead_letters().await, "");
        // As the rows lie in the table, no stream goes back.
        let back = format!(
            "SELECT count(*) FROM (SELECT seq < lag(seq) OVER (PARTITION BY stream ORDER BY ctid) AS back FROM {}) r WHERE back",
            db.table()
        );
        assert_eq!(db.text(&back).await, "0");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_database_set_read_only() {
    let server = Server::start().await;
    let db = server.database().await;
    let mut running = Running::start(&db).await;
    for set in [
        "default_transaction_read_only = on",
        "default_transaction_read_only = off",
    ] {
        server.run(&format!("ALTER ROLE worker SET {set}")).await;
        let sessions = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'worker'";
        server.run(sessions).await;
        running.send();
        if set.ends_with("on") {
            running.trouble("takes no writes").await;
            assert!(running.worker.report().trouble.unwrap().reason.contains("25006"));
        }
    }
    running.end(db).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_table_that_cannot_be_widened_now() {
    let server = Server::start().await;
    let db = server.database().await;
    let mut running = Running::start(&db).await;
    // Somebody reads the table for long: a column cannot be added beside him.
    let reader = connect(&server.server.url()).await;
    let read = format!("BEGIN; SELECT count(*) FROM {}", db.table());
    reader.batch_execute(&read).await.unwrap();
    let producer = producer(&running.broker, "t");
    for partition in 0..2 {
        let more = record(&format!("s{partition}"), running.sent).replace('}', r#","new":1}"#);
        send(&producer, partition, &more);
    }
    running.sent += 1;
    running.trouble("failed to add columns to the table").await;
    let trouble = running.worker.report().trouble.unwrap().reason;
    assert!(
        trouble.contains("55P03") && trouble.contains("pg_stat_activity"),
        "{trouble}"
    );
    running.send();
    reader.batch_execute("ROLLBACK").await.unwrap();
    running.stored(&db).await;
    // The same of a column that is asked for before any row comes, and of a standby.
    let mut config = db.config("t", None);
    config.columns.insert("declared".to_owned(), ColumnType::Text);
    let fault = async |config: &PipelineConfig| match db.sink(config).open().await {
        Err(SinkError::Fault(fault)) => fault,
        other => panic!("{other:?}"),
    };
    reader.batch_execute(&read).await.unwrap();
    let waits = fault(&config).await;
    assert!(waits.reason.contains("55P03"), "{waits:?}");
    reader.batch_execute("ROLLBACK").await.unwrap();
    server
        .run("ALTER ROLE worker SET default_transaction_read_only = on")
        .await;
    let standby = fault(&config).await;
    assert!(
        standby.kind == FaultKind::ReadOnly && standby.reason.contains("takes no writes"),
        "{standby:?}"
    );
    server
        .run("ALTER ROLE worker RESET default_transaction_read_only")
        .await;
    db.sink(&config).open().await.unwrap();
    running.end(db).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn no_connection_to_spare() {
    let server = Server::start().await;
    let db = server.database().await;
    let mut running = Running::start(&db).await;
    server.run("ALTER ROLE worker CONNECTION LIMIT 0").await;
    server
        .run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'worker'")
        .await;
    running.send();
    running.trouble("no connection to spare").await;
    server.run("ALTER ROLE worker CONNECTION LIMIT -1").await;
    running.end(db).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_database_that_is_killed_and_comes_back() {
    let mut server = Server::start().await;
    let db = server.database().await;
    let mut running = Running::start(&db).await;
    // What is not on the disk yet would be read again from the topic, which this broker does not keep.
    server.run("CHECKPOINT").await;
    server.server.kill();
    running.send();
    running.trouble("wait in the topic").await;
    server.server.back().await;
    // The connection that looks on died with the server.
    let looking = Database {
        client: connect(&server.server.url()).await,
        ..db
    };
    running.end(looking).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn the_victim_of_a_deadlock_begins_anew() {
    let server = Server::start().await;
    let db = server.database().await;
    let mut running = Running::start(&db).await;
    let (rival, table) = (connect(&server.server.url()).await, db.table());
    // The worker is the first to look whether there is a deadlock, and so the victim.
    rival
        .batch_execute(&format!(
            "SET deadlock_timeout = '60s'; BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"
        ))
        .await
        .unwrap();
    running.send();
    // The worker has its row of the offsets, and waits for the table.
    let waits = "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE NOT granted AND usename = 'worker'";
    wait("the worker to wait", async || db.text(waits).await != "0").await;
    rival
        .batch_execute("UPDATE corrente.offsets SET updated_at = now(); ROLLBACK")
        .await
        .unwrap();
    let seen = std::fs::read_to_string(server.folder.path().join("postgres.log")).unwrap();
    assert!(seen.contains("deadlock detected"), "{seen}");
    running.end(db).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_serialization_failure_is_tried_again_at_once() {
    let server = Server::start().await;
    let db = server.database().await;
    let mut running = Running::start(&db).await;
    let (schema, table) = (&db.schema, db.table());
    // A table whose trigger fails a few times as PostgreSQL itself would.
    server
        .run(&format!(
            "CREATE SEQUENCE {schema}.tries; GRANT USAGE ON SEQUENCE {schema}.tries TO worker; \
             CREATE FUNCTION {schema}.f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             IF nextval('{schema}.tries') <= 4 THEN RAISE 'could not serialize access' USING ERRCODE = '40001'; END IF; \
             RETURN NEW; END $$; \
             CREATE TRIGGER t BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION {schema}.f()"
        ))
        .await;
    running.send();
    running.stored(&db).await;
    assert_ne!(
        db.text(&format!("SELECT last_value > 4 FROM {schema}.tries"))
            .await,
        "f"
    );
    running.end(db).await;
}

/// A small file system, which is full until it is told otherwise.
struct Small(PathBuf);

impl Small {
    fn mount(path: PathBuf) -> Self {
        std::fs::create_dir_all(&path).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=6m,mode=0777", "tmpfs"])
            .arg(&path)
            .status()
            .unwrap();
        assert!(
            mounted.success(),
            "failed to mount a file system: this test must be run as root"
        );
        // The database's user, who owns the folder that this one is in.
        let owner = std::fs::metadata(path.parent().unwrap()).unwrap();
        std::os::unix::fs::chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
        Self(path)
    }

    fn fill(&self) {
        // As much as there is room for, and no more.
        let wrote = std::fs::write(self.0.join("fill"), vec![0; 16 * 1024 * 1024]);
        assert!(wrote.is_err());
    }

    fn free(&self) {
        std::fs::remove_file(self.0.join("fill")).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_disk_that_is_full_and_is_freed() {
    let server = Server::start().await;
    let db = server.database().await;
    let inside = format!("/var/lib/postgresql/{}", db.schema);
    let small = Small::mount(server.server.outside(&inside));
    server
        .run(&format!("CREATE TABLESPACE small LOCATION '{inside}'"))
        .await;
    server.run("GRANT CREATE ON TABLESPACE small TO worker").await;
    let mut running = Running::start(&db).await;
    server
        .run(&format!("ALTER TABLE {} SET TABLESPACE small", db.table()))
        .await;
    small.fill();
    // A page takes some fifty rows.
    wait("the disk to be full", async || {
        running.send();
        let trouble = running.worker.report().trouble;
        trouble.is_some_and(|trouble| trouble.reason.contains("disk is full"))
    })
    .await;
    running.trouble("53100").await;
    small.free();
    running.end(db).await;
    drop(server);
    drop(small);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka and PostgreSQL"]
async fn a_worker_that_stands_still_in_a_batch_holds_it_up_for_seconds() {
    const EACH: u64 = 20_000;
    let (db, topic) = (Database::new().await, Topic::new(1));
    topic.create().await;
    let mut config = db.config(&topic.name, None);
    config.batch.max_rows = i32::MAX;
    config.batch.max_bytes = i32::MAX;
    topic.send_stream(0, "s", 0..EACH);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipeline.json");
    std::fs::write(&path, serde_json::to_vec(&config).unwrap()).unwrap();
    let frozen = servers::Process::start(
        Command::new(env!("CARGO_BIN_EXE_corrente-pipeline"))
            .args(["--listen", "0", "--config"])
            .arg(&path),
        &folder.path().join("log"),
    );
    // Stopped wherever it is, until that is in the middle of a batch.
    let holds = format!(
        "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory' \
         AND application_name LIKE '%{}'",
        db.pipeline
    );
    let mut sent = EACH;
    wait("the worker to be stopped in a batch", async || {
        if db.text(&holds).await == "0" {
            topic.send_stream(0, "s", sent..sent + 200);
            sent += 200;
            return false;
        }
        frozen.signal("-STOP");
        // What it sent before it was stopped has arrived by now.
        tokio::time::sleep(Duration::from_millis(300)).await;
        if db.text(&holds).await == "0" {
            frozen.signal("-CONT");
            return false;
        }
        true
    })
    .await;
    // The group notices after its session's end; another group at once.
    config.group.push_str(".other");
    let worker = Worker::start(&config, source(&config), db.sink(&config));
    db.wait_for(sent).await;
    assert!(worker.report().rows > 0);
    // Who comes back is refused, and gives way.
    frozen.signal("-CONT");
    topic.send_stream(0, "s", sent..sent + 100);
    db.wait_for(sent + 100).await;
    frozen.end("-KILL");
    worker.stop().await;
    db.assert_exactly(1, sent + 100).await;
    topic.delete().await;
    db.drop().await;
}
