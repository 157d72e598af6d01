//! How a database's tables are laid out and looked after: shape, partitions, retention, roll-ups, the ledger of
//! completeness, and views for those who read.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Duration, Retention,
    common::{SecretKey, secret_name},
    duration::{DIVIDES_A_DAY, DIVIDES_A_DAY_MESSAGE},
};

/// CEL: no name that PostgreSQL keeps for itself.
const NOT_PG: &str = "!self.startsWith('pg_')";
/// What to write instead of such a name.
const NOT_PG_MESSAGE: &str = "PostgreSQL keeps names that begin with pg_ for itself: choose another name";
/// CEL: a duration of at least a minute. What is no duration passes: its own rule has refused it already.
const AT_LEAST_A_MINUTE: &str =
    "!self.matches('^[1-9][0-9]{0,7}(ms|s|m|h)$') || duration(self) >= duration('1m')";
/// What to write instead of a shorter one.
const AT_LEAST_A_MINUTE_MESSAGE: &str = "the interval is at least a minute: write one such as 1m, 15m or 1h";

/// A table of PostgreSQL, made and widened by the worker.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.caSecret) || !has(self.sslMode) || self.sslMode in ['verify-ca', 'verify-full']")
    .message("caSecret is for verify-ca and verify-full, which alone look at who signed the server's certificate: choose \
              one of them as sslMode, or remove caSecret"))]
#[x_kube(validation = Rule::new("!has(self.clientCertificateSecret) || !has(self.sslMode) || self.sslMode != 'disable'")
    .message("clientCertificateSecret is for TLS, which sslMode: disable turns off: choose another sslMode, or remove \
              clientCertificateSecret"))]
pub struct PostgresTable {
    /// The Secret's key that holds the connection URL, such as `postgres://user:password@host:5432/database`.
    pub connection_secret: SecretKey,
    /// Whether the connection is in TLS, and what is looked at then. Where it is not given, the URL's `sslmode`
    /// counts; where that is not given either, it is `verify-full` with caSecret and `prefer` without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssl_mode: Option<SslMode>,
    /// The Secret whose `ca.crt` holds the authorities that the server's certificate must come from. Without it those
    /// count that the worker's image brings along.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "secret_name")]
    pub ca_secret: Option<String>,
    /// The Secret, of type `kubernetes.io/tls`, whose `tls.crt` and `tls.key` are shown to the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "secret_name")]
    pub client_certificate_secret: Option<String>,
    /// The schema of the table; it is made where it is missing.
    #[serde(default = "default_schema")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z_][a-z0-9_]*$"))]
    #[x_kube(validation = Rule::new(NOT_PG).message(NOT_PG_MESSAGE))]
    pub schema: String,
    /// The table.
    #[serde(default = "default_table")]
    #[schemars(length(min = 1, max = 55), regex(pattern = r"^[a-z_][a-z0-9_]*$"))]
    pub table: String,
    /// What a row is. A table that is there keeps the layout it has: name another table to change it.
    #[serde(default, skip_serializing_if = "Layout::is_default")]
    #[schemars(extend("default" = "wide"))]
    pub layout: Layout,
    /// How long rows are kept, by `ts`. What is dropped is dropped by whole chunks or partitions, so rows may
    /// stay longer by the length of one. Where it is not given, they are kept for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
    /// Tables with mean, least and greatest value of each number, per meter and interval, kept up to date.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["interval".into()]))]
    pub rollups: Vec<Rollup>,
    /// A table that accounts for each slot of each meter: stored, failed at the meter, skipped, missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completeness: Option<Completeness>,
    /// Views for dashboards and analysts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub views: Option<Views>,
}

/// Whether a connection to PostgreSQL is in TLS, and what is looked at then: libpq's `sslmode`.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "kebab-case")]
pub enum SslMode {
    /// No TLS.
    Disable,
    /// TLS where the server has it, whoever the server is; no TLS otherwise. It keeps nobody out who can change what
    /// goes over the network.
    Prefer,
    /// TLS, whoever the server is: it keeps out those who can but listen.
    Require,
    /// TLS, with a server whose certificate comes from an authority that is trusted, whatever name it is for.
    VerifyCa,
    /// The same, and the certificate is for the host in the URL.
    VerifyFull,
}

/// A plain PostgreSQL table.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.retention) || has(self.partitionBy)")
    .message("retention drops whole partitions, and the table has none: write partitionBy: month or partitionBy: day"))]
#[x_kube(validation = Rule::new("!has(self.partitionBy) || self.partitionBy != 'day' || size(self.table) <= 53")
    .message("the names of daily partitions are the table's and ten letters more, 63 at most: give the table a name of at most 53"))]
pub struct PlainTable {
    /// The table.
    #[serde(flatten)]
    pub table: PostgresTable,
    /// Partition the table by `ts`. A table that is there already is left as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition_by: Option<PartitionBy>,
}

/// A TimescaleDB hypertable over `ts`, made and widened by the worker.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct TimescaleTable {
    /// The table.
    #[serde(flatten)]
    pub table: PostgresTable,
    /// The length of a chunk; at most 24 h here. TimescaleDB's own default, 7 days, where it is not given. Changed,
    /// it holds for new chunks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunk_interval: Option<Duration>,
    /// Compress chunks (the columnstore) once all of their rows are older than this. It needs TimescaleDB's
    /// community edition; a condition says so where the database has another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compress_after: Option<Retention>,
}

/// What a row is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// A record: a column for each metric and each label, added as they come.
    #[default]
    Wide,
    /// A metric's value: the columns `metric`, `value`, `exact`, `text_value` and `bool_value`, and one for each label.
    Narrow,
}

impl Layout {
    /// Whether it is the one that is used where none is named.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The length of a partition.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "lowercase")]
pub enum PartitionBy {
    /// A calendar month in UTC.
    Month,
    /// A day in UTC.
    Day,
}

/// A roll-up.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Rollup {
    /// The length of its intervals, which begin at multiples of it since 1970 in UTC.
    #[x_kube(validation = Rule::new(DIVIDES_A_DAY).message(DIVIDES_A_DAY_MESSAGE))]
    #[x_kube(validation = Rule::new(AT_LEAST_A_MINUTE).message(AT_LEAST_A_MINUTE_MESSAGE))]
    pub interval: Duration,
    /// Its table; the table's name and the interval, such as `readings_15m`, where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z_][a-z0-9_]*$"))]
    pub name: Option<String>,
    /// How long its rows are kept; for ever where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
}

/// The ledger of completeness: the table `<table>_ledger`.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Completeness {
    /// The length of its intervals.
    #[serde(default = "an_hour")]
    #[x_kube(validation = Rule::new(DIVIDES_A_DAY).message(DIVIDES_A_DAY_MESSAGE))]
    #[x_kube(validation = Rule::new(AT_LEAST_A_MINUTE).message(AT_LEAST_A_MINUTE_MESSAGE))]
    pub interval: Duration,
    /// How long its rows are kept; for ever where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
}

/// Views for those who read: `latest`, and `completeness` where the ledger is kept.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Views {
    /// The schema of the views; it is made where it is missing. Each TelemetryPipeline needs one of its own.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z_][a-z0-9_]*$"))]
    #[x_kube(validation = Rule::new(NOT_PG).message(NOT_PG_MESSAGE))]
    pub schema: String,
    /// The role that may read the views and the tables behind them, and nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reader: Option<Reader>,
}

/// A role of the database that may read.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Reader {
    /// The role. Users become members of it: `GRANT <role> TO <user>`.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z_][a-z0-9_]*$"))]
    #[x_kube(validation = Rule::new(NOT_PG).message(NOT_PG_MESSAGE))]
    pub role: String,
    /// Make the role where it is missing, without login. The worker's user needs `CREATEROLE` for that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub create: bool,
}

fn default_schema() -> String {
    "public".to_owned()
}

fn default_table() -> String {
    "readings".to_owned()
}

fn an_hour() -> Duration {
    Duration::from_secs(3600)
}
