//! What went wrong when nvidia-smi failed, and what helps.

/// What nvidia-smi writes when it fails, and what to do about it. The first that fits is taken, so
/// the particular stand before the general.
const MESSAGES: [(&str, &str); 13] = [
    (
        "driver/library version mismatch",
        "the driver was upgraded while the old one is still loaded: reboot, or reload the nvidia \
         kernel modules",
    ),
    (
        "gpu is lost",
        "a GPU has fallen off the bus: see 'dmesg' for its Xid error, then reboot (or reset the \
         GPU)",
    ),
    (
        "requires reset",
        "end what runs on the GPU, then run 'nvidia-smi --gpu-reset' as root, or reboot",
    ),
    (
        "unable to determine the device handle",
        "a GPU does not answer: see 'dmesg' for its Xid error, then reset it or reboot; in a \
         container, restart that",
    ),
    (
        "insufficient permissions",
        "ask for access to /dev/nvidiactl and /dev/nvidia*, or pass the GPUs to the container \
         (docker run --gpus all)",
    ),
    (
        "couldn't find libnvidia-ml",
        "install the driver's libraries, or pass the GPUs to the container (docker run --gpus all)",
    ),
    (
        "couldn't communicate with the nvidia driver",
        "load the driver with 'modprobe nvidia' as root; if that fails, reinstall it for this \
         kernel",
    ),
    (
        "driver not loaded",
        "load it with 'modprobe nvidia' as root; if that fails, reinstall it for this kernel",
    ),
    (
        "blocked by the operating system",
        "in WSL2, update the Windows driver and run 'wsl --update'; in a container, pass it the \
         GPUs",
    ),
    (
        "no devices were found",
        "the driver sees no GPU: look for one with 'lspci | grep -i nvidia' and for its errors in \
         'dmesg'",
    ),
    (
        "unknown error",
        "in a container, restart it: it has lost its device cgroup; else see 'dmesg' for NVRM \
         lines, then reboot",
    ),
    (
        "function not found",
        "nvidia-smi and the driver's library are of different versions: reinstall the driver",
    ),
    (
        "invalid combination of input arguments",
        "this nvidia-smi is too old: update the driver",
    ),
];

/// The exit codes of nvidia-smi's manual page (and 17, 18: NVML's own), for when it says nothing.
const CODES: [(i32, &str); 13] = [
    (
        2,
        "it does not know the arguments '-q -x': update the driver",
    ),
    (
        3,
        "the device or the driver does not support the query: update the driver",
    ),
    (
        4,
        "no permission: ask for access to /dev/nvidiactl and /dev/nvidia*",
    ),
    (
        6,
        "no device was found: look for one with 'lspci | grep -i nvidia' and for its errors in \
         'dmesg'",
    ),
    (8, "a GPU lacks power: plug in its external power cables"),
    (
        9,
        "the driver is not loaded: run 'modprobe nvidia' as root; if that fails, reinstall it for \
         this kernel",
    ),
    (
        10,
        "the kernel found an interrupt problem with a GPU: see 'dmesg' for it",
    ),
    (
        12,
        "the library libnvidia-ml.so was not found: install the driver's libraries, or pass the \
         GPUs to the container",
    ),
    (
        13,
        "nvidia-smi and the driver's library are of different versions: reinstall the driver",
    ),
    (
        15,
        "a GPU has fallen off the bus: see 'dmesg' for its Xid error, then reset it or reboot",
    ),
    (
        17,
        "the operating system blocks the GPU: in WSL2, update the Windows driver; in a container, \
         pass it the GPUs",
    ),
    (
        18,
        "the driver was upgraded while the old one is still loaded: reboot, or reload the nvidia \
         kernel modules",
    ),
    (
        255,
        "an internal error of the driver, or no GPU that it supports: see 'dmesg' for NVRM lines",
    ),
];

/// Says in one line what nvidia-smi's exit code (`None`: a signal ended it) and its output mean,
/// and what helps. `text` is what it wrote on either of stdout and stderr: its messages come on
/// both.
pub(crate) fn explain(code: Option<i32>, text: &str) -> String {
    let said = said(text);
    let lower: Vec<String> = messages(text).map(str::to_ascii_lowercase).collect();
    let message = MESSAGES
        .iter()
        .find(|(message, _)| lower.iter().any(|line| line.contains(message)));
    let message = message.map(|(_, help)| *help);
    let meaning = code
        .and_then(|code| CODES.iter().find(|(known, _)| *known == code))
        .map(|(_, help)| *help);
    let how = match code {
        Some(code) => format!("exit code {code}"),
        None => "ended by a signal".to_owned(),
    };
    let help = message
        .or(meaning)
        .unwrap_or("run 'nvidia-smi' yourself to see what is wrong");
    match said {
        Some(said) => format!("nvidia-smi says '{said}' ({how}): {help}"),
        None => format!("nvidia-smi failed ({how}): {help}"),
    }
}

/// The lines that are not XML, where permissions may be insufficient for one metric or another.
fn messages(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('<'))
}

/// The line of its output to quote: the one with a known message in preference.
fn said(text: &str) -> Option<String> {
    const LONGEST: usize = 160;
    let known = |line: &&str| {
        let line = line.to_ascii_lowercase();
        MESSAGES.iter().any(|(message, _)| line.contains(message))
    };
    let line = messages(text)
        .find(known)
        .or_else(|| messages(text).next())?;
    let clean: String = line
        .chars()
        .filter(|char| !char.is_control())
        .take(LONGEST)
        .collect();
    Some(clean.trim_end_matches('.').to_owned())
}

#[cfg(test)]
mod tests {
    use super::explain;

    #[test]
    fn every_known_failure_says_what_helps() {
        // (exit code, what it wrote, what the explanation must hold)
        let table: [(Option<i32>, &str, &[&str]); 21] = [
            (
                Some(18),
                "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: \
                 535.161\n",
                &["Driver/library version mismatch'", "reboot, or reload"],
            ),
            (Some(18), "", &["exit code 18", "reboot, or reload"]),
            (
                Some(255),
                "Failed to initialize NVML: Unknown Error\n",
                &[
                    "'Failed to initialize NVML: Unknown Error'",
                    "container, restart",
                ],
            ),
            (
                Some(15),
                "Unable to determine the device handle for GPU 0000:02:00.0: GPU is lost.  \
                 Reboot the system to recover this GPU\n",
                &["GPU 0000:02:00.0", "fallen off the bus", "reboot"],
            ),
            (
                Some(255),
                "Unable to determine the device handle for GPU0000:17:00.0: Unknown Error\n",
                &["GPU0000:17:00.0", "Xid", "reset it or reboot"],
            ),
            (
                Some(15),
                "",
                &["exit code 15", "fallen off the bus", "reboot"],
            ),
            (
                Some(6),
                "No devices were found\n",
                &["'No devices were found'", "lspci"],
            ),
            // Older versions succeed at finding nothing.
            (
                Some(0),
                "No devices were found\n",
                &["'No devices were found'", "lspci"],
            ),
            (Some(6), "", &["no device", "lspci"]),
            (
                Some(9),
                "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. \
                 Make sure that the latest NVIDIA driver is installed and running.\n\n",
                &["couldn't communicate", "modprobe nvidia"],
            ),
            (
                Some(9),
                "\nFailed to properly shut down NVML: Driver Not Loaded\n",
                &["Driver Not Loaded", "modprobe nvidia"],
            ),
            (Some(9), "", &["modprobe nvidia"]),
            (
                Some(12),
                "NVIDIA-SMI couldn't find libnvidia-ml.so library in your system. Please make sure \
                 that the NVIDIA Display Driver is properly installed and present in your system.\n\
                 Please also try adding directory that contains libnvidia-ml.so to your system \
                 PATH.\n",
                &["couldn't find libnvidia-ml.so", "--gpus all"],
            ),
            (
                Some(4),
                "Failed to initialize NVML: Insufficient Permissions\n",
                &["Insufficient Permissions'", "/dev/nvidiactl", "--gpus all"],
            ),
            (
                Some(17),
                "Failed to initialize NVML: GPU access blocked by the operating system\n",
                &["blocked by the operating system'", "wsl --update"],
            ),
            (Some(13), "", &["different versions", "reinstall"]),
            (Some(8), "", &["power cables"]),
            (Some(1), "", &["exit code 1", "run 'nvidia-smi' yourself"]),
            (
                None,
                "",
                &["ended by a signal", "run 'nvidia-smi' yourself"],
            ),
            (
                Some(3),
                "Something\x1b[31m new\r\nmore\n",
                &["'Something[31m new' (exit code 3)", "does not support"],
            ),
            (
                Some(2),
                "<?xml version=\"1.0\" ?>\n<a>\nOops.\n",
                &["'Oops' (exit code 2)", "update the driver"],
            ),
        ];
        for (code, text, expected) in table {
            let line = explain(code, text);
            for part in expected {
                assert!(line.contains(part), "{code:?} {text:?} gave: {line}");
            }
            assert!(
                !line.contains('\n') && !line.contains('\x1b'),
                "one plain line: {line:?}"
            );
        }
    }

    #[test]
    fn a_known_message_is_quoted_before_the_first_line() {
        let line = explain(Some(255), "Some banner\nNo devices were found\n");
        assert!(
            line.starts_with("nvidia-smi says 'No devices were found' (exit code 255): "),
            "{line}"
        );
    }

    #[test]
    fn what_the_document_says_of_a_metric_is_no_message() {
        let line = explain(
            Some(15),
            "<gpu>\n\t<power_smoothing>Insufficient Permissions</power_smoothing>\n",
        );
        assert_eq!(line, explain(Some(15), ""));
    }

    #[test]
    fn a_long_line_is_cut() {
        assert!(explain(Some(1), &"x".repeat(100_000)).len() < 300);
    }
}
