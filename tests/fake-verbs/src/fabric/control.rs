//! Commands that change the fabric: which devices there are, and what goes wrong.
//!
//! The environment variable `MAYPOLE_FAKE_VERBS_SETUP` has commands for the process that makes the
//! fabric, and the exported function `maypole_fake_verbs_control` takes commands at any time, in
//! any process of the namespace. Commands are separated by semicolons or line ends; the
//! documentation of the crate lists them.

use std::ffi::{CStr, c_char, c_int};
use std::net::IpAddr;
use std::str::SplitWhitespace;

use super::network::{Gid, INFINIBAND, NO_GID, Network, Port, ROCE_1, ROCE_2};
use super::{Entries, Event, Order, fabric, queue_pair};
use crate::abi;
use crate::sync::Relaxed;

/// The variable with commands for the process that makes the fabric.
const SETUP: &str = "MAYPOLE_FAKE_VERBS_SETUP";
/// What there is without it.
const DEFAULT_SETUP: &str = "device fake0; device fake1";

/// Runs the commands of the environment.
pub(super) fn set_up() {
    let commands = std::env::var(SETUP).unwrap_or_else(|_| String::from(DEFAULT_SETUP));
    if let Err(why) = run(&commands) {
        eprintln!("maypole-fake-verbs: {SETUP}: {why}");
        std::process::abort();
    }
}

/// Runs commands. Returns 0, or EINVAL if one is wrong: it is explained on the standard error
/// stream, and those before it have been executed.
#[unsafe(no_mangle)]
extern "C" fn maypole_fake_verbs_control(commands: *const c_char) -> c_int {
    // SAFETY: the caller's text ends with a zero.
    let commands = unsafe { CStr::from_ptr(commands) }.to_string_lossy();
    match run(&commands) {
        Ok(()) => 0,
        Err(why) => {
            eprintln!("maypole-fake-verbs: {why}");
            libc::EINVAL
        }
    }
}

/// The value of a counter of the fabric: `posted` (work requests), `doorbells` (calls that post
/// them), `bytes`, `polled` (completions), `registered` (calls). -1 for another name.
#[unsafe(no_mangle)]
extern "C" fn maypole_fake_verbs_count(name: *const c_char) -> i64 {
    // SAFETY: the caller's text ends with a zero.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
    let settings = &fabric().settings;
    let counter = match &*name {
        "posted" => &settings.posted,
        "doorbells" => &settings.doorbells,
        "bytes" => &settings.bytes,
        "polled" => &settings.polled,
        "registered" => &settings.registered,
        _ => return -1,
    };
    counter.load(Relaxed) as i64
}

fn run(commands: &str) -> Result<(), String> {
    for command in commands.split([';', '\n']) {
        let command = command.trim();
        if !command.is_empty() && !command.starts_with('#') {
            one(command).map_err(|why| format!("command '{command}': {why}"))?;
        }
    }
    Ok(())
}

/// The next word, as a number.
fn number(words: &mut SplitWhitespace<'_>, what: &str) -> Result<u64, String> {
    let word = words.next().ok_or_else(|| format!("{what} is missing"))?;
    word.parse().map_err(|_| format!("{word} is not {what}"))
}

/// The next word, as a choice between on and off.
fn switch(words: &mut SplitWhitespace<'_>) -> Result<u32, String> {
    match words.next() {
        Some("on") => Ok(1),
        Some("off") => Ok(0),
        other => Err(format!("{other:?} is neither on nor off")),
    }
}

fn one(command: &str) -> Result<(), String> {
    let mut words = command.split_whitespace();
    let settings = &fabric().settings;
    let verb = words.next().unwrap_or_default();
    match verb {
        "device" => add_device(&mut words)?,
        "remove" | "return" => change_device(&mut words, verb == "return")?,
        "limit" => limit(&mut words)?,
        "port" | "drop" | "hold" | "loss" | "segment" | "gid" | "gids" | "speed" | "mtu" => {
            change_port(verb, &mut words)?;
        }
        "qp-error" => {
            let word = words.next().ok_or("a queue pair or a device is missing")?;
            fail_queue_pairs(word)?;
        }
        "not-ready" => {
            let count = number(&mut words, "a count")? as u32;
            settings.not_ready.store(count, Relaxed);
        }
        "fail" => {
            let status = number(&mut words, "a status")? as u32;
            let count = words.next().unwrap_or("1").parse().map_err(|_| "a count")?;
            settings.failure.store(status, Relaxed);
            settings.failures.store(count, Relaxed);
        }
        "refuse" => {
            let errno = number(&mut words, "an error number")? as u32;
            let count = words.next().unwrap_or("1").parse().map_err(|_| "a count")?;
            settings.refusal.store(errno, Relaxed);
            settings.refusals.store(count, Relaxed);
        }
        "memlock" => settings.memory_limit.store(number(&mut words, "a size")?, Relaxed),
        "hurry" => settings.hurry.store(number(&mut words, "a factor")? as u32, Relaxed),
        "order" => {
            let order = match words.next() {
                Some("posted") => Order::Posted,
                Some("placement") => Order::Placement,
                Some("messages") => Order::Messages,
                other => return Err(format!("there is no order {other:?}")),
            };
            let seed = words.next().unwrap_or("1").parse().map_err(|_| "a seed")?;
            settings.set_order(order, seed);
        }
        "misuse" => {
            let abort = match words.next() {
                Some("abort") => 1,
                Some("errno") => 0,
                other => return Err(format!("{other:?} is neither abort nor errno")),
            };
            settings.abort_on_misuse.store(abort, Relaxed);
        }
        _ => return Err(String::from("there is no such command")),
    }
    match words.next() {
        None => Ok(()),
        Some(word) => Err(format!("{word} is too much")),
    }
}

fn add_device(words: &mut SplitWhitespace<'_>) -> Result<(), String> {
    let name = words.next().ok_or("a name is missing")?;
    let (mut ports, mut infiniband) = (1, false);
    while let Some(word) = words.next() {
        match word {
            "ports" => ports = number(words, "a number of ports")? as u32,
            "infiniband" => infiniband = true,
            "roce" => infiniband = false,
            _ => return Err(format!("a device has no {word}")),
        }
    }
    if !(1..=super::network::MOST_PORTS as u32).contains(&ports) {
        return Err(format!("a device cannot have {ports} ports"));
    }
    let mut network = fabric().network.lock();
    if network.find(name).is_some() {
        return Err(format!("there is a device {name} already"));
    }
    network.add(name, ports, infiniband).ok_or("there are too many devices")?;
    drop(network);
    fabric().network_has_changed();
    Ok(())
}

fn change_device(words: &mut SplitWhitespace<'_>, present: bool) -> Result<(), String> {
    let name = words.next().ok_or("a name is missing")?;
    let place = {
        let mut network = fabric().network.lock();
        let place = network.find(name).ok_or("there is no such device")?;
        network.devices[place as usize].present = u32::from(present);
        place
    };
    fabric().network_has_changed();
    if !present {
        for (index, pair) in fabric().queue_pairs.iter().enumerate() {
            if pair.process().is_some() && pair.lock().device == place {
                pair.fail(index as u32, None);
            }
        }
        let kind = abi::IBV_EVENT_DEVICE_FATAL;
        fabric().announce(place, Event { object: 0, kind, port: 0 });
    }
    Ok(())
}

/// Fails a queue pair by its number, or all connected ones of a device by its name.
fn fail_queue_pairs(word: &str) -> Result<(), String> {
    let event = Some(abi::IBV_EVENT_QP_FATAL);
    if let Ok(number) = word.parse() {
        let (place, pair) = queue_pair::find(number).ok_or("there is no such queue pair")?;
        pair.fail(place, event);
        return Ok(());
    }
    let device = fabric().network.lock().find(word).ok_or("there is no such device")?;
    for (index, pair) in fabric().queue_pairs.iter().enumerate() {
        let connected = pair.process().is_some() && pair.state() == abi::IBV_QPS_RTS;
        if connected && pair.lock().device == device {
            pair.fail(index as u32, event);
        }
    }
    Ok(())
}

fn limit(words: &mut SplitWhitespace<'_>) -> Result<(), String> {
    let name = words.next().ok_or("a name is missing")?;
    let what = words.next().ok_or("the name of a limit is missing")?;
    let value = number(words, "a limit")? as u32;
    let mut network = fabric().network.lock();
    let place = network.find(name).ok_or("there is no such device")?;
    let limits = &mut network.devices[place as usize].limits;
    *match what {
        "work-requests" => &mut limits.work_requests,
        "entries" => &mut limits.entries,
        "inline" => &mut limits.inline,
        "completions" => &mut limits.completions,
        "shared-receives" => &mut limits.shared_receives,
        "reads" => &mut limits.reads,
        "message" => &mut limits.message,
        "dmabuf" => &mut limits.dmabuf,
        "extended" => &mut limits.extended,
        _ => return Err(format!("there is no limit {what}")),
    } = value;
    limits.entries = limits.entries.min(32);
    Ok(())
}

/// The place and the number of a port, from `NAME/NUMBER`.
fn port(network: &Network, word: &str) -> Result<(u32, u32), String> {
    let (name, number) = word.split_once('/').ok_or_else(|| format!("{word} is not NAME/PORT"))?;
    let number = number.parse().map_err(|_| format!("{number} is not a number of a port"))?;
    let place = network.find(name).ok_or_else(|| format!("there is no device {name}"))?;
    network.devices[place as usize].port(number).ok_or("the device has no such port")?;
    Ok((place, number))
}

fn change_port(verb: &str, words: &mut SplitWhitespace<'_>) -> Result<(), String> {
    let word = words.next().ok_or("NAME/PORT is missing")?;
    let (place, number, event) = {
        let mut network = fabric().network.lock();
        let (place, number) = port(&network, word)?;
        let port = &mut network.devices[place as usize].ports[number as usize - 1];
        let event = change(verb, port, words)?;
        (place, number, event)
    };
    fabric().network_has_changed();
    if let Some(kind) = event {
        fabric().announce(place, Event { object: 0, kind, port: number });
    }
    Ok(())
}

/// Changes a port, and returns the event that its users get.
fn change(
    verb: &str,
    port: &mut Port,
    words: &mut SplitWhitespace<'_>,
) -> Result<Option<abi::ibv_event_type>, String> {
    match verb {
        "port" => {
            let (state, event) = match words.next() {
                Some("up") => (abi::IBV_PORT_ACTIVE, abi::IBV_EVENT_PORT_ACTIVE),
                Some("down") => (abi::IBV_PORT_DOWN, abi::IBV_EVENT_PORT_ERR),
                other => return Err(format!("{other:?} is neither up nor down")),
            };
            let changed = port.state != state;
            port.state = state;
            return Ok(changed.then_some(event));
        }
        "drop" => port.drops = switch(words)?,
        "hold" => port.holds = switch(words)?,
        "loss" => port.loss = number(words, "a share of a million")? as u32,
        "segment" => port.segment = number(words, "a number of a segment")? as u32,
        "speed" => port.speed = number(words, "a speed in Gbit/s")? as u32,
        "mtu" => {
            port.mtu = match number(words, "an MTU")? {
                256 => abi::IBV_MTU_256,
                512 => abi::IBV_MTU_512,
                1024 => abi::IBV_MTU_1024,
                2048 => abi::IBV_MTU_2048,
                4096 => abi::IBV_MTU_4096,
                other => return Err(format!("there is no MTU {other}")),
            }
        }
        "gids" => match words.next() {
            Some("clear") => {
                port.gids = Default::default();
                return Ok(Some(abi::IBV_EVENT_GID_CHANGE));
            }
            // As after a flap of the port, when the addresses come back in another order.
            Some("reverse") => {
                let used = port.gids.iter().rposition(|gid| gid.kind != NO_GID);
                port.gids[..used.map_or(0, |last| last + 1)].reverse();
                return Ok(Some(abi::IBV_EVENT_GID_CHANGE));
            }
            other => return Err(format!("{other:?} is neither clear nor reverse")),
        },
        _ => {
            let index = number(words, "an index")? as usize;
            let place = port.gids.get_mut(index).ok_or("the table is not so long")?;
            *place = gid(words)?;
            return Ok(Some(abi::IBV_EVENT_GID_CHANGE));
        }
    }
    Ok(None)
}

/// `none`, or `ADDRESS ib|v1|v2 [INTERFACE]`.
fn gid(words: &mut SplitWhitespace<'_>) -> Result<Gid, String> {
    let address = words.next().ok_or("an address is missing")?;
    if address == "none" {
        return Ok(Gid::default());
    }
    let raw = match address.parse() {
        Ok(IpAddr::V4(address)) => address.to_ipv6_mapped().octets(),
        Ok(IpAddr::V6(address)) => address.octets(),
        Err(_) => return Err(format!("{address} is not an address")),
    };
    let kind = match words.next() {
        Some("ib") => INFINIBAND,
        Some("v1") => ROCE_1,
        Some("v2") => ROCE_2,
        other => return Err(format!("{other:?} is not a type of addresses")),
    };
    let interface = words.next().unwrap_or("2").parse().map_err(|_| "a number of an interface")?;
    Ok(Gid { kind, raw, interface })
}
