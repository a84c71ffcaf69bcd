//! `maypole doctor`: the properties of this machine that matter to the library, what they mean, and
//! what to change.
//!
//! What is read ([`MachineFacts`], [`read`]) is separate from what it means ([`diagnose`]), so that
//! tests can diagnose machines that are not available.

mod diagnose;
mod hardware;
mod parse;
mod read;

use maypole::internal::topology::Inventory;
use serde::Serialize;

use crate::status::{self, Failure};

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Severity {
    /// Nothing to do.
    Fine,
    /// Good to know; it costs little or nothing.
    Note,
    /// Something will fail or be slow.
    Hurts,
}

/// One property of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    /// The property, in one or two words.
    what: &'static str,
    /// Its value.
    found: String,
    #[serde(rename = "verdict")]
    severity: Severity,
    /// What that means for the library; empty if it is obvious.
    means: String,
    /// What to change; empty if there is nothing to change.
    change: String,
}

fn finding(
    what: &'static str,
    found: String,
    severity: Severity,
    means: &str,
    change: &str,
) -> Finding {
    Finding { what, found, severity, means: means.to_owned(), change: change.to_owned() }
}

fn fine(what: &'static str, found: String) -> Finding {
    finding(what, found, Severity::Fine, "", "")
}

/// What was read, in the kernel's form. A value is None or empty if the kernel does not have it.
#[derive(Clone, Debug, Default)]
struct MachineFacts {
    /// Processors that this process may run on.
    affinity: usize,
    /// Processors that are online.
    online: usize,
    /// `cpu.max` of the control group.
    cpu_max: Option<String>,
    /// `flags` of `/proc/cpuinfo`.
    cpu_flags: Vec<String>,
    /// Level, type and size of the caches of the first processor, as in `L3 unified 32768K`.
    caches: Vec<String>,
    /// `/sys/devices/system/node/online`.
    numa: Option<String>,
    /// The processors and PCI devices.
    inventory: Inventory,
    /// The ways in which the clocks of the allowed processors are controlled, as in `powersave`,
    /// each once.
    governors: Vec<String>,
    /// The program in the kernel that controls the clocks, as in `intel_pstate`.
    clock_driver: Option<String>,
    /// The topology file, and why it cannot be used, if it cannot.
    topology_file: Option<(String, Result<(), String>)>,
    /// `/proc/meminfo`.
    meminfo: String,
    /// `/sys/kernel/mm/transparent_hugepage/enabled`.
    transparent_huge: Option<String>,
    /// `memory.max` of the control group.
    memory_max: Option<String>,
    /// `memory.current` of the control group.
    memory_current: Option<String>,
    /// `pids.max` of the control group.
    pids_max: Option<String>,
    /// `pids.current` of the control group.
    pids_current: Option<String>,
    /// Free bytes of `/dev/shm`.
    dev_shm: Option<u64>,
    /// The soft and the hard limit of open descriptors.
    descriptors: (u64, u64),
    /// The soft limit of locked memory in bytes.
    memlock: u64,
    /// The network interfaces that are up.
    interfaces: Vec<NetworkInterface>,
    /// For each address of this host, why a connection to itself failed, if it did.
    reachable: Vec<(String, Result<(), String>)>,
    /// The addresses that the library chooses.
    chosen: Vec<String>,
    /// Why the library finds no address, if it finds none.
    no_choice: Option<String>,
    /// `/sys/class/infiniband`.
    verbs_devices: Vec<String>,
    /// Whether libibverbs can be loaded.
    verbs_library: bool,
    /// `/dev/nvidia*`.
    gpu_nodes: Vec<String>,
    /// Whether libcuda can be loaded.
    cuda_library: bool,
    /// `/proc/driver/nvidia/version`.
    gpu_driver: Option<String>,
    /// `/proc/sys/kernel/yama/ptrace_scope`.
    ptrace_scope: Option<String>,
    /// System calls, and why they do not work, if they do not.
    calls: Vec<(&'static str, Result<(), String>)>,
}

/// A network interface that is up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct NetworkInterface {
    name: String,
    /// Megabits per second, if the interface reports it.
    speed: Option<u64>,
    /// The largest packet in bytes.
    mtu: Option<u64>,
}

/// Prints the findings. Returns the exit status.
///
/// # Errors
/// An internal error.
pub(crate) fn run(json: bool) -> Result<u8, Failure> {
    let findings = diagnose::diagnose(&read::read());
    print!("{}", if json { as_json(&findings)? } else { as_text(&findings) });
    let hurts = findings.iter().any(|it| it.severity == Severity::Hurts);
    Ok(if hurts { status::DISPROVED } else { status::FINE })
}

fn as_text(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding { what, found, severity, means, change } in findings {
        let mark = match severity {
            Severity::Fine => "ok  ",
            Severity::Note => "note",
            Severity::Hurts => "HURT",
        };
        text.push_str(&format!("{mark}  {what:<14} {found}\n"));
        for (name, line) in [("", means), ("change: ", change)] {
            if !line.is_empty() {
                text.push_str(&format!("{:21}{name}{line}\n", ""));
            }
        }
    }
    let hurts = findings.iter().filter(|it| it.severity == Severity::Hurts).count();
    text.push_str(&match hurts {
        0 => "nothing will hurt\n".to_owned(),
        1 => "1 thing will hurt\n".to_owned(),
        more => format!("{more} things will hurt\n"),
    });
    text
}

fn as_json(findings: &[Finding]) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(findings);
    Ok(text.map_err(|error| Failure::internal(error.to_string()))? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_have_all_findings() {
        let finding = |what, severity, change: &str| Finding {
            what,
            found: "2".into(),
            severity,
            means: String::new(),
            change: change.into(),
        };
        let findings = [
            finding("cores", Severity::Fine, ""),
            finding("limits", Severity::Hurts, "more \"x\""),
        ];
        assert_eq!(
            as_text(&findings),
            "ok    cores          2\nHURT  limits         2\n\
             \x20                    change: more \"x\"\n1 thing will hurt\n"
        );
        let json: serde_json::Value = serde_json::from_str(&as_json(&findings).unwrap()).unwrap();
        assert_eq!(
            json[1],
            serde_json::json!({
                "what": "limits", "found": "2", "verdict": "hurts", "means": "",
                "change": "more \"x\""
            })
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
