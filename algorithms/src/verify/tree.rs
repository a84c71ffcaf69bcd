//! The tree by which a chunk was reduced, to be read or evaluated.

use std::fmt;

use super::term::{Shape, Term, Terms};
use crate::semantics::Algebra;
use crate::types::Rank;

/// One node of a [`ReductionTree`]; children are named by their index, and come before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TreeNode {
    /// What a rank contributes from one of its input chunks.
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

/// How a chunk of the receive buffer came about. Two trees are equal if they give the same bits by construction.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ReductionTree {
    nodes: Vec<TreeNode>,
}

impl ReductionTree {
    pub(super) fn new(terms: &Terms, root: Term) -> Self {
        let mut tree = Self { nodes: Vec::new() };
        // Explicit, since a chain of ranks is a tree as deep as there are ranks.
        let mut todo = vec![(root, false)];
        let mut made: Vec<usize> = Vec::new();
        while let Some((term, children_made)) = todo.pop() {
            let shape = terms.shape(term);
            match (shape, children_made) {
                (Shape::Combine(left, right), false) => {
                    todo.extend([(term, true), (right, false), (left, false)]);
                    continue;
                }
                (Shape::Finish(child), false) => {
                    todo.extend([(term, true), (child, false)]);
                    continue;
                }
                _ => {}
            }
            let mut child = || made.pop().expect("children are made before their parent");
            let node = match shape {
                Shape::Leaf { rank, chunk } => TreeNode::Contribution { rank, chunk },
                Shape::Finish(_) => TreeNode::Finish(child()),
                Shape::Combine(..) => {
                    let right = child();
                    TreeNode::Combine(child(), right)
                }
            };
            made.push(tree.nodes.len());
            tree.nodes.push(node);
        }
        tree
    }

    /// The nodes, children first; the root is the last.
    pub fn nodes(&self) -> &[TreeNode] {
        &self.nodes
    }

    /// The value of the tree where `contribution` gives what a rank contributes from an input chunk: its send
    /// buffer's content, scaled by the rank's factor where the operation has one. ([`Algebra::contribute`] is not
    /// called, since it knows no rank.)
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
        struct Text;

        impl Algebra for Text {
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
        let text = self.evaluate(&mut Text, |rank, _| rank.to_string());
        write!(f, "{text} of in{}", chunk.unwrap_or(&0))
    }
}
