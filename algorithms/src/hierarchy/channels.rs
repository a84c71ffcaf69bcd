//! Copies of a schedule side by side, each on its part of the data with lanes and channels of its own.
//!
//! What NCCL calls channels: more lanes move more bytes where one is not enough for a link or a core. Cost: that of the schedule for
//! `m / copies`, as far as the machine gives each copy what it gave the one. Scratch and channels times `copies`.

use super::compose::{At, Layout, Needs, Part, compose};
use crate::schedule::{Channel, Chunk, Class, Schedule};
use crate::types::{Collective, Rank};

/// `copies` copies of `schedule`, each block being cut into as many pieces, one for each copy. One copy, or none, is the schedule itself.
pub fn schedule(schedule: &Schedule, copies: u32) -> Schedule {
    if copies <= 1 {
        return schedule.clone();
    }
    let Schedule { name, collective, nranks, parts, scratch, channels, .. } = *schedule;
    let needs = Needs {
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

impl Layout for Copies {
    fn slots(&self) -> u32 {
        self.copies
    }

    fn part(&self, rank: Rank, slot: u32) -> Option<Part<'_>> {
        Some(Part {
            schedule: &self.schedule,
            me: rank,
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

    fn chunk(&self, _: Rank, slot: u32, at: At) -> Chunk {
        let Self { schedule: Schedule { collective, nranks, parts, .. }, copies } = self;
        let side = if at.input { Collective::input_chunks } else { Collective::output_chunks };
        // A side of one block has but the own.
        let block = if side(*collective, *nranks, 1) > 1 { at.block } else { 0 };
        let index = (block * copies + slot) * parts + at.part;
        if at.input { Chunk::Input(index) } else { Chunk::Output(index) }
    }
}
