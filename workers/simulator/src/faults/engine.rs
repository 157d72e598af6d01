//! Which faults a request meets at one endpoint, and what its gateway and its limits make of that.
//!
//! Pure: the time comes in, as the time since the start, and a [`Script`] goes out. What it remembers is how
//! often each fault could have come and did, when the gateway's line is free again, and answers that wait for
//! the next one.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
    time::Duration,
};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{
    Beyond, Effect, Fault, Faults, Recipient,
    script::{Draft, Script, Step},
};
use crate::wire::{Answer, Asked, Framing};

/// A connection's number at its endpoint: the later one has the higher number.
pub type ConnectionId = u64;

/// What becomes of a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is served.
    Serve,
    /// It is served, and the oldest one closed.
    ServeInsteadOfOldest,
    /// It is reset.
    Refuse,
    /// It is taken, and never served.
    Ignore,
}

/// The faults of one endpoint.
#[derive(Debug)]
pub struct Engine {
    framing: Framing,
    seed: u64,
    rules: Vec<Rule>,
    requests: u64,
    free_at: Duration,
    held: Vec<(Recipient, ConnectionId, Vec<u8>)>,
}

/// A fault at this endpoint.
#[derive(Debug)]
struct Rule {
    fault: Fault,
    /// The units that it is of; every one where it is `None`.
    units: Option<BTreeSet<u8>>,
    seen: u64,
    fired: u64,
}

impl Rule {
    /// Whether it comes with this request, and the number that its chances follow from.
    fn fires(&mut self, now: Duration, asked: &Asked, chance: impl Fn(u64) -> f64) -> Option<u64> {
        let place = &self.fault.place;
        let unit = self
            .units
            .as_ref()
            .is_none_or(|units| units.contains(&asked.unit));
        if !unit || !self.fault.when.covers(now) {
            return None;
        }
        if let Ok(read) = asked.read {
            let last = read.address().saturating_add(read.count().saturating_sub(1));
            let touches =
                |range: &RangeInclusive<u16>| *range.start() <= last && read.address() <= *range.end();
            if !place.registers.as_ref().is_none_or(touches)
                || place.function.is_some_and(|function| function != read.function())
                || place.longer_than.is_some_and(|most| read.count() <= most)
            {
                return None;
            }
        } else if place.registers.is_some() || place.function.is_some() || place.longer_than.is_some() {
            return None;
        }
        self.seen += 1;
        let when = &self.fault.when;
        let comes = when.every.is_none_or(|every| self.seen.is_multiple_of(every))
            && when.times.is_none_or(|times| self.fired < times)
            && when
                .chance
                .is_none_or(|probability| chance(self.seen) < probability);
        self.fired += u64::from(comes);
        comes.then_some(self.seen)
    }
}

impl Engine {
    /// The faults at the endpoint of this name, whose meters have these units. Those that cannot come about
    /// are for [`super::check`] to find.
    #[must_use]
    pub fn new(faults: &Faults, endpoint: &str, meters: &BTreeMap<String, u8>, framing: Framing) -> Self {
        let here = |fault: &&Fault| {
            let endpoints = &fault.place.endpoints;
            !fault.effect.is_of_meters()
                && (endpoints.is_empty() || endpoints.iter().any(|name| name == endpoint))
        };
        let rule = |fault: &Fault| {
            let place = &fault.place;
            let mut units = place.units.clone();
            units.extend(place.meters.iter().filter_map(|name| meters.get(name)));
            Rule {
                fault: fault.clone(),
                units: (!place.units.is_empty() || !place.meters.is_empty()).then_some(units),
                seen: 0,
                fired: 0,
            }
        };
        Self {
            framing,
            seed: xxh3_64_with_seed(endpoint.as_bytes(), faults.seed),
            rules: faults.list.iter().filter(here).map(rule).collect(),
            requests: 0,
            free_at: Duration::ZERO,
            held: Vec::new(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.rules.is_empty()
    }

    /// What is done for a request on a connection, whose answer would be this; `None` where there is none.
    pub fn respond(
        &mut self,
        now: Duration,
        connection: ConnectionId,
        asked: &Asked,
        answer: Option<Answer>,
    ) -> Script {
        self.requests += 1;
        if matches!(self.limit(now), Some((0, _))) {
            return Script {
                steps: vec![Step::Reset],
                later: None,
            };
        }
        let (seed, requests) = (self.seed, self.requests);
        let mut draft = Draft::new(self.framing, asked, answer);
        for (number, rule) in (1_u64..).zip(&mut self.rules) {
            if !rule.fault.effect.is_of_endpoints()
                && let Some(seen) = rule.fires(now, asked, |seen| random(seed, number, seen, 0))
            {
                draft.meet(&rule.fault.effect, &|salt| random(seed, number, seen, salt));
            }
        }
        let finish = |draft: Draft<'_>| draft.finish(&|salt| random(seed, 0, requests, salt));
        let mut script = match self.gateway(now) {
            None => finish(draft),
            Some((timeout, exception)) => {
                let begins = now.max(self.free_at);
                let (takes, mut script) = if draft.is_silent() {
                    (timeout, self.given_up(asked, timeout, exception))
                } else {
                    (draft.delay(), finish(draft))
                };
                self.free_at = begins + takes;
                let wait = begins - now;
                if !wait.is_zero() && !script.steps.is_empty() {
                    script.steps.insert(0, Step::Wait(wait));
                }
                script
            }
        };
        self.deliver(connection, &mut script);
        script
    }

    /// What a gateway does whose unit is silent.
    fn given_up(&self, asked: &Asked, timeout: Duration, exception: Option<u8>) -> Script {
        let steps = exception.map_or_else(Vec::new, |code| {
            let mut frame = Vec::new();
            let answer = Answer::exception(asked, code);
            self.framing.put(asked.transaction, &answer, &mut frame);
            vec![Step::Wait(timeout), Step::Send(frame)]
        });
        Script { steps, later: None }
    }

    /// Puts answers that were held back in front of this one, or holds this one back.
    fn deliver(&mut self, connection: ConnectionId, script: &mut Script) {
        if let Some(later) = script.later.take_if(|later| later.after.is_none()) {
            self.held.push((later.to, connection, later.bytes));
            return;
        }
        let Some(first) = script.steps.iter().position(|step| matches!(step, Step::Send(_))) else {
            return;
        };
        let mine = |(to, of, _): &mut (Recipient, ConnectionId, Vec<u8>)| {
            *to == Recipient::Newest || *of == connection
        };
        let due: Vec<Step> = self
            .held
            .extract_if(.., mine)
            .map(|(.., bytes)| Step::Send(bytes))
            .collect();
        script.steps.splice(first..first, due);
    }

    /// What becomes of a new connection where so many are served.
    #[must_use]
    pub fn admit(&self, now: Duration, served: usize) -> Admission {
        match self.limit(now) {
            Some((limit, beyond)) if served >= limit => match beyond {
                Beyond::Ignore => Admission::Ignore,
                Beyond::CloseOldest if limit > 0 => Admission::ServeInsteadOfOldest,
                Beyond::Refuse | Beyond::CloseOldest => Admission::Refuse,
            },
            _ => Admission::Serve,
        }
    }

    /// A connection is gone: nothing is held back for it any more.
    pub fn forget(&mut self, connection: ConnectionId) {
        self.held
            .retain(|(to, of, _)| *to == Recipient::Newest || *of != connection);
    }

    fn in_force(&self, now: Duration) -> impl Iterator<Item = &Effect> {
        let rules = self.rules.iter().filter(move |rule| rule.fault.when.covers(now));
        rules.map(|rule| &rule.fault.effect)
    }

    fn limit(&self, now: Duration) -> Option<(usize, Beyond)> {
        self.in_force(now).find_map(|effect| match *effect {
            Effect::Connections { limit, beyond } => Some((limit, beyond)),
            _ => None,
        })
    }

    fn gateway(&self, now: Duration) -> Option<(Duration, Option<u8>)> {
        self.in_force(now).find_map(|effect| match *effect {
            Effect::Gateway { timeout, exception } => Some((timeout, exception)),
            _ => None,
        })
    }
}

/// A number from 0 to below 1 that follows from these alone.
fn random(seed: u64, rule: u64, request: u64, salt: u64) -> f64 {
    let mut bytes = [0; 24];
    for (part, number) in bytes.chunks_exact_mut(8).zip([rule, request, salt]) {
        part.copy_from_slice(&number.to_le_bytes());
    }
    let bits = xxh3_64_with_seed(&bytes, seed) >> 11;
    bits as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use corrente_crds::profile::Function;
    use corrente_modbus::adu::Question;

    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn engine(faults: Vec<Fault>) -> Engine {
        let meters = BTreeMap::from([("one".to_owned(), 1), ("two".to_owned(), 2)]);
        let faults = Faults {
            seed: 7,
            list: faults,
        };
        Engine::new(&faults, "gw", &meters, Framing::Mbap)
    }

    fn ask(engine: &mut Engine, now: Duration, unit: u8, address: u16, count: u16) -> Script {
        let asked = Asked {
            transaction: u16::from(unit),
            unit,
            code: 3,
            read: Ok(Question::new(Function::Holding, address, count).unwrap()),
        };
        let answer = Answer::values(&asked, Function::Holding, &vec![0; count.into()]);
        engine.respond(now, 1, &asked, Some(answer))
    }

    /// Whether a read of unit 1 is answered.
    fn answered(engine: &mut Engine, now: Duration) -> bool {
        !ask(engine, now, 1, 10, 4).steps.is_empty()
    }

    #[test]
    fn a_fault_keeps_to_its_place() {
        let silence = || Fault::new(Effect::Silence);
        for (fault, reads) in [
            (silence(), [false, false, false, false]),
            (silence().endpoint("gw"), [false, false, false, false]),
            (silence().endpoint("other"), [true, true, true, true]),
            (silence().meter("two"), [true, true, true, false]),
            (silence().units([1]), [false, false, false, true]),
            (silence().registers(0..=9), [true, true, true, true]),
            (silence().registers(13..=13), [false, true, true, false]),
            (silence().registers(14..=14), [true, false, true, true]),
            (silence().longer_than(3), [false, true, true, false]),
        ] {
            let mut engine = engine(vec![fault.clone()]);
            let seen = [(1, 10, 4), (1, 14, 1), (1, 20, 3), (2, 10, 4)]
                .map(|(unit, address, count)| !ask(&mut engine, S, unit, address, count).steps.is_empty());
            assert_eq!(seen, reads, "{fault:?}");
        }
    }

    #[test]
    fn a_fault_keeps_to_its_time() {
        let silence = || Fault::new(Effect::Silence);
        for (fault, expected) in [
            (silence().from(3 * S), "++-----"),
            (silence().until(3 * S), "--+++++"),
            (silence().every(3), "++-++-+"),
            (silence().times(2), "--+++++"),
            (silence().from(2 * S).every(2).times(2), "++-+-++"),
        ] {
            let mut engine = engine(vec![fault.clone()]);
            let seen: String = (1..=7)
                .map(|second| {
                    if answered(&mut engine, second * S) {
                        '+'
                    } else {
                        '-'
                    }
                })
                .collect();
            assert_eq!(seen, expected, "{fault:?}");
        }
    }

    #[test]
    fn chance_follows_from_the_seed() {
        let run = |seed: u64| -> Vec<bool> {
            let faults = Faults::new(seed).with(Fault::new(Effect::Silence).chance(0.25));
            let mut engine = Engine::new(&faults, "gw", &BTreeMap::new(), Framing::Rtu);
            (0..2000).map(|_| answered(&mut engine, S)).collect()
        };
        let silent = run(1).iter().filter(|answered| !**answered).count();
        assert!((420..580).contains(&silent), "{silent} of 2000");
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn a_gateway_lets_everyone_wait_for_a_silent_unit() {
        let gateway = |exception| {
            vec![
                Fault::new(Effect::Gateway {
                    timeout: S,
                    exception,
                }),
                Fault::new(Effect::Silence).units([2]),
                Fault::new(Effect::Delay(S / 10, S / 10)).units([1]),
            ]
        };
        let waits = |script: &Script| -> Duration {
            let wait = |step: &Step| match step {
                Step::Wait(wait) => *wait,
                _ => Duration::ZERO,
            };
            script.steps.iter().map(wait).sum()
        };
        let mut one = engine(gateway(Some(11)));
        assert_eq!(waits(&ask(&mut one, S, 1, 0, 1)), S / 10);
        let silent = ask(&mut one, 2 * S, 2, 0, 1);
        assert_eq!(waits(&silent), S);
        assert_eq!(
            silent.steps.last(),
            Some(&Step::Send(vec![0, 2, 0, 0, 0, 3, 2, 0x83, 11]))
        );
        // Asked while the line is held: answered when it is free, after the other one that waits.
        assert_eq!(waits(&ask(&mut one, 2 * S + S / 2, 1, 0, 1)), S / 2 + S / 10);
        assert_eq!(waits(&ask(&mut one, 2 * S + S / 2, 1, 0, 1)), S / 2 + S / 5);
        let mut mute = engine(gateway(None));
        assert_eq!(ask(&mut mute, S, 2, 0, 1), Script::default());
        assert_eq!(waits(&ask(&mut mute, S, 1, 0, 1)), S + S / 10);
        assert_eq!(waits(&ask(&mut mute, 9 * S, 1, 0, 1)), S / 10);
    }

    #[test]
    fn an_answer_that_is_held_back_comes_in_front_of_the_next() {
        for (to, same) in [(Recipient::Same, true), (Recipient::Newest, false)] {
            let late = Effect::Late { after: None, to };
            let mut engine = engine(vec![Fault::new(late).units([2])]);
            assert_eq!(ask(&mut engine, S, 2, 0, 1), Script::default());
            let asked = Asked {
                transaction: 9,
                unit: 1,
                code: 3,
                read: Err(1),
            };
            let answer = |engine: &mut Engine, connection| {
                let steps = engine
                    .respond(S, connection, &asked, Some(Answer::exception(&asked, 1)))
                    .steps;
                let first = |step: &Step| match step {
                    Step::Send(bytes) => bytes[1],
                    other => panic!("{other:?}"),
                };
                steps.iter().map(first).collect::<Vec<_>>()
            };
            let other = if same { vec![9] } else { vec![2, 9] };
            assert_eq!(answer(&mut engine, 2), other, "another connection, {to:?}");
            let mine = if same { vec![2, 9] } else { vec![9] };
            assert_eq!(answer(&mut engine, 1), mine, "the same connection, {to:?}");
            assert_eq!(answer(&mut engine, 1), [9]);
            let _ = ask(&mut engine, S, 2, 0, 1);
            engine.forget(1);
            assert_eq!(engine.held.len(), usize::from(!same));
        }
    }

    #[test]
    fn connections_beyond_the_limit_fare_as_told() {
        for (limit, beyond, fates) in [
            (1, Beyond::Refuse, [Admission::Serve, Admission::Refuse]),
            (1, Beyond::Ignore, [Admission::Serve, Admission::Ignore]),
            (
                1,
                Beyond::CloseOldest,
                [Admission::Serve, Admission::ServeInsteadOfOldest],
            ),
            (2, Beyond::Refuse, [Admission::Serve, Admission::Serve]),
            (0, Beyond::CloseOldest, [Admission::Refuse, Admission::Refuse]),
        ] {
            let mut engine = engine(vec![Fault::new(Effect::Connections { limit, beyond }).from(S)]);
            assert_eq!([0, 1].map(|served| engine.admit(S, served)), fates);
            assert_eq!(engine.admit(S / 2, 9), Admission::Serve);
            let reset = ask(&mut engine, S, 1, 0, 1).steps == [Step::Reset];
            assert_eq!(reset, limit == 0, "an endpoint that is down answers nobody");
        }
    }
}
