//! A Kafka broker and a PostgreSQL with TimescaleDB as processes of the test's own, on ports that were free.

use std::{
    fs::{self, File},
    net::TcpListener,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig,
    consumer::{BaseConsumer, Consumer as _},
};
use tokio_postgres::{Client, NoTls};

/// A port that nobody has at the moment.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// What e2e/install.sh has put there.
fn cache() -> PathBuf {
    let home = || format!("{}/.cache/corrente", std::env::var("HOME").unwrap());
    std::env::var("CORRENTE_CACHE").unwrap_or_else(|_| home()).into()
}

/// Waits for up to a minute and a half.
pub async fn wait(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(90);
    while !condition().await {
        assert!(Instant::now() < until, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A process, which ends with the test.
pub struct Process(Child);

impl Process {
    /// Starts it with its output in the file `log`.
    pub fn start(command: &mut Command, log: &Path) -> Self {
        let out = File::options().create(true).append(true).open(log).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn();
        Self(child.unwrap_or_else(|error| panic!("failed to start {command:?}: {error}")))
    }

    pub fn signal(&self, signal: &str) {
        let id = self.0.id().to_string();
        let done = Command::new("kill").args([signal, &id]).status().unwrap();
        assert!(done.success(), "failed to send {signal} to {id}");
    }

    /// Ends it by `signal`, and waits until it has.
    pub fn end(mut self, signal: &str) {
        self.signal(signal);
        self.0.wait().unwrap();
    }

    /// Kills it and its children, which would outlive it.
    fn kill_all(&mut self) {
        let id = self.0.id().to_string();
        let found = Command::new("ps")
            .args(["-o", "pid=", "--ppid", &id])
            .output()
            .unwrap();
        let children = String::from_utf8(found.stdout).unwrap();
        let mut kill = Command::new("kill");
        kill.arg("-9").arg(&id).args(children.split_whitespace());
        // A child may have ended by itself meanwhile.
        let _ = kill.stderr(Stdio::null()).status().unwrap();
        self.0.wait().unwrap();
        let gone = |child: &str| {
            fs::read_to_string(format!("/proc/{child}/stat"))
                .map_or(true, |stat| stat.rsplit(") ").next().unwrap().starts_with('Z'))
        };
        while !children.split_whitespace().all(gone) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The broker.
pub struct Broker {
    folder: PathBuf,
    port: u16,
    process: Option<Process>,
}

impl Broker {
    pub async fn start(folder: &Path) -> Self {
        let (port, controller) = (free_port(), free_port());
        let properties = format!(
            "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:{controller}\n\
             listeners=HERE://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
             advertised.listeners=HERE://127.0.0.1:{port}\n\
             listener.security.protocol.map=HERE:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
             inter.broker.listener.name=HERE\ncontroller.listener.names=CONTROLLER\nlog.dirs={}/kafka\n\
             offsets.topic.replication.factor=1\ntransaction.state.log.replication.factor=1\n\
             transaction.state.log.min.isr=1\nshare.coordinator.state.topic.replication.factor=1\n\
             share.coordinator.state.topic.min.isr=1\ngroup.initial.rebalance.delay.ms=0\n\
             offsets.topic.num.partitions=4\ntransaction.state.log.num.partitions=4\n\
             broker.heartbeat.interval.ms=1000\nbroker.session.timeout.ms=4000\nauto.create.topics.enable=false\n",
            folder.display()
        );
        fs::write(folder.join("kafka.properties"), properties).unwrap();
        let mut broker = Self {
            folder: folder.to_owned(),
            port,
            process: None,
        };
        let mut format = broker.java("kafka.tools.StorageTool");
        format.args(["format", "-t", "Y29ycmVudGUtY2hhb3MtMA", "-c"]);
        let done = format
            .arg(folder.join("kafka.properties"))
            .output()
            .expect("java is not installed");
        assert!(
            done.status.success(),
            "failed to format Kafka's storage: {done:?}"
        );
        broker.back().await;
        broker
    }

    fn java(&self, class: &str) -> Command {
        let log4j = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../e2e/stack/kafka/log4j2.properties"
        );
        let mut java = Command::new("java");
        java.arg(format!("-Dlog4j2.configurationFile={log4j}"))
            .args(["-Xmx384m", "-cp"])
            // The star is for the JVM to expand.
            .arg(format!("{}/kafka/*", cache().display()))
            .arg(class)
            .current_dir(&self.folder);
        java
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Ends it by `signal`.
    pub fn end(&mut self, signal: &str) {
        if let Some(process) = self.process.take() {
            process.end(signal);
        }
    }

    /// Starts it on what it had, and waits until it answers.
    pub async fn back(&mut self) {
        let mut java = self.java("kafka.Kafka");
        java.arg(self.folder.join("kafka.properties"));
        self.process = Some(Process::start(&mut java, &self.folder.join("kafka.log")));
        let address = self.address();
        wait("Kafka", async || {
            let address = address.clone();
            tokio::task::spawn_blocking(move || {
                let consumer: BaseConsumer = ClientConfig::new()
                    .set("bootstrap.servers", address)
                    .create()
                    .unwrap();
                consumer.fetch_metadata(None, Duration::from_secs(2)).is_ok()
            })
            .await
            .unwrap()
        })
        .await;
    }
}

/// The database.
pub struct Database {
    folder: PathBuf,
    rootfs: PathBuf,
    data: String,
    port: u16,
    process: Option<Process>,
}

impl Database {
    pub async fn start(folder: &Path) -> Self {
        let mut database = Self::made(folder);
        database.back().await;
        let client = database.connect().await.unwrap();
        client
            .batch_execute("CREATE EXTENSION timescaledb")
            .await
            .unwrap();
        database
    }

    /// One that was not started yet.
    pub fn made(folder: &Path) -> Self {
        let port = free_port();
        let database = Self {
            folder: folder.to_owned(),
            rootfs: cache().join("postgres"),
            data: format!("/var/lib/postgresql/chaos-{port}"),
            port,
            process: None,
        };
        let mut initdb = database.command("initdb");
        initdb.args([
            "-U",
            "postgres",
            "--auth=trust",
            "--no-instructions",
            "--no-sync",
            "-D",
            &database.data,
        ]);
        let done = initdb.output().unwrap();
        assert!(
            done.status.success(),
            "failed to make the database's folder: {done:?}"
        );
        database
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("chroot");
        command
            .arg("--userspec=postgres:postgres")
            .arg(&self.rootfs)
            .args(["/usr/bin/env", "-i", "PATH=/usr/bin:/bin", "LANG=C.UTF-8"])
            .arg(format!("/usr/lib/postgresql/17/bin/{program}"));
        command
    }

    /// A path in the database's own tree, as this process sees it.
    pub fn outside(&self, path: &str) -> PathBuf {
        self.rootfs.join(path.trim_start_matches('/'))
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Writes a file into its folder, for none but itself to read.
    pub fn write(&self, name: &str, text: &str) {
        let folder = self.outside(&self.data);
        let (path, owner) = (folder.join(name), fs::metadata(&folder).unwrap());
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
    }

    /// Has it read its files again.
    pub fn reload(&self) {
        self.process.as_ref().unwrap().signal("-HUP");
    }

    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    pub async fn connect(&self) -> Option<Client> {
        let (client, connection) = tokio_postgres::connect(&self.url(), NoTls).await.ok()?;
        tokio::spawn(connection);
        Some(client)
    }

    /// Kills all of it with -9.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill_all();
        }
    }

    /// Ends it in a hurry: connections are dropped, transactions rolled back.
    pub fn stop(&mut self) {
        if let Some(process) = self.process.take() {
            process.end("-INT");
        }
    }

    /// Starts it on what it had, and waits until it answers.
    pub async fn back(&mut self) {
        let _ = fs::remove_file(self.outside(&self.data).join("postmaster.pid"));
        let mut postgres = self.command("postgres");
        postgres.args(["-D", &self.data]);
        for setting in [
            "listen_addresses=127.0.0.1",
            &format!("port={}", self.port),
            &format!("unix_socket_directories={}", self.data),
            "shared_preload_libraries=timescaledb",
            "timescaledb.telemetry_level=off",
            "max_connections=60",
            "shared_buffers=64MB",
            "dynamic_shared_memory_type=mmap",
            // What was written outlives the process, and the machine is not what is killed here.
            "fsync=off",
        ] {
            postgres.args(["-c", setting]);
        }
        self.process = Some(Process::start(&mut postgres, &self.folder.join("postgres.log")));
        wait("PostgreSQL", async || match self.connect().await {
            Some(client) => client.simple_query("SELECT 1").await.is_ok(),
            None => false,
        })
        .await;
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(self.outside(&self.data));
    }
}
