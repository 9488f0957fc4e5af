//! Slows an address down that shows wrong tokens.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

use codering_core::{Code, Error};

/// Wrong tokens that an address may show at once.
const BURST: u32 = 20;
/// One of them is forgiven in this time.
const FORGIVEN_IN: Duration = Duration::from_secs(3);
/// Addresses remembered.
const ADDRESSES: usize = 8192;

/// Wrong tokens by address, forgotten with time.
#[derive(Debug, Default)]
pub(super) struct Throttle(HashMap<IpAddr, Guesses>);

#[derive(Debug, Clone, Copy)]
struct Guesses {
    wrong: u32,
    since: Instant,
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

/// One household or machine has a whole /64 of IPv6 to call from.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

impl Throttle {
    /// Refuses an address that has shown too many wrong tokens of late.
    pub(super) fn admit(&self, from: IpAddr, now: Instant) -> Result<(), Error> {
        match self.0.get(&network(from)).map(|guesses| guesses.at(now)) {
            Some(guesses) if guesses.wrong >= BURST => {
                Err(Error::new(Code::AuthTooMany, "too many wrong tokens came from this address")
                    .hint(format!("try again in {} seconds, with the right one", FORGIVEN_IN.as_secs())))
            }
            _ => Ok(()),
        }
    }

    /// Remembers a wrong one.
    pub(super) fn wrong(&mut self, from: IpAddr, now: Instant) {
        let from = network(from);
        if self.0.len() >= ADDRESSES && !self.0.contains_key(&from) {
            self.0.retain(|_, guesses| guesses.at(now).wrong > 0);
            // So many at once is no mistake of anybody's; the one with the fewest wrong makes room.
            let fewest = self.0.iter().min_by_key(|(_, guesses)| guesses.at(now).wrong).map(|(a, _)| *a);
            if let Some(fewest) = fewest.filter(|_| self.0.len() >= ADDRESSES) {
                self.0.remove(&fewest);
            }
        }
        let guesses = self.0.entry(from).or_insert(Guesses { wrong: 0, since: now });
        *guesses = guesses.at(now);
        guesses.wrong = (guesses.wrong + 1).min(BURST);
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
            assert!(throttle.admit(address(1), now).is_ok());
            throttle.wrong(address(1), now);
        }
        assert_eq!(throttle.admit(address(1), now).expect_err("held up").code, Code::AuthTooMany);
        assert!(throttle.admit(address(2), now).is_ok(), "another address");
        assert!(throttle.admit(address(1), now + FORGIVEN_IN).is_ok());
        throttle.wrong(address(1), now + FORGIVEN_IN);
        assert!(throttle.admit(address(1), now + FORGIVEN_IN).is_err(), "one was forgiven, not all");
        assert!(throttle.admit(address(1), now + FORGIVEN_IN * (BURST + 2)).is_ok());
    }

    #[test]
    fn the_addresses_of_one_ipv6_network_count_together() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        for host in 0..u128::from(BURST) {
            throttle.wrong(IpAddr::V6((0x2001_0db8 << 96 | host).into()), now);
        }
        assert!(throttle.admit("2001:db8::ffff".parse().expect("an address"), now).is_err());
        assert!(throttle.admit("2001:db8:0:1::1".parse().expect("an address"), now).is_ok());
    }

    #[test]
    fn it_remembers_a_bounded_number_of_addresses() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        for _ in 0..BURST {
            throttle.wrong(address(0), now);
        }
        for last in 1..=u32::try_from(ADDRESSES).expect("small") + 100 {
            throttle.wrong(address(last), now);
        }
        assert_eq!(throttle.0.len(), ADDRESSES);
        assert!(throttle.admit(address(0), now).is_err(), "the worst was forgotten");
    }
}
