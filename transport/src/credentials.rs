//! What an endpoint proves in every handshake with a peer.

use crate::Rank;
use crate::error::LinkError;
use crate::noise::{
    ANSWER_BYTES, Binding, DATA_BYTES, Dialer, FIRST_BYTES, Key, Listener, Purpose, Refusal,
    RefusedDialer,
};

/// The key of the communicator's links, and this rank's place in the communicator.
#[derive(Clone)]
pub(crate) struct Credentials {
    pub(crate) key: Key,
    pub(crate) rank: Rank,
    pub(crate) nranks: u32,
}

impl Credentials {
    /// Begins the handshake of connection number `stream` with rank `to`; returns the first message
    /// too.
    pub(crate) fn dial(
        &self,
        (purpose, stream): (Purpose, u32),
        to: Rank,
    ) -> Result<(Dialer, [u8; FIRST_BYTES]), LinkError> {
        let binding = Binding { purpose, from: self.rank, to, nranks: self.nranks, stream };
        Dialer::new(&self.key, &binding).map_err(|error| LinkError::system("getrandom", error))
    }

    /// Answers the first message of a rank of this communicator that dials this rank. Where memory
    /// is shared, it may also come to prove that it shares the host.
    pub(crate) fn answer(
        &self,
        purpose: Purpose,
        first: &[u8; FIRST_BYTES],
        data: &[u8; DATA_BYTES],
    ) -> Result<(Listener, [u8; ANSWER_BYTES]), RefusedDialer> {
        Listener::answer(&self.key, first, data, |binding| {
            // The lower rank dials, and over TCP the higher one too if the lower does not get
            // through. The higher one proves that it shares the host of the lower.
            let dials =
                binding.from < self.rank || purpose == Purpose::Tcp && binding.from != self.rank;
            let is_right = binding.purpose == purpose && dials
                || purpose == Purpose::Shm
                    && binding.purpose == Purpose::Host
                    && binding.from > self.rank;
            is_right && (binding.to, binding.nranks) == (self.rank, self.nranks)
        })
    }
}

/// The error of a dialer that was refused.
pub(crate) fn refused(peer: Rank, refusal: Refusal) -> LinkError {
    let why = match refusal {
        Refusal::UnknownKey | Refusal::OtherBinding => {
            "it does not accept this rank; the two hold different secrets or sizes"
        }
        Refusal::OtherVersion => "it runs another version of the library",
        Refusal::NoRandomNumbers => "its system gives it no random numbers",
        Refusal::NotMaypole => "what answers at its address is not Maypole",
        Refusal::Forged => {
            "it cannot prove that it belongs to the communicator, or its answer was changed on the \
             way"
        }
    };
    LinkError::Refused { peer, why }
}
