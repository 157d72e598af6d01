//! Watches all pods of a namespace, and remembers whether two ever held one endpoint at the same time.

use std::{collections::BTreeMap, sync::Arc, sync::Mutex};

use corrente_operator::handover::holder::Holder;
use futures::{StreamExt, pin_mut};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{
    WatchStreamExt,
    watcher::{self, Event, watcher},
};
use tokio::task::JoinHandle;

use crate::world::{World, until};

pub struct Referee {
    seen: Arc<Mutex<Seen>>,
    watching: JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    started: bool,
    pods: BTreeMap<String, Holder>,
    released: usize,
    fouls: Vec<String>,
}

impl Seen {
    fn note(&mut self, pod: &Pod) {
        let Some(holder) = Holder::of(pod) else { return };
        let was_released = self
            .pods
            .get(&holder.uid)
            .is_some_and(|before| before.gate.is_none());
        if holder.gate.is_none() && !was_released {
            self.released += 1;
        }
        let holds = |pod: &Holder| pod.gate.is_none() && !pod.finished;
        for other in self.pods.values().filter(|other| other.uid != holder.uid) {
            if holds(other) && holds(&holder) && !other.endpoints.is_disjoint(&holder.endpoints) {
                self.fouls.push(format!(
                    "{} and {} hold the same endpoint",
                    other.name, holder.name
                ));
            }
        }
        self.pods.insert(holder.uid.clone(), holder);
    }
}

impl Referee {
    pub async fn watch(world: &World) -> Self {
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let (noting, api) = (seen.clone(), world.api::<Pod>());
        let watching = tokio::spawn(async move {
            let events = watcher(api, watcher::Config::default()).default_backoff();
            pin_mut!(events);
            while let Some(event) = events.next().await {
                let mut seen = noting.lock().unwrap();
                match event {
                    Ok(Event::Apply(pod) | Event::InitApply(pod)) => seen.note(&pod),
                    Ok(Event::Delete(pod)) => {
                        seen.pods.remove(&pod.metadata.uid.unwrap());
                    }
                    Ok(Event::InitDone) => {
                        // A second one would mean that changes were missed.
                        assert!(
                            !std::mem::replace(&mut seen.started, true),
                            "the watch was interrupted"
                        );
                    }
                    Ok(Event::Init) => {}
                    Err(error) => panic!("the watch broke off: {error}"),
                }
            }
        });
        let referee = Self { seen, watching };
        until("the referee", || async {
            referee.seen.lock().unwrap().started.then_some(())
        })
        .await;
        referee
    }

    /// How many pods were released so far.
    pub fn released(&self) -> usize {
        self.seen.lock().unwrap().released
    }

    /// No endpoint was ever held by two.
    pub fn saw_no_foul(self) {
        assert!(!self.watching.is_finished(), "the referee stopped looking");
        self.watching.abort();
        assert_eq!(self.seen.lock().unwrap().fouls, Vec::<String>::new());
    }
}
