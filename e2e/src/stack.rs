//! The stack's addresses and switches.

use std::{env, path::PathBuf, process::Stdio};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::process::Command;

/// The running stack.
#[derive(Clone)]
pub struct Stack {
    /// The cluster.
    pub client: Client,
    /// Path of the administrator's kubeconfig, for kubectl and helm.
    pub kubeconfig: String,
    /// Kafka, from this machine.
    pub kafka: String,
    /// Kafka, from pods.
    pub pod_kafka: String,
    /// PostgreSQL's URL, from this machine.
    pub postgres: String,
    /// PostgreSQL's URL, from pods.
    pub pod_postgres: String,
    /// This machine's address, from pods.
    pub host: String,
    /// Kafka with TLS and a login, from pods and from this machine.
    pub kafka_login: String,
    /// A folder of what a client needs for it: `kafka/ca/ca.crt`, `kafka/sasl/username` and `password`.
    pub secrets: PathBuf,
    script: PathBuf,
    /// The Python that has pymodbus.
    pub python: PathBuf,
}

fn variable(name: &str) -> Result<String> {
    env::var(name).with_context(|| {
        format!("{name} is not set: bring the stack up with `e2e/stack.sh up` and export what `e2e/stack.sh env` prints")
    })
}

impl Stack {
    /// The stack that the environment names.
    ///
    /// # Errors
    /// Where a variable is missing or the kubeconfig cannot be read.
    pub async fn connect() -> Result<Self> {
        // A second installation in one process is refused, and that is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let kubeconfig = variable("CORRENTE_TEST_KUBECONFIG")?;
        let config = Config::from_custom_kubeconfig(
            Kubeconfig::read_from(&kubeconfig).context("failed to read the kubeconfig")?,
            &KubeConfigOptions::default(),
        )
        .await?;
        Ok(Self {
            client: Client::try_from(config)?,
            kubeconfig,
            kafka: variable("CORRENTE_TEST_KAFKA")?,
            pod_kafka: variable("CORRENTE_POD_KAFKA")?,
            postgres: variable("CORRENTE_TEST_POSTGRES")?,
            pod_postgres: variable("CORRENTE_POD_POSTGRES")?,
            host: variable("CORRENTE_HOST")?,
            kafka_login: variable("CORRENTE_TEST_KAFKA_SASL")?,
            secrets: variable("CORRENTE_TEST_SECRETS")?.into(),
            script: variable("CORRENTE_STACK")?.into(),
            python: variable("CORRENTE_PYTHON")?.into(),
        })
    }

    /// Runs `stack.sh` with these words.
    ///
    /// # Errors
    /// Where it fails; with what it printed.
    pub async fn switch(&self, words: &[&str]) -> Result<()> {
        let mut command = Command::new(&self.script);
        command.args(words);
        run(command).await.map(drop)
    }

    /// Runs `kubectl` with these words; returns what it printed.
    ///
    /// # Errors
    /// Where it fails; with what it printed.
    pub async fn kubectl(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new("kubectl");
        command.args(words).env("KUBECONFIG", &self.kubeconfig);
        run(command).await
    }

    /// Ends the processes of a pod's containers with SIGKILL, from outside, as a crash would.
    ///
    /// # Errors
    /// Where the pod has no running container, or the runtime does not know it.
    pub async fn kill_9(&self, pod: &Pod) -> Result<()> {
        let node = pod
            .spec
            .as_ref()
            .and_then(|s| s.node_name.clone())
            .context("the pod has no node")?;
        let number = node_number(&node)?.to_owned();
        let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.as_ref());
        let ids: Vec<_> = statuses
            .into_iter()
            .flatten()
            .filter_map(|c| c.container_id.as_deref()?.strip_prefix("containerd://"))
            .collect();
        ensure!(!ids.is_empty(), "the pod has no container");
        for id in ids {
            self.switch(&["kill-container", &number, id]).await?;
        }
        Ok(())
    }
}

/// The number that the stack's script knows a node by: `node-2` is 2, and so is kind's `...-worker2`.
///
/// # Errors
/// Where the node has another name.
pub fn node_number(node: &str) -> Result<&str> {
    match node
        .strip_prefix("node-")
        .or_else(|| node.rsplit_once("-worker").map(|(_, number)| number))
    {
        Some("") => Ok("1"),
        Some(number) => Ok(number),
        None => bail!("{node} is no node of the stack"),
    }
}

/// Runs a command; returns what it printed.
///
/// # Errors
/// Where it does not end with 0; with all it printed.
pub async fn run(mut command: Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("failed to start {command:?}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!(
            "{command:?} failed: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(text)
}
