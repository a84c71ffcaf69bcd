//! Programs that read NCCL's RAS service, at a job of two ranks.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::cargo_build::built;
use crate::command_line::{Endless, kill, wait_for};

/// A port of loopback that nothing else listens at.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

/// What a reader that speaks the protocol itself gets, without the reply to its first command.
fn read(port: u16) -> Option<Value> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    // A rank that is stopped accepts the connection and says nothing.
    stream.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
    stream.write_all(b"SET FORMAT json\nSTATUS\n").expect("it is written");
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    serde_json::from_str(text.strip_prefix("OK\n")?).ok()
}

/// The job's communicator in an answer that may contain those of other jobs.
fn communicator(answer: &Value, pid: u32) -> Option<&Value> {
    let all = answer["communicators"].as_array()?;
    all.iter().find(|it| it["ranks"].as_array().is_some_and(|all| has_pid(all, pid)))
}

fn has_pid(ranks: &[Value], pid: u32) -> bool {
    ranks.iter().any(|rank| rank["pid"] == pid)
}

#[test]
fn readers_of_the_ras_service_learn_which_rank_is_stopped() {
    let (port, ncclras) = (free_port(), built("ncclras"));
    let address = format!("127.0.0.1:{port}");
    let mut endless = Endless::with_environment(&[("NCCL_RAS_ADDR", &address)]);
    let [waiting, stopped] = [endless.ranks[0], endless.ranks[1]];
    wait_for(|| {
        let Some(answer) = read(port) else { return false };
        communicator(&answer, waiting).is_some_and(|it| it["ranks_count"] == 2)
    });
    kill("-STOP", stopped);
    wait_for(|| {
        let Some(answer) = read(port) else { return false };
        let Some(it) = communicator(&answer, waiting) else { return false };
        let missing = &it["missing_ranks"][0];
        missing["rank"] == 1
            && missing["pid"] == stopped
            && missing["status"]["unresponsive"] == true
            && missing["status"]["considered_dead"] == false
    });
    wait_for(|| {
        let mut command = Command::new("timeout");
        command.args(["--signal=KILL", "50"]).arg(&ncclras);
        let output = command.args(["-v", "-h", "127.0.0.1", "-p", &port.to_string()]).output();
        let text = String::from_utf8(output.expect("it runs").stdout).expect("it is text");
        text.contains("\nErrors\n======\n")
            && text.contains(&format!("  Rank 1 -- process {stopped} on node "))
            && text.contains(": is stopped by a signal or a debugger\n")
    });
    kill("-CONT", stopped);
    kill("-INT", endless.bench);
    endless.launcher.wait().expect("the launcher ends");
}
