//! A rank of a communicator: its connections in the control tree, exchanges, verdicts, and the end.
//!
//! A rank that fails sends its verdict through the tree before it closes its connections, so that
//! every rank names the rank at fault and not the neighbour from which it learnt of the failure.
//!
//! | file | purpose |
//! |---|---|
//! | `mod` | inputs and outputs; frames; the end of neighbours; verdicts |
//! | `facts` | what a rank can look up |
//! | `gathered`, `exchange` | exchanges: every rank gives bytes and gets those of all |
//! | `history` | comparing the calls of neighbours |
//! | `inquiry` | finding out why a wait takes long, and which call a message belongs to |
//! | `device_work` | watching the work on a device |

mod device_work;
mod exchange;
mod facts;
mod gathered;
mod history;
mod inquiry;

use std::collections::VecDeque;
use std::time::Duration;

use maypole_algorithms::Rank;

use crate::activity::HistoryPoint;
use crate::frame::ControlFrame;
use crate::rank_set::RankSet;
use crate::report::Report;
use crate::time::Time;
use crate::tree_shape::{next_hop, parent};
use crate::verdict::Verdict;
use device_work::DeviceWork;
use exchange::Exchange;
pub use facts::{ControlTiming, DeviceProgress, LocalFacts, ProcessName, ProcessState};
use inquiry::{Inquiry, InquiryPurpose};

/// How long a process that has ended may still be heard: what it sent before may be on its way, and
/// a child made by fork may hold its connection open.
const ENDED_GRACE: Duration = Duration::from_millis(50);
/// As [`ENDED_GRACE`], for a process on another host, whose end others have seen: what it sent may
/// take longer than what they say.
const TOLD_GRACE: Duration = Duration::from_secs(2);
/// How long a process whose connection has ended may still be seen to run: the kernel closes its
/// connections before it ends.
const CLOSED_GRACE: Duration = Duration::from_secs(1);

/// What happens to a rank.
#[derive(Clone, Debug)]
pub enum ControlInput {
    /// A neighbour sent a frame.
    Frame(Rank, ControlFrame),
    /// A neighbour sent bytes that are not a frame.
    Malformed(Rank),
    /// The connection to a neighbour ended.
    Closed(Rank),
    /// The process of a neighbour, or of another rank on this host, ended.
    ProcessEnded(Rank),
    /// The rank takes part in the next exchange, with these bytes.
    Exchange {
        /// What it gives.
        bytes: Vec<u8>,
        /// When the exchange fails.
        deadline: Time,
    },
    /// The rank has waited for `peer` since `since`, and wants to know why.
    Investigate {
        /// The rank that it waits for.
        peer: Rank,
        /// When the wait began.
        since: Time,
    },
    /// The rank makes a connection to this rank, or none any more.
    Connecting(Option<Rank>),
    /// A message of `peer` belongs to another call. The error has the text `fallback` if that call
    /// is not found.
    FindMismatch {
        /// The sender.
        peer: Rank,
        /// What is known.
        fallback: String,
    },
    /// The rank fails, or its user aborts.
    Decide(Verdict),
    /// There is work on the device, which is to be watched.
    WatchDevice,
    /// The answer to [`ControlOutput::CheckDevice`]. None if the device needs no watching.
    DeviceChecked(Option<DeviceProgress>),
    /// The rank leaves the communicator.
    Leave,
    /// Everything that came before the given time has been passed on: deadlines before it count.
    Tick,
}

/// What a rank wants to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlOutput {
    /// Send a frame to a neighbour.
    Send(Rank, ControlFrame),
    /// Close the connection to a neighbour, from which nothing more is expected.
    Close(Rank),
    /// The communicator has ended: end all waits. After a death only those for what has not arrived
    /// from the dead rank; a rank that fails because of it aborts its links.
    Ended(Verdict),
    /// End all waits because of the death of this rank, of which [`Ended`](Self::Ended) told: the
    /// ranks that live had time to send what they can.
    EndAllWaits(Rank),
    /// The exchange has ended. The bytes are in the order of the ranks.
    Exchanged(Result<Vec<Vec<u8>>, Verdict>),
    /// Log and keep a report.
    Report(Report),
    /// Log that these ranks have not joined.
    Missing(RankSet, Duration),
    /// Look what the device does, and answer by [`ControlInput::DeviceChecked`].
    CheckDevice,
    /// Everything was sent; the connections can be closed when it has gone out.
    Left,
}

/// A rank of a communicator.
#[derive(Debug)]
pub struct CommunicatorCore {
    rank: Rank,
    nranks: u32,
    timing: ControlTiming,
    now: Time,
    /// The neighbours that have not left and are not dead.
    neighbours: Vec<Neighbour>,
    /// The neighbours that have left, and their last calls if they are known.
    departures: Vec<(Rank, Option<HistoryPoint>)>,
    /// The first verdict.
    verdict: Option<Verdict>,
    /// The ranks that are known to be dead.
    dead: Vec<Rank>,
    /// A verdict has ended all waits.
    has_ended: bool,
    /// When the first death ends also the waits for ranks that live.
    end_waits_at: Option<Time>,
    /// The number of the next exchange.
    exchange_number: u32,
    exchange: Option<Exchange>,
    inquiries: Vec<Inquiry>,
    /// The token of the last question.
    token: u32,
    connecting: Option<ConnectionAttempt>,
    device: Option<DeviceWork>,
    /// When the calls are compared next, once that has begun.
    next_compare: Option<Time>,
    /// The number of the last call that was sent to be compared.
    compared: u64,
    outputs: VecDeque<ControlOutput>,
}

/// A neighbour in the control tree.
#[derive(Debug)]
struct Neighbour {
    rank: Rank,
    /// The number of an exchange, and the items that a child sent for it.
    up: Option<(u32, Vec<u8>)>,
    /// The last calls of the neighbour, which this rank has not made yet.
    history: Option<HistoryPoint>,
    /// Its connection has ended.
    is_closed: bool,
    /// Its process has ended.
    has_ended: bool,
    /// When it is lost, unless it turns out to have left, because one of both has happened.
    lost_at: Option<Time>,
}

/// A connection that is being made.
#[derive(Debug)]
struct ConnectionAttempt {
    peer: Rank,
    since: Time,
    /// When it is investigated.
    due: Time,
}

impl CommunicatorCore {
    /// Rank `rank` of `nranks`, without neighbours yet.
    pub fn new(rank: Rank, nranks: u32) -> Self {
        Self {
            rank,
            nranks,
            timing: ControlTiming::default(),
            now: Time::START,
            neighbours: Vec::new(),
            departures: Vec::new(),
            verdict: None,
            dead: Vec::new(),
            has_ended: false,
            end_waits_at: None,
            exchange_number: 0,
            exchange: None,
            inquiries: Vec::new(),
            token: 0,
            connecting: None,
            device: None,
            next_compare: None,
            compared: 0,
            outputs: VecDeque::new(),
        }
    }

    /// This rank.
    pub fn rank(&self) -> Rank {
        self.rank
    }

    /// The number of ranks.
    pub fn nranks(&self) -> u32 {
        self.nranks
    }

    /// Why the communicator has ended, if it has.
    pub fn verdict(&self) -> Option<&Verdict> {
        self.verdict.as_ref()
    }

    /// Adds a neighbour, which has connected, or has connected again.
    pub fn add_neighbour(&mut self, rank: Rank) {
        self.neighbours.retain(|neighbour| neighbour.rank != rank);
        self.neighbours.push(Neighbour {
            rank,
            up: None,
            history: None,
            is_closed: false,
            has_ended: false,
            lost_at: None,
        });
    }

    /// Begins to watch the calls of this rank, with these times.
    pub fn start_service(&mut self, timing: ControlTiming, now: Time) {
        self.timing = timing;
        if self.nranks > 1 {
            self.next_compare = Some(now + timing.compare);
        }
    }

    /// Handles an input. `now` must not be earlier than in a call before; if it is, the time stands
    /// still. Deadlines count only at a [`Tick`](ControlInput::Tick): the process may have been
    /// stopped, and what came in time may not have been read yet.
    pub fn handle(&mut self, now: Time, input: ControlInput, facts: &impl LocalFacts) {
        self.now = self.now.max(now);
        match input {
            ControlInput::Frame(from, frame) => self.receive(from, frame, facts),
            ControlInput::Malformed(from) => {
                // What a neighbour sends after its farewell does not matter.
                if self.neighbour(from).is_some() {
                    self.protocol_error(from, "it is not a frame");
                }
            }
            ControlInput::Closed(rank) => self.closed(rank, facts),
            ControlInput::ProcessEnded(rank) => self.process_ended(rank, ENDED_GRACE, facts),
            ControlInput::Exchange { bytes, deadline } => {
                self.begin_exchange(&bytes, deadline, facts);
            }
            ControlInput::Investigate { peer, since } => self.investigate(peer, since, facts),
            ControlInput::Connecting(peer) => {
                let (since, due) = (self.now, self.now + self.timing.report);
                self.connecting = peer.map(|peer| ConnectionAttempt { peer, since, due });
            }
            ControlInput::FindMismatch { peer, fallback } => {
                self.ask(InquiryPurpose::Mismatch { peer, fallback }, facts);
            }
            ControlInput::Decide(verdict) => self.decide(verdict, None),
            ControlInput::WatchDevice => self.device = Some(DeviceWork::begin(self.now)),
            ControlInput::DeviceChecked(progress) => self.device_checked(progress, facts),
            ControlInput::Leave => self.leave(facts),
            ControlInput::Tick => self.tick(now, facts),
        }
    }

    /// The next output. Call this until it returns None after every input.
    pub fn poll_output(&mut self) -> Option<ControlOutput> {
        self.outputs.pop_front()
    }

    /// When a [`Tick`](ControlInput::Tick) is due. None if nothing is.
    pub fn wake(&self) -> Option<Time> {
        let exchange = self.exchange.iter().map(|exchange| exchange.deadline);
        let inquiries = self.inquiries.iter().map(|inquiry| inquiry.due);
        let connecting = self.connecting.iter().map(|it| it.due);
        let device = self.device.iter().filter_map(|work| work.due);
        let lost = self.neighbours.iter().filter_map(|neighbour| neighbour.lost_at);
        exchange
            .chain(inquiries)
            .chain(connecting)
            .chain(device)
            .chain(lost)
            .chain(self.next_compare)
            .chain(self.end_waits_at)
            .min()
    }

    /// Does what is due at this time. All that came before it was passed on.
    fn tick(&mut self, now: Time, facts: &impl LocalFacts) {
        let lost = |it: &Neighbour| it.lost_at.is_some_and(|at| at <= now).then_some(it.rank);
        while let Some(rank) = self.neighbours.iter().find_map(lost) {
            self.neighbour_lost(rank, facts);
        }
        self.exchange_tick(now);
        if self.next_compare.is_some_and(|at| at <= now) {
            self.next_compare = Some(self.now + self.timing.compare);
            self.compare_histories(facts);
        }
        if let Some(ConnectionAttempt { peer, since, due }) = &mut self.connecting
            && *due <= now
        {
            let (peer, since) = (*peer, *since);
            *due = self.now + self.now.since(since).max(self.timing.report);
            self.investigate(peer, since, facts);
        }
        if self.end_waits_at.take_if(|at| *at <= now).is_some()
            && let Some(Verdict::Dead { rank, .. }) = self.verdict
        {
            self.end_all_waits(rank);
        }
        self.device_tick(now);
        while let Some(at) = self.inquiries.iter().position(|inquiry| inquiry.due <= now) {
            let inquiry = self.inquiries.swap_remove(at);
            self.unanswered(inquiry.purpose, inquiry.is_last, facts);
        }
    }

    /// Handles a frame of a neighbour.
    fn receive(&mut self, from: Rank, frame: ControlFrame, facts: &impl LocalFacts) {
        if self.neighbour(from).is_none() {
            return;
        }
        let is_parent = parent(self.rank) == Some(from);
        match frame {
            ControlFrame::Verdict(Verdict::Dead { rank, .. }) if rank >= self.nranks => {
                self.protocol_error(from, "it names a rank that does not exist");
            }
            ControlFrame::Verdict(verdict) => self.decide(verdict, Some(from)),
            ControlFrame::Missing { ranks, waited } if is_parent => {
                self.report_missing(ranks, waited);
            }
            ControlFrame::Up { sequence, items } if !is_parent => {
                self.receive_up(from, sequence, items);
            }
            ControlFrame::Down { sequence, items } if is_parent => {
                self.receive_down(from, sequence, items);
            }
            ControlFrame::Question { token, from: asker, to } if to == self.rank => {
                let activity = facts.activity();
                let answer = ControlFrame::Answer { token, from: self.rank, to: asker, activity };
                self.pass_on(answer, asker, None);
            }
            ControlFrame::Answer { token, from: answerer, to, activity } if to == self.rank => {
                let is_asked = |it: &Inquiry| it.token == token && it.purpose.asked() == answerer;
                if let Some(at) = self.inquiries.iter().position(is_asked) {
                    let inquiry = self.inquiries.swap_remove(at);
                    self.answered(inquiry.purpose, &activity, facts);
                }
            }
            ControlFrame::Question { to, .. } | ControlFrame::Answer { to, .. } => {
                self.pass_on(frame, to, Some(from));
            }
            // The neighbour of that rank decides: it knows whether the rank has left.
            ControlFrame::Ended(rank) if self.neighbour(rank).is_some() => {
                self.process_ended(rank, TOLD_GRACE, facts);
            }
            ControlFrame::Ended(rank) => {
                self.pass_on(ControlFrame::Ended(rank), rank, Some(from));
            }
            ControlFrame::History(point) => self.receive_history(from, point, facts),
            ControlFrame::Leave(point) => self.neighbour_left(from, Some(point), facts),
            ControlFrame::Missing { .. }
            | ControlFrame::Up { .. }
            | ControlFrame::Down { .. }
            | ControlFrame::Register(_)
            | ControlFrame::Parent(_)
            | ControlFrame::LeaveRoot => self.protocol_error(from, "it sent it out of turn"),
        }
    }

    /// Logs which ranks have not joined, and passes that on to the children.
    pub fn report_missing(&mut self, ranks: RankSet, waited: Duration) {
        self.outputs.push_back(ControlOutput::Missing(ranks.clone(), waited));
        let above = parent(self.rank);
        for rank in self.neighbour_ranks() {
            if Some(rank) != above {
                self.send(rank, ControlFrame::Missing { ranks: ranks.clone(), waited });
            }
        }
    }

    /// A neighbour sent what it must not send.
    fn protocol_error(&mut self, from: Rank, what: &str) {
        self.remove_neighbour(from);
        let why = format!(
            "rank {} got a message from it that breaks the protocol ({what}); use the same version \
             of the library on all ranks",
            self.rank
        );
        self.decide(Verdict::Failed { rank: from, why }, Some(from));
    }

    /// The connection to a neighbour ended, which did not leave before.
    fn closed(&mut self, rank: Rank, facts: &impl LocalFacts) {
        let lost_at = self.now + CLOSED_GRACE;
        let Some(neighbour) = self.neighbour(rank) else { return };
        neighbour.is_closed = true;
        let is_known_to_run =
            facts.process_state(rank).is_some_and(|state| state != ProcessState::Ended);
        if is_known_to_run && !neighbour.has_ended {
            neighbour.lost_at = Some(lost_at);
            self.outputs.push_back(ControlOutput::Close(rank));
        } else {
            self.neighbour_died(rank, facts);
        }
    }

    /// The process of a neighbour ended, which may have left before, and may be heard for this
    /// time. That of another rank is told to a neighbour of that rank.
    fn process_ended(&mut self, rank: Rank, grace: Duration, facts: &impl LocalFacts) {
        let lost_at = self.now + grace;
        let Some(neighbour) = self.neighbour(rank) else {
            return self.pass_on(ControlFrame::Ended(rank), rank, None);
        };
        neighbour.has_ended = true;
        if neighbour.is_closed {
            self.neighbour_died(rank, facts);
        } else {
            neighbour.lost_at.get_or_insert(lost_at);
        }
    }

    /// The time is over in which a neighbour whose connection or process ended could be heard.
    fn neighbour_lost(&mut self, rank: Rank, facts: &impl LocalFacts) {
        let Some(neighbour) = self.neighbour(rank) else { return };
        let has_ended =
            neighbour.has_ended || facts.process_state(rank) == Some(ProcessState::Ended);
        if has_ended {
            return self.neighbour_died(rank, facts);
        }
        self.remove_neighbour(rank);
        let why = format!(
            "its control connection to rank {rank} broke, whose process still runs; see whether \
             something on the host or in the network closes connections"
        );
        self.decide(Verdict::Failed { rank: self.rank, why }, None);
    }

    /// A neighbour is gone, which has not announced here that it leaves. It may have announced it
    /// on its link, and its connection may have broken before.
    fn neighbour_died(&mut self, rank: Rank, facts: &impl LocalFacts) {
        if facts.has_left_link(rank) {
            return self.neighbour_left(rank, None, facts);
        }
        self.remove_neighbour(rank);
        self.decide(Verdict::Dead { rank, seen_by: self.rank }, None);
    }

    /// A neighbour leaves, after these calls if they are known.
    fn neighbour_left(&mut self, rank: Rank, point: Option<HistoryPoint>, facts: &impl LocalFacts) {
        self.remove_neighbour(rank);
        self.departures.push((rank, point));
        if self.exchange.is_some() {
            // The exchange cannot be completed.
            self.decide(Verdict::Left { rank }, None);
        }
        self.compare_departures(facts);
    }

    /// Leaves the communicator.
    fn leave(&mut self, facts: &impl LocalFacts) {
        self.spread_link_failure(facts);
        self.compare_histories(facts);
        let point = facts.snapshot().last_point().unwrap_or_default();
        for rank in self.neighbour_ranks() {
            self.send(rank, ControlFrame::Leave(point));
        }
        self.neighbours.clear();
        self.inquiries.clear();
        (self.exchange, self.connecting, self.device) = (None, None, None);
        (self.next_compare, self.end_waits_at) = (None, None);
        self.outputs.push_back(ControlOutput::Left);
    }

    /// Sends a failure that this rank knows from a link over the tree too, before any message that
    /// is a consequence of it: otherwise a neighbour could learn that this rank leaves before it
    /// learns why.
    fn spread_link_failure(&mut self, facts: &impl LocalFacts) {
        if let Some(verdict) = facts.link_failure() {
            self.decide(verdict, None);
        }
    }

    /// Ends the communicator: sends the verdict to all neighbours but `sender`, and ends the waits
    /// of this rank. The first verdict is the cause that ranks are told. A death at first ends only
    /// the waits for what has not arrived from the dead rank, so that further deaths count too.
    fn decide(&mut self, verdict: Verdict, sender: Option<Rank>) {
        if self.has_ended {
            return;
        }
        match verdict {
            Verdict::Dead { rank, .. } if self.dead.contains(&rank) => return,
            Verdict::Dead { rank, .. } => {
                self.dead.push(rank);
                self.end_waits_at.get_or_insert(self.now + self.timing.report);
            }
            _ => self.has_ended = true,
        }
        self.verdict.get_or_insert(verdict.clone());
        for rank in self.neighbour_ranks() {
            if Some(rank) != sender {
                self.send(rank, ControlFrame::Verdict(verdict.clone()));
            }
        }
        self.outputs.push_back(ControlOutput::Ended(verdict.clone()));
        self.next_compare = None;
        if self.exchange.take().is_some() {
            if let Verdict::Dead { rank, .. } = verdict {
                // Ranks that wait for this one must not take its leave for the cause.
                self.end_all_waits(rank);
            }
            self.outputs.push_back(ControlOutput::Exchanged(Err(verdict)));
        }
        if self.has_ended {
            self.stop_watching();
        }
    }

    /// Ends all waits because of the death of this rank.
    fn end_all_waits(&mut self, dead: Rank) {
        self.has_ended = true;
        self.stop_watching();
        self.outputs.push_back(ControlOutput::EndAllWaits(dead));
    }

    /// Investigates no wait any more.
    fn stop_watching(&mut self) {
        self.inquiries.clear();
        (self.connecting, self.device, self.end_waits_at) = (None, None, None);
    }

    /// Sends a frame on the way to rank `to`, unless it came from there. If a connection on the
    /// path is gone the frame is lost, and the rank that asked notices that no answer comes.
    fn pass_on(&mut self, frame: ControlFrame, to: Rank, from: Option<Rank>) {
        if to < self.nranks
            && to != self.rank
            && let Some(next) = next_hop(self.rank, to, self.nranks)
            && Some(next) != from
            && self.neighbour(next).is_some_and(|next| !next.is_closed)
        {
            self.send(next, frame);
        }
    }

    fn send(&mut self, to: Rank, frame: ControlFrame) {
        self.outputs.push_back(ControlOutput::Send(to, frame));
    }

    fn remove_neighbour(&mut self, rank: Rank) {
        self.neighbours.retain(|neighbour| neighbour.rank != rank);
        self.outputs.push_back(ControlOutput::Close(rank));
    }

    fn neighbour(&mut self, rank: Rank) -> Option<&mut Neighbour> {
        self.neighbours.iter_mut().find(|neighbour| neighbour.rank == rank)
    }

    /// The neighbours to which a connection is open.
    fn neighbour_ranks(&self) -> Vec<Rank> {
        let open = self.neighbours.iter().filter(|neighbour| !neighbour.is_closed);
        open.map(|neighbour| neighbour.rank).collect()
    }
}
