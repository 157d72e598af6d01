//! An InfluxDB 1 of a scenario's own, which asks for a login: a process of this machine that pods reach.

use std::{fs, net::TcpListener, process::Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::{
    stack::Stack,
    wait::{seconds, until},
};

/// The user whom it lets in.
pub const USER: &str = "corrente";
/// The user's password.
pub const PASSWORD: &str = "influx-password";
/// Its database.
pub const DATABASE: &str = "metering";

/// A running InfluxDB. It ends when this is dropped.
pub struct Influx {
    /// Its address, from pods and from this machine.
    pub url: String,
    _child: Child,
    _folder: TempDir,
}

impl Influx {
    /// Starts it, and makes the user and the database.
    ///
    /// # Errors
    /// Where it is not installed or does not come up.
    pub async fn start(stack: &Stack) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        // Free now; should another process take it first, this one does not come up and says so.
        let port = TcpListener::bind((stack.host.as_str(), 0))?.local_addr()?.port();
        let at = |name: &str| folder.path().join(name).display().to_string();
        let address = format!("{}:{port}", stack.host);
        let config = format!(
            "reporting-disabled = true\nbind-address = \"127.0.0.1:0\"\n[meta]\ndir = {:?}\n[data]\ndir = {:?}\n\
             wal-dir = {:?}\n[monitor]\nstore-enabled = false\n[http]\nbind-address = {address:?}\nauth-enabled = true\n\
             log-enabled = false\n",
            at("meta"),
            at("data"),
            at("wal"),
        );
        let file = folder.path().join("influxdb.conf");
        fs::write(&file, config)?;
        let mut child = Command::new("influxd")
            .arg("-config")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("failed to start influxd: e2e/install.sh installs it")?;
        let url = format!("http://{address}");
        let user = format!("CREATE USER {USER} WITH PASSWORD '{PASSWORD}' WITH ALL PRIVILEGES");
        until("influxd to let its first user in", seconds(30), || {
            let ended = child.try_wait().ok().flatten();
            let (url, user) = (url.clone(), user.clone());
            async move {
                match ask(url, user).await {
                    Ok(_) => Ok(()),
                    Err(error) => Err(format!("{error:#}; ended: {ended:?}")),
                }
            }
        })
        .await?;
        let influx = Self {
            url,
            _child: child,
            _folder: folder,
        };
        influx.ask(&format!("CREATE DATABASE {DATABASE}")).await?;
        Ok(influx)
    }

    /// The number in the first row of a query's answer; 0 where it has no row.
    ///
    /// # Errors
    /// Where the server refuses.
    pub async fn number(&self, query: &str) -> Result<i64> {
        let answer = self.ask(query).await?;
        let number = answer.pointer("/results/0/series/0/values/0/1");
        Ok(number.and_then(Value::as_i64).unwrap_or_default())
    }

    async fn ask(&self, query: &str) -> Result<Value> {
        ask(self.url.clone(), query.to_owned()).await
    }
}

async fn ask(url: String, query: String) -> Result<Value> {
    let answer = tokio::task::spawn_blocking(move || {
        ureq::post(format!("{url}/query"))
            .query("db", DATABASE)
            .query("u", USER)
            .query("p", PASSWORD)
            .query("q", query)
            .send_empty()?
            .body_mut()
            .read_to_string()
    });
    let answer: Value = serde_json::from_str(&answer.await??)?;
    ensure!(answer.pointer("/results/0/error").is_none(), "{answer}");
    Ok(answer)
}
