//! What the pods of pollers and pipelines have in common: who they are, what they may not do, how they
//! are asked for their health, and what their owner passes on to them.

use std::collections::BTreeMap;

use corrente_crds::common::PodTemplate;
use k8s_openapi::{
    api::core::v1::{
        Capabilities, ConfigMapVolumeSource, Container, ContainerPort, HTTPGetAction, PodSecurityContext,
        PodSpec, PodTemplateSpec, Probe, ResourceRequirements, SeccompProfile, SecurityContext, Toleration,
        Volume, VolumeMount,
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{ObjectMeta, OwnerReference},
        util::intstr::IntOrString,
    },
};

use crate::vocabulary::{annotations, labels};

/// The folder of the configuration in a pod.
pub const CONFIG_FOLDER: &str = "/etc/corrente/config";
/// The volume of the configuration.
const CONFIG_VOLUME: &str = "config";
/// The user and group of the workers; no one else on a usual machine.
const USER: i64 = 65532;
/// How long a worker has to flush and leave. It takes less than five seconds; a slow disk may take more.
const GRACE_SECONDS: i64 = 30;

/// A worker's pod, as far as its kind does not matter.
pub struct Worker<'a> {
    /// The container's name.
    pub name: &'static str,
    /// The container's image.
    pub image: &'a str,
    /// When nodes pull it.
    pub pull_policy: &'a str,
    /// The ConfigMap of its configuration.
    pub config_map: &'a str,
    /// The pod's own labels.
    pub labels: BTreeMap<String, String>,
    /// The pod's own annotations.
    pub annotations: BTreeMap<String, String>,
    /// Volumes besides the configuration, and where they are mounted.
    pub volumes: Vec<(Volume, VolumeMount)>,
    /// Taints it tolerates.
    pub tolerations: Vec<Toleration>,
    /// Requests and limits where its owner says nothing.
    pub resources: ResourceRequirements,
    /// What its owner passes on.
    pub template: Option<&'a PodTemplate>,
}

impl Worker<'_> {
    /// The pod.
    #[must_use]
    pub fn pod(self) -> PodTemplateSpec {
        let template = self.template.cloned().unwrap_or_default();
        let passed =
            |(key, _): &(String, String)| !labels::RESERVED.iter().any(|prefix| key.starts_with(prefix));
        let mut labels: BTreeMap<String, String> = template.labels.into_iter().filter(passed).collect();
        labels.extend(self.labels);
        let passed = |(key, _): &(String, String)| !key.starts_with(annotations::RESERVED);
        let mut annotations: BTreeMap<String, String> =
            template.annotations.into_iter().filter(passed).collect();
        annotations.extend(self.annotations);

        let (mut volumes, mut mounts): (Vec<Volume>, Vec<VolumeMount>) = self.volumes.into_iter().unzip();
        volumes.insert(
            0,
            Volume {
                name: CONFIG_VOLUME.to_owned(),
                config_map: Some(ConfigMapVolumeSource {
                    name: self.config_map.to_owned(),
                    ..Default::default()
                }),
                ..Default::default()
            },
        );
        mounts.insert(0, mount(CONFIG_VOLUME, CONFIG_FOLDER, true));
        let mut tolerations = self.tolerations;
        tolerations.extend(template.tolerations);

        let container = Container {
            name: self.name.to_owned(),
            image: Some(self.image.to_owned()),
            image_pull_policy: Some(self.pull_policy.to_owned()),
            ports: Some(vec![ContainerPort {
                name: Some("http".to_owned()),
                container_port: i32::from(corrente_runtime::http::PORT),
                ..Default::default()
            }]),
            resources: Some(template.resources.unwrap_or(self.resources)),
            security_context: Some(restricted()),
            // Slow starts are no failures; a process that stopped making progress is restarted after a minute.
            startup_probe: Some(probe("/livez", 2, 60)),
            liveness_probe: Some(probe("/livez", 20, 3)),
            readiness_probe: Some(probe("/readyz", 5, 2)),
            volume_mounts: Some(mounts),
            ..Default::default()
        };
        PodTemplateSpec {
            metadata: Some(ObjectMeta {
                labels: Some(labels),
                annotations: Some(annotations),
                ..Default::default()
            }),
            spec: Some(PodSpec {
                containers: vec![container],
                volumes: Some(volumes),
                security_context: Some(PodSecurityContext {
                    run_as_non_root: Some(true),
                    run_as_user: Some(USER),
                    run_as_group: Some(USER),
                    fs_group: Some(USER),
                    seccomp_profile: Some(runtime_default()),
                    ..Default::default()
                }),
                // Workers never talk to the API server.
                automount_service_account_token: Some(false),
                enable_service_links: Some(false),
                termination_grace_period_seconds: Some(GRACE_SECONDS),
                tolerations: some(tolerations),
                node_selector: some(template.node_selector),
                affinity: template.affinity,
                priority_class_name: template.priority_class_name,
                image_pull_secrets: some(template.image_pull_secrets),
                ..Default::default()
            }),
        }
    }
}

/// Labels that every object of a resource has.
#[must_use]
pub fn common_labels(component: &str, resource: &str) -> BTreeMap<String, String> {
    [
        (labels::NAME, format!("corrente-{component}")),
        (labels::INSTANCE, crate::naming::label_value(resource)),
        (labels::PART_OF, labels::CORRENTE.to_owned()),
        (labels::MANAGED_BY, labels::CORRENTE.to_owned()),
        (labels::COMPONENT, component.to_owned()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

/// The metadata of an object that belongs to a resource and goes with it.
#[must_use]
pub fn metadata(
    name: &str,
    namespace: &str,
    labels: BTreeMap<String, String>,
    owner: &OwnerReference,
) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(namespace.to_owned()),
        labels: Some(labels),
        owner_references: Some(vec![owner.clone()]),
        ..Default::default()
    }
}

/// A mount of a volume.
#[must_use]
pub fn mount(volume: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: volume.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..Default::default()
    }
}

/// Tolerates a node that does not answer, or is not ready, for so many seconds; for ever where it is `None`.
#[must_use]
pub fn tolerate_lost_node(seconds: Option<i64>) -> Vec<Toleration> {
    ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"]
        .map(|taint| Toleration {
            key: Some(taint.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some("NoExecute".to_owned()),
            toleration_seconds: seconds,
            ..Default::default()
        })
        .into()
}

/// Requests of CPU and memory, and a limit of memory. There is no limit of CPU: a throttled poller is late.
#[must_use]
pub fn resources(cpu: &str, memory: &str, memory_limit: &str) -> ResourceRequirements {
    let quantity = |text: &str| Quantity(text.to_owned());
    ResourceRequirements {
        requests: Some(
            [
                ("cpu".to_owned(), quantity(cpu)),
                ("memory".to_owned(), quantity(memory)),
            ]
            .into(),
        ),
        limits: Some([("memory".to_owned(), quantity(memory_limit))].into()),
        ..Default::default()
    }
}

fn restricted() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        capabilities: Some(Capabilities {
            drop: Some(vec!["ALL".to_owned()]),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn runtime_default() -> SeccompProfile {
    SeccompProfile {
        type_: "RuntimeDefault".to_owned(),
        ..Default::default()
    }
}

fn probe(path: &str, period: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String("http".to_owned()),
            ..Default::default()
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(2),
        failure_threshold: Some(failures),
        ..Default::default()
    }
}

/// `None` for an empty collection: the API server leaves it out, and so must what is compared with it.
fn some<T: IntoIterator + Default + PartialEq>(collection: T) -> Option<T> {
    (collection != T::default()).then_some(collection)
}
