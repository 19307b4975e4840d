//! The programs and directories that the measurements need.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The program that is measured.
pub(crate) const AUTOCVD: &str = env!("CARGO_BIN_EXE_autocvd");

/// A stand-in that answers what the programs measured here ask, at once.
const NVIDIA_SMI: &str = r#"#!/bin/sh
case "$*" in
"-q -x") exec cat "$0.xml" ;;
-L) for gpu in 0 1 2 3 4 5 6 7; do echo "GPU $gpu: NVIDIA A100-SXM4-80GB (UUID: GPU-$gpu)"; done ;;
--query-compute-apps=*) ;;
*) exit 2 ;;
esac
"#;

pub(crate) struct Bench {
    directory: tempfile::TempDir,
    /// What build.sh makes.
    native: PathBuf,
}

impl Bench {
    pub(crate) fn set_up() -> io::Result<Self> {
        let native = target().join("bench-native");
        let built = Command::new("benches/native/build.sh")
            .arg(&native)
            .status()?;
        if !built.success() {
            return Err(io::Error::other(
                "benches/native/build.sh failed; it needs cc, a C compiler",
            ));
        }
        let directory = tempfile::Builder::new()
            .prefix("autocvd-bench-")
            .tempdir()?;
        let smi = directory.path().join("bin/nvidia-smi");
        fs::create_dir(directory.path().join("bin"))?;
        fs::write(&smi, NVIDIA_SMI)?;
        fs::set_permissions(&smi, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        fs::copy(
            "tests/fixtures/smi/535.xml",
            directory.path().join("bin/nvidia-smi.xml"),
        )?;
        fs::create_dir(directory.path().join("lib"))?;
        let library = directory.path().join("lib/libnvidia-ml.so.1");
        std::os::unix::fs::symlink(native.join("libfree_nvml.so"), library)?;
        Ok(Self { directory, native })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn native(&self, name: &str) -> PathBuf {
        self.native.join(name)
    }

    /// Any program, in a clean environment of a usual size. It finds the library and nvidia-smi of
    /// this directory.
    pub(crate) fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command
            .env_clear()
            .env(
                "PATH",
                format!(
                    "{}:/usr/local/bin:/usr/bin:/bin",
                    self.path("bin").display()
                ),
            )
            .env("LD_LIBRARY_PATH", self.path("lib"))
            .env("AUTOCVD_CLAIM_DIR", self.path("claims"))
            .envs([
                ("HOME", "/root"),
                ("USER", "root"),
                ("LOGNAME", "root"),
                ("SHELL", "/bin/sh"),
            ])
            .envs([
                ("LANG", "C.UTF-8"),
                ("TERM", "xterm"),
                ("PWD", "/"),
                ("SHLVL", "1"),
            ]);
        command
    }

    pub(crate) fn autocvd(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(AUTOCVD);
        command.args(arguments);
        command
    }

    /// Ends all leases: the next run finds the directory of claims as the one before did.
    pub(crate) fn forget_claims(&self) {
        for entry in fs::read_dir(self.path("claims"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let _ = fs::remove_file(entry.path());
        }
    }

    /// The peak memory of a program in KiB and its processor time in microseconds.
    pub(crate) fn usage(&self, command: &Command) -> io::Result<(f64, f64)> {
        let file = self.path("usage");
        let mut wrapped = self.command(self.native("usage"));
        wrapped
            .arg(&file)
            .arg(command.get_program())
            .args(command.get_args());
        for (name, value) in command.get_envs() {
            wrapped.env(name, value.unwrap_or_default());
        }
        wrapped
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .status()?;
        let text = fs::read_to_string(file)?;
        let mut numbers = text
            .split_whitespace()
            .filter_map(|number| number.parse().ok());
        numbers
            .next()
            .zip(numbers.next())
            .ok_or_else(|| io::Error::other(format!("usage wrote {text:?}")))
    }
}

/// Cargo's target directory.
pub(crate) fn target() -> PathBuf {
    let profile = Path::new(AUTOCVD).parent().and_then(Path::parent);
    profile
        .expect("cargo puts programs into target/<profile>")
        .to_owned()
}
