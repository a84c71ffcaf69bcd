//! Copies of a schedule side by side, each on its part of the data and with its own lanes and
//! channels.
//!
//! NCCL calls these channels: several lanes move more bytes where one lane cannot use all of a link
//! or needs more than a core. The cost is that of the schedule for `m / copies` bytes, if the
//! machine gives each copy what it gives a single one. Scratch and channels are those of the
//! schedule times `copies`.

use super::compose::{ComponentChunk, ComponentLayout, RankComponent, ScheduleNeeds, compose};
use crate::schedule::{Channel, Chunk, Class, Schedule};
use crate::types::{Collective, Rank};

/// `copies` copies of `schedule`. Each block is cut into as many pieces, one for each copy. With
/// one copy, or none, it is the schedule itself.
pub fn schedule(schedule: &Schedule, copies: u32) -> Schedule {
    if copies <= 1 {
        return schedule.clone();
    }
    let Schedule { name, collective, nranks, parts, scratch, channels, .. } = *schedule;
    let needs = ScheduleNeeds {
        scratch: copies * scratch,
        channels: copies as Channel * channels,
        credit: schedule.credit,
        lanes: 0,
    };
    let layout = Copies { schedule: schedule.clone(), copies };
    let detail = match &schedule.detail {
        Some(detail) => format!("{detail}, {copies} side by side"),
        None => format!("{copies} side by side"),
    };
    let all = compose(name, collective, (nranks, copies * parts), layout, &needs);
    let all = all.with_detail(detail);
    if schedule.class == Class::Canonical { all.canonical() } else { all }
}

struct Copies {
    schedule: Schedule,
    copies: u32,
}

impl ComponentLayout for Copies {
    fn slots(&self) -> u32 {
        self.copies
    }

    fn component(&self, rank: Rank, slot: u32) -> Option<RankComponent<'_>> {
        Some(RankComponent {
            schedule: &self.schedule,
            member: rank,
            repeats: 1,
            scratch: slot * self.schedule.scratch,
            channel: slot as Channel * self.schedule.channels,
            finishes: true,
            in_place: false,
            follows: [0..0, 0..0],
            guard: None,
        })
    }

    fn member(&self, _: Rank, _: u32, member: u32) -> Rank {
        member
    }

    fn chunk(&self, _: Rank, slot: u32, chunk: ComponentChunk) -> Chunk {
        let Self { schedule: Schedule { collective, nranks, parts, .. }, copies } = self;
        let side =
            if chunk.is_input { Collective::input_chunks } else { Collective::output_chunks };
        // A buffer of one block has no other blocks to count.
        let block = if side(*collective, *nranks, 1) > 1 { chunk.block } else { 0 };
        let index = (block * copies + slot) * parts + chunk.part;
        if chunk.is_input { Chunk::Input(index) } else { Chunk::Output(index) }
    }
}
