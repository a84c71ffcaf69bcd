//! Names of values, and conversions of rates.

use std::ffi::{CStr, c_char, c_int};

use crate::abi;

#[unsafe(no_mangle)]
extern "C" fn ibv_wc_status_str(status: abi::ibv_wc_status) -> *const c_char {
    const NAMES: [&CStr; 24] = [
        c"success",
        c"local length error",
        c"local QP operation error",
        c"local EE context operation error",
        c"local protection error",
        c"Work Request Flushed Error",
        c"memory management operation error",
        c"bad response error",
        c"local access error",
        c"remote invalid request error",
        c"remote access error",
        c"remote operation error",
        c"transport retry counter exceeded",
        c"RNR retry counter exceeded",
        c"local RDD violation error",
        c"remote invalid RD request",
        c"aborted error",
        c"invalid EE context number",
        c"invalid EE context state",
        c"fatal error",
        c"response timeout error",
        c"general error",
        c"TM error",
        c"TM software rendezvous",
    ];
    NAMES.get(status as usize).unwrap_or(&c"unknown").as_ptr()
}

#[unsafe(no_mangle)]
extern "C" fn ibv_event_type_str(kind: abi::ibv_event_type) -> *const c_char {
    const NAMES: [&CStr; 20] = [
        c"CQ error",
        c"local work queue catastrophic error",
        c"invalid request local work queue error",
        c"local access violation work queue error",
        c"communication established",
        c"send queue drained",
        c"path migrated",
        c"path migration request error",
        c"local catastrophic error",
        c"port active",
        c"port error",
        c"LID change",
        c"P_Key change",
        c"SM change",
        c"SRQ catastrophic error",
        c"SRQ limit reached",
        c"last WQE reached",
        c"client reregistration",
        c"GID table change",
        c"WQ fatal",
    ];
    NAMES.get(kind as usize).unwrap_or(&c"unknown").as_ptr()
}

#[unsafe(no_mangle)]
extern "C" fn ibv_port_state_str(state: abi::ibv_port_state) -> *const c_char {
    const NAMES: [&CStr; 6] =
        [c"no state change (NOP)", c"down", c"init", c"armed", c"active", c"active defer"];
    NAMES.get(state as usize).unwrap_or(&c"invalid state").as_ptr()
}

#[unsafe(no_mangle)]
extern "C" fn ibv_node_type_str(kind: abi::ibv_node_type) -> *const c_char {
    if kind == abi::IBV_NODE_CA {
        c"InfiniBand channel adapter".as_ptr()
    } else {
        c"unknown".as_ptr()
    }
}

/// Rates by their code: multiples of 2.5 Gbit/s, and Mbit/s.
const RATES: [(abi::ibv_rate, c_int, c_int); 23] = [
    (abi::IBV_RATE_2_5_GBPS, 1, 2500),
    (abi::IBV_RATE_5_GBPS, 2, 5000),
    (abi::IBV_RATE_10_GBPS, 4, 10000),
    (abi::IBV_RATE_14_GBPS, 6, 14062),
    (abi::IBV_RATE_20_GBPS, 8, 20000),
    (abi::IBV_RATE_25_GBPS, 10, 25781),
    (abi::IBV_RATE_28_GBPS, 11, 28125),
    (abi::IBV_RATE_30_GBPS, 12, 30000),
    (abi::IBV_RATE_40_GBPS, 16, 40000),
    (abi::IBV_RATE_50_GBPS, 20, 53125),
    (abi::IBV_RATE_56_GBPS, 22, 56250),
    (abi::IBV_RATE_60_GBPS, 24, 60000),
    (abi::IBV_RATE_80_GBPS, 32, 80000),
    (abi::IBV_RATE_100_GBPS, 40, 103125),
    (abi::IBV_RATE_112_GBPS, 45, 112500),
    (abi::IBV_RATE_120_GBPS, 48, 120000),
    (abi::IBV_RATE_168_GBPS, 67, 168750),
    (abi::IBV_RATE_200_GBPS, 80, 206250),
    (abi::IBV_RATE_300_GBPS, 120, 309375),
    (abi::IBV_RATE_400_GBPS, 160, 425000),
    (abi::IBV_RATE_600_GBPS, 240, 637500),
    (abi::IBV_RATE_800_GBPS, 320, 850000),
    (abi::IBV_RATE_1200_GBPS, 480, 1275000),
];

#[unsafe(no_mangle)]
extern "C" fn ibv_rate_to_mult(rate: abi::ibv_rate) -> c_int {
    RATES.iter().find(|it| it.0 == rate).map_or(-1, |it| it.1)
}

#[unsafe(no_mangle)]
extern "C" fn mult_to_ibv_rate(multiple: c_int) -> abi::ibv_rate {
    RATES.iter().find(|it| it.1 == multiple).map_or(abi::IBV_RATE_MAX, |it| it.0)
}

#[unsafe(no_mangle)]
extern "C" fn ibv_rate_to_mbps(rate: abi::ibv_rate) -> c_int {
    RATES.iter().find(|it| it.0 == rate).map_or(-1, |it| it.2)
}

#[unsafe(no_mangle)]
extern "C" fn mbps_to_ibv_rate(megabits: c_int) -> abi::ibv_rate {
    RATES.iter().find(|it| it.2 == megabits).map_or(abi::IBV_RATE_MAX, |it| it.0)
}
