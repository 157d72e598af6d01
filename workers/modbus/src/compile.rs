//! The checks of [`CompiledMap::compile`], in the order of the map: the limits, the sentinels, each value,
//! then what concerns several values at once.

mod value;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use corrente_crds::profile::{Invalid, RegisterMap, ValueType};
use corrente_record::RESERVED;

use crate::{
    decode::Brief,
    map::{
        Base, CompiledMap, CompiledValue, Limits, MAX_REGISTERS, MapProblem, NamedRange, Sentinel, type_bits,
        type_name,
    },
    plan::Constraints,
    range,
};

/// See [`CompiledMap::compile`].
pub(crate) fn compile(map: &RegisterMap, metrics: &[String]) -> Result<CompiledMap, Vec<MapProblem>> {
    let mut problems = Problems::default();
    let base = base(map, &mut problems);
    let limits = limits(map, &mut problems);
    let sentinels = sentinels(map, &mut problems);
    let mut values: Vec<CompiledValue> = map
        .registers
        .iter()
        .filter_map(|register| value::compile(map, register, &sentinels, &mut problems))
        .collect();
    names(map, metrics, &mut problems);
    let complete = values.len() == map.registers.len();
    let mut named: Vec<NamedRange> = values.iter().flat_map(parts).collect();
    named.sort_unstable();
    named.dedup();
    if !metrics.is_empty() {
        values.retain(|value| metrics.iter().any(|metric| **metric == *value.name));
    }
    let compiled = CompiledMap {
        briefs: values.iter().map(Brief::of).collect(),
        values,
        base,
        limits,
        named,
    };
    // A register that is wrong by itself would show up again, as a gap in what the map names.
    if complete {
        groups(&compiled, &mut problems);
    }
    if problems.0.is_empty() {
        Ok(compiled)
    } else {
        Err(problems.0)
    }
}

#[derive(Default)]
struct Problems(Vec<MapProblem>);

impl Problems {
    fn add(&mut self, register: &str, message: impl Into<String>) {
        self.0.push(MapProblem {
            register: register.to_owned(),
            message: message.into(),
        });
    }
}

fn base(map: &RegisterMap, problems: &mut Problems) -> Base {
    match map.base.sunspec_model {
        None => Base::Absolute,
        Some(model) => match u16::try_from(model) {
            // 0xFFFF ends the chain, and no model has the number 0.
            Ok(number @ 1..=0xfffe) => Base::SunspecModel(number),
            _ => {
                problems.add(
                    "",
                    format!("base.sunspecModel is {model}; models have numbers from 1 to 65534"),
                );
                Base::Absolute
            }
        },
    }
}

fn limits(map: &RegisterMap, problems: &mut Problems) -> Limits {
    let given = &map.limits;
    let max = given.max_registers_per_read.unwrap_or(i32::from(MAX_REGISTERS));
    let max_registers = match u16::try_from(max) {
        Ok(max @ 1..=MAX_REGISTERS) => max,
        _ => {
            problems.add(
                "",
                format!("limits.maxRegistersPerRead is {max}; Modbus allows 1 to {MAX_REGISTERS}"),
            );
            MAX_REGISTERS
        }
    };
    if given.even_register_count && max_registers == 1 {
        problems.add(
            "",
            "limits: maxRegistersPerRead is 1 and evenRegisterCount is set, so no read is possible; \
             allow 2 registers or drop evenRegisterCount",
        );
    }
    Limits {
        max_registers,
        even_count: given.even_register_count,
        whole_values: given.whole_value_reads,
        pause: given
            .inter_request_delay
            .map_or(Duration::ZERO, |delay| delay.as_std()),
    }
}

fn sentinels(map: &RegisterMap, problems: &mut Problems) -> Vec<(ValueType, Sentinel)> {
    map.invalid
        .iter()
        .enumerate()
        .filter_map(|(i, invalid)| match sentinel(invalid) {
            Ok(sentinel) => Some((invalid.value_type, sentinel)),
            Err(message) => {
                problems.add("", format!("invalid[{i}]: {message}"));
                None
            }
        })
        .collect()
}

fn sentinel(invalid: &Invalid) -> Result<Sentinel, String> {
    let name = type_name(invalid.value_type);
    let bits = type_bits(invalid.value_type)
        .ok_or_else(|| format!("a {name} has no raw value to compare; drop this entry"))?;
    let all = u64::MAX >> (64 - bits);
    let hexadecimal = |text: &str| {
        let digits = text
            .strip_prefix("0x")
            .ok_or_else(|| format!("\"{text}\" is not hexadecimal; write it as 0x8000"))?;
        let number = u64::from_str_radix(digits, 16)
            .map_err(|_| format!("\"{text}\" is not a hexadecimal number of up to 16 digits"))?;
        if number > all {
            return Err(format!("{text} is wider than the {bits} bits of a {name}"));
        }
        Ok(number)
    };
    let value = hexadecimal(&invalid.value)?;
    let mask = invalid
        .mask
        .as_deref()
        .map(hexadecimal)
        .transpose()?
        .unwrap_or(all);
    if mask == 0 {
        return Err(
            "the mask is 0, so every value of this type would be invalid; set the bits to compare".to_owned(),
        );
    }
    if value & !mask != 0 {
        return Err(format!(
            "the value {:#x} has bits outside its mask {mask:#x}, so it never matches",
            value
        ));
    }
    Ok(Sentinel { mask, value })
}

fn names(map: &RegisterMap, metrics: &[String], problems: &mut Problems) {
    let mut seen = BTreeSet::new();
    for register in &map.registers {
        let name = register.name.as_str();
        if !seen.insert(name) {
            problems.add(name, "two registers have this name; rename one");
        }
        if RESERVED.contains(&name) {
            problems.add(
                name,
                "the name is a field of every record; choose another, such as one with a prefix",
            );
        }
    }
    for metric in metrics {
        if !seen.contains(metric.as_str()) {
            problems.add(
                metric,
                "the register map has no such metric; correct the name in `metrics`, or add the register",
            );
        }
    }
    if map.registers.is_empty() {
        problems.add("", "the register map has no registers");
    }
}

/// The ranges that a value names: itself and its scale factor.
fn parts(value: &CompiledValue) -> impl Iterator<Item = NamedRange> {
    let own = NamedRange {
        function: value.function,
        start: u32::from(value.address),
        end: u32::from(value.address) + u32::from(value.count),
    };
    let factor = value.scale_from.map(|address| NamedRange {
        function: value.function,
        start: u32::from(address),
        end: u32::from(address) + 1,
    });
    [Some(own), factor].into_iter().flatten()
}

/// What must come from one request has to fit in one.
fn groups(map: &CompiledMap, problems: &mut Problems) {
    let mut groups: BTreeMap<&str, Vec<&CompiledValue>> = BTreeMap::new();
    for value in &map.values {
        if let Some(group) = &value.coherent {
            groups.entry(group).or_default().push(value);
        }
        if let Err(why) = range::request(map, value.range(), &Constraints::NONE) {
            let what = if value.scale_from.is_some() {
                "the value and its scale factor"
            } else {
                "the value"
            };
            problems.add(
                &value.name,
                format!("{what} cannot be read in one request: {why}"),
            );
        }
    }
    for (group, members) in groups {
        let Some((first, rest)) = members.split_first() else {
            continue;
        };
        let mut hull = first.range();
        for member in rest {
            let range = member.range();
            if range.function != hull.function {
                problems.add(
                    &member.name,
                    format!(
                        "the group \"{group}\" is spread over two tables, and one request reads one; \
                         give its members the same function"
                    ),
                );
                continue;
            }
            hull.start = hull.start.min(range.start);
            hull.end = hull.end.max(range.end);
        }
        if !rest.is_empty()
            && let Err(why) = range::request(map, hull, &Constraints::NONE)
        {
            problems.add(
                &first.name,
                format!("the group \"{group}\" cannot be read in one request: {why}"),
            );
        }
    }
}
