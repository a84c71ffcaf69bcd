//! The list of devices.

use std::ffi::{CStr, c_char, c_int};
use std::sync::{LazyLock, Mutex, PoisonError};

use super::given;
use crate::abi;
use crate::fabric::fabric;
use crate::fabric::network::MOST_DEVICES;
use crate::misuse::set_errno;

/// The devices of this process. They are never freed, as contexts refer to them.
static DEVICES: LazyLock<Mutex<Vec<Known>>> = LazyLock::new(Mutex::default);

#[derive(Clone, Copy)]
struct Known(*mut abi::ibv_device);

// SAFETY: a device is not changed after it was made.
unsafe impl Send for Known {}

/// The structure for the device at a place of the network.
fn device(place: u32) -> *mut abi::ibv_device {
    let mut devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
    while devices.len() <= place as usize {
        let index = devices.len();
        let name = {
            let network = fabric().network.lock();
            String::from(network.devices[index % MOST_DEVICES].name())
        };
        devices.push(Known(Box::into_raw(Box::new(make(&name, index)))));
    }
    devices[place as usize].0
}

fn make(name: &str, place: usize) -> abi::ibv_device {
    abi::ibv_device {
        _ops: abi::_ibv_device_ops { _dummy1: None, _dummy2: None },
        node_type: abi::IBV_NODE_CA,
        transport_type: abi::IBV_TRANSPORT_IB,
        name: text(name),
        dev_name: text(&format!("uverbs{place}")),
        dev_path: text(&format!("/sys/class/infiniband_verbs/uverbs{place}")),
        ibdev_path: text(&format!("/sys/class/infiniband/{name}")),
    }
}

fn text<const N: usize>(from: &str) -> [c_char; N] {
    let mut text = [0; N];
    for (to, byte) in text.iter_mut().zip(from.bytes()).take(N - 1) {
        *to = byte as c_char;
    }
    text
}

/// The place of a device in the network.
pub(super) fn place(device: *mut abi::ibv_device) -> u32 {
    let name = given!(device).name.as_ptr();
    // SAFETY: the name ends with a zero.
    let name = unsafe { CStr::from_ptr(name) };
    fabric().network.lock().find(&name.to_string_lossy()).unwrap_or(0)
}

#[unsafe(no_mangle)]
extern "C" fn ibv_get_device_list(count: *mut c_int) -> *mut *mut abi::ibv_device {
    let present: Vec<u32> = {
        let network = fabric().network.lock();
        (0..network.count).filter(|i| network.devices[*i as usize].present != 0).collect()
    };
    let mut list: Vec<*mut abi::ibv_device> = present.iter().map(|i| device(*i)).collect();
    if !count.is_null() {
        // SAFETY: the caller's pointer.
        unsafe { *count = list.len() as c_int };
    }
    list.push(std::ptr::null_mut());
    set_errno(0);
    Box::into_raw(list.into_boxed_slice()).cast()
}

#[unsafe(no_mangle)]
extern "C" fn ibv_free_device_list(list: *mut *mut abi::ibv_device) {
    if list.is_null() {
        return;
    }
    let mut length = 1;
    // SAFETY: the list ends with null.
    while unsafe { !(*list.add(length - 1)).is_null() } {
        length += 1;
    }
    // SAFETY: `ibv_get_device_list` has made it as a box of this length.
    drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(list, length)) });
}

#[unsafe(no_mangle)]
extern "C" fn ibv_get_device_name(device: *mut abi::ibv_device) -> *const c_char {
    given!(device).name.as_ptr()
}

#[unsafe(no_mangle)]
extern "C" fn ibv_get_device_index(device: *mut abi::ibv_device) -> c_int {
    place(device) as c_int
}

/// In network byte order.
#[unsafe(no_mangle)]
extern "C" fn ibv_get_device_guid(device: *mut abi::ibv_device) -> u64 {
    let place = place(device) as usize;
    fabric().network.lock().devices[place].guid.to_be()
}
