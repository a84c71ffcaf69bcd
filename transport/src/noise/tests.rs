//! Attacks on the handshake and on the records after it: another key, another binding, every bit
//! changed, messages that are repeated, reflected, moved or cut off.

use super::*;

const BINDING: Binding = Binding { purpose: Purpose::Tcp, from: 2, to: 5, nranks: 8, stream: 3 };
const FROM_LISTENER: [u8; DATA_BYTES] = [0xa1; DATA_BYTES];
const FROM_DIALER: [u8; DATA_BYTES] = [0xb2; DATA_BYTES];

fn key(byte: u8) -> Key {
    Key::new([byte; KEY_BYTES])
}

fn answer(first: &[u8; FIRST_BYTES]) -> Result<(Listener, [u8; ANSWER_BYTES]), RefusedDialer> {
    Listener::answer(&key(1), first, &FROM_LISTENER, |binding| *binding == BINDING)
}

/// The sessions of the dialer and of the listener.
fn sessions() -> (Session, Session) {
    let (dialer, first) = Dialer::new(&key(1), &BINDING).unwrap();
    let (listener, answer) = answer(&first).unwrap();
    assert_eq!(*listener.binding(), BINDING);
    let (at_dialer, data, confirmation) = dialer.finish(&answer, &FROM_DIALER).unwrap();
    assert_eq!(data, FROM_LISTENER);
    let (at_listener, binding, data) = listener.finish(&confirmation).unwrap();
    assert_eq!((binding, data), (BINDING, FROM_DIALER));
    (at_dialer, at_listener)
}

fn sealed(session: &mut Session, plain: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    session.write_records(plain, &mut out);
    out
}

fn opened(session: &mut Session, mut records: Vec<u8>) -> Result<Vec<u8>, ForgedRecord> {
    let mut out = Vec::new();
    session.read_records(&mut records, &mut out)?;
    assert!(records.is_empty(), "a record is incomplete");
    Ok(out)
}

#[test]
fn both_ends_get_the_data_the_keys_and_the_records_of_each_other() {
    let (mut dialer, mut listener) = sessions();
    for plain in [&b"one"[..], b"", &[5; 200_000], b"two"] {
        let records = sealed(&mut dialer, plain);
        assert_eq!(opened(&mut listener, records).unwrap(), plain);
        let records = sealed(&mut listener, plain);
        assert_eq!(opened(&mut dialer, records).unwrap(), plain);
    }
    assert_eq!(dialer.derive("a").bytes(), listener.derive("a").bytes());
    assert_ne!(dialer.derive("a").bytes(), listener.derive("b").bytes());
    let (other, _) = sessions();
    assert_ne!(dialer.derive("a").bytes(), other.derive("a").bytes());
}

#[test]
fn another_key_or_binding_is_refused_and_the_dialer_learns_which() {
    let (_, first) = Dialer::new(&key(2), &BINDING).unwrap();
    let refused = answer(&first).err().unwrap();
    assert_eq!(refused.refusal, Refusal::UnknownKey);
    assert_eq!(refusal_in(&refused.reply.unwrap()), Some(Refusal::UnknownKey));
    for other in [
        Binding { purpose: Purpose::Shm, ..BINDING },
        Binding { from: 1, ..BINDING },
        Binding { to: 6, ..BINDING },
        Binding { nranks: 9, ..BINDING },
        Binding { stream: 4, ..BINDING },
        Binding { from: 8, ..BINDING },
    ] {
        let (_, first) = Dialer::new(&key(1), &other).unwrap();
        let refused = answer(&first).err().unwrap();
        assert_eq!(refused.refusal, Refusal::OtherBinding, "{other:?}");
        assert_eq!(refusal_in(&refused.reply.unwrap()), Some(Refusal::OtherBinding));
    }
    let (_, mut first) = Dialer::new(&key(1), &BINDING).unwrap();
    first[7] += 1;
    assert_eq!(answer(&first).err().unwrap().refusal, Refusal::OtherVersion);
    // Who does not speak the protocol gets no answer.
    let stranger = answer(&[b'x'; FIRST_BYTES]).err().unwrap();
    assert_eq!(stranger, RefusedDialer { refusal: Refusal::NotMaypole, reply: None });
}

#[test]
fn a_listener_without_the_key_cannot_answer() {
    let (dialer, first) = Dialer::new(&key(1), &BINDING).unwrap();
    // It has the key of another communicator, and pretends to have decrypted the message.
    let (_, other) = Dialer::new(&key(2), &BINDING).unwrap();
    let (_, forged) = Listener::answer(&key(2), &other, &FROM_LISTENER, |_| true).ok().unwrap();
    assert_eq!(dialer.finish(&forged, &FROM_DIALER).err(), Some(Refusal::Forged));
    // The first message itself, as the answer, with and without its magic.
    let mut reflected = [0; ANSWER_BYTES];
    reflected.copy_from_slice(&first);
    let (dialer, _) = Dialer::new(&key(1), &BINDING).unwrap();
    assert_eq!(dialer.finish(&reflected, &FROM_DIALER).err(), Some(Refusal::NotMaypole));
    reflected[..REFUSAL_BYTES].copy_from_slice(b"maypole\0");
    let (dialer, _) = Dialer::new(&key(1), &BINDING).unwrap();
    assert_eq!(dialer.finish(&reflected, &FROM_DIALER).err(), Some(Refusal::Forged));
}

#[test]
fn every_changed_bit_of_every_message_is_noticed() {
    let (_, first) = Dialer::new(&key(1), &BINDING).unwrap();
    for bit in 0..8 * FIRST_BYTES {
        let mut damaged = first;
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(answer(&damaged).is_err(), "bit {bit} of the first message");
    }
    for bit in 0..8 * ANSWER_BYTES {
        let (dialer, first) = Dialer::new(&key(1), &BINDING).unwrap();
        let (_, mut answer) = answer(&first).unwrap();
        answer[bit / 8] ^= 1 << (bit % 8);
        assert!(dialer.finish(&answer, &FROM_DIALER).is_err(), "bit {bit} of the answer");
    }
    for bit in 0..8 * CONFIRMATION_BYTES {
        let (dialer, first) = Dialer::new(&key(1), &BINDING).unwrap();
        let (listener, answer) = answer(&first).unwrap();
        let (_, _, mut confirmation) = dialer.finish(&answer, &FROM_DIALER).unwrap();
        confirmation[bit / 8] ^= 1 << (bit % 8);
        assert!(listener.finish(&confirmation).is_err(), "bit {bit} of the confirmation");
    }
}

#[test]
fn a_replayed_handshake_is_never_confirmed() {
    let (dialer, first) = Dialer::new(&key(1), &BINDING).unwrap();
    let (listener, recorded_answer) = answer(&first).unwrap();
    let (_, _, confirmation) = dialer.finish(&recorded_answer, &FROM_DIALER).unwrap();
    listener.finish(&confirmation).unwrap();
    // The first message again: the listener answers, with a fresh key, and refuses what follows.
    let (listener, new_answer) = answer(&first).unwrap();
    assert_ne!(new_answer[REFUSAL_BYTES..], recorded_answer[REFUSAL_BYTES..]);
    assert!(listener.finish(&confirmation).is_err());
    // The answer again, to another dialer.
    let (dialer, _) = Dialer::new(&key(1), &BINDING).unwrap();
    assert_eq!(dialer.finish(&recorded_answer, &FROM_DIALER).err(), Some(Refusal::Forged));
}

#[test]
fn records_that_are_changed_dropped_repeated_moved_or_reflected_are_refused() {
    let plain = b"a secret of many bytes";
    for bit in 0..8 * (2 + plain.len() + TAG_BYTES) {
        let (mut dialer, mut listener) = sessions();
        let mut records = sealed(&mut dialer, plain);
        assert!(!records.windows(6).any(|part| part == b"secret"));
        records[bit / 8] ^= 1 << (bit % 8);
        // More than any changed length.
        records.extend([0; 1 << 16]);
        let mut out = Vec::new();
        assert_eq!(listener.read_records(&mut records, &mut out), Err(ForgedRecord), "bit {bit}");
        assert!(out.is_empty());
        // The connection does not recover.
        let next = sealed(&mut dialer, plain);
        assert_eq!(opened(&mut listener, next), Err(ForgedRecord));
    }
    let attack = |change: fn(&mut Session, [Vec<u8>; 3]) -> Vec<u8>| {
        let (mut dialer, mut listener) = sessions();
        let three = [b"one", b"two", b"six"].map(|text| sealed(&mut dialer, text));
        opened(&mut listener, change(&mut dialer, three))
    };
    assert_eq!(attack(|_, [one, two, three]| [one, two, three].concat()).unwrap(), b"onetwosix");
    assert!(attack(|_, [_, two, _]| two).is_err(), "dropped");
    assert!(attack(|_, [one, _, _]| [one.clone(), one].concat()).is_err(), "repeated");
    assert!(attack(|_, [one, two, three]| [one, three, two].concat()).is_err(), "moved");
    assert!(attack(|_, [one, ..]| [one, vec![0; 2]].concat()).is_err(), "an empty record injected");
    let (mut dialer, _) = sessions();
    let own = sealed(&mut dialer, plain);
    assert_eq!(opened(&mut dialer, own), Err(ForgedRecord), "reflected");
    // From another connection of the same ranks.
    let (mut other, _) = sessions();
    let (_, mut listener) = sessions();
    assert_eq!(opened(&mut listener, sealed(&mut other, plain)), Err(ForgedRecord), "spliced");
}

#[test]
fn records_arrive_in_pieces() {
    let (mut dialer, mut listener) = sessions();
    let plain: Vec<u8> = (0..150_000_u32).map(|i| (i * 7) as u8).collect();
    let records = sealed(&mut dialer, &plain);
    let (mut received, mut out) = (Vec::new(), Vec::new());
    for piece in records.chunks(7001) {
        received.extend(piece);
        listener.read_records(&mut received, &mut out).unwrap();
        assert!(received.len() <= 1 << 16, "more than one record is kept");
    }
    assert_eq!(out, plain);
}
