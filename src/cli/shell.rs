//! The syntaxes of the shells.
//!
//! Nothing is quoted: the ids are digits and the characters of UUIDs, which no shell reads otherwise;
//! the library lets no others through.

use super::args::Syntax;

/// The assignments of `variables`, to be evaluated in front of a command, or `exported`.
pub(super) fn assignments(syntax: Syntax, exported: bool, variables: &[(&str, String)]) -> String {
    let each = |one: &dyn Fn(&str, &str) -> String| {
        variables
            .iter()
            .map(|(name, value)| one(name, value))
            .collect::<Vec<_>>()
            .join(" ")
    };
    let plain = || each(&|name, value| format!("{name}={value}"));
    match (syntax, exported) {
        (Syntax::Posix | Syntax::Fish, false) => plain(),
        (Syntax::Posix, true) => format!("export {}", plain()),
        (Syntax::Csh, false) => format!("env {}", plain()),
        (Syntax::Csh, true) => each(&|name, value| format!("setenv {name} {value} ;")),
        (Syntax::Fish, true) => each(&|name, value| format!("set -gx {name} {value} ;")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shell_gets_its_own_syntax() {
        let variables = [("ORDER", "PCI".to_owned()), ("IDS", "1,2".to_owned())];
        for (syntax, exported, text) in [
            (Syntax::Posix, false, "ORDER=PCI IDS=1,2"),
            (Syntax::Posix, true, "export ORDER=PCI IDS=1,2"),
            (Syntax::Fish, false, "ORDER=PCI IDS=1,2"),
            (Syntax::Fish, true, "set -gx ORDER PCI ; set -gx IDS 1,2 ;"),
            (Syntax::Csh, false, "env ORDER=PCI IDS=1,2"),
            (Syntax::Csh, true, "setenv ORDER PCI ; setenv IDS 1,2 ;"),
        ] {
            assert_eq!(assignments(syntax, exported, &variables), text);
        }
    }
}
