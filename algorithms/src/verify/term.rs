//! Symbolic values: what a chunk holds, as a term over the ranks' contributions. Equal terms have equal numbers.

use rustc_hash::FxHashMap;

use crate::semantics::{Algebra, fold};
use crate::types::{Collective, Rank};

/// The number of a term: first the contributions, by rank and input chunk, then the others in the order of their
/// making.
pub(super) type Term = u32;

/// A content of memory or of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// Nothing was written.
    Undefined,
    /// A chunk of a send buffer as the caller left it: not yet a contribution.
    Raw { leaf: Term, tile: u32 },
    /// What steps make.
    Made { term: Term, tile: u32 },
}

/// A term, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Shape {
    /// The contribution of a rank from its input chunk.
    Leaf { rank: Rank, chunk: u32 },
    /// One binary node.
    Combine(Term, Term),
    /// The closing function.
    Finish(Term),
}

/// All terms of a collective at a rank count.
pub(super) struct Terms {
    reduces: bool,
    nranks: u32,
    inputs: u32,
    made: Vec<Shape>,
    numbers: FxHashMap<Shape, Term>,
    /// Per made term the input chunk that it reduces, and the ranks whose contributions are in it.
    origins: Vec<u32>,
    sets: Vec<u64>,
    words: usize,
}

impl Terms {
    /// Of ranks with `inputs` input chunks each.
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
    pub(super) fn leaf(&self, rank: Rank, chunk: u32) -> Term {
        rank * self.inputs + chunk
    }

    fn leaves(&self) -> u32 {
        self.nranks * self.inputs
    }

    pub(super) fn shape(&self, term: Term) -> Shape {
        match term.checked_sub(self.leaves()) {
            Some(made) => self.made[made as usize],
            None => Shape::Leaf { rank: term / self.inputs, chunk: term % self.inputs },
        }
    }

    /// The input chunk whose contributions are in the term.
    pub(super) fn origin(&self, term: Term) -> u32 {
        match term.checked_sub(self.leaves()) {
            Some(made) => self.origins[made as usize],
            None => term % self.inputs,
        }
    }

    /// Word `word` of the set of ranks whose contributions are in the term.
    fn ranks(&self, term: Term, word: usize) -> u64 {
        match term.checked_sub(self.leaves()) {
            Some(made) => self.sets[made as usize * self.words + word],
            None => {
                let rank = (term / self.inputs) as usize;
                if rank / 64 == word { 1 << (rank % 64) } else { 0 }
            }
        }
    }

    /// Whether the contributions of all ranks are in the term.
    pub(super) fn is_complete(&self, term: Term) -> bool {
        (0..self.words).map(|w| self.ranks(term, w).count_ones()).sum::<u32>() == self.nranks
    }

    /// The ranks in the term, for a message.
    fn list(&self, term: Term) -> String {
        let holds = |rank: &u32| self.ranks(term, (rank / 64) as usize) >> (rank % 64) & 1 == 1;
        let ranks: Vec<_> = (0..self.nranks).filter(holds).map(|rank| rank.to_string()).collect();
        ranks.join(", ")
    }

    fn intern(&mut self, shape: Shape, origin: u32, parts: (Term, Term)) -> Term {
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

    fn combine(&mut self, left: Term, right: Term) -> Result<Term, String> {
        let (origin, other) = (self.origin(left), self.origin(right));
        if !self.reduces {
            return Err(
                "contributions are combined in a collective that reduces nothing".to_owned()
            );
        }
        for part in [left, right] {
            if matches!(self.shape(part), Shape::Finish(_)) {
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
        Ok(self.intern(Shape::Combine(left, right), origin, (left, right)))
    }

    fn finish(&mut self, term: Term) -> Result<Term, String> {
        if matches!(self.shape(term), Shape::Finish(_)) {
            return Err("a reduction is finished twice".to_owned());
        }
        if !self.is_complete(term) {
            return Err(format!("a reduction is finished that has ranks {} only", self.list(term)));
        }
        Ok(self.intern(Shape::Finish(term), self.origin(term), (term, term)))
    }

    /// The finished reduction of `chunk` by the canonical tree, if it is among the terms.
    pub(super) fn canonical(&self, chunk: u32) -> Option<Term> {
        let leaves: Vec<_> = (0..self.nranks).map(|rank| Some(self.leaf(rank, chunk))).collect();
        let mut known = Known(self);
        let tree = fold(&mut known, &leaves);
        known.finish(tree)
    }
}

/// Finds terms without making new ones.
struct Known<'a>(&'a Terms);

impl Algebra for Known<'_> {
    type Value = Option<Term>;

    fn contribute(&mut self, value: Self::Value) -> Self::Value {
        value
    }

    fn combine(&mut self, left: Self::Value, right: Self::Value) -> Self::Value {
        self.0.numbers.get(&Shape::Combine(left?, right?)).copied()
    }

    fn finish(&mut self, value: Self::Value) -> Self::Value {
        self.0.numbers.get(&Shape::Finish(value?)).copied()
    }
}

/// Evaluates steps in terms. The first thing that makes no sense is kept in `fault`; what follows has no meaning.
pub(super) struct Symbolic<'a> {
    pub(super) terms: &'a mut Terms,
    pub(super) fault: Option<String>,
}

impl Symbolic<'_> {
    fn made(&mut self, value: Value) -> Option<(Term, u32)> {
        match value {
            Value::Made { term, tile } => Some((term, tile)),
            Value::Raw { .. } | Value::Undefined => {
                self.fault("a value is used that is no contribution");
                None
            }
        }
    }

    fn fault(&mut self, reason: impl Into<String>) -> Value {
        self.fault.get_or_insert(reason.into());
        Value::Undefined
    }

    fn result(&mut self, term: Result<Term, String>, tile: u32) -> Value {
        match term {
            Ok(term) => Value::Made { term, tile },
            Err(reason) => self.fault(reason),
        }
    }
}

impl Algebra for Symbolic<'_> {
    type Value = Value;

    fn contribute(&mut self, value: Value) -> Value {
        match value {
            Value::Raw { leaf, tile } => Value::Made { term: leaf, tile },
            Value::Made { .. } | Value::Undefined => {
                self.fault("a value is scaled that is no input")
            }
        }
    }

    fn combine(&mut self, left: Value, right: Value) -> Value {
        let (Some((left, tile)), Some((right, other))) = (self.made(left), self.made(right)) else {
            return Value::Undefined;
        };
        if tile != other {
            return self.fault("contributions of different tiles are combined");
        }
        let term = self.terms.combine(left, right);
        self.result(term, tile)
    }

    fn finish(&mut self, value: Value) -> Value {
        let Some((term, tile)) = self.made(value) else { return Value::Undefined };
        let term = self.terms.finish(term);
        self.result(term, tile)
    }
}
