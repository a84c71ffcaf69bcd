//! The step that closes a tile: it waits until all lanes have finished with the scratch of the
//! tile.
//!
//! Scratch is the same memory in every tile, so the lane that writes it first in a tile must not
//! begin the next tile before the other lanes are done with it. Its last step names the last steps
//! of those lanes. If there are more than a step can name, each of the first of them is named by
//! another one.

use crate::schedule::MAX_FAN;
use crate::schedule::{After, Step};

/// The lanes `first..end`, which must have finished a tile before the closing step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Closing {
    pub(super) first: u32,
    pub(super) end: u32,
    /// How many of them the closing step names, at least two: what the last step of a lane lends
    /// may be received by the next lane of a peer, which must not wait for it.
    pub(super) width: u32,
}

impl Closing {
    /// How many lanes a step names, except in a test that uses fewer.
    pub(super) const WIDTH: u32 = MAX_FAN as u32;

    /// Makes `step` the closing step; `last` gives the last step of a lane.
    pub(super) fn close(self, mut step: Step, last: impl Fn(u32) -> u32) -> Step {
        for lane in self.end.saturating_sub(self.width).max(self.first)..self.end {
            step.after.push(After { lane, step: last(lane) });
        }
        step
    }

    /// Makes `step` the last step of `lane`, which is one of those lanes.
    pub(super) fn pass_on(self, lane: u32, step: Step, last: impl Fn(u32) -> u32) -> Step {
        match lane.checked_sub(self.width).filter(|other| *other >= self.first) {
            Some(other) => step.after(other, last(other)),
            None => step,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lane_is_waited_for() {
        for width in 2..5 {
            for end in 2..12 {
                let closing = Closing { first: 2, end, width };
                let named = |step: Step| step.after.iter().map(|a| a.lane).collect::<Vec<_>>();
                let mut seen = named(closing.close(Step::default(), |_| 0));
                seen.extend(
                    (2..end).flat_map(|l| named(closing.pass_on(l, Step::default(), |_| 0))),
                );
                seen.sort_unstable();
                assert_eq!(seen, (2..end).collect::<Vec<_>>());
            }
        }
    }
}
