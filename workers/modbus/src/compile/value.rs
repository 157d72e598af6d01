//! The checks of one register, and what it becomes: first its shape (type, length, bit), then its place,
//! then its arithmetic.

use std::sync::Arc;

use corrente_crds::profile::{Function, Register, RegisterMap, ValueType};

use super::Problems;
use crate::{
    decimal::Decimal,
    map::{CompiledValue, MAX_REGISTERS, Sentinel, is_bits, type_bits, type_name},
};

/// One register, compiled; `None` where something is wrong with it, which then is in `problems`.
pub(super) fn compile(
    map: &RegisterMap,
    register: &Register,
    sentinels: &[(ValueType, Sentinel)],
    problems: &mut Problems,
) -> Option<CompiledValue> {
    let before = problems.0.len();
    let mut say = |message: String| problems.add(&register.name, message);
    let count = shape(register, &mut say);
    let (address, scale_from) = place(map, register, count, &mut say);
    let (scale, offset) = arithmetic(register, &mut say);
    if problems.0.len() > before {
        return None;
    }
    Some(CompiledValue {
        name: register.name.as_str().into(),
        function: register.function,
        address: address?,
        count: count?,
        value_type: register.value_type,
        bit: register.bit.and_then(|bit| u8::try_from(bit).ok()),
        byte_order: register.byte_order.unwrap_or(map.byte_order),
        word_order: register.word_order.unwrap_or(map.word_order),
        scale,
        offset,
        scale_from,
        unit: register.unit.as_deref().map(Arc::from),
        kind: register.kind,
        invalid: sentinels
            .iter()
            .filter(|(of, _)| *of == register.value_type)
            .map(|(_, sentinel)| *sentinel)
            .collect(),
        coherent: register.coherent.as_deref().map(Arc::from),
    })
}

/// Whether type, length and bit go together; the registers it takes.
fn shape(register: &Register, say: &mut impl FnMut(String)) -> Option<u16> {
    let value_type = register.value_type;
    let name = type_name(value_type);
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
        _ if register.length.is_some() => say(format!("length is for strings only; a {name} has its own")),
        _ => {}
    }
    match (is_bits(register.function), value_type, register.bit) {
        (true, ValueType::Bool, Some(_)) => {
            say("a coil or discrete input is one bit already; drop `bit`".to_owned());
        }
        (true, ValueType::Bool, None) => {}
        (true, ..) => say(format!(
            "coils and discrete inputs hold bits, not a {name}; use type bool, or function holding or input"
        )),
        (false, ValueType::Bool, None) => {
            say("a bool in a register needs `bit`, 0 (least significant) to 15".to_owned());
        }
        (false, ValueType::Bool, Some(bit)) if !(0..=15).contains(&bit) => {
            say(format!("bit is {bit}; a register has bits 0 to 15"));
        }
        (false, ValueType::Bool, Some(_)) => {}
        (false, _, Some(_)) => say(format!("bit is for type bool; this is a {name}")),
        (false, _, None) => {}
    }
    count
}

/// Whether it lies in the table's address space; its address, and that of its scale factor.
fn place(
    map: &RegisterMap,
    register: &Register,
    count: Option<u16>,
    say: &mut impl FnMut(String),
) -> (Option<u16>, Option<u16>) {
    let mut in_range = |field: &str, address: i32| {
        let in_range = u16::try_from(address).ok();
        if in_range.is_none() {
            say(format!(
                "{field} is {address}; addresses are zero-based, 0 to 65535"
            ));
        }
        in_range
    };
    let address = in_range("address", register.address);
    let scale_from = register
        .scale_from
        .and_then(|from| in_range("scaleFrom.address", from.address));
    if let (Some(address), Some(count)) = (address, count)
        && u32::from(address) + u32::from(count) > 65536
    {
        say(format!(
            "it takes {count} registers from {address}, beyond the last address 65535"
        ));
    }
    // Source: SunSpec Information Model Specification, 6.
    if map.base.sunspec_model.is_some() && register.function != Function::Holding {
        say("SunSpec models are in holding registers; set function: holding".to_owned());
    }
    (address, scale_from)
}

/// Scale and offset as decimals; `None` where they change nothing.
fn arithmetic(register: &Register, say: &mut impl FnMut(String)) -> (Option<Decimal>, Option<Decimal>) {
    let name = type_name(register.value_type);
    if type_bits(register.value_type).is_none() {
        for (field, given) in [
            ("scale", register.scale.is_some()),
            ("offset", register.offset.is_some()),
            ("scaleFrom", register.scale_from.is_some()),
            ("wordOrder", register.word_order.is_some()),
        ] {
            if given {
                say(format!("{field} is for numbers; a {name} has none"));
            }
        }
    }
    let mut decimal = |field: &str, number: Option<f64>| {
        let decimal = number.map(Decimal::from_f64);
        if decimal == Some(None) {
            say(format!("{field} is not a number"));
        }
        decimal.flatten()
    };
    let scale = decimal("scale", register.scale);
    let offset = decimal("offset", register.offset);
    if scale.is_some_and(|scale| scale.mantissa() == 0) {
        say("scale is 0, which makes every value 0; leave it out for 1".to_owned());
    }
    (
        scale.filter(|scale| scale.as_integer() != Some(1)),
        offset.filter(|offset| offset.mantissa() != 0),
    )
}
