//! Symbolic values: the content of a chunk as a term over the contributions of the ranks.
//! Equal terms have equal numbers, so two reduction trees are compared by comparing two numbers.

use rustc_hash::FxHashMap;

use crate::semantics::{Algebra, fold};
use crate::types::{Collective, Rank};

/// The number of a term: first the contributions, by rank and input chunk, then all other terms in
/// the order in which they were first made.
pub(super) type TermId = u32;

/// The content of a chunk or of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SymbolicValue {
    /// Nothing was written to it.
    Undefined,
    /// A chunk of a send buffer as the caller left it, before it is read as a contribution.
    Raw { leaf: TermId, tile: u32 },
    /// A result of steps.
    Made { term: TermId, tile: u32 },
}

/// The outermost operation of a term.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum TermShape {
    /// The contribution of a rank from its input chunk.
    Leaf { rank: Rank, chunk: u32 },
    /// One binary node of the reduction.
    Combine(TermId, TermId),
    /// The operation's closing function.
    Finish(TermId),
}

/// All terms that an execution has made, each stored once.
pub(super) struct TermTable {
    reduces: bool,
    nranks: u32,
    inputs: u32,
    made: Vec<TermShape>,
    numbers: FxHashMap<TermShape, TermId>,
    /// By made term the input chunk that it reduces.
    origins: Vec<u32>,
    /// By made term the set of ranks whose contributions are in it, in [`Self::words`] words.
    sets: Vec<u64>,
    /// Words of a set of ranks.
    words: usize,
}

impl TermTable {
    /// The contributions of `nranks` ranks with `inputs` input chunks each.
    pub(super) fn new(collective: Collective, nranks: u32, inputs: u32) -> Self {
        Self {
            reduces: collective.reduces(),
            nranks,
            inputs,
            made: Vec::new(),
            numbers: FxHashMap::default(),
            origins: Vec::new(),
            sets: Vec::new(),
            words: nranks.div_ceil(64) as usize,
        }
    }

    /// Input chunks per rank.
    pub(super) fn inputs(&self) -> u32 {
        self.inputs
    }

    /// The contribution of `rank` from `chunk`.
    pub(super) fn leaf(&self, rank: Rank, chunk: u32) -> TermId {
        rank * self.inputs + chunk
    }

    fn leaves(&self) -> u32 {
        self.nranks * self.inputs
    }

    pub(super) fn shape(&self, term: TermId) -> TermShape {
        match term.checked_sub(self.leaves()) {
            Some(made) => self.made[made as usize],
            None => TermShape::Leaf { rank: term / self.inputs, chunk: term % self.inputs },
        }
    }

    /// The contribution that is as long as the term: the term itself if nothing is reduced, else
    /// that of rank 0.
    pub(super) fn model(&self, term: TermId) -> TermId {
        if self.reduces { self.leaf(0, self.origin(term)) } else { term }
    }

    /// The input chunk whose contributions are in the term.
    pub(super) fn origin(&self, term: TermId) -> u32 {
        match term.checked_sub(self.leaves()) {
            Some(made) => self.origins[made as usize],
            None => term % self.inputs,
        }
    }

    /// Word `word` of the set of ranks whose contributions are in the term.
    fn ranks(&self, term: TermId, word: usize) -> u64 {
        match term.checked_sub(self.leaves()) {
            Some(made) => self.sets[made as usize * self.words + word],
            None => {
                let rank = (term / self.inputs) as usize;
                if rank / 64 == word { 1 << (rank % 64) } else { 0 }
            }
        }
    }

    /// Whether the contributions of all ranks are in the term.
    pub(super) fn is_complete(&self, term: TermId) -> bool {
        (0..self.words).map(|w| self.ranks(term, w).count_ones()).sum::<u32>() == self.nranks
    }

    /// The ranks whose contributions are in the term, for an error message.
    fn list(&self, term: TermId) -> String {
        let holds = |rank: &u32| self.ranks(term, (rank / 64) as usize) >> (rank % 64) & 1 == 1;
        let ranks: Vec<_> = (0..self.nranks).filter(holds).map(|rank| rank.to_string()).collect();
        ranks.join(", ")
    }

    fn intern(&mut self, shape: TermShape, origin: u32, parts: (TermId, TermId)) -> TermId {
        if let Some(&term) = self.numbers.get(&shape) {
            return term;
        }
        let term = self.leaves() + self.made.len() as u32;
        self.made.push(shape);
        self.origins.push(origin);
        for word in 0..self.words {
            self.sets.push(self.ranks(parts.0, word) | self.ranks(parts.1, word));
        }
        self.numbers.insert(shape, term);
        term
    }

    fn combine(&mut self, left: TermId, right: TermId) -> Result<TermId, String> {
        let (origin, other) = (self.origin(left), self.origin(right));
        if !self.reduces {
            return Err(
                "contributions are combined in a collective that reduces nothing".to_owned()
            );
        }
        for part in [left, right] {
            if matches!(self.shape(part), TermShape::Finish(_)) {
                return Err("a finished reduction is combined with more".to_owned());
            }
        }
        if origin != other {
            return Err(format!(
                "contributions to chunk {origin} are combined with those to chunk {other}"
            ));
        }
        if (0..self.words).any(|w| self.ranks(left, w) & self.ranks(right, w) != 0) {
            let (left, right) = (self.list(left), self.list(right));
            return Err(format!(
                "a contribution counts twice: ranks {left} are combined with ranks {right}"
            ));
        }
        Ok(self.intern(TermShape::Combine(left, right), origin, (left, right)))
    }

    fn finish(&mut self, term: TermId) -> Result<TermId, String> {
        if matches!(self.shape(term), TermShape::Finish(_)) {
            return Err("a reduction is finished twice".to_owned());
        }
        if !self.is_complete(term) {
            return Err(format!(
                "a reduction is finished that has only the contributions of ranks {}",
                self.list(term)
            ));
        }
        Ok(self.intern(TermShape::Finish(term), self.origin(term), (term, term)))
    }

    /// The finished reduction of `chunk` by the canonical tree, if it is among the terms.
    pub(super) fn canonical(&self, chunk: u32) -> Option<TermId> {
        let leaves: Vec<_> = (0..self.nranks).map(|rank| Some(self.leaf(rank, chunk))).collect();
        let mut known = KnownTerms(self);
        let tree = fold(&mut known, &leaves);
        known.finish(tree)
    }
}

/// An algebra that finds terms and makes no new ones.
struct KnownTerms<'a>(&'a TermTable);

impl Algebra for KnownTerms<'_> {
    type Value = Option<TermId>;

    fn contribute(&mut self, value: Self::Value) -> Self::Value {
        value
    }

    fn combine(&mut self, left: Self::Value, right: Self::Value) -> Self::Value {
        self.0.numbers.get(&TermShape::Combine(left?, right?)).copied()
    }

    fn finish(&mut self, value: Self::Value) -> Self::Value {
        self.0.numbers.get(&TermShape::Finish(value?)).copied()
    }
}

/// Evaluates steps in terms. `fault` keeps the first operation that is not allowed; later results
/// have no meaning.
pub(super) struct SymbolicAlgebra<'a> {
    pub(super) terms: &'a mut TermTable,
    pub(super) fault: Option<String>,
}

impl SymbolicAlgebra<'_> {
    fn term_of(&mut self, value: SymbolicValue) -> Option<(TermId, u32)> {
        match value {
            SymbolicValue::Made { term, tile } => Some((term, tile)),
            SymbolicValue::Raw { .. } | SymbolicValue::Undefined => {
                self.fault("a value is used that is not a contribution");
                None
            }
        }
    }

    fn fault(&mut self, reason: impl Into<String>) -> SymbolicValue {
        self.fault.get_or_insert(reason.into());
        SymbolicValue::Undefined
    }

    fn result(&mut self, term: Result<TermId, String>, tile: u32) -> SymbolicValue {
        match term {
            Ok(term) => SymbolicValue::Made { term, tile },
            Err(reason) => self.fault(reason),
        }
    }
}

impl Algebra for SymbolicAlgebra<'_> {
    type Value = SymbolicValue;

    fn contribute(&mut self, value: SymbolicValue) -> SymbolicValue {
        match value {
            SymbolicValue::Raw { leaf, tile } => SymbolicValue::Made { term: leaf, tile },
            SymbolicValue::Made { .. } | SymbolicValue::Undefined => {
                self.fault("a value is scaled that is not an input")
            }
        }
    }

    fn combine(&mut self, left: SymbolicValue, right: SymbolicValue) -> SymbolicValue {
        let (Some((left, tile)), Some((right, other))) = (self.term_of(left), self.term_of(right))
        else {
            return SymbolicValue::Undefined;
        };
        if tile != other {
            return self.fault("contributions of different tiles are combined");
        }
        let term = self.terms.combine(left, right);
        self.result(term, tile)
    }

    fn finish(&mut self, value: SymbolicValue) -> SymbolicValue {
        let Some((term, tile)) = self.term_of(value) else { return SymbolicValue::Undefined };
        let term = self.terms.finish(term);
        self.result(term, tile)
    }
}
