//! Whether faults can come about in the meters that are simulated, and what to change where they cannot: a
//! name that nothing has, or a condition that the effect does not know, would otherwise go unnoticed.

use std::collections::BTreeMap;

use corrente_config::closest;

use super::{Effect, Fault, Faults, Rim};
use crate::wire::Framing;

/// What a fault can be about at one endpoint.
#[derive(Clone, Debug)]
pub struct Scene {
    /// The endpoint's name.
    pub name: String,
    /// Its frames.
    pub framing: Framing,
    /// The units of its meters, by name.
    pub meters: BTreeMap<String, u8>,
    /// The names of the counters of its meters.
    pub counters: Vec<String>,
}

/// A fault that cannot come about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("fault {number} ({effect}): {message}")]
pub struct FaultProblem {
    /// Which one, from 1.
    pub number: usize,
    /// What it was to do.
    pub effect: String,
    /// Why it cannot, and what to change.
    pub message: String,
}

/// Checks all faults.
///
/// # Errors
/// Every problem there is.
pub fn check(faults: &Faults, scenes: &[Scene]) -> Result<(), Vec<FaultProblem>> {
    let mut problems = Vec::new();
    for (number, fault) in (1..).zip(&faults.list) {
        let found = names(fault, scenes)
            .into_iter()
            .chain(conditions(fault))
            .chain(numbers(fault))
            .chain(frames(fault, scenes));
        problems.extend(found.map(|message| FaultProblem {
            number,
            effect: fault.effect.to_string(),
            message,
        }));
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(problems)
    }
}

/// The endpoints that a fault is of, by those that it names.
fn here<'a>(fault: &'a Fault, scenes: &'a [Scene]) -> impl Iterator<Item = &'a Scene> {
    let named = &fault.place.endpoints;
    scenes
        .iter()
        .filter(move |scene| named.is_empty() || named.contains(&scene.name))
}

fn names(fault: &Fault, scenes: &[Scene]) -> Vec<String> {
    let place = &fault.place;
    let mut found = Vec::new();
    let endpoints: Vec<&str> = scenes.iter().map(|scene| scene.name.as_str()).collect();
    for name in place
        .endpoints
        .iter()
        .filter(|name| !endpoints.contains(&name.as_str()))
    {
        found.push(unknown("endpoint", name, &endpoints));
    }
    if !found.is_empty() {
        return found;
    }
    let meters = |scenes: &mut dyn Iterator<Item = &'_ Scene>| -> Vec<String> {
        scenes.flat_map(|scene| scene.meters.keys().cloned()).collect()
    };
    let (all, mine) = (meters(&mut scenes.iter()), meters(&mut here(fault, scenes)));
    for name in place.meters.iter().filter(|name| !mine.contains(name)) {
        found.push(if all.contains(name) {
            format!(
                "meter \"{name}\" is not behind {}: name its endpoint, or none",
                place.endpoints.join(", ")
            )
        } else {
            unknown("meter", name, &all.iter().map(String::as_str).collect::<Vec<_>>())
        });
    }
    // Silence is also for units that are not there, which a gateway would otherwise answer for.
    if fault.effect != Effect::Silence {
        for unit in &place.units {
            if !here(fault, scenes).any(|scene| scene.meters.values().any(|known| known == unit)) {
                found.push(format!("no meter there has unit id {unit}: correct `units`"));
            }
        }
    }
    let counters: Vec<&str> = here(fault, scenes)
        .flat_map(|scene| scene.counters.iter().map(String::as_str))
        .collect();
    for name in place
        .metrics
        .iter()
        .filter(|name| !counters.contains(&name.as_str()))
    {
        found.push(unknown("counter", name, &counters));
    }
    found
}

fn unknown(what: &str, name: &str, known: &[&str]) -> String {
    match closest(name, known) {
        Some(meant) => format!("there is no {what} \"{name}\"; did you mean \"{meant}\"?"),
        None if known.len() <= 20 => {
            format!("there is no {what} \"{name}\": there are {}", known.join(", "))
        }
        None => format!("there is no {what} \"{name}\": correct the name"),
    }
}

/// What is said and would be ignored.
fn conditions(fault: &Fault) -> Vec<String> {
    let (place, when) = (&fault.place, &fault.when);
    let window = when.from.is_some() || when.until.is_some();
    let per_request = when.every.is_some() || when.times.is_some() || when.chance.is_some();
    let reads = place.registers.is_some() || place.function.is_some() || place.longer_than.is_some();
    let units = !place.meters.is_empty() || !place.units.is_empty();
    let mut found = Vec::new();
    let mut refuse = |said: bool, fields: &str, why: &str| {
        if said {
            found.push(format!("{why}: remove {fields}"));
        }
    };
    if fault.effect.is_of_meters() {
        let why = "this changes the meter itself, at a time of its own (`after`)";
        refuse(window || per_request, "from, until, every, times and chance", why);
        refuse(
            reads,
            "registers, function and longerThan, or name `metrics`",
            why,
        );
    } else {
        refuse(
            !place.metrics.is_empty(),
            "metrics, or name `registers`",
            "only counters are told apart by metric",
        );
    }
    if fault.effect.is_of_endpoints() {
        let why = "this is of the endpoint as a whole";
        refuse(units, "meters and units, and name `endpoints`", why);
        refuse(reads, "registers, function and longerThan", why);
        refuse(per_request, "every, times and chance", why);
    }
    let swap = matches!(fault.effect, Effect::MeterSwap { .. });
    refuse(
        swap && !place.metrics.is_empty(),
        "metrics",
        "a meter is swapped as a whole",
    );
    found
}

fn numbers(fault: &Fault) -> Vec<String> {
    let when = &fault.when;
    let mut found = Vec::new();
    let mut ask = |wrong: bool, message: &str| {
        if wrong {
            found.push(message.to_owned());
        }
    };
    let backwards = when
        .from
        .zip(when.until)
        .is_some_and(|(from, until)| from >= until);
    ask(
        backwards,
        "`until` is not after `from`, so it never comes: write a later one",
    );
    ask(
        when.every == Some(0),
        "`every` counts requests from 1: write 2 for every second one",
    );
    let odd = when.chance.is_some_and(|chance| !(0.0..=1.0).contains(&chance));
    ask(odd, "`chance` is a probability: write a number from 0 to 1");
    let registers = fault.place.registers.as_ref();
    ask(
        registers.is_some_and(std::ops::RangeInclusive::is_empty),
        "`registers` ends before it begins: write from the lower address to the higher",
    );
    match fault.effect {
        Effect::Delay(least, most) => ask(least > most, "`max` is less than `min`: exchange them"),
        Effect::Exception(code) => ask(
            !(1..=127).contains(&code),
            "an exception's code is 1 to 127: write one such as 2, 4, 6 or 11",
        ),
        Effect::Gateway {
            exception: Some(code),
            ..
        } => ask(
            !(1..=127).contains(&code),
            "an exception's code is 1 to 127: write 10 or 11, as gateways do",
        ),
        Effect::WrongTransaction(0)
        | Effect::WrongUnit(0)
        | Effect::WrongByteCount(0)
        | Effect::WrongCount(0) => {
            ask(true, "by 0 it is not wrong: write another number");
        }
        Effect::RollOver {
            at: Rim::Bits(bits), ..
        } => {
            ask(
                !(1..=64).contains(&bits),
                "`width` is in bits: write a number from 1 to 64",
            );
        }
        Effect::RollOver {
            at: Rim::Value(0), ..
        } => ask(true, "`limit` is 0: write what it counts up to"),
        _ => {}
    }
    found
}

fn frames(fault: &Fault, scenes: &[Scene]) -> Option<String> {
    let (wanted, message) = match fault.effect {
        Effect::WrongTransaction(_) => (
            Framing::Mbap,
            "RTU frames have no transaction id: name an endpoint with transport tcp or tls",
        ),
        Effect::BadCrc => (
            Framing::Rtu,
            "Modbus TCP has no checksum: name an endpoint with transport rtu-over-tcp",
        ),
        _ => return None,
    };
    let none = !here(fault, scenes).any(|scene| scene.framing == wanted);
    none.then(|| message.to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{super::Beyond, *};

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn what_cannot_come_about_is_said() {
        let scene = |name: &str, framing, meters: &[(&str, u8)]| Scene {
            name: name.to_owned(),
            framing,
            meters: meters
                .iter()
                .map(|(name, unit)| ((*name).to_owned(), *unit))
                .collect(),
            counters: vec!["energy".to_owned()],
        };
        let scenes = [
            scene("east", Framing::Rtu, &[("feeder-01", 1), ("feeder-02", 2)]),
            scene("west", Framing::Mbap, &[("chiller", 10)]),
        ];
        let silence = || Fault::new(Effect::Silence);
        let reset = || Fault::new(Effect::CounterReset { after: S });
        let of_metric = |mut fault: Fault, name: &str| {
            fault.place.metrics.push(name.to_owned());
            fault
        };
        let limit = || {
            Fault::new(Effect::Connections {
                limit: 1,
                beyond: Beyond::Refuse,
            })
        };
        for (fault, says) in [
            (silence(), ""),
            (silence().units([77]), ""),
            (Fault::new(Effect::BadCrc).endpoint("east"), ""),
            (of_metric(reset().meter("chiller"), "energy"), ""),
            (limit().endpoint("east").from(S), ""),
            (
                silence().endpoint("esat"),
                "there is no endpoint \"esat\"; did you mean \"east\"?",
            ),
            (
                silence().endpoint("north"),
                "there is no endpoint \"north\": there are east, west",
            ),
            (
                silence().meter("feeder-2"),
                "there is no meter \"feeder-2\"; did you mean \"feeder-02\"?",
            ),
            (
                silence().endpoint("west").meter("feeder-01"),
                "meter \"feeder-01\" is not behind west: name its endpoint, or none",
            ),
            (
                Fault::new(Effect::Exception(2)).endpoint("west").units([1]),
                "no meter there has unit id 1: correct `units`",
            ),
            (
                of_metric(reset(), "enrgy"),
                "there is no counter \"enrgy\"; did you mean \"energy\"?",
            ),
            (of_metric(silence(), "energy"), "remove metrics"),
            (reset().from(S), "remove from, until"),
            (reset().registers(1..=2), "name `metrics`"),
            (limit().units([1]), "name `endpoints`"),
            (limit().chance(0.5), "remove every"),
            (
                of_metric(Fault::new(Effect::MeterSwap { after: S }), "energy"),
                "as a whole",
            ),
            (silence().from(2 * S).until(S), "`until` is not after `from`"),
            (silence().every(0), "write 2 for every second"),
            (silence().chance(1.5), "from 0 to 1"),
            (Fault::new(Effect::Delay(2 * S, S)), "exchange them"),
            (Fault::new(Effect::Exception(0)), "1 to 127"),
            (Fault::new(Effect::WrongUnit(0)), "by 0 it is not wrong"),
            (
                Fault::new(Effect::RollOver {
                    at: Rim::Bits(65),
                    after: None,
                }),
                "from 1 to 64",
            ),
            (
                Fault::new(Effect::BadCrc).endpoint("west"),
                "Modbus TCP has no checksum",
            ),
            (
                Fault::new(Effect::WrongTransaction(1)).endpoint("east"),
                "have no transaction id",
            ),
        ] {
            let found = check(&Faults::new(0).with(fault.clone()), &scenes);
            match found {
                Ok(()) => assert_eq!(says, "", "{fault}"),
                Err(problems) => {
                    assert!(!says.is_empty() && problems.len() == 1, "{fault}: {problems:?}");
                    let text = problems[0].to_string();
                    assert!(text.starts_with("fault 1 (") && text.contains(says), "{text}");
                }
            }
        }
    }
}
