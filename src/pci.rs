//! Places on the PCI bus.

use std::fmt;

/// A place on the PCI bus. The order is the one in which CUDA counts under
/// `CUDA_DEVICE_ORDER=PCI_BUS_ID`.
///
/// ```
/// use autocvd::PciBusId;
///
/// let long = PciBusId::parse("00000000:3B:00.0");
/// assert_eq!(long, PciBusId::parse("3b:00"));
/// assert_eq!(long.map(|id| id.to_string()).as_deref(), Some("00000000:3B:00.0"));
/// assert_eq!(PciBusId::parse("0"), None);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciBusId {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

impl PciBusId {
    /// Reads NVML's form `00000000:3B:00.0`, the kernel's `0000:3b:00.0`, and `3b:00.0` and
    /// `3b:00`.
    pub fn parse(text: &str) -> Option<Self> {
        let (place, function) = text.trim().rsplit_once('.').unwrap_or((text.trim(), "0"));
        let mut parts = place.rsplit(':');
        let (device, bus) = (parts.next()?, parts.next()?);
        let domain = parts.next().unwrap_or("0");
        if parts.next().is_some() {
            return None;
        }
        let byte =
            |part: &str, digits| hex(part, digits).and_then(|number| u8::try_from(number).ok());
        Some(Self {
            domain: hex(domain, 8)?,
            bus: byte(bus, 2)?,
            device: byte(device, 2)?,
            function: byte(function, 1)?,
        })
    }
}

/// NVML's form, with a domain of eight digits: `00000000:3B:00.0`.
impl fmt::Display for PciBusId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            domain,
            bus,
            device,
            function,
        } = self;
        write!(f, "{domain:08X}:{bus:02X}:{device:02X}.{function:X}")
    }
}

/// A hexadecimal number of at most `digits` digits, without a sign.
fn hex(text: &str, digits: usize) -> Option<u32> {
    let plain = (1..=digits).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    plain.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_places_on_the_bus_are_read() {
        for text in [
            "",
            "0",
            ":",
            "3b",
            "3b:00.10",
            "0:0:0:0.0",
            "+3:00.0",
            "3b:00.0x",
            "100:00.0",
        ] {
            assert_eq!(PciBusId::parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_order_is_that_of_the_bus() {
        let ids = [
            "0000:03:00.0",
            "0000:3B:00.0",
            "0001:01:00.0",
            "10000:01:00.0",
        ];
        assert!(ids.into_iter().map(PciBusId::parse).is_sorted());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(domain: u32, bus: u8, device: u8, function in 0_u8..16) {
            let id = PciBusId { domain, bus, device, function };
            prop_assert_eq!(PciBusId::parse(&id.to_string()), Some(id));
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,24}") {
            let _ = PciBusId::parse(&text);
        }
    }
}
