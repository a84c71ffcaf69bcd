//! The devices of this host, if it has any: queue pairs that are connected to each other, and a
//! write with an immediate value between them.
//!
//! `MAYPOLE_VERBS_LIBRARY` names a library in place of libibverbs. Where there is no library, or no
//! device, the tests check that this is said, and nothing else.

use std::path::PathBuf;
use std::ptr;
use std::sync::Arc;

use maypole_verbs::{
    CompletionChannel, CompletionQueue, ConnectionTiming, Context, GidKind, Library, LinkLayer,
    LocalMemory, MemoryAccess, MemoryRegion, PathAddress, PeerQueue, ProtectionDomain,
    QueueCapacity, QueuePair, QueuePairSetup, RemoteMemory, SendOperation, SendRequest,
    SharedReceiveQueue,
};

const TIMING: ConnectionTiming = ConnectionTiming { timeout: 14, retries: 2, receive_retries: 0 };

/// The first device with an active port, and the port. `None` with a line that says why.
fn usable_port() -> Option<(Arc<Context>, u8)> {
    let path = std::env::var_os("MAYPOLE_VERBS_LIBRARY").map(PathBuf::from);
    let library = match Library::load(path.as_deref()) {
        Ok(library) => library,
        Err(error) => {
            assert!(error.to_string().contains("cannot be loaded"), "{error}");
            eprintln!("skipped: {error}");
            return None;
        }
    };
    for device in library.devices().expect("the list can be read") {
        let context = device.open().expect("a device in the list can be opened");
        let ports = context.limits().expect("an open device has limits").ports;
        let is_active = |port: &u8| context.port(*port).is_ok_and(|info| info.active);
        if let Some(port) = (1..=ports).find(is_active) {
            return Some((context, port));
        }
    }
    eprintln!("skipped: this host has no RDMA device with an active port");
    None
}

/// One end of a connection.
struct End {
    queue: QueuePair,
    receives: Arc<SharedReceiveQueue>,
    completions: Arc<CompletionQueue>,
    domain: Arc<ProtectionDomain>,
}

fn end(context: &Arc<Context>, channel: &Arc<CompletionChannel>) -> End {
    let domain = context.protection_domain().unwrap();
    let completions = CompletionQueue::new(channel, 64).unwrap();
    let receives = SharedReceiveQueue::new(&domain, 16).unwrap();
    let setup = QueuePairSetup {
        completions: completions.clone(),
        receives: Some(receives.clone()),
        capacity: QueueCapacity { sends: 16, inline: 64 },
    };
    let queue = QueuePair::new(&domain, setup).unwrap();
    End { queue, receives, completions, domain }
}

fn connect(context: &Context, port: u8, own: &End, peer: &End) {
    let info = context.port(port).unwrap();
    let gids = context.gids(port).unwrap();
    let chosen = gids.iter().find(|entry| entry.kind != GidKind::RoceV1).or(gids.first());
    let chosen = *chosen.expect("an active port has a GID");
    let path = PathAddress {
        port,
        gid_index: chosen.index as u8,
        gid: (info.link_layer == LinkLayer::Ethernet).then_some(chosen.gid),
        lid: info.lid,
        service_level: 0,
        traffic_class: 0,
    };
    let partition = context.partition_index(port, 0xffff).unwrap_or(0);
    own.queue.initialize(port, partition).unwrap();
    let other = PeerQueue { number: peer.queue.number(), first_packet: 7, mtu: info.mtu };
    own.queue.receive_from(&other, &path).unwrap();
}

#[test]
fn a_write_with_an_immediate_value_arrives() {
    let Some((context, port)) = usable_port() else { return };
    let channel = CompletionChannel::new(&context).unwrap();
    let (sender, receiver) = (end(&context, &channel), end(&context, &channel));
    connect(&context, port, &sender, &receiver);
    connect(&context, port, &receiver, &sender);
    for end in [&sender, &receiver] {
        end.queue.begin_sending(7, &TIMING).unwrap();
    }
    receiver.receives.post(5, 3).unwrap();
    receiver.completions.arm().unwrap();
    let (from, to) = (vec![0xab_u8; 4096], vec![0_u8; 4096]);
    let (from, to) = (from.leak(), to.leak());
    // SAFETY: the memory is never freed, and only read by volatile reads below.
    let (from_region, to_region) = unsafe {
        let (local, remote) = (MemoryAccess::LocalRead, MemoryAccess::RemoteWrite);
        let (from, to) = (from.as_mut_ptr(), to.as_mut_ptr());
        (
            MemoryRegion::register(&sender.domain, from, 4096, local, false).unwrap(),
            MemoryRegion::register(&receiver.domain, to, 4096, remote, true).unwrap(),
        )
    };
    let address = to.as_ptr().addr() as u64;
    let to_start = RemoteMemory { address, key: to_region.remote_key() };
    let memory = |len| LocalMemory { start: from.as_ptr(), len, key: from_region.local_key() };
    let write = |immediate, memory, inline| SendRequest {
        id: 9,
        operation: SendOperation::Write { to: to_start, immediate },
        memory,
        signaled: immediate == Some(2),
        inline,
    };
    let chain = [
        write(None, Some(memory(4096)), false),
        write(Some(1), Some(memory(32)), true),
        write(Some(2), None, false),
        SendRequest { operation: SendOperation::Send { immediate: 3 }, ..write(None, None, false) },
    ];
    // SAFETY: the memory is registered with the sender's domain, and is never freed.
    unsafe { sender.queue.post(&chain) }.unwrap();
    let mut immediates = Vec::new();
    let mut slept = false;
    while immediates.len() < 3 {
        let got = receiver.completions.poll(|completion| {
            assert_eq!((completion.status, completion.id, completion.is_receive), (0, 5, true));
            assert_eq!(completion.queue, receiver.queue.number());
            immediates.push((completion.immediate.unwrap(), completion.bytes));
        });
        if got.unwrap() == 0 && !slept {
            // The queue is armed, so that this returns.
            slept = channel.take_event();
        }
    }
    assert_eq!(immediates, [(1, 32), (2, 0), (3, 0)]);
    // SAFETY: within the memory, which the peer has written before the immediate values came.
    let last = unsafe { ptr::read_volatile(to.as_ptr().add(4095)) };
    assert_eq!(last, 0xab);
    let mut done = 0;
    while done == 0 {
        done = sender.completions.poll(|completion| assert_eq!(completion.status, 0)).unwrap();
    }
    // A queue that has failed completes its work with an error.
    sender.queue.fail().unwrap();
    // SAFETY: as above.
    let posted = unsafe { sender.queue.post(&[write(Some(4), None, false)]) };
    let mut status = 0;
    while posted.is_ok() && status == 0 {
        sender.completions.poll(|completion| status = completion.status).unwrap();
    }
    assert!(posted.is_err() || status != 0);
}
