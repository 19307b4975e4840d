//! All that is read from environment variables, besides the options of the command line.

use crate::claim::{self, Ancestry};
use crate::site::SiteConfig;
use crate::text;
use std::env;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

/// Names the NVML library to load.
const NVML_LIB: &str = "AUTOCVD_NVML_LIB";
/// Names the directory of claims.
const CLAIM_DIR: &str = "AUTOCVD_CLAIM_DIR";
/// After which time of waiting a request gathers.
const PATIENCE: &str = "AUTOCVD_PATIENCE";
/// Tells a nested autocvd what it was started inside of.
pub(crate) const INSIDE: &str = "AUTOCVD_INSIDE";
/// Tells a program how many bytes of each GPU its share is of.
pub(crate) const MEMORY: &str = "AUTOCVD_MEMORY";
/// What batch systems set in a job, next to `CUDA_VISIBLE_DEVICES`: Slurm, PBS, LSF, and Ray in its
/// workers.
const BATCH_JOBS: [&str; 4] = ["SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "RAY_RAYLET_PID"];

/// What surrounds this process: its variables, and what the administrator sets for all users.
///
/// ```
/// let mut environment = autocvd::Environment::read();
/// // Claims that are agreed on among the programs of one service alone.
/// environment.claim_dir = "/var/lib/render-service/claims".into();
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Environment {
    /// `AUTOCVD_NVML_LIB`: the NVML library to load.
    pub nvml_library: Option<OsString>,
    /// `AUTOCVD_CLAIM_DIR`: the directory of claims. Without a slash at its end, which would
    /// make the kernel follow a link.
    pub claim_dir: PathBuf,
    /// `CUDA_VISIBLE_DEVICES`, as it is before anything is chosen.
    pub cuda_visible_devices: Option<String>,
    /// `CUDA_DEVICE_ORDER`, by which its indices count.
    pub(crate) cuda_device_order: DeviceOrder,
    /// The variable of the batch job that this is part of.
    pub batch_job: Option<&'static str>,
    /// `AUTOCVD_PATIENCE`: after which time of waiting a request gathers.
    pub patience: Option<Duration>,
    /// What the administrator sets for all users.
    pub(crate) site: SiteConfig,
    /// The launches that this process was started inside of, as far as its environment tells.
    pub(crate) inside: Option<Ancestry>,
}

/// How CUDA counts GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum DeviceOrder {
    /// The fastest first, as CUDA estimates it; equal ones by their places on the bus.
    #[default]
    FastestFirst,
    /// By their places on the bus.
    PciBusId,
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
            patience: set(PATIENCE).and_then(|value| patience(&value, &mut site)),
            site,
            cuda_visible_devices: env::var_os("CUDA_VISIBLE_DEVICES")
                .map(|value| value.to_string_lossy().into_owned()),
            cuda_device_order: match env::var_os("CUDA_DEVICE_ORDER") {
                Some(order) if order == "PCI_BUS_ID" => DeviceOrder::PciBusId,
                _ => DeviceOrder::FastestFirst,
            },
            batch_job: BATCH_JOBS.into_iter().find(|name| set(name).is_some()),
            inside: set(INSIDE).and_then(|value| value.to_str()?.parse().ok()),
        }
    }

    /// The same inside of the launches that this value of `AUTOCVD_INSIDE` tells of, for a process
    /// that has set the variable for its children.
    pub fn started_inside(self, value: Option<&str>) -> Self {
        let inside = value.and_then(|value| value.parse().ok());
        Self { inside, ..self }
    }

    /// What the administrator sets for all users.
    #[doc(hidden)]
    pub fn site(&self) -> &SiteConfig {
        &self.site
    }

    /// The same for those who have told of the warnings of [`site`](Self::site).
    #[doc(hidden)]
    pub fn without_warnings(mut self) -> Self {
        self.site.warnings.clear();
        self
    }

    /// Ends all claims that printed choices made for the shell that started this process. Returns
    /// how many these were.
    ///
    /// # Errors
    /// Where the directory of claims cannot be used.
    pub fn release_shell_claims(&self) -> std::io::Result<usize> {
        claim::release_shell_claims(&self.claim_dir)
    }
}

/// A patience that can be read; the site's warnings tell of another.
fn patience(value: &OsStr, site: &mut SiteConfig) -> Option<Duration> {
    let text = value.to_string_lossy();
    match text::parse_duration(&text) {
        Ok(patience) => Some(patience),
        Err(advice) => {
            site.warnings
                .push(format!("{PATIENCE}='{text}' has no effect: {advice}"));
            None
        }
    }
}

/// The directory of claims: that of the administrator, else that of the variable, else the usual
/// one.
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
        (None, None) => claim::default_path(),
    }
}
