//! Whether a connection that is quiet is still one.
//!
//! A connection can be lost without an end: a proxy, a balancer or a firewall forgets it, and its own kernel goes on
//! answering the probes of both ends. Then we wait for the server, and the server for us. So while nothing has come for
//! some seconds, another connection asks the server what the first one's session does:
//! - It works, or waits for a lock: then we wait as well.
//! - It waits for us, in two looks in a row and without anything in between: what we sent, or what it answered, was lost
//!   on the way.
//! - It is gone, or the server cannot be reached: the same.
//!
//! The session of a connection that was given up may hold locks for as long as the server does not notice. So the next
//! connection ends it first.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use corrente_config::pipeline::PostgresConnection;
use tokio_postgres::{Client, Error};

use super::{fault::failed, session};
use crate::{fault::FaultKind, sink::SinkError};

/// The time without a sign after which is looked, and between two looks.
const QUIET: Duration = Duration::from_secs(5);

/// A session of the server: its process, and when that began.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Backend {
    pid: i32,
    began: String,
}

/// Makes connections, one after the other, and looks after the last one.
pub struct Watch {
    connection: PostgresConnection,
    application: String,
    backend: Mutex<Option<Backend>>,
}

impl Watch {
    /// Of connections to the database that `connection` leads to.
    #[must_use]
    pub fn new(connection: PostgresConnection, application: String) -> Self {
        Self {
            connection,
            application,
            backend: Mutex::default(),
        }
    }

    fn backend(&self) -> MutexGuard<'_, Option<Backend>> {
        self.backend.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects, and ends the session of the connection before.
    ///
    /// # Errors
    /// As for [`session::connect`].
    pub async fn connect(&self) -> Result<Client, SinkError> {
        let client = session::connect(&self.connection, &self.application).await?;
        let before = self.backend().clone();
        let backend = exchange(&client, before.as_ref()).await;
        let backend = backend.map_err(failed("end the connection before"))?;
        *self.backend() = Some(backend);
        Ok(client)
    }

    /// Comes back when the connection is lost, with a sentence that says so. To be begun anew with every sign of the
    /// server's.
    pub async fn lost(&self) -> String {
        let mut before = None;
        loop {
            tokio::time::sleep(QUIET).await;
            let Some(backend) = self.backend().clone() else {
                continue;
            };
            let now = match self.look(&backend).await {
                Ok(now) => now,
                Err(SinkError::Fault(fault)) if fault.kind == FaultKind::Unreachable => return fault.reason,
                // It answers, and does not say.
                Err(_) => {
                    before = None;
                    continue;
                }
            };
            match now {
                State::Gone => return lost("the server has ended its session"),
                State::Waits(since) if before.as_ref() == Some(&since) => {
                    return lost("the server waits for the worker, and the worker for the server");
                }
                State::Waits(since) => before = Some(since),
                State::Works => before = None,
            }
        }
    }

    async fn look(&self, backend: &Backend) -> Result<State, SinkError> {
        let client = session::connect(&self.connection, &self.application).await?;
        let state = state(&client, backend).await;
        state.map_err(failed("look after the connection"))
    }
}

fn lost(why: &str) -> String {
    format!(
        "the connection to the database was lost on the way without an end: {why}. It is made anew, and nothing is lost"
    )
}

/// What a session does.
enum State {
    Gone,
    Works,
    /// It waits for its client, since it was last asked something, which this names.
    Waits(String),
}

async fn state(client: &Client, backend: &Backend) -> Result<State, Error> {
    // A COPY that waits for rows is active, and so is an answer that nobody reads.
    let sql = "SELECT state LIKE 'idle%' OR wait_event IN ('ClientRead', 'ClientWrite'), \
                      concat_ws(' ', state, state_change, wait_event) \
               FROM pg_stat_activity WHERE pid = $1 AND backend_start::text = $2";
    let found = client.query_opt(sql, &[&backend.pid, &backend.began]).await?;
    let Some(row) = found else {
        return Ok(State::Gone);
    };
    // Another role's sessions are shown without what they do.
    Ok(match row.try_get::<_, Option<bool>>(0)? {
        Some(true) => State::Waits(row.try_get(1)?),
        _ => State::Works,
    })
}

/// Ends the session before, and says which one this is.
async fn exchange(client: &Client, before: Option<&Backend>) -> Result<Backend, Error> {
    if let Some(Backend { pid, began }) = before {
        // A pooler may have given it to somebody else since, under another name.
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = $1 AND backend_start::text = $2 \
                   AND application_name = current_setting('application_name')";
        client.execute(end, &[pid, began]).await?;
    }
    let own = "SELECT pid, backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid()";
    let row = client.query_one(own, &[]).await?;
    Ok(Backend {
        pid: row.try_get(0)?,
        began: row.try_get(1)?,
    })
}
