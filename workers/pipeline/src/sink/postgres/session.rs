//! A connection to PostgreSQL and its settings.
//!
//! 1. The URL is read from its file at each connect, and the certificates from theirs, because a file may appear late
//!    and its Secret may change.
//! 2. The connection is made in TLS or without, as [`Address`] says. `prefer` does without where TLS does not come
//!    about, as libpq has it.
//! 3. Both ends probe the connection, so that neither waits for hours for one that vanished: a worker that is cut off
//!    holds its rows for seconds.

use std::{collections::HashMap, time::Duration};

use corrente_config::pipeline::PostgresConnection;
use corrente_crds::tables::SslMode;
use tokio_postgres::{
    Client, Config, Error, GenericClient, NoTls, Socket, Statement,
    config::{SslMode as Ssl, SslNegotiation},
    error::SqlState,
    tls::MakeTlsConnect,
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{
    address::Address,
    fault::{failed, of_connect},
};
use crate::sink::SinkError;

/// The longest a connect may take, per address.
const CONNECT: Duration = Duration::from_secs(5);
/// The longest until the database has answered, over all addresses.
const GREETING: Duration = Duration::from_secs(15);

/// Set once per connection. Rows and offsets are in one database, so a commit need not wait for the disk:
/// what a crash takes, it takes of both, and the epoch's row tells the worker to read it again.
const SETTINGS: &str = "
    SET TIME ZONE 'UTC';
    SET client_min_messages = warning;
    SET default_transaction_isolation = 'read committed';
    SET synchronous_commit = off;
    SET lock_timeout = '5s';
    SET idle_in_transaction_session_timeout = '15s';
    SET tcp_keepalives_idle = 5;
    SET tcp_keepalives_interval = 2;
    SET tcp_keepalives_count = 3;
    SET tcp_user_timeout = 15000;
";

/// What a server that speaks TLS at once is told to speak within it.
const ALPN: &[u8] = b"postgresql";

/// Connects.
///
/// # Errors
/// A sentence without the URL, which holds a password.
pub async fn connect(connection: &PostgresConnection, application: &str) -> Result<Client, SinkError> {
    let file = connection.url_file.display();
    let retry = |reason: String| SinkError::Retry(reason);
    let url = tokio::fs::read_to_string(&connection.url_file)
        .await
        .map_err(|error| retry(format!("failed to read the database's URL from {file}: {error}")))?;
    let name = format!("the database's URL in {file}");
    connect_to(&url, &name, application, connection).await
}

/// Connects with a URL, which is called `name` in sentences, and with what `connection` says besides.
///
/// # Errors
/// As for [`connect`].
pub async fn connect_to(
    url: &str,
    name: &str,
    application: &str,
    connection: &PostgresConnection,
) -> Result<Client, SinkError> {
    let retry = |reason: String| SinkError::Retry(reason);
    let mut address = Address::read(url, connection).map_err(|error| retry(format!("{name} {error}")))?;
    // The server keeps 63 bytes of it.
    address
        .config
        .application_name(application.chars().take(60).collect::<String>())
        .connect_timeout(CONNECT)
        .keepalives_idle(Duration::from_secs(5))
        .keepalives_interval(Duration::from_secs(2))
        .keepalives_retries(3)
        .tcp_user_timeout(Duration::from_secs(15));
    // The connect's own bound ends with the first packet; what takes it may never answer.
    let connected = tokio::time::timeout(GREETING, async {
        let client = open(&address).await?;
        client
            .batch_execute(SETTINGS)
            .await
            .map_err(failed("set up the connection"))?;
        Ok(client)
    });
    connected.await.unwrap_or_else(|_| {
        Err(SinkError::unreachable(format!(
            "failed to connect to the database: it has not answered for {} s. Nothing is lost: the records wait in the \
             topic until the database can be reached",
            GREETING.as_secs()
        )))
    })
}

/// Connects in TLS or without.
async fn open(address: &Address) -> Result<Client, SinkError> {
    let Address { config, mode, trust } = address;
    if *mode == SslMode::Disable {
        return start(config, NoTls)
            .await
            .map_err(|error| of_connect(&error, address));
    }
    let mut tls = trust
        .client_config(address.look())
        .map_err(|reason| SinkError::Retry(format!("failed to connect to the database in TLS: {reason}")))?;
    if config.get_ssl_negotiation() == SslNegotiation::Direct {
        tls.alpn_protocols = vec![ALPN.to_vec()];
    }
    let error = match start(config, MakeRustlsConnect::new(tls)).await {
        Ok(client) => return Ok(client),
        Err(error) => error,
    };
    // Whether the server let nobody in in TLS, or TLS did not come about.
    let of_tls = trust.explain(&error).is_some()
        || error
            .code()
            .is_some_and(|code| *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION);
    if *mode == SslMode::Prefer && of_tls {
        let mut plain = config.clone();
        plain.ssl_mode(Ssl::Disable);
        if let Ok(client) = start(&plain, NoTls).await {
            return Ok(client);
        }
    }
    Err(of_connect(&error, address))
}

/// Connects, and leaves the connection to a task that ends when the client is dropped.
async fn start<T>(config: &Config, tls: T) -> Result<Client, Error>
where
    T: MakeTlsConnect<Socket>,
    T::Stream: Send + 'static,
{
    let (client, connection) = config.connect(tls).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(error = describe(&error), "the connection ended");
        }
    });
    Ok(client)
}

/// Makes tables of the schema `corrente`; where `sql` says IF NOT EXISTS, those that are missing.
///
/// # Errors
/// The database's.
pub async fn make_tables(client: &mut Client, sql: &str) -> Result<(), Error> {
    let transaction = client.transaction().await?;
    // IF NOT EXISTS alone lets two workers collide.
    transaction
        .batch_execute("SELECT pg_advisory_xact_lock(hashtextextended('corrente', 0))")
        .await?;
    transaction.batch_execute(sql).await?;
    transaction.commit().await
}

/// The same, unless all of `tables` are there: a worker that finds them needs no right to make any.
///
/// # Errors
/// The database's.
pub async fn make_missing_tables(client: &mut Client, tables: &[&str], sql: &str) -> Result<(), Error> {
    let found = client
        .query_one(
            "SELECT bool_and(to_regclass(name) IS NOT NULL) FROM unnest($1::text[]) AS name",
            &[&tables],
        )
        .await?;
    if found.try_get(0)? {
        return Ok(());
    }
    make_tables(client, sql).await
}

/// Most statements that are kept: those of a COPY are as many as there are sets of columns.
const STATEMENTS: usize = 100;

/// The statements that a connection has prepared: parsing one anew for each batch would take two round trips more.
#[derive(Default)]
pub struct Statements {
    prepared: HashMap<String, Statement>,
}

impl Statements {
    /// The statement, prepared now or before, of the connection that these are kept for.
    ///
    /// # Errors
    /// What the database says of it.
    pub async fn get(&mut self, client: &impl GenericClient, sql: &str) -> Result<Statement, Error> {
        if let Some(statement) = self.prepared.get(sql) {
            return Ok(statement.clone());
        }
        let statement = client.prepare(sql).await?;
        if self.prepared.len() >= STATEMENTS {
            self.prepared.clear();
        }
        self.prepared.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }
}

/// What the database said, or what happened to the connection, with the cause behind it.
#[must_use]
pub fn describe(error: &tokio_postgres::Error) -> String {
    use std::error::Error as _;
    if let Some(db) = error.as_db_error() {
        let detail = db
            .detail()
            .map(|detail| format!(" ({detail})"))
            .unwrap_or_default();
        return format!("{}{detail} [{}]", db.message(), db.code().code());
    }
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
