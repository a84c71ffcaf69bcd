//! The tree by which a chunk was reduced, for display and for evaluation on numbers.

use std::fmt;

use super::term::{TermId, TermShape, TermTable};
use crate::semantics::Algebra;
use crate::types::Rank;

/// One node of a [`ReductionTree`]. Its children are given by their index and stand before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TreeNode {
    /// The contribution of a rank from one of its input chunks.
    Contribution {
        /// The rank.
        rank: Rank,
        /// Its input chunk.
        chunk: u32,
    },
    /// The operation applied to two nodes, left and right.
    Combine(usize, usize),
    /// The operation's closing function.
    Finish(usize),
}

/// The operations that produced a chunk of the receive buffer. Equal trees give equal bits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ReductionTree {
    nodes: Vec<TreeNode>,
}

impl ReductionTree {
    pub(super) fn new(terms: &TermTable, root: TermId) -> Self {
        let mut tree = Self { nodes: Vec::new() };
        // An explicit stack: the tree of a chain is as deep as there are ranks.
        let mut todo = vec![(root, false)];
        let mut made: Vec<usize> = Vec::new();
        while let Some((term, children_made)) = todo.pop() {
            let shape = terms.shape(term);
            match (shape, children_made) {
                (TermShape::Combine(left, right), false) => {
                    todo.extend([(term, true), (right, false), (left, false)]);
                    continue;
                }
                (TermShape::Finish(child), false) => {
                    todo.extend([(term, true), (child, false)]);
                    continue;
                }
                _ => {}
            }
            let mut child = || made.pop().expect("children are made before their parent");
            let node = match shape {
                TermShape::Leaf { rank, chunk } => TreeNode::Contribution { rank, chunk },
                TermShape::Finish(_) => TreeNode::Finish(child()),
                TermShape::Combine(..) => {
                    let right = child();
                    TreeNode::Combine(child(), right)
                }
            };
            made.push(tree.nodes.len());
            tree.nodes.push(node);
        }
        tree
    }

    /// The same tree, in which rank `r` is called `name(r)`.
    pub(super) fn renamed(mut self, name: impl Fn(Rank) -> Rank) -> Self {
        for node in &mut self.nodes {
            if let TreeNode::Contribution { rank, .. } = node {
                *rank = name(*rank);
            }
        }
        self
    }

    /// The nodes, children first; the root is the last.
    pub fn nodes(&self) -> &[TreeNode] {
        &self.nodes
    }

    /// Evaluates the tree. `contribution` gives what a rank contributes from an input chunk: the
    /// content of its send buffer, scaled by the rank's factor where the operation has one.
    /// [`Algebra::contribute`] is not called, since it does not know the rank.
    pub fn evaluate<A: Algebra>(
        &self,
        algebra: &mut A,
        mut contribution: impl FnMut(Rank, u32) -> A::Value,
    ) -> A::Value {
        let mut values: Vec<A::Value> = Vec::with_capacity(self.nodes.len());
        for node in &self.nodes {
            let value = match *node {
                TreeNode::Contribution { rank, chunk } => contribution(rank, chunk),
                TreeNode::Combine(left, right) => {
                    algebra.combine(values[left].clone(), values[right].clone())
                }
                TreeNode::Finish(child) => algebra.finish(values[child].clone()),
            };
            values.push(value);
        }
        values.pop().expect("a tree has a root")
    }
}

impl fmt::Display for ReductionTree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct TreeText;

        impl Algebra for TreeText {
            type Value = String;

            fn contribute(&mut self, value: String) -> String {
                value
            }

            fn combine(&mut self, left: String, right: String) -> String {
                format!("({left} {right})")
            }

            fn finish(&mut self, value: String) -> String {
                format!("finish {value}")
            }
        }

        let chunk = self.nodes.iter().find_map(|node| match node {
            TreeNode::Contribution { chunk, .. } => Some(chunk),
            _ => None,
        });
        let text = self.evaluate(&mut TreeText, |rank, _| rank.to_string());
        write!(f, "{text} of in{}", chunk.unwrap_or(&0))
    }
}
