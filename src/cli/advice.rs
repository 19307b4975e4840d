//! What to do about an error, in the words of the command line: the library's texts name no option.

use autocvd::{Error, IdList, Restriction, Shortage};

/// The names of the options or variables that the values came from, for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Origins {
    pub(super) exclude: &'static str,
    pub(super) only: &'static str,
    pub(super) min_free_memory: &'static str,
    pub(super) from: &'static str,
}

impl Default for Origins {
    fn default() -> Self {
        Self {
            exclude: "--exclude",
            only: "--only",
            min_free_memory: "--min-free-memory",
            from: "--from",
        }
    }
}

/// The error in one line that ends with what to do. `names` says where values came from.
pub(super) fn with_advice(error: &Error, names: &Origins) -> String {
    match error {
        Error::UnknownDevice { list, num_gpus, .. } => {
            let more = match num_gpus {
                0 | 1 => "",
                _ => " ('autocvd status' shows them)",
            };
            format!("{}: {error}{more}", option_of(*list, names))
        }
        Error::AmbiguousDevice { list, .. } => format!("{}: {error}", option_of(*list, names)),
        Error::UnreadableFile { .. } => {
            let origin = names.from;
            format!("{origin} {error}; give a file that 'autocvd status --json' wrote")
        }
        Error::UnusableUuid { index, .. } => format!("{error}; leave it out with -x {index}"),
        Error::NothingVisible { .. } => {
            format!("{error}; ask the batch system for GPUs, or unset it")
        }
        Error::Impossible(shortage) => format!("{error}; {}", about_shortage(shortage, names)),
        Error::TimedOut(timeout) if timeout.least_used => format!("{error}; try again later"),
        Error::TimedOut(timeout) if timeout.over_limit => {
            format!("{error}; wait longer (--timeout), or end a job of yours")
        }
        Error::TimedOut(timeout) if timeout.share => {
            let size = names.min_free_memory;
            format!("{error}; wait longer (--timeout), or ask for a smaller share ({size})")
        }
        Error::TimedOut(_) => {
            format!("{error}; wait longer (--timeout), or take the least used (-l)")
        }
        _ => error.to_string(),
    }
}

fn option_of(list: IdList, names: &Origins) -> &'static str {
    match list {
        IdList::Only => names.only,
        IdList::Exclude => names.exclude,
    }
}

/// Names what was in the way, and no more.
fn about_shortage(shortage: &Shortage, names: &Origins) -> String {
    if shortage.several_mig_devices {
        return "ask for 1".to_owned();
    }
    let allow = shortage
        .restrictions
        .iter()
        .map(|restriction| match restriction {
            Restriction::Ancestor => "run outside the autocvd around this one".to_owned(),
            Restriction::VisibleDevices => "allow more in CUDA_VISIBLE_DEVICES".to_owned(),
            Restriction::Only => format!("allow more with {}", names.only),
            Restriction::Exclude => format!("leave out fewer with {}", names.exclude),
            Restriction::MinFreeMemory => format!("ask for less with {}", names.min_free_memory),
            Restriction::MaxPerUser => {
                "ask the administrator (max_per_user in /etc/autocvd.conf)".to_owned()
            }
            Restriction::Uuid => "leave out --uuid".to_owned(),
            Restriction::Unknowable => {
                "take the least used (-l) if you know that it is free".to_owned()
            }
            _ => "allow more GPUs".to_owned(),
        });
    let allow = allow.collect::<Vec<_>>().join(", or ");
    match (shortage.usable, allow.is_empty()) {
        (0, true) => "'autocvd status' shows the machine".to_owned(),
        (0, false) => allow,
        (usable, true) => format!("ask for at most {usable}"),
        (usable, false) => format!("ask for at most {usable}, or {allow}"),
    }
}
