"""What is installed: the configurations go along with the package, into a wheel and into the container."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from asid import drive

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.toml"))


def test_the_wheel_is_told_to_take_the_configurations_along():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {"configs": "asid/configs"}


def test_the_container_has_them_when_it_builds_the_package():
    """A path to be included by force must be there, or the build fails."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    install = next(at for at, line in enumerate(lines) if line.startswith("RUN pip install"))
    before = [word for line in lines[:install] if line.startswith("COPY") for word in line.split()[1:-1]]
    assert {"asid", "configs", "pyproject.toml", "README.md", "LICENSE"} <= set(before)
    kept = (ROOT / ".dockerignore").read_text().split()
    assert {f"!{name}" for name in before} <= set(kept)


@pytest.mark.slow
def test_a_wheel_holds_them(tmp_path):
    line = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT]
    subprocess.run(line, check=True, timeout=50)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert [f"asid/{name}" for name in CONFIGS] == sorted(name for name in names if "/configs/" in name)


def test_they_are_found_beside_the_package_or_in_it(tmp_path, monkeypatch):
    assert drive.configs_dir() == ROOT / "configs"
    installed = tmp_path / "site" / "asid"
    (installed / "configs").mkdir(parents=True)
    monkeypatch.setattr(drive, "__file__", str(installed / "drive.py"))
    with pytest.raises(drive.InputError) as caught:
        drive.configs_dir()
    error = caught.value
    assert all((error.what, error.where, error.state, error.allowed, error.hint))
    (installed / "configs" / "smt2.toml").touch()
    assert drive.configs_dir() == installed / "configs"
    monkeypatch.chdir(tmp_path)
    assert drive.shown_config("smt2.toml") == str(installed / "configs" / "smt2.toml")
    monkeypatch.chdir(ROOT)
    assert drive.shown_config("smt2.toml") == "configs/smt2.toml"
