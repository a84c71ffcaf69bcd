//! Every generator is proved at every small rank count.

use maypole_algorithms::Collective;
use maypole_algorithms::collective::GENERATORS;
use maypole_algorithms::verify::prove;

#[test]
fn every_generator_is_proved() {
    let mut steps = 0;
    let mut failures = Vec::new();
    for generator in GENERATORS {
        let start = std::time::Instant::now();
        for nranks in 1..=64 {
            for collective in collectives(generator.collective, nranks) {
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

/// The collectives of that name; rooted ones at the first, the last and a middle rank.
fn collectives(name: &str, nranks: u32) -> Vec<Collective> {
    let plain = [
        Collective::AllReduce,
        Collective::ReduceScatter,
        Collective::AllGather,
        Collective::AllToAll,
    ];
    let mut roots = vec![0, nranks / 2, nranks - 1];
    roots.dedup();
    let rooted = roots.into_iter().flat_map(|root| {
        [
            Collective::Broadcast { root },
            Collective::Reduce { root },
            Collective::Gather { root },
            Collective::Scatter { root },
        ]
    });
    plain.into_iter().chain(rooted).filter(|collective| collective.name() == name).collect()
}
