//! `maypole doctor`: what of this machine matters to the library, what it means, and what to change.
//!
//! What is read ([`Facts`], [`read`]) is apart from what it means ([`diagnose`]), so that machines that are not at hand can be
//! diagnosed in tests.

mod diagnose;
mod parse;
mod read;

use std::ffi::OsString;

use crate::json::{array, object, quote};
use crate::status;

const HELP: &str = "\
maypole doctor [--json]

Looks at this machine, or container, as the library will find it: cores, caches, memory, limits, network, devices, kernel. Prints what
it found, what that means, and what to change. Ends with 0 if all is fine and with 1 if something will hurt. It connects to
addresses of this host only.
";

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Nothing to do.
    Fine,
    /// Worth knowing; costs nothing, or only some.
    Note,
    /// Something will fail or be slow.
    Hurts,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    /// In a word or two.
    what: &'static str,
    /// What there is.
    found: String,
    verdict: Verdict,
    /// What that means for the library; empty if it goes without saying.
    means: String,
    /// What to change; empty if nothing.
    change: String,
}

/// What was read, as the kernel has it; None or empty where it has nothing.
#[derive(Clone, Debug, Default)]
struct Facts {
    /// Processors that this process may run on.
    affinity: usize,
    /// Processors that are online.
    online: usize,
    /// `cpu.max` of the control group.
    cpu_max: Option<String>,
    /// `flags` of `/proc/cpuinfo`.
    cpu_flags: Vec<String>,
    /// Level, kind and size of the first processor's caches, `3 Unified 32768K`.
    caches: Vec<String>,
    /// `/sys/devices/system/node/online`.
    numa: Option<String>,
    meminfo: String,
    /// `/sys/kernel/mm/transparent_hugepage/enabled`.
    transparent_huge: Option<String>,
    memory_max: Option<String>,
    memory_current: Option<String>,
    pids_max: Option<String>,
    pids_current: Option<String>,
    /// Free bytes of `/dev/shm`.
    dev_shm: Option<u64>,
    /// Soft and hard limit of descriptors.
    descriptors: (u64, u64),
    /// Soft limit of locked memory.
    memlock: u64,
    interfaces: Vec<Interface>,
    /// Of each of this host's addresses, whether a connection to itself could be made.
    reachable: Vec<(String, Result<(), String>)>,
    /// The library's own choice of addresses.
    chosen: Vec<String>,
    /// Why it has none.
    no_choice: Option<String>,
    /// `/sys/class/infiniband`.
    verbs_devices: Vec<String>,
    verbs_library: bool,
    /// `/dev/nvidia*`.
    gpu_nodes: Vec<String>,
    cuda_library: bool,
    /// `/proc/driver/nvidia/version`.
    gpu_driver: Option<String>,
    /// `/proc/sys/kernel/yama/ptrace_scope`.
    ptrace_scope: Option<String>,
    /// Calls of the kernel, and why they do not work.
    calls: Vec<(&'static str, Result<(), String>)>,
}

/// A network interface that is up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Interface {
    name: String,
    /// Megabits per second, if it says.
    speed: Option<u64>,
    /// Bytes of a packet.
    mtu: Option<u64>,
}

/// Prints what was found; returns the exit status.
pub(crate) fn run(args: &[OsString]) -> Result<u8, lexopt::Error> {
    let json = match args {
        [] => false,
        [word] if word == "--json" => true,
        [word] if word == "--help" || word == "-h" => {
            print!("{HELP}");
            return Ok(status::FINE);
        }
        _ => return Err("doctor takes --json and nothing else".into()),
    };
    let findings = diagnose::diagnose(&read::read());
    print!("{}", if json { as_json(&findings) } else { as_text(&findings) });
    let hurts = findings.iter().any(|it| it.verdict == Verdict::Hurts);
    Ok(if hurts { status::DISPROVED } else { status::FINE })
}

fn as_text(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding { what, found, verdict, means, change } in findings {
        let mark = match verdict {
            Verdict::Fine => "ok  ",
            Verdict::Note => "note",
            Verdict::Hurts => "HURT",
        };
        text.push_str(&format!("{mark}  {what:<14} {found}\n"));
        for (name, line) in [("", means), ("change: ", change)] {
            if !line.is_empty() {
                text.push_str(&format!("{:21}{name}{line}\n", ""));
            }
        }
    }
    let hurts = findings.iter().filter(|it| it.verdict == Verdict::Hurts).count();
    text.push_str(&match hurts {
        0 => "nothing will hurt\n".to_owned(),
        1 => "1 thing will hurt\n".to_owned(),
        more => format!("{more} things will hurt\n"),
    });
    text
}

fn as_json(findings: &[Finding]) -> String {
    let one = |Finding { what, found, verdict, means, change }: &Finding| {
        let verdict = match verdict {
            Verdict::Fine => "fine",
            Verdict::Note => "note",
            Verdict::Hurts => "hurts",
        };
        object(&[
            ("what", quote(what)),
            ("found", quote(found)),
            ("verdict", quote(verdict)),
            ("means", quote(means)),
            ("change", quote(change)),
        ])
    };
    array(findings.iter().map(one)) + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_say_all_of_it() {
        let finding = |what, verdict, change: &str| Finding {
            what,
            found: "2".into(),
            verdict,
            means: String::new(),
            change: change.into(),
        };
        let findings =
            [finding("cores", Verdict::Fine, ""), finding("limits", Verdict::Hurts, "more \"x\"")];
        assert_eq!(
            as_text(&findings),
            "ok    cores          2\nHURT  limits         2\n\
             \x20                    change: more \"x\"\n1 thing will hurt\n"
        );
        assert!(
            as_json(&findings)
                .contains(r#""verdict": "hurts", "means": "", "change": "more \"x\"""#)
        );
    }

    #[test]
    fn this_machine_can_be_read() {
        let facts = read::read();
        assert!(facts.affinity > 0 && facts.online > 0 && facts.descriptors.0 > 0);
        assert!(!facts.meminfo.is_empty());
        let names: Vec<_> = diagnose::diagnose(&facts).iter().map(|it| it.what).collect();
        assert!(names.contains(&"cores") && names.contains(&"kernel"), "{names:?}");
    }
}
