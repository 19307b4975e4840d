//! What arbitrary bytes must not break: the bodies of the fuzz targets in `fuzz/`, and of the same
//! tests with random bytes in the suite.

use crate::claim::Ancestry;
use crate::error::IdList;
use crate::gpu::Snapshot;
use crate::ids::{for_cuda, parse_visible_devices, resolve};
use crate::probe::{file, smi};
use crate::select::{Constraints, Selection, select};
use std::sync::OnceLock;

/// A recorded machine: what can be read can be judged, decided on, written and read again.
pub fn recorded_machine(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let Ok(mut snapshot) = file::parse(text) else {
        return;
    };
    decide(&snapshot);
    snapshot.judge();
    let again = file::parse(&snapshot.to_json_line()).expect("what is written is read back");
    assert_eq!(again.gpus.len(), snapshot.gpus.len());
}

/// The output of `nvidia-smi -q -x`.
pub fn nvidia_smi(bytes: &[u8]) {
    if let Ok(mut snapshot) = smi::parse::parse(bytes) {
        decide(&snapshot);
        snapshot.judge();
    }
}

/// `CUDA_VISIBLE_DEVICES`, ids, and what an autocvd tells one inside it.
pub fn ids(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    static MACHINE: OnceLock<Snapshot> = OnceLock::new();
    let example = || file::parse(include_str!("../examples/mig.json")).expect("an example");
    let snapshot = MACHINE.get_or_init(example);
    let all = snapshot.device_ids();
    for id in parse_visible_devices(&text, snapshot) {
        assert!(all.contains(&id), "{text:?}");
    }
    if let Ok(ids) = resolve(&text, IdList::Only, snapshot) {
        assert!(ids.iter().all(|id| all.contains(id)), "{text:?}");
    }
    let _ = text.parse::<Ancestry>();
    let _ = crate::PciBusId::parse(&text);
    let _ = crate::text::parse_duration(&text);
    let _ = crate::text::parse_size(&text);
}

/// Selects, and names what was selected for CUDA: nothing that a shell would read otherwise.
fn decide(snapshot: &Snapshot) {
    // A set of GPUs is looked for among all sets: many GPUs are for other tests.
    let devices: Vec<_> = snapshot.device_ids().into_iter().take(8).collect();
    for num_gpus in [1, 2] {
        for least_used in [false, true] {
            let constraints = Constraints {
                share: None,
                tolerate: None,
                num_gpus,
                least_used,
                min_free_memory: None,
                devices: devices.clone(),
            };
            let Selection::Chosen(chosen) = select(snapshot, &constraints) else {
                continue;
            };
            for id in for_cuda(&chosen, false, snapshot).into_iter().flatten() {
                let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '/' | '_');
                assert!(id.chars().all(is_plain), "{id:?}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A text with some of its bytes changed, left out or doubled.
    fn mutated(text: &'static [u8]) -> impl Strategy<Value = Vec<u8>> {
        let change = (0..text.len(), any::<u8>(), 0..3u8);
        prop::collection::vec(change, 1..6).prop_map(move |changes| {
            let mut bytes = text.to_vec();
            for (at, byte, how) in changes {
                let at = at.min(bytes.len() - 1);
                match how {
                    0 => bytes[at] = byte,
                    1 => drop(bytes.remove(at)),
                    _ => bytes.insert(at, byte),
                }
            }
            bytes
        })
    }

    const RECORDED: &[u8] = include_bytes!("../examples/mig.json");
    const XML: &[u8] = include_bytes!("../tests/fixtures/smi/mig.xml");

    proptest! {
        #[test]
        fn no_bytes_break_the_reading_of_a_recorded_machine(bytes in any::<Vec<u8>>()) {
            recorded_machine(&bytes);
        }

        #[test]
        fn no_change_breaks_the_reading_of_a_recorded_machine(bytes in mutated(RECORDED)) {
            recorded_machine(&bytes);
        }

        #[test]
        fn no_change_breaks_the_reading_of_nvidia_smi(bytes in mutated(XML)) {
            nvidia_smi(&bytes);
        }

        #[test]
        fn no_bytes_break_the_reading_of_ids(bytes in any::<Vec<u8>>()) {
            ids(&bytes);
        }

        #[test]
        fn no_text_like_ids_breaks_their_reading(text in "[-GPUMIG0-9a-f:.,/ ]{0,60}") {
            ids(text.as_bytes());
        }
    }
}
