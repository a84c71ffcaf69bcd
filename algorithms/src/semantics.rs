//! The meaning of a step: the reference for the verifier, the host engine and the GPU kernel.
//!
//! The fold of `k` inputs is the balanced binary tree over their positions `0..k`, padded to a
//! power of two on the right: `(a)`, `(a b)`, `((a b) c)`, `((a b) (c d))`, `(((a b) (c d)) e)`, …
//! The value is rounded to the element type once per binary node. An input chunk is read as the
//! rank's own contribution, scaled if the operation scales contributions. A finishing step applies
//! the operation's closing function to the result.

use crate::schedule::{Chunk, Operand, Step};

/// A domain of values in which steps can be evaluated: numbers, or symbolic terms.
pub trait Algebra {
    /// The content of a chunk.
    type Value: Clone;
    /// The rank's own contribution, from the content of its send buffer.
    fn contribute(&mut self, value: Self::Value) -> Self::Value;
    /// One binary node of the reduction; `left` is the operand of the lower positions.
    fn combine(&mut self, left: Self::Value, right: Self::Value) -> Self::Value;
    /// The operation's closing function.
    fn finish(&mut self, value: Self::Value) -> Self::Value;
}

/// The result of `step`, where `read` gives the content of its inputs.
pub fn evaluate_step<A: Algebra>(
    algebra: &mut A,
    step: &Step,
    read: impl FnMut(Operand) -> A::Value,
) -> A::Value {
    let chunk = |operand| match operand {
        Operand::Local(chunk) => Some(chunk),
        Operand::Peer { .. } => None,
    };
    evaluate_inputs(algebra, &step.inputs, step.finish, chunk, read)
}

/// The result of a step whose inputs (at least one) are given in another form. `chunk` gives the
/// chunk that an input is, or None for a message. Inputs are read in their order.
pub fn evaluate_inputs<A: Algebra, O: Copy>(
    algebra: &mut A,
    inputs: &[O],
    finish: bool,
    chunk: impl Fn(O) -> Option<Chunk>,
    mut read: impl FnMut(O) -> A::Value,
) -> A::Value {
    let mut value = |algebra: &mut A, input: O| match chunk(input) {
        Some(Chunk::Input(_)) => algebra.contribute(read(input)),
        _ => read(input),
    };
    let value = fold_by(algebra, inputs, &mut value);
    if finish { algebra.finish(value) } else { value }
}

fn fold_by<A: Algebra, O: Copy>(
    algebra: &mut A,
    inputs: &[O],
    value: &mut impl FnMut(&mut A, O) -> A::Value,
) -> A::Value {
    if let [input] = *inputs {
        return value(algebra, input);
    }
    let (low, high) = inputs.split_at(left_half(inputs.len()));
    let left = fold_by(algebra, low, value);
    let right = fold_by(algebra, high, value);
    algebra.combine(left, right)
}

/// The balanced fold of `values` (at least one). It is the canonical tree if they are the
/// contributions of the ranks in order.
pub fn fold<A: Algebra>(algebra: &mut A, values: &[A::Value]) -> A::Value {
    let references: Vec<_> = values.iter().collect();
    fold_by(algebra, &references, &mut |_, value: &A::Value| value.clone())
}

/// The number of positions in the left half of the balanced tree over `len >= 2` positions: the
/// largest power of two below `len`.
pub fn left_half(len: usize) -> usize {
    len.next_power_of_two() / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::operand::{input, output, peer};

    struct Text;

    impl Algebra for Text {
        type Value = String;

        fn contribute(&mut self, value: String) -> String {
            format!("{value}'")
        }

        fn combine(&mut self, left: String, right: String) -> String {
            format!("({left} {right})")
        }

        fn finish(&mut self, value: String) -> String {
            format!("{value}!")
        }
    }

    #[test]
    fn fold_is_the_balanced_tree_over_positions() {
        let names = ["a", "b", "c", "d", "e", "f", "g"].map(String::from);
        let shapes = ["a", "(a b)", "((a b) c)", "((a b) (c d))", "(((a b) (c d)) e)"];
        for (i, shape) in shapes.into_iter().enumerate() {
            assert_eq!(fold(&mut Text, &names[..=i]), shape);
        }
        assert_eq!(fold(&mut Text, &names), "(((a b) (c d)) ((e f) g))");
    }

    #[test]
    fn contributions_are_scaled_and_finishing_steps_close() {
        let step = Step::new([input(0), peer(1, 0)], [output(0)]).finishing();
        let read = |o| if o == input(0) { "own".to_owned() } else { "theirs".to_owned() };
        assert_eq!(evaluate_step(&mut Text, &step, read), "(own' theirs)!");
    }
}
