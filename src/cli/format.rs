//! The forms in which a choice is printed.
//!
//! Nothing is quoted for a shell: ids are digits and the characters of UUIDs, which no shell reads
//! otherwise; the library lets no others through.

use super::options::Syntax;

/// Tells a program how many bytes its share is of.
pub(super) const MEMORY: &str = "AUTOCVD_MEMORY";

/// Assignments in front of a command.
pub(super) fn prefix(syntax: Syntax, variables: &[(&str, String)]) -> String {
    let assignments = join(variables, |name, value| format!("{name}={value}"));
    match syntax {
        Syntax::Posix | Syntax::Fish => assignments,
        Syntax::Csh => format!("env {assignments}"),
    }
}

/// Assignments for the shell itself and all that it starts.
pub(super) fn export(syntax: Syntax, variables: &[(&str, String)]) -> String {
    match syntax {
        Syntax::Posix => {
            format!(
                "export {}",
                join(variables, |name, value| format!("{name}={value}"))
            )
        }
        Syntax::Csh => join(variables, |name, value| format!("setenv {name} {value} ;")),
        Syntax::Fish => join(variables, |name, value| format!("set -gx {name} {value} ;")),
    }
}

/// The arguments of `docker run` that give a container these GPUs. docker reads a comma only
/// within quotes, and a shell that splits this text into words leaves them in place.
pub(super) fn docker(ids: &[String], memory: Option<u64>) -> String {
    format!("--gpus \"device={}\"", ids.join(",")) + &container_memory(memory)
}

/// The arguments of `podman run`, or of docker with CDI.
pub(super) fn cdi(ids: &[String], memory: Option<u64>) -> String {
    let devices: Vec<String> = ids
        .iter()
        .map(|id| format!("--device nvidia.com/gpu={id}"))
        .collect();
    devices.join(" ") + &container_memory(memory)
}

/// The argument of either that tells a container of its share.
fn container_memory(memory: Option<u64>) -> String {
    memory.map_or_else(String::new, |bytes| format!(" --env {MEMORY}={bytes}"))
}

fn join(variables: &[(&str, String)], one: impl Fn(&str, &str) -> String) -> String {
    variables
        .iter()
        .map(|(name, value)| one(name, value))
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shell_gets_its_own_syntax() {
        let variables = [("ORDER", "PCI".to_owned()), ("IDS", "1,2".to_owned())];
        for (syntax, in_front, exported) in [
            (
                Syntax::Posix,
                "ORDER=PCI IDS=1,2",
                "export ORDER=PCI IDS=1,2",
            ),
            (
                Syntax::Fish,
                "ORDER=PCI IDS=1,2",
                "set -gx ORDER PCI ; set -gx IDS 1,2 ;",
            ),
            (
                Syntax::Csh,
                "env ORDER=PCI IDS=1,2",
                "setenv ORDER PCI ; setenv IDS 1,2 ;",
            ),
        ] {
            assert_eq!(prefix(syntax, &variables), in_front);
            assert_eq!(export(syntax, &variables), exported);
        }
    }

    #[test]
    fn container_engines_get_arguments() {
        let ids = ["1".to_owned(), "2".to_owned()];
        assert_eq!(docker(&ids, None), "--gpus \"device=1,2\"");
        assert_eq!(
            cdi(&ids, None),
            "--device nvidia.com/gpu=1 --device nvidia.com/gpu=2"
        );
        assert_eq!(
            cdi(&ids[..1], Some(5)),
            "--device nvidia.com/gpu=1 --env AUTOCVD_MEMORY=5"
        );
    }
}
