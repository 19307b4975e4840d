//! Which claim this process is inside of: `autocvd -n 4 -- …`, seen from within.
//!
//! A claim has a token, a random number whose byte is locked in the lock file of each of its
//! devices as long as it lasts. A launch that is started inside it knows the token from its
//! environment, or from the judge of the shell that it descends from, and asks the kernel whether
//! it still counts.

use super::directory::Directory;
use super::lock::{self, Mode, Range, TOKEN_LIMIT};
use super::share::{Holding, Share};
use std::fmt;
use std::str::FromStr;

/// Names a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Token(u64);

impl Token {
    /// One that no other claim has.
    pub(super) fn random() -> std::io::Result<Self> {
        let mut bytes = [0; 8];
        // So few bytes come whole.
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::NONBLOCK)?;
        Ok(Self(u64::from_ne_bytes(bytes) % TOKEN_LIMIT))
    }

    pub(super) fn range(self) -> Range {
        Range::token(self.0)
    }

    pub(super) fn from_number(number: u64) -> Self {
        Self(number)
    }

    pub(super) fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Token {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let number = u64::from_str_radix(text, 16).map_err(drop)?;
        if text.len() == 16 && number < TOKEN_LIMIT {
            Ok(Self(number))
        } else {
            Err(())
        }
    }
}

/// One launch around this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ancestor {
    /// Its claim; `None` if it made none.
    pub(crate) token: Option<Token>,
    /// The keys of its devices.
    pub(crate) devices: Vec<String>,
    /// What it has of them.
    pub(crate) holding: Holding,
}

impl Ancestor {
    /// Whether the claim still counts.
    pub(super) fn is_alive(&self, directory: &Directory) -> bool {
        let (Some(token), Some(key)) = (self.token, self.devices.first()) else {
            return false;
        };
        is_held(directory, key, token)
    }
}

/// Whether the claim of this token is on that device.
pub(super) fn is_held(directory: &Directory, key: &str, token: Token) -> bool {
    // Waiters share the byte: they do not count.
    let Ok(file) = directory.find_lock_file(key) else {
        return false;
    };
    matches!(
        lock::conflict(&file, token.range(), Mode::Shared),
        Ok(Some(_))
    )
}

/// The launches around this process, the outermost first, each nested in the one before it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ancestry(pub(crate) Vec<Ancestor>);

impl Ancestry {
    /// How many claims are around a claim that is made inside all of these.
    pub(super) fn level(&self) -> u32 {
        self.0
            .iter()
            .filter(|ancestor| ancestor.token.is_some())
            .count()
            .try_into()
            .unwrap_or(0)
    }

    /// The same, with another launch inside.
    pub(crate) fn with(&self, ancestor: Ancestor) -> Self {
        let mut all = self.0.clone();
        all.push(ancestor);
        Self(all)
    }

    /// Whether the innermost claim around this process is on shares.
    pub(super) fn is_share(&self) -> bool {
        let claim = self.0.iter().rfind(|ancestor| ancestor.token.is_some());
        claim.is_some_and(|claim| matches!(claim.holding, Holding::Shares(_)))
    }

    /// The share of this device that the claims around this process leave to it; `None` where they
    /// leave it all of it.
    pub(super) fn share(&self, key: &str) -> Option<&Share> {
        let ancestor = self.0.iter().rfind(|ancestor| ancestor.token.is_some())?;
        let place = ancestor.devices.iter().position(|device| device == key)?;
        ancestor.holding.share(place)
    }

    /// The keys of the devices that the innermost one has.
    pub(crate) fn devices(&self) -> Option<&[String]> {
        self.0.last().map(|ancestor| &ancestor.devices[..])
    }
}

/// `TOKEN:KEY,KEY;TOKEN:KEY@SHARE`, the outermost first; a launch without a claim has no token, and
/// one that has whole devices no shares.
impl fmt::Display for Ancestry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, ancestor) in self.0.iter().enumerate() {
            let separator = if place > 0 { ";" } else { "" };
            let token = ancestor
                .token
                .map(|token| token.to_string())
                .unwrap_or_default();
            write!(f, "{separator}{token}:{}", ancestor.devices.join(","))?;
            if let Holding::Shares(_) = ancestor.holding {
                write!(f, "@{}", ancestor.holding)?;
            }
        }
        Ok(())
    }
}

impl FromStr for Ancestry {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let ancestor = |text: &str| {
            let (token, devices) = text.split_once(':')?;
            let token = if token.is_empty() {
                None
            } else {
                Some(token.parse().ok()?)
            };
            let (devices, shares) = devices.split_once('@').unwrap_or((devices, ""));
            let devices = devices.split(',').filter(|key| !key.is_empty());
            let devices: Vec<String> = devices.map(str::to_owned).collect();
            Some(Ancestor {
                token,
                holding: Holding::parse(shares, devices.len())?,
                devices,
            })
        };
        let all = text.split(';').filter(|text| !text.is_empty());
        all.map(ancestor).collect::<Option<_>>().map(Self).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_to_a_nested_launch_is_read_back() {
        let devices = vec!["GPU-1".to_owned(), "00000000:01:00.0".to_owned()];
        let outer = Ancestor {
            token: Some(Token(7)),
            devices: devices.clone(),
            holding: Holding::Whole,
        };
        let share = Share::of_device(15 << 30);
        let inner = Ancestor {
            token: Some(Token(8)),
            devices: devices[..1].to_vec(),
            holding: Holding::Shares(vec![share.clone()]),
        };
        let one = Ancestry::default().with(inner.clone());
        assert_eq!(one.to_string().parse(), Ok(one.clone()));
        assert_eq!(one.share("GPU-1"), Some(&share));
        assert_eq!(one.share("GPU-2"), None);
        let ancestry = Ancestry::default().with(outer).with(Ancestor {
            token: None,
            devices,
            holding: Holding::Whole,
        });
        assert_eq!(ancestry.to_string().parse(), Ok(ancestry.clone()));
        assert_eq!(ancestry.level(), 1);
        assert_eq!("".parse(), Ok(Ancestry::default()));
        for wrong in [
            "nonsense",
            "1-1:GPU-1",
            "0000000000000007",
            "zz;:",
            ":GPU-1,GPU-2@0-1",
        ] {
            assert_eq!(wrong.parse::<Ancestry>(), Err(()), "{wrong}");
        }
    }
}
