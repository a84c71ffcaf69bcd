//! Tests of the proxy without a device: the tests play the kernels, on host memory, over every link
//! of the transport.

use std::any::Any;
use std::net::Ipv4Addr;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use maypole_transport::LinkError;
use maypole_transport::conformance::{HANG_TIMEOUT, TestEnd, Watchdog};
use maypole_transport::device_ring::{DeviceRingMemory, DeviceRingReceiver, DeviceRingSender};
use maypole_transport::endpoint::{EnabledLinks, Endpoint, EndpointConfig};
use maypole_transport::fault::{FaultInjector, FaultRecipe};
use maypole_transport::inbox::InboxLayout;
use maypole_transport::link::{
    HeaderDamage, Incoming, Lendable, Outgoing, ReceivedMessage, SendSlots, Sequence, SlotMut,
};
use maypole_transport::sync::{AtomicU64, Ordering};
use maypole_transport::tcp::TcpConfig;

use super::*;

type Make = fn(EndpointConfig) -> Result<Endpoint, LinkError>;

const LINKS: [(&str, Make); 3] =
    [("local", Endpoint::new), ("shm", Endpoint::new_without_local), ("tcp", tcp)];
const LAYOUTS: [InboxLayout; 2] = [
    InboxLayout { nranks: 2, channels: 2, slot_bytes: 4096, depth: 1 },
    InboxLayout { nranks: 2, channels: 2, slot_bytes: 64 * 33, depth: 4 },
];
const SPIN_POLICY: SpinPolicy = SpinPolicy { spins: 20, yields: 4, shares_cores: false };

fn tcp(config: EndpointConfig) -> Result<Endpoint, LinkError> {
    let tcp = TcpConfig { addresses: vec![Ipv4Addr::LOCALHOST.into()], streams: 2 };
    Endpoint::with_links(
        config,
        &EnabledLinks { local: false, shm: false, verbs: None, tcp: Some(tcp) },
    )
}

/// Two connected ranks over one kind of link.
fn pair(make: Make, layout: InboxLayout) -> [TestEnd; 2] {
    // Ranks of one process find each other by the secret.
    static PAIRS: AtomicU64 = AtomicU64::new(0);
    let mut secret = [7; 32];
    secret[..8].copy_from_slice(&PAIRS.fetch_add(1, Ordering::Relaxed).to_le_bytes());
    let config = |rank| EndpointConfig { rank, nranks: 2, secret: secret.into(), layout };
    let ends = [0, 1].map(|rank| make(config(rank)).unwrap());
    let addresses = [ends[1].address(), ends[0].address()];
    let threads: Vec<_> = ends
        .into_iter()
        .zip(addresses)
        .map(|(end, address)| thread::spawn(move || TestEnd::connect(end, &address)))
        .collect();
    let mut sides = threads.into_iter().map(|thread| thread.join().unwrap());
    [sides.next().unwrap(), sides.next().unwrap()]
}

fn late(mut side: TestEnd) -> TestEnd {
    let (endpoint, peer) = (side.endpoint.clone(), 1 - side.endpoint.rank());
    let recipe = FaultRecipe::parse("seed=3,delay=0.2:200us,backpressure=0.1").unwrap();
    let faults = FaultInjector::new(recipe, endpoint, || unreachable!("no abort in the recipe"));
    (side.out, side.inc) = faults.wrap(peer, 0, (side.out, side.inc));
    side
}

/// A part of the memory of the rings, which is aligned to 128.
#[repr(C, align(128))]
struct Line([u8; 128]);

/// A rank with a proxy, and the ends of its kernel.
struct Rank {
    proxy: Proxy,
    kernel: Kernel,
    /// The number of works that have not finished.
    queued: Arc<AtomicU64>,
    failed: Receiver<Error>,
    /// The ring on which the kernel sends.
    from: DeviceRingMemory,
}

/// The kernel's ends of the rings.
struct Kernel {
    sending: DeviceRingSender,
    receiving: DeviceRingReceiver,
}

fn proxied(side: TestEnd) -> Rank {
    let TestEnd { endpoint, out, inc, .. } = side;
    let layout =
        InboxLayout { slot_bytes: out.slots.capacity(), depth: out.slots.credits(), ..LAYOUTS[0] };
    let link = Mutex::new(Some((out, inc)));
    proxied_by(endpoint, layout, HANG_TIMEOUT, move |_| Ok(link.lock().unwrap().take().unwrap()))
}

/// A rank with a proxy whose link is opened by `connect`.
fn proxied_by(
    endpoint: Arc<Endpoint>,
    layout: InboxLayout,
    timeout: Duration,
    connect: impl Fn(Instant) -> Result<(Outgoing, Incoming), Error> + Send + 'static,
) -> Rank {
    let peer = 1 - endpoint.rank();
    let queued = Arc::new(AtomicU64::new(0));
    let (fail, failed) = channel();
    let count = queued.clone();
    let mut proxy = Proxy::new(ProxyConfig {
        endpoint,
        layout,
        spin_policy: SPIN_POLICY,
        timeout,
        connect: Box::new(move |_, _, until| connect(until)),
        queued: Box::new(move || count.load(Ordering::Acquire) != 0),
        fail: Box::new(move |error| fail.send(error).unwrap_or(())),
    });
    let layout = proxy.layout;
    let lines = (0..layout.bytes().div_ceil(128)).map(|_| Line([0; 128])).collect::<Vec<_>>();
    let base = lines.as_ptr().cast_mut().cast::<u8>();
    let memory: Arc<dyn Any + Send + Sync> = Arc::new(lines);
    let [from, to] = [RingDirection::FromKernel, RingDirection::ToKernel]
        .map(|direction| layout.host_ring(base, direction));
    // SAFETY: that many zero bytes, kept alive by `memory`; the ends of the kernel and of the proxy
    // are each made once.
    let kernel = unsafe {
        let rings = layout.proxy_ends(base, peer, memory.clone());
        assert_eq!(proxy.attach(peer, 0, rings).unwrap(), 0);
        Kernel {
            sending: DeviceRingSender::new(from, peer, memory.clone()),
            receiving: DeviceRingReceiver::new(to, peer, memory),
        }
    };
    Rank { proxy, kernel, queued, failed, from }
}

impl Rank {
    fn expect<const N: usize>(&self, messages: [(usize, u64); N]) {
        self.queued.store(1, Ordering::Release);
        self.proxy.expect(&messages);
        self.proxy.launched();
    }

    fn error(&self) -> Error {
        self.failed.recv_timeout(HANG_TIMEOUT).expect("the proxy fails")
    }

    fn rounds(&self) -> u64 {
        self.proxy.state.rounds.load(Ordering::Relaxed)
    }

    /// Waits until the thread sleeps or is about to.
    fn park(&self) {
        until(|| self.proxy.state.endpoint.doorbell().has_sleeper().then_some(()));
    }
}

impl Kernel {
    fn send(&mut self, number: u32) {
        let slot = until(|| self.sending.reserve().unwrap());
        let len = length(number, slot.capacity);
        fill(slot, len, number);
        self.sending.send(len, number ^ TAG);
    }

    fn receive(&mut self, number: u32, capacity: usize) {
        let message = until(|| self.receiving.receive().unwrap());
        check(message.data, message.len, message.tag, number, capacity);
        self.receiving.release();
    }
}

const TAG: u32 = 0x8000_1234;

/// Empty messages, full ones and others.
fn length(number: u32, capacity: usize) -> usize {
    match number % 5 {
        0 => 0,
        1 => capacity,
        _ => number as usize * 7919 % (capacity + 1),
    }
}

fn fill(slot: SlotMut, len: usize, number: u32) {
    // SAFETY: the slot is reserved and has room.
    let data = unsafe { std::slice::from_raw_parts_mut(slot.data, len) };
    pattern(data, number);
}

fn pattern(data: &mut [u8], number: u32) {
    for (i, byte) in data.iter_mut().enumerate() {
        *byte = (i as u32 * 31 + number * 7) as u8;
    }
}

fn check(data: *const u8, len: usize, tag: u32, number: u32, capacity: usize) {
    assert_eq!((tag, len), (number ^ TAG, length(number, capacity)), "message {number}");
    let mut expected = vec![0; len];
    pattern(&mut expected, number);
    // SAFETY: a message that is not released.
    assert!(unsafe { std::slice::from_raw_parts(data, len) } == expected, "message {number}");
}

fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + HANG_TIMEOUT;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "the wait did not end in time");
        thread::yield_now();
    }
}

#[test]
fn messages_between_kernels_arrive_whole_and_in_order() {
    let _watchdog = Watchdog::new("kernels");
    const MESSAGES: u32 = 300;
    for layout in LAYOUTS {
        for (name, make) in LINKS {
            for faulty in [false, true] {
                let sides = pair(make, layout).map(|s| if faulty { late(s) } else { s });
                let talk = |side| {
                    let Rank { proxy, mut kernel, queued, failed, .. } = proxied(side);
                    queued.store(1, Ordering::Release);
                    proxy.expect(&[(0, u64::from(MESSAGES))]);
                    proxy.launched();
                    thread::scope(|scope| {
                        let Kernel { sending, receiving } = &mut kernel;
                        scope.spawn(move || {
                            for number in 0..MESSAGES {
                                let slot = until(|| sending.reserve().unwrap());
                                let len = length(number, slot.capacity);
                                fill(slot, len, number);
                                sending.send(len, number ^ TAG);
                            }
                        });
                        for number in 0..MESSAGES {
                            let message = until(|| receiving.receive().unwrap());
                            let ReceivedMessage { data, len, tag, .. } = message;
                            check(data, len, tag, number, layout.slot_bytes);
                            receiving.release();
                        }
                    });
                    queued.store(0, Ordering::Release);
                    drop(proxy);
                    assert!(failed.try_recv().is_err(), "{name}");
                };
                thread::scope(|scope| sides.map(|side| scope.spawn(move || talk(side))).map(drop));
            }
        }
    }
}

#[test]
fn a_rank_of_the_host_at_the_other_end_copies_or_lends() {
    let _watchdog = Watchdog::new("host");
    const MESSAGES: u32 = 200;
    for layout in LAYOUTS {
        for (_, make) in LINKS {
            let [device, mut host] = pair(make, layout);
            let mut rank = proxied(device);
            rank.expect([(0, u64::from(MESSAGES))]);
            let capacity = layout.slot_bytes;
            thread::scope(|scope| {
                let out = &mut host.out.slots;
                scope.spawn(move || {
                    let mut memory = vec![0; capacity];
                    for number in 0..MESSAGES {
                        let slot = until(|| out.reserve().unwrap());
                        let len = length(number, capacity);
                        if out.lendable() == Lendable::Anything && number % 2 == 0 {
                            pattern(&mut memory[..len], number);
                            let lend = || {
                                // SAFETY: not touched before it is released, below.
                                unsafe { out.lend(memory.as_ptr(), len, number ^ TAG).unwrap() }
                            };
                            let sequence = until(lend);
                            until(|| (out.released() >= sequence).then_some(()));
                        } else {
                            fill(slot, len, number);
                            out.send(len, number ^ TAG);
                        }
                    }
                });
                let inc = &mut host.inc.slots;
                scope.spawn(move || {
                    for number in 0..MESSAGES {
                        let ReceivedMessage { data, len, tag, .. } =
                            until(|| inc.receive().unwrap());
                        check(data, len, tag, number, capacity);
                        inc.release();
                    }
                });
                for number in 0..MESSAGES {
                    rank.kernel.send(number);
                    rank.kernel.receive(number, capacity);
                }
            });
            // Lent memory is read no longer than the copy takes.
            until(|| (!host.endpoint.is_reading(0)).then_some(()));
        }
    }
}

#[test]
fn a_ring_is_never_overfilled() {
    let _watchdog = Watchdog::new("overfilled");
    for (_, make) in LINKS {
        let layout = LAYOUTS[1];
        let [device, mut host] = pair(make, layout);
        let mut rank = proxied(device);
        // As many messages as the ring and the link hold together; there is no slot for one more.
        for number in 0..2 * layout.depth {
            let slot = until(|| host.out.slots.reserve().unwrap());
            let len = length(number, slot.capacity);
            fill(slot, len, number);
            host.out.slots.send(len, number ^ TAG);
        }
        until(|| (host.out.slots.released() == u64::from(layout.depth)).then_some(()));
        assert!(host.out.slots.reserve().unwrap().is_none());
        for number in 0..2 * layout.depth {
            rank.kernel.receive(number, layout.slot_bytes);
        }
        assert!(rank.kernel.receiving.receive().unwrap().is_none());
    }
}

#[test]
fn it_sleeps_when_nothing_is_queued_and_in_short_pauses_when_a_kernel_is() {
    let _watchdog = Watchdog::new("sleep");
    for (_, make) in LINKS {
        let [device, mut host] = pair(make, LAYOUTS[1]);
        let mut rank = proxied(device);
        let rounds_in_50_ms = |rank: &Rank| {
            let before = rank.rounds();
            thread::sleep(Duration::from_millis(50));
            rank.rounds() - before
        };
        until(|| (rank.proxy.state.added.load(Ordering::Acquire) == 1).then_some(()));
        rank.park();
        // The longest sleep is ten times as long, and before it come some 25 rounds. A spinning
        // thread would make hundreds of thousands.
        assert!(rounds_in_50_ms(&rank) < 100);
        // A message of the peer wakes it.
        until(|| host.out.slots.reserve().unwrap());
        host.out.slots.send(0, TAG);
        rank.kernel.receive(0, LAYOUTS[1].slot_bytes);
        rank.park();
        // So does a launch, although its kernel does not ring the doorbell.
        rank.expect([]);
        let rounds = rounds_in_50_ms(&rank);
        assert!(rounds < 5_000, "{rounds}");
        rank.kernel.send(0);
        until(|| host.inc.slots.receive().unwrap());
        host.inc.slots.release();
        rank.queued.store(0, Ordering::Release);
        assert!(rank.failed.try_recv().is_err());
    }
}

#[test]
fn a_replay_needs_nothing_from_the_host() {
    let _watchdog = Watchdog::new("replay");
    let [device, mut host] = pair(tcp, LAYOUTS[1]);
    let mut rank = proxied(device);
    rank.proxy.captured();
    for number in 0..50 {
        rank.park();
        rank.kernel.send(number);
        let ReceivedMessage { data, len, tag, .. } = until(|| host.inc.slots.receive().unwrap());
        check(data, len, tag, number, LAYOUTS[1].slot_bytes);
        host.inc.slots.release();
    }
}

/// The error for a peer that has not connected.
fn not_yet() -> Error {
    LinkError::Timeout { peer: 0, during: "this test", last: None }.into()
}

#[test]
fn kernels_send_before_the_peer_is_connected() {
    let _watchdog = Watchdog::new("met");
    let layout = LAYOUTS[1];
    // The rank that waits to be dialed, which ends meanwhile or not.
    for goes in [false, true] {
        let [mut host, device] = pair(Endpoint::new_without_local, layout);
        let TestEnd { endpoint, out, inc, .. } = device;
        let (come, link) = channel();
        let connect = move |until| {
            assert!(
                until <= Instant::now(),
                "a rank that waits to be dialed must not delay other connections"
            );
            link.try_recv().map_err(|_| not_yet())
        };
        let Rank { proxy, mut kernel, queued, failed, .. } =
            proxied_by(endpoint, layout, HANG_TIMEOUT, connect);
        queued.store(1, Ordering::Release);
        proxy.launched();
        (0..layout.depth).for_each(|number| kernel.send(number));
        assert!(kernel.sending.reserve().unwrap().is_none());
        queued.store(0, Ordering::Release);
        let (ending, stays) = match goes {
            true => (Some(thread::spawn(move || drop(proxy))), None),
            false => (None, Some(proxy)),
        };
        come.send((out, inc)).unwrap();
        for number in 0..layout.depth {
            let ReceivedMessage { data, len, tag, .. } =
                until(|| host.inc.slots.receive().unwrap());
            check(data, len, tag, number, layout.slot_bytes);
            host.inc.slots.release();
        }
        ending.into_iter().for_each(|thread| thread.join().unwrap());
        drop(stays);
        assert!(failed.try_recv().is_err());
    }
}

#[test]
fn a_peer_that_never_connects_is_an_error() {
    let _watchdog = Watchdog::new("never");
    let [_host, TestEnd { endpoint, .. }] = pair(Endpoint::new_without_local, LAYOUTS[1]);
    let rank = proxied_by(endpoint, LAYOUTS[1], Duration::from_millis(50), |_| Err(not_yet()));
    assert_eq!(rank.error(), not_yet());
}

#[test]
fn a_peer_that_left_is_an_error_when_a_call_needs_its_messages() {
    let _watchdog = Watchdog::new("left");
    for (name, make) in LINKS {
        let [device, mut host] = pair(make, LAYOUTS[1]);
        let mut rank = proxied(device);
        rank.expect([(0, 2)]);
        for number in 0..2 {
            let slot = until(|| host.out.slots.reserve().unwrap());
            let len = length(number, slot.capacity);
            fill(slot, len, number);
            host.out.slots.send(len, number ^ TAG);
        }
        // What it sent before is delivered, and no call needs more.
        drop(host);
        (0..2).for_each(|number| rank.kernel.receive(number, LAYOUTS[1].slot_bytes));
        rank.queued.store(0, Ordering::Release);
        until(|| rank.proxy.state.endpoint.gone(1));
        rank.park();
        assert!(rank.failed.try_recv().is_err(), "{name}");
        rank.expect([(0, 1)]);
        assert_eq!(rank.error(), LinkError::PeerLeft { peer: 1 }.into(), "{name}");
    }
}

#[test]
fn sending_to_a_peer_that_left_is_an_error() {
    let _watchdog = Watchdog::new("full");
    for (name, make) in LINKS {
        let [device, host] = pair(make, LAYOUTS[1]);
        let mut rank = proxied(device);
        rank.expect([]);
        drop(host);
        until(|| rank.proxy.state.endpoint.gone(1));
        // The remaining credits may be used.
        let mut sent = 0;
        let error = until(|| {
            if sent < 3 * LAYOUTS[1].depth && rank.kernel.sending.reserve().unwrap().is_some() {
                rank.kernel.sending.send(0, 0);
                sent += 1;
            }
            rank.failed.try_recv().ok()
        });
        assert_eq!(error, LinkError::PeerLeft { peer: 1 }.into(), "{name}");
    }
}

#[test]
fn an_abort_ends_the_proxy_whether_busy_or_asleep() {
    let _watchdog = Watchdog::new("abort");
    for (name, make) in LINKS {
        for busy in [false, true] {
            let [device, host] = pair(make, LAYOUTS[0]);
            let rank = proxied(device);
            if busy {
                rank.expect([(0, 1)]);
            } else {
                rank.park();
            }
            host.endpoint.abort(9);
            assert_eq!(rank.error(), LinkError::Aborted { by: 1, reason: 9 }.into(), "{name}");
        }
    }
}

#[test]
fn a_corrupt_counter_is_reported() {
    let _watchdog = Watchdog::new("corrupt");
    let [device, _host] = pair(Endpoint::new, LAYOUTS[1]);
    let rank = proxied(device);
    rank.expect([]);
    // SAFETY: the counter is memory of the ring, which is alive.
    unsafe { (*rank.from.filled).store(77, Ordering::Release) };
    assert!(matches!(rank.error(), Error::Link(LinkError::Corrupt { peer: 1, .. })));
}

/// A link that panics when it is used.
struct PanickingSlots;

impl SendSlots for PanickingSlots {
    fn capacity(&self) -> usize {
        LAYOUTS[1].slot_bytes
    }
    fn credits(&self) -> u32 {
        LAYOUTS[1].depth
    }
    fn reserve(&mut self) -> Result<Option<SlotMut>, LinkError> {
        panic!("on purpose, by this test");
    }
    fn send(&mut self, _: usize, _: u32) -> Sequence {
        unreachable!("nothing is reserved")
    }
    fn send_damaged(&mut self, _: usize, _: u32, _: HeaderDamage) -> Sequence {
        unreachable!("nothing is reserved")
    }
    fn released(&mut self) -> Sequence {
        0
    }
}

#[test]
fn a_panic_of_the_thread_becomes_an_error() {
    let _watchdog = Watchdog::new("panic");
    let [mut device, _host] = pair(Endpoint::new, LAYOUTS[1]);
    device.out = Outgoing { slots: Box::new(PanickingSlots), ll: None };
    let mut rank = proxied(device);
    rank.expect([]);
    rank.kernel.send(0);
    assert!(matches!(rank.error(), Error::Internal { .. }));
}

#[test]
fn it_ends_when_the_link_has_taken_all_that_kernels_sent() {
    let _watchdog = Watchdog::new("flush");
    for (name, make) in LINKS {
        let layout = LAYOUTS[1];
        let [device, mut host] = pair(make, layout);
        let Rank { proxy, mut kernel, queued, failed, .. } = proxied(device);
        queued.store(1, Ordering::Release);
        proxy.launched();
        // The link takes half of the messages, and the ring holds the rest.
        let messages = 2 * layout.depth;
        (0..messages).for_each(|number| kernel.send(number));
        queued.store(0, Ordering::Release);
        let ending = thread::spawn(move || drop(proxy));
        for number in 0..messages {
            let ReceivedMessage { data, len, tag, .. } =
                until(|| host.inc.slots.receive().unwrap());
            check(data, len, tag, number, layout.slot_bytes);
            host.inc.slots.release();
        }
        ending.join().unwrap();
        assert!(failed.try_recv().is_err(), "{name}");
    }
}

#[test]
fn it_ends_when_a_peer_leaves_that_takes_nothing() {
    let _watchdog = Watchdog::new("no flush");
    for (_, make) in LINKS {
        let [device, host] = pair(make, LAYOUTS[0]);
        let Rank { proxy, mut kernel, queued, failed, .. } = proxied(device);
        queued.store(1, Ordering::Release);
        proxy.launched();
        (0..2).for_each(|number| kernel.send(number));
        let ending = thread::spawn(move || drop(proxy));
        drop(host);
        ending.join().unwrap();
        // It may have noticed the loss before it was told to end.
        let error = failed.try_recv().ok();
        let left = Error::from(LinkError::PeerLeft { peer: 1 });
        assert!(error.is_none_or(|error| error == left));
    }
}

#[test]
fn a_child_process_made_by_fork_leaves_the_proxy_alone() {
    let _watchdog = Watchdog::new("fork");
    let [device, mut host] = pair(Endpoint::new_without_local, LAYOUTS[1]);
    let mut rank = proxied(device);
    rank.expect([]);
    // SAFETY: the child only drops one value, which takes no lock that another thread of the parent
    // could hold, and exits.
    match unsafe { libc::fork() } {
        0 => {
            drop(rank);
            // SAFETY: ends the child without running code of the parent.
            unsafe { libc::_exit(0) }
        }
        child => {
            let mut status = -1;
            // SAFETY: `status` is valid for a write.
            unsafe { libc::waitpid(child, &mut status, 0) };
            assert_eq!(status, 0);
        }
    }
    rank.kernel.send(1);
    until(|| host.inc.slots.receive().unwrap());
}
