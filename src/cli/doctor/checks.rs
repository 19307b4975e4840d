//! The checks, one function each.

use super::mounts::{self, Mount};
use super::{Answer, Finding, LIMIT, Machine};
use autocvd::text::duration;
use autocvd::{Environment, ProcessView, Source, Verdict};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// A driver that takes longer initializes GPUs at each launch.
const SLOW: Duration = Duration::from_secs(1);
/// The first Linux whose pidfds tell how a process has ended that is no child (PIDFD_GET_INFO).
const EXIT_CODES: (u32, u32) = (6, 15);
/// Filesystems that other hosts share.
const NETWORK: [&str; 7] = ["nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "beegfs"];

pub(super) fn all(environment: &Environment, answer: &Answer) -> Vec<Finding> {
    let mounts = mounts::all();
    let mut findings = Vec::new();
    match answer {
        Answer::Machine(machine) => of_machine(machine, environment, &mut findings),
        Answer::Nothing(error) => findings.push(Finding::unwell(
            "driver",
            error.to_string(),
            "mend what this line names; 'autocvd -vv -t 0' tells each step",
        )),
        Answer::Hangs => findings.push(Finding::unwell(
            "driver",
            format!("no answer within {}", duration(LIMIT)),
            "see dmesg for Xid errors of the driver; a reboot may be needed",
        )),
    }
    findings.push(config(environment));
    findings.extend(claim_directory(&environment.claim_dir, &mounts));
    findings.extend([
        hidepid(&mounts),
        failed_commands(&rustix::system::uname().release().to_string_lossy()),
        batch_job(environment),
        visible_devices(environment),
        device_order(),
    ]);
    findings
}

fn of_machine(machine: &Machine, environment: &Environment, findings: &mut Vec<Finding>) {
    findings.extend([
        driver(machine),
        library(machine, environment),
        persistence(machine),
        gpus(machine),
        processes(machine),
        claims(machine),
    ]);
    for text in &machine.warnings {
        let advice = "other launches may pick the same GPUs until that is mended";
        findings.push(Finding::unwell("warning", text, advice));
    }
}

fn driver(machine: &Machine) -> Finding {
    let version = machine.snapshot.driver_version.as_deref();
    let version = version.unwrap_or("of unknown version");
    let text = format!("{version}, read in {} ms", machine.took.as_millis());
    match machine.took > SLOW {
        true => Finding::unwell("driver", text, "enable nvidia-persistenced (see below)"),
        false => Finding::well("driver", text),
    }
}

fn library(machine: &Machine, environment: &Environment) -> Finding {
    if machine.snapshot.source == Source::NvidiaSmi {
        return Finding::unwell(
            "NVML",
            "not to be loaded; nvidia-smi is run instead, which takes longer",
            "'autocvd -v' says why; AUTOCVD_NVML_LIB names the library",
        );
    }
    let named = environment.nvml_library.as_ref();
    let named = named.and_then(|path| fs::canonicalize(path).ok());
    let is_nvml =
        |path: &&str| path.contains("libnvidia-ml") || named.as_deref() == Some(Path::new(path));
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let mut paths = maps.lines().filter_map(|line| {
        let at = line.find('/')?;
        Some(&line[at..])
    });
    match paths.find(is_nvml) {
        Some(path) => Finding::well("NVML", path),
        None => Finding::well("NVML", "loaded"),
    }
}

fn persistence(machine: &Machine) -> Finding {
    const SUBJECT: &str = "persistence mode";
    let off = machine.persistence.iter().filter(|(_, is_on)| !is_on);
    let off: Vec<String> = off.map(|(gpu, _)| gpu.to_string()).collect();
    if machine.persistence.is_empty() {
        Finding::well(SUBJECT, "unknown")
    } else if off.is_empty() {
        Finding::well(SUBJECT, "on")
    } else {
        Finding::unwell(
            SUBJECT,
            format!("off on GPU {}", off.join(", ")),
            "each launch may pay for the initialization of GPUs: 'systemctl enable --now \
             nvidia-persistenced' as root",
        )
    }
}

fn gpus(machine: &Machine) -> Finding {
    const SUBJECT: &str = "GPUs";
    let (mut unavailable, mut unknowable) = (Vec::new(), Vec::new());
    let mut free = 0;
    for device in machine.snapshot.devices() {
        match device.verdict() {
            Verdict::Free => free += 1,
            Verdict::Unavailable(why) => unavailable.push(format!("{}: {why}", device.label())),
            Verdict::Unknowable(why) => unknowable.push(format!("{}: {why}", device.label())),
            _ => {}
        }
    }
    let all = machine.snapshot.devices().count();
    let text = format!("{free} of {all} free");
    let is_reserved = |text: &String| text.contains("reserved in /etc/");
    if !unavailable.iter().all(is_reserved) {
        let advice = match unavailable.len() == all {
            true => "none can be given until one of these is mended",
            false => "the other GPUs serve meanwhile; 'autocvd status' shows each reason",
        };
        let text = format!("{text}; not usable: {}", unavailable.join("; "));
        Finding::unwell(SUBJECT, text, advice)
    } else if !unknowable.is_empty() {
        Finding::unwell(
            SUBJECT,
            format!("{text}; {}", unknowable.join("; ")),
            "a launch takes such a GPU with '-l' alone; '--only' and '-x' narrow the choice",
        )
    } else {
        Finding::well(SUBJECT, text)
    }
}

fn processes(machine: &Machine) -> Finding {
    const SUBJECT: &str = "PID namespace";
    match machine.snapshot.process_view {
        ProcessView::Host => Finding::well(SUBJECT, "the host's: process lists are complete"),
        ProcessView::Container => Finding::well(
            SUBJECT,
            "a container's: memory and utilization tell whether a GPU is in use",
        ),
        _ => Finding::well(SUBJECT, "WSL2: no process can be listed"),
    }
}

fn claims(machine: &Machine) -> Finding {
    let devices = machine.snapshot.devices();
    let claims = devices.flat_map(|device| {
        let tell = move |claim: &autocvd::ClaimInfo| {
            let pid = claim.pid.map_or("?".to_owned(), |pid| pid.to_string());
            let user = claim.user.as_deref().unwrap_or("?");
            let version = claim.version.as_deref().unwrap_or("of unknown version");
            let label = device.label();
            format!("{label} by pid {pid} ({user}, autocvd {version})")
        };
        device.claims().iter().map(tell)
    });
    let claims: Vec<String> = claims.collect();
    let unclaimable = machine.snapshot.devices().filter_map(|device| {
        let why = device.unclaimable()?;
        Some(format!("{} cannot be claimed: {why}", device.label()))
    });
    let unclaimable: Vec<String> = unclaimable.collect();
    match (unclaimable.is_empty(), claims.is_empty()) {
        (false, _) => Finding::unwell(
            "claims",
            unclaimable.join("; "),
            "have root run 'autocvd status', which moves away what is no file, or remove it",
        ),
        (true, true) => Finding::well("claims", "none"),
        (true, false) => Finding::well("claims", claims.join(", ")),
    }
}

fn config(environment: &Environment) -> Finding {
    const SUBJECT: &str = "/etc/autocvd.conf";
    let site = environment.site();
    if !site.warnings.is_empty() {
        return Finding::unwell(
            SUBJECT,
            site.warnings.join("; "),
            "mend these lines, or the owner and mode of the file",
        );
    }
    let mut settings = Vec::new();
    if !site.exclude.is_empty() {
        settings.push(format!("exclude {}", site.exclude.join(", ")));
    }
    settings.extend(
        site.ignore
            .iter()
            .map(|path| format!("ignore {}", path.display())),
    );
    settings.extend(site.max_per_user.map(|most| format!("max_per_user {most}")));
    settings.extend(
        site.claim_dir
            .iter()
            .map(|path| format!("claim_dir {}", path.display())),
    );
    match settings.is_empty() {
        true => Finding::well(SUBJECT, "sets nothing"),
        false => Finding::well(SUBJECT, settings.join("; ")),
    }
}

fn claim_directory(path: &Path, mounts: &[Mount]) -> Vec<Finding> {
    const SUBJECT: &str = "claim directory";
    let shown = path.display();
    let mut findings = Vec::new();
    let mount = mounts::of(path, mounts);
    let filesystem = mount.map_or("unknown filesystem", |mount| &mount.filesystem);
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => findings.push(Finding::well(
            SUBJECT,
            format!("{shown}, on {filesystem}; the first launch makes it"),
        )),
        Err(error) => findings.push(Finding::unwell(
            SUBJECT,
            format!("'{shown}': {error}"),
            "name a directory that all users can write in AUTOCVD_CLAIM_DIR or /etc/autocvd.conf",
        )),
        Ok(meta) => {
            let (owner, mode) = (meta.uid(), meta.mode() & 0o7777);
            let text = format!("{shown}, owner {owner}, mode {mode:04o}, on {filesystem}");
            findings.push(match (meta.is_dir(), mode) {
                (true, 0o1777) => Finding::well(SUBJECT, text),
                (true, _) => Finding::unwell(
                    SUBJECT,
                    text,
                    format!("'chmod 1777 {shown}', unless it is for these users alone"),
                ),
                (false, _) => Finding::unwell(SUBJECT, text, "it is no directory: remove it"),
            });
        }
    }
    if NETWORK.contains(&filesystem) {
        findings.push(Finding::unwell(
            "filesystem",
            format!("{filesystem}: other hosts share it"),
            "claims are about one machine: use a directory on a local filesystem",
        ));
    }
    if mount.is_some_and(|mount| mount.root.contains("systemd-private")) {
        findings.push(Finding::unwell(
            "PrivateTmp",
            format!("this service has a {} of its own", path.display()),
            "launches outside do not see its claims: BindPaths= in the unit, or PrivateTmp=no",
        ));
    }
    if path.starts_with("/tmp") && is_cleaned(path) {
        findings.push(Finding::well(
            "cleaner",
            "systemd-tmpfiles may remove old files of /tmp; nothing is lost by that, and \
             'd /run/autocvd 1777 root root -' in /etc/tmpfiles.d avoids it",
        ));
    }
    findings
}

/// Whether systemd-tmpfiles cleans /tmp and is told nothing about this directory.
fn is_cleaned(path: &Path) -> bool {
    let directories = ["/etc/tmpfiles.d", "/run/tmpfiles.d", "/usr/lib/tmpfiles.d"];
    let files = directories
        .iter()
        .filter_map(|path| fs::read_dir(path).ok());
    let texts = files
        .flatten()
        .flatten()
        .filter_map(|file| fs::read_to_string(file.path()).ok());
    let lines: Vec<String> = texts
        .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let mentions = |wanted: &str| {
        let word = |line: &String| line.split_whitespace().nth(1) == Some(wanted);
        lines.iter().any(word)
    };
    mentions("/tmp") && !path.to_str().is_some_and(mentions)
}

fn hidepid(mounts: &[Mount]) -> Finding {
    let proc = mounts::of(Path::new("/proc"), mounts);
    let options = proc.map_or(&[][..], |mount| &mount.options);
    let value = options
        .iter()
        .find_map(|option| option.strip_prefix("hidepid="));
    match value {
        None | Some("0" | "off") => Finding::well("hidepid", "off"),
        Some(value) => Finding::well(
            "hidepid",
            format!("{value}: other users' processes are hidden; status tells less of them"),
        ),
    }
}

/// Whether this kernel, of which `uname -r` says so, tells how a COMMAND ends to the process that
/// holds its claim.
fn failed_commands(release: &str) -> Finding {
    const SUBJECT: &str = "failed commands";
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next().and_then(|digits| digits.parse::<u32>().ok());
    let (major, minor) = (number(), number());
    match major
        .zip(minor)
        .is_some_and(|version| version >= EXIT_CODES)
    {
        true => Finding::well(
            SUBJECT,
            "noticed: a GPU on which two in a row fail is given last",
        ),
        false => Finding::well(
            SUBJECT,
            format!(
                "Linux {release} does not tell of each (6.15 does): a GPU on which commands fail \
                 may be given first all the same"
            ),
        ),
    }
}

fn batch_job(environment: &Environment) -> Finding {
    match environment.batch_job {
        None => Finding::well("batch job", "none"),
        Some(variable) => Finding::well(
            "batch job",
            format!("{variable} is set: the choice is among what CUDA_VISIBLE_DEVICES allows"),
        ),
    }
}

fn visible_devices(environment: &Environment) -> Finding {
    const SUBJECT: &str = "CUDA_VISIBLE_DEVICES";
    match environment.cuda_visible_devices.as_deref() {
        None => Finding::well(
            SUBJECT,
            "not set: a program that is started without autocvd sees every GPU",
        ),
        Some("" | "-1") => Finding::well(
            SUBJECT,
            "no GPU: a program that is started without autocvd sees none",
        ),
        Some(value) => Finding::well(SUBJECT, format!("'{value}'")),
    }
}

fn device_order() -> Finding {
    const SUBJECT: &str = "CUDA_DEVICE_ORDER";
    match std::env::var(SUBJECT).ok().as_deref() {
        None | Some("") => Finding::well(SUBJECT, "not set; autocvd sets PCI_BUS_ID"),
        Some("PCI_BUS_ID") => Finding::well(SUBJECT, "PCI_BUS_ID"),
        Some(value) => Finding::well(
            SUBJECT,
            format!("'{value}': CUDA may count GPUs in another order than nvidia-smi"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_tells_no_exit_codes_is_told_of() {
        let notices = |release: &str| failed_commands(release).text.starts_with("noticed");
        for release in ["6.15.0", "6.15-rc1", "6.18.44-fc-v657", "7.0.1", "10.2"] {
            assert!(notices(release), "{release}");
        }
        for release in [
            "6.14.0-37-generic",
            "5.15.167.4-microsoft-standard-WSL2",
            "6",
            "",
            "junk",
        ] {
            assert!(!notices(release), "{release}");
        }
        let old = failed_commands("6.8.0-87-generic");
        assert!(old.text.contains("Linux 6.8.0-87-generic"), "{}", old.text);
        assert!(old.advice.is_none(), "nothing is wrong with that");
    }
}
