//! NCCL's topology files (`NCCL_TOPO_FILE`, `NCCL_TOPO_DUMP_FILE`), version 1.
//!
//! A file has an element `system` with the NUMA nodes (`cpu`) of a machine, and below each its PCI
//! devices (`pci`) with GPUs (`gpu`, `nvlink`, `c2c`) and network devices (`nic`, `net`). What was
//! learned from NCCL 2.30's reader and its dumps, and is respected here:
//!
//! - NCCL's reader wants attributes on one line, one blank between them, in double quotes, and
//!   knows no XML declaration and no character references. [`write()`] keeps to that. [`read`]
//!   accepts all XML without a document type.
//! - A class may be abbreviated (`0x03`); a link speed has one of two spellings, or is empty in a
//!   virtual machine; a width of 0 or 255 is unknown; a network speed of 0 or less is unknown.
//! - The target of an NVLink that a virtual machine does not show is `fffffff:ffff:ff`.
//! - `affinity` is a hexadecimal mask in groups of 32, not a list.
//! - `numaid` is -1 on a machine without NUMA.
//! - Elements that are not known are passed over, as NCCL does. They are named in
//!   [`Reading::notes`].
//! - RCCL's files have the same elements, but the version 2 and other links (`xgmi`). They are
//!   refused, as are NCCL's graph files, hwloc's files and others, by their names.

mod attributes;
mod dialect;
mod read;
#[cfg(test)]
mod tests;
mod write;

pub use read::{Reading, read};
pub use write::{MOST_ELEMENTS, element_count, write};

/// The version of the format.
const VERSION: &str = "1";
/// The target of an NVLink that is not visible.
const HIDDEN_TARGET: &str = "fffffff:ffff:ff";

/// Why a file cannot be read. Lines are counted from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum XmlError {
    /// It is no XML, or it has a document type.
    #[error("this is not XML that NCCL's format allows: {what}")]
    NotXml {
        /// What the parser says.
        what: String,
    },
    /// It is too long.
    #[error("the file has {bytes} bytes, more than the {most} that a topology file may have")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The limit.
        most: usize,
    },
    /// PCI devices are nested too deeply.
    #[error("line {line}: PCI devices are nested more than {most} deep")]
    TooDeep {
        /// The line.
        line: u32,
        /// The limit.
        most: usize,
    },
    /// It is a file of another kind.
    #[error("this is {dialect}, not a topology file of NCCL (<system version=\"1\">)")]
    Dialect {
        /// What it is.
        dialect: &'static str,
    },
    /// It has another version.
    #[error("the topology file has version {found}; only version 1 is known")]
    Version {
        /// The version, or "none".
        found: String,
    },
    /// An attribute is missing.
    #[error("line {line}: <{element}> has no attribute {attribute}")]
    Missing {
        /// The line.
        line: u32,
        /// The element.
        element: &'static str,
        /// The attribute.
        attribute: &'static str,
    },
    /// A value is not understood.
    #[error(
        "line {line}: {attribute}=\"{value}\" of <{element}> is not understood; expected: {form}"
    )]
    Value {
        /// The line.
        line: u32,
        /// The element.
        element: &'static str,
        /// The attribute.
        attribute: &'static str,
        /// Its value.
        value: String,
        /// What it should be.
        form: &'static str,
    },
    /// Two devices of one host have the same address.
    #[error("line {line}: there are two PCI devices {bus} in one host")]
    Twice {
        /// The line of the second one.
        line: u32,
        /// The address.
        bus: String,
    },
}
