"""A stranger's backend: `examples/backend_urllib3` in a fresh environment, as its users have it.

Knows the example's project and the commands. Imports nothing of it: whatever is seen of it, is seen
through its entry point. Of the suite it runs a part, for the time it takes; all of it is
`python -m trunkline.testing.conformance urllib3`, whose outcome is in docs/conformance.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "backend_urllib3"
A_PART = (
    "test_the_method_is_sent_as_given",
    "test_an_error_status_is_a_response",
    "test_a_large_body_is_received_whole",
    "test_a_body_is_sent_as_it_is_produced",
    "test_max_connections_is_never_exceeded",
    "test_the_snapshot_follows_a_call_from_moment_to_moment",
    "test_no_head_in_time_is_a_headers_timeout",
    "test_silence_inside_a_body_is_a_read_timeout",
    "test_cancelled_while_waiting_for_the_head",
    "test_connections_over_tls_are_used_again",
    "test_a_certificate_that_is_not_good_is_a_certificate_error",
    "test_close_leaves_no_socket",
    # What its first version did not keep.
    "test_when_an_address_does_not_answer_another_is_used",
    "test_nothing_is_sent_again_once_the_response_has_begun",
    "test_a_head_that_drips_does_not_extend_the_headers_timeout",
    "test_a_server_that_never_reads_is_a_write_timeout",
    "test_an_end_inside_the_head_is_a_network_error",
    "test_a_chunk_that_is_cut_off_is_truncated",
    "test_a_head_that_is_not_http_is_a_protocol_error",
    "test_a_head_that_is_too_large_exceeds_a_limit",
    "test_a_chunk_extension_without_end_is_an_error",
    "test_a_body_that_is_being_read_ends_with_an_error",
    "test_bytes_glued_to_an_answer_never_become_the_next_answer",
    "test_a_request_that_announces_the_end_is_the_last",
    "test_the_body_is_closed_when_the_call_is_cancelled",
    "test_an_early_refusal_is_delivered_and_stops_the_upload",
    "test_raw_headers_are_the_bytes_of_the_wire",
    "test_interim_responses_are_passed_over",
    "test_a_body_that_contradicts_its_declared_length_is_an_error",
)


def run(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A command's outcome; nothing on this machine's module path reaches it."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=cwd,
    )


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of an environment into which the example was installed from its wheel.

    Nothing is fetched: what the example depends on is lent by the environment of these tests.
    """
    urllib3 = pytest.importorskip("urllib3")
    folder = tmp_path_factory.mktemp("stranger")
    home = folder / "venv"
    for step in (
        (sys.executable, "-m", "venv", "--without-pip", str(home)),
        (sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)),
    ):
        done = run(*step, cwd=EXAMPLE)
        assert done.returncode == 0, done.stderr
    interpreter = str(home / "bin" / "python")
    (wheel,) = folder.glob("*.whl")
    pip = (sys.executable, "-m", "pip", "--python", interpreter, "install", "--no-deps")
    done = run(*pip, "--no-index", "--disable-pip-version-check", wheel)
    if done.returncode:
        pytest.skip(f"pip cannot install into a fresh environment: {done.stderr.strip()[-200:]}")
    (site,) = home.glob("lib/python*/site-packages")
    lenders = str(Path(urllib3.__file__).parents[1]), sysconfig.get_path("purelib")
    lines = [f"import site; site.addsitedir({lender!r})\n" for lender in lenders]
    (site / "lent.pth").write_text("".join(lines))
    return interpreter


def test_the_backend_is_found_by_its_entry_point(python: str) -> None:
    done = run(python, "-c", "import trunkline; print(trunkline.available_backends())")

    assert "'urllib3'" in done.stdout, done.stderr


def test_the_backend_keeps_a_part_of_the_suite(python: str) -> None:
    words = " or ".join(A_PART)
    done = run(python, "-m", "trunkline.testing.conformance", "urllib3", "-k", words)

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"urllib3: {len(A_PART)} behaviours" in done.stdout
    assert f": {len(A_PART)} passed, 0 failed, 0 skipped\n" in done.stdout


def test_the_command_compares_the_backend(python: str, tmp_path: Path) -> None:
    report = tmp_path / "results.json"
    options = ("--backends", "urllib3", "--calls", "3", "--rtt", "10", "--json", str(report))
    done = run(python, "-m", "trunkline.cli", "compare", *options)

    assert done.returncode == 0, done.stdout + done.stderr
    runs = json.loads(report.read_text())["runs"]
    assert [(each["mode"], each["connections"]) for each in runs] == [("cold", 3), ("pooled", 1)]
