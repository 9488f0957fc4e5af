//! The text of a token: `cdr_<id>_<secret>`; of a join token: `cdr_<id>_<secret>.<fingerprint of the CA>`.

use sha2::{Digest, Sha256};

/// A token as it was shown.
pub(super) struct Bearer {
    pub(super) id: String,
    pub(super) hash: [u8; 32],
}

impl Bearer {
    /// `None`: it cannot be a token of ours. The alphabet and the lengths are fixed, so that nothing else of a foreign
    /// text goes on to the ledger or into the log.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (id, secret) = text.strip_prefix("cdr_")?.split_once('_')?;
        let hex = |text: &str, length| text.len() == length && text.bytes().all(|b| b.is_ascii_hexdigit());
        (hex(id, ID_DIGITS) && hex(secret, SECRET_DIGITS))
            .then(|| Self { id: id.to_owned(), hash: hash(secret) })
    }
}

const ID_DIGITS: usize = 12;
const SECRET_DIGITS: usize = 64;

/// A new token: its text, its id, and the hash that is kept.
pub(super) fn new() -> (String, String, [u8; 32]) {
    let digits = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let id = digits(&rand::random::<[u8; ID_DIGITS / 2]>());
    let secret = digits(&rand::random::<[u8; SECRET_DIGITS / 2]>());
    (format!("cdr_{id}_{secret}"), id, hash(&secret))
}

/// 256 random bits need no slow hash: there is no dictionary of them.
fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_token_reads_back_as_its_id_and_hash() {
        let (text, id, hash) = new();
        let bearer = Bearer::parse(&text).expect("ours");
        assert_eq!((bearer.id, bearer.hash), (id, hash));
        assert_ne!(new().0, text);
    }

    #[test]
    fn what_is_no_token_of_ours_is_none() {
        let (text, ..) = new();
        let longer = format!("{text}0");
        for bad in ["", "cdr_", "cdr_a_b", "Bearer x", &text[1..], &longer, "cdr_%27%20OR%201_1", &text[..50]]
        {
            assert!(Bearer::parse(bad).is_none(), "{bad}");
        }
    }
}
