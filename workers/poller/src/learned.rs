//! A read plan that learns from refusals. Pure; time comes in.
//!
//! A register that a meter refuses with exception 02 or 03 when it is asked for alone is **left out** for a
//! while. And a meter that has refused a block gets a more **careful** plan for as long, so that the next poll
//! is not refused for the same reason:
//! 1. No request spans a register that is not to be read, since a gap may be what was refused.
//! 2. Where a block is refused all the same, though each of its values can be read, each gets a request of
//!    its own: the block is too long for the meter, or otherwise not to its liking.
//!
//! Values that must come from one request stay together throughout.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use corrente_modbus::{CompiledMap, CostModel, ReadPlan, map::NamedRange};
use tokio::time::Instant;

use crate::client::Exception;

/// How long a register that the meter refused is left out.
const REFUSED_FOR: Duration = Duration::from_secs(60 * 60);
/// The same where the meter refused everything: that is no bad register, but the wrong map or the wrong
/// unit, or a meter that is not ready, and its owner will want to see that it is right again.
const ALL_REFUSED_FOR: Duration = Duration::from_secs(60);

/// How carefully the plan is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Caution {
    /// As the cost has it.
    #[default]
    None,
    /// No request spans a register that is not to be read.
    NoGaps,
    /// Each value has a request of its own.
    Apart,
}

/// What one poll found out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lesson {
    /// Values, by index, that were refused when they were asked for alone.
    pub refused: Vec<(usize, Exception)>,
    /// Whether a block of several was refused.
    pub block_refused: bool,
    /// Whether anything was read.
    pub any_good: bool,
}

/// The plan of one meter.
#[derive(Clone, Debug)]
pub struct LearnedPlan {
    map: Arc<CompiledMap>,
    cost: CostModel,
    plan: ReadPlan,
    refused: BTreeMap<usize, (Exception, Instant)>,
    caution: Caution,
    careful_until: Option<Instant>,
}

impl LearnedPlan {
    /// The cheapest plan: nothing was refused yet.
    #[must_use]
    pub fn new(map: Arc<CompiledMap>, cost: CostModel) -> Self {
        Self {
            plan: ReadPlan::build(&map, &cost),
            map,
            cost,
            refused: BTreeMap::new(),
            caution: Caution::None,
            careful_until: None,
        }
    }

    /// The map it is for.
    #[must_use]
    pub fn map(&self) -> &Arc<CompiledMap> {
        &self.map
    }

    /// The plan at the moment, counted from the map's base.
    #[must_use]
    pub fn plan(&self) -> &ReadPlan {
        &self.plan
    }

    /// What is left out at the moment, by index, and why.
    pub fn left_out(&self) -> impl Iterator<Item = (usize, Exception)> {
        self.refused
            .iter()
            .map(|(&index, &(exception, _))| (index, exception))
    }

    /// The plan for some of the values alone.
    #[must_use]
    pub fn for_values(&self, values: &[usize]) -> ReadPlan {
        ReadPlan::build_for(&self.map, values, &self.cost)
    }

    /// The values, each by itself but for those that must come from one request.
    #[must_use]
    pub fn parts(&self, values: &[usize]) -> Vec<Vec<usize>> {
        let mut parts: Vec<Vec<usize>> = Vec::new();
        let mut groups: BTreeMap<&str, usize> = BTreeMap::new();
        for &index in values {
            let group = self
                .map
                .values
                .get(index)
                .and_then(|value| value.coherent.as_deref());
            match group {
                None => parts.push(vec![index]),
                Some(group) => match groups.get(group).and_then(|&at| parts.get_mut(at)) {
                    Some(part) => part.push(index),
                    None => {
                        groups.insert(group, parts.len());
                        parts.push(vec![index]);
                    }
                },
            }
        }
        parts
    }

    /// Lets values in again, and caution go, whose time is over.
    pub fn forgive(&mut self, now: Instant) {
        let before = self.refused.len();
        self.refused.retain(|_, (_, until)| *until > now);
        let calm = self.careful_until.is_some_and(|until| until <= now);
        if calm {
            self.caution = Caution::None;
            self.careful_until = None;
        }
        if calm || self.refused.len() < before {
            self.replan();
        }
    }

    /// Takes note of what a poll found out; returns for how long.
    pub fn learn(&mut self, lesson: Lesson, now: Instant) -> Option<Duration> {
        if lesson.refused.is_empty() && !lesson.block_refused {
            return None;
        }
        let pause = if lesson.any_good {
            REFUSED_FOR
        } else {
            ALL_REFUSED_FOR
        };
        let unexplained =
            lesson.block_refused && lesson.refused.is_empty() && self.caution() >= Caution::NoGaps;
        let wanted = if unexplained {
            Caution::Apart
        } else {
            Caution::NoGaps
        };
        self.caution = self.caution.max(wanted);
        self.careful_until = Some(now + pause);
        for (index, exception) in lesson.refused {
            self.refused.insert(index, (exception, now + pause));
        }
        self.replan();
        Some(pause)
    }

    fn caution(&self) -> Caution {
        let least = if self.refused.is_empty() {
            Caution::None
        } else {
            Caution::NoGaps
        };
        match self.caution.max(least) {
            // Without gaps there may be nothing to pad a value of an odd length with.
            Caution::NoGaps if self.map.limits.even_count => Caution::Apart,
            caution => caution,
        }
    }

    fn replan(&mut self) {
        let wanted: Vec<usize> = (0..self.map.values.len())
            .filter(|index| !self.refused.contains_key(index))
            .collect();
        self.plan = match self.caution() {
            Caution::None => self.for_values(&wanted),
            Caution::NoGaps => ReadPlan::build_for(&self.without_gaps(&wanted), &wanted, &self.cost),
            Caution::Apart => ReadPlan {
                requests: self
                    .parts(&wanted)
                    .iter()
                    .flat_map(|part| self.for_values(part).requests)
                    .collect(),
                pause: self.map.limits.pause,
            },
        };
    }

    /// The map of a meter that answers for the wanted values alone.
    fn without_gaps(&self, wanted: &[usize]) -> CompiledMap {
        let mut map = (*self.map).clone();
        map.limits.whole_values = true;
        let values = wanted.iter().filter_map(|&index| self.map.values.get(index));
        map.named = values
            .flat_map(|value| {
                let range = |start: u16, count: u16| NamedRange {
                    function: value.function,
                    start: u32::from(start),
                    end: u32::from(start) + u32::from(count),
                };
                let factor = value.scale_from.map(|address| range(address, 1));
                [Some(range(value.address, value.count)), factor]
            })
            .flatten()
            .collect();
        map.named.sort_unstable();
        map.named.dedup();
        map
    }
}

#[cfg(test)]
mod tests {
    use corrente_crds::profile::RegisterMap;

    use super::*;

    const WHY: Exception = Exception(2);

    /// One-register values at these addresses.
    fn plan(addresses: &[u16], even: bool) -> LearnedPlan {
        let registers: Vec<_> = addresses
            .iter()
            .map(|at| serde_json::json!({"name": format!("v{at}"), "address": at, "function": "holding", "type": "u16"}))
            .collect();
        let map = serde_json::json!({"limits": {"evenRegisterCount": even}, "registers": registers});
        let map: RegisterMap = serde_json::from_value(map).unwrap();
        let map = CompiledMap::compile(&map, &[]).unwrap();
        LearnedPlan::new(Arc::new(map), CostModel::default())
    }

    fn requests(plan: &LearnedPlan) -> Vec<(u16, u16)> {
        let requests = plan.plan().requests.iter();
        requests.map(|request| (request.address, request.count)).collect()
    }

    fn lesson(refused: &[usize], any_good: bool) -> Lesson {
        Lesson {
            refused: refused.iter().map(|&index| (index, WHY)).collect(),
            block_refused: true,
            any_good,
        }
    }

    #[test]
    fn a_refused_register_is_left_out_and_not_spanned_until_its_time_is_over() {
        let (mut plan, start) = (plan(&[10, 11, 12, 13], false), Instant::now());
        assert_eq!(requests(&plan), [(10, 4)]);
        assert_eq!(plan.learn(lesson(&[2], true), start), Some(REFUSED_FOR));
        assert_eq!(requests(&plan), [(10, 2), (13, 1)]);
        assert_eq!(plan.left_out().collect::<Vec<_>>(), [(2, WHY)]);
        plan.forgive(start + REFUSED_FOR - Duration::from_secs(1));
        assert_eq!(requests(&plan), [(10, 2), (13, 1)]);
        plan.forgive(start + REFUSED_FOR);
        assert_eq!(requests(&plan), [(10, 4)]);
        assert_eq!(plan.left_out().count(), 0);
    }

    #[test]
    fn a_refused_gap_and_then_a_refused_length_make_it_careful_by_steps() {
        let (mut plan, start) = (plan(&[10, 11, 20], false), Instant::now());
        assert_eq!(requests(&plan), [(10, 11)]);
        plan.learn(lesson(&[], true), start);
        assert_eq!(requests(&plan), [(10, 2), (20, 1)]);
        plan.learn(lesson(&[], true), start);
        assert_eq!(requests(&plan), [(10, 1), (11, 1), (20, 1)]);
        plan.forgive(start + REFUSED_FOR);
        assert_eq!(requests(&plan), [(10, 11)]);
    }

    #[test]
    fn a_meter_that_refuses_everything_is_asked_again_soon() {
        let (mut plan, start) = (plan(&[10, 11], false), Instant::now());
        assert_eq!(plan.learn(lesson(&[0, 1], false), start), Some(ALL_REFUSED_FOR));
        assert_eq!(requests(&plan), []);
        plan.forgive(start + ALL_REFUSED_FOR);
        assert_eq!(requests(&plan), [(10, 2)]);
    }

    #[test]
    fn reads_stay_even_where_they_must() {
        let (mut plan, start) = (plan(&[10, 11, 12, 13], true), Instant::now());
        plan.learn(lesson(&[3], true), start);
        assert!(
            plan.plan().requests.iter().all(|request| request.count == 2),
            "{:?}",
            plan.plan()
        );
    }

    #[test]
    fn nothing_refused_is_nothing_learned() {
        let mut plan = plan(&[10, 20], false);
        let before = requests(&plan);
        assert_eq!(plan.learn(Lesson::default(), Instant::now()), None);
        assert_eq!(requests(&plan), before);
    }
}
