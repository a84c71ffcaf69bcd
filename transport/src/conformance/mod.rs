//! The conformance suite: the test cases that every kind of link passes.
//!
//! A case has two roles, one per rank. They communicate only over the link under test and a second
//! channel, over which they agree when to continue. The same cases therefore run with both ranks in
//! one process and with each in its own: a caller that has made a connected [`TestEnd`] passes it
//! to [`ConformanceCase::rank0`] or [`ConformanceCase::rank1`].

mod ends;
pub mod fuzz;
mod ll;
mod segments;
mod slots;
mod traffic;

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::endpoint::{Endpoint, EndpointConfig};
use crate::inbox::InboxLayout;
use crate::link::{Incoming, Outgoing, ReceivedMessage, SlotMut};
use crate::ll::{LlPoll, LlReceiver, LlSender};
use crate::noise::Key;
use crate::{LinkError, Rank};

/// A wait that takes this long is a hang.
pub const HANG_TIMEOUT: Duration = Duration::from_secs(30);

/// The shapes with which every case runs: one slot, and several.
pub const LAYOUTS: [InboxLayout; 2] = [
    InboxLayout { nranks: 2, channels: 2, slot_bytes: 4096, depth: 1 },
    InboxLayout { nranks: 2, channels: 2, slot_bytes: 64 * 33, depth: 5 },
];

/// One rank of a connected pair.
pub struct TestEnd {
    /// The rank.
    pub endpoint: Arc<Endpoint>,
    /// The fresh link to the peer.
    pub out: Outgoing,
    /// The fresh link from the peer.
    pub inc: Incoming,
    /// The links of the second channel.
    control: (Outgoing, Incoming),
    peer: Rank,
}

/// A test case: what each of the two ranks does.
#[derive(Clone, Copy)]
pub struct ConformanceCase {
    /// The name, for messages. Cases whose name begins with "LL" need a link with LL.
    pub name: &'static str,
    /// The role of rank 0.
    pub rank0: fn(TestEnd),
    /// The role of rank 1.
    pub rank1: fn(TestEnd),
}

impl ConformanceCase {
    /// Plays a role, if the link has what the case needs.
    pub fn play(&self, role: fn(TestEnd), end: TestEnd) {
        if end.has_ll() || !self.name.starts_with("LL") {
            role(end);
        }
    }
}

const fn case(name: &'static str, rank0: fn(TestEnd), rank1: fn(TestEnd)) -> ConformanceCase {
    ConformanceCase { name, rank0, rank1 }
}

/// The case of the order between messages by different protocols.
const PROTOCOL_ORDER: &str = "LL and slots in order";

/// All cases.
pub const CASES: &[ConformanceCase] = &[
    case("order", slots::order_rank0, slots::order_rank1),
    case("credits", slots::credits_rank0, slots::credits_rank1),
    case("lengths", slots::lengths_rank0, slots::lengths_rank1),
    case("lending", slots::lending_rank0, slots::lending_rank1),
    case("withdrawing", slots::withdrawing_rank0, slots::withdrawing_rank1),
    case("posting", slots::posting_rank0, slots::posting_rank1),
    case("segments", segments::lending_rank0, segments::lending_rank1),
    case("segments are made and freed", segments::freed_rank0, segments::freed_rank1),
    case("segments in both directions", segments::both_directions, segments::both_directions),
    case("segments of a lender that leaves", segments::leave_rank0, segments::leave_rank1),
    case("sleep", slots::sleep_rank0, slots::sleep_rank1),
    case("LL lengths", ll::lengths_rank0, ll::lengths_rank1),
    case("LL credits", ll::credits_rank0, ll::credits_rank1),
    case("LL mismatch", ll::mismatch_rank0, ll::mismatch_rank1),
    case("LL sleep", ll::sleep_rank0, ll::sleep_rank1),
    case(PROTOCOL_ORDER, ll::order_rank0, ll::order_rank1),
    case("traffic", |end| traffic::traffic(end, 1, 2), |end| traffic::traffic(end, 2, 1)),
    case("abort", ends::abort_rank0, ends::abort_rank1),
    case("leave", ends::leave_rank0, ends::leave_rank1),
];

/// Runs all cases in this process, each rank in a thread of its own. `make` makes a rank of a
/// communicator of two.
pub fn run(make: fn(EndpointConfig) -> Result<Endpoint, LinkError>) {
    run_cases(make, CASES.iter(), |end| end);
}

/// Like [`run`], over the links that `wrap` makes of the links of each rank. The order between
/// protocols is not checked, because the wrapped slots may come late while LL messages do not.
pub fn run_over(
    make: fn(EndpointConfig) -> Result<Endpoint, LinkError>,
    wrap: impl Fn(TestEnd) -> TestEnd + Copy + Send,
) {
    run_cases(make, CASES.iter().filter(|case| case.name != PROTOCOL_ORDER), wrap);
}

fn run_cases<'a>(
    make: fn(EndpointConfig) -> Result<Endpoint, LinkError>,
    cases: impl Iterator<Item = &'a ConformanceCase> + Clone,
    wrap: impl Fn(TestEnd) -> TestEnd + Copy + Send,
) {
    for layout in LAYOUTS {
        for case in cases.clone() {
            let _watchdog = Watchdog::new(case.name);
            let secret = Key::random().unwrap();
            let ends = [0, 1].map(|rank| {
                make(EndpointConfig { rank, nranks: 2, secret: secret.clone(), layout }).unwrap()
            });
            let addresses = [ends[1].address(), ends[0].address()];
            let roles = [case.rank0, case.rank1];
            thread::scope(|scope| {
                for ((endpoint, address), role) in ends.into_iter().zip(addresses).zip(roles) {
                    scope.spawn(move || {
                        case.play(role, wrap(TestEnd::connect(endpoint, &address)));
                    });
                }
            });
        }
    }
}

/// Aborts the process if it is not dropped in time.
pub struct Watchdog(#[expect(dead_code, reason = "dropping it is the signal")] Sender<()>);

impl Watchdog {
    /// Allows twice [`HANG_TIMEOUT`] for the test `name`.
    pub fn new(name: &'static str) -> Self {
        Self::over(name, 2 * HANG_TIMEOUT)
    }

    /// Allows `time` for the test `name`.
    pub fn over(name: &'static str, time: Duration) -> Self {
        let (alive, end) = channel();
        thread::spawn(move || {
            if end.recv_timeout(time) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                eprintln!("watchdog: '{name}' hangs");
                std::process::abort();
            }
        });
        Self(alive)
    }
}

impl TestEnd {
    /// Connects a rank of two with the other rank, at `address`, and opens their links.
    ///
    /// # Panics
    /// If anything fails, as all functions here.
    pub fn connect(endpoint: Endpoint, address: &[u8]) -> Self {
        let peer = 1 - endpoint.rank();
        endpoint.connect(peer, address, Instant::now() + HANG_TIMEOUT).unwrap();
        endpoint.connect(peer, address, Instant::now()).expect("connecting is idempotent");
        let (out, inc) = endpoint.open(peer, 0).unwrap();
        let control = endpoint.open(peer, 1).unwrap();
        Self { endpoint: Arc::new(endpoint), out, inc, control, peer }
    }

    /// Whether the link has the LL protocol; the same at both ends.
    pub fn has_ll(&self) -> bool {
        self.out.ll.is_some()
    }

    fn reserve(&mut self) -> SlotMut {
        wait(&self.endpoint, || self.out.slots.reserve().unwrap())
    }

    fn receive(&mut self) -> ReceivedMessage {
        wait(&self.endpoint, || self.inc.slots.receive().unwrap())
    }

    fn send(&mut self, data: &[u8], tag: u32) -> u64 {
        let slot = self.reserve();
        assert!(slot.data.addr().is_multiple_of(64) && data.len() <= slot.capacity);
        // SAFETY: the slot is reserved and has room.
        unsafe { slot.data.copy_from_nonoverlapping(data.as_ptr(), data.len()) };
        self.out.slots.send(data.len(), tag)
    }

    fn send_ll(&mut self, data: &[u8], tag: u32) {
        wait(&self.endpoint, || ll_sender(&mut self.out).ready().then_some(()));
        // SAFETY: a slot is free; callers stay within the capacity.
        unsafe { ll_sender(&mut self.out).write(data.as_ptr(), data.len(), tag) };
        ll_sender(&mut self.out).doorbell().ring();
    }

    fn receive_ll(&mut self, len: usize, tag: u32) -> Vec<u8> {
        let Self { endpoint, inc, .. } = self;
        wait(endpoint, || match ll_receiver(inc).poll(len, tag) {
            LlPoll::Ready => Some(()),
            LlPoll::Pending => None,
            LlPoll::Mismatch { seen_tag } => panic!("tag {seen_tag} instead of {tag}"),
        });
        let mut data = vec![0xee; len];
        // SAFETY: the message has arrived; `data` has room.
        unsafe { ll_receiver(inc).read(data.as_mut_ptr(), len) };
        data
    }

    /// Lets the other rank pass its next `await_signal`.
    fn signal(&mut self) {
        wait(&self.endpoint, || self.control.0.slots.reserve().unwrap());
        self.control.0.slots.send(0, 0);
    }

    fn await_signal(&mut self) {
        wait(&self.endpoint, || self.control.1.slots.receive().unwrap());
        self.control.1.slots.release();
    }
}

fn ll_sender(out: &mut Outgoing) -> &mut LlSender {
    out.ll.as_mut().expect("the link has LL")
}

fn ll_receiver(inc: &mut Incoming) -> &mut LlReceiver {
    inc.ll.as_mut().expect("the link has LL")
}

/// Sleeps until `look` finds something. It does not spin first, so every wait tests the doorbell.
/// Rank 0 sleeps on its doorbell alone, rank 1 on all that its endpoint can sleep on.
fn wait<T>(endpoint: &Endpoint, mut look: impl FnMut() -> Option<T>) -> T {
    if endpoint.rank() == 1 {
        let deadline = Instant::now() + HANG_TIMEOUT;
        loop {
            let ticket = endpoint.prepare_to_sleep();
            if let Some(found) = look() {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "a wait did not end");
            ticket.sleep(left);
        }
    }
    let mut found = None;
    let ended = endpoint.doorbell().wait(0, 0, Some(HANG_TIMEOUT), || {
        found = look();
        found.is_some()
    });
    assert!(ended, "a wait did not end");
    found.unwrap()
}

fn bytes(message: &ReceivedMessage) -> &[u8] {
    // SAFETY: callers have not released the message.
    unsafe { std::slice::from_raw_parts(message.data, message.len) }
}

/// Long enough for the other rank to fall asleep, most of the time.
fn pause() {
    thread::sleep(Duration::from_millis(20));
}

fn pattern(len: usize, salt: usize) -> Vec<u8> {
    (0..len).map(|index| (index.wrapping_mul(167) + salt * 13 + index / 256) as u8).collect()
}
