import re
from pathlib import Path

from setuptools import setup

# One source for the version: [workspace.package] of Cargo.toml.
manifest = Path(__file__).with_name("Cargo.toml").read_text(encoding="utf-8")
setup(
    version=re.search(r'^version = "(.+)"$', manifest, re.MULTILINE)[1],
    # pyo3's feature abi3-py39 in python/Cargo.toml.
    options={"bdist_wheel": {"py_limited_api": "cp39"}},
)
