//! Every generator is proved at every small rank count.

use maypole_algorithms::Collective;
use maypole_algorithms::collective::{Generator, all};
use maypole_algorithms::verify::prove;

#[test]
fn every_generator_is_proved() {
    let mut steps = 0;
    let mut failures = Vec::new();
    for generator in all() {
        let start = std::time::Instant::now();
        for nranks in 1..=64 {
            for collective in collectives(generator, nranks) {
                let schedule = generator.schedule(collective, nranks);
                let declared = schedule.class;
                match prove(schedule) {
                    Ok(proved) => {
                        steps += proved.facts().steps;
                        assert!(proved.facts().class <= declared, "{proved:?}");
                    }
                    Err(counterexample) => failures.push(counterexample.to_string()),
                }
            }
        }
        println!("{} {}: {:?}", generator.collective, generator.name, start.elapsed());
    }
    println!("{steps} steps executed");
    assert!(failures.is_empty(), "{} are wrong, first: {}", failures.len(), failures[0]);
}

/// What it is for; with a root at the first, the last and a middle rank.
fn collectives(generator: &Generator, nranks: u32) -> Vec<Collective> {
    let mut all = [0, nranks / 2, nranks - 1].map(|root| generator.of(root)).to_vec();
    all.dedup();
    all
}
