//! How long a gateway holds its line after a question that nobody answers. Pure; time comes in.
//!
//! A gateway waits for a silent unit until *its* timeout, and serves nobody meanwhile, whatever the poller's timeout
//! is: a question to a silent unit costs the line the larger of the two. How long that is shows in the first answer
//! after a timeout: where it takes much longer than usual, the line was held until then. Where it does not, it was
//! free by then; and where it was asked as early as the estimate allows, the estimate is lowered a little further, so
//! that it finds its way down too.
//!
//! A line that is held longer than any answer is waited for shows that in no answer. So where a unit that answered until
//! just now does not, on a line that nobody has answered on since a question was given up, the line is believed to be
//! held longer, up to a bound: otherwise one unit after the other would be taken for silent.

use std::time::Duration;

use tokio::time::Instant;

/// What is assumed of a gateway until it is seen: common ones wait this long.
const ASSUMED: Duration = Duration::from_secs(1);
/// The longest that is believed.
const LONGEST: Duration = Duration::from_secs(30);
/// An answer that takes so much longer than twice the usual has waited for something.
const NOTICEABLE: Duration = Duration::from_millis(50);

/// The hold of one line.
#[derive(Clone, Debug)]
pub struct Hold {
    timeout: Duration,
    estimate: Duration,
    /// When the first question was sent that nobody has answered since.
    lost: Option<Instant>,
    free_at: Option<Instant>,
    /// Whether another unit was asked to see if the line is held at all, and did not answer either.
    queued: bool,
    /// When the first question was sent since the last answer of anybody.
    quiet_since: Option<Instant>,
}

impl Hold {
    /// `timeout` is the poller's own.
    #[must_use]
    pub fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            estimate: timeout.max(ASSUMED),
            lost: None,
            free_at: None,
            queued: false,
            quiet_since: None,
        }
    }

    /// What a question that nobody answers is expected to cost the line.
    #[must_use]
    pub fn expected(&self) -> Duration {
        self.estimate
    }

    /// Until when the line is expected to be held; `None` where it is free.
    #[must_use]
    pub fn until(&self, now: Instant) -> Option<Instant> {
        self.free_at.filter(|free_at| *free_at > now)
    }

    /// Whether it may be tried out that the line is held.
    #[must_use]
    pub fn may_be_doubted(&self) -> bool {
        !self.queued
    }

    /// A unit that may be silent too was asked while the line was held, and did not answer: the gateway may turn to it
    /// when it is done with the one before, and that may be when the question is given up.
    pub fn queue(&mut self, now: Instant) {
        self.queued = true;
        self.free_at = Some(self.free_at.unwrap_or(now) + self.estimate);
    }

    /// Whether the line may be held longer than was thought: nobody has answered on it since a question that was given
    /// up, and that was not long ago. A gateway that holds its line longer than any answer is waited for shows that
    /// in no answer, and one that queues what was given up holds it for each question in its turn.
    #[must_use]
    pub fn may_be_longer(&self, now: Instant) -> bool {
        self.quiet_since
            .is_some_and(|since| now.saturating_duration_since(since) <= LONGEST)
    }

    /// Somebody who answered until just now did not, and it may be for the line: it is given twice as long.
    pub fn prolong(&mut self, now: Instant) {
        self.estimate = self.estimate.saturating_mul(2).min(LONGEST).max(self.timeout);
        self.free_at = Some(now + self.estimate);
    }

    /// A question sent at `sent` was given up at `now`.
    pub fn timed_out(&mut self, sent: Instant, now: Instant) {
        self.quiet_since.get_or_insert(sent);
        let held = self.until(sent).is_some();
        if self.lost.is_none() || !held {
            self.lost = Some(sent);
            self.queued = false;
            self.free_at = (sent + self.estimate).max(now).into();
        } else {
            // It waited for the line, not for the unit.
            self.free_at = self.free_at.map(|free_at| free_at.max(now));
        }
    }

    /// A question sent at `sent` was answered at `now`; usually that takes `usual`.
    pub fn answered(&mut self, sent: Instant, now: Instant, usual: Duration) {
        (self.free_at, self.quiet_since) = (None, None);
        if std::mem::take(&mut self.queued) {
            // Which of the two held it, and how long, cannot be said.
            self.lost = None;
        }
        let Some(lost) = self.lost.take() else { return };
        let after = sent.saturating_duration_since(lost);
        if now - sent > 2 * usual + NOTICEABLE {
            let held = now.saturating_duration_since(lost).saturating_sub(usual);
            // Step by step: an answer may be slow for reasons of its own.
            let most = self.estimate.saturating_mul(2).min(LONGEST).max(self.timeout);
            self.estimate = held.mul_f64(1.1).clamp(self.timeout, most);
        } else if after <= self.estimate.mul_f64(1.05) {
            let at_most = after.mul_f64(1.1);
            self.estimate = self.estimate.mul_f64(0.9).min(at_most).max(self.timeout);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A probe at a gateway that holds its line for `hold`, then a question to a unit that answers within 5 ms, as
    /// early as the estimate allows.
    fn round(hold: &mut Hold, now: &mut Instant, held: Duration) {
        let sent = *now;
        hold.timed_out(sent, sent + 200 * MS);
        let asked = hold.until(sent + 200 * MS).unwrap_or(sent + 200 * MS);
        let answered = asked.max(sent + held) + 5 * MS;
        hold.answered(asked, answered, 5 * MS);
        assert_eq!(hold.until(answered), None);
        *now = answered;
    }

    #[test]
    fn finds_out_how_long_a_gateway_holds_its_line() {
        for held in [20, 300, 1_000, 3_000] {
            let (mut hold, mut now) = (Hold::new(200 * MS), Instant::now());
            assert_eq!(hold.expected(), ASSUMED);
            for _ in 0..40 {
                round(&mut hold, &mut now, held * MS);
            }
            let truth = (held * MS).max(200 * MS);
            assert!(
                hold.expected() >= truth.mul_f64(0.85).max(200 * MS) && hold.expected() <= truth.mul_f64(1.2),
                "{:?} for {truth:?}",
                hold.expected()
            );
        }
    }

    #[test]
    fn questions_that_wait_for_the_line_do_not_prolong_it() {
        let (mut hold, start) = (Hold::new(200 * MS), Instant::now());
        hold.timed_out(start, start + 200 * MS);
        hold.timed_out(start + 200 * MS, start + 400 * MS);
        assert_eq!(hold.until(start + 400 * MS), Some(start + ASSUMED));
        hold.answered(start + 1_400 * MS, start + 1_500 * MS, 5 * MS);
        assert!(hold.expected() > 1_500 * MS, "it was held since the first");
    }

    #[test]
    fn a_question_that_was_queued_may_hold_the_line_in_its_turn() {
        let (mut hold, start) = (Hold::new(500 * MS), Instant::now());
        hold.timed_out(start, start + 500 * MS);
        assert!(hold.may_be_doubted());
        // Given up just when the gateway is done with the first.
        hold.timed_out(start + 502 * MS, start + 1_002 * MS);
        hold.queue(start + 1_002 * MS);
        assert_eq!(hold.until(start + 1_002 * MS), Some(start + 2_002 * MS));
        assert!(!hold.may_be_doubted());
    }

    #[test]
    fn a_line_that_is_quiet_may_be_held_longer_than_thought() {
        let (mut hold, start) = (Hold::new(200 * MS), Instant::now());
        assert!(!hold.may_be_longer(start), "nobody was asked in vain");
        hold.timed_out(start, start + 200 * MS);
        // Believed free after a second; whoever answers otherwise does not then.
        hold.timed_out(start + 1_500 * MS, start + 1_700 * MS);
        assert!(hold.may_be_longer(start + 1_700 * MS));
        hold.prolong(start + 1_700 * MS);
        assert_eq!(hold.expected(), 2 * ASSUMED);
        assert_eq!(hold.until(start + 1_700 * MS), Some(start + 3_700 * MS));
        for _ in 0..9 {
            hold.prolong(start + 1_700 * MS);
        }
        assert_eq!(hold.expected(), LONGEST);
        assert!(
            !hold.may_be_longer(start + LONGEST + MS),
            "no line is held for ever"
        );
        hold.answered(start + 4_000 * MS, start + 4_005 * MS, 5 * MS);
        assert!(!hold.may_be_longer(start + 4_005 * MS));
        assert!(
            hold.expected() < 3_000 * MS,
            "it was free by then: {:?}",
            hold.expected()
        );
    }

    #[test]
    fn an_answer_long_after_says_nothing() {
        let (mut hold, start) = (Hold::new(200 * MS), Instant::now());
        hold.timed_out(start, start + 200 * MS);
        hold.answered(start + 60_000 * MS, start + 60_005 * MS, 5 * MS);
        assert_eq!(hold.expected(), ASSUMED);
        // A slow one says little.
        hold.timed_out(start, start + 200 * MS);
        hold.answered(start + 60_000 * MS, start + 60_400 * MS, 5 * MS);
        assert_eq!(hold.expected(), 2 * ASSUMED);
    }
}
