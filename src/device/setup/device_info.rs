//! The part of a rank info that describes the rank's device: which device it is, how other ranks
//! open the inbox, and which devices its kernels do not reach.

use maypole_cuda::driver::{Device, DriverError};
use maypole_cuda::ipc::MemoryHandle;

use super::gpu::Gpu;
use crate::device::memory::inbox::DeviceInbox;

/// What a rank on a device tells all other ranks about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeviceInfo {
    pub(crate) uuid: [u8; 16],
    /// The number of the device in the rank's process.
    pub(crate) ordinal: i32,
    /// The address of the inbox in the rank's process.
    pub(crate) inbox: u64,
    /// The handle by which other processes open the inbox, if the driver can share it.
    pub(crate) handle: Option<MemoryHandle>,
    /// The UUIDs of the other devices that the rank's process sees and whose memory the rank's
    /// kernels cannot reach. Whether they reach a device that the process does not see is known
    /// when its memory is opened.
    pub(crate) unreachable: Vec<[u8; 16]>,
}

impl DeviceInfo {
    /// Describes `gpu` and `inbox`.
    ///
    /// # Errors
    /// The driver cannot say which devices there are.
    pub(crate) fn new(gpu: &Gpu, inbox: &DeviceInbox) -> Result<Self, DriverError> {
        let driver = gpu.device.driver();
        let mut unreachable = Vec::new();
        // No context is made on the other devices: it would take memory of each, and fail if
        // another process has the device for itself.
        for ordinal in (0..driver.devices()?).filter(|other| *other != gpu.device.ordinal()) {
            if !gpu.device.can_access(ordinal)? {
                unreachable.push(Device::uuid_of(driver, ordinal)?);
            }
        }
        Ok(Self {
            uuid: gpu.uuid,
            ordinal: gpu.device.ordinal(),
            inbox: inbox.address(),
            handle: inbox.handle(),
            unreachable,
        })
    }

    /// Whether the device of this rank may be able to access the device of the other rank.
    pub(crate) fn may_access(&self, other: &Self) -> bool {
        self.uuid == other.uuid || !self.unreachable.contains(&other.uuid)
    }

    /// The bytes that are sent to the other ranks.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.uuid.to_vec();
        bytes.extend(self.ordinal.to_le_bytes());
        bytes.extend(self.inbox.to_le_bytes());
        match &self.handle {
            Some(handle) => {
                bytes.push(1);
                bytes.extend(handle.bytes);
                bytes.extend(handle.offset.to_le_bytes());
            }
            None => bytes.push(0),
        }
        bytes.extend(self.unreachable.iter().flatten());
        bytes
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote; `None` if `bytes` is anything else.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (uuid, rest) = bytes.split_first_chunk()?;
        let (ordinal, rest) = rest.split_first_chunk()?;
        let (inbox, rest) = rest.split_first_chunk()?;
        let (shared, mut rest) = rest.split_first()?;
        let handle = match shared {
            0 => None,
            1 => {
                let (bytes, after) = rest.split_first_chunk()?;
                let (offset, after) = after.split_first_chunk()?;
                rest = after;
                Some(MemoryHandle { bytes: *bytes, offset: u64::from_le_bytes(*offset) })
            }
            _ => return None,
        };
        let (unreachable, rest) = rest.as_chunks();
        rest.is_empty().then_some(Self {
            uuid: *uuid,
            ordinal: i32::from_le_bytes(*ordinal),
            inbox: u64::from_le_bytes(*inbox),
            handle,
            unreachable: unreachable.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_info_survives_the_wire_and_a_damaged_one_is_refused() {
        let handle = MemoryHandle { bytes: [7; 64], offset: 9 };
        for handle in [None, Some(handle)] {
            let unreachable = vec![[2; 16], [3; 16]];
            let info = DeviceInfo { uuid: [1; 16], ordinal: 4, inbox: 5, handle, unreachable };
            let bytes = info.to_bytes();
            assert_eq!(DeviceInfo::from_bytes(&bytes), Some(info));
            // Without a multiple of 16 bytes it is whole again, with fewer unreachable devices.
            let lens = (0..bytes.len()).filter(|len| !(bytes.len() - len).is_multiple_of(16));
            for len in lens {
                assert_eq!(DeviceInfo::from_bytes(&bytes[..len]), None, "{len}");
            }
        }
        assert_eq!(DeviceInfo::from_bytes(&[]), None);
    }
}
