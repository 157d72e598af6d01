//! Plans keep every limit, and none is cheaper: compared with all partitions of small maps.

use std::time::Duration;

use corrente_crds::profile::{Function, Limits, RegisterMap, ScaleFrom, ValueType};
use corrente_modbus::{CompiledMap, CompiledValue, CostModel, ReadPlan};
use proptest::prelude::*;

use crate::support::{compiled, map, register};

/// The addresses that reading a value takes, scale factor included.
fn span(value: &CompiledValue) -> (u32, u32) {
    let own = (u32::from(value.address), u32::from(value.address + value.count));
    match value.scale_from.map(u32::from) {
        Some(factor) => (own.0.min(factor), own.1.max(factor + 1)),
        None => own,
    }
}

/// Whether one request may read exactly these addresses: the rules, said once more and plainly.
fn allowed(map: &CompiledMap, function: Function, start: u32, end: u32) -> bool {
    let limits = &map.limits;
    let registers = matches!(function, Function::Holding | Function::Input);
    let most = if registers {
        u32::from(limits.max_registers)
    } else {
        2000
    };
    let named = |at: u32| {
        map.named
            .iter()
            .any(|n| n.function == function && n.start <= at && at < n.end)
    };
    end <= 65536
        && end - start <= most
        && (!limits.even_count || !registers || (end - start).is_multiple_of(2))
        && (!limits.whole_values || (start..end).all(named))
}

/// The shortest allowed request over these values.
fn shortest(map: &CompiledMap, values: &[usize]) -> Option<u32> {
    let function = map.values[values[0]].function;
    if values.iter().any(|&v| map.values[v].function != function) {
        return None;
    }
    let start = values.iter().map(|&v| span(&map.values[v]).0).min()?;
    let end = values.iter().map(|&v| span(&map.values[v]).1).max()?;
    let wider = [(start, end), (start, end + 1), (start.wrapping_sub(1), end)];
    wider
        .into_iter()
        .filter(|(start, end)| start < end && allowed(map, function, *start, *end))
        .map(|(start, end)| end - start)
        .min()
}

/// The cost of the cheapest of all partitions of `rest`, given blocks already begun.
fn brute(map: &CompiledMap, cost: &CostModel, rest: &[usize], blocks: &mut Vec<Vec<usize>>) -> Option<u64> {
    let Some((&value, rest)) = rest.split_first() else {
        let apart = |group: &str| {
            let in_group = |v: &usize| map.values[*v].coherent.as_deref() == Some(group);
            blocks.iter().filter(|block| block.iter().any(in_group)).count() > 1
        };
        if map.values.iter().filter_map(|v| v.coherent.as_deref()).any(apart) {
            return None;
        }
        return blocks
            .iter()
            .map(|block| {
                let count = shortest(map, block)?;
                Some(cost.round_trip_micros + cost.register_micros * u64::from(count))
            })
            .sum();
    };
    let mut best = None;
    for i in 0..=blocks.len() {
        if i == blocks.len() {
            blocks.push(Vec::new());
        }
        blocks[i].push(value);
        let found = brute(map, cost, rest, blocks);
        best = [best, found].into_iter().flatten().min();
        blocks[i].pop();
        if blocks[i].is_empty() {
            blocks.pop();
        }
    }
    best
}

fn registers() -> impl Strategy<Value = RegisterMap> {
    let types = prop::sample::select(vec![ValueType::U16, ValueType::U32, ValueType::F64]);
    let functions = prop::sample::select(vec![Function::Holding, Function::Holding, Function::Input]);
    let one = (
        0..32i32,
        types,
        functions,
        prop::option::weighted(0.3, -3..6i32),
        prop::option::weighted(0.3, 0..2),
    );
    let limits = (3..14i32, prop::bool::weighted(0.3), prop::bool::weighted(0.3));
    (prop::collection::vec(one, 1..7), limits).prop_map(|(ones, (max, even, whole))| {
        let registers =
            ones.into_iter()
                .enumerate()
                .map(|(i, (address, value_type, function, factor, group))| {
                    let mut register = register(&format!("v{i}"), address, value_type);
                    register.function = function;
                    register.scale_from = factor.map(|d| ScaleFrom {
                        address: (address + d).max(0),
                    });
                    register.coherent = group.map(|g| format!("g{g}"));
                    register
                });
        RegisterMap {
            limits: Limits {
                max_registers_per_read: Some(max),
                even_register_count: even,
                whole_value_reads: whole,
                inter_request_delay: None,
            },
            ..map(registers.collect())
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn no_plan_is_cheaper(source in registers(), omit in prop::option::of(0..6usize), overhead in 0..12u64) {
        let cost = CostModel { round_trip_micros: overhead, register_micros: 1, pause_micros: 0 };
        let metrics: Vec<String> = match omit {
            Some(omit) if source.registers.len() > 1 =>
                source.registers.iter().map(|r| r.name.clone()).filter(|n| *n != format!("v{omit}")).collect(),
            _ => vec![],
        };
        let Ok(map) = CompiledMap::compile(&source, &metrics) else {
            return Ok(());
        };
        let plan = ReadPlan::build(&map, &cost);
        let mut read = vec![0; map.values.len()];
        for request in &plan.requests {
            let (start, end) = (u32::from(request.address), u32::from(request.address) + u32::from(request.count));
            prop_assert!(allowed(&map, request.function, start, end), "{:?}", request);
            for &v in &request.values {
                read[v] += 1;
                let (first, last) = span(&map.values[v]);
                prop_assert!(start <= first && last <= end && map.values[v].function == request.function);
            }
        }
        prop_assert!(read.iter().all(|n| *n == 1), "each value comes from one request: {:?}", plan);
        for group in ["g0", "g1"] {
            let in_group = |v: &usize| map.values[*v].coherent.as_deref() == Some(group);
            prop_assert!(plan.requests.iter().filter(|r| r.values.iter().any(in_group)).count() <= 1);
        }
        // A meter that wants both even counts and whole values is served, not at the least cost.
        if !(map.limits.even_count && map.limits.whole_values) {
            let all: Vec<usize> = (0..map.values.len()).collect();
            let cheapest = brute(&map, &cost, &all, &mut Vec::new());
            prop_assert_eq!(Some(plan.predicted_micros(&cost)), cheapest, "{:?}", plan);
        }
    }

    #[test]
    fn a_map_is_refused_where_no_plan_exists(source in registers()) {
        prop_assume!(!(source.limits.even_register_count && source.limits.whole_value_reads));
        // The same map without its limits always compiles, unless a group is spread over two tables.
        let free = RegisterMap { limits: Limits::default(), ..source.clone() };
        let Ok(mut free) = CompiledMap::compile(&free, &[]) else {
            return Ok(());
        };
        let refused = CompiledMap::compile(&source, &[]);
        free.limits.max_registers = source.limits.max_registers_per_read.unwrap() as u16;
        free.limits.even_count = source.limits.even_register_count;
        free.limits.whole_values = source.limits.whole_value_reads;
        let all: Vec<usize> = (0..free.values.len()).collect();
        let possible = brute(&free, &CostModel::default(), &all, &mut Vec::new()).is_some();
        prop_assert_eq!(refused.is_ok(), possible, "{:?}", refused);
    }
}

fn requests(map: &CompiledMap, cost: &CostModel) -> Vec<(u16, u16, Vec<usize>)> {
    let plan = ReadPlan::build(map, cost);
    plan.requests
        .into_iter()
        .map(|r| (r.address, r.count, r.values))
        .collect()
}

#[test]
fn a_gap_is_read_where_that_is_cheaper_than_a_request() {
    let source = map(vec![
        register("a", 0, ValueType::F32),
        register("b", 20, ValueType::F32),
        register("c", 90, ValueType::F32),
    ]);
    let mut cost = CostModel {
        round_trip_micros: 30,
        register_micros: 1,
        pause_micros: 0,
    };
    assert_eq!(
        requests(&compiled(&source), &cost),
        [(0, 22, vec![0, 1]), (90, 2, vec![2])]
    );
    cost.round_trip_micros = 10;
    assert_eq!(requests(&compiled(&source), &cost).len(), 3);
    assert_eq!(
        requests(&compiled(&source), &CostModel::default()),
        [(0, 92, vec![0, 1, 2])]
    );
    let whole = RegisterMap {
        limits: Limits {
            whole_value_reads: true,
            ..Limits::default()
        },
        ..source
    };
    assert_eq!(requests(&compiled(&whole), &CostModel::default()).len(), 3);
}

#[test]
fn the_best_cut_is_not_the_greedy_one() {
    // Filling the first request to its 8 registers would read the gap behind `b`, and a second one after it.
    let source = RegisterMap {
        limits: Limits {
            max_registers_per_read: Some(8),
            ..Limits::default()
        },
        ..map(vec![
            register("a", 0, ValueType::U16),
            register("b", 1, ValueType::U16),
            register("c", 7, ValueType::U16),
            register("d", 8, ValueType::U16),
        ])
    };
    let cost = CostModel {
        round_trip_micros: 4,
        register_micros: 1,
        pause_micros: 0,
    };
    assert_eq!(
        requests(&compiled(&source), &cost),
        [(0, 2, vec![0, 1]), (7, 2, vec![2, 3])]
    );
}

#[test]
fn bits_have_a_limit_of_their_own() {
    let registers = [0, 1500, 3200].into_iter().map(|address| {
        let mut coil = register(&format!("c{address}"), address, ValueType::Bool);
        coil.function = Function::Coil;
        coil
    });
    let source = RegisterMap {
        limits: Limits {
            max_registers_per_read: Some(2),
            even_register_count: true,
            ..Limits::default()
        },
        ..map(registers.collect())
    };
    assert_eq!(
        requests(&compiled(&source), &CostModel::default()),
        [(0, 1501, vec![0, 1]), (3200, 1, vec![2])]
    );
}

#[test]
fn an_unselected_value_may_be_read_through_but_a_gap_not() {
    let source = RegisterMap {
        limits: Limits {
            whole_value_reads: true,
            ..Limits::default()
        },
        ..map(vec![
            register("a", 0, ValueType::U16),
            register("b", 1, ValueType::U16),
            register("c", 2, ValueType::U16),
        ])
    };
    let map = CompiledMap::compile(&source, &["a".to_owned(), "c".to_owned()]).unwrap();
    assert_eq!(requests(&map, &CostModel::default()), [(0, 3, vec![0, 1])]);
}

#[test]
fn padding_stays_within_the_address_space() {
    let even = |address| RegisterMap {
        limits: Limits {
            even_register_count: true,
            ..Limits::default()
        },
        ..map(vec![register("a", address, ValueType::U16)])
    };
    assert_eq!(
        requests(&compiled(&even(7)), &CostModel::default()),
        [(7, 2, vec![0])]
    );
    assert_eq!(
        requests(&compiled(&even(65535)), &CostModel::default()),
        [(65534, 2, vec![0])]
    );
}

#[test]
fn a_plan_moves_with_its_base_and_not_past_the_end() {
    let plan = ReadPlan::build(
        &compiled(&map(vec![register("a", 10, ValueType::F32)])),
        &CostModel::default(),
    );
    let moved = plan.at(40_070).unwrap();
    assert_eq!(
        (moved.requests[0].address, moved.requests[0].base),
        (40_080, 40_070)
    );
    assert_eq!(moved.at(0).unwrap(), plan);
    assert_eq!(plan.at(65_524).unwrap().requests[0].address, 65_534);
    assert!(
        plan.at(65_525)
            .unwrap_err()
            .to_string()
            .contains("reaches 12 registers beyond")
    );
}

#[test]
fn part_of_a_map_has_a_plan_too() {
    let map = compiled(&map((0..4)
        .map(|i| register(&format!("v{i}"), i * 2, ValueType::U32))
        .collect()));
    let plan = ReadPlan::build_for(&map, &[3, 2, 99], &CostModel::default());
    assert_eq!((plan.requests[0].address, plan.requests[0].count), (4, 4));
    assert_eq!(plan.requests[0].values, [2, 3]);
}

#[test]
fn pauses_and_line_speed_count() {
    let mut source = map(vec![
        register("a", 0, ValueType::U16),
        register("b", 200, ValueType::U16),
    ]);
    source.limits.inter_request_delay = Some(corrente_crds::Duration::from_millis(50));
    let cost = CostModel::default();
    let plan = ReadPlan::build(&compiled(&source), &cost);
    assert_eq!(plan.predicted_micros(&cost), 2 * (2_000 + 50_000 + 20));
    let slower = cost.with_pause(Duration::from_millis(80));
    assert_eq!(plan.predicted_micros(&slower), 2 * (2_000 + 80_000 + 20));
    // 9600 baud: 11 bits take 1.146 ms, so a register takes 2.29 ms.
    assert_eq!(
        CostModel::serial(9600, Duration::from_millis(30)).register_micros,
        2_291
    );
}
