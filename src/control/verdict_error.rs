//! Verdicts as errors of the library, and errors as verdicts.

use maypole_algorithms::Rank;
use maypole_control::verdict::Verdict;
use maypole_transport::error::LinkError;

use crate::bootstrap::BootstrapError;
use crate::error::Error;

/// The error that every call returns after this verdict.
pub(super) fn error_of(verdict: &Verdict) -> Error {
    match verdict.clone() {
        Verdict::Dead { rank, .. } => LinkError::PeerDied { peer: rank }.into(),
        Verdict::Left { rank } => LinkError::PeerLeft { peer: rank }.into(),
        Verdict::LeftUnsent { rank, peers, messages, bytes } => {
            Error::LeftUnsent { rank, peers, messages, bytes }
        }
        Verdict::Mismatch { ranks, what } => Error::Mismatch { ranks, what },
        Verdict::Timeout { rank, peer, what, waited } => {
            Error::Timeout { rank, peer, what, waited }
        }
        Verdict::Aborted { by } => Error::Aborted { by },
        Verdict::Revoked { by } => Error::Revoked { by },
        other => BootstrapError::of(other, 0).into(),
    }
}

/// The verdict that a rank that fails with `error` sends to the others.
pub(super) fn verdict_of(rank: Rank, error: &Error) -> Verdict {
    match error.clone() {
        Error::Link(LinkError::PeerDied { peer }) => Verdict::Dead { rank: peer, seen_by: rank },
        Error::Link(LinkError::PeerLeft { peer }) => Verdict::Left { rank: peer },
        Error::LeftUnsent { rank, peers, messages, bytes } => {
            Verdict::LeftUnsent { rank, peers, messages, bytes }
        }
        Error::Mismatch { ranks, what } => Verdict::Mismatch { ranks, what },
        Error::Timeout { rank, peer, what, waited } => {
            Verdict::Timeout { rank, peer, what, waited }
        }
        Error::Aborted { by } => Verdict::Aborted { by },
        Error::Revoked { by } => Verdict::Revoked { by },
        Error::Bootstrap(error) => error.verdict(rank),
        other => Verdict::Failed { rank, why: other.to_string() },
    }
}
