//! The origin of each step: the input chunk that is as long as everything that the step reads and
//! writes.

use super::counterexample::Violation;
use super::term::{SymbolicValue, TermId, TermTable};
use crate::flat::FlatSchedule;
use crate::types::Rank;

/// The origins of all steps of a schedule.
pub(super) struct StepOrigins {
    /// By rank the number of its first lane, and the number of lanes at the end.
    first_lane: Vec<u32>,
    /// By lane the number of its first step, and the number of steps at the end.
    first_step: Vec<u32>,
    /// Input chunks per rank.
    inputs: u32,
    /// By step the contribution from its origin, [`UNKNOWN`] before the step was executed.
    leaves: Vec<TermId>,
}

const UNKNOWN: TermId = TermId::MAX;

impl StepOrigins {
    /// The origins of a schedule that is not executed yet.
    pub(super) fn new(flat: &FlatSchedule, terms: &TermTable) -> Self {
        let first_lane = (0..flat.nranks).map(|rank| flat.lanes_of(rank).start);
        let first_step = flat.lanes.iter().map(|lane| lane.first_step);
        Self {
            first_lane: first_lane.chain([flat.lanes.len() as u32]).collect(),
            first_step: first_step.chain([flat.steps.len() as u32]).collect(),
            inputs: terms.inputs(),
            leaves: vec![UNKNOWN; flat.steps.len()],
        }
    }

    /// Notes the result of step number `step` in one tile of one execution. The origin must be the
    /// same in all of them.
    pub(super) fn note(
        &mut self,
        terms: &TermTable,
        step: u32,
        result: SymbolicValue,
    ) -> Result<(), Violation> {
        let SymbolicValue::Made { term, .. } = result else {
            return Err(Violation::Algebra("a step has no result of a known length".to_owned()));
        };
        let (leaf, known) = (terms.model(term), &mut self.leaves[step as usize]);
        if *known != UNKNOWN && *known != leaf {
            return Err(Violation::Algebra(
                "a step moves another chunk in one tile than in the next".to_owned(),
            ));
        }
        *known = leaf;
        Ok(())
    }

    /// The rank and the number of the input chunk from which a step has its result.
    pub(super) fn of(&self, rank: Rank, lane: u32, index: u32) -> Option<(Rank, u32)> {
        let lanes =
            *self.first_lane.get(rank as usize)?..*self.first_lane.get(rank as usize + 1)?;
        let lane = lanes.start.checked_add(lane).filter(|lane| lanes.contains(lane))? as usize;
        let steps = self.first_step[lane]..self.first_step[lane + 1];
        let step = steps.start.checked_add(index).filter(|step| steps.contains(step))?;
        let leaf = self.leaves[step as usize];
        Some((leaf / self.inputs, leaf % self.inputs))
    }
}

#[cfg(test)]
mod tests {
    use crate::collective::all;
    use crate::schedule::{Chunk, Operand};
    use crate::verify::prove;

    #[test]
    fn all_operands_of_a_step_are_as_long_as_its_origin() {
        for generator in all() {
            for nranks in [1, 2, 3, 5, 8] {
                let collective = generator.collective_with_root(nranks - 1);
                let proved = prove(generator.schedule(collective, nranks)).unwrap();
                let schedule = proved.schedule();
                // Blocks of the same length have parts of the same lengths.
                let part = |chunk: u32| chunk % schedule.parts;
                for rank in 0..nranks {
                    for lane in 0..schedule.lanes(rank) {
                        for (index, step) in (0..).zip(schedule.lane(rank, lane)) {
                            let (from, origin) = proved.origin(rank, lane, index).unwrap();
                            for operand in step.inputs.iter().chain(&step.outputs) {
                                if let Operand::Local(Chunk::Input(i) | Chunk::Output(i)) = *operand
                                {
                                    assert_eq!(part(i), part(origin), "{schedule:?}");
                                }
                            }
                            // What is not reduced keeps its rank.
                            if let [Operand::Local(Chunk::Input(i))] = *step.inputs
                                && !collective.reduces()
                            {
                                assert_eq!((from, origin), (rank, i), "{schedule:?}");
                            }
                        }
                        assert_eq!(proved.origin(rank, lane, schedule.steps(rank, lane)), None);
                    }
                    assert_eq!(proved.origin(rank, schedule.lanes(rank), 0), None);
                }
                assert_eq!(proved.origin(nranks, 0, 0), None);
                assert_eq!(proved.origin(0, u32::MAX, u32::MAX), None);
            }
        }
    }
}
