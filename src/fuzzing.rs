//! What arbitrary bytes must not break: the bodies of the fuzz targets in `fuzz/`, and of the same
//! tests with random bytes in the suite.

use crate::claim::{Ancestry, read_records};
use crate::error::IdList;
use crate::gpu::Snapshot;
use crate::ids::{IdForm, for_cuda, parse_visible_devices, resolve};
use crate::probe::{file, smi};
use crate::select::{Constraints, Selection, select};
use crate::site::SiteConfig;
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

/// What others may have written in the directory of claims: who holds what, who waits, what failed.
pub fn claim_records(bytes: &[u8]) {
    let _ = read_records(&String::from_utf8_lossy(bytes));
}

/// `/etc/autocvd.conf`: what counts of it is well formed, and each other line gets a warning.
pub fn site_config(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let config = SiteConfig::parse(&text);
    assert!(config.warnings.len() <= text.lines().count(), "{text:?}");
    assert!(
        config.ignore.iter().all(|program| program.is_absolute()),
        "{text:?}"
    );
    assert!(
        config.claim_dir.is_none_or(|path| path.is_absolute()),
        "{text:?}"
    );
    assert_ne!(config.max_per_user, Some(0), "{text:?}");
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
            for id in for_cuda(&chosen, IdForm::Index, snapshot)
                .into_iter()
                .flatten()
            {
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

    const HOLDER: &[u8] = b"kind=command keeper=27971 since=1795543141 until=1795543201 level=1 \
        devices=GPU-1,GPU-2 shares=0-40,0-20+30-40 process=27968:1640417 namespace=4026531836";
    const WAITER: &[u8] = b"1640417000000000-27968\nnum_gpus=2 devices=1f,2e min_free_memory=1 \
        process=27968:1640417 namespace=4026531836 patience=300000 \
        max_per_user=2 tolerate=5 share=7";
    const FAILURES: &[u8] = b"2 1764000000\n";
    const SITE: &[u8] = b"# reserved\nexclude 0, GPU-12\nignore = /usr/bin/mps\nmax_per_user 2\n\
        claim_dir /run/autocvd\n";

    #[test]
    fn the_records_that_are_changed_are_right_ones() {
        let read = |bytes| read_records(std::str::from_utf8(bytes).expect("a text"));
        assert_eq!(read(HOLDER), [true, false, false]);
        assert_eq!(read(WAITER), [false, true, false]);
        assert_eq!(read(FAILURES), [false, false, true]);
    }

    /// Tests that call a reader with all that a strategy makes.
    macro_rules! survives {
        ($($name:ident: $read:ident($bytes:expr);)*) => {
            proptest! {$(
                #[test]
                fn $name(bytes in $bytes) {
                    $read(bytes.as_ref());
                }
            )*}
        };
    }

    survives! {
        no_bytes_break_the_reading_of_a_recorded_machine: recorded_machine(any::<Vec<u8>>());
        no_change_breaks_the_reading_of_a_recorded_machine: recorded_machine(mutated(RECORDED));
        no_change_breaks_the_reading_of_nvidia_smi: nvidia_smi(mutated(XML));
        no_bytes_break_the_reading_of_ids: ids(any::<Vec<u8>>());
        no_text_like_ids_breaks_their_reading: ids("[-GPUMIG0-9a-f:.,/ ]{0,60}");
        no_bytes_break_the_reading_of_claims: claim_records(any::<Vec<u8>>());
        no_change_breaks_the_reading_of_a_holder: claim_records(mutated(HOLDER));
        no_change_breaks_the_reading_of_a_waiter: claim_records(mutated(WAITER));
        no_change_breaks_the_reading_of_failures: claim_records(mutated(FAILURES));
        no_bytes_break_the_reading_of_the_administrators_file: site_config(any::<Vec<u8>>());
        no_change_breaks_the_reading_of_the_administrators_file: site_config(mutated(SITE));
    }
}
