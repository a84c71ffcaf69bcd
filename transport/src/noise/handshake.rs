//! The three messages of the handshake.

use std::io;
use std::mem::MaybeUninit;

use snow::{Builder, HandshakeState};
use zeroize::Zeroize;

use super::binding::{BINDING_BYTES, Binding};
use super::key::Key;
use super::session::{Session, TAG_BYTES};

/// Bytes of data that each end may give to the handshake.
pub const DATA_BYTES: usize = 32;
/// Bytes of the first message, from the dialer.
pub const FIRST_BYTES: usize = MAGIC.len() + POINT_BYTES + BINDING_BYTES + TAG_BYTES;
/// Bytes of the answer of the listener.
pub const ANSWER_BYTES: usize = REFUSAL_BYTES + POINT_BYTES + DATA_BYTES + TAG_BYTES;
/// Bytes of a refusal, which is sent in place of an answer.
pub const REFUSAL_BYTES: usize = ANSWER_MAGIC.len() + 1;
/// Bytes of the confirmation, from the dialer.
pub const CONFIRMATION_BYTES: usize = DATA_BYTES + TAG_BYTES;

const PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_SHA256";
/// How a first message begins. The last byte is the version of the protocol.
const MAGIC: [u8; 8] = *b"MAYPOLE\x02";
/// How an answer begins; a code follows.
const ANSWER_MAGIC: [u8; 7] = *b"maypole";
/// The code of an answer that is no refusal.
const ACCEPTED: u8 = 0;
/// Bytes of a public key of the Diffie-Hellman exchange.
const POINT_BYTES: usize = 32;

/// Why a handshake failed, as the dialer sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The listener says that it does not know the key.
    #[error("it does not know the secret of this rank")]
    UnknownKey,
    /// The listener says that the connection is for another rank or purpose.
    #[error("it is another rank or serves another purpose, or its communicator has another size")]
    OtherBinding,
    /// The listener speaks another version of the protocol.
    #[error("it is of another version of Maypole")]
    OtherVersion,
    /// The listener has no resources left.
    #[error("its system gives it no random numbers")]
    NoRandomNumbers,
    /// The other end does not speak the protocol.
    #[error("it is not Maypole")]
    NotMaypole,
    /// The answer was not made by one who knows the key, or was changed on its way.
    #[error("it cannot prove that it knows the secret, or its answer was changed on the way")]
    Forged,
}

/// A refusal, at the listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefusedDialer {
    /// Why the dialer was refused.
    pub refusal: Refusal,
    /// What to send to it, if anything.
    pub reply: Option<[u8; REFUSAL_BYTES]>,
}

/// The dialing end, until the answer of the listener.
pub struct Dialer(ErasedState);

/// The state of a handshake, with the pre-shared key. Its memory is erased when it is dropped,
/// which `snow` does not do itself.
struct ErasedState(Box<MaybeUninit<HandshakeState>>);

/// The listening end, until the confirmation of the dialer.
pub struct Listener {
    binding: Binding,
    session: Session,
}

impl Dialer {
    /// Begins a handshake; returns the first message too.
    ///
    /// # Errors
    /// The kernel gives no random numbers.
    pub fn new(key: &Key, binding: &Binding) -> io::Result<(Self, [u8; FIRST_BYTES])> {
        let state = builder(key).build_initiator().map_err(io::Error::other)?;
        let mut state = ErasedState::new(state);
        let mut first = [0; FIRST_BYTES];
        let (magic, rest) = first.split_at_mut(MAGIC.len());
        magic.copy_from_slice(&MAGIC);
        state.get().write_message(&binding.encode(), rest).map_err(io::Error::other)?;
        Ok((Self(state), first))
    }

    /// Reads the answer of the listener. Returns the session, the data of the listener, and the
    /// confirmation, with `data`, to send to it.
    ///
    /// # Errors
    /// A refusal.
    pub fn finish(
        mut self,
        answer: &[u8; ANSWER_BYTES],
        data: &[u8; DATA_BYTES],
    ) -> Result<(Session, [u8; DATA_BYTES], [u8; CONFIRMATION_BYTES]), Refusal> {
        let (head, rest) = answer.split_first_chunk().expect("an answer is longer");
        if let Some(refusal) = refusal_in(head) {
            return Err(refusal);
        }
        let mut theirs = [0; DATA_BYTES];
        self.0.get().read_message(rest, &mut theirs).map_err(|_| Refusal::Forged)?;
        let mut session = session(self.0, true);
        let mut sealed = Vec::with_capacity(CONFIRMATION_BYTES);
        session.seal(&[], data, &mut sealed);
        let mut confirmation = [0; CONFIRMATION_BYTES];
        confirmation.copy_from_slice(&sealed);
        Ok((session, theirs, confirmation))
    }
}

impl Listener {
    /// Reads a first message. If its dialer knows the key, and `accepts` its binding, returns the
    /// answer, with `data`, to send to it.
    ///
    /// # Errors
    /// The dialer is refused.
    pub fn answer(
        key: &Key,
        first: &[u8; FIRST_BYTES],
        data: &[u8; DATA_BYTES],
        accepts: impl FnOnce(&Binding) -> bool,
    ) -> Result<(Self, [u8; ANSWER_BYTES]), RefusedDialer> {
        let (magic, rest) = first.split_first_chunk().expect("a first message is longer");
        if magic[..MAGIC.len() - 1] != MAGIC[..MAGIC.len() - 1] {
            return Err(RefusedDialer { refusal: Refusal::NotMaypole, reply: None });
        }
        if *magic != MAGIC {
            return Err(refused(Refusal::OtherVersion));
        }
        let no_random = refused(Refusal::NoRandomNumbers);
        let state = builder(key).build_responder().map_err(|_| no_random)?;
        let mut state = ErasedState::new(state);
        let mut binding = [0; BINDING_BYTES];
        let opened = state.get().read_message(rest, &mut binding);
        opened.map_err(|_| refused(Refusal::UnknownKey))?;
        let binding = Binding::decode(&binding).filter(accepts);
        let binding = binding.ok_or(refused(Refusal::OtherBinding))?;
        let mut answer = [0; ANSWER_BYTES];
        answer[..ANSWER_MAGIC.len()].copy_from_slice(&ANSWER_MAGIC);
        answer[ANSWER_MAGIC.len()] = ACCEPTED;
        state.get().write_message(data, &mut answer[REFUSAL_BYTES..]).map_err(|_| no_random)?;
        Ok((Self { binding, session: session(state, false) }, answer))
    }

    /// What the dialer wants. It may have sent the first message long ago, or someone may repeat
    /// it: only the confirmation shows that the dialer is there.
    pub fn binding(&self) -> &Binding {
        &self.binding
    }

    /// Reads the confirmation of the dialer, which is then accepted. Returns its data too.
    ///
    /// # Errors
    /// [`Refusal::Forged`].
    pub fn finish(
        mut self,
        confirmation: &[u8; CONFIRMATION_BYTES],
    ) -> Result<(Session, Binding, [u8; DATA_BYTES]), Refusal> {
        let mut opened = Vec::with_capacity(DATA_BYTES);
        self.session.open(&[], confirmation, &mut opened).map_err(|_| Refusal::Forged)?;
        let data = opened.first_chunk().ok_or(Refusal::Forged)?;
        Ok((self.session, self.binding, *data))
    }
}

/// Why the listener refused the dialer, if an answer begins like this. The rest of a refusal never
/// comes.
pub fn refusal_in(head: &[u8; REFUSAL_BYTES]) -> Option<Refusal> {
    let (code, magic) = head.split_last().expect("it is longer");
    if *magic != ANSWER_MAGIC {
        return Some(Refusal::NotMaypole);
    }
    match *code {
        ACCEPTED => None,
        1 => Some(Refusal::UnknownKey),
        2 => Some(Refusal::OtherBinding),
        3 => Some(Refusal::OtherVersion),
        4 => Some(Refusal::NoRandomNumbers),
        _ => Some(Refusal::NotMaypole),
    }
}

fn refused(refusal: Refusal) -> RefusedDialer {
    let code = match refusal {
        Refusal::UnknownKey => 1,
        Refusal::OtherBinding => 2,
        Refusal::OtherVersion => 3,
        Refusal::NoRandomNumbers => 4,
        Refusal::NotMaypole | Refusal::Forged => {
            return RefusedDialer { refusal, reply: None };
        }
    };
    let mut reply = [code; REFUSAL_BYTES];
    reply[..ANSWER_MAGIC.len()].copy_from_slice(&ANSWER_MAGIC);
    RefusedDialer { refusal, reply: Some(reply) }
}

fn builder(key: &Key) -> Builder<'_> {
    let pattern = PATTERN.parse().expect("the pattern is well-formed");
    let builder = Builder::new(pattern).psk(0, key.bytes());
    let builder = builder.and_then(|builder| builder.prologue(&MAGIC));
    builder.expect("the pattern has a place for one key")
}

/// The session of a handshake whose messages were exchanged.
fn session(mut state: ErasedState, dials: bool) -> Session {
    let state = state.get();
    let (mut from_dialer, mut from_listener) = state.dangerously_get_raw_split();
    let keys = (Key::new(from_dialer), Key::new(from_listener));
    from_dialer.zeroize();
    from_listener.zeroize();
    // The hash of the messages alone would not do: whoever learns the pre-shared key can compute it
    // from what was recorded.
    let exporter = keys.0.derive("exporter", &[keys.1.bytes(), state.get_handshake_hash()]);
    let (send, receive) = if dials { (keys.0, keys.1) } else { (keys.1, keys.0) };
    Session::new(send, receive, exporter)
}

impl ErasedState {
    fn new(state: HandshakeState) -> Self {
        Self(Box::new(MaybeUninit::new(state)))
    }

    fn get(&mut self) -> &mut HandshakeState {
        // SAFETY: `new` has initialized it, and only the drop ends that.
        unsafe { self.0.assume_init_mut() }
    }
}

impl Drop for ErasedState {
    fn drop(&mut self) {
        // SAFETY: it is initialized, and used no more.
        unsafe { self.0.assume_init_drop() };
        self.0.zeroize();
    }
}
