//! The exchange that follows the schedule under proof: another collective on the same links.

use super::form::Form;
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
            let to = operand::peer(link.destination, link.channel);
            lanes[link.source as usize].push(Step::new([operand::input(part(link.channel))], [to]));
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
