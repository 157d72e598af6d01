//! The walk along a SunSpec device's chain of models, as a state machine without IO.
//!
//! 1. The mark "SunS" is looked for at 40000, 50000 and 0, in that order.
//! 2. Behind it come the models: an ID register, a length register, and that many registers. The walk
//!    reads ID and length, and steps over the models that are not the one it looks for.
//! 3. The ID 0xFFFF ends the chain.
//!
//! All in holding registers. Source: SunSpec Information Model Specification, 6 ("Device Information
//! Model"): base addresses, mark and end of the chain.
//!
//! The caller asks [`Walk::step`] what to read, feeds the answer to [`Walk::words`] or the exception to
//! [`Walk::refused`], and asks again. A timeout is the caller's own: the walk just stays where it is.

use crate::map::{Base, CompiledMap};

/// "SunS", as two registers.
pub const MARK: [u16; 2] = [0x5375, 0x6e53];
/// Where the mark may be, in the order in which it is looked for.
pub const BASES: [u16; 3] = [40_000, 50_000, 0];
/// The ID that ends the chain.
pub const END: u16 = 0xffff;
/// Most models that are walked before the chain is taken for broken.
const MAX_MODELS: usize = 256;

/// What the walk wants next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Read this many holding registers from this address.
    Read {
        /// The first address.
        address: u16,
        /// How many registers.
        count: u16,
    },
    /// The model is found: the address of its ID register, to give to [`crate::ReadPlan::at`].
    Found(u16),
    /// There is no such model.
    Failed(WalkError),
}

/// Why a model was not found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WalkError {
    /// No mark at any of the base addresses.
    #[error("no \"SunS\" at 40000, 50000 or 0: this is not a SunSpec device, or not one on this unit id")]
    NoMark,
    /// The chain ended without the model.
    #[error("the device has no SunSpec model {model}; it has {}", list(.seen))]
    NoSuchModel {
        /// The model that was looked for.
        model: u16,
        /// The models there are.
        seen: Vec<u16>,
    },
    /// The device refused to read on, or the chain runs past the last address or on and on.
    #[error("the chain of SunSpec models breaks off at address {0}")]
    Broken(u32),
    /// The model is there, and shorter than the map.
    #[error(
        "SunSpec model {model} ends {length} registers after its length register, and the map reads up to \
         register {extent}"
    )]
    TooShort {
        /// The model.
        model: u16,
        /// Its length, without ID and length registers.
        length: u16,
        /// How far the map reaches from the ID register.
        extent: u32,
    },
}

fn list(models: &[u16]) -> String {
    match models {
        [] => "none".to_owned(),
        models => models.iter().map(u16::to_string).collect::<Vec<_>>().join(", "),
    }
}

/// The walk to one model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    model: u16,
    extent: u32,
    state: State,
    seen: Vec<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Looking for the mark at this entry of [`BASES`].
    Mark(usize),
    /// At the ID register of a model.
    Model(u16),
    /// Where the model was found before.
    Again(u16),
    Done(Step),
}

impl Walk {
    /// The walk to a model that a map reads `extent` registers of, ID and length registers included.
    #[must_use]
    pub fn new(model: u16, extent: u32) -> Self {
        Self {
            model,
            extent,
            state: State::Mark(0),
            seen: Vec::new(),
        }
    }

    /// The walk that a map needs; `None` where its addresses are absolute.
    #[must_use]
    pub fn for_map(map: &CompiledMap) -> Option<Self> {
        match map.base {
            Base::Absolute => None,
            Base::SunspecModel(model) => Some(Self::new(model, map.extent())),
        }
    }

    /// The same walk where the model was found at `base` before: one read shows whether it is still there, and
    /// the chain is walked only where it is not.
    #[must_use]
    pub fn again_at(mut self, base: u16) -> Self {
        self.state = State::Again(base);
        self
    }

    /// What to do next. It stays the same until an answer is given.
    #[must_use]
    pub fn step(&self) -> Step {
        match &self.state {
            State::Mark(at) => match BASES.get(*at) {
                Some(&address) => Step::Read { address, count: 2 },
                None => Step::Failed(WalkError::NoMark),
            },
            State::Model(address) | State::Again(address) => Step::Read {
                address: *address,
                count: 2,
            },
            State::Done(step) => step.clone(),
        }
    }

    /// The device answered the read of [`Walk::step`] with these registers.
    pub fn words(&mut self, words: &[u16]) {
        match (&self.state, words) {
            (State::Done(_), _) => {}
            (State::Mark(at), words) => {
                self.state = match BASES.get(*at) {
                    Some(&base) if *words == MARK => State::Model(base + 2),
                    _ => State::Mark(at + 1),
                };
            }
            (&State::Again(address), &[id, length])
                if id == self.model && self.extent <= 2 + u32::from(length) =>
            {
                self.state = State::Done(Step::Found(address));
            }
            (&State::Model(address), &[id, length]) => self.model(address, id, length),
            (State::Model(_) | State::Again(_), _) => self.refused(),
        }
    }

    /// The device answered the read of [`Walk::step`] with an exception.
    pub fn refused(&mut self) {
        match self.state {
            State::Mark(at) => self.state = State::Mark(at + 1),
            State::Again(_) => self.state = State::Mark(0),
            State::Model(address) => self.fail(WalkError::Broken(address.into())),
            State::Done(_) => {}
        }
    }

    /// A model's ID and length were read at `address`.
    fn model(&mut self, address: u16, id: u16, length: u16) {
        let end = u32::from(address) + 2 + u32::from(length);
        if id == self.model {
            let done = if self.extent > 2 + u32::from(length) {
                Step::Failed(WalkError::TooShort {
                    model: id,
                    length,
                    extent: self.extent,
                })
            } else {
                Step::Found(address)
            };
            if u32::from(address) + self.extent > 65_536 {
                return self.fail(WalkError::Broken(end));
            }
            self.state = State::Done(done);
            return;
        }
        if id == END {
            let seen = std::mem::take(&mut self.seen);
            return self.fail(WalkError::NoSuchModel {
                model: self.model,
                seen,
            });
        }
        self.seen.push(id);
        match u16::try_from(end) {
            // The next model's ID and length must both have an address.
            Ok(next) if next < u16::MAX && self.seen.len() < MAX_MODELS => self.state = State::Model(next),
            _ => self.fail(WalkError::Broken(end)),
        }
    }

    fn fail(&mut self, error: WalkError) {
        self.state = State::Done(Step::Failed(error));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device as (address, registers) blocks; anything else is refused.
    fn walk(model: u16, extent: u32, blocks: &[(u16, &[u16])]) -> (Step, usize) {
        go(Walk::new(model, extent), blocks)
    }

    fn go(mut walk: Walk, blocks: &[(u16, &[u16])]) -> (Step, usize) {
        for reads in 0.. {
            match walk.step() {
                Step::Read { address, count } => {
                    let words = blocks.iter().find_map(|(start, words)| {
                        let at = usize::from(address.checked_sub(*start)?);
                        words.get(at..at + usize::from(count))
                    });
                    match words {
                        Some(words) => walk.words(words),
                        None => walk.refused(),
                    }
                }
                done => return (done, reads),
            }
        }
        unreachable!()
    }

    const CHAIN: &[u16] = &[0x5375, 0x6e53, 1, 2, 0, 0, 203, 3, 7, 8, 9, 0xffff, 0];

    #[test]
    fn finds_a_model_behind_others_at_any_base() {
        assert_eq!(walk(203, 5, &[(40_000, CHAIN)]), (Step::Found(40_006), 3));
        assert_eq!(walk(1, 4, &[(40_000, CHAIN)]), (Step::Found(40_002), 2));
        assert_eq!(walk(203, 5, &[(50_000, CHAIN)]), (Step::Found(50_006), 4));
        assert_eq!(walk(203, 5, &[(0, CHAIN)]), (Step::Found(6), 5));
        // Something else at 40000 is not the mark.
        let other: &[u16] = &[1, 2, 3];
        assert_eq!(walk(203, 5, &[(40_000, other), (0, CHAIN)]).0, Step::Found(6));
    }

    #[test]
    fn a_model_that_is_still_there_costs_one_read() {
        let again = |base| Walk::new(203, 5).again_at(base);
        assert_eq!(go(again(40_006), &[(40_000, CHAIN)]), (Step::Found(40_006), 1));
        // Another model in its place, something that ends before it, nothing at all: the chain is walked.
        assert_eq!(go(again(40_002), &[(40_000, CHAIN)]), (Step::Found(40_006), 4));
        assert_eq!(go(again(40_012), &[(40_000, CHAIN)]), (Step::Found(40_006), 4));
        assert_eq!(go(again(7), &[(40_000, CHAIN)]), (Step::Found(40_006), 4));
        let short: &[u16] = &[203, 2, 7, 8];
        assert_eq!(
            go(again(100), &[(100, short), (40_000, CHAIN)]),
            (Step::Found(40_006), 4)
        );
    }

    #[test]
    fn says_why_there_is_none() {
        let broken: &[u16] = &[0x5375, 0x6e53, 1, 66];
        let overflowing: &[u16] = &[0x5375, 0x6e53, 1, 0xfff0];
        for (blocks, extent, says) in [
            (vec![], 5, "no \"SunS\" at 40000, 50000 or 0"),
            (
                vec![(40_000, CHAIN)],
                6,
                "ends 3 registers after its length register",
            ),
            (vec![(40_000, broken)], 5, "breaks off at address 40070"),
            (vec![(40_000, overflowing)], 5, "breaks off at address 105524"),
        ] {
            let Step::Failed(error) = walk(203, extent, &blocks).0 else {
                panic!("it found one");
            };
            assert!(error.to_string().contains(says), "{error}");
        }
        let Step::Failed(error) = walk(213, 5, &[(40_000, CHAIN)]).0 else {
            panic!("it found one");
        };
        assert_eq!(
            error.to_string(),
            "the device has no SunSpec model 213; it has 1, 203"
        );
    }

    #[test]
    fn ends_on_a_chain_without_end() {
        let mut endless = MARK.to_vec();
        endless.extend([64_001, 0].repeat(10_000));
        let (step, reads) = walk(203, 5, &[(0, &endless)]);
        assert!(matches!(step, Step::Failed(WalkError::Broken(_))));
        assert!(reads < 300, "{reads}");
    }
}
