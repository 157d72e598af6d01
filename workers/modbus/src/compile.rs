//! The checks of [`CompiledMap::compile`], in the order of the map: the limits, the sentinels, each value,
//! then what concerns several values at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use corrente_crds::profile::{Invalid, Register, RegisterMap, ValueType};
use corrente_record::RESERVED;

use crate::{
    decimal::Decimal,
    map::{
        Base, CompiledMap, CompiledValue, Limits, MAX_REGISTERS, MapProblem, NamedRange, Sentinel, is_bits,
        type_bits, type_name,
    },
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
        .filter_map(|register| value(map, register, &sentinels, &mut problems))
        .collect();
    names(map, metrics, &mut problems);
    let mut named: Vec<NamedRange> = values.iter().flat_map(parts).collect();
    named.sort_unstable();
    named.dedup();
    if !metrics.is_empty() {
        values.retain(|value| metrics.iter().any(|metric| **metric == *value.name));
    }
    let compiled = CompiledMap {
        values,
        base,
        limits,
        named,
    };
    groups(&compiled, &mut problems);
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
    if value & !mask != 0 {
        return Err(format!(
            "the value {:#x} has bits outside its mask {mask:#x}, so it never matches",
            value
        ));
    }
    Ok(Sentinel { mask, value })
}

fn value(
    map: &RegisterMap,
    register: &Register,
    sentinels: &[(ValueType, Sentinel)],
    problems: &mut Problems,
) -> Option<CompiledValue> {
    let before = problems.0.len();
    let name = register.name.as_str();
    let value_type = register.value_type;
    let type_name = type_name(value_type);
    let mut say = |message: String| problems.add(name, message);

    let bits = is_bits(register.function);
    let count = match value_type {
        ValueType::String => register.length.and_then(|length| u16::try_from(length).ok()),
        _ => Some(type_bits(value_type).map_or(1, |bits| (bits / 16) as u16)),
    };
    match (value_type, count) {
        (ValueType::String, None) => say("a string needs a length, in registers".to_owned()),
        (ValueType::String, Some(length)) if !(1..=MAX_REGISTERS).contains(&length) => say(format!(
            "the length is {length} registers; one read carries 1 to {MAX_REGISTERS}"
        )),
        (ValueType::String, _) => {}
        _ if register.length.is_some() => {
            say(format!("length is for strings only; a {type_name} has its own"))
        }
        _ => {}
    }
    match (bits, value_type, register.bit) {
        (true, ValueType::Bool, Some(_)) => {
            say("a coil or discrete input is one bit already; drop `bit`".to_owned());
        }
        (true, ValueType::Bool, None) => {}
        (true, ..) => say(format!(
            "coils and discrete inputs hold bits, not a {type_name}; use type bool, or function holding or input"
        )),
        (false, ValueType::Bool, None) => {
            say("a bool in a register needs `bit`, 0 (least significant) to 15".to_owned());
        }
        (false, ValueType::Bool, Some(bit)) if !(0..=15).contains(&bit) => {
            say(format!("bit is {bit}; a register has bits 0 to 15"));
        }
        (false, ValueType::Bool, Some(_)) => {}
        (false, _, Some(_)) => say(format!("bit is for type bool; this is a {type_name}")),
        (false, _, None) => {}
    }
    let number = type_bits(value_type).is_some();
    if !number {
        for (field, given) in [
            ("scale", register.scale.is_some()),
            ("offset", register.offset.is_some()),
            ("scaleFrom", register.scale_from.is_some()),
            ("wordOrder", register.word_order.is_some()),
        ] {
            if given {
                say(format!("{field} is for numbers; a {type_name} has none"));
            }
        }
    }
    let scale = register.scale.and_then(|scale| match Decimal::from_f64(scale) {
        Some(decimal) if decimal.mantissa() != 0 => Some(decimal),
        Some(_) => {
            say("scale is 0, which makes every value 0; leave it out for 1".to_owned());
            None
        }
        None => {
            say("scale is not a number".to_owned());
            None
        }
    });
    let offset = register.offset.and_then(|offset| {
        let decimal = Decimal::from_f64(offset);
        if decimal.is_none() {
            say("offset is not a number".to_owned());
        }
        decimal.filter(|decimal| decimal.mantissa() != 0)
    });
    let address = u16::try_from(register.address).ok();
    if address.is_none() {
        say(format!(
            "address is {}; addresses are zero-based, 0 to 65535",
            register.address
        ));
    }
    if let (Some(address), Some(count)) = (address, count)
        && u32::from(address) + u32::from(count) > 65536
    {
        say(format!(
            "it takes {count} registers from {address}, beyond the last address 65535"
        ));
    }
    let scale_from = register.scale_from.and_then(|from| {
        let address = u16::try_from(from.address).ok();
        if address.is_none() {
            say(format!(
                "scaleFrom.address is {}; addresses are zero-based, 0 to 65535",
                from.address
            ));
        }
        address
    });
    // SunSpec maps live in holding registers. Source: SunSpec Information Model Specification, 6.
    if map.base.sunspec_model.is_some() && register.function != corrente_crds::profile::Function::Holding {
        say("SunSpec models are in holding registers; set function: holding".to_owned());
    }
    if problems.0.len() > before {
        return None;
    }
    Some(CompiledValue {
        name: name.into(),
        function: register.function,
        address: address?,
        count: count?,
        value_type,
        bit: register.bit.and_then(|bit| u8::try_from(bit).ok()),
        byte_order: register.byte_order.unwrap_or(map.byte_order),
        word_order: register.word_order.unwrap_or(map.word_order),
        // A scale of 1 is no scale: the value stays what it is.
        scale: scale.filter(|scale| scale.as_integer() != Some(1)),
        offset,
        scale_from,
        unit: register.unit.as_deref().map(Arc::from),
        kind: register.kind,
        invalid: sentinels
            .iter()
            .filter(|(of, _)| *of == value_type)
            .map(|(_, sentinel)| *sentinel)
            .collect(),
        coherent: register.coherent.as_deref().map(Arc::from),
    })
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
        if let Err(why) = range::request(map, value.range()) {
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
            && let Err(why) = range::request(map, hull)
        {
            problems.add(
                &first.name,
                format!("the group \"{group}\" cannot be read in one request: {why}"),
            );
        }
    }
}
