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
            let help = match named {
                Some(_) => "name the driver's libnvidia-ml.so.1, or unset the variable",
                None => {
                    "install the NVIDIA driver, or name the library in AUTOCVD_NVML_LIB (in a \
                     container: start it with its GPUs, such as --gpus all, and \
                     NVIDIA_DRIVER_CAPABILITIES=utility)"
                }
            };
            format!(
                "NVML: cannot load {library}: {}; {help}",
                cause.replace('\n', " ")
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
