//! How the data of a machine is written as JSON and read back, where serde's own way will not do.
//!
//! Reading is lenient where that cannot do harm (a field that is missing is unknown) and strict
//! where it could (a field of the wrong type is an error).

use super::Mig;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// Whether a mark is not set, and need not be written.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
pub(crate) fn is_false(mark: &bool) -> bool {
    !mark
}

/// `"mig"`: an object with devices where MIG is enabled; anything that says 'not enabled' is read
/// as none.
// Not an untagged enum: serde's code for one is larger than all that parses command lines here.
pub(crate) fn mig<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<Mig>, D::Error> {
    struct Form;

    impl<'de> Visitor<'de> for Form {
        type Value = Option<Mig>;

        fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
            f.write_str("an object with MIG devices, true, false, a word or null")
        }

        fn visit_unit<E>(self) -> std::result::Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_bool<E>(self, enabled: bool) -> std::result::Result<Self::Value, E> {
            Ok(enabled.then(Mig::default))
        }

        fn visit_str<E>(self, word: &str) -> std::result::Result<Self::Value, E> {
            Ok(word.eq_ignore_ascii_case("enabled").then(Mig::default))
        }

        fn visit_map<A: MapAccess<'de>>(
            self,
            mut map: A,
        ) -> std::result::Result<Self::Value, A::Error> {
            let (mut enabled, mut mig) = (true, Mig::default());
            while let Some(key) = map.next_key::<String>()? {
                match key.as_str() {
                    "enabled" => enabled = map.next_value()?,
                    "devices" => mig.devices = map.next_value()?,
                    _ => {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
            }
            Ok(enabled.then_some(mig))
        }
    }

    deserializer.deserialize_any(Form)
}

/// Unix time in seconds; what is not a whole number is unknown, for it only serves display.
pub(crate) fn time<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<u64>, D::Error> {
    let value = Option::<serde_json::Value>::deserialize(deserializer)?;
    Ok(value.and_then(|value| {
        value
            .as_u64()
            .or_else(|| value.as_f64().map(|seconds| seconds as u64))
    }))
}

/// NVML's names in NVML's spelling; nvidia-smi's (`Exclusive_Process`) are read too.
pub(crate) mod compute_mode {
    use super::super::{ComputeMode, Fact};
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(
        mode: &Fact<ComputeMode>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        mode.map(ComputeMode::name).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Fact<ComputeMode>, D::Error> {
        let Some(word) = Option::<String>::deserialize(deserializer)? else {
            return Ok(Fact::Unknown);
        };
        ComputeMode::from_name(&word)
            .map(Fact::Value)
            .ok_or_else(|| D::Error::custom(format!("unknown compute mode '{word}'")))
    }
}

/// nvidia-smi's names of contexts; null where the driver lists none.
pub(crate) mod process_kind {
    use super::super::ProcessKind;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(
        kind: &ProcessKind,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let listed = (*kind != ProcessKind::Unlisted).then(|| kind.name());
        listed.serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<ProcessKind, D::Error> {
        let word = Option::<String>::deserialize(deserializer)?;
        Ok(match word.as_deref() {
            Some("C") => ProcessKind::Compute,
            Some("G") => ProcessKind::Graphics,
            Some("C+G") => ProcessKind::ComputeGraphics,
            Some("M+C" | "M" | "C+M") => ProcessKind::MpsCompute,
            Some(word) => return Err(D::Error::custom(format!("unknown process type '{word}'"))),
            None => ProcessKind::Unlisted,
        })
    }
}

/// A place on the PCI bus in NVML's form; a text that is none is unknown.
pub(crate) mod pci_bus_id {
    use crate::pci::PciBusId;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(
        id: &Option<PciBusId>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        id.map(|id| id.to_string()).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<PciBusId>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        Ok(text.and_then(|text| PciBusId::parse(&text)))
    }
}
