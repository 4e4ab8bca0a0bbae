"""What a user installs: the wheel holds the four packages and the public module, and its script starts."""

from __future__ import annotations

import configparser
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("schemas", "pipeline", "workers", "deploy")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built by pip from a copy of the tracked and new files, without build isolation so that it stays offline."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True,
    ).stdout.decode().split("\0")  # fmt: skip
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", str(target)]
    subprocess.run([*command, str(source)], check=True, capture_output=True, timeout=120)
    return zipfile.ZipFile(next(target.glob("*.whl")))


def test_every_module_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    expected = {"headworks.py"}
    for package in PACKAGES:
        expected |= {str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*.py")}
        expected.add(f"{package}/py.typed")
    assert expected <= names, f"not in the wheel: {sorted(expected - names)}"


def test_templates_are_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    data = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix in {".html", ".css", ".js", ".j2", ".json"}
    }
    assert data
    assert data <= set(wheel.namelist())


def test_nothing_else_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    strangers = {top for top in tops if top not in {*PACKAGES, "headworks.py"} and not top.endswith(".dist-info")}
    assert not strangers


def test_console_scripts_resolve_from_the_wheel(wheel: zipfile.ZipFile) -> None:
    points = configparser.ConfigParser()
    points.read_string(wheel.read(next(n for n in wheel.namelist() if n.endswith("entry_points.txt"))).decode())
    scripts = dict(points["console_scripts"])
    assert set(scripts) == {"headworks"}
    for target in scripts.values():
        module, function = target.split(":")
        path = module.replace(".", "/") + ".py"
        assert path in wheel.namelist()
        assert f"def {function}(" in wheel.read(path).decode()


def test_the_installed_script_starts() -> None:
    script = Path(sys.executable).with_name("headworks")
    answer = subprocess.run([script, "--help"], check=True, capture_output=True, text=True, timeout=60)
    assert "run" in answer.stdout
    assert "submit" in answer.stdout
