//! Registers to values and back: tables of cases that were worked out by hand, and round trips of any.

use corrente_crds::profile::{Function, Invalid, Order, Register, RegisterMap, ScaleFrom, ValueType};
use corrente_modbus::{Answer, BadValue, CompiledMap, CostModel, ReadPlan, RegisterImage, decode, encode};
use corrente_record::Value;
use proptest::prelude::*;

use crate::support::{compiled, map, register};

/// Decodes the one value of a map from the words of its one request.
fn decoded(map: &CompiledMap, words: &[u16]) -> Result<Value, BadValue> {
    let plan = ReadPlan::build(map, &CostModel::default());
    assert_eq!(plan.requests.len(), 1);
    let mut result = None;
    decode(map, &plan.requests[0], words, &mut |_, value| {
        result = Some(value)
    });
    result.unwrap()
}

fn one(value_type: ValueType, change: impl FnOnce(&mut Register)) -> RegisterMap {
    let mut register = register("x", 100, value_type);
    change(&mut register);
    map(vec![register])
}

#[test]
fn words_become_values() {
    let plain = |value_type| one(value_type, |_| {});
    let scaled = |value_type, scale| one(value_type, |r| r.scale = Some(scale));
    for (map, words, value) in [
        (plain(ValueType::U16), vec![0xffff], Value::Int(65_535)),
        (plain(ValueType::I16), vec![0xffff], Value::Int(-1)),
        (plain(ValueType::U32), vec![0x8000, 1], Value::Int(0x8000_0001)),
        (
            plain(ValueType::I32),
            vec![0x8000, 0],
            Value::Int(i64::from(i32::MIN)),
        ),
        (plain(ValueType::U64), vec![0xffff; 4], Value::UInt(u64::MAX)),
        (plain(ValueType::U64), vec![0, 0, 0, 7], Value::UInt(7)),
        (
            plain(ValueType::I64),
            vec![0xffff, 0xffff, 0xffff, 0xfffe],
            Value::Int(-2),
        ),
        // 230.1 as a single is 0x4366199A, which is 230.10000610351562 as a double.
        (plain(ValueType::F32), vec![0x4366, 0x199a], Value::Float(230.1)),
        (
            plain(ValueType::F64),
            vec![0x406c, 0xc333, 0x3333, 0x3333],
            Value::Float(230.1),
        ),
        (plain(ValueType::F32), vec![0x8000, 0], Value::Float(0.0)),
        (scaled(ValueType::U16, 0.1), vec![2301], Value::Float(230.1)),
        // 3 * 0.1 in doubles would be 0.30000000000000004.
        (scaled(ValueType::U16, 0.1), vec![3], Value::Float(0.3)),
        (scaled(ValueType::I16, 0.001), vec![0xfc40], Value::Float(-0.96)),
        (scaled(ValueType::U32, 100.0), vec![1, 0], Value::Int(6_553_600)),
        (
            scaled(ValueType::U64, 10.0),
            vec![0, 0, 1, 0],
            Value::UInt(655_360),
        ),
        // 1.1 kW as a single, in W: 1100, not 1100.0000238418579.
        (
            scaled(ValueType::F32, 1000.0),
            vec![0x3f8c, 0xcccd],
            Value::Float(1100.0),
        ),
        (
            one(ValueType::I16, |r| {
                (r.scale, r.offset) = (Some(0.1), Some(-273.15))
            }),
            vec![2982],
            Value::Float(25.05),
        ),
    ] {
        assert_eq!(
            decoded(&compiled(&map), &words),
            Ok(value),
            "{:?} {words:x?}",
            map.registers[0]
        );
    }
}

#[test]
fn orders_are_independent() {
    // 230.1 as a single is 43 66 19 9A; big/big is ABCD, and so on.
    for (byte_order, word_order, words) in [
        (Order::Big, Order::Big, [0x4366, 0x199a]),
        (Order::Big, Order::Little, [0x199a, 0x4366]),
        (Order::Little, Order::Big, [0x6643, 0x9a19]),
        (Order::Little, Order::Little, [0x9a19, 0x6643]),
    ] {
        let mut map = one(ValueType::F32, |_| {});
        (map.byte_order, map.word_order) = (byte_order, word_order);
        assert_eq!(decoded(&compiled(&map), &words), Ok(Value::Float(230.1)));
    }
    let mut map = one(ValueType::U64, |r| r.word_order = Some(Order::Little));
    map.byte_order = Order::Little;
    assert_eq!(
        decoded(&compiled(&map), &[0x0100, 0x0200, 0, 0]),
        Ok(Value::UInt(0x0002_0001))
    );
}

#[test]
fn what_is_no_value_has_a_reason() {
    let sentinel = |value_type, value: &str, mask: Option<&str>| RegisterMap {
        invalid: vec![Invalid {
            value_type,
            value: value.to_owned(),
            mask: mask.map(ToOwned::to_owned),
        }],
        ..one(value_type, |_| {})
    };
    let factor = one(ValueType::I16, |r| {
        r.scale_from = Some(ScaleFrom { address: 101 })
    });
    for (map, words, reason) in [
        (one(ValueType::F32, |_| {}), vec![0x7fc0, 0], "not a number"),
        (one(ValueType::F32, |_| {}), vec![0xff80, 0], "infinite"),
        (one(ValueType::F64, |_| {}), vec![0x7ff8, 0, 0, 1], "not a number"),
        (
            sentinel(ValueType::I16, "0x8000", None),
            vec![0x8000],
            "the meter says: no value",
        ),
        (
            sentinel(ValueType::I32, "0x7FFF0000", Some("0xFFFF0000")),
            vec![0x7fff, 0x1234],
            "the meter says: no value",
        ),
        (
            sentinel(ValueType::F32, "0x7FC00000", None),
            vec![0x7fc0, 0],
            "the meter says: no value",
        ),
        (
            factor.clone(),
            vec![2301, 0x8000],
            "scale factor is not available",
        ),
        (factor, vec![2301, 11], "scale factor 11 is out of range"),
        (
            one(ValueType::U64, |r| r.scale = Some(1000.0)),
            vec![0xffff; 4],
            "does not fit",
        ),
        (
            one(ValueType::F64, |r| r.scale = Some(1000.0)),
            vec![0x7fef, 0xffff, 0xffff, 0xffff],
            "does not fit",
        ),
        (one(ValueType::U32, |_| {}), vec![1], "the answer is too short"),
    ] {
        assert_eq!(decoded(&compiled(&map), &words).unwrap_err().to_string(), reason);
    }
    // The sentinel of one type is a value of another.
    let mut map = sentinel(ValueType::I16, "0x8000", None);
    map.registers[0].value_type = ValueType::U16;
    assert_eq!(decoded(&compiled(&map), &[0x8000]), Ok(Value::Int(0x8000)));
}

#[test]
fn a_scale_factor_is_a_power_of_ten() {
    let map = compiled(&one(ValueType::I16, |r| {
        r.scale_from = Some(ScaleFrom { address: 103 })
    }));
    for (factor, value) in [(0i16, 2301.0), (-1, 230.1), (3, 2_301_000.0), (-10, 2.301e-7)] {
        let words = [2301, 7, 7, factor.cast_unsigned()];
        assert_eq!(decoded(&map, &words), Ok(Value::Float(value)));
    }
}

#[test]
fn text_is_trimmed_and_must_be_printable() {
    let map = compiled(&one(ValueType::String, |r| r.length = Some(3)));
    for (bytes, value) in [
        (b"AB12\0\0", Ok("AB12")),
        (b"AB12  ", Ok("AB12")),
        (b"  A B\0", Ok("A B")),
        (b"\0\0\0\0\0\0", Ok("")),
        (b"\xc3\xa9t\xc3\xa9\0", Ok("\u{e9}t\u{e9}")),
        (b"AB\0CD\0", Err(BadValue::NotText)),
        (b"AB\x01  \0", Err(BadValue::NotText)),
        (b"\xff\xff\xff\xff\xff\xff", Err(BadValue::NotText)),
    ] {
        let words: Vec<u16> = bytes
            .chunks(2)
            .map(|b| u16::from_be_bytes([b[0], b[1]]))
            .collect();
        assert_eq!(
            decoded(&map, &words),
            value.map(|text| Value::Text(text.to_owned())),
            "{bytes:?}"
        );
    }
    let swapped = compiled(&one(ValueType::String, |r| {
        (r.length, r.byte_order) = (Some(1), Some(Order::Little));
    }));
    assert_eq!(decoded(&swapped, &[0x4241]), Ok(Value::Text("AB".to_owned())));
}

#[test]
fn bits_come_from_coils_and_from_registers() {
    let mut coil = register("coil", 9, ValueType::Bool);
    coil.function = Function::Coil;
    let mut bit = register("bit", 20, ValueType::Bool);
    bit.bit = Some(3);
    let map = compiled(&map(vec![bit, coil]));
    let plan = ReadPlan::build(&map, &CostModel::default());
    let mut seen = Vec::new();
    decode(&map, &plan.requests[0], Answer::Bits(&[true]), &mut |i, v| {
        seen.push((i, v))
    });
    decode(&map, &plan.requests[1], &vec![0b1000], &mut |i, v| {
        seen.push((i, v))
    });
    decode(&map, &plan.requests[1], &vec![!0b1000], &mut |i, v| {
        seen.push((i, v))
    });
    let bools = [(1, true), (0, true), (0, false)].map(|(i, b)| (i, Ok(Value::Bool(b))));
    assert_eq!(seen, bools);
}

#[test]
fn a_request_at_a_base_decodes_the_same() {
    let map = compiled(&map(vec![
        register("a", 2, ValueType::U16),
        register("b", 5, ValueType::U16),
    ]));
    let plan = ReadPlan::build(&map, &CostModel::default()).at(40_070).unwrap();
    let mut values = Vec::new();
    decode(&map, &plan.requests[0], &vec![11, 0, 0, 14], &mut |_, value| {
        values.push(value)
    });
    assert_eq!(values, [Ok(Value::Int(11)), Ok(Value::Int(14))]);
}

#[test]
fn what_is_beyond_a_type_stops_at_its_end() {
    for (value_type, scale, value, words) in [
        (ValueType::I16, Some(0.1), Value::Float(1e9), vec![0x7fff]),
        (ValueType::I16, Some(-0.1), Value::Float(1e9), vec![0x8000]),
        (ValueType::U16, None, Value::Int(-5), vec![0]),
        (ValueType::U32, None, Value::Float(1e300), vec![0xffff, 0xffff]),
        (ValueType::I64, None, Value::Float(-1e300), vec![0x8000, 0, 0, 0]),
        (ValueType::U16, Some(0.1), Value::Float(230.14), vec![2301]),
        (ValueType::F32, None, Value::Float(1e300), vec![0x7f7f, 0xffff]),
        (ValueType::F32, None, Value::Float(f64::NAN), vec![0x7fc0, 0]),
    ] {
        let map = compiled(&one(value_type, |r| r.scale = scale));
        let mut image = RegisterImage::new(Function::Holding, 100, map.values[0].count);
        encode(&map, 0, &value, &mut image).unwrap();
        assert_eq!(image.words(), words, "{value_type:?} {value:?}");
    }
}

#[test]
fn a_value_of_the_wrong_sort_is_refused() {
    let map = compiled(&map(vec![
        register("a", 0, ValueType::U16),
        {
            let mut r = register("b", 1, ValueType::Bool);
            r.bit = Some(0);
            r
        },
        {
            let mut r = register("c", 2, ValueType::U16);
            r.scale_from = Some(ScaleFrom { address: 3 });
            r
        },
    ]));
    let mut image = RegisterImage::new(Function::Holding, 0, 4);
    for (index, value, says) in [
        (0, Value::Text("x".to_owned()), "not of the register's type"),
        (0, Value::Float(f64::NAN), "not of the register's type"),
        (1, Value::Int(1), "not of the register's type"),
        (2, Value::Int(1), "the scale factor at address 3 is not set"),
        (3, Value::Int(1), "no value number 3"),
    ] {
        let error = encode(&map, index, &value, &mut image).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
}

fn any_register() -> impl Strategy<Value = Register> {
    use ValueType as T;
    let numbers = vec![T::U16, T::I16, T::U32, T::I32, T::U64, T::I64, T::F32, T::F64];
    let order = || prop::option::of(prop::sample::select(vec![Order::Big, Order::Little]));
    let scales = prop::sample::select(vec![0.1, 0.01, 0.001, 1.0, 10.0, 1000.0, -0.1, 0.25, 3.0]);
    (
        prop::sample::select(numbers),
        order(),
        order(),
        prop::option::of(scales),
        prop::option::of(-50..50i32),
        prop::option::weighted(0.3, -4..4i32),
    )
        .prop_map(|(value_type, byte_order, word_order, scale, offset, factor)| {
            let mut register = register("x", 100, value_type);
            (register.byte_order, register.word_order) = (byte_order, word_order);
            // A double has no digits to spare: scaling one and back may end on its neighbour.
            if value_type != T::F64 {
                register.scale = scale;
                register.offset = offset.map(f64::from);
                register.scale_from = factor.map(|f| ScaleFrom { address: 110 + f });
            }
            register
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn encoding_undoes_decoding(register in any_register(), words in prop::collection::vec(any::<u16>(), 16)) {
        let plain = Register { scale: None, offset: None, scale_from: None, ..register.clone() };
        let map = compiled(&map(vec![register]));
        let plan = ReadPlan::build(&map, &CostModel::default());
        let request = &plan.requests[0];
        let mut words = words[..usize::from(request.count)].to_vec();
        let target = &map.values[0];
        let mut image = RegisterImage::new(Function::Holding, request.address, request.count);
        if let Some(address) = target.scale_from {
            let factor = i16::try_from(i32::from(address) - 110).unwrap();
            image.set_scale_factor(address, target.byte_order, factor);
            let at = usize::from(address - request.address);
            words[at] = image.words()[at];
        }
        let Ok(value) = decoded(&map, &words) else {
            return Ok(());
        };
        encode(&map, 0, &value, &mut image).unwrap();
        let back = decoded(&map, image.words());
        // A double has 53 bits: of a wider raw or scaled value it holds the neighbourhood. And what an
        // offset swallowed of a small single stays swallowed. All else is the same value.
        let own = usize::from(target.address - request.address);
        let raw = decoded(&compiled(&crate::support::map(vec![plain])), &words[own..own + usize::from(target.count)]);
        let exceeds = |value: &Value| value.as_f64().unwrap().abs() >= 2f64.powi(53);
        let wide = target.count == 4 && (exceeds(&value) || raw.is_ok_and(|raw| exceeds(&raw)));
        let (relative, absolute) = match target.value_type {
            ValueType::F32 if target.offset.is_some() => (1e-6, 1e-4),
            ValueType::I64 | ValueType::U64 if wide => (1e-15, 0.0),
            _ => (0.0, 0.0),
        };
        match (value, back) {
            (Value::Float(there), Ok(Value::Float(back))) => {
                let tolerance = there.abs() * relative + absolute;
                prop_assert!((there - back).abs() <= tolerance, "{} {} {:?}", there, back, target);
            }
            (there, back) => prop_assert_eq!(back, Ok(there), "{:?}", target),
        }
    }

    #[test]
    fn text_survives(text in "[!-~]([ -~]{0,8}[!-~])?", byte_order in prop::sample::select(vec![Order::Big, Order::Little])) {
        let map = compiled(&one(ValueType::String, |r| {
            (r.length, r.byte_order) = (Some(6), Some(byte_order));
        }));
        let mut image = RegisterImage::new(Function::Holding, 100, 6);
        encode(&map, 0, &Value::Text(text.clone()), &mut image).unwrap();
        prop_assert_eq!(decoded(&map, image.words()), Ok(Value::Text(text)));
    }

    #[test]
    fn a_window_holds_what_lies_in_it(start in 90u16..110, count in 0u16..12, number in any::<u64>()) {
        let map = compiled(&one(ValueType::U64, |_| {}));
        let mut whole = RegisterImage::new(Function::Holding, 80, 60);
        let mut window = RegisterImage::new(Function::Holding, start, count);
        encode(&map, 0, &Value::UInt(number), &mut whole).unwrap();
        encode(&map, 0, &Value::UInt(number), &mut window).unwrap();
        let at = usize::from(start - 80);
        prop_assert_eq!(window.words(), &whole.words()[at..at + usize::from(count)]);
    }
}
