//! NVML's errors in words that say what helps.

use nvml_wrapper::error::NvmlError;
use std::ffi::OsStr;

/// Why NVML cannot be loaded or initialized.
pub(super) fn init(error: &NvmlError, named: Option<&OsStr>) -> String {
    let library = match named {
        Some(path) => format!("'{}' (AUTOCVD_NVML_LIB)", path.to_string_lossy()),
        None => "libnvidia-ml.so.1".to_owned(),
    };
    match error {
        NvmlError::LibloadingError(cause) => {
            // The loader's own words are in the cause behind libloading's.
            let cause = std::error::Error::source(cause)
                .map_or_else(|| cause.to_string(), ToString::to_string);
            format!(
                "NVML: cannot load {library}: {}; {}",
                cause.replace('\n', " "),
                help_to_load(CLibrary::OF_THIS_BUILD, named)
            )
        }
        NvmlError::FailedToLoadSymbol(_) => {
            format!(
                "NVML: {library} has no nvmlInit_v2, so it is not NVIDIA's management library; \
                 name the right one"
            )
        }
        other => format!("NVML cannot be initialized: {}", self::error(other)),
    }
}

/// The C library that this program is built for.
#[derive(Clone, Copy)]
enum CLibrary {
    Glibc,
    /// The driver's library is made for glibc, and a static program loads no library at all.
    Musl,
}

impl CLibrary {
    const OF_THIS_BUILD: Self = if cfg!(target_env = "musl") {
        Self::Musl
    } else {
        Self::Glibc
    };
}

/// What helps where the loader does not load the library.
fn help_to_load(built_for: CLibrary, named: Option<&OsStr>) -> &'static str {
    match (built_for, named) {
        (CLibrary::Musl, _) => {
            "this autocvd is built for musl, which cannot load the driver's library: use a build \
             for glibc (x86_64-unknown-linux-gnu, aarch64-unknown-linux-gnu)"
        }
        (CLibrary::Glibc, Some(_)) => "name the driver's libnvidia-ml.so.1, or unset the variable",
        (CLibrary::Glibc, None) => {
            "install the NVIDIA driver, or name the library in AUTOCVD_NVML_LIB (in a \
             container: start it with its GPUs, such as --gpus all, and \
             NVIDIA_DRIVER_CAPABILITIES=utility)"
        }
    }
}

/// An error code in words, ending with what helps where something does.
pub(super) fn error(error: &NvmlError) -> String {
    let known = match error {
        NvmlError::GpuLost => {
            "GPU is lost: it fell off the bus; reboot the machine ('dmesg | grep Xid' says more)"
        }
        NvmlError::ResetRequired => {
            "it needs a reset: 'nvidia-smi --gpu-reset -i ID' as root, or reboot"
        }
        NvmlError::NoPermission => {
            "no permission: a cgroup or the mode of /dev/nvidia* forbids it; ask for it in the job \
             or container"
        }
        NvmlError::DriverNotLoaded => {
            "the NVIDIA driver is not loaded; load it with 'modprobe nvidia'"
        }
        NvmlError::LibRmVersionMismatch => {
            "driver/library version mismatch, as after an upgrade of the driver; reboot, or reload \
             the kernel modules"
        }
        NvmlError::Unknown => {
            "unknown error; in a container this is a lost device cgroup: restart the container; \
             else see dmesg"
        }
        NvmlError::InsufficientPower => {
            "a power cable of the GPU is not attached properly; attach it"
        }
        NvmlError::IrqIssue => "the kernel has an interrupt problem with the GPU; see dmesg",
        NvmlError::CorruptedInfoROM => "its infoROM is corrupted; reset it, or have it replaced",
        NvmlError::OperatingSystem => "the operating system blocked the GPU; see dmesg",
        NvmlError::Timeout => "the driver did not answer in time; look again later",
        NvmlError::UnexpectedVariant(26) => "deprecated by this driver",
        NvmlError::UnexpectedVariant(27) => {
            "the system is not ready yet (NOT_READY); look again in a minute"
        }
        NvmlError::UnexpectedVariant(28) => "GPU not found; see dmesg",
        NvmlError::UnexpectedVariant(code) => {
            return format!("NVML error {code}; 'nvidia-smi' and dmesg may say more");
        }
        other => return other.to_string(),
    };
    known.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_for_musl_says_that_it_cannot_load_the_library() {
        for named in [None, Some(OsStr::new("/usr/lib/libnvidia-ml.so.1"))] {
            let help = help_to_load(CLibrary::Musl, named);
            assert!(help.contains("for glibc"), "{help}");
            assert!(!help_to_load(CLibrary::Glibc, named).contains("musl"));
        }
    }
}
