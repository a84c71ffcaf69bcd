//! The control messages by which two ranks make an RDMA connection. They travel sealed over the TCP
//! connection of the two, and so do the keys by which each lets the other write to its memory.

use maypole_verbs::{Gid, RemoteMemory};

use super::domain::MOST_PATHS;

/// Bytes of text that a message carries at most.
const MOST_TEXT: usize = 1024;
/// Most queue pairs between two ranks.
pub(super) const MOST_QUEUES: usize = 16;

/// A control message. Those about a path have its number, and the number of the attempt to make it,
/// so that late ones are told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ControlMessage {
    /// The first: the number of ports that the sender uses.
    Ports(u8),
    /// What the other end needs to make a path.
    Hello(PathAttempt, Hello),
    /// The queue pairs of the sender take what arrives.
    Ready(PathAttempt),
    /// The trial of the sender has passed.
    Passed(PathAttempt),
    /// The path cannot be made, with the reason.
    Failed(PathAttempt, String),
    /// What has arrived on a channel before the queue pairs of a path were ended: the messages up
    /// to `released`, and those which are so much later.
    Arrived {
        /// The path.
        attempt: PathAttempt,
        /// The channel.
        channel: u16,
        /// Sequence of the last message that is released.
        released: u64,
        /// How much later than `released` the sequences of others are.
        later: Vec<u16>,
    },
    /// The queue pairs of a path are ended, for this reason. Everything that has arrived was told.
    Stopped(PathAttempt, String),
    /// The sender can make this path again. Only the lower rank begins.
    Retry(u8),
    /// The receiver of a link grants its slots.
    Grant {
        /// The channel.
        channel: u16,
        /// The address of the first slot.
        address: u64,
        /// The key for each port of the granting rank; 0 where there is none.
        keys: Vec<u32>,
    },
    /// The sender gives up the whole connection, with the reason.
    Broken(String),
}

/// The number of a path, and of the attempt to make it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PathAttempt {
    pub(super) path: u8,
    pub(super) number: u32,
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
        let kind = |out: &mut Vec<u8>, kind: u8, attempt: &PathAttempt| {
            out.extend([kind, attempt.path]);
            out.extend(attempt.number.to_le_bytes());
        };
        match self {
            Self::Ports(count) => out.extend([0, *count]),
            Self::Hello(attempt, hello) => {
                kind(&mut out, 1, attempt);
                hello.encode(&mut out);
            }
            Self::Ready(attempt) => kind(&mut out, 2, attempt),
            Self::Passed(attempt) => kind(&mut out, 3, attempt),
            Self::Failed(attempt, why) => {
                kind(&mut out, 4, attempt);
                push_text(&mut out, why);
            }
            Self::Arrived { attempt, channel, released, later } => {
                kind(&mut out, 5, attempt);
                out.extend(channel.to_le_bytes());
                out.extend(released.to_le_bytes());
                out.extend((later.len() as u16).to_le_bytes());
                later.iter().for_each(|offset| out.extend(offset.to_le_bytes()));
            }
            Self::Stopped(attempt, why) => {
                kind(&mut out, 6, attempt);
                push_text(&mut out, why);
            }
            Self::Retry(path) => out.extend([7, *path]),
            Self::Grant { channel, address, keys } => {
                out.push(8);
                out.extend(channel.to_le_bytes());
                out.extend(address.to_le_bytes());
                out.push(keys.len() as u8);
                keys.iter().for_each(|key| out.extend(key.to_le_bytes()));
            }
            Self::Broken(why) => {
                out.push(9);
                push_text(&mut out, why);
            }
        }
        out
    }

    /// `None` if no correct peer sends these bytes.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = ByteReader(bytes);
        let message = match reader.byte()? {
            0 => Self::Ports(reader.byte()?),
            1 => Self::Hello(reader.attempt()?, Hello::decode(&mut reader)?),
            2 => Self::Ready(reader.attempt()?),
            3 => Self::Passed(reader.attempt()?),
            4 => Self::Failed(reader.attempt()?, reader.text()?),
            5 => Self::Arrived {
                attempt: reader.attempt()?,
                channel: u16::from_le_bytes(reader.take()?),
                released: u64::from_le_bytes(reader.take()?),
                later: {
                    let count = u16::from_le_bytes(reader.take()?);
                    let mut offset = || Some(u16::from_le_bytes(reader.take()?));
                    (0..count).map(|_| offset()).collect::<Option<_>>()?
                },
            },
            6 => Self::Stopped(reader.attempt()?, reader.text()?),
            7 => Self::Retry(reader.byte()?),
            8 => Self::Grant {
                channel: u16::from_le_bytes(reader.take()?),
                address: u64::from_le_bytes(reader.take()?),
                keys: {
                    let count = usize::from(reader.byte()?);
                    if count > MOST_PATHS {
                        return None;
                    }
                    (0..count).map(|_| reader.word()).collect::<Option<_>>()?
                },
            },
            9 => Self::Broken(reader.text()?),
            _ => return None,
        };
        reader.0.is_empty().then_some(message)
    }
}

impl Hello {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.gid.0);
        out.push(self.global.into());
        out.extend(self.lid.to_le_bytes());
        out.extend(self.mtu.to_le_bytes());
        out.extend(self.first_packet.to_le_bytes());
        out.extend(self.trial_queue.to_le_bytes());
        out.push(self.queues.len() as u8);
        self.queues.iter().for_each(|number| out.extend(number.to_le_bytes()));
        out.extend(self.scratch.address.to_le_bytes());
        out.extend(self.scratch.key.to_le_bytes());
        push_text(out, &self.device);
    }

    fn decode(reader: &mut ByteReader<'_>) -> Option<Self> {
        Some(Self {
            gid: Gid(reader.take()?),
            global: reader.byte()? == 1,
            lid: u16::from_le_bytes(reader.take()?),
            mtu: reader.word()?,
            first_packet: reader.word()?,
            trial_queue: reader.word()?,
            queues: {
                let count = usize::from(reader.byte()?);
                if count == 0 || count > MOST_QUEUES {
                    return None;
                }
                (0..count).map(|_| reader.word()).collect::<Option<_>>()?
            },
            scratch: reader.memory()?,
            device: reader.text()?,
        })
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

    fn byte(&mut self) -> Option<u8> {
        Some(self.take::<1>()?[0])
    }

    fn attempt(&mut self) -> Option<PathAttempt> {
        Some(PathAttempt { path: self.byte()?, number: self.word()? })
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
        let attempt = PathAttempt { path: 1, number: 7 };
        for message in [
            ControlMessage::Ports(2),
            ControlMessage::Hello(attempt, hello),
            ControlMessage::Ready(attempt),
            ControlMessage::Passed(attempt),
            ControlMessage::Failed(attempt, "the cable is loose".into()),
            ControlMessage::Arrived { attempt, channel: 2, released: 99, later: vec![2, 5] },
            ControlMessage::Stopped(attempt, "no answer".into()),
            ControlMessage::Retry(1),
            ControlMessage::Grant { channel: 3, address: 1 << 50, keys: vec![7, 0] },
            ControlMessage::Broken("no path".into()),
        ] {
            let bytes = message.encode();
            assert_eq!(ControlMessage::decode(&bytes).as_ref(), Some(&message));
            for len in 0..bytes.len() {
                assert_eq!(ControlMessage::decode(&bytes[..len]), None, "{message:?}");
            }
            assert_eq!(ControlMessage::decode(&[&bytes[..], &[0]].concat()), None);
        }
        let long = ControlMessage::Broken("ä".repeat(MOST_TEXT)).encode();
        assert!(matches!(ControlMessage::decode(&long), Some(ControlMessage::Broken(_))));
        assert_eq!(ControlMessage::decode(&[10]), None);
    }
}
