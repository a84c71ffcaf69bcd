//! What memory and messages hold, followed through an execution, and what the outputs must hold in the end.

use super::counterexample::Violation;
use super::form::{Form, Resolved, takes};
use super::machine::{Firing, Numbering};
use super::memory::Memory;
use super::term::{Shape, Symbolic, Term, Terms, Value};
use super::tree::ReductionTree;
use crate::schedule::Chunk;
use crate::semantics::evaluate_inputs;
use crate::types::{Collective, Rank};

/// The contents during one execution.
pub(super) struct Values<'a> {
    calls: &'a [Form],
    memory: &'a Memory,
    numbering: &'a Numbering,
    cells: Vec<Value>,
    /// By slot.
    messages: Vec<Value>,
}

impl<'a> Values<'a> {
    /// Send buffers full, all else undefined. `terms` has one for each call.
    pub(super) fn new(
        calls: &'a [Form],
        memory: &'a Memory,
        numbering: &'a Numbering,
        terms: &[Terms],
    ) -> Self {
        let mut cells = vec![Value::Undefined; memory.cells];
        for (call, form) in calls.iter().enumerate() {
            for tile in 0..form.tiles {
                for rank in 0..form.nranks {
                    for i in 0..form.inputs {
                        let leaf = terms[call].leaf(rank, i);
                        cells[memory.cell(call, form, rank, Chunk::Input(i), tile)] =
                            Value::Raw { leaf, tile };
                    }
                }
            }
        }
        Self { calls, memory, numbering, cells, messages: vec![Value::Undefined; numbering.total] }
    }

    /// Evaluates a step.
    pub(super) fn fire(&mut self, terms: &mut [Terms], firing: &Firing) -> Result<(), Violation> {
        let Firing { call, lane, step, tile, .. } = *firing;
        let form = &self.calls[call];
        let rank = form.lanes[lane as usize].rank;
        let text = form.step(step);
        let slot = |link: u32, ordinal: u32| {
            self.numbering.slot(link, self.numbering.message(call, form, tile, link, ordinal))
        };
        let mut violation = None;
        let mut symbolic = Symbolic { terms: &mut terms[call], fault: None };
        let read = |operand| match operand {
            Resolved::Local(chunk) => {
                let mut value = self.cells[self.memory.cell(call, form, rank, chunk, tile)];
                match (chunk, value) {
                    (Chunk::Input(_), Value::Raw { .. }) => {}
                    // Nothing is scaled where nothing is reduced: a copy in place changes nothing.
                    (Chunk::Input(i), Value::Made { term, tile })
                        if !form.collective.reduces() && term == rank * form.inputs + i =>
                    {
                        value = Value::Raw { leaf: term, tile };
                    }
                    (Chunk::Input(_), _) => violation = Some(Violation::Overwritten(chunk)),
                    (_, Value::Made { .. }) => {}
                    (_, _) => violation = Some(Violation::Undefined(chunk)),
                }
                value
            }
            Resolved::Message { link, ordinal } => self.messages[slot(link, ordinal)],
        };
        let result =
            evaluate_inputs(&mut symbolic, text.inputs, text.finish, Resolved::chunk, read);
        if let Some(violation) = violation {
            return Err(violation);
        }
        if let Some(fault) = symbolic.fault {
            return Err(Violation::Algebra(fault));
        }
        for output in text.outputs {
            match *output {
                Resolved::Local(chunk) => {
                    self.cells[self.memory.cell(call, form, rank, chunk, tile)] = result;
                }
                Resolved::Message { link, ordinal } => {
                    let slot = slot(link, ordinal);
                    self.messages[slot] = result;
                }
            }
        }
        Ok(())
    }

    /// Whether the outputs of call `call` are what its collective demands; if `partly`, those that were written.
    /// Returns the terms of the first tile, by rank and output chunk.
    pub(super) fn outcome(
        &self,
        terms: &[Terms],
        call: usize,
        partly: bool,
    ) -> Result<Vec<Option<Term>>, Violation> {
        let form = &self.calls[call];
        let terms = &terms[call];
        let mut roots = Vec::with_capacity((form.nranks * form.outputs) as usize);
        for tile in 0..form.tiles {
            for rank in 0..form.nranks {
                for output in 0..form.outputs {
                    let root = match wanted(form, rank, output) {
                        None => None,
                        Some(wanted) => {
                            let value = self.output(call, rank, output, tile);
                            if partly && !matches!(value, Value::Made { .. }) {
                                continue;
                            }
                            match achieved(terms, &wanted, value, tile) {
                                Some(root) => Some(root),
                                None => {
                                    return Err(Violation::Postcondition {
                                        rank,
                                        output,
                                        tile,
                                        found: describe(terms, value),
                                        wanted: wanted.describe(),
                                    });
                                }
                            }
                        }
                    };
                    if tile == 0 {
                        roots.push(root);
                    } else if !partly {
                        let first = roots[(rank * form.outputs + output) as usize];
                        agree(terms, output, ((rank, 0), first), ((rank, tile), root))?;
                    }
                }
            }
        }
        if form.collective == Collective::AllReduce {
            for (i, &root) in roots.iter().enumerate() {
                let (rank, output) = (i as u32 / form.outputs, i as u32 % form.outputs);
                agree(terms, output, ((0, 0), roots[output as usize]), ((rank, 0), root))?;
            }
        }
        Ok(roots)
    }

    fn output(&self, call: usize, rank: Rank, output: u32, tile: u32) -> Value {
        self.cells[self.memory.cell(call, &self.calls[call], rank, Chunk::Output(output), tile)]
    }
}

/// What a collective demands of an output chunk.
enum Wanted {
    /// The input chunk of a rank.
    Copy { rank: Rank, chunk: u32 },
    /// The finished reduction of the input chunk over all ranks.
    Reduction { chunk: u32 },
}

impl Wanted {
    fn describe(&self) -> String {
        match self {
            Self::Copy { rank, chunk } => format!("in{chunk} of rank {rank}"),
            Self::Reduction { chunk } => {
                format!("the finished reduction of in{chunk} over all ranks")
            }
        }
    }
}

/// What the collective alone demands of output chunk `output` of `rank`; None if the rank gets nothing.
fn wanted(form: &Form, rank: Rank, output: u32) -> Option<Wanted> {
    let parts = form.parts;
    if !takes(form.collective, rank) {
        return None;
    }
    let (block, part) = (output / parts, output % parts);
    Some(match form.collective {
        Collective::AllReduce | Collective::Reduce { .. } => Wanted::Reduction { chunk: output },
        Collective::ReduceScatter => Wanted::Reduction { chunk: rank * parts + output },
        Collective::AllGather | Collective::Gather { .. } => {
            Wanted::Copy { rank: block, chunk: part }
        }
        Collective::Broadcast { root } => Wanted::Copy { rank: root, chunk: output },
        Collective::AllToAll => Wanted::Copy { rank: block, chunk: rank * parts + part },
        Collective::Scatter { root } => Wanted::Copy { rank: root, chunk: rank * parts + output },
    })
}

/// The term of `value` if it is what is wanted.
fn achieved(terms: &Terms, wanted: &Wanted, value: Value, tile: u32) -> Option<Term> {
    let Value::Made { term, tile: of } = value else { return None };
    let right = match *wanted {
        Wanted::Copy { rank, chunk } => term == terms.leaf(rank, chunk),
        Wanted::Reduction { chunk } => {
            matches!(terms.shape(term), Shape::Finish(_))
                && terms.origin(term) == chunk
                && terms.is_complete(term)
        }
    };
    (right && of == tile).then_some(term)
}

fn describe(terms: &Terms, value: Value) -> String {
    match value {
        Value::Undefined => "nothing".to_owned(),
        Value::Raw { .. } => "its untouched input".to_owned(),
        Value::Made { term, tile } => {
            format!("{} (of tile {tile})", ReductionTree::new(terms, term))
        }
    }
}

type Root = ((Rank, u32), Option<Term>);

fn agree(terms: &Terms, output: u32, first: Root, second: Root) -> Result<(), Violation> {
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
