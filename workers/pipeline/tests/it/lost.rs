//! Connections that are lost without an end, as when a proxy or a firewall forgets them: the worker notices within
//! seconds, and what it stored, perhaps without knowing, is there once.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering::SeqCst},
    },
};

use corrente_runtime::memory::MemoryBroker;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
};

use crate::{
    database::{Database, url},
    support::{Worker, producer, record, send, wait},
};

/// When a connection is forgotten.
#[derive(Clone, Copy, Debug)]
enum Trap {
    /// Whenever it says this, which still gets there; nothing comes back.
    Answer(&'static [u8]),
    /// Whenever it says this, which does not get there.
    Request(&'static [u8]),
}

/// What the connections have in common.
#[derive(Default)]
struct Shared {
    /// How many of them are still to be forgotten.
    armed: AtomicU8,
    /// Nothing gets through at all.
    shut: AtomicBool,
}

/// A proxy that can forget connections without closing them. Its kernel answers the probes of both ends all the while.
struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Proxy {
    async fn start(server: String, trap: Trap) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let (address, shared) = (listener.local_addr().unwrap(), Arc::<Shared>::default());
        let common = shared.clone();
        tokio::spawn(async move {
            loop {
                let (near, _) = listener.accept().await.unwrap();
                let (server, common) = (server.clone(), common.clone());
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(server).await else {
                        return;
                    };
                    pass(near, far, trap, common).await;
                });
            }
        });
        Self { address, shared }
    }
}

/// Passes bytes in both directions until the connection is forgotten; then holds both ends open.
async fn pass(near: TcpStream, far: TcpStream, trap: Trap, shared: Arc<Shared>) {
    let ((mut asks, mut hears), (mut answers, mut told)) = (near.into_split(), far.into_split());
    let (forget, forgotten) = watch::channel(false);
    let back = tokio::spawn({
        let shared = shared.clone();
        async move {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(read @ 1..) = answers.read(&mut buffer).await {
                if *forgotten.borrow() || shared.shut.load(SeqCst) {
                    std::future::pending::<()>().await;
                }
                if hears.write_all(&buffer[..read]).await.is_err() {
                    break;
                }
            }
        }
    });
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = asks.read(&mut buffer).await {
        let said = &buffer[..read];
        let says = |what: &[u8]| said.windows(what.len()).any(|found| found == what);
        let springs = match trap {
            Trap::Answer(what) | Trap::Request(what) => says(what),
        };
        let take = |left: u8| left.checked_sub(1);
        let sprung = springs && shared.armed.fetch_update(SeqCst, SeqCst, take).is_ok();
        if sprung {
            forget.send(true).unwrap();
        }
        if shared.shut.load(SeqCst) || (sprung && matches!(trap, Trap::Request(_))) {
            std::future::pending::<()>().await;
        }
        if told.write_all(said).await.is_err() {
            break;
        }
        if sprung {
            std::future::pending::<()>().await;
        }
    }
    back.abort();
}

/// A worker behind a proxy, and everything that it was sent.
struct Behind {
    db: Database,
    proxy: Proxy,
    broker: MemoryBroker,
    worker: Worker,
    sent: u64,
}

impl Behind {
    async fn start(trap: Trap) -> Self {
        let db = Database::new().await;
        let direct = url();
        let server = direct
            .rsplit_once('@')
            .unwrap()
            .1
            .split_once('/')
            .unwrap()
            .0
            .to_owned();
        let proxy = Proxy::start(server.clone(), trap).await;
        let through = direct.replace(&server, &proxy.address.to_string());
        std::fs::write(db.url_file(), through).unwrap();
        let broker = MemoryBroker::new(1);
        let mut config = db.config("t", None);
        config.batch.writers = 1;
        let worker = Worker::start(&config, broker.source(&config.topics), db.sink(&config));
        let mut behind = Self {
            db,
            proxy,
            broker,
            worker,
            sent: 0,
        };
        behind.send();
        behind.stored().await;
        behind
    }

    fn send(&mut self) {
        let producer = producer(&self.broker, "t");
        for seq in self.sent..self.sent + 100 {
            send(&producer, 0, &record("s", seq));
        }
        self.sent += 100;
    }

    async fn stored(&self) {
        self.db.wait_for(self.sent).await;
        wait("no trouble", async || {
            let report = self.worker.report();
            report.trouble.is_none() && report.rows == self.sent
        })
        .await;
    }

    async fn end(mut self) {
        self.send();
        self.stored().await;
        self.worker.stop().await;
        self.db.assert_exactly(1, self.sent).await;
        self.db.drop().await;
    }
}

async fn is_noticed_and_stored_once(trap: Trap) {
    let mut behind = Behind::start(trap).await;
    behind.proxy.shared.armed.store(1, SeqCst);
    behind.send();
    behind.worker.trouble("lost on the way").await;
    behind.stored().await;
    assert_eq!(behind.proxy.shared.armed.load(SeqCst), 0);
    behind.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn the_answer_to_a_commit() {
    is_noticed_and_stored_once(Trap::Answer(b"COMMIT\0")).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_commit() {
    is_noticed_and_stored_once(Trap::Request(b"COMMIT\0")).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn rows_so_that_the_session_stands_in_a_copy_with_the_partition_locked() {
    is_noticed_and_stored_once(Trap::Request(b"PGCOPY\n")).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn the_beginning_of_a_batch() {
    is_noticed_and_stored_once(Trap::Request(b"START TRANSACTION")).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_way_that_is_shut_is_noticed_and_tried_again() {
    let mut behind = Behind::start(Trap::Request(b"PGCOPY\n")).await;
    behind.proxy.shared.shut.store(true, SeqCst);
    behind.send();
    behind.worker.trouble("it has not answered for").await;
    behind.proxy.shared.shut.store(false, SeqCst);
    behind.stored().await;
    behind.end().await;
}
