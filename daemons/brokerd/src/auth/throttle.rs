//! Slows down who shows wrong tokens.
//!
//! A secret of 256 bits is not found by guessing; what has to be bounded is the work and the log that guesses make. So an
//! address that shows wrong tokens is held up, and what it asks costs neither a look into the ledger nor a line of the
//! log. Others behind the same address must not suffer for it: a token with the id of one that exists is
//! counted by itself, and held up for its own wrong secrets alone. (That tells a guesser which ids exist. They are no
//! secret: 48 bits, shown by `token list`.) One that was verified a moment ago is not held up at all.

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

use codering_core::{Code, Error};

/// Wrong tokens that may be shown at once: by an address, and from there for one id.
pub(super) const BURST: u32 = 20;
/// One of them is forgiven in this time. REST's `retry-after` says the same.
const FORGIVEN_IN: Duration = Duration::from_secs(3);
/// Addresses, and ids at an address, that are remembered; as many of each.
const REMEMBERED: usize = 8192;
/// What is said again of the same address is said this often.
const SAID_EVERY: Duration = Duration::from_secs(10);

/// Wrong tokens, forgotten with time.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    /// All that an address showed.
    addresses: Counted<IpAddr>,
    /// What it showed with the id of a token that exists.
    ids: Counted<(IpAddr, String)>,
    said: HashMap<(IpAddr, &'static str), Said>,
}

#[derive(Debug, Clone, Copy)]
struct Guesses {
    wrong: u32,
    since: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Said {
    at: Instant,
    unsaid: u64,
}

impl Guesses {
    fn at(self, now: Instant) -> Self {
        let forgiven = now.saturating_duration_since(self.since).as_secs() / FORGIVEN_IN.as_secs();
        match self.wrong.saturating_sub(u32::try_from(forgiven).unwrap_or(u32::MAX)) {
            0 => Self { wrong: 0, since: now },
            wrong => Self { wrong, since: self.since + FORGIVEN_IN * (self.wrong - wrong) },
        }
    }
}

#[derive(Debug)]
struct Counted<K>(HashMap<K, Guesses>);

impl<K> Default for Counted<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Hash + Eq + Clone> Counted<K> {
    fn is_full(&self, key: &K, now: Instant) -> bool {
        self.0.get(key).is_some_and(|guesses| guesses.at(now).wrong >= BURST)
    }

    fn count(&mut self, key: K, now: Instant) {
        if self.0.len() >= REMEMBERED && !self.0.contains_key(&key) {
            self.0.retain(|_, guesses| guesses.at(now).wrong > 0);
            // So many at once is no mistake of anybody's; the one with the fewest wrong makes room.
            let fewest =
                self.0.iter().min_by_key(|(_, guesses)| guesses.at(now).wrong).map(|(k, _)| k.clone());
            if let Some(fewest) = fewest.filter(|_| self.0.len() >= REMEMBERED) {
                self.0.remove(&fewest);
            }
        }
        let guesses = self.0.entry(key).or_insert(Guesses { wrong: 0, since: now });
        *guesses = guesses.at(now);
        guesses.wrong = (guesses.wrong + 1).min(BURST);
    }
}

/// One household or machine has a whole /64 of IPv6 to call from.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

impl Throttle {
    /// Refuses what too many wrong tokens came before. `known` is the id of a token that exists.
    pub(super) fn admit(&self, from: IpAddr, known: Option<&str>, now: Instant) -> Result<(), Error> {
        let from = network(from);
        let full = match known {
            None => self.addresses.is_full(&from, now),
            Some(id) => self.ids.is_full(&(from, id.to_owned()), now),
        };
        if !full {
            return Ok(());
        }
        Err(Error::new(Code::AuthTooMany, "too many wrong tokens came from this address")
            .hint(format!("try again in {} seconds, with the right one", FORGIVEN_IN.as_secs())))
    }

    /// Remembers a wrong one.
    pub(super) fn wrong(&mut self, from: IpAddr, known: Option<&str>, now: Instant) {
        let from = network(from);
        self.addresses.count(from, now);
        if let Some(id) = known {
            self.ids.count((from, id.to_owned()), now);
        }
    }

    /// Whether to log this now, and how often it was not since it was last: a line for each call would let anybody fill
    /// the log.
    pub(super) fn say(&mut self, from: IpAddr, what: &'static str, now: Instant) -> Option<u64> {
        let key = (network(from), what);
        if self.said.len() >= REMEMBERED && !self.said.contains_key(&key) {
            self.said.retain(|_, said| now.saturating_duration_since(said.at) < SAID_EVERY);
            if self.said.len() >= REMEMBERED {
                return None;
            }
        }
        match self.said.get_mut(&key) {
            Some(said) if now.saturating_duration_since(said.at) < SAID_EVERY => {
                said.unsaid += 1;
                None
            }
            Some(said) => Some(std::mem::replace(said, Said { at: now, unsaid: 0 }).unsaid),
            None => {
                self.said.insert(key, Said { at: now, unsaid: 0 });
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u32) -> IpAddr {
        IpAddr::V4((0x0a00_0000 + last).into())
    }

    #[test]
    fn an_address_is_held_up_after_its_burst_and_forgiven_with_time() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        for _ in 0..BURST {
            assert!(throttle.admit(address(1), None, now).is_ok());
            throttle.wrong(address(1), None, now);
        }
        assert_eq!(throttle.admit(address(1), None, now).expect_err("held up").code, Code::AuthTooMany);
        assert!(throttle.admit(address(2), None, now).is_ok(), "another address");
        assert!(throttle.admit(address(1), None, now + FORGIVEN_IN).is_ok());
        throttle.wrong(address(1), None, now + FORGIVEN_IN);
        assert!(throttle.admit(address(1), None, now + FORGIVEN_IN).is_err(), "one was forgiven, not all");
        assert!(throttle.admit(address(1), None, now + FORGIVEN_IN * (BURST + 2)).is_ok());
    }

    #[test]
    fn a_token_that_exists_is_held_up_for_its_own_wrong_secrets_and_for_no_others() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        for _ in 0..BURST {
            throttle.wrong(address(1), None, now);
        }
        assert!(throttle.admit(address(1), Some("a"), now).is_ok(), "held up for guesses of others");
        for _ in 0..BURST {
            throttle.wrong(address(1), Some("a"), now);
        }
        assert!(throttle.admit(address(1), Some("a"), now).is_err());
        assert!(throttle.admit(address(1), Some("b"), now).is_ok(), "another token");
        assert!(throttle.admit(address(2), Some("a"), now).is_ok(), "from elsewhere");
        assert!(throttle.admit(address(1), Some("a"), now + FORGIVEN_IN).is_ok());
    }

    #[test]
    fn the_addresses_of_one_ipv6_network_count_together() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        for host in 0..u128::from(BURST) {
            throttle.wrong(IpAddr::V6((0x2001_0db8 << 96 | host).into()), None, now);
        }
        assert!(throttle.admit("2001:db8::ffff".parse().expect("an address"), None, now).is_err());
        assert!(throttle.admit("2001:db8:0:1::1".parse().expect("an address"), None, now).is_ok());
    }

    #[test]
    fn it_remembers_a_bounded_number_of_addresses_and_ids() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        for _ in 0..BURST {
            throttle.wrong(address(0), Some("a"), now);
        }
        for last in 1..=u32::try_from(REMEMBERED).expect("small") + 100 {
            throttle.wrong(address(last), Some("a"), now);
            throttle.say(address(last), "held up", now);
        }
        assert_eq!(
            (throttle.addresses.0.len(), throttle.ids.0.len(), throttle.said.len()),
            (REMEMBERED, REMEMBERED, REMEMBERED)
        );
        assert!(throttle.admit(address(0), None, now).is_err(), "the worst was forgotten");
        assert!(throttle.admit(address(0), Some("a"), now).is_err(), "the worst was forgotten");
    }

    #[test]
    fn the_same_is_said_of_an_address_once_in_a_while_with_how_often_it_was() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        assert_eq!(throttle.say(address(1), "held up", now), Some(0));
        assert_eq!(throttle.say(address(1), "no token", now), Some(0), "something else");
        for _ in 0..500 {
            assert_eq!(throttle.say(address(1), "held up", now), None);
        }
        assert_eq!(throttle.say(address(1), "held up", now + SAID_EVERY), Some(500));
    }
}
