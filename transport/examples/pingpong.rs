//! Measures the one-way time of small LL messages between two processes, each on a core of its own.
//!
//! Run `cargo run --release -p maypole-transport --example pingpong [bytes]`. It prints the fastest
//! and the median batch.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use maypole_transport::endpoint::{Endpoint, EndpointConfig};
use maypole_transport::inbox::InboxLayout;
use maypole_transport::link::{Incoming, Outgoing};
use maypole_transport::ll::{LL_CAPACITY, LlPoll, LlReceiver, LlSender};

const BATCH: u32 = 500;
const BATCHES: usize = 4_000;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, role, bytes, address] = &arguments[..]
        && role == "child"
    {
        let mut link = PingPongEnd::new(1, |own| {
            println!("{own}");
            address.clone()
        });
        let bytes = bytes.parse().unwrap();
        for _ in 0..BATCH as usize * BATCHES {
            link.receive(bytes);
            link.send(bytes);
        }
        return;
    }
    let bytes: usize = arguments.get(1).map_or(8, |bytes| bytes.parse().unwrap());
    let mut child = None;
    let mut link = PingPongEnd::new(0, |own| {
        let mut started = Command::new(std::env::current_exe().unwrap())
            .args(["child", &bytes.to_string(), &own])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(started.stdout.take().unwrap()).read_line(&mut line).unwrap();
        child = Some(started);
        line.trim().into()
    });
    let mut batches: Vec<f64> = (0..BATCHES)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..BATCH {
                link.send(bytes);
                link.receive(bytes);
            }
            start.elapsed().as_nanos() as f64 / f64::from(2 * BATCH)
        })
        .collect();
    child.unwrap().wait().unwrap();
    batches.sort_by(f64::total_cmp);
    let out = std::io::stdout();
    writeln!(
        &out,
        "{bytes} bytes, one way: best {:.0} ns, median {:.0} ns",
        batches[0],
        batches[BATCHES / 2]
    )
    .unwrap();
}

struct PingPongEnd {
    endpoint: Endpoint,
    sender: LlSender,
    receiver: LlReceiver,
    data: Box<[u8; LL_CAPACITY]>,
    _slots: (Outgoing, Incoming),
}

impl PingPongEnd {
    fn new(rank: u32, exchange: impl FnOnce(String) -> String) -> Self {
        pin(rank as usize);
        let layout = InboxLayout { nranks: 2, channels: 1, slot_bytes: 4096, depth: 1 };
        let config = EndpointConfig { rank, nranks: 2, secret: [1; 32].into(), layout };
        let endpoint = Endpoint::new(config).unwrap();
        let own = endpoint.address().iter().map(|byte| format!("{byte:02x}")).collect();
        let theirs = exchange(own);
        let digits = theirs.as_bytes().chunks(2);
        let theirs: Vec<u8> = digits
            .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect();
        endpoint.connect(1 - rank, &theirs, Instant::now() + Duration::from_secs(10)).unwrap();
        let (mut out, mut inc) = endpoint.open(1 - rank, 0).unwrap();
        let (sender, receiver) = (out.ll.take().unwrap(), inc.ll.take().unwrap());
        Self { endpoint, sender, receiver, data: Box::new([1; LL_CAPACITY]), _slots: (out, inc) }
    }

    fn send(&mut self, bytes: usize) {
        let Self { endpoint, sender, data, .. } = self;
        assert!(
            endpoint.doorbell().wait(1000, 10, Some(Duration::from_secs(10)), || sender.ready())
        );
        // SAFETY: a slot is free, and no message is longer than `data`.
        unsafe { sender.write(data.as_ptr(), bytes, 7) };
        sender.doorbell().ring();
    }

    fn receive(&mut self, bytes: usize) {
        let Self { endpoint, receiver, data, .. } = self;
        let arrived = endpoint.doorbell().wait(100_000, 10, Some(Duration::from_secs(10)), || {
            receiver.poll(bytes, 7) == LlPoll::Ready
        });
        assert!(arrived);
        // SAFETY: the message has arrived, and no message is longer than `data`.
        unsafe { receiver.read(data.as_mut_ptr(), bytes) };
        std::hint::black_box(data[0]);
        receiver.release();
    }
}

fn pin(core: usize) {
    // SAFETY: the set is alive, all zeros is an empty set, and the number of the core fits it.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set);
    }
}
