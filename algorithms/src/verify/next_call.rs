//! The exchange that follows the schedule under proof: another collective on the same links.

use super::form::Form;
use crate::schedule::MAX_FAN;
use crate::schedule::{Schedule, Step, Table, operand};
use crate::types::Collective;

/// Two messages over every link that `form` uses, by one lane a rank: sends first, so that it cannot block by itself.
/// Where a link exists, its messages are what an all-gather would bring over it; so each says which it is.
pub(super) fn exchange(form: &Form) -> Schedule {
    const ROUNDS: u32 = 2;
    let mut channels: Vec<_> = form.links.iter().map(|link| link.channel).collect();
    channels.sort_unstable();
    channels.dedup();
    let parts = (ROUNDS * channels.len() as u32).max(1);
    let mut lanes: Vec<Vec<Step>> = vec![Vec::new(); form.nranks as usize];
    for round in 0..ROUNDS {
        let part = |channel| {
            let index = channels.binary_search(&channel).expect("all channels are in the list");
            ROUNDS * index as u32 + round
        };
        for link in &form.links {
            let from = operand::input(part(link.channel));
            let to = operand::peer(link.destination, link.channel);
            let lane = &mut lanes[link.source as usize];
            // One step for as many links of a channel as it can feed.
            match lane.last_mut() {
                Some(step) if step.inputs[..] == [from] && step.outputs.len() < MAX_FAN => {
                    step.outputs.push(to);
                }
                _ => lane.push(Step::new([from], [to])),
            }
        }
        for link in &form.links {
            let from = operand::peer(link.source, link.channel);
            let chunk = operand::output(link.source * parts + part(link.channel));
            lanes[link.destination as usize].push(Step::new([from], [chunk]));
        }
    }
    let table = Table(lanes.into_iter().map(|lane| vec![lane]).collect());
    Schedule::new("exchange", Collective::AllGather, form.nranks, parts, table)
        .with_channels(channels.last().map_or(1, |last| last + 1))
}
