//! A new algorithm: all-reduce along a line of ranks. `docs/add-an-algorithm.md` explains it.
use maypole::{Collective, Communicator, RedOp, UniqueId};
use maypole_algorithms::cost::{MachineModel, timeline};
use maypole_algorithms::schedule::operand::{input, output, peer};
use maypole_algorithms::{Program, Rank, Schedule, Step, svg, verify::prove};

/// Partial sums travel up the line, the result travels down.
struct Line(u32);

impl Program for Line {
    fn lanes(&self, _: Rank) -> u32 {
        2
    }

    fn steps(&self, rank: Rank, lane: u32) -> u32 {
        u32::from(lane == 0 || rank + 1 < self.0)
    }

    fn step(&self, rank: Rank, lane: u32, _: u32) -> Step {
        let below = rank.checked_sub(1).map(|r| peer(r, 0));
        let above = (rank + 1 < self.0).then(|| peer(rank + 1, 0));
        let up = below.into_iter().chain([input(0)]);
        let down = [output(0)].into_iter().chain(below);
        match above {
            Some(above) if lane == 0 => Step::new(up, [above]),
            Some(above) => Step::new([above], down).after(0, 0),
            None => Step::new(up, down).finishing(),
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let line = |n| Schedule::new("line", Collective::AllReduce, n, 1, Line(n));
    for nranks in 2..=64 {
        prove(line(nranks))?;
    }
    let proved = prove(line(4))?;
    println!("rank 0 gets {}", proved.tree(0, 0).expect("all ranks get something"));

    let (machine, bytes) = (MachineModel::SHARED_MEMORY, 4096);
    println!("expected: {:.2} us", machine.cost(&line(4), bytes, 1) * 1e6);
    let picture = svg::draw(&line(4), &timeline(&machine, &line(4), bytes, 1));
    std::fs::write(std::env::temp_dir().join("line.svg"), picture)?;

    let id = UniqueId::create()?;
    let run = |rank| {
        let mut comm = Communicator::new(&id, rank, 4).expect("all ranks join");
        let mut sum = [0.0f32; 1000];
        let ran = comm.collective_by(&proved, &[rank as f32; 1000], &mut sum, RedOp::Sum);
        (ran, sum)
    };
    std::thread::scope(|scope| {
        for rank in [0, 1, 2, 3].map(|rank| scope.spawn(move || run(rank))) {
            assert_eq!(rank.join().expect("no rank panicked"), (Ok(()), [6.0; 1000]));
        }
    });
    Ok(())
}
