//! The walker: runs a bound program over the slots of its links, tile by tile, all lanes of the rank on the caller's thread.
//!
//! What a step means is in `maypole_algorithms::schedule` and `interpret`; here it is done to memory. A step fires when the steps
//! it names are done, its messages are there, its links have credit and no message of its own lane still lends memory that it
//! writes. Links that can lend get the memory itself, others a copy written straight into their slot by the same pass that
//! folds.

use std::collections::VecDeque;

use maypole_algorithms::Rank;
use maypole_algorithms::schedule::{Few, MAX_FAN};
use maypole_transport::link::Sequence;

use crate::engine::links::Links;
use crate::engine::scratch::Scratch;
use crate::engine::wait::Wait;
use crate::engine::{Buffers, mismatch};
use crate::error::Error;
use crate::plan::bind::{BoundStep, Place, Program};
use crate::plan::geometry::Extent;
use crate::reduce::{Kernel, Pass};

/// What a run needs besides its program.
pub(crate) struct Walk<'a> {
    pub(crate) program: &'a Program,
    pub(crate) buffers: Buffers,
    pub(crate) kernel: Kernel,
    /// Bytes per element.
    pub(crate) size: usize,
    /// The kernel scales contributions.
    pub(crate) scaled: bool,
    /// Outputs that are not read again are written past the caches.
    pub(crate) stream: bool,
    /// The hash that every message of this call carries.
    pub(crate) tag: u32,
    pub(crate) links: &'a mut Links,
    pub(crate) scratch: &'a mut Scratch,
}

/// Where a lane stands.
#[derive(Default)]
struct Lane {
    tile: u64,
    step: usize,
    /// Messages that lend memory and are not known to be released, oldest first.
    lent: VecDeque<Lent>,
}

struct Lent {
    tile: u64,
    step: usize,
    link: u32,
    sequence: Sequence,
    /// The memory, as addresses.
    start: usize,
    end: usize,
}

impl Walk<'_> {
    /// Runs the program to its end. On an error the communicator is of no further use.
    ///
    /// # Safety
    /// The buffers are valid for the geometry's extents and nobody else writes them during the call.
    pub(crate) unsafe fn run(&mut self, mut wait: Wait<'_>) -> Result<(), Error> {
        let program = self.program;
        let mut lanes: Vec<Lane> = program.lanes.iter().map(|_| Lane::default()).collect();
        loop {
            let mut progress = false;
            let mut open = false;
            for index in 0..lanes.len() {
                // SAFETY: the caller's promise.
                progress |= unsafe { self.fire(&mut lanes, index)? };
                self.collect_released(&mut lanes[index]);
                open |= lanes[index].tile < self.tiles(index) || !lanes[index].lent.is_empty();
            }
            if !open {
                return Ok(());
            }
            if progress {
                wait.over();
            } else {
                wait.idle(|| None, || self.whom(&lanes))?;
            }
        }
    }

    /// A rank without which no lane goes on.
    #[cold]
    fn whom(&mut self, lanes: &[Lane]) -> Option<Rank> {
        for (index, lane) in lanes.iter().enumerate() {
            if let Some(lent) = lane.lent.front().filter(|_| lane.tile >= self.tiles(index)) {
                return Some(self.links.peer(lent.link));
            }
            let Some(step) = self.program.lanes[index].get(lane.step) else { continue };
            if lane.tile >= self.tiles(index)
                || !step
                    .after
                    .iter()
                    .all(|a| done(&lanes[a.lane as usize], lane.tile, a.step as usize))
            {
                continue;
            }
            let links = &mut *self.links;
            let missing = |place: &&Place| {
                matches!(**place, Place::Link(link)
                    if !matches!(links.incoming[link as usize].slots.receive(), Ok(Some(_))))
            };
            let input = step.inputs.iter().find(missing).copied();
            let links = &mut *self.links;
            let full = |place: &&Place| {
                matches!(**place, Place::Link(link)
                    if !matches!(links.outgoing[link as usize].slots.reserve(), Ok(Some(_))))
            };
            let output = input.or_else(|| step.outputs.iter().find(full).copied());
            match (output, lane.lent.front()) {
                (Some(Place::Link(link)), _) => return Some(self.links.peer(link)),
                (_, Some(lent)) => return Some(self.links.peer(lent.link)),
                _ => {}
            }
        }
        None
    }

    /// Tiles that lane `index` runs: none if it has no steps.
    fn tiles(&self, index: usize) -> u64 {
        if self.program.lanes[index].is_empty() { 0 } else { self.program.geometry.tiles }
    }

    /// Fires the next step of lane `index` if it can.
    unsafe fn fire(&mut self, lanes: &mut [Lane], index: usize) -> Result<bool, Error> {
        let lane = &lanes[index];
        if lane.tile >= self.tiles(index) {
            return Ok(false);
        }
        let (tile, at) = (lane.tile, lane.step);
        let step = &self.program.lanes[index][at];
        if !step.after.iter().all(|a| done(&lanes[a.lane as usize], tile, a.step as usize)) {
            return Ok(false);
        }
        let Some((inputs, count)) = self.inputs(step, tile)? else { return Ok(false) };
        let outputs = self.local_outputs(step, tile, count)?;
        self.collect_released(&mut lanes[index]);
        let written =
            |l: &Lent| outputs.iter().any(|&(p, _)| l.start < p + count * self.size && p < l.end);
        if lanes[index].lent.iter().any(written) {
            return Ok(false);
        }
        let Some(slots) = self.slots(step, count * self.size)? else { return Ok(false) };
        // SAFETY: the inputs are memory of the caller, of scratch or of messages not yet released, each `count`
        // elements long; the outputs likewise, and no two overlap except where the schedule, which is proved free of
        // races, says the same chunk.
        unsafe { self.pass(step, &inputs, count, &outputs, &slots) };
        self.send(step, tile, at, &inputs, count, &outputs, &mut lanes[index])?;
        for place in &step.inputs {
            if let Place::Link(link) = *place {
                self.links.incoming[link as usize].slots.release();
            }
        }
        let lane = &mut lanes[index];
        lane.step += 1;
        if lane.step == self.program.lanes[index].len() {
            (lane.step, lane.tile) = (0, tile + 1);
        }
        Ok(true)
    }

    /// Addresses of all inputs and their common length in elements, or None while a message is missing.
    fn inputs(
        &mut self,
        step: &BoundStep,
        tile: u64,
    ) -> Result<Option<(Few<usize>, usize)>, Error> {
        let mut addresses = Few::new();
        let mut count = None;
        for place in &step.inputs {
            let (address, len) = match *place {
                Place::Link(link) => {
                    let Some(message) = self.links.incoming[link as usize].slots.receive()? else {
                        return Ok(None);
                    };
                    if message.tag != self.tag || message.len % self.size != 0 {
                        return Err(mismatch(self.links.peer(link), self.tag, message.tag));
                    }
                    (message.data as usize, message.len / self.size)
                }
                _ => self.local(*place, tile, None),
            };
            addresses.push(address);
            if *count.get_or_insert(len) != len {
                return Err(Error::internal("inputs of one step differ in length"));
            }
        }
        Ok(count.map(|count| (addresses, count)))
    }

    /// Address and length in elements of a local place in `tile`; scratch has the length of its content, or `write`.
    fn local(&mut self, place: Place, tile: u64, write: Option<usize>) -> (usize, usize) {
        let bytes = |base: usize, e: Extent| (base + e.start * self.size, e.len);
        let geometry = &self.program.geometry;
        match place {
            Place::Send(e) => bytes(self.buffers.send as usize, geometry.slice(e, tile)),
            Place::Recv(e) => bytes(self.buffers.recv as usize, geometry.slice(e, tile)),
            Place::Scratch(i) => {
                let len = self.scratch.len_mut(i);
                *len = write.unwrap_or(*len);
                let len = *len;
                (self.scratch.chunk(i) as usize, len)
            }
            Place::Link(_) => unreachable!("a link is not local"),
        }
    }

    /// Address and `last` bit of each local output.
    fn local_outputs(
        &mut self,
        step: &BoundStep,
        tile: u64,
        count: usize,
    ) -> Result<Few<(usize, bool)>, Error> {
        let mut outputs = Few::new();
        for (i, place) in step.outputs.iter().enumerate() {
            if matches!(place, Place::Link(_)) {
                continue;
            }
            let (address, len) = self.local(*place, tile, Some(count));
            if len != count {
                return Err(Error::internal("a result does not fit its chunk"));
            }
            outputs.push((address, step.last >> i & 1 != 0));
        }
        Ok(outputs)
    }

    /// The slots for the messages that are copied (0 where the link lends), or None while a link has no credit.
    fn slots(&mut self, step: &BoundStep, bytes: usize) -> Result<Option<Few<usize>>, Error> {
        let lendable = step.lendable(self.scaled).is_some();
        let mut slots = Few::new();
        for place in &step.outputs {
            let Place::Link(link) = *place else { continue };
            let outgoing = &mut self.links.outgoing[link as usize].slots;
            let Some(slot) = outgoing.reserve()? else { return Ok(None) };
            let lends = lendable && outgoing.lends();
            debug_assert!(lends || bytes <= slot.capacity);
            slots.push(if lends { 0 } else { slot.data as usize });
        }
        Ok(Some(slots))
    }

    unsafe fn pass(
        &self,
        step: &BoundStep,
        inputs: &Few<usize>,
        count: usize,
        outputs: &Few<(usize, bool)>,
        slots: &Few<usize>,
    ) {
        let mut targets = [std::ptr::null_mut::<u8>(); MAX_FAN];
        let mut sources = [std::ptr::null::<u8>(); MAX_FAN];
        let (mut n, mut streamed) = (0, 0u8);
        for &(address, last) in outputs {
            targets[n] = address as *mut u8;
            streamed |= u8::from(last && self.stream) << n;
            n += 1;
        }
        for &slot in slots.iter().filter(|&&s| s != 0) {
            targets[n] = slot as *mut u8;
            n += 1;
        }
        if n == 0 || count == 0 {
            return;
        }
        for (source, &address) in sources.iter_mut().zip(inputs) {
            *source = address as *const u8;
        }
        let pass = Pass {
            inputs: &sources[..inputs.len()],
            own: step.own,
            outputs: &targets[..n],
            streamed,
            count,
            finish: step.finish,
        };
        // SAFETY: the caller's promise.
        unsafe { self.kernel.run(&pass) };
    }

    #[allow(clippy::too_many_arguments, reason = "one step's facts, all found by its caller")]
    fn send(
        &mut self,
        step: &BoundStep,
        tile: u64,
        at: usize,
        inputs: &Few<usize>,
        count: usize,
        outputs: &Few<(usize, bool)>,
        lane: &mut Lane,
    ) -> Result<(), Error> {
        let bytes = count * self.size;
        let lendable = step.lendable(self.scaled).is_some();
        let start = outputs.first().map_or(inputs[0], |&(address, _)| address);
        for place in &step.outputs {
            let Place::Link(link) = *place else { continue };
            let outgoing = &mut self.links.outgoing[link as usize].slots;
            if !(lendable && outgoing.lends()) {
                outgoing.send(bytes, self.tag);
                continue;
            }
            // It fails if the communicator was aborted since the credit was reserved.
            // SAFETY: the memory is not written before the release: by this lane because `fire` looks at `lent`, by others
            // because the schedule is proved, by the caller because `run` returns only when nothing is lent.
            let lent = unsafe { outgoing.lend(start as *const u8, bytes, self.tag)? };
            let sequence = lent.expect("a credit was reserved for this message");
            let end = start + bytes;
            lane.lent.push_back(Lent { tile, step: at, link, sequence, start, end });
        }
        Ok(())
    }

    fn collect_released(&mut self, lane: &mut Lane) {
        let links = &mut *self.links;
        lane.lent.retain(|l| links.outgoing[l.link as usize].slots.released() < l.sequence);
    }
}

/// Step `step` of tile `tile` has fired on `lane`, and what it lent is released.
fn done(lane: &Lane, tile: u64, step: usize) -> bool {
    (lane.tile, lane.step) > (tile, step)
        && !lane.lent.iter().any(|l| (l.tile, l.step) == (tile, step))
}
