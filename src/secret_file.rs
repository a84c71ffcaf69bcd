//! The secret that ranks have in common in the file that `MAYPOLE_SECRET_FILE` names: a key, or a
//! phrase from which a key is made.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use argon2::{Algorithm, Argon2, Params, Version};
use maypole_transport::noise::{KEY_BYTES, Key, sha256};
use zeroize::Zeroizing;

use crate::process::PerProcess;

/// Fewest bytes of a phrase.
const LEAST_PHRASE: usize = 16;
/// Most bytes of a file.
const MOST_BYTES: usize = 64 << 10;
/// The salt of the keys of phrases. All ranks must make the same key without telling each other
/// anything, so it cannot be random.
const SALT: &[u8] = b"maypole secret file 1";
/// What making a key of a phrase costs: memory in KiB, and passes over it. About a tenth of a
/// second on a core, so that a phrase that was recorded in use cannot be guessed fast.
const COST: (u32, u32) = (32 << 10, 3);

/// Keys of phrases, each with the hash of its phrase.
type KeysOfPhrases = Vec<([u8; KEY_BYTES], Key)>;

/// The keys that this process has made: several ranks of a process read the same file.
static MADE: PerProcess<Mutex<KeysOfPhrases>> = PerProcess::new();

/// Reads the file. Its content is a key if it is 64 hexadecimal digits or 32 bytes that are not all
/// text, and otherwise a phrase. A line feed at the end of a text does not count.
///
/// # Errors
/// What is wrong with the file, and what to do.
pub(crate) fn read(path: &Path) -> Result<Key, String> {
    let name = path.display();
    let failed = |error: std::io::Error| format!("{name}: {error}");
    let file = File::open(path).map_err(failed)?;
    // Of the file that is open, and not of another one that is put in its place meanwhile.
    let mode = file.metadata().map_err(failed)?.mode();
    if mode & 0o077 != 0 {
        return Err(format!(
            "{name} can be read or written by other users (its mode is {:03o}); run `chmod 600 \
             {name}`",
            mode & 0o777
        ));
    }
    let mut content = Zeroizing::new(Vec::with_capacity(MOST_BYTES));
    file.take(MOST_BYTES as u64).read_to_end(&mut content).map_err(failed)?;
    if content.len() == MOST_BYTES {
        return Err(format!("{name} is longer than a secret; at most {MOST_BYTES} bytes are read"));
    }
    let is_text = |bytes: &[u8]| bytes.iter().all(|byte| matches!(byte, b' '..=b'~' | b'\t'));
    if let Ok(bytes) = <[u8; KEY_BYTES]>::try_from(&content[..])
        && !is_text(&bytes)
    {
        return Ok(Key::new(bytes));
    }
    let text = content.strip_suffix(b"\n").unwrap_or(&content);
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    if let Some(key) = key_of_digits(text) {
        return Ok(key);
    }
    if text.len() < LEAST_PHRASE {
        return Err(format!(
            "{name} has {} bytes; at least {LEAST_PHRASE} are needed, best are the 32 of `head -c \
             32 /dev/urandom`",
            text.len()
        ));
    }
    key_of_phrase(text)
}

/// The key that ranks have in common without a file, which is no secret. It is for networks on
/// which everyone is trusted.
pub(crate) fn public_key() -> Key {
    Key::new(sha256(&[b"maypole trusts this network"]))
}

/// The key of 64 hexadecimal digits.
fn key_of_digits(text: &[u8]) -> Option<Key> {
    if text.len() != 2 * KEY_BYTES || !text.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    for (byte, digits) in bytes.iter_mut().zip(text.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(Key::new(*bytes))
}

/// The key of a phrase, which is slow to make (Argon2id).
fn key_of_phrase(phrase: &[u8]) -> Result<Key, String> {
    let hash = sha256(&[b"phrase", phrase]);
    // Held while a key is made, so that ranks in threads do not all make the same one.
    let mut made = MADE.get().lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, key)) = made.iter().find(|(of, _)| *of == hash) {
        return Ok(key.clone());
    }
    let params = Params::new(COST.0, COST.1, 1, Some(KEY_BYTES));
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    params
        .and_then(|params| {
            let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
            argon2.hash_password_into(phrase, SALT, &mut *bytes)
        })
        .map_err(|error| format!("no key can be made of the phrase: {error}"))?;
    let key = Key::new(*bytes);
    made.push((hash, key.clone()));
    Ok(key)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// What is read from a file with this mode and content.
    fn read_file(mode: u32, content: &[u8]) -> Result<[u8; KEY_BYTES], String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        std::fs::set_permissions(file.path(), Permissions::from_mode(mode)).unwrap();
        read(file.path()).map(|key| *key.bytes())
    }

    #[test]
    fn a_file_that_others_can_read_or_write_is_refused() {
        for mode in [0o640, 0o604, 0o620, 0o602, 0o644, 0o777] {
            let error = read_file(mode, &[7; 32]).unwrap_err();
            assert!(error.contains("chmod 600") && error.contains(&format!("{mode:o}")), "{error}");
        }
        for mode in [0o600, 0o400, 0o700] {
            assert_eq!(read_file(mode, &[7; 32]).unwrap(), [7; 32]);
        }
    }

    #[test]
    fn keys_are_taken_as_they_are_and_phrases_are_not() {
        let key: [u8; 32] = std::array::from_fn(|at| at as u8 * 8);
        let digits: String = key.iter().map(|byte| format!("{byte:02X}")).collect();
        assert_eq!(read_file(0o600, &key).unwrap(), key);
        assert_eq!(read_file(0o600, digits.as_bytes()).unwrap(), key);
        assert_eq!(read_file(0o600, format!("{digits}\r\n").as_bytes()).unwrap(), key);
        // 32 characters, and 64 of which one is no digit, are phrases.
        let phrase = b"thirty-two characters of a text.";
        assert_eq!(phrase.len(), KEY_BYTES);
        let of_phrase = read_file(0o600, phrase).unwrap();
        assert_ne!(&of_phrase, phrase);
        assert_eq!(read_file(0o600, &[&phrase[..], b"\n"].concat()).unwrap(), of_phrase);
        let text = format!("{}g", &digits[1..]);
        assert_ne!(read_file(0o600, text.as_bytes()).unwrap(), of_phrase);
    }

    #[test]
    fn the_key_of_a_phrase_is_argon2id() {
        let key = read_file(0o600, b"correct horse battery staple\n").unwrap();
        let digits: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        // As the reference implementation makes it (argon2-cffi 25.1, hash_secret_raw).
        assert_eq!(digits, "9f041af351f2489154fbf5ddcc628f47ef31578c63e0bc49083844547677c3d1");
    }

    #[test]
    fn short_long_and_missing_files_are_refused() {
        let error = read_file(0o600, b"fifteen letters\n").unwrap_err();
        assert!(error.contains("has 15 bytes; at least 16"), "{error}");
        let error = read_file(0o600, &[b'x'; MOST_BYTES]).unwrap_err();
        assert!(error.contains("longer"), "{error}");
        let error = read(Path::new("/nonexistent/secret")).unwrap_err();
        assert!(error.starts_with("/nonexistent/secret: "), "{error}");
    }
}
