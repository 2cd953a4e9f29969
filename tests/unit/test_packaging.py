"""The wheel carries every import package, its types, its licence and its doors.

Knows the built wheel and its metadata. Does not know what the packages do.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib.metadata import Distribution
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "trunkline",
    "trunkline_aiohttp",
    "trunkline_httpx",
    "trunkline_httpx2",
    "trunkline_pyreqwest",
)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content, as an installer would lay it out."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.fixture(scope="module")
def distribution(unpacked: Path) -> Distribution:
    (info,) = unpacked.glob("*.dist-info")
    return Distribution.at(info)


def test_the_wheel_holds_the_import_packages_and_nothing_else(unpacked: Path) -> None:
    found = {path.name for path in unpacked.iterdir() if path.suffix != ".dist-info"}

    assert found == set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_import_package_says_it_is_typed(unpacked: Path, package: str) -> None:
    assert (unpacked / package / "py.typed").is_file()


@pytest.mark.parametrize("package", PACKAGES)
def test_every_source_module_is_in_the_wheel(unpacked: Path, package: str) -> None:
    source = "src" if package == "trunkline" else "backends"
    written = {path.relative_to(ROOT / source) for path in (ROOT / source / package).rglob("*.py")}
    packed = {path.relative_to(unpacked) for path in (unpacked / package).rglob("*.py")}

    assert packed == written


def test_the_licence_text_travels_with_the_wheel(distribution: Distribution) -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")

    assert distribution.metadata["License-Expression"] == "BSD-3-Clause"
    assert distribution.read_text("licenses/LICENSE") == text


def test_the_backends_come_through_the_entry_points(distribution: Distribution) -> None:
    doors = distribution.entry_points.select(group="trunkline.backends")

    assert {(door.name, door.value) for door in doors} == {
        ("aiohttp", "trunkline_aiohttp:AiohttpTransport"),
        ("httpx", "trunkline_httpx:HttpxTransport"),
        ("httpx2", "trunkline_httpx2:Httpx2Transport"),
        ("pyreqwest", "trunkline_pyreqwest:PyreqwestTransport"),
    }


def test_the_command_is_installed_under_its_name(distribution: Distribution) -> None:
    scripts = distribution.entry_points.select(group="console_scripts")

    assert {(script.name, script.value) for script in scripts} == {
        ("trunkline", "trunkline.cli:main")
    }


def test_installers_are_told_which_pythons_suit(distribution: Distribution) -> None:
    suits = SpecifierSet(distribution.metadata["Requires-Python"])

    assert [minor for minor in range(8, 20) if f"3.{minor}" in suits] == [11, 12, 13]
