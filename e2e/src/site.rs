//! What every scenario begins with: Corrente installed, a namespace, a table and a topic that nothing else has, and
//! the Secret of the database. Then its MeterPollers and TelemetryPipelines, each with what it says of them alone.

use anyhow::Result;
use corrente_crds::{MeterPoller, TelemetryPipeline};
use k8s_openapi::api::core::v1::Secret;
use serde_json::{Value, json};

use crate::{audit::Table, release, space::Space, stack::Stack};

/// A place for a scenario.
pub struct Site {
    /// Its namespace.
    pub space: Space,
    /// Its schema in the database.
    pub schema: String,
    /// The table of its readings.
    pub table: Table,
    /// Its topic: one of this run's own, so that what an earlier run published stays out of it.
    pub topic: String,
}

impl Site {
    /// Installs Corrente, and makes the place anew.
    ///
    /// # Errors
    /// Where any part does not come up.
    pub async fn create(scenario: &str) -> Result<Self> {
        let stack = Stack::connect().await?;
        release::install(&stack).await?;
        let space = Space::create(&stack, scenario).await?;
        let schema = space.name.replace('-', "_");
        let table = Table::fresh(&stack.postgres, &schema, "readings").await?;
        let topic = format!("{scenario}-{}", jiff::Timestamp::now().as_millisecond());
        let site = Self {
            space,
            schema,
            table,
            topic,
        };
        site.secret("history", json!({"url": stack.pod_postgres})).await?;
        Ok(site)
    }

    /// Applies a Secret of these texts.
    ///
    /// # Errors
    /// Where the API server refuses it.
    pub async fn secret(&self, name: &str, data: Value) -> Result<()> {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data,
        });
        self.space
            .apply(&serde_json::from_value::<Secret>(secret)?)
            .await
            .map(drop)
    }

    /// Applies a MeterPoller, which publishes to the site's topic where `spec` names no output.
    ///
    /// # Errors
    /// Where the API server refuses it.
    pub async fn poller(&self, name: &str, spec: Value) -> Result<()> {
        let servers = [self.space.stack.pod_kafka.clone()];
        let usual = json!({"output": {"kafka": {"bootstrapServers": servers, "topic": self.topic}}});
        let poller = json!({
            "apiVersion": "corrente.dev/v1alpha1", "kind": "MeterPoller", "metadata": {"name": name},
            "spec": with(usual, spec),
        });
        self.space
            .apply(&serde_json::from_value::<MeterPoller>(poller)?)
            .await
            .map(drop)
    }

    /// Applies a TelemetryPipeline, which reads the site's topic where `spec` names no source, and stores soon.
    ///
    /// # Errors
    /// Where the API server refuses it.
    pub async fn pipeline(&self, name: &str, spec: Value) -> Result<()> {
        let servers = [self.space.stack.pod_kafka.clone()];
        let usual = json!({
            "source": {"kafka": {"bootstrapServers": servers, "topics": [self.topic]}},
            "batch": {"maxAge": "200ms"},
        });
        let pipeline = json!({
            "apiVersion": "corrente.dev/v1alpha1", "kind": "TelemetryPipeline", "metadata": {"name": name},
            "spec": with(usual, spec),
        });
        self.space
            .apply(&serde_json::from_value::<TelemetryPipeline>(pipeline)?)
            .await
            .map(drop)
    }

    /// The site's table as a sink names it, with more fields.
    #[must_use]
    pub fn sink(&self, more: Value) -> Value {
        let usual = json!({
            "connectionSecret": {"name": "history", "key": "url"}, "schema": self.schema, "table": "readings",
        });
        with(usual, more)
    }
}

/// An object with the fields of another, which win.
#[must_use]
pub fn with(mut object: Value, more: Value) -> Value {
    if let (Some(fields), Value::Object(more)) = (object.as_object_mut(), more) {
        fields.extend(more);
    }
    object
}
