//! A namespace, an operator that works in it, and ways to wait for what it does.

use std::{
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use corrente_crds::{MeterPoller, MeterProfile, TelemetryPipeline};
use corrente_operator::{
    conditions::find,
    context::{Namespaces, Settings, Timing},
    handover::holder::Holder,
    health::Health,
    manager, podstate,
};
use corrente_runtime::http::Probe;
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{ConfigMap, Namespace, Pod},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Config, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    client::{Body, ClientBuilder},
    config::{KubeConfigOptions, Kubeconfig},
    core::NamespaceResourceScope,
    runtime::{conditions::is_crd_established, wait::await_condition},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower::util::MapRequestLayer;

/// An image that every node of the test cluster has, and that only waits.
const IMAGE: &str = "localhost/pause:1";
/// How long anything may take. Far longer than it does, as the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(120);

/// A namespace of a test's own, and its client.
pub struct World {
    pub client: Client,
    pub namespace: String,
    /// A word that no other test has: for the names of gateways, and of what has no namespace.
    pub word: String,
    profiles: Mutex<Vec<String>>,
}

/// An operator within this process.
pub struct Operator {
    pub writes: Arc<Mutex<Vec<String>>>,
    shutdown: CancellationToken,
    ended: JoinHandle<()>,
}

impl Operator {
    /// The requests that were to change the cluster.
    pub fn writes(&self) -> Vec<String> {
        self.writes.lock().unwrap().clone()
    }

    pub async fn end(self) {
        self.shutdown.cancel();
        self.ended.await.unwrap();
    }
}

async fn config() -> Config {
    let file = std::env::var("CORRENTE_TEST_KUBECONFIG")
        .expect("these tests need a cluster: set CORRENTE_TEST_KUBECONFIG to its kubeconfig");
    let kubeconfig = Kubeconfig::read_from(file).unwrap();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .unwrap();
    config.default_retry = false;
    config
}

/// Runs a test in a namespace of its own, and clears up behind it, be it that it failed.
pub async fn in_a_world<F, T>(test: F)
where
    F: FnOnce(Arc<World>) -> T,
    T: Future<Output = ()> + Send + 'static,
{
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let _ = rustls::crypto::ring::default_provider().install_default();
    corrente_runtime::logging::init("warn,corrente_operator=info");
    corrente_runtime::metrics::install();
    let client = Client::try_from(config().await).unwrap();
    let nanos = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_nanos();
    let word = format!("{nanos:x}{}", COUNT.fetch_add(1, Ordering::Relaxed));
    let namespace = format!("corrente-operator-{word}");
    apply_crds(&client).await;
    create_namespace(&client, &namespace).await;
    let world = Arc::new(World {
        client,
        namespace,
        word,
        profiles: Mutex::default(),
    });
    let outcome = tokio::spawn(test(world.clone())).await;
    world.clear().await;
    if let Err(failure) = outcome {
        std::panic::resume_unwind(failure.into_panic());
    }
}

async fn apply_crds(client: &Client) {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for crd in corrente_crds::all() {
        let params = PatchParams::apply("corrente-tests").force();
        api.patch(&crd.name_any(), &params, &Patch::Apply(&crd))
            .await
            .unwrap();
        await_condition(api.clone(), &crd.name_any(), is_crd_established())
            .await
            .unwrap();
    }
}

pub async fn create_namespace(client: &Client, name: &str) {
    let namespace: Namespace = serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    }))
    .unwrap();
    Api::all(client.clone())
        .create(&PostParams::default(), &namespace)
        .await
        .unwrap();
    // A namespace takes no pods before its service account is there.
    let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> = Api::namespaced(client.clone(), name);
    until("the default service account", || async {
        accounts.get_opt("default").await.unwrap()
    })
    .await;
}

/// Waits until `look` finds something.
pub async fn until<T, F>(what: &str, mut look: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let waited = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    waited
        .await
        .unwrap_or_else(|_| panic!("waited in vain for: {what}"))
}

/// Short periods, so that many of them pass within a test.
pub fn quick() -> Timing {
    Timing {
        resync: Duration::from_millis(500),
        report: Duration::from_millis(600),
        figures: Duration::from_millis(500),
        patience: Duration::from_millis(500),
        recheck: Duration::from_millis(500),
        ..Timing::default()
    }
}

impl World {
    /// Starts an operator for this namespace, and waits until it works.
    pub async fn operator(&self, timing: Timing) -> Operator {
        let writes: Arc<Mutex<Vec<String>>> = Arc::default();
        let noted = writes.clone();
        let counting = MapRequestLayer::new(move |request: axum::http::Request<Body>| {
            if request.method() != axum::http::Method::GET {
                noted
                    .lock()
                    .unwrap()
                    .push(format!("{} {}", request.method(), request.uri().path()));
            }
            request
        });
        let client = ClientBuilder::try_from(config().await)
            .unwrap()
            .with_layer(&counting)
            .build();
        let settings = Settings {
            worker_port: corrente_runtime::http::PORT,
            poller_image: IMAGE.to_owned(),
            pipeline_image: IMAGE.to_owned(),
            image_pull_policy: "IfNotPresent".to_owned(),
            namespaces: Namespaces::Only([self.namespace.clone()].into()),
            // Another operator may be installed in the cluster: it is to leave this test's resources alone.
            class: self.word.clone(),
            timing,
        };
        let (health, shutdown) = (Arc::new(Health::default()), CancellationToken::new());
        let ended = tokio::spawn(manager::run(client, settings, health.clone(), shutdown.clone()));
        until("the operator to be ready", || async { health.ready().ok() }).await;
        Operator {
            writes,
            shutdown,
            ended,
        }
    }

    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Creates an object of this namespace.
    pub async fn create<K>(&self, object: Value) -> K
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned
            + serde::Serialize,
    {
        let object: K = serde_json::from_value(object).unwrap();
        self.api::<K>()
            .create(&PostParams::default(), &object)
            .await
            .unwrap()
    }

    /// Creates a profile, called after the test.
    pub async fn profile(&self) -> String {
        let name = format!("acme-{}", self.word);
        self.profiles.lock().unwrap().push(name.clone());
        let profile: MeterProfile = serde_json::from_value(json!({
            "apiVersion": "corrente.dev/v1alpha1", "kind": "MeterProfile", "metadata": {"name": name},
            "spec": {
                "vendor": "Acme", "model": "One", "source": ["a manual"],
                "registers": [{"name": "voltage_l1_n", "address": 0, "function": "input", "type": "f32", "unit": "V"}],
            },
        }))
        .unwrap();
        Api::all(self.client.clone())
            .create(&PostParams::default(), &profile)
            .await
            .unwrap();
        name
    }

    /// Creates a MeterPoller with endpoints of these names, each a gateway of this test with one meter.
    pub async fn poller(&self, name: &str, endpoints: &[&str]) -> MeterPoller {
        self.create(self.poller_manifest(name, endpoints)).await
    }

    pub fn poller_manifest(&self, name: &str, endpoints: &[&str]) -> Value {
        let endpoints: Vec<Value> = endpoints
            .iter()
            .map(|endpoint| {
                json!({
                    "name": endpoint, "address": self.gateway(endpoint),
                    "meters": [{"name": format!("{name}-{endpoint}"), "unitId": 1, "profile": format!("acme-{}", self.word)}],
                })
            })
            .collect();
        json!({
            "apiVersion": "corrente.dev/v1alpha1", "kind": "MeterPoller", "metadata": {"name": name, "annotations": {"corrente.dev/operator-class": self.word}},
            "spec": {
                "interval": "10s", "endpoints": endpoints,
                "output": {"kafka": {"bootstrapServers": ["kafka:9092"], "topic": self.word}},
            },
        })
    }

    /// A gateway's address that no other test uses.
    pub fn gateway(&self, endpoint: &str) -> String {
        format!("{endpoint}.{}:502", self.word)
    }

    pub async fn pipeline(&self, name: &str) -> TelemetryPipeline {
        self.create(json!({
            "apiVersion": "corrente.dev/v1alpha1", "kind": "TelemetryPipeline",
            "metadata": {"name": name, "annotations": {"corrente.dev/operator-class": self.word}},
            "spec": {
                "source": {"kafka": {"bootstrapServers": ["kafka:9092"], "topics": [self.word]}},
                "sink": {"postgresql": {"connectionSecret": {"name": "database", "key": "dsn"}}},
                "replicas": 2,
            },
        }))
        .await
    }

    /// Changes a MeterPoller's specification.
    pub async fn edit(&self, name: &str, spec: Value) {
        let patch = Patch::Merge(json!({"spec": spec}));
        self.api::<MeterPoller>()
            .patch(name, &PatchParams::default(), &patch)
            .await
            .unwrap();
    }

    /// Waits until a MeterPoller has a condition with this reason, and returns its message.
    pub async fn reason(&self, name: &str, condition: &str, reason: &str) -> String {
        let api: Api<MeterPoller> = self.api();
        until(&format!("{condition} of {name} with reason {reason}"), || async {
            let poller = api.get(name).await.unwrap();
            let status = poller.status?;
            let condition = find(&status.conditions, condition)?;
            let is_it =
                condition.reason == reason && condition.observed_generation == poller.metadata.generation;
            is_it.then(|| condition.message.clone())
        })
        .await
    }

    pub async fn list<K>(&self) -> Vec<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned,
    {
        self.api::<K>().list(&ListParams::default()).await.unwrap().items
    }

    /// The names of the Deployments there are, in order.
    pub async fn deployments(&self) -> Vec<String> {
        self.list::<Deployment>()
            .await
            .iter()
            .map(ResourceExt::name_any)
            .collect()
    }

    /// The ConfigMaps of ours.
    pub async fn config_maps(&self) -> Vec<ConfigMap> {
        let all = self.list::<ConfigMap>().await;
        all.into_iter()
            .filter(|object| object.name_any() != "kube-root-ca.crt")
            .collect()
    }

    /// The poller pods there are.
    pub async fn holders(&self) -> Vec<Holder> {
        self.list::<Pod>().await.iter().filter_map(Holder::of).collect()
    }

    /// Waits until exactly these endpoints are held by pods that run and are not ending, each by one, and
    /// returns these pods.
    pub async fn held(&self, endpoints: &[&str]) -> Vec<Holder> {
        let mut wanted: Vec<String> = endpoints.iter().map(|endpoint| self.gateway(endpoint)).collect();
        wanted.sort();
        until(&format!("pods that hold {wanted:?}"), || async {
            let pods = self.list::<Pod>().await;
            let running = pods.iter().filter(|pod| podstate::has_started(pod));
            let released: Vec<Holder> = running
                .filter_map(Holder::of)
                .filter(|pod| pod.gate.is_none())
                .collect();
            let mut held: Vec<String> = released.iter().flat_map(|pod| pod.endpoints.clone()).collect();
            held.sort();
            (held == wanted).then_some(released)
        })
        .await
    }

    async fn clear(&self) {
        let _ = Api::<Namespace>::all(self.client.clone())
            .delete(&self.namespace, &DeleteParams::default())
            .await;
        let profiles: Vec<String> = self.profiles.lock().unwrap().clone();
        for profile in profiles {
            let _ = Api::<MeterProfile>::all(self.client.clone())
                .delete(&profile, &DeleteParams::default())
                .await;
        }
    }
}
