//! Noticing that nothing becomes durable although the server waits for it.

use std::time::Duration;

use borealis_types::Lsn;

/// Log that waits for so long is worth a line.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two lines of one standstill there is this long at least, and twice as long each time.
const AGAIN_AFTER: Duration = Duration::from_secs(10);

/// What there is to say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Word {
    /// Nothing has become durable for so long.
    StandsStill(Duration),
    /// Something has, after so long; and that it had not was said.
    GoesOn(Duration),
}

/// Watches one stream. Time is that of the caller's clock, which only moves forward.
#[derive(Clone, Debug, Default)]
pub struct Standstill {
    durable: Lsn,
    /// When the durable point moved last, or something began to wait for it.
    since: Duration,
    /// When to say it next, and how long after that.
    next: Option<(Duration, Duration)>,
}

impl Standstill {
    /// Takes a look: where the volume is durable, and whether something is written that is not.
    pub fn look(&mut self, now: Duration, durable: Lsn, is_waiting: bool) -> Option<Word> {
        let stood = now.saturating_sub(self.since);
        if durable != self.durable || !is_waiting {
            (self.durable, self.since) = (durable, now);
            return self.next.take().map(|_| Word::GoesOn(stood));
        }
        let (due, pause) = self.next.unwrap_or((self.since + PATIENCE, AGAIN_AFTER));
        if now < due {
            return None;
        }
        self.next = Some((now + pause, pause * 2));
        Some(Word::StandsStill(stood))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn a_standstill_is_said_ever_more_seldom_and_its_end_once() {
        let mut standstill = Standstill::default();
        let mut said = Vec::new();
        for second in 0..100u32 {
            // Nothing waits at first; from second 20 on, nothing becomes durable until second 90.
            let durable = Lsn(if second < 90 { u64::from(second.min(20)) } else { 21 });
            if let Some(word) = standstill.look(S * second, durable, second > 10) {
                said.push((second, word));
            }
        }
        let expected = [
            (25, Word::StandsStill(S * 5)),
            (35, Word::StandsStill(S * 15)),
            (55, Word::StandsStill(S * 35)),
            (90, Word::GoesOn(S * 70)),
            (95, Word::StandsStill(S * 5)),
        ];
        assert_eq!(said, expected);
    }

    #[test]
    fn a_volume_with_nothing_to_do_does_not_stand_still() {
        let mut standstill = Standstill::default();
        assert!((0..1000).all(|second| standstill.look(S * second, Lsn(80), false).is_none()));
        assert_eq!(standstill.look(S * 1003, Lsn(80), true), None, "it waits since now");
        assert_eq!(standstill.look(S * 1004, Lsn(80), true), Some(Word::StandsStill(S * 5)));
    }
}
