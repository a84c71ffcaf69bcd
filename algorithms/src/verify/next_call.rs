//! The exchange that is executed after the schedule under proof: another collective on its links.

use super::call::ExecutedCall;
use crate::schedule::{MAX_FAN, Schedule, Step, StepTable, operand};
use crate::types::Collective;

/// An all-gather that sends two messages over every link that `call` uses. Each rank has one lane,
/// which sends before it receives, so the exchange cannot block by itself. Every message is another
/// input chunk, so a message that is received in place of another is found.
pub(super) fn exchange(call: &ExecutedCall) -> Schedule {
    const ROUNDS: u32 = 2;
    let nranks = call.flat.nranks;
    let mut links: Vec<_> = call.flat.links.iter().collect();
    links.sort_unstable_by_key(|link| link.first_operand);
    let mut channels: Vec<_> = links.iter().map(|link| link.channel).collect();
    channels.sort_unstable();
    channels.dedup();
    let parts = (ROUNDS * channels.len() as u32).max(1);
    let mut lanes: Vec<Vec<Step>> = vec![Vec::new(); nranks as usize];
    for round in 0..ROUNDS {
        let part = |channel| {
            let index = channels.binary_search(&channel).expect("all channels are in the list");
            ROUNDS * index as u32 + round
        };
        for link in &links {
            let from = operand::input(part(link.channel));
            let to = operand::peer(link.destination, link.channel);
            let lane = &mut lanes[link.source as usize];
            // One step sends on as many links of a channel as it has outputs.
            match lane.last_mut() {
                Some(step) if step.inputs[..] == [from] && step.outputs.len() < MAX_FAN => {
                    step.outputs.push(to);
                }
                _ => lane.push(Step::new([from], [to])),
            }
        }
        for link in &links {
            let from = operand::peer(link.source, link.channel);
            let chunk = operand::output(link.source * parts + part(link.channel));
            lanes[link.destination as usize].push(Step::new([from], [chunk]));
        }
    }
    let table = StepTable(lanes.into_iter().map(|lane| vec![lane]).collect());
    Schedule::new("exchange", Collective::AllGather, nranks, parts, table)
        .with_channels(channels.last().map_or(1, |last| last + 1))
}
