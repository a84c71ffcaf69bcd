//! The conformance suite over links between two processes, and the case that one of them is killed.
//!
//! The program starts itself again as a child for each case. The two exchange addresses over the
//! child's standard streams.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use maypole_transport::LinkError;
use maypole_transport::conformance::{CASES, HANG_TIMEOUT, LAYOUTS, TestEnd, Watchdog};
use maypole_transport::endpoint::{EnabledLinks, Endpoint, EndpointConfig};
use maypole_transport::tcp::TcpConfig;

/// Set in the child: the layout, the number of streams and the case.
const ROLE: &str = "MAYPOLE_TEST_ROLE";
/// A case that is only here: the child is killed while the parent waits for it.
const KILLED: &str = "killed";
const SECRET: [u8; 32] = [42; 32];

fn main() {
    if let Ok(role) = std::env::var(ROLE) {
        return child(&role);
    }
    for streams in [0, 1, 4] {
        for layout in 0..LAYOUTS.len() {
            for case in CASES {
                let _watchdog = Watchdog::new(case.name);
                let (end, mut child) = parent(case.name, layout, streams);
                case.play(case.rank0, end);
                assert!(child.wait().unwrap().success(), "the child failed in '{}'", case.name);
                println!("two processes, {streams} streams, layout {layout}, {}: ok", case.name);
            }
        }
        a_killed_peer_is_noticed(streams);
    }
}

fn a_killed_peer_is_noticed(streams: u32) {
    let _watchdog = Watchdog::new(KILLED);
    let (mut end, mut child) = parent(KILLED, 0, streams);
    child.kill().unwrap();
    child.wait().unwrap();
    let mut seen = None;
    let noticed = end.endpoint.doorbell().wait(0, 0, Some(HANG_TIMEOUT), || {
        seen = end.inc.slots.receive().err();
        seen.is_some()
    });
    assert!(noticed);
    assert_eq!(seen, Some(LinkError::PeerDied { peer: 1 }));
    println!("two processes, {streams} streams, {KILLED}: ok");
}

/// An endpoint that uses TCP with so many streams, or shared memory if there are none.
fn endpoint(rank: u32, layout: usize, streams: u32) -> Endpoint {
    let layout = LAYOUTS[layout];
    let addresses = vec![std::net::Ipv4Addr::LOCALHOST.into()];
    let tcp = (streams > 0).then_some(TcpConfig { addresses, streams });
    let links = EnabledLinks { local: true, shm: streams == 0, verbs: None, tcp };
    Endpoint::with_links(EndpointConfig { rank, nranks: 2, secret: SECRET.into(), layout }, &links)
        .unwrap()
}

fn parent(case: &str, layout: usize, streams: u32) -> (TestEnd, Child) {
    let endpoint = endpoint(0, layout, streams);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .env(ROLE, format!("{layout}{streams}{case}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    writeln!(child.stdin.as_mut().unwrap(), "{}", hex(&endpoint.address())).unwrap();
    let address = read_line(child.stdout.take().unwrap());
    (TestEnd::connect(endpoint, &address), child)
}

fn child(role: &str) {
    let _watchdog = Watchdog::new("child");
    let (layout, rest) = role.split_at(1);
    let (streams, case) = rest.split_at(1);
    let endpoint = endpoint(1, layout.parse().unwrap(), streams.parse().unwrap());
    println!("{}", hex(&endpoint.address()));
    let end = TestEnd::connect(endpoint, &read_line(std::io::stdin()));
    if case == KILLED {
        std::thread::sleep(2 * HANG_TIMEOUT);
        unreachable!("the parent did not kill this process");
    }
    let case = CASES.iter().find(|known| known.name == case).unwrap();
    case.play(case.rank1, end);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read_line(from: impl std::io::Read) -> Vec<u8> {
    let mut line = String::new();
    BufReader::new(from).read_line(&mut line).unwrap();
    let digits = line.trim().as_bytes().chunks(2);
    digits.map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}
