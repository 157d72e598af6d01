//! The window of the publisher: records that are on their way to the broker. Pure.
//!
//! Records enter in the order of their seq and are sent in that order. Deliveries may come in any order; the
//! cursor follows the contiguous prefix of those that are settled. When one is to be sent **again**, sending
//! stops until nothing is in flight any more, and then goes on with the lowest unsettled record. So within a
//! partition no record overtakes another, which matters to a sink that remembers the highest seq it has
//! stored. What was stored meanwhile is not sent again.

use std::collections::BTreeMap;

use crate::spool::Stored;

/// How much may be on its way at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowLimits {
    /// Most records.
    pub records: usize,
    /// Most bytes of records; a single longer one is let through.
    pub bytes: usize,
}

impl Default for WindowLimits {
    /// Enough to drain a backlog at the network's speed, within a few megabytes of memory.
    fn default() -> Self {
        Self {
            records: 10_000,
            bytes: 8 * 1024 * 1024,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unsent,
    InFlight,
    Settled,
}

/// The window.
#[derive(Debug)]
pub struct Window {
    limits: WindowLimits,
    records: BTreeMap<u64, (Stored, State)>,
    bytes: usize,
    in_flight: usize,
    /// Every record below this is sent.
    unsent: u64,
    held: bool,
}

impl Window {
    /// An empty window.
    #[must_use]
    pub fn new(limits: WindowLimits) -> Self {
        Self {
            limits,
            records: BTreeMap::new(),
            bytes: 0,
            in_flight: 0,
            unsent: 0,
            held: false,
        }
    }

    /// How many records, and how many bytes, may enter; `None` where there is no room.
    #[must_use]
    pub fn room(&self) -> Option<(usize, usize)> {
        let records = self.limits.records.saturating_sub(self.records.len());
        let bytes = self.limits.bytes.saturating_sub(self.bytes);
        (records > 0 && bytes > 0).then_some((records, bytes))
    }

    /// Whether every record that entered is settled.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// How many records the producer has and has said nothing about.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether records came back to be sent again, and the rest of that wave is still in flight.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.held
    }

    /// Lets a record enter. Its seq is above that of every record before it.
    pub fn enter(&mut self, record: Stored) {
        self.bytes += record.payload.len();
        self.records.insert(record.seq, (record, State::Unsent));
    }

    /// The next record to send; `None` where there is none, or where sending is held.
    pub fn next_unsent(&mut self) -> Option<&Stored> {
        if self.held && self.in_flight > 0 {
            return None;
        }
        self.held = false;
        let (record, _) = self
            .records
            .range(self.unsent..)
            .map(|(_, entry)| entry)
            .find(|(_, state)| *state == State::Unsent)?;
        self.unsent = record.seq;
        Some(record)
    }

    /// The record has been given to the producer.
    pub fn sent(&mut self, seq: u64) {
        if let Some((_, state)) = self.records.get_mut(&seq)
            && *state == State::Unsent
        {
            *state = State::InFlight;
            self.in_flight += 1;
        }
    }

    /// The record is dealt with: stored, or set aside. Returns it, where it was not already.
    pub fn settle(&mut self, seq: u64) -> Option<&Stored> {
        let (record, state) = self.records.get_mut(&seq)?;
        match state {
            State::Settled => return None,
            State::InFlight => self.in_flight -= 1,
            State::Unsent => {}
        }
        *state = State::Settled;
        Some(record)
    }

    /// The record is to be sent again; returns whether it was in flight.
    pub fn again(&mut self, seq: u64) -> bool {
        let Some((_, state)) = self.records.get_mut(&seq) else {
            return false;
        };
        if *state != State::InFlight {
            return false;
        }
        *state = State::Unsent;
        self.in_flight -= 1;
        self.unsent = self.unsent.min(seq);
        self.held = true;
        true
    }

    /// Lets go of the settled prefix; returns its last seq, where there is one.
    pub fn advance(&mut self) -> Option<u64> {
        let mut last = None;
        while let Some(first) = self.records.first_entry() {
            if first.get().1 != State::Settled {
                break;
            }
            let (seq, (record, _)) = first.remove_entry();
            self.bytes -= record.payload.len();
            last = Some(seq);
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(seq: u64) -> Stored {
        Stored {
            seq,
            key: (*b"m").into(),
            payload: (*b"12345").into(),
        }
    }

    fn window(seqs: impl IntoIterator<Item = u64>) -> Window {
        let mut window = Window::new(WindowLimits::default());
        seqs.into_iter().for_each(|seq| window.enter(record(seq)));
        window
    }

    fn send_all(window: &mut Window) -> Vec<u64> {
        let mut sent = Vec::new();
        while let Some(seq) = window.next_unsent().map(|record| record.seq) {
            window.sent(seq);
            sent.push(seq);
        }
        sent
    }

    #[test]
    fn the_cursor_is_the_contiguous_prefix() {
        // 4 and 5 were evicted: a hole is no obstacle.
        let mut window = window([1, 2, 3, 6]);
        assert_eq!(send_all(&mut window), [1, 2, 3, 6]);
        for (seq, cursor) in [(3, None), (1, Some(1)), (6, None), (2, Some(6))] {
            assert!(window.settle(seq).is_some());
            assert_eq!(window.advance(), cursor, "{seq}");
        }
        assert!(window.is_empty() && window.in_flight() == 0);
        assert!(window.settle(2).is_none() && !window.again(2));
    }

    #[test]
    fn nothing_is_sent_again_before_everything_has_come_back() {
        let mut window = window(1..=5);
        send_all(&mut window);
        window.settle(1);
        assert!(window.again(3));
        window.enter(record(6));
        assert_eq!(window.next_unsent(), None);
        assert!(window.again(4));
        window.settle(2);
        assert_eq!(window.next_unsent(), None, "5 is still in flight");
        window.settle(5);
        assert_eq!(window.advance(), Some(2));
        assert_eq!(
            send_all(&mut window),
            [3, 4, 6],
            "5 is stored and is not sent again"
        );
    }

    #[test]
    fn room_is_bounded_by_records_and_bytes() {
        let mut window = Window::new(WindowLimits { records: 3, bytes: 9 });
        assert_eq!(window.room(), Some((3, 9)));
        window.enter(record(1));
        assert_eq!(window.room(), Some((2, 4)));
        window.enter(record(2));
        assert_eq!(window.room(), None);
        window.settle(1);
        window.advance();
        assert_eq!(window.room(), Some((2, 4)));
    }

    proptest! {
        /// Whatever comes back in whatever order: each record is settled once, the cursor never passes an
        /// unsettled one, and no record is sent while a lower one is waiting to be sent again.
        #[test]
        fn every_record_is_settled_once_and_in_order(
            count in 1u64..40, choices in prop::collection::vec((any::<prop::sample::Index>(), 0u8..4), 1..400),
        ) {
            let mut window = window(1..=count);
            let mut flying: Vec<u64> = Vec::new();
            let mut settled = std::collections::BTreeSet::new();
            let mut cursor = 0;
            for (which, outcome) in choices {
                let wave = send_all(&mut window);
                prop_assert!(wave.windows(2).all(|pair| pair[0] < pair[1]));
                flying.extend(wave);
                prop_assert_eq!(window.in_flight(), flying.len());
                if flying.is_empty() {
                    break;
                }
                let seq = flying.swap_remove(which.index(flying.len()));
                if outcome == 0 {
                    prop_assert!(window.again(seq));
                } else {
                    prop_assert!(window.settle(seq).is_some());
                    prop_assert!(settled.insert(seq));
                }
                if let Some(now) = window.advance() {
                    prop_assert!(now > cursor && (cursor + 1..=now).all(|seq| settled.contains(&seq)));
                    cursor = now;
                }
            }
            prop_assert_eq!(window.is_empty(), cursor == count);
        }
    }
}
