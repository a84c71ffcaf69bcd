//! The handshake with which every connection of this library begins, and the session that follows
//! it. Bytes go in and bytes come out; sockets, clocks and threads are the business of the callers.
//!
//! The handshake is `Noise_NNpsk0_25519_ChaChaPoly_SHA256` of the Noise protocol framework
//! (<https://noiseprotocol.org>), by the crate `snow`. Its pre-shared key is a [`Key`] that only
//! the ranks of one communicator know.
//!
//! ```text
//! dialer   -> first message  magic, e, { binding }            88 bytes
//! listener -> answer         magic and code, e, { data }      88 bytes; a refusal has the first 8
//! dialer   -> confirmation   { data }                         48 bytes
//! both     -> records of the session
//! ```
//!
//! `e` is a fresh key of the Diffie-Hellman exchange; braces are encrypted and authenticated.
//!
//! - The dialer proves first: the listener cannot decrypt a first message that was made without the
//!   key. Of a stranger it reads 88 bytes, interprets none, and keeps nothing.
//! - The [`Binding`] says what the connection is for, and between which ranks. A first message is
//!   refused everywhere else. Communicators have unrelated keys, so it is refused there too.
//! - The listener accepts the dialer at its confirmation, which only the owner of this first
//!   message's secret can make. A replayed first message gets an answer that nobody can read.
//! - The two directions have different keys, so nothing can be reflected. Records are numbered, so
//!   none can be dropped, repeated or moved without an error.
//! - Whoever learns the pre-shared key later cannot decrypt what was recorded before.
//!
//! A listener that cannot decrypt a first message may answer with a refusal, so that a rank with
//! the wrong unique id gets an error that says so. A refusal is not authenticated: someone on the
//! path can forge it, just as they can end a connection.
//!
//! | file | purpose |
//! |---|---|
//! | `key` | secrets, and the keys that are derived from them |
//! | `secret_memory` | where their bytes are |
//! | `binding` | what a handshake is bound to |
//! | `session` | the keys of a connection, and its records |
//! | `handshake` | the three messages |

mod binding;
mod handshake;
mod key;
mod secret_memory;
mod session;
#[cfg(test)]
mod tests;

pub use binding::{Binding, Purpose};
pub use handshake::{
    ANSWER_BYTES, CONFIRMATION_BYTES, DATA_BYTES, Dialer, FIRST_BYTES, Listener, REFUSAL_BYTES,
    Refusal, RefusedDialer, refusal_in,
};
pub use key::{KEY_BYTES, Key, random, sha256};
pub use session::{ForgedRecord, Session, TAG_BYTES};
