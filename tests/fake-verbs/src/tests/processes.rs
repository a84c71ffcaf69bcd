//! Messages between processes.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};

use super::*;

const PEER: &str = "tests::processes::a_peer_in_another_process";

impl Card {
    fn to_line(self) -> String {
        let gid = u128::from_be_bytes(self.gid);
        format!("card {} {gid} {} {}", self.number, self.address, self.key)
    }

    fn from_line(line: &str) -> Self {
        let numbers: Vec<u128> =
            line.split_whitespace().skip(1).map(|word| word.parse().expect("a number")).collect();
        let [number, gid, address, key] = numbers[..] else { panic!("{line}") };
        let gid = gid.to_be_bytes();
        Self { number: number as u32, gid, address: address as u64, key: key as u32 }
    }
}

/// What the peer does: it sends back what it gets, until its input ends.
#[test]
fn a_peer_in_another_process() {
    if !is_child(PEER) {
        return;
    }
    let end = End::new(1, SHAPE);
    println!("\n{}", end.card().to_line());
    let mut lines = std::io::stdin().lines();
    let to = Card::from_line(&lines.next().expect("a line").expect("text"));
    end.connect(to);
    assert_eq!(end.receive(1, &mut [end.part(0, 1000)]), 0);
    println!("ready");
    let got = end.completion();
    assert_eq!((got.status, got.byte_len), (IBV_WC_SUCCESS, 1000));
    let mut write = rdma(IBV_WR_RDMA_WRITE_WITH_IMM, 2, to);
    assert_eq!(end.post(&mut write, &mut [end.part(0, 1000)]), 0);
    assert_eq!(end.completion().status, IBV_WC_SUCCESS);
    // It ends with its input, or is killed.
    lines.for_each(drop);
}

/// Starts the peer and connects it with `a`. Its input stays open as long as it is not killed.
pub(super) fn start_peer(a: &End) -> (Child, Card) {
    let mut peer = child(PEER, "no command, as it is not the first process");
    let mut peer = peer.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
    let input = peer.stdin.as_mut().expect("it was piped");
    let mut lines = BufReader::new(peer.stdout.take().expect("it was piped")).lines();
    let mut line = |start: &str| loop {
        let line = lines.next().expect("the peer writes").expect("text");
        if line.starts_with(start) {
            return line;
        }
    };
    let card = Card::from_line(&line("card"));
    a.connect(card);
    writeln!(input, "{}", a.card().to_line()).expect("the peer reads");
    line("ready");
    (peer, card)
}

#[test]
fn two_processes_exchange_messages_and_one_is_killed() {
    let name = "tests::processes::two_processes_exchange_messages_and_one_is_killed";
    let namespace = format!("test-{}", std::process::id());
    if !is_child(name) {
        let output = child(name, TWO).env("MAYPOLE_FAKE_VERBS", namespace).output();
        let output = output.expect("the test starts again");
        let text =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        return;
    }
    let mut a = End::new(0, SHAPE);
    let (mut peer, card) = start_peer(&a);
    a.memory[..1000].fill(77);
    assert_eq!(a.receive(4, &mut []), 0);
    assert_eq!(a.post(&mut request(IBV_WR_SEND, 3), &mut [a.part(0, 1000)]), 0);
    let (first, second) = (a.completion(), a.completion());
    assert_eq!((first.status, second.status), (IBV_WC_SUCCESS, IBV_WC_SUCCESS));
    assert_eq!(first.wr_id + second.wr_id, 7);
    assert_eq!(a.memory[..1001], [&[77; 1000][..], &[0]].concat());
    peer.kill().expect("it is a child");
    peer.wait().expect("it is a child");
    // Nobody answers any more.
    assert_eq!(a.post(&mut rdma(IBV_WR_RDMA_WRITE, 5, card), &mut [a.part(0, 8)]), 0);
    assert_eq!(a.completion().status, IBV_WC_RETRY_EXC_ERR);
}
