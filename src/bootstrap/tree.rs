//! The control tree: a binary tree of connections over all ranks, rank 0 at the top, in which the parent of rank r is
//! (r - 1) / 2. Each rank has at most three connections, and what all must know takes 2 log2(n) messages on its longest way.
//!
//! A failure is told through the tree before it is closed, so that every rank names the rank at fault and not the
//! neighbour that brought the news. A tree that failed stays failed.

use std::time::{Duration, Instant};

use super::abort::{self, AbortSignal};
use super::error::{BootstrapError, RankSet};
use super::stream::{self, Broken, Framed};
use super::traffic::ControlTraffic;
use super::wire::{self, Frame, ITEM_HEADER};

/// Most bytes that one rank gives to one exchange.
pub const MOST_ITEM: usize = 64 << 10;
/// Most bytes of all ranks' items in one exchange.
const MOST_ITEMS: usize = 1 << 30;
/// For a verdict to get out.
const FAREWELL: Duration = Duration::from_millis(500);

/// The rank above; none above rank 0.
pub(super) fn parent(rank: u32) -> Option<u32> {
    (rank > 0).then(|| (rank - 1) / 2)
}

/// The ranks below.
pub(super) fn children(rank: u32, nranks: u32) -> impl Iterator<Item = u32> {
    let first = 2 * u64::from(rank) + 1;
    (first..first + 2).filter(move |&child| child < u64::from(nranks)).map(|child| child as u32)
}

/// One rank's part of the control tree.
pub struct ControlTree {
    rank: u32,
    nranks: u32,
    /// The parent.
    above: Option<Framed>,
    /// During the bootstrap, the roots that rank 0 is still with: statuses and verdicts come from them.
    roots: Vec<Framed>,
    below: Vec<Child>,
    /// Of the next exchange.
    sequence: u32,
    /// The items that came from above for it.
    down: Option<Vec<u8>>,
    broken: Option<BootstrapError>,
    /// Messages of the control plane that came in between.
    notes: Vec<(u32, Vec<u8>)>,
    /// Over connections that are closed.
    past: ControlTraffic,
    /// What ends [`all_gather`](Self::all_gather).
    abort: Option<AbortSignal>,
}

struct Child {
    rank: u32,
    framed: Framed,
    /// The items that came for the next exchange, with the sequence the child has given it.
    up: Option<(u32, Vec<u8>)>,
}

impl ControlTree {
    /// A tree without connections: whole only if there is one rank.
    pub(super) fn new(rank: u32, nranks: u32, abort: Option<AbortSignal>) -> Self {
        Self {
            rank,
            nranks,
            above: None,
            roots: Vec::new(),
            below: Vec::new(),
            sequence: 0,
            down: None,
            broken: None,
            notes: Vec::new(),
            past: ControlTraffic::default(),
            abort,
        }
    }

    /// Collects what every rank gives, in the order of the ranks. Every rank must call it, in the same order with other
    /// exchanges of this tree; each may give another number of bytes, up to [`MOST_ITEM`].
    ///
    /// # Errors
    /// [`BootstrapError::PeerLost`] when a rank's process ends, [`BootstrapError::TimedOut`] at the deadline of any rank; all
    /// ranks get the same error; as they do of an abort.
    pub fn all_gather(
        &mut self,
        bytes: &[u8],
        deadline: Instant,
    ) -> Result<Vec<Vec<u8>>, BootstrapError> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        if bytes.len() > MOST_ITEM {
            // The others wait for us in vain: they must be told.
            let error =
                BootstrapError::TooLong { rank: self.rank, len: bytes.len(), most: MOST_ITEM };
            return Err(self.fail(error));
        }
        self.exchange(bytes, deadline).map_err(|error| self.fail(error))
    }

    /// What it took this rank to join, and to exchange since.
    pub fn traffic(&self) -> ControlTraffic {
        let mut sum = self.past;
        self.above.iter().chain(&self.roots).for_each(|above| sum.add(above));
        self.below.iter().for_each(|child| sum.add(&child.framed));
        sum
    }

    /// Counts a connection that is about to be closed.
    pub(super) fn closing(&mut self, framed: &Framed) {
        self.past.add(framed);
    }

    /// Returns when every rank has called it.
    pub fn barrier(&mut self, deadline: Instant) -> Result<(), BootstrapError> {
        self.all_gather(&[], deadline).map(drop)
    }

    fn exchange(
        &mut self,
        bytes: &[u8],
        deadline: Instant,
    ) -> Result<Vec<Vec<u8>>, BootstrapError> {
        let mut exchange = self.begin(bytes);
        let mut whole = None;
        // What came together with the last exchange wakes nobody again.
        self.hear(false)?;
        loop {
            if whole.is_none() {
                whole = self.advance(&mut exchange)?;
            }
            let flushed = self.below.iter().all(|child| child.framed.is_flushed());
            if let Some(whole) = whole.take_if(|_| flushed) {
                return Ok(whole);
            }
            abort::check(self.abort.as_ref(), self.rank)?;
            if Instant::now() >= deadline {
                return Err(self.late(&exchange));
            }
            let mut fds = Vec::new();
            self.poll_fds(&mut fds);
            fds.extend(self.abort.iter().map(AbortSignal::poll_fd));
            stream::wait(&mut fds, deadline);
            self.hear(whole.is_some())?;
        }
    }

    /// The next exchange, to be [`advance`](Self::advance)d whenever something was heard.
    pub(crate) fn begin(&self, bytes: &[u8]) -> Exchange {
        Exchange {
            started: Instant::now(),
            gathered: Gathered::new(self.rank, self.nranks, bytes),
            open: self.below.iter().map(|child| child.rank).collect(),
        }
    }

    /// Does what can be done of an exchange without waiting; its result when it is complete.
    pub(crate) fn advance(
        &mut self,
        exchange: &mut Exchange,
    ) -> Result<Option<Vec<Vec<u8>>>, BootstrapError> {
        self.take_ups(&mut exchange.gathered, &mut exchange.open)?;
        if !exchange.open.is_empty() {
            return Ok(None);
        }
        let whole = self.pass(&mut exchange.gathered)?;
        if whole.is_some() {
            self.sequence = self.sequence.wrapping_add(1);
        }
        Ok(whole)
    }

    /// Whom the exchange waits for.
    pub(crate) fn late(&self, exchange: &Exchange) -> BootstrapError {
        let open = &exchange.open;
        let what = if open.is_empty() { "to pass on" } else { "to give" };
        BootstrapError::TimedOut {
            rank: self.rank,
            waiting_for: open.first().copied().or(parent(self.rank)).unwrap_or(self.rank),
            what: format!("{what} its part of exchange {}", self.sequence),
            waited: exchange.started.elapsed(),
        }
    }

    /// Takes what the children have given for this exchange.
    fn take_ups(
        &mut self,
        gathered: &mut Gathered,
        open: &mut Vec<u32>,
    ) -> Result<(), BootstrapError> {
        for at in 0..self.below.len() {
            let child = self.below[at].rank;
            if !open.contains(&child) {
                continue;
            }
            let Some((sequence, items)) = self.below[at].up.take() else { continue };
            if sequence != self.sequence {
                return Err(BootstrapError::Disagreement {
                    what: format!("which exchange is next ({sequence} or {})", self.sequence),
                    ranks: RankSet::new([child]),
                });
            }
            gathered.add(&items, child).ok_or_else(|| self.malformed("items", "child"))?;
            open.retain(|&it| it != child);
        }
        Ok(())
    }

    /// With all of the subtree here: sends it up once, and takes and sends down what comes back.
    fn pass(&mut self, gathered: &mut Gathered) -> Result<Option<Vec<Vec<u8>>>, BootstrapError> {
        let sequence = self.sequence;
        let items = if self.rank == 0 {
            gathered.body()
        } else {
            if let Some(body) = gathered.take_body() {
                if body.len() > self.most() {
                    return Err(self.malformed("items", "subtree"));
                }
                if let Some(above) = &mut self.above {
                    above.send(&Frame::Up { sequence, items: body });
                }
            }
            let Some(items) = self.down.take() else { return Ok(None) };
            items
        };
        let whole =
            read_all(&items, self.nranks).ok_or_else(|| self.malformed("items", "parent"))?;
        let down = Frame::Down { sequence, items };
        for child in &mut self.below {
            child.framed.send(&down);
        }
        Ok(Some(whole))
    }

    /// Appends what to poll.
    pub(crate) fn poll_fds(&self, fds: &mut Vec<libc::pollfd>) {
        fds.extend(self.above.iter().chain(&self.roots).map(Framed::poll_fd));
        fds.extend(self.below.iter().map(|child| child.framed.poll_fd()));
    }

    /// Reads from all neighbours what is there. `done`: this exchange needs nothing more from them, so their
    /// end is no failure of it.
    pub(super) fn hear(&mut self, done: bool) -> Result<(), BootstrapError> {
        if let Some(mut above) = self.above.take() {
            above.fill();
            above.flush();
            let heard = self.hear_above(&mut above, done);
            self.above = Some(above);
            heard?;
        }
        self.hear_roots(done)?;
        for at in 0..self.below.len() {
            let child = &mut self.below[at];
            child.framed.fill();
            child.framed.flush();
            let rank = child.rank;
            loop {
                match self.below[at].framed.next() {
                    Ok(Some(Frame::Up { sequence, items })) if self.below[at].up.is_none() => {
                        self.below[at].up = Some((sequence, items));
                    }
                    Ok(Some(Frame::Verdict(verdict))) => return Err(verdict),
                    Ok(Some(Frame::Note(note))) => self.notes.push((rank, note)),
                    Ok(None) => break,
                    // It has what it needs; the next exchange will find it gone.
                    Err(Broken::Ended) if done => break,
                    Err(Broken::Ended) => {
                        return Err(BootstrapError::PeerLost { rank, seen_by: self.rank });
                    }
                    Ok(Some(_)) | Err(Broken::Malformed) => {
                        return Err(self.malformed("a frame", "child"));
                    }
                }
            }
        }
        Ok(())
    }

    fn hear_roots(&mut self, done: bool) -> Result<(), BootstrapError> {
        for at in 0..self.roots.len() {
            let root = &mut self.roots[at];
            root.fill();
            root.flush();
            loop {
                match self.roots[at].next() {
                    Ok(Some(Frame::Status { missing, waited })) => self.status(&missing, waited),
                    Ok(Some(Frame::Verdict(verdict))) => return Err(verdict),
                    Ok(None) => break,
                    Err(Broken::Ended) if done => break,
                    Err(Broken::Ended) => {
                        return Err(self.roots[at].peer().map_or_else(
                            || self.malformed("its end", "root"),
                            |address| BootstrapError::RootLost { rank: self.rank, address },
                        ));
                    }
                    Ok(Some(_)) | Err(Broken::Malformed) => {
                        return Err(self.malformed("a frame", "root"));
                    }
                }
            }
        }
        Ok(())
    }

    fn hear_above(&mut self, above: &mut Framed, done: bool) -> Result<(), BootstrapError> {
        loop {
            match above.next() {
                Ok(Some(Frame::Status { missing, waited })) => self.status(&missing, waited),
                Ok(Some(Frame::Verdict(verdict))) => return Err(verdict),
                Ok(Some(Frame::Note(note))) => {
                    self.notes.extend(parent(self.rank).map(|rank| (rank, note)));
                }
                Ok(Some(Frame::Down { sequence, items }))
                    if sequence == self.sequence && self.down.is_none() && self.rank > 0 =>
                {
                    self.down = Some(items);
                    // What comes after it belongs to a later exchange.
                    return Ok(());
                }
                Ok(None) => return Ok(()),
                Err(Broken::Ended) if done || self.down.is_some() => return Ok(()),
                Err(Broken::Ended) => {
                    let rank = parent(self.rank).unwrap_or_default();
                    return Err(BootstrapError::PeerLost { rank, seen_by: self.rank });
                }
                Ok(Some(_)) | Err(Broken::Malformed) => {
                    return Err(self.malformed("a frame", "parent"));
                }
            }
        }
    }

    /// Tells of missing ranks, here and to those below.
    pub(super) fn status(&mut self, missing: &RankSet, waited: Duration) {
        log::warn!(
            "rank {} waits since {:.0} s for {} of {} ranks to join: {missing}",
            self.rank,
            waited.as_secs_f64(),
            missing.len(),
            self.nranks
        );
        let frame = Frame::Status { missing: missing.clone(), waited };
        for child in &mut self.below {
            child.framed.send(&frame);
        }
    }

    pub(super) fn set_above(&mut self, mut framed: Framed) {
        framed.allow(self.most());
        self.above = Some(framed);
    }

    /// The roots that rank 0 stays with.
    pub(super) fn set_roots(&mut self, roots: Vec<Framed>) {
        self.roots = roots;
    }

    /// Those roots.
    pub(super) fn take_roots(&mut self) -> Vec<Framed> {
        std::mem::take(&mut self.roots)
    }

    /// Adds a child, or replaces one that dialed again.
    pub(super) fn add_child(&mut self, rank: u32, mut framed: Framed) {
        framed.allow(self.most());
        if let Some(at) = self.below.iter().position(|child| child.rank == rank) {
            let old = self.below.swap_remove(at);
            self.closing(&old.framed);
        }
        self.below.push(Child { rank, framed, up: None });
    }

    /// The children that are not linked.
    pub(super) fn absent(&self) -> impl Iterator<Item = u32> {
        children(self.rank, self.nranks)
            .filter(|&rank| self.below.iter().all(|child| child.rank != rank))
    }

    /// This rank cannot go on, for reasons that it found outside the tree: tells the others.
    pub(crate) fn give_up(&mut self, why: String) {
        if self.broken.is_none() {
            self.fail(BootstrapError::PeerFailed { rank: self.rank, why });
        }
    }

    fn fail(&mut self, error: BootstrapError) -> BootstrapError {
        self.fail_at(error, std::iter::empty())
    }

    /// Tells the neighbours and `others` why, and gives up. Among them is the root while this rank still has it, which tells
    /// those that have no neighbour yet.
    pub(super) fn fail_at(
        &mut self,
        error: BootstrapError,
        others: impl IntoIterator<Item = Framed>,
    ) -> BootstrapError {
        let verdict = error.verdict(self.rank);
        let mut neighbours: Vec<Framed> = self.below.drain(..).map(|child| child.framed).collect();
        let roots = self.take_roots();
        neighbours.extend(self.above.take().into_iter().chain(roots).chain(others));
        for neighbour in &mut neighbours {
            neighbour.send(&Frame::Verdict(verdict.clone()));
        }
        stream::drain(neighbours.iter_mut(), Instant::now() + FAREWELL);
        self.broken = Some(error.clone());
        error
    }

    /// Most bytes of the items of a frame.
    fn most(&self) -> usize {
        (self.nranks as usize).saturating_mul(ITEM_HEADER + MOST_ITEM).min(MOST_ITEMS)
    }

    fn malformed(&self, what: &'static str, from: &str) -> BootstrapError {
        BootstrapError::Protocol { rank: self.rank, peer: format!("its {from}"), what }
    }
}

/// An exchange under way.
pub(crate) struct Exchange {
    started: Instant,
    gathered: Gathered,
    /// The children that have not given their part.
    open: Vec<u32>,
}

/// What a neighbour in the tree did, once the bootstrap is over.
pub(crate) enum Heard {
    /// It sent a message of the control plane.
    Note(u32, Vec<u8>),
    /// It failed and says why, or brings nonsense.
    Failed(u32, BootstrapError),
    /// Its connection ended; it is no neighbour any more.
    Ended(u32),
}

/// The tree as the control plane uses it.
impl ControlTree {
    pub(crate) fn rank(&self) -> u32 {
        self.rank
    }

    pub(crate) fn nranks(&self) -> u32 {
        self.nranks
    }

    /// The ranks at the other ends of the connections that are open.
    pub(crate) fn neighbours(&self) -> impl Iterator<Item = u32> {
        let above = self.above.is_some().then(|| parent(self.rank)).flatten();
        above.into_iter().chain(self.below.iter().map(|child| child.rank))
    }

    /// From now on the kernel watches the host of this neighbour.
    pub(crate) fn keep_alive(&self, neighbour: u32) {
        let above = self.above.iter().filter(|_| parent(self.rank) == Some(neighbour));
        let below = self.below.iter().filter(|child| child.rank == neighbour);
        above.chain(below.map(|child| &child.framed)).for_each(Framed::keep_alive);
    }

    /// Reads what is there, in the order in which it was sent; parts of exchanges are kept for [`advance`](Self::advance).
    pub(crate) fn listen(&mut self) -> Vec<Heard> {
        let mut heard: Vec<Heard> =
            self.notes.drain(..).map(|(rank, note)| Heard::Note(rank, note)).collect();
        if let (Some(above), Some(rank)) = (&mut self.above, parent(self.rank)) {
            let (down, sequence) = (&mut self.down, self.sequence);
            let keep = hear(above, rank, &mut heard, |frame| match frame {
                Frame::Down { sequence: theirs, items } if theirs == sequence && down.is_none() => {
                    *down = Some(items);
                    true
                }
                _ => false,
            });
            if !keep {
                self.above = None;
            }
        }
        self.below.retain_mut(|Child { rank, framed, up }| {
            hear(framed, *rank, &mut heard, |frame| match frame {
                Frame::Up { sequence, items } if up.is_none() => {
                    *up = Some((sequence, items));
                    true
                }
                _ => false,
            })
        });
        heard
    }

    /// Sends a message of the control plane to a neighbour; nothing if it is none any more.
    pub(crate) fn tell(&mut self, neighbour: u32, note: &[u8]) {
        if let Some(framed) = self.framed(neighbour) {
            framed.send(&Frame::Note(note.to_vec()));
        }
    }

    /// The neighbour on the way to a rank.
    pub(crate) fn toward(&self, rank: u32) -> Option<u32> {
        let child = children(self.rank, self.nranks).find(|&child| is_below(rank, child));
        child.or_else(|| parent(self.rank))
    }

    /// The ranks that a message to `rank` passes, both ends excluded.
    pub(crate) fn between(&self, rank: u32) -> Vec<u32> {
        let mut way = Vec::new();
        let (mut from, mut to) = (self.rank, rank);
        while from != to {
            // The higher number is never the deeper end of the other: climb from it.
            let higher = if from > to { &mut from } else { &mut to };
            *higher = (*higher - 1) / 2;
            way.push(*higher);
        }
        way.retain(|&it| it != self.rank && it != rank);
        way.dedup();
        way
    }

    /// Forgets a neighbour.
    pub(crate) fn forget(&mut self, neighbour: u32) {
        if parent(self.rank) == Some(neighbour) {
            self.above = None;
        }
        self.below.retain(|child| child.rank != neighbour);
    }

    /// Closes all connections, with what was sent on its way.
    pub(crate) fn close(&mut self) {
        let above = self.above.take();
        for mut framed in self.below.drain(..).map(|child| child.framed).chain(above) {
            framed.flush();
            framed.finish();
            // Closing a socket with unread data would overtake what was sent.
            framed.discard();
        }
    }

    fn framed(&mut self, neighbour: u32) -> Option<&mut Framed> {
        if parent(self.rank) == Some(neighbour) {
            return self.above.as_mut();
        }
        self.below.iter_mut().find(|child| child.rank == neighbour).map(|child| &mut child.framed)
    }
}

/// Reads a neighbour's frames; `part` takes those of exchanges. False if it is to be forgotten.
fn hear(
    framed: &mut Framed,
    rank: u32,
    heard: &mut Vec<Heard>,
    mut part: impl FnMut(Frame) -> bool,
) -> bool {
    framed.fill();
    framed.flush();
    loop {
        let understood = match framed.next() {
            Ok(None) => return true,
            Ok(Some(Frame::Note(note))) => {
                heard.push(Heard::Note(rank, note));
                true
            }
            Ok(Some(Frame::Verdict(error))) => {
                heard.push(Heard::Failed(rank, error));
                true
            }
            Ok(Some(Frame::Status { .. })) => true,
            Ok(Some(frame)) => part(frame),
            Err(Broken::Malformed) => false,
            Err(Broken::Ended) => {
                heard.push(Heard::Ended(rank));
                return false;
            }
        };
        if !understood {
            let why = String::from("it sent what breaks the protocol");
            heard.push(Heard::Failed(rank, BootstrapError::PeerFailed { rank, why }));
            return false;
        }
    }
}

/// The items of a subtree, as they come.
struct Gathered {
    rank: u32,
    nranks: u32,
    body: Option<Vec<u8>>,
}

impl Gathered {
    fn new(rank: u32, nranks: u32, own: &[u8]) -> Self {
        let mut body = Vec::new();
        wire::put_item(&mut body, rank, own);
        Self { rank, nranks, body: Some(body) }
    }

    /// Adds a child's items, which must be those of its subtree.
    fn add(&mut self, items: &[u8], child: u32) -> Option<()> {
        debug_assert_eq!(parent(child), Some(self.rank));
        let mut count = 0;
        for item in wire::items(items) {
            let (rank, bytes) = item?;
            if rank >= self.nranks || bytes.len() > MOST_ITEM || !is_below(rank, child) {
                return None;
            }
            count += 1;
        }
        if count != size_below(child, self.nranks) {
            return None;
        }
        self.body.as_mut()?.extend(items);
        Some(())
    }

    fn body(&mut self) -> Vec<u8> {
        self.take_body().unwrap_or_default()
    }

    /// The items, the first time.
    fn take_body(&mut self) -> Option<Vec<u8>> {
        self.body.take()
    }
}

/// The items of all ranks, in order; None if one is missing or comes twice.
fn read_all(body: &[u8], nranks: u32) -> Option<Vec<Vec<u8>>> {
    let mut found: Vec<Option<&[u8]>> = vec![None; nranks as usize];
    for item in wire::items(body) {
        let (rank, bytes) = item?;
        if bytes.len() > MOST_ITEM || found.get_mut(rank as usize)?.replace(bytes).is_some() {
            return None;
        }
    }
    found.into_iter().map(|bytes| bytes.map(<[u8]>::to_vec)).collect()
}

/// Whether `rank` is in the subtree of `top`.
fn is_below(mut rank: u32, top: u32) -> bool {
    while rank > top {
        rank = (rank - 1) / 2;
    }
    rank == top
}

/// Ranks in the subtree of `top`: its levels are ranges of ranks, cut off at `nranks`.
fn size_below(top: u32, nranks: u32) -> usize {
    let (mut first, mut last, end) = (u64::from(top), u64::from(top), u64::from(nranks));
    let mut count = 0;
    while first < end {
        count += last.min(end - 1) - first + 1;
        (first, last) = (2 * first + 1, 2 * last + 2);
    }
    count as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subtrees_are_consistent() {
        for nranks in 1..70 {
            for top in 0..nranks {
                let members = (0..nranks).filter(|&rank| is_below(rank, top)).count();
                assert_eq!(size_below(top, nranks), members);
                for child in children(top, nranks) {
                    assert_eq!(parent(child), Some(top));
                }
            }
        }
        assert_eq!(children(u32::MAX - 1, u32::MAX).count(), 0);
    }

    #[test]
    fn messages_take_the_tree_s_way() {
        for nranks in [2, 5, 16, 33] {
            for (from, to) in (0..nranks).flat_map(|a| (0..nranks).map(move |b| (a, b))) {
                let mut way = vec![from];
                while from != to && way.last() != Some(&to) {
                    let at = ControlTree::new(*way.last().unwrap(), nranks, None);
                    way.push(at.toward(to).unwrap());
                    assert!(way.len() < 12);
                }
                let passed: Vec<u32> =
                    way.iter().copied().filter(|r| *r != from && *r != to).collect();
                let mut between = ControlTree::new(from, nranks, None).between(to);
                between.sort_unstable();
                let mut sorted = passed.clone();
                sorted.sort_unstable();
                assert_eq!(between, sorted, "{from} to {to}");
            }
        }
    }

    #[test]
    fn a_childs_items_must_be_its_subtrees() {
        let body = |ranks: &[u32]| {
            let mut body = Vec::new();
            for &rank in ranks {
                wire::put_item(&mut body, rank, b"x");
            }
            body
        };
        let add = |ranks| Gathered::new(0, 7, b"").add(&body(ranks), 1);
        assert!(add(&[1, 4, 3]).is_some());
        assert!(add(&[1, 4]).is_none());
        assert!(add(&[1, 4, 2]).is_none());
        assert!(add(&[1, 4, 7]).is_none());
        assert!(read_all(&body(&[1, 0, 2]), 3).is_some());
        assert!(read_all(&body(&[1, 0]), 3).is_none());
        assert!(read_all(&body(&[1, 0, 1]), 3).is_none());
        assert!(read_all(&body(&[0, 1, 3]), 3).is_none());
    }
}
