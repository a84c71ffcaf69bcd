//! The one suite that every link passes.
//!
//! A case is a pair of roles, one per end, that talk to each other through nothing but the link under test and a second
//! channel for agreeing on when to go on. So the same cases run with both ends in one process and with each in its own:
//! whoever has made a connected [`TestEnd`] calls [`Case::left`] or [`Case::right`] with it.

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
use crate::{LinkError, Rank};

/// A wait as long as this is a hang.
pub const HANG_TIMEOUT: Duration = Duration::from_secs(30);

/// The shapes that every case is run with: a single slot, and several.
pub const LAYOUTS: [InboxLayout; 2] = [
    InboxLayout { nranks: 2, channels: 2, slot_bytes: 4096, depth: 1 },
    InboxLayout { nranks: 2, channels: 2, slot_bytes: 64 * 33, depth: 5 },
];

/// One end of a connected pair.
pub struct TestEnd {
    /// The rank.
    pub endpoint: Arc<Endpoint>,
    /// To the peer; fresh.
    pub out: Outgoing,
    /// From the peer; fresh.
    pub inc: Incoming,
    control: (Outgoing, Incoming),
    peer: Rank,
}

/// What the two ends do, by name.
#[derive(Clone, Copy)]
pub struct Case {
    /// For messages. Cases whose name begins with "line" are for links that have lines.
    pub name: &'static str,
    /// What rank 0 does.
    pub left: fn(TestEnd),
    /// What rank 1 does.
    pub right: fn(TestEnd),
}

impl Case {
    /// Plays a role if the link has what it needs.
    pub fn play(&self, role: fn(TestEnd), side: TestEnd) {
        if side.has_lines() || !self.name.starts_with("line") {
            role(side);
        }
    }
}

/// All cases.
pub const CASES: &[Case] = &[
    Case { name: "order", left: slots::order_left, right: slots::order_right },
    Case { name: "credits", left: slots::credits_left, right: slots::credits_right },
    Case { name: "lengths", left: slots::lengths_left, right: slots::lengths_right },
    Case { name: "lending", left: slots::lending_left, right: slots::lending_right },
    Case { name: "segments", left: segments::lending_left, right: segments::lending_right },
    Case { name: "segments come and go", left: segments::going_left, right: segments::going_right },
    Case { name: "segments both ways", left: segments::both_ways, right: segments::both_ways },
    Case {
        name: "segments of a lender that leaves",
        left: segments::leave_left,
        right: segments::leave_right,
    },
    Case { name: "sleep", left: slots::sleep_left, right: slots::sleep_right },
    Case { name: "line lengths", left: ll::line_lengths_left, right: ll::line_lengths_right },
    Case { name: "line credits", left: ll::line_credits_left, right: ll::line_credits_right },
    Case { name: "line mismatch", left: ll::mismatch_left, right: ll::mismatch_right },
    Case { name: "line sleep", left: ll::line_sleep_left, right: ll::line_sleep_right },
    Case {
        name: "traffic",
        left: |side| traffic::traffic(side, 1, 2),
        right: |side| traffic::traffic(side, 2, 1),
    },
    Case { name: "abort", left: ends::abort_left, right: ends::abort_right },
    Case { name: "leave", left: ends::leave_left, right: ends::leave_right },
];

/// Runs all cases in this process, each end in a thread of its own. `make` makes a rank of a communicator of two.
pub fn run(make: fn(EndpointConfig) -> Result<Endpoint, LinkError>) {
    run_over(make, |side| side);
}

/// The same over what `wrap` makes of the links of each end.
pub fn run_over(
    make: fn(EndpointConfig) -> Result<Endpoint, LinkError>,
    wrap: impl Fn(TestEnd) -> TestEnd + Copy + Send,
) {
    for layout in LAYOUTS {
        for case in CASES {
            let _watchdog = Watchdog::new(case.name);
            let secret = crate::memory::random().unwrap();
            let ends = [0, 1]
                .map(|rank| make(EndpointConfig { rank, nranks: 2, secret, layout }).unwrap());
            let addresses = [ends[1].address(), ends[0].address()];
            let roles = [case.left, case.right];
            thread::scope(|scope| {
                for ((endpoint, address), role) in ends.into_iter().zip(addresses).zip(roles) {
                    scope
                        .spawn(move || case.play(role, wrap(TestEnd::connect(endpoint, &address))));
                }
            });
        }
    }
}

/// Ends the process if it is not dropped in time.
pub struct Watchdog(#[expect(dead_code, reason = "its end is the signal")] Sender<()>);

impl Watchdog {
    /// Watches over what `name` says.
    pub fn new(name: &'static str) -> Self {
        Self::over(name, 2 * HANG_TIMEOUT)
    }

    /// The same over what takes longer.
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
    /// Connects a rank of two with the other one, whose address is given, and opens their links.
    ///
    /// # Panics
    /// As everything here, if anything is not as it should be.
    pub fn connect(endpoint: Endpoint, address: &[u8]) -> Self {
        let peer = 1 - endpoint.rank();
        endpoint.connect(peer, address, Instant::now() + HANG_TIMEOUT).unwrap();
        endpoint.connect(peer, address, Instant::now()).expect("connecting is idempotent");
        let (out, inc) = endpoint.open(peer, 0).unwrap();
        let control = endpoint.open(peer, 1).unwrap();
        Self { endpoint: Arc::new(endpoint), out, inc, control, peer }
    }

    /// Whether the link has lines, the same at both ends.
    pub fn has_lines(&self) -> bool {
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

    fn send_line(&mut self, data: &[u8], tag: u32) {
        wait(&self.endpoint, || lines_out(&mut self.out).ready().then_some(()));
        // SAFETY: a slot is free; callers stay within the capacity.
        unsafe { lines_out(&mut self.out).write(data.as_ptr(), data.len(), tag) };
        lines_out(&mut self.out).doorbell().ring();
    }

    fn receive_line(&mut self, len: usize, tag: u32) -> Vec<u8> {
        let Self { endpoint, inc, .. } = self;
        wait(endpoint, || match lines_in(inc).poll(len, tag) {
            LlPoll::Ready => Some(()),
            LlPoll::Pending => None,
            LlPoll::Mismatch { seen_tag } => panic!("tag {seen_tag} instead of {tag}"),
        });
        let mut data = vec![0xee; len];
        // SAFETY: the message is there; `data` has room.
        unsafe { lines_in(inc).read(data.as_mut_ptr(), len) };
        data
    }

    /// Lets the other end pass its `join`.
    fn signal(&mut self) {
        wait(&self.endpoint, || self.control.0.slots.reserve().unwrap());
        self.control.0.slots.send(0, 0);
    }

    fn join(&mut self) {
        wait(&self.endpoint, || self.control.1.slots.receive().unwrap());
        self.control.1.slots.release();
    }
}

fn lines_out(out: &mut Outgoing) -> &mut LlSender {
    out.ll.as_mut().expect("the link has lines")
}

fn lines_in(inc: &mut Incoming) -> &mut LlReceiver {
    inc.ll.as_mut().expect("the link has lines")
}

/// Sleeps until there is something: at once, so that every wait tries the doorbell.
fn wait<T>(endpoint: &Endpoint, mut look: impl FnMut() -> Option<T>) -> T {
    let mut found = None;
    let ended = endpoint.doorbell().wait(0, 0, Some(HANG_TIMEOUT), || {
        found = look();
        found.is_some()
    });
    assert!(ended, "a wait did not end");
    found.unwrap()
}

fn bytes(message: &ReceivedMessage) -> &[u8] {
    // SAFETY: a message that is not released.
    unsafe { std::slice::from_raw_parts(message.data, message.len) }
}

/// Long enough for the other end to fall asleep, most of the time.
fn pause() {
    thread::sleep(Duration::from_millis(20));
}

fn pattern(len: usize, salt: usize) -> Vec<u8> {
    (0..len).map(|index| (index.wrapping_mul(167) + salt * 13 + index / 256) as u8).collect()
}
