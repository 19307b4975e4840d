"""What `cargo build --release` and `cargo build --release -p fake-nvml` have built."""

import os
import pathlib

_root = pathlib.Path(__file__).parent.parent
release = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", _root / "target")) / "release"
#: The program to measure: AUTOCVD names another one.
AUTOCVD = os.environ.get("AUTOCVD", str(release / "autocvd"))


def fake_nvml():
    """The fake driver's library, which cargo puts into one of two places."""
    places = [release / "libfake_nvml.so", release / "deps/libfake_nvml.so"]
    return next(path for path in places if path.exists())
