//! For each rule of the verifier a smallest schedule that breaks it, and a similar one that keeps
//! it.

use maypole_algorithms::schedule::StepTable;
use maypole_algorithms::schedule::operand::{input, output, peer, scratch};
use maypole_algorithms::verify::{
    AccessKind, BufferPlacement, Counterexample, MessageSemantics, Violation, prove,
};
use maypole_algorithms::{Chunk, Class, Collective, Schedule, Step};

const COPY: Collective = Collective::Broadcast { root: 0 };

/// A copy of `parts` chunks on one rank, in these lanes.
fn one_rank(parts: u32, lanes: Vec<Vec<Step>>) -> Schedule {
    Schedule::new("by hand", COPY, 1, parts, StepTable(vec![lanes])).with_scratch(4)
}

/// A schedule for two ranks, in these lanes.
fn two_ranks(collective: Collective, ranks: [Vec<Vec<Step>>; 2]) -> Schedule {
    Schedule::new("by hand", collective, 2, 1, StepTable(ranks.into()))
        .with_scratch(4)
        .with_channels(2)
}

fn rejected(schedule: Schedule) -> Box<Counterexample> {
    prove(schedule).expect_err("the schedule breaks a rule")
}

fn proved(schedule: Schedule) {
    prove(schedule).unwrap_or_else(|counterexample| panic!("{counterexample}"));
}

#[track_caller]
fn malformed(schedule: Schedule, part: &str) {
    let counterexample = rejected(schedule);
    assert!(matches!(counterexample.violation, Violation::Malformed(_)), "{counterexample}");
    assert!(counterexample.to_string().contains(part), "{counterexample}");
}

#[test]
fn operands_exist_and_outputs_are_distinct() {
    proved(one_rank(1, vec![vec![Step::new([input(0)], [output(0)])]]));
    malformed(one_rank(1, vec![vec![Step::new([], [output(0)])]]), "at least one");
    malformed(one_rank(1, vec![vec![Step::new([input(0)], [])]]), "at least one");
    malformed(one_rank(1, vec![vec![Step::new([input(1)], [output(0)])]]), "in1 does not exist");
    malformed(one_rank(1, vec![vec![Step::new([input(0)], [output(1)])]]), "out1 does not exist");
    malformed(
        one_rank(1, vec![vec![Step::new([input(0)], [scratch(4)])]]),
        "scratch4 does not exist",
    );
    malformed(
        one_rank(1, vec![vec![Step::new([input(0)], [peer(1, 0)])]]),
        "peer 1.c0 does not exist",
    );
    malformed(one_rank(1, vec![vec![Step::new([input(0)], [peer(0, 0)])]]), "no link to itself");
    malformed(one_rank(1, vec![vec![Step::new([input(0)], [input(0)])]]), "must not be written");
    malformed(
        one_rank(1, vec![vec![Step::new([input(0)], [output(0), output(0)])]]),
        "an output twice",
    );
    malformed(
        one_rank(1, vec![vec![Step::new([input(0)], [output(0)]).finishing()]]),
        "no reduction",
    );
    malformed(
        one_rank(1, vec![vec![Step::new([input(0)], [output(0)]).after(0, 0)]]),
        "must name another lane",
    );
    malformed(
        one_rank(1, vec![vec![Step::new([input(0)], [output(0)]).after(1, 0)]]),
        "no step 1:0",
    );
    malformed(one_rank(1, vec![]).with_credit(0), "at least one");
    malformed(one_rank(1, vec![]).with_channels(0), "at least one");
    let third = vec![vec![Step::new([input(0)], [peer(1, 2)])]];
    malformed(two_ranks(COPY, [third, vec![]]), "peer 1.c2 is on a channel that is not below 2");
    let twice = [
        vec![vec![Step::new([input(0)], [output(0), peer(1, 0)])]],
        vec![vec![Step::new([peer(0, 0), peer(0, 0)], [output(0)])]],
    ];
    malformed(two_ranks(COPY, twice), "an input twice");
    let absent = [vec![vec![]], vec![vec![Step::new([input(0)], [scratch(0)])]]];
    malformed(two_ranks(COPY, absent), "in0 does not exist on this rank");
}

#[test]
fn a_link_has_one_lane_at_each_end() {
    let send = || vec![Step::new([input(0)], [peer(1, 0)])];
    let receive = |chunk| vec![Step::new([peer(0, 0)], [chunk])];
    // In place, this step writes what the other lane reads.
    let own = vec![Step::new([input(0)], [output(0)]).after(1, 0)];
    proved(two_ranks(COPY, [vec![own.clone(), send()], vec![receive(output(0))]]));
    let fed_twice = [vec![own.clone(), send(), send()], vec![receive(output(0))]];
    malformed(two_ranks(COPY, fed_twice), "0 -> 1, channel 0, is fed by another lane");
    let drained_twice = [vec![own, send()], vec![receive(output(0)), receive(scratch(0))]];
    malformed(two_ranks(COPY, drained_twice), "drained by another lane");
}

#[test]
fn messages_that_are_not_received_or_not_sent_are_reported() {
    let own = Step::new([input(0)], [output(0), peer(1, 0)]);
    let more = Step::new([input(0)], [peer(1, 0)]);
    let receive = Step::new([peer(0, 0)], [output(0)]);
    for (sent, received) in [(vec![own, more], vec![receive]), (vec![own], vec![receive, receive])]
    {
        let (s, r) = (sent.len() as u32, received.len() as u32);
        let counterexample = rejected(two_ranks(COPY, [vec![sent], vec![received]]));
        let Violation::Unbalanced { sent, received, .. } = counterexample.violation else {
            panic!("{counterexample}");
        };
        assert_eq!((sent, received), (s, r));
    }
}

#[test]
fn scratch_is_undefined_before_it_is_written() {
    let swapped = vec![Step::new([scratch(0)], [output(0)]), Step::new([input(0)], [scratch(0)])];
    let counterexample = rejected(one_rank(1, vec![swapped]));
    assert!(matches!(counterexample.violation, Violation::Undefined(Chunk::Scratch(0))));
    let place = counterexample.place.expect("it is at a step");
    assert_eq!((place.rank, place.lane, place.step, place.tile), (0, 0, 0, 0));
}

/// All-reduce over two ranks; rank 1 sends first, then receives the result. `lane` is the lane of
/// rank 0.
fn pair(lane: Vec<Step>) -> Schedule {
    let other = vec![Step::new([input(0)], [peer(0, 0)]), Step::new([peer(0, 0)], [output(0)])];
    two_ranks(Collective::AllReduce, [vec![lane], vec![other]])
}

#[test]
fn every_contribution_counts_once_and_is_finished_once() {
    let step = |inputs: &[_], outputs: &[_]| Step::new(inputs.to_vec(), outputs.to_vec());
    let both = [output(0), peer(1, 0)];
    proved(pair(vec![step(&[input(0), peer(1, 0)], &both).finishing()]));
    proved(pair(vec![step(&[input(0), peer(1, 0)], &both).finishing()]).canonical());

    let counterexample =
        rejected(pair(vec![step(&[input(0), peer(1, 0), input(0)], &both).finishing()]));
    assert!(
        counterexample.to_string().contains("counts twice: ranks 0, 1 are combined with ranks 0")
    );

    let counterexample = rejected(pair(vec![step(&[input(0), peer(1, 0)], &both)]));
    assert!(
        matches!(counterexample.violation, Violation::Postcondition { .. }),
        "{counterexample}"
    );

    let counterexample = rejected(pair(vec![
        step(&[peer(1, 0)], &[scratch(0)]),
        step(&[input(0)], &[scratch(1)]).finishing(),
        step(&[scratch(1), scratch(0)], &both),
    ]));
    assert!(
        counterexample.to_string().contains("only the contributions of ranks 0"),
        "{counterexample}"
    );

    let counterexample = rejected(pair(vec![
        step(&[input(0), peer(1, 0)], &[scratch(0)]).finishing(),
        step(&[scratch(0)], &both).finishing(),
    ]));
    assert!(counterexample.to_string().contains("finished twice"), "{counterexample}");
}

#[test]
fn ranks_agree_on_their_tree() {
    let lane = |peer_rank, inputs: [_; 2]| {
        // The message is sent from scratch: in place, writing out0 would wait for the release of
        // in0.
        let send = Step::new([input(0)], [scratch(0), peer(peer_rank, 0)]);
        vec![vec![send, Step::new(inputs, [output(0)]).finishing()]]
    };
    let right = [lane(1, [input(0), peer(1, 0)]), lane(0, [peer(0, 0), input(0)])];
    proved(two_ranks(Collective::AllReduce, right).canonical());
    let wrong = [lane(1, [input(0), peer(1, 0)]), lane(0, [input(0), peer(0, 0)])];
    let counterexample = rejected(two_ranks(Collective::AllReduce, wrong));
    assert!(matches!(counterexample.violation, Violation::Disagreement { .. }), "{counterexample}");
}

#[test]
fn the_class_is_found_and_compared_with_the_declared_one() {
    let lane = |inputs: [_; 2]| vec![Step::new(inputs, [output(0), peer(1, 0)]).finishing()];
    let canonical = prove(pair(lane([input(0), peer(1, 0)]))).expect("is right");
    assert_eq!(canonical.facts().class, Class::Canonical);
    assert_eq!(canonical.schedule().class, Class::Fast);
    let fast = pair(lane([peer(1, 0), input(0)]));
    assert_eq!(prove(fast.clone()).expect("is right").facts().class, Class::Fast);
    let counterexample = rejected(fast.canonical());
    assert!(counterexample.to_string().contains("finish (1 0) of in0"), "{counterexample}");
}

#[test]
fn an_input_is_not_read_after_it_was_overwritten_in_place() {
    // The operation may scale contributions: reading in0 again would scale it twice.
    let counterexample = rejected(pair(vec![
        Step::new([input(0)], [output(0)]),
        Step::new([input(0), peer(1, 0)], [output(0), peer(1, 0)]).finishing(),
    ]));
    assert!(matches!(counterexample.violation, Violation::Overwritten(Chunk::Input(0))));
    assert_eq!(counterexample.placement, Some(BufferPlacement::InPlace));
}

#[test]
fn a_cycle_of_waits_is_reported() {
    let exchange = |peer_rank, first_send: bool| {
        let send = Step::new([input(0)], [peer(peer_rank, 0)]);
        let receive = Step::new([peer(peer_rank, 0)], [output(peer_rank)]);
        let own = Step::new([input(0)], [output(1 - peer_rank)]);
        vec![if first_send { vec![own, send, receive] } else { vec![own, receive, send] }]
    };
    proved(two_ranks(Collective::AllGather, [exchange(1, true), exchange(0, false)]));
    let counterexample =
        rejected(two_ranks(Collective::AllGather, [exchange(1, false), exchange(0, false)]));
    let Violation::Deadlock { semantics, credit, cycle } = &counterexample.violation else {
        panic!("{counterexample}");
    };
    assert_eq!((*semantics, *credit), (MessageSemantics::Buffered, None));
    let places: Vec<_> = cycle.iter().map(|b| (b.place.rank, b.place.lane, b.place.step)).collect();
    assert_eq!(places, [(0, 0, 1), (1, 0, 1)]);
}

#[test]
fn too_few_credits_are_a_deadlock() {
    // Both send two messages before they receive one.
    let lane = |peer_rank, parts: u32| {
        let sends = (0..parts).map(move |i| Step::new([input(i)], [peer(peer_rank, 0)]));
        let receives = (0..parts)
            .map(move |i| Step::new([peer(peer_rank, 0)], [output(peer_rank * parts + i)]));
        let own =
            (0..parts).map(move |i| Step::new([input(i)], [output((1 - peer_rank) * parts + i)]));
        vec![sends.chain(receives).chain(own).collect()]
    };
    let schedule = |credit| {
        let table = StepTable(vec![lane(1, 2), lane(0, 2)]);
        Schedule::new("by hand", Collective::AllGather, 2, 2, table).with_credit(credit)
    };
    proved(schedule(2));
    let counterexample = rejected(schedule(1));
    let Violation::Deadlock { semantics, credit, .. } = counterexample.violation else {
        panic!("{counterexample}");
    };
    assert_eq!((semantics, credit), (MessageSemantics::Buffered, Some(1)));
}

#[test]
fn waiting_for_an_own_loan_is_a_deadlock_by_rendezvous_only() {
    // Each lends scratch0 and writes it again before it receives the other's message.
    let lane = |peer_rank| {
        vec![vec![
            Step::new([input(0)], [scratch(0), peer(peer_rank, 0)]),
            Step::new([input(0)], [scratch(0)]),
            Step::new([peer(peer_rank, 0)], [output(peer_rank)]),
            Step::new([input(0)], [output(1 - peer_rank)]),
        ]]
    };
    let counterexample = rejected(two_ranks(Collective::AllGather, [lane(1), lane(0)]));
    let Violation::Deadlock { semantics, credit, .. } = counterexample.violation else {
        panic!("{counterexample}");
    };
    assert_eq!((semantics, credit), (MessageSemantics::Rendezvous, None));
}

#[test]
fn lanes_are_ordered_by_after_alone() {
    // Two lanes write the same chunk; without `after` either value may stay.
    let write = Step::new([input(0)], [output(0)]);
    let counterexample = rejected(one_rank(1, vec![vec![write], vec![write]]));
    let Violation::Race { first, second, .. } = &counterexample.violation else {
        panic!("{counterexample}");
    };
    assert_eq!(second.kind, AccessKind::Write);
    assert_ne!(first.place.lane, second.place.lane);
    let counterexample = counterexample.to_string();
    assert!(
        counterexample.contains("writes it: rank 0, lane 1, step 0, tile 0: in0 -> out0"),
        "{counterexample}"
    );
}

#[test]
fn scratch_of_the_next_tile_is_the_same_memory() {
    let write = Step::new([input(0)], [scratch(0)]);
    let read = Step::new([scratch(0)], [output(0)]).after(0, 0);
    // Lane 0 may write for the next tile while lane 1 still reads for this one.
    let counterexample = rejected(one_rank(1, vec![vec![write], vec![read]]));
    let Violation::Race { chunk, first, second, .. } = &counterexample.violation else {
        panic!("{counterexample}");
    };
    assert_eq!(*chunk, Chunk::Scratch(0));
    assert_ne!(first.place.tile, second.place.tile);
    // A step of lane 0 that waits for lane 1 closes the tile.
    let close = Step::new([input(0)], [scratch(1)]).after(1, 0);
    proved(one_rank(1, vec![vec![write, close], vec![read]]));
}

/// Lane 0 of rank 0 lends scratch0 to a message and goes on; lane 1 writes scratch0 in step
/// `second`.
fn lending(second: Step, answer: bool) -> Schedule {
    let lane = vec![
        Step::new([input(0)], [scratch(0), peer(1, 0)]),
        Step::new([input(0)], [scratch(2)]),
        Step::new([input(0)], [scratch(1)]).after(1, 0),
    ];
    let mut other = vec![Step::new([peer(0, 0)], [output(0)]), Step::new([input(0)], [output(1)])];
    if answer {
        other.push(Step::new([input(0)], [peer(0, 0)]));
    }
    two_ranks(Collective::Gather { root: 1 }, [vec![lane, vec![second]], vec![other]])
}

#[test]
fn lent_memory_is_read_until_its_release() {
    // `after` the lending step itself waits for the release.
    proved(lending(Step::new([input(0)], [scratch(0)]).after(0, 0), false));
    // `after` a later one does not.
    let counterexample = rejected(lending(Step::new([input(0)], [scratch(0)]).after(0, 1), false));
    let Violation::Race { first, .. } = &counterexample.violation else {
        panic!("{counterexample}")
    };
    assert_eq!(first.kind, AccessKind::Lent);
    // An answer from the rank that received the message proves that it was released.
    proved(lending(Step::new([peer(1, 0)], [scratch(0)]), true));
}

#[test]
fn a_loan_is_not_over_because_another_is() {
    // Lane 0 lends scratch0 to rank 1 on two channels; the answer follows the first message only.
    let lane = vec![
        Step::new([input(0)], [scratch(0), peer(1, 0), peer(1, 1)]),
        Step::new([input(0)], [output(0)]).after(1, 0),
    ];
    let write = vec![Step::new([peer(1, 0)], [scratch(0)])];
    let answers = vec![Step::new([peer(0, 0)], [output(0)]), Step::new([output(0)], [peer(0, 0)])];
    let late = vec![Step::new([peer(0, 1)], [scratch(0)])];
    let counterexample = rejected(two_ranks(
        COPY,
        [vec![lane.clone(), write.clone()], vec![answers.clone(), late.clone()]],
    ));
    let Violation::Race { first, .. } = &counterexample.violation else {
        panic!("{counterexample}")
    };
    assert_eq!(first.kind, AccessKind::Lent);
    let mut after_both = answers;
    after_both[1] = after_both[1].after(1, 0);
    proved(two_ranks(COPY, [vec![lane, write], vec![after_both, late]]));
}

#[test]
fn a_tree_can_be_read() {
    let lane = vec![Step::new([input(0), peer(1, 0)], [output(0), peer(1, 0)]).finishing()];
    let proof = prove(pair(lane)).expect("is right");
    let tree = proof.tree(1, 0).expect("an all-reduce ends on every rank");
    assert_eq!(tree.to_string(), "finish (0 1) of in0");
    assert_eq!(proof.tree(0, 0), Some(tree));
    assert_eq!(proof.tree(0, 1), None);
    assert_eq!(proof.tree(2, 0), None);
    assert_eq!(proof.facts().executions, 2);
}
