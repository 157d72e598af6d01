//! The read plan: the cheapest requests that read a map's values.
//!
//! 1. What must come from one request is joined: a value with its scale factor, a coherent group. What
//!    lies within something else costs nothing and joins it too.
//! 2. What is left is sorted; starts and ends both rise. An optimal plan then never interleaves two
//!    requests, so the best cut of the sequence is the best plan.
//! 3. Dynamic programming finds that cut: the cheapest plan of the first n is the cheapest plan of fewer
//!    of them, and one request for the rest that the meter's limits allow.
//!
//! A greedy pass would fill each request to the limit and pay for gaps that a second request would skip.

use std::{collections::BTreeMap, time::Duration};

use corrente_crds::profile::Function;

use crate::{
    map::{CompiledMap, NamedRange, is_bits},
    range,
};

/// What a request costs, in microseconds: `round_trip` + `pause` + `register` for each register carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CostModel {
    /// A request and its answer without their registers.
    pub round_trip_micros: u64,
    /// Each register, or 16 bits, of an answer.
    pub register_micros: u64,
    /// The pause before the next request; the meter's own counts where it is longer.
    pub pause_micros: u64,
}

impl Default for CostModel {
    /// A meter on a local network, until it is measured: 2 ms for a round trip, 20 us for a register, so
    /// that a gap of up to 100 registers is read rather than skipped by another request. These are
    /// assumptions, not measurements.
    fn default() -> Self {
        Self {
            round_trip_micros: 2_000,
            register_micros: 20,
            pause_micros: 0,
        }
    }
}

impl CostModel {
    /// A meter on a serial line behind a gateway: computed from the line's speed and the time the meter
    /// takes to turn around. A character is 11 bits; a read and its answer take 13 characters and 2 each
    /// register, and 3.5 characters of silence go before each. Source: Modbus over Serial Line V1.02, 2.5.1.
    #[must_use]
    pub fn serial(baud: u32, turnaround: Duration) -> Self {
        let character_nanos = 11_000_000_000 / u64::from(baud.max(1));
        Self {
            round_trip_micros: character_nanos * 20 / 1_000 + micros(turnaround),
            register_micros: character_nanos * 2 / 1_000,
            pause_micros: 0,
        }
    }

    /// The same line with a pause between an answer and the next request.
    #[must_use]
    pub fn with_pause(self, pause: Duration) -> Self {
        Self {
            pause_micros: micros(pause),
            ..self
        }
    }

    fn request_micros(&self, meter_pause: Duration, function: Function, count: u32) -> u64 {
        let registers = carried(function, count);
        self.round_trip_micros
            .saturating_add(self.pause_micros.max(micros(meter_pause)))
            .saturating_add(self.register_micros.saturating_mul(u64::from(registers)))
    }
}

/// The registers that an answer carries; 16 bits count as one.
#[must_use]
pub fn carried(function: Function, count: u32) -> u32 {
    if is_bits(function) {
        count.div_ceil(16)
    } else {
        count
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// What a meter was found not to like, beyond what its map says. See [`ReadPlan::build_within`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Constraints {
    /// The longest request, in registers or bits, by table.
    pub longest: BTreeMap<Function, u16>,
    /// What no request touches. An empty range is a border that none spans.
    pub barriers: Vec<NamedRange>,
    /// Ranges that are not read whole in one request.
    pub blocks: Vec<NamedRange>,
}

impl Constraints {
    /// None at all.
    pub const NONE: Self = Self {
        longest: BTreeMap::new(),
        barriers: Vec::new(),
        blocks: Vec::new(),
    };

    /// The longest request of a table.
    pub(crate) fn longest(&self, function: Function) -> Option<u32> {
        self.longest.get(&function).map(|&longest| u32::from(longest))
    }

    /// Whether a request may read this range.
    pub(crate) fn allow(&self, range: NamedRange) -> bool {
        let spans = |border: &NamedRange| {
            border.function == range.function
                && border.start == border.end
                && range.start < border.start
                && border.start < range.end
        };
        !self.touch(range)
            && !self.barriers.iter().any(spans)
            && !self.blocks.iter().any(|block| range.contains(block))
    }

    /// Whether the range holds something that is not to be read.
    pub(crate) fn touch(&self, range: NamedRange) -> bool {
        self.barriers
            .iter()
            .any(|barrier| barrier.start < barrier.end && barrier.overlaps(&range))
    }
}

/// The requests that read a meter once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadPlan {
    /// The requests, by table and address.
    pub requests: Vec<ReadRequest>,
    /// The pause that the meter wants between an answer and the next request.
    pub pause: Duration,
}

/// One read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadRequest {
    /// The table, which fixes the function code.
    pub function: Function,
    /// The first address, as it goes into the request.
    pub address: u16,
    /// How many registers or bits.
    pub count: u16,
    /// Where the map's addresses count from: 0, or what [`ReadPlan::at`] was given. It is already
    /// part of `address`.
    pub base: u16,
    /// The values it answers, as indices into [`CompiledMap::values`], rising.
    pub values: Vec<usize>,
}

impl ReadRequest {
    /// What it reads, counted from the map's base.
    #[must_use]
    pub fn range(&self) -> NamedRange {
        let start = u32::from(self.address.wrapping_sub(self.base));
        NamedRange {
            function: self.function,
            start,
            end: start + u32::from(self.count),
        }
    }
}

/// A plan does not fit behind a base address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the map reaches {extent} registers beyond the base address {base}, past the last address 65535")]
pub struct BeyondAddressSpace {
    /// The base address.
    pub base: u16,
    /// How far the plan reaches from it.
    pub extent: u32,
}

impl ReadPlan {
    /// The cheapest plan for every value of the map.
    #[must_use]
    pub fn build(map: &CompiledMap, cost: &CostModel) -> Self {
        let all: Vec<usize> = (0..map.values.len()).collect();
        Self::build_for(map, &all, cost)
    }

    /// The cheapest plan for some values of the map, by their indices; those that do not exist are passed
    /// over. Of a coherent group only the members that are asked for count.
    #[must_use]
    pub fn build_for(map: &CompiledMap, values: &[usize], cost: &CostModel) -> Self {
        Self::build_within(map, values, cost, &Constraints::NONE)
    }

    /// The cheapest plan for some values of the map that keeps to what was learned about the meter. What must
    /// come from one request is read in one request all the same: there is no other way to read it.
    #[must_use]
    pub fn build_within(
        map: &CompiledMap,
        values: &[usize],
        cost: &CostModel,
        constraints: &Constraints,
    ) -> Self {
        let mut tables: BTreeMap<Function, Vec<Atom>> = BTreeMap::new();
        for atom in atoms(map, values) {
            tables.entry(atom.range.function).or_default().push(atom);
        }
        let requests = tables
            .into_values()
            .flat_map(|atoms| cheapest(map, absorb(atoms), cost, constraints))
            .collect();
        Self {
            requests,
            pause: map.limits.pause,
        }
    }

    /// The same plan with its addresses counted from `base`: the ID register of a SunSpec model.
    ///
    /// # Errors
    /// Where it would reach past the last address.
    pub fn at(&self, base: u16) -> Result<Self, BeyondAddressSpace> {
        let mut plan = self.clone();
        for request in &mut plan.requests {
            let relative = request.address - request.base;
            let extent = u32::from(relative) + u32::from(request.count);
            if u32::from(base) + extent > 65536 {
                return Err(BeyondAddressSpace { base, extent });
            }
            request.address = base + relative;
            request.base = base;
        }
        Ok(plan)
    }

    /// How long the plan takes, in microseconds, pauses included.
    #[must_use]
    pub fn predicted_micros(&self, cost: &CostModel) -> u64 {
        self.requests
            .iter()
            .map(|request| cost.request_micros(self.pause, request.function, u32::from(request.count)))
            .fold(0, u64::saturating_add)
    }
}

/// What must come from one request.
struct Atom {
    range: NamedRange,
    values: Vec<usize>,
}

fn atoms(map: &CompiledMap, values: &[usize]) -> Vec<Atom> {
    let mut atoms: Vec<Atom> = Vec::new();
    let mut groups: BTreeMap<(Function, &str), usize> = BTreeMap::new();
    for &index in values {
        let Some(value) = map.values.get(index) else {
            continue;
        };
        let range = value.range();
        let group = value.coherent.as_deref().map(|group| (value.function, group));
        if let Some(atom) = group
            .and_then(|group| groups.get(&group))
            .and_then(|&atom| atoms.get_mut(atom))
        {
            atom.range.start = atom.range.start.min(range.start);
            atom.range.end = atom.range.end.max(range.end);
            atom.values.push(index);
            continue;
        }
        if let Some(group) = group {
            groups.insert(group, atoms.len());
        }
        atoms.push(Atom {
            range,
            values: vec![index],
        });
    }
    atoms
}

/// Sorts atoms and lets each take in those that lie within it.
fn absorb(mut atoms: Vec<Atom>) -> Vec<Atom> {
    atoms.sort_by_key(|atom| (atom.range.start, std::cmp::Reverse(atom.range.end)));
    let mut kept: Vec<Atom> = Vec::with_capacity(atoms.len());
    for atom in atoms {
        match kept.last_mut() {
            Some(last) if atom.range.end <= last.range.end => last.values.extend(atom.values),
            _ => kept.push(atom),
        }
    }
    kept
}

/// The cheapest way to cut one table's atoms into requests.
fn cheapest(
    map: &CompiledMap,
    atoms: Vec<Atom>,
    cost: &CostModel,
    constraints: &Constraints,
) -> Vec<ReadRequest> {
    // best[n]: the cost of the first n atoms, how many requests that takes, and where the last one starts.
    let mut best: Vec<(u64, usize, usize)> = vec![(0, 0, 0)];
    for (end, last) in atoms.iter().enumerate() {
        let mut choice = (u64::MAX, usize::MAX, end);
        for (start, first) in atoms.iter().enumerate().take(end + 1).rev() {
            let hull = NamedRange {
                start: first.range.start,
                ..last.range
            };
            let count = match range::request(map, hull, constraints) {
                Ok((_, count)) => count,
                // A single atom is read as it is: that it can be was settled when the map was compiled.
                Err(_) if start == end => hull.end - hull.start,
                // Further back it only gets longer, and what is in the way stays there.
                Err(range::Unreadable::TooLong { .. } | range::Unreadable::Refused) => break,
                Err(_) => continue,
            };
            let Some(&(before, requests, _)) = best.get(start) else {
                continue;
            };
            let total = before.saturating_add(cost.request_micros(map.limits.pause, hull.function, count));
            // Of two plans that cost the same, the one with fewer requests.
            choice = choice.min((total, requests + 1, start));
        }
        best.push(choice);
    }
    let mut requests = Vec::new();
    let mut atoms = atoms;
    while let Some(&(_, _, start)) = best.get(atoms.len())
        && let Some(last) = atoms.last()
    {
        let mut hull = last.range;
        let members = atoms.split_off(start);
        if let Some(first) = members.first() {
            hull.start = first.range.start;
        }
        let (address, count) =
            range::request(map, hull, constraints).unwrap_or((hull.start, hull.end - hull.start));
        let mut values: Vec<usize> = members.into_iter().flat_map(|atom| atom.values).collect();
        values.sort_unstable();
        requests.push(ReadRequest {
            function: hull.function,
            // Both are below 65536: a compiled value ends at the last address, and padding stays within.
            address: address as u16,
            count: count as u16,
            base: 0,
            values,
        });
    }
    requests.reverse();
    requests
}
