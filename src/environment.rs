//! All that is read from environment variables, besides the options of the command line.

use crate::site::SiteConfig;
use std::env;
use std::ffi::OsString;
use std::path::PathBuf;

/// Names the NVML library to load.
const NVML_LIB: &str = "AUTOCVD_NVML_LIB";
/// Names the directory of claims.
const CLAIM_DIR: &str = "AUTOCVD_CLAIM_DIR";
/// Tells a nested autocvd what it was started inside of.
pub(crate) const INSIDE: &str = "AUTOCVD_INSIDE";
/// The directory of claims where none is named: one for all users of the machine.
const DEFAULT_CLAIM_DIR: &str = "/tmp/autocvd";
/// What batch systems set in a job, next to `CUDA_VISIBLE_DEVICES`: Slurm, PBS, LSF, and Ray in its
/// workers.
const BATCH_JOBS: [&str; 4] = ["SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "RAY_RAYLET_PID"];

/// What surrounds this process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Environment {
    /// `AUTOCVD_NVML_LIB`: the NVML library to load.
    pub nvml_library: Option<OsString>,
    /// `AUTOCVD_CLAIM_DIR`: the directory of claims. Without a slash at its end, behind which a link would be followed.
    pub claim_dir: PathBuf,
    /// `CUDA_VISIBLE_DEVICES`, as it is before anything is chosen.
    pub cuda_visible_devices: Option<String>,
    /// `CUDA_DEVICE_ORDER`, by which its indices count.
    pub cuda_device_order: DeviceOrder,
    /// The variable of the batch job that this is part of.
    pub batch_job: Option<&'static str>,
    /// What the administrator sets for all users.
    pub site: SiteConfig,
    /// The launch that this process was started inside of.
    pub inside: Option<ParentLaunch>,
}

/// How CUDA counts GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceOrder {
    /// The fastest first, as CUDA estimates it; equal ones by their places on the bus.
    #[default]
    FastestFirst,
    /// By their places on the bus.
    PciBusId,
}

/// `autocvd -n 4 -- …`, seen from within.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ParentLaunch {
    /// The names of its claim and of those around it, the outermost first; empty if it made none.
    pub claims: Vec<String>,
    /// The keys of its GPUs.
    pub devices: Vec<String>,
}

impl Environment {
    /// Reads the variables of this process. An empty one counts as not set, except
    /// `CUDA_VISIBLE_DEVICES`, for which it means no GPU.
    pub fn read() -> Self {
        let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
        let mut site = SiteConfig::read();
        let claim_dir = claim_dir(set(CLAIM_DIR), &mut site);
        Self {
            nvml_library: set(NVML_LIB),
            claim_dir,
            site,
            cuda_visible_devices: env::var_os("CUDA_VISIBLE_DEVICES")
                .map(|value| value.to_string_lossy().into_owned()),
            cuda_device_order: match env::var_os("CUDA_DEVICE_ORDER") {
                Some(order) if order == "PCI_BUS_ID" => DeviceOrder::PciBusId,
                _ => DeviceOrder::FastestFirst,
            },
            batch_job: BATCH_JOBS.into_iter().find(|name| set(name).is_some()),
            inside: set(INSIDE).and_then(|value| ParentLaunch::parse(value.to_str()?)),
        }
    }
}

/// The directory of claims: that of the administrator, else that of the variable, else the usual one.
fn claim_dir(variable: Option<OsString>, site: &mut SiteConfig) -> PathBuf {
    let named = variable.map(|path| PathBuf::from(path).components().collect::<PathBuf>());
    match (&site.claim_dir, named) {
        (Some(agreed), named) => {
            let agreed = agreed.clone();
            if let Some(named) = named.filter(|named| *named != agreed) {
                site.warnings.push(format!(
                    "{CLAIM_DIR}='{}' has no effect: {} sets claim_dir for all users",
                    named.display(),
                    crate::site::PATH
                ));
            }
            agreed
        }
        (None, Some(named)) => named,
        (None, None) => DEFAULT_CLAIM_DIR.into(),
    }
}

impl ParentLaunch {
    /// Reads `CLAIM/CLAIM:UNIT,UNIT`.
    pub fn parse(value: &str) -> Option<Self> {
        let (claims, devices) = value.split_once(':')?;
        let list = |text: &str, by: char| {
            text.split(by)
                .filter(|part| !part.is_empty())
                .map(str::to_owned)
                .collect()
        };
        Some(Self {
            claims: list(claims, '/'),
            devices: list(devices, ','),
        })
    }
}

impl std::fmt::Display for ParentLaunch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.claims.join("/"), self.devices.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_to_a_nested_launch_is_read_back() {
        for inside in [
            ParentLaunch {
                claims: vec!["1-2".into(), "3-4".into()],
                devices: vec!["GPU-1".into(), "GPU-2".into()],
            },
            ParentLaunch {
                claims: vec![],
                devices: vec!["00000000:01:00.0".into()],
            },
        ] {
            assert_eq!(ParentLaunch::parse(&inside.to_string()), Some(inside));
        }
        assert_eq!(ParentLaunch::parse("nonsense"), None);
    }
}
