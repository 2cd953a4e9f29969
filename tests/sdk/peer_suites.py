"""Run the tests of httpx and of httpx-aiohttp's kind on Trunkline's adapters: what passes, and why
not the rest.

    python tests/sdk/peer_suites.py             print it
    python tests/sdk/peer_suites.py --write     and write it into docs/compat.md

The tests are not part of this project. They are taken from the source distributions that pip
downloads by name into a temporary folder, and are run there, once with the library's own transport
and once with ours on each backend. This module knows which projects, and the reasons for what does
not pass; `peer_plugin` swaps the transports. Without a package index it says so and does nothing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "compat.md"
MARK = "<!-- From here on it is written by tests/sdk/peer_suites.py. -->\n"
NEEDS = ("chardet", "rich", "trio", "trustme", "uvicorn", "zstandard")
LANES = {"own": "its own", "aiohttp": "Trunkline on aiohttp", "httpx": "Trunkline on httpx"}
NO_TRIO = "aiohttp runs on asyncio only; this is a test on trio"

# Why a test that passes with the library's own transport does not with ours.
REASONS = {
    r"test_proxies_environ|test_transport_for_request": "it looks at `_pool`, the inside of the "
    "library's own transport; the proxies themselves are Trunkline's to find",
    r"test_socks_proxy": "it looks at `_pool`, too; on aiohttp a SOCKS proxy is refused",
    r"test_httpcore_lazy_loading": "it wants httpcore to be imported by the first request",
    r"test_httpcore_exception_mapping": "it asks for port 123456, which is refused before "
    "connecting, with `LocalProtocolError` and not `ConnectError`",
    r"test_write_timeout": "the server answers 200 before it has taken the body; Trunkline gives "
    "the caller that answer, where the library ends with its write time-out",
}

Report: TypeAlias = dict[str, dict[str, str | bool]]


class Unavailable(Exception):
    """A source distribution cannot be had."""


@dataclass
class Lane:
    """What became of the tests with one transport."""

    family: str
    name: str
    report: Report


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="trunkline-peers-") as folder:
        try:
            text = compare(Path(folder))
        except Unavailable as error:
            print(f"skipped: {error}")
            return 0
    print(text)
    if "--write" in sys.argv[1:]:
        before = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
        PAGE.write_text(before + MARK + "\n" + text, encoding="utf-8")
    return 1 if "NOT EXPLAINED" in text else 0


def compare(folder: Path) -> str:
    """Download, run, and say in Markdown what came of it."""
    sources = {name: download(name, folder) for name in ("httpx2", "httpx", "httpx-aiohttp")}
    needs = install_needs(folder)
    sections = [describe(name, path) for name, path in sources.items()]
    for family in ("httpx2", "httpx"):
        suite = prepare(sources["httpx"] / "tests", family, folder)
        lanes = [run(suite, family, lane, needs) for lane in LANES]
        sections.append(table(lanes))
    return "\n".join(sections)


# -- downloading -----------------------------------------------------------------------------------


def download(name: str, folder: Path) -> Path:
    """The unpacked source distribution of the version that is installed, or else the newest."""
    wanted = f"{name}=={version(name)}" if find_spec(name.replace("-", "_")) else name
    home = folder / f"sdist-{name}"
    pip("download", "--no-deps", "--no-binary", name, "--dest", str(home), wanted)
    archive = next(home.glob("*.tar.gz"))
    with tarfile.open(archive) as opened:
        opened.extractall(home, filter="data")
    return next(path for path in home.iterdir() if path.is_dir())


def install_needs(folder: Path) -> Path:
    """A folder with what the tests import and this environment has not."""
    home = folder / "needs"
    home.mkdir()
    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        pip("install", "--target", str(home), *missing)
    return home


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        last = (ran.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise Unavailable(f"pip {arguments[0]} {arguments[-1]}: {last}")


def prepare(tests: Path, family: str, folder: Path) -> Path:
    """A copy of httpx's tests; those for httpx2, its successor, with the names it has."""
    home = folder / f"suite-{family}"
    shutil.copytree(tests, home / "tests")
    for path in home.rglob("*.py"):
        if family == "httpx2":
            text = path.read_text(encoding="utf-8")
            path.write_text(re.sub(r"\b(httpx|httpcore)\b", r"\g<1>2", text), encoding="utf-8")
    markers = "[pytest]\nfilterwarnings = error\nmarkers = network: x\n    copied_from: x\n"
    (home / "pytest.ini").write_text(markers, encoding="utf-8")
    return home


# -- running ---------------------------------------------------------------------------------------


def run(suite: Path, family: str, lane: str, needs: Path) -> Lane:
    report = suite / f"{lane}.json"
    environment = os.environ | {
        "PEER_FAMILY": family,
        "PEER_BACKEND": lane,
        "PEER_REPORT": str(report),
        "PYTHONPATH": f"{needs}{os.pathsep}{HERE}",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "peer_plugin", "-p", "no:cacheprovider"]
    # The tests of the command line are of what it prints.
    chosen = ["-m", "not network", "--ignore", "tests/test_main.py", "tests"]
    subprocess.run(
        command + chosen, cwd=suite, env=environment, capture_output=True, timeout=600, check=False
    )
    if not report.exists():
        raise Unavailable(f"the tests of {family} did not run to their end on {LANES[lane]}")
    return Lane(family, lane, json.loads(report.read_text(encoding="utf-8")))


# -- telling ---------------------------------------------------------------------------------------


def describe(name: str, source: Path) -> str:
    tests = sorted(path for path in source.glob("tests/**/test_*.py"))
    found = f"{len(tests)} files of tests" if tests else "no tests"
    return f"- `{source.name.replace('_', '-')}`: its source distribution has {found}."


def table(lanes: list[Lane]) -> str:
    family, own = lanes[0].family, lanes[0].report
    sending = [test for test, result in own.items() if result["sent"]]
    lines = [
        f"\n## httpx's tests on {family} {version(family)}\n",
        "| transport | all tests: passed | failed | that send a request: passed | failed |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    reasons: dict[str, set[str]] = {}
    for lane in lanes:
        report = lane.report
        counts = [*count(report, list(report)), *count(report, sending)]
        lines.append(f"| {LANES[lane.name]} | " + " | ".join(map(str, counts)) + " |")
        for test in worse(own, report):
            reasons.setdefault(reason(lane.name, test, report), set()).add(short(test))
    lines.append("\nPassed with the library's own transport, and not with ours:\n")
    lines += [f"- {', '.join(sorted(tests))}: {why}." for why, tests in reasons.items()]
    return "\n".join(lines) + "\n"


def count(report: Report, tests: list[str]) -> tuple[int, int]:
    outcomes = [report[test]["outcome"] for test in tests if test in report]
    return outcomes.count("passed"), outcomes.count("failed")


def worse(own: Report, ours: Report) -> list[str]:
    return [
        test
        for test, result in ours.items()
        if result["outcome"] == "failed" and own.get(test, {}).get("outcome") == "passed"
    ]


def reason(lane: str, test: str, report: Report) -> str:
    if lane == "aiohttp" and "trio" in test:
        return NO_TRIO
    for pattern, why in REASONS.items():
        if re.search(pattern, test):
            return why
    return f"NOT EXPLAINED ({report[test]['why']})"


def short(test: str) -> str:
    return "`" + re.sub(r".*::|\[.*", "", test) + "`"


if __name__ == "__main__":
    sys.exit(main())
