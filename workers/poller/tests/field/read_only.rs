//! Whatever a poller is told and whatever happens to it, it reads: only the function codes 01 to 04 ever arrive.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use corrente_config::PollerConfig;
use corrente_crds::{MeterProfile, poller::Transport};
use corrente_simulator::{
    Effect, Fault, Faults, LoadSource, Ports, Simulation,
    faults::{Beyond, Recipient, Then},
    system_clock,
};
use serde_json::{Value, json};

use crate::{
    certificates,
    plant::{HERE, Polling, config},
    recorder::Recorder,
};

const MS: Duration = Duration::from_millis(1);

/// Every profile that is shipped, by name, with its manifest.
fn library() -> Vec<(String, MeterProfile)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests/profiles");
    let read = |entry: std::io::Result<fs::DirEntry>| {
        let profile: MeterProfile =
            serde_saphyr::from_str(&fs::read_to_string(entry.unwrap().path()).unwrap()).unwrap();
        (profile.metadata.name.clone().unwrap(), profile)
    };
    let mut all: Vec<_> = fs::read_dir(folder).unwrap().map(read).collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

/// Everything that provokes a retry, a bisection, a walk, a reconnect or a mistake.
fn provocations() -> Vec<(&'static str, Vec<Fault>)> {
    let often = |effect| vec![Fault::new(effect).chance(0.3)];
    vec![
        ("peace", vec![]),
        ("silence", often(Effect::Silence)),
        ("slowness", often(Effect::Delay(20 * MS, 600 * MS))),
        (
            "refusals",
            [1, 2, 3, 4, 6, 10, 11]
                .map(|code| Fault::new(Effect::Exception(code)).chance(0.1))
                .into(),
        ),
        (
            "bad registers",
            vec![Fault::new(Effect::Exception(2)).registers(0..=20)],
        ),
        (
            "short reads only",
            vec![Fault::new(Effect::Exception(3)).longer_than(2)],
        ),
        (
            "silence at long reads",
            vec![Fault::new(Effect::Silence).longer_than(10)],
        ),
        (
            "broken frames",
            vec![
                Fault::new(Effect::WrongUnit(1)).chance(0.1),
                Fault::new(Effect::WrongFunction(None)).chance(0.1),
                Fault::new(Effect::WrongFunction(Some(6))).chance(0.1),
                Fault::new(Effect::WrongCount(1)).chance(0.1),
                Fault::new(Effect::Garbage {
                    bytes: 30,
                    then_answer: true,
                })
                .chance(0.1),
            ],
        ),
        (
            "broken connections",
            vec![
                Fault::new(Effect::Torn {
                    after: None,
                    then: Then::Reset,
                })
                .chance(0.2),
                Fault::new(Effect::Torn {
                    after: Some(3),
                    then: Then::Close,
                })
                .chance(0.2),
                Fault::new(Effect::Connections {
                    limit: 1,
                    beyond: Beyond::CloseOldest,
                }),
            ],
        ),
        (
            "late answers",
            often(Effect::Late {
                after: Some(300 * MS),
                to: Recipient::Newest,
            }),
        ),
    ]
}

/// An endpoint with a meter of every profile.
fn endpoint(name: &str, changes: &Value, library: &[(String, MeterProfile)]) -> Value {
    let meter = |(unit, (profile, _)): (usize, &(String, MeterProfile))| json!({"name": format!("{name}-{}", unit + 1), "unitId": unit + 1, "profile": profile});
    let meters: Vec<_> = library.iter().enumerate().map(meter).collect();
    let mut endpoint = json!({"name": name, "address": "127.0.0.1:1", "meters": meters});
    endpoint
        .as_object_mut()
        .unwrap()
        .extend(changes.as_object().unwrap().clone());
    endpoint
}

async fn provoke(faults: Vec<Fault>, retries: u32, changes: Value) -> (usize, BTreeSet<u8>) {
    let library = library();
    let rtu = changes["transport"] == "rtu-over-tcp";
    let tls = changes["transport"] == "tls";
    let mut config: PollerConfig = PollerConfig {
        retries,
        maps: library
            .iter()
            .map(|(name, profile)| (format!("profile/{name}"), profile.spec.map.clone()))
            .collect(),
        endpoints: serde_json::from_value(json!([endpoint("e", &changes, &library)])).unwrap(),
        ..config(&[], "1s", "150ms")
    };
    let faults = Faults {
        seed: 5,
        list: faults,
    };
    // What the recorder decrypts it passes on without TLS.
    let mut plain = config.clone();
    if tls {
        plain.endpoints[0].transport = Transport::Tcp;
    }
    let simulation = Simulation::new(
        std::slice::from_ref(&plain),
        LoadSource::default(),
        system_clock(),
    )
    .unwrap();
    let served = simulation
        .with_faults(faults)
        .unwrap()
        .serve(HERE, Ports::Ephemeral)
        .await
        .unwrap();
    let acceptor = tls.then(|| corrente_simulator::tls::load(&certificates::folder()).unwrap());
    let recorder = Recorder::before(served.addresses["e"], acceptor).await;
    config.endpoints[0].address = recorder.address.to_string();
    let meters = library.len();
    let mut polling = Polling::start(config);
    // Every meter has been polled, some more often than its first lesson, and there is something to look at: those
    // that do not answer are not asked often.
    polling
        .until(|seen| {
            let polled = seen.len() == meters && seen.values().any(|records| records.len() >= 4);
            polled && recorder.requests(rtu).len() >= 15
        })
        .await;
    polling.end().await;
    let requests = recorder.requests(rtu);
    let functions = requests.iter().map(|request| request.function).collect();
    let units: BTreeSet<u8> = requests.iter().map(|request| request.unit).collect();
    assert!(units.iter().all(|unit| usize::from(*unit) <= meters));
    (requests.len(), functions)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_reads_ever_arrive() {
    assert!(library().len() >= 15);
    let mut running = tokio::task::JoinSet::new();
    for (what, faults) in provocations() {
        for (changes, retries) in [
            (json!({"transport": "tcp"}), 0),
            (json!({"transport": "tcp", "maxInFlight": 8}), 2),
            (
                json!({"transport": "rtu-over-tcp", "interRequestDelay": "1ms"}),
                1,
            ),
        ] {
            let faults = faults.clone();
            running.spawn(async move { (what, changes.clone(), provoke(faults, retries, changes).await) });
        }
    }
    let mut functions = BTreeSet::new();
    while let Some(ended) = running.join_next().await {
        let (what, changes, (requests, seen)) = ended.unwrap();
        assert!(requests >= 15, "{what}, {changes}: only {requests} requests");
        functions.extend(seen);
    }
    // The library's meters have no coils or discrete inputs; what they have was asked for.
    assert_eq!(functions, BTreeSet::from([3, 4]));
}
