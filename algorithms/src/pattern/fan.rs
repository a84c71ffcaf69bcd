//! Fan-in and fan-out of any width, in steps of at most [`MAX_FAN`] operands.

use std::ops::Range;

use crate::schedule::MAX_FAN;

const WIDTH: u32 = MAX_FAN as u32;

/// The canonical fold of any number of leaves in steps of at most [`MAX_FAN`] inputs: leaves are
/// folded in aligned groups of eight, then the results of the groups in the same way, until one
/// step is left. Eight is a power of two, so each group is a subtree of the balanced tree and the
/// whole fold is that tree.
#[derive(Clone, Copy, Debug)]
pub struct FanIn {
    /// The number of leaves, at least one.
    pub leaves: u32,
}

/// One step of a [`FanIn`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FanInStep {
    /// The operands that it folds.
    pub inputs: FanInInputs,
    /// The number of its intermediate result, or None for the last step, whose result is the whole
    /// fold.
    pub result: Option<u32>,
}

/// The operands of one step of a [`FanIn`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FanInInputs {
    /// These leaves.
    Leaves(Range<u32>),
    /// These intermediate results.
    Results(Range<u32>),
}

impl FanIn {
    /// The number of steps.
    pub const fn steps(self) -> u32 {
        let (mut steps, mut width) = (0, self.leaves);
        loop {
            width = width.div_ceil(WIDTH);
            steps += width;
            if width == 1 {
                return steps;
            }
        }
    }

    /// The number of intermediate results.
    pub const fn results(self) -> u32 {
        self.steps() - 1
    }

    /// Step `index`. O(log leaves).
    pub fn step(self, index: u32) -> FanInStep {
        // A level folds `width` values, numbered from `from`, in groups into values numbered from
        // `to`.
        let (mut width, mut from, mut to) = (self.leaves, None, 0);
        loop {
            let groups = width.div_ceil(WIDTH);
            if index < to + groups {
                let first = (index - to) * WIDTH;
                let range = first..(first + WIDTH).min(width);
                let inputs = match from {
                    None => FanInInputs::Leaves(range),
                    Some(base) => FanInInputs::Results(base + range.start..base + range.end),
                };
                return FanInStep { inputs, result: (groups > 1).then_some(index) };
            }
            (width, from, to) = (groups, Some(to), to + groups);
        }
    }
}

/// One value sent to `targets` receivers in several steps. The first step sends to at most `first`
/// of them, since it may have other outputs; each later step sends to at most [`MAX_FAN`].
#[derive(Clone, Copy, Debug)]
pub struct FanOut {
    /// The number of receivers.
    pub targets: u32,
    /// The largest number of receivers of the first step.
    pub first: u32,
}

impl FanOut {
    /// The number of steps, the first included.
    pub const fn steps(self) -> u32 {
        1 + self.targets.saturating_sub(self.first).div_ceil(WIDTH)
    }

    /// The receivers of step `index`, as numbers below `targets`.
    pub fn step(self, index: u32) -> Range<u32> {
        let end = (self.first + index * WIDTH).min(self.targets);
        let start =
            if index == 0 { 0 } else { (self.first + (index - 1) * WIDTH).min(self.targets) };
        start..end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_leaf_and_every_result_is_folded_once() {
        for leaves in 1..700 {
            let fan = FanIn { leaves };
            let (mut seen_leaves, mut seen_results) = (0, 0);
            for i in 0..fan.steps() {
                let step = fan.step(i);
                match step.inputs {
                    FanInInputs::Leaves(r) => {
                        assert_eq!(r.start, seen_leaves);
                        seen_leaves = r.end;
                    }
                    FanInInputs::Results(r) => {
                        assert!(r.start == seen_results && r.end <= i);
                        seen_results = r.end;
                    }
                }
                assert_eq!(step.result, (i + 1 < fan.steps()).then_some(i));
            }
            assert_eq!((seen_leaves, seen_results), (leaves, fan.results()));
        }
    }

    #[test]
    fn every_target_is_served_once() {
        for targets in 0..100 {
            for first in [7, 8] {
                let fan = FanOut { targets, first };
                let served: Vec<u32> = (0..fan.steps()).flat_map(|i| fan.step(i)).collect();
                assert_eq!(served, (0..targets).collect::<Vec<_>>());
            }
        }
    }
}
