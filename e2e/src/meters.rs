//! Meters served by pymodbus, and the trace of who asked them.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    process::Stdio,
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::stack::Stack;

/// A Modbus server with units behind it.
#[derive(Serialize, Clone, Debug)]
pub struct Endpoint {
    /// Its name in the trace.
    pub name: String,
    /// The address it listens on.
    pub host: String,
    /// The port; 0 takes a free one.
    pub port: u16,
    /// `socket` for Modbus TCP, `rtu` for RTU frames over TCP.
    pub framer: &'static str,
    /// The units behind it. Any other unit is silent.
    pub units: Vec<Unit>,
    /// A folder with `ca.crt`, `tls.crt` and `tls.key`, for Modbus/TCP Security.
    pub tls: Option<PathBuf>,
}

/// A unit: registers by table and address.
#[derive(Serialize, Clone, Debug)]
pub struct Unit {
    /// Its unit id.
    pub unit: u8,
    /// Its registers, by table (`holding`, `input`) and address.
    pub registers: BTreeMap<&'static str, BTreeMap<u16, u16>>,
    /// Those of them that count one up at each read.
    pub rising: BTreeMap<&'static str, Vec<u16>>,
}

/// One line of the trace.
#[derive(Deserialize, Clone, Debug)]
pub struct Event {
    /// Seconds since the epoch.
    pub t: f64,
    /// The endpoint's name.
    pub endpoint: String,
    /// `connect`, `request` or `disconnect`.
    pub event: String,
    /// The connection's number.
    pub connection: u64,
    /// The other end.
    pub peer: String,
    /// The unit that was asked, where it is a request.
    #[serde(default)]
    pub unit: Option<u8>,
}

/// The last time that one connection asked one unit.
#[derive(Clone, Debug, PartialEq)]
pub struct LastRequest {
    /// The endpoint's name.
    pub endpoint: String,
    /// The unit.
    pub unit: u8,
    /// Seconds since the epoch.
    pub t: f64,
}

/// A running pymodbus process. It ends when this is dropped, or with this process.
pub struct Meters {
    _child: Child,
    trace: PathBuf,
    /// The endpoints' ports, by name.
    pub ports: HashMap<String, u16>,
    _folder: tempfile::TempDir,
}

impl Endpoint {
    /// A gateway of Modbus TCP at a free port of the stack's machine.
    #[must_use]
    pub fn tcp(stack: &Stack, name: &str, units: Vec<Unit>) -> Self {
        Self {
            name: name.to_owned(),
            host: stack.host.clone(),
            port: 0,
            framer: "socket",
            units,
            tls: None,
        }
    }
}

impl Unit {
    /// A unit with these input registers.
    #[must_use]
    pub fn with_inputs(unit: u8, registers: impl IntoIterator<Item = (u16, u16)>) -> Self {
        Self {
            unit,
            registers: [("input", registers.into_iter().collect())].into(),
            rising: BTreeMap::new(),
        }
    }
}

impl Meters {
    /// Starts the endpoints, and waits until all listen.
    ///
    /// # Errors
    /// Where pymodbus does not start.
    pub async fn serve(stack: &Stack, endpoints: &[Endpoint]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (config, trace) = (
            folder.path().join("meters.json"),
            folder.path().join("trace.jsonl"),
        );
        std::fs::write(&config, serde_json::to_vec(endpoints)?)?;
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/pymodbus/meters.py");
        let mut child = Command::new(&stack.python)
            .args([
                script.as_ref(),
                config.as_os_str(),
                trace.as_os_str(),
                "--with-parent".as_ref(),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("failed to start pymodbus")?;
        let output = child.stdout.take().context("pymodbus has no output")?;
        let line = BufReader::new(output)
            .lines()
            .next_line()
            .await?
            .unwrap_or_default();
        let ports = line
            .strip_prefix("READY ")
            .with_context(|| format!("pymodbus did not become ready, but said: {line}"))?;
        Ok(Self {
            _child: child,
            trace,
            ports: serde_json::from_str(ports)?,
            _folder: folder,
        })
    }

    /// Everything that was asked so far.
    ///
    /// # Errors
    /// Where the trace cannot be read.
    pub fn trace(&self) -> Result<Vec<Event>> {
        let text = std::fs::read_to_string(&self.trace)?;
        // The last line may still be in the writing.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole
            .lines()
            .map(|line| Ok(serde_json::from_str(line)?))
            .collect()
    }

    /// The last request of each connection to each unit: what a poller that ended read last.
    ///
    /// # Errors
    /// Where the trace cannot be read.
    pub fn last_requests(&self) -> Result<Vec<LastRequest>> {
        let mut last: BTreeMap<(u64, u8), LastRequest> = BTreeMap::new();
        for Event {
            t,
            endpoint,
            connection,
            unit,
            ..
        } in self.trace()?
        {
            if let Some(unit) = unit {
                last.insert((connection, unit), LastRequest { endpoint, unit, t });
            }
        }
        Ok(last.into_values().collect())
    }

    /// Checks that no endpoint ever had two masters: the requests of two connections never interleave.
    ///
    /// # Errors
    /// Where they do, with both; and where an endpoint was never asked.
    pub fn never_two_masters(&self) -> Result<()> {
        let trace = self.trace()?;
        let mut masters: BTreeMap<&str, BTreeMap<u64, (f64, f64, &str)>> = BTreeMap::new();
        for event in trace.iter().filter(|event| event.event == "request") {
            let span = masters
                .entry(&event.endpoint)
                .or_default()
                .entry(event.connection)
                .or_insert((event.t, event.t, &event.peer));
            span.1 = event.t;
        }
        ensure!(
            masters.len() == self.ports.len(),
            "only {:?} were asked",
            masters.keys()
        );
        for (endpoint, spans) in masters {
            let mut spans: Vec<_> = spans.into_values().collect();
            spans.sort_by(|a, b| a.0.total_cmp(&b.0));
            for pair in spans.windows(2) {
                ensure!(
                    pair[0].1 <= pair[1].0,
                    "{endpoint} had two masters: {} asked from {:.3} to {:.3}, {} from {:.3}",
                    pair[0].2,
                    pair[0].0,
                    pair[0].1,
                    pair[1].2,
                    pair[1].0
                );
            }
        }
        Ok(())
    }
}
