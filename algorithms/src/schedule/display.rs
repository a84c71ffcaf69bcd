//! Chunks, operands and steps as text, one line per step:
//! `in0 + peer 3.c1 -> out0, peer 5.c1  after 0:4`.

use std::fmt;

use crate::schedule::{Chunk, Operand, Step};

impl fmt::Display for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Input(i) => write!(f, "in{i}"),
            Self::Output(i) => write!(f, "out{i}"),
            Self::Scratch(i) => write!(f, "scratch{i}"),
        }
    }
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(chunk) => chunk.fmt(f),
            Self::Peer { rank, channel } => write!(f, "peer {rank}.c{channel}"),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |operands: &[Operand], between: &str| {
            operands.iter().map(Operand::to_string).collect::<Vec<_>>().join(between)
        };
        let arrow = if self.finish { "-finish->" } else { "->" };
        write!(f, "{} {arrow} {}", list(&self.inputs, " + "), list(&self.outputs, ", "))?;
        for (i, after) in self.after.iter().enumerate() {
            let lead = if i == 0 { "  after " } else { ", " };
            write!(f, "{lead}{}:{}", after.lane, after.step)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::Step;
    use crate::schedule::operand::{input, output, peer, scratch};

    #[test]
    fn a_step_is_displayed_as_one_line() {
        let step =
            Step::new([input(0), peer(3, 1)], [output(0), peer(5, 1)]).after(0, 4).after(2, 1);
        assert_eq!(step.to_string(), "in0 + peer 3.c1 -> out0, peer 5.c1  after 0:4, 2:1");
        let step = Step::new([scratch(2)], [output(7)]).finishing();
        assert_eq!(step.to_string(), "scratch2 -finish-> out7");
    }
}
