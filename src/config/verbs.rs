//! The settings of RDMA.

use std::net::IpAddr;
use std::path::PathBuf;

use maypole_transport::verbs::AdapterFilter;

use super::number::integer_in;
use super::parse::{
    parse_address_range, parse_bool, parse_decided, parse_family, parse_gid_index, parse_small,
};
use super::row::{Malformed, Variable, read_row, settings};
use super::values::AddressFamily;

settings! {
    /// The settings of RDMA (InfiniBand and RoCE).
    pub struct VerbsSettings {}

    /// Forbids InfiniBand and RoCE.
    disabled: bool = "NCCL_IB_DISABLE" {
        values: "an integer, 0 for no"
        default: "0"
        parse: parse_bool,
        initial: false,
    }
    /// The RDMA devices that may be used, by prefix of their names, with a port or not. A leading =
    /// requires the whole name, a leading ^ excludes the listed ones. A rank uses up to four active
    /// ports of those that are listed, or else of the fastest.
    adapters: AdapterFilter = "NCCL_IB_HCA" {
        values: "comma list of PREFIX or PREFIX:PORT, or =list, or ^list, or ^=list"
        default: "all"
        parse: AdapterFilter::parse,
        initial: AdapterFilter::default(),
    }
    /// The index of the GID, for RoCE. It is better not set: the indexes change when a port comes
    /// back. The library chooses a GID by its content, anew for every connection.
    gid_index: Option<u32> = "NCCL_IB_GID_INDEX" {
        values: "an integer up to 255; negative for the library's choice"
        default: "RoCE v2 before v1, global addresses before others, then NCCL_IB_ADDR_FAMILY"
        parse: parse_gid_index,
        initial: None,
    }
    /// The version of RoCE whose GIDs are preferred.
    roce_version: u32 = "NCCL_IB_ROCE_VERSION_NUM" {
        values: "1 or 2"
        default: "2"
        parse: |text| integer_in(text, 1, 2).map(|version| version as u32),
        initial: 2,
    }
    /// The family of addresses whose GIDs are preferred.
    family: Option<AddressFamily> = "NCCL_IB_ADDR_FAMILY" {
        values: "AF_INET or AF_INET6"
        default: "AF_INET"
        parse: parse_family,
        initial: None,
    }
    /// Only GIDs in this range are used.
    address_range: Option<(IpAddr, u8)> = "NCCL_IB_ADDR_RANGE" {
        values: "ADDRESS/BITS"
        default: "all"
        parse: parse_address_range,
        initial: None,
    }
    /// RDMA sends a packet again after 4.096 microseconds times two to the power of this.
    timeout: u8 = "NCCL_IB_TIMEOUT" {
        values: "an integer from 1 to 31"
        default: "20"
        parse: |text| integer_in(text, 1, 31).map(|value| value as u8),
        initial: 20,
    }
    /// How often RDMA sends a packet again before the connection fails.
    retries: u8 = "NCCL_IB_RETRY_CNT" {
        values: "an integer from 0 to 7"
        default: "7"
        parse: |text| integer_in(text, 0, 7).map(|value| value as u8),
        initial: 7,
    }
    /// The index of the partition key of RDMA connections.
    partition: u16 = "NCCL_IB_PKEY" {
        values: "an integer from 0 to 65535"
        default: "0"
        parse: |text| integer_in(text, 0, 65535).map(|value| value as u16),
        initial: 0,
    }
    /// The service level of RDMA connections.
    service_level: u8 = "NCCL_IB_SL" {
        values: "an integer up to 15; negative for the default"
        default: "0"
        parse: |text| parse_small(text, 15),
        initial: 0,
    }
    /// The traffic class of RDMA connections. The kernel may force another one, which the log then
    /// names.
    traffic_class: u8 = "NCCL_IB_TC" {
        values: "an integer up to 255; negative for the default"
        default: "0"
        parse: |text| parse_small(text, 255),
        initial: 0,
    }
    /// RDMA connections (queue pairs) between two ranks. The links between them take these in turn.
    queue_pairs: u32 = "NCCL_IB_QPS_PER_CONNECTION" {
        values: "an integer from 1 to 16"
        default: "1"
        parse: |text| integer_in(text, 1, 16).map(|value| value as u32),
        initial: 1,
    }
    /// Whether the network may deliver packets of an RDMA write in any order. The payload of a long
    /// message is then a write of its own, in front of the one that announces the message.
    adaptive_routing: Option<bool> = "NCCL_IB_ADAPTIVE_ROUTING" {
        values: "0 or 1; negative for the library's choice"
        default: "1 on InfiniBand, 0 with RoCE"
        parse: parse_decided,
        initial: None,
    }
    /// The least message in bytes for which NCCL_IB_ADAPTIVE_ROUTING counts.
    adaptive_from: usize = "NCCL_IB_AR_THRESHOLD" {
        values: "an integer; negative for the default"
        default: "8192"
        parse: |text| integer_in(text, i64::MIN, i64::MAX)
            .map(|bytes| usize::try_from(bytes).unwrap_or(8192)),
        initial: 8192,
    }
    /// Whether adapters may reorder their writes to memory of the host (0 no, 1 or 2 if they can).
    relaxed_ordering: Option<bool> = "NCCL_IB_PCI_RELAXED_ORDERING" {
        values: "0, 1 or 2"
        default: "2"
        parse: parse_decided,
        initial: None,
    }
    /// A library in place of libibverbs, for tests.
    library: Option<PathBuf> = "MAYPOLE_VERBS_LIBRARY" {
        values: "a path"
        default: "libibverbs.so.1 as the dynamic loader finds it"
        parse: |text| Some(Some(PathBuf::from(text))),
        initial: None,
    }
}
