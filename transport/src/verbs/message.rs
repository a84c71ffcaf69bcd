//! The control messages by which two ranks make an RDMA connection. They travel sealed over the TCP
//! connection of the two, and so do the keys by which each lets the other write to its memory.

use maypole_verbs::{Gid, RemoteMemory};

/// Bytes of text that a message carries at most.
const MOST_TEXT: usize = 1024;
/// Most queue pairs between two ranks.
pub(super) const MOST_QUEUES: usize = 16;

/// A control message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ControlMessage {
    /// The first: what the other end needs to connect.
    Hello(Hello),
    /// The queue pairs of the sender take what arrives.
    Ready,
    /// The trial of the sender has passed.
    Passed,
    /// The sender gives up, with the reason: the connection cannot be made, or has failed.
    Failed(String),
    /// The receiver of a link grants its slots.
    Grant {
        /// The channel.
        channel: u16,
        /// The first slot.
        memory: RemoteMemory,
    },
}

/// How a rank's queue pairs are reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) gid: Gid,
    /// Whether packets need the GID.
    pub(super) global: bool,
    pub(super) lid: u16,
    pub(super) mtu: u32,
    /// The first packet number of all its queue pairs.
    pub(super) first_packet: u32,
    /// The number of the queue pair for the trial.
    pub(super) trial_queue: u32,
    /// The numbers of the queue pairs for messages.
    pub(super) queues: Vec<u32>,
    /// Eight bytes to which the trial and flushes write.
    pub(super) scratch: RemoteMemory,
    /// The device, for messages to people.
    pub(super) device: String,
}

impl ControlMessage {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Hello(hello) => {
                out.push(0);
                out.extend(hello.gid.0);
                out.push(hello.global.into());
                out.extend(hello.lid.to_le_bytes());
                out.extend(hello.mtu.to_le_bytes());
                out.extend(hello.first_packet.to_le_bytes());
                out.extend(hello.trial_queue.to_le_bytes());
                out.push(hello.queues.len() as u8);
                hello.queues.iter().for_each(|number| out.extend(number.to_le_bytes()));
                out.extend(hello.scratch.address.to_le_bytes());
                out.extend(hello.scratch.key.to_le_bytes());
                push_text(&mut out, &hello.device);
            }
            Self::Ready => out.push(1),
            Self::Passed => out.push(2),
            Self::Failed(why) => {
                out.push(3);
                push_text(&mut out, why);
            }
            Self::Grant { channel, memory } => {
                out.push(4);
                out.extend(channel.to_le_bytes());
                out.extend(memory.address.to_le_bytes());
                out.extend(memory.key.to_le_bytes());
            }
        }
        out
    }

    /// `None` if no correct peer sends these bytes.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = ByteReader(bytes);
        let message = match reader.take::<1>()?[0] {
            0 => Self::Hello(Hello {
                gid: Gid(reader.take()?),
                global: reader.take::<1>()?[0] == 1,
                lid: u16::from_le_bytes(reader.take()?),
                mtu: reader.word()?,
                first_packet: reader.word()?,
                trial_queue: reader.word()?,
                queues: {
                    let count = usize::from(reader.take::<1>()?[0]);
                    if count == 0 || count > MOST_QUEUES {
                        return None;
                    }
                    (0..count).map(|_| reader.word()).collect::<Option<_>>()?
                },
                scratch: reader.memory()?,
                device: reader.text()?,
            }),
            1 => Self::Ready,
            2 => Self::Passed,
            3 => Self::Failed(reader.text()?),
            4 => {
                let channel = u16::from_le_bytes(reader.take()?);
                Self::Grant { channel, memory: reader.memory()? }
            }
            _ => return None,
        };
        reader.0.is_empty().then_some(message)
    }
}

fn push_text(out: &mut Vec<u8>, text: &str) {
    let mut end = text.len().min(MOST_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    out.extend((end as u16).to_le_bytes());
    out.extend(&text.as_bytes()[..end]);
}

/// Reads fields from the front of bytes.
struct ByteReader<'a>(&'a [u8]);

impl ByteReader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    fn word(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn memory(&mut self) -> Option<RemoteMemory> {
        let address = u64::from_le_bytes(self.take()?);
        Some(RemoteMemory { address, key: self.word()? })
    }

    fn text(&mut self) -> Option<String> {
        let len = usize::from(u16::from_le_bytes(self.take()?));
        let (text, rest) = self.0.split_at_checked(len).filter(|_| len <= MOST_TEXT)?;
        self.0 = rest;
        String::from_utf8(text.to_vec()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_decode_to_themselves_and_parts_of_them_to_nothing() {
        let memory = RemoteMemory { address: 1 << 50, key: 77 };
        let hello = Hello {
            gid: Gid([3; 16]),
            global: true,
            lid: 9,
            mtu: 5,
            first_packet: 0xab_cdef,
            trial_queue: 17,
            queues: vec![18, 19],
            scratch: memory,
            device: "mlx5_0".into(),
        };
        for message in [
            ControlMessage::Hello(hello),
            ControlMessage::Ready,
            ControlMessage::Passed,
            ControlMessage::Failed("the cable is loose".into()),
            ControlMessage::Grant { channel: 3, memory },
        ] {
            let bytes = message.encode();
            assert_eq!(ControlMessage::decode(&bytes).as_ref(), Some(&message));
            for len in 0..bytes.len() {
                assert_eq!(ControlMessage::decode(&bytes[..len]), None, "{message:?}");
            }
            assert_eq!(ControlMessage::decode(&[&bytes[..], &[0]].concat()), None);
        }
        let long = ControlMessage::Failed("ä".repeat(MOST_TEXT)).encode();
        assert!(matches!(ControlMessage::decode(&long), Some(ControlMessage::Failed(_))));
        assert_eq!(ControlMessage::decode(&[9]), None);
    }
}
