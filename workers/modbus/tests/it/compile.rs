//! What is wrong with a map is said in a sentence, all of it at once.

use corrente_crds::profile::{Base, Function, Invalid, Limits, Order, RegisterMap, ScaleFrom, ValueType};
use corrente_modbus::{CompiledMap, OutputType, map::MAX_REGISTERS};

use crate::support::{compiled, map, register};

fn problems(map: &RegisterMap, metrics: &[&str]) -> Vec<String> {
    let metrics: Vec<String> = metrics.iter().map(ToString::to_string).collect();
    CompiledMap::compile(map, &metrics)
        .err()
        .unwrap_or_default()
        .into_iter()
        .map(|problem| format!("{}: {}", problem.register, problem.message))
        .collect()
}

#[test]
fn each_mistake_has_its_sentence() {
    let one = |change: fn(&mut corrente_crds::profile::Register)| {
        let mut register = register("x", 0, ValueType::U16);
        change(&mut register);
        map(vec![register])
    };
    for (map, says) in [
        (
            one(|r| r.address = 65536),
            "x: address is 65536; addresses are zero-based",
        ),
        (
            one(|r| (r.address, r.value_type) = (65535, ValueType::U32)),
            "x: it takes 2 registers from 65535",
        ),
        (
            one(|r| r.value_type = ValueType::String),
            "x: a string needs a length",
        ),
        (
            one(|r| (r.value_type, r.length) = (ValueType::String, Some(126))),
            "x: the length is 126 registers",
        ),
        (
            one(|r| r.length = Some(2)),
            "x: length is for strings only; a u16 has its own",
        ),
        (
            one(|r| r.value_type = ValueType::Bool),
            "x: a bool in a register needs `bit`",
        ),
        (
            one(|r| (r.value_type, r.bit) = (ValueType::Bool, Some(16))),
            "x: bit is 16",
        ),
        (one(|r| r.bit = Some(3)), "x: bit is for type bool; this is a u16"),
        (
            one(|r| r.function = Function::Coil),
            "x: coils and discrete inputs hold bits, not a u16",
        ),
        (
            one(|r| (r.function, r.value_type, r.bit) = (Function::Discrete, ValueType::Bool, Some(0))),
            "x: a coil or discrete input is one bit already",
        ),
        (
            one(|r| r.scale = Some(0.0)),
            "x: scale is 0, which makes every value 0",
        ),
        (one(|r| r.scale = Some(f64::NAN)), "x: scale is not a number"),
        (
            one(|r| r.offset = Some(f64::INFINITY)),
            "x: offset is not a number",
        ),
        (
            one(|r| (r.value_type, r.length, r.scale) = (ValueType::String, Some(4), Some(0.1))),
            "x: scale is for numbers; a string has none",
        ),
        (
            one(|r| r.scale_from = Some(ScaleFrom { address: 200 })),
            "x: the value and its scale factor cannot be read in one request: it spans 201 addresses and the \
             limit is 125",
        ),
        (
            one(|r| r.scale_from = Some(ScaleFrom { address: -1 })),
            "x: scaleFrom.address is -1",
        ),
        (
            one(|r| r.name = "quality".to_owned()),
            "quality: the name is a field of every record",
        ),
        (map(vec![]), ": the register map has no registers"),
        (
            map(vec![
                register("x", 0, ValueType::U16),
                register("x", 1, ValueType::U16),
            ]),
            "x: two registers have this name",
        ),
        (
            RegisterMap {
                limits: Limits {
                    max_registers_per_read: Some(3),
                    ..Limits::default()
                },
                ..map(vec![register("x", 0, ValueType::F64)])
            },
            "x: the value cannot be read in one request: it spans 4 addresses and the limit is 3",
        ),
        (
            RegisterMap {
                limits: Limits {
                    max_registers_per_read: Some(126),
                    ..Limits::default()
                },
                ..map(vec![register("x", 0, ValueType::U16)])
            },
            ": limits.maxRegistersPerRead is 126; Modbus allows 1 to 125",
        ),
        (
            RegisterMap {
                limits: Limits {
                    even_register_count: true,
                    whole_value_reads: true,
                    ..Limits::default()
                },
                ..map(vec![register("x", 7, ValueType::U16)])
            },
            "x: the value cannot be read in one request: evenRegisterCount wants another register beside it",
        ),
        (
            RegisterMap {
                base: Base {
                    sunspec_model: Some(203),
                },
                ..one(|r| r.function = Function::Input)
            },
            "x: SunSpec models are in holding registers",
        ),
    ] {
        let problems = problems(&map, &[]);
        assert!(
            problems.iter().any(|problem| problem.starts_with(says)),
            "expected \"{says}\", got {problems:?}"
        );
    }
}

#[test]
fn a_group_must_fit_in_one_request() {
    let group = |addresses: [i32; 2], functions: [Function; 2], whole_value_reads| {
        let registers = ["a", "b"].into_iter().zip(addresses).zip(functions);
        let registers = registers.map(|((name, address), function)| {
            let mut register = register(name, address, ValueType::U16);
            register.function = function;
            register.coherent = Some("g".to_owned());
            register
        });
        RegisterMap {
            limits: Limits {
                whole_value_reads,
                ..Limits::default()
            },
            ..map(registers.collect())
        }
    };
    let holding = [Function::Holding; 2];
    assert!(problems(&group([0, 124], holding, false), &[]).is_empty());
    assert!(problems(&group([0, 125], holding, false), &[])[0].contains("the group \"g\" cannot be read"));
    assert!(problems(&group([0, 1], holding, true), &[]).is_empty());
    assert!(problems(&group([0, 2], holding, true), &[])[0].contains("names nothing at address 1"));
    let mixed = [Function::Holding, Function::Input];
    assert!(problems(&group([0, 1], mixed, false), &[])[0].starts_with("b: the group \"g\" is spread"));
}

#[test]
fn sentinels_must_be_able_to_match() {
    let with = |value_type, value: &str, mask: Option<&str>| RegisterMap {
        invalid: vec![Invalid {
            value_type,
            value: value.to_owned(),
            mask: mask.map(ToOwned::to_owned),
        }],
        ..map(vec![register("x", 0, ValueType::U16)])
    };
    for (map, says) in [
        (
            with(ValueType::U16, "0x10000", None),
            "wider than the 16 bits of a u16",
        ),
        (with(ValueType::U16, "32768", None), "is not hexadecimal"),
        (
            with(ValueType::U32, "0x7FFF0001", Some("0xFFFF0000")),
            "has bits outside its mask",
        ),
        (
            with(ValueType::U16, "0x0", Some("0x0000")),
            "the mask is 0, so every value",
        ),
        (with(ValueType::Bool, "0x1", None), "a bool has no raw value"),
    ] {
        let problems = problems(&map, &[]);
        assert!(
            problems[0].starts_with(": invalid[0]: ") && problems[0].contains(says),
            "{problems:?}"
        );
    }
    assert!(problems(&with(ValueType::I32, "0x7FFF0000", Some("0xFFFF0000")), &[]).is_empty());
}

#[test]
fn all_that_is_wrong_is_said_at_once() {
    let mut bad = map(vec![
        register("a", -1, ValueType::U16),
        register("b", 0, ValueType::Bool),
        register("c", 0, ValueType::U16),
    ]);
    bad.limits.max_registers_per_read = Some(0);
    assert_eq!(problems(&bad, &["c", "d"]).len(), 4);
}

#[test]
fn defaults_are_filled_in_and_metrics_select() {
    let mut source = map(vec![
        register("a", 0, ValueType::U16),
        register("b", 1, ValueType::F32),
        register("c", 3, ValueType::U16),
    ]);
    source.word_order = Order::Little;
    source.registers[2].word_order = Some(Order::Big);
    source.registers[2].scale = Some(1.0);
    let names = ["c".to_owned(), "a".to_owned()];
    let compiled = CompiledMap::compile(&source, &names).unwrap();
    assert_eq!(compiled.limits.max_registers, MAX_REGISTERS);
    assert_eq!(
        (
            compiled.index_of("a"),
            compiled.index_of("c"),
            compiled.index_of("b")
        ),
        (Some(0), Some(1), None)
    );
    assert_eq!(compiled.values[0].word_order, Order::Little);
    assert_eq!(compiled.values[1].word_order, Order::Big);
    assert_eq!(compiled.values[1].scale, None);
    assert_eq!(compiled.extent(), 4);
    assert_eq!(compiled.named.len(), 3);
    assert_eq!(
        problems(&source, &["voltage"]),
        ["voltage: the register map has no such metric; correct the name in `metrics`, or add the register"]
    );
}

#[test]
fn the_type_of_a_value_follows_from_its_declaration() {
    use OutputType::{Bool, Float, Int, Text, UInt};
    for (value_type, scale, offset, output) in [
        (ValueType::U16, None, None, Int),
        (ValueType::I32, Some(1.0), None, Int),
        (ValueType::U32, Some(10.0), None, Int),
        (ValueType::U64, None, None, UInt),
        (ValueType::U64, Some(1000.0), None, UInt),
        (ValueType::U64, Some(-1.0), None, Int),
        (ValueType::U64, Some(0.5), None, Float),
        (ValueType::I16, Some(0.1), None, Float),
        (ValueType::I16, None, Some(-40.0), Float),
        (ValueType::I16, None, Some(0.0), Int),
        (ValueType::F32, None, None, Float),
        (ValueType::F64, Some(1000.0), None, Float),
    ] {
        let mut register = register("x", 0, value_type);
        (register.scale, register.offset) = (scale, offset);
        let map = compiled(&map(vec![register]));
        assert_eq!(
            map.values[0].output(),
            output,
            "{value_type:?} {scale:?} {offset:?}"
        );
    }
    let mut scaled = register("a", 0, ValueType::I16);
    scaled.scale_from = Some(ScaleFrom { address: 1 });
    let mut text = register("b", 2, ValueType::String);
    text.length = Some(4);
    let mut bit = register("c", 6, ValueType::Bool);
    bit.bit = Some(0);
    let map = compiled(&map(vec![scaled, text, bit]));
    let outputs: Vec<_> = map
        .values
        .iter()
        .map(corrente_modbus::CompiledValue::output)
        .collect();
    assert_eq!(outputs, [Float, Text, Bool]);
}
