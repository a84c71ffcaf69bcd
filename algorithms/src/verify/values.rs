//! The symbolic content of memory and messages during an execution, and what the outputs must hold
//! at its end.

use super::call::{ExecutedCall, has_output};
use super::counterexample::Violation;
use super::execution::Firing;
use super::memory::CellLayout;
use super::numbering::MessageNumbering;
use super::term::{SymbolicAlgebra, SymbolicValue, TermId, TermShape, TermTable};
use super::tree::ReductionTree;
use crate::flat::FlatOperand;
use crate::schedule::Chunk;
use crate::semantics::evaluate_inputs;
use crate::types::{Collective, Rank};

/// The content of every cell and message slot during one execution.
pub(super) struct SymbolicMemory<'a> {
    calls: &'a [ExecutedCall],
    layout: &'a CellLayout,
    numbering: &'a MessageNumbering,
    cells: Vec<SymbolicValue>,
    /// By message slot.
    messages: Vec<SymbolicValue>,
}

impl<'a> SymbolicMemory<'a> {
    /// Send buffers hold their contributions, all else is undefined. `terms` has a table per call.
    pub(super) fn new(
        calls: &'a [ExecutedCall],
        layout: &'a CellLayout,
        numbering: &'a MessageNumbering,
        terms: &[TermTable],
    ) -> Self {
        let mut cells = vec![SymbolicValue::Undefined; layout.cells];
        for (call, executed) in calls.iter().enumerate() {
            for tile in 0..executed.tiles {
                for rank in 0..executed.flat.nranks {
                    for i in 0..executed.inputs {
                        let leaf = terms[call].leaf(rank, i);
                        cells[layout.cell(call, executed, rank, Chunk::Input(i), tile)] =
                            SymbolicValue::Raw { leaf, tile };
                    }
                }
            }
        }
        Self {
            calls,
            layout,
            numbering,
            cells,
            messages: vec![SymbolicValue::Undefined; numbering.total],
        }
    }

    /// Evaluates the step of a firing, stores its result and returns it.
    pub(super) fn fire(
        &mut self,
        terms: &mut [TermTable],
        firing: &Firing,
    ) -> Result<SymbolicValue, Violation> {
        let Firing { call, lane, step, tile, .. } = *firing;
        let executed = &self.calls[call];
        let rank = executed.flat.lanes[lane as usize].rank;
        let view = executed.flat.step(step);
        let slot = |link: u32, ordinal: u32| {
            self.numbering.slot(link, self.numbering.message(call, executed, tile, link, ordinal))
        };
        let mut violation = None;
        let mut symbolic = SymbolicAlgebra { terms: &mut terms[call], fault: None };
        let read = |operand| match operand {
            FlatOperand::Local(chunk) => {
                let mut value = self.cells[self.layout.cell(call, executed, rank, chunk, tile)];
                match (chunk, value) {
                    (Chunk::Input(_), SymbolicValue::Raw { .. }) => {}
                    // Without a reduction no contribution is scaled, so a copy onto itself in place
                    // leaves the chunk what it was.
                    (Chunk::Input(i), SymbolicValue::Made { term, tile })
                        if !executed.collective.reduces() && term == rank * executed.inputs + i =>
                    {
                        value = SymbolicValue::Raw { leaf: term, tile };
                    }
                    (Chunk::Input(_), _) => violation = Some(Violation::Overwritten(chunk)),
                    (_, SymbolicValue::Made { .. }) => {}
                    (_, _) => violation = Some(Violation::Undefined(chunk)),
                }
                value
            }
            FlatOperand::Message { link, ordinal } => self.messages[slot(link, ordinal)],
        };
        let result =
            evaluate_inputs(&mut symbolic, view.inputs, view.finish, FlatOperand::chunk, read);
        if let Some(violation) = violation {
            return Err(violation);
        }
        if let Some(fault) = symbolic.fault {
            return Err(Violation::Algebra(fault));
        }
        for output in view.outputs {
            match *output {
                FlatOperand::Local(chunk) => {
                    self.cells[self.layout.cell(call, executed, rank, chunk, tile)] = result;
                }
                FlatOperand::Message { link, ordinal } => {
                    let slot = slot(link, ordinal);
                    self.messages[slot] = result;
                }
            }
        }
        Ok(result)
    }

    /// Checks that the outputs of call `call` are what its collective requires; if `only_written`,
    /// those that were written. Returns the terms of the first tile, by rank and output chunk.
    pub(super) fn outcome(
        &self,
        terms: &[TermTable],
        call: usize,
        only_written: bool,
    ) -> Result<Vec<Option<TermId>>, Violation> {
        let executed = &self.calls[call];
        let terms = &terms[call];
        let mut outcome = Vec::with_capacity((executed.flat.nranks * executed.outputs) as usize);
        for tile in 0..executed.tiles {
            for rank in 0..executed.flat.nranks {
                for output in 0..executed.outputs {
                    let root = match required(executed, rank, output) {
                        None => None,
                        Some(required) => {
                            let value = self.output(call, rank, output, tile);
                            if only_written && !matches!(value, SymbolicValue::Made { .. }) {
                                continue;
                            }
                            match achieved(terms, &required, value, tile) {
                                Some(root) => Some(root),
                                None => {
                                    return Err(Violation::Postcondition {
                                        rank,
                                        output,
                                        tile,
                                        found: describe(terms, value),
                                        wanted: required.describe(),
                                    });
                                }
                            }
                        }
                    };
                    if tile == 0 {
                        outcome.push(root);
                    } else if !only_written {
                        let first = outcome[(rank * executed.outputs + output) as usize];
                        agree(terms, output, ((rank, 0), first), ((rank, tile), root))?;
                    }
                }
            }
        }
        if executed.collective == Collective::AllReduce {
            for (i, &root) in outcome.iter().enumerate() {
                let (rank, output) = (i as u32 / executed.outputs, i as u32 % executed.outputs);
                agree(terms, output, ((0, 0), outcome[output as usize]), ((rank, 0), root))?;
            }
        }
        Ok(outcome)
    }

    fn output(&self, call: usize, rank: Rank, output: u32, tile: u32) -> SymbolicValue {
        self.cells[self.layout.cell(call, &self.calls[call], rank, Chunk::Output(output), tile)]
    }
}

/// What a collective requires of an output chunk.
enum RequiredOutput {
    /// A copy of an input chunk of a rank.
    Copy { rank: Rank, chunk: u32 },
    /// The finished reduction of the input chunk over all ranks.
    Reduction { chunk: u32 },
}

impl RequiredOutput {
    fn describe(&self) -> String {
        match self {
            Self::Copy { rank, chunk } => format!("in{chunk} of rank {rank}"),
            Self::Reduction { chunk } => {
                format!("the finished reduction of in{chunk} over all ranks")
            }
        }
    }
}

/// What the collective requires of output chunk `output` of `rank`; None if the rank gets nothing.
fn required(executed: &ExecutedCall, rank: Rank, output: u32) -> Option<RequiredOutput> {
    let parts = executed.parts;
    if !has_output(executed.collective, rank) {
        return None;
    }
    let (block, part) = (output / parts, output % parts);
    Some(match executed.collective {
        Collective::AllReduce | Collective::Reduce { .. } => {
            RequiredOutput::Reduction { chunk: output }
        }
        Collective::ReduceScatter => RequiredOutput::Reduction { chunk: rank * parts + output },
        Collective::AllGather | Collective::Gather { .. } => {
            RequiredOutput::Copy { rank: block, chunk: part }
        }
        Collective::Broadcast { root } => RequiredOutput::Copy { rank: root, chunk: output },
        Collective::AllToAll => RequiredOutput::Copy { rank: block, chunk: rank * parts + part },
        Collective::Scatter { root } => {
            RequiredOutput::Copy { rank: root, chunk: rank * parts + output }
        }
    })
}

/// The term of `value` if it is what is required, and of this tile.
fn achieved(
    terms: &TermTable,
    required: &RequiredOutput,
    value: SymbolicValue,
    tile: u32,
) -> Option<TermId> {
    let SymbolicValue::Made { term, tile: of } = value else { return None };
    let right = match *required {
        RequiredOutput::Copy { rank, chunk } => term == terms.leaf(rank, chunk),
        RequiredOutput::Reduction { chunk } => {
            matches!(terms.shape(term), TermShape::Finish(_))
                && terms.origin(term) == chunk
                && terms.is_complete(term)
        }
    };
    (right && of == tile).then_some(term)
}

fn describe(terms: &TermTable, value: SymbolicValue) -> String {
    match value {
        SymbolicValue::Undefined => "nothing".to_owned(),
        SymbolicValue::Raw { .. } => "its untouched input".to_owned(),
        SymbolicValue::Made { term, tile } => {
            format!("{} (of tile {tile})", ReductionTree::new(terms, term))
        }
    }
}

/// The rank and tile of an output, and its term.
type OutputTerm = ((Rank, u32), Option<TermId>);

/// Two terms of the same output chunk must be equal.
fn agree(
    terms: &TermTable,
    output: u32,
    first: OutputTerm,
    second: OutputTerm,
) -> Result<(), Violation> {
    match (first, second) {
        ((first, Some(a)), (second, Some(b))) if a != b => Err(Violation::Disagreement {
            output,
            first,
            second,
            first_tree: ReductionTree::new(terms, a).to_string(),
            second_tree: ReductionTree::new(terms, b).to_string(),
        }),
        _ => Ok(()),
    }
}
