//! What a handshake is bound to: what the connection is for, and the ranks at its ends. It travels
//! encrypted in the first message.

/// Bytes of an encoded binding.
pub(super) const BINDING_BYTES: usize = 32;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A rank connects to the bootstrap root.
    Root,
    /// A rank connects to its parent in the control tree.
    Tree,
    /// A process connects to rank 0 of a job that a launcher started.
    Launch,
    /// A rank passes memory over a UNIX socket.
    Shm,
    /// A rank sends messages over TCP.
    Tcp,
    /// A rank proves that it shares a host with another.
    Host,
}

/// What a connection is for, and between which ranks. The communicator is known by the key: no two
/// have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// What the connection is for.
    pub purpose: Purpose,
    /// The rank that dials.
    pub from: u32,
    /// The rank that listens; 0 for the bootstrap root.
    pub to: u32,
    /// The number of ranks of the communicator.
    pub nranks: u32,
    /// The number of the connection between the two; 0 where there is one.
    pub stream: u32,
}

const PURPOSES: [Purpose; 6] =
    [Purpose::Root, Purpose::Tree, Purpose::Launch, Purpose::Shm, Purpose::Tcp, Purpose::Host];

impl Binding {
    /// The bytes that travel: the purpose, three zeros, four numbers, twelve zeros.
    pub(super) fn encode(&self) -> [u8; BINDING_BYTES] {
        let mut out = [0; BINDING_BYTES];
        out[0] = self.purpose as u8;
        for (at, number) in [self.from, self.to, self.nranks, self.stream].into_iter().enumerate() {
            out[4 + 4 * at..8 + 4 * at].copy_from_slice(&number.to_le_bytes());
        }
        out
    }

    /// None if no rank makes these bytes.
    pub(super) fn decode(bytes: &[u8; BINDING_BYTES]) -> Option<Self> {
        let number = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let purpose = *PURPOSES.get(usize::from(bytes[0]))?;
        let [from, to, nranks, stream] = [number(4), number(8), number(12), number(16)];
        let binding = Self { purpose, from, to, nranks, stream };
        (from < nranks && to < nranks && binding.encode() == *bytes).then_some(binding)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binding_decodes_to_itself_and_a_damaged_one_to_another_or_none() {
        for purpose in PURPOSES {
            let binding = Binding { purpose, from: 3, to: 4, nranks: 5, stream: 6 };
            let bytes = binding.encode();
            assert_eq!(Binding::decode(&bytes), Some(binding));
            for bit in 0..8 * BINDING_BYTES {
                let mut damaged = bytes;
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert_ne!(Binding::decode(&damaged), Some(binding), "bit {bit}");
            }
        }
        let none = Binding { purpose: Purpose::Tcp, from: 5, to: 4, nranks: 5, stream: 0 };
        assert_eq!(Binding::decode(&none.encode()), None, "the dialer is no rank");
        assert_eq!(Binding::decode(&[0; BINDING_BYTES]), None, "there are no ranks");
    }
}
