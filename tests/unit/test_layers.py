"""The floors of the house: which module may import which.

Knows the table of floors and the text of every module. Imports none of them, so a fault in one does
not hide a fault in another.

An import goes downward, or stays on its floor, whether it runs when the module loads, inside a
function, or only for a type checker. To add a module, place it in ``FLOORS``: with its like, above
everything it imports and below everything that imports it.
"""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
CORE = ROOT / "src"
BACKENDS = ROOT / "backends"

FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"_errors", "_version"}),
    frozenset({"decode", "_sse", "_config", "_fields", "_urls"}),
    frozenset({"_messages", "_bodies"}),
    frozenset({"_contract"}),
    frozenset({"_events", "_content"}),
    frozenset({"pool", "dns", "http2", "tcp", "tls", "proxy"}),
    frozenset({"net"}),
    frozenset({"http1"}),
    frozenset({"_registry"}),
    frozenset({"_client"}),
    frozenset({"trunkline"}),  # the face: the names that `import trunkline` gives
    frozenset({"adapters", "observe", "testing"}),
    frozenset({"cli"}),
)
FACE = 10

# The HTTP libraries that backends are made of, and the event loop that is an option.
LIBRARIES = frozenset({"aiohttp", "aiodns", "httpx", "httpx2", "httpcore", "httpcore2", "h2"})
NOT_LOADED = LIBRARIES | {"trio"}

# What a backend is made of, beside the standard library and trunkline's public names.
OWN_LIBRARIES = {
    "trunkline_aiohttp": frozenset({"aiohappyeyeballs", "aiohttp", "multidict", "yarl"}),
    "trunkline_httpx": frozenset({"anyio", "h11", "httpcore", "httpx", "multidict", "socksio"}),
    "trunkline_httpx2": frozenset({"httpcore2", "httpx2", "trunkline_httpx"}),
    "trunkline_pyreqwest": frozenset({"anyio", "multidict", "pyreqwest"}),
}


@dataclass(frozen=True)
class Import:
    """One import: what it names (``trunkline.pool.Pool``) and when it runs."""

    target: str
    line: int
    on_load: bool
    for_types: bool

    @property
    def package(self) -> str:
        return self.target.partition(".")[0]


class _Reader(ast.NodeVisitor):
    """Collects the imports of one module, with relative ones made absolute."""

    def __init__(self, package: tuple[str, ...]) -> None:
        self.found: list[Import] = []
        self._package = package
        self._in_function = False
        self._for_types = False

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name, node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = self._package[: len(self._package) - node.level + 1] if node.level else ()
        prefix = ".".join((*base, *filter(None, [node.module])))
        for alias in node.names:
            self._add(f"{prefix}.{alias.name}", node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._visit_function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._visit_function(node)

    def visit_If(self, node: ast.If) -> None:
        outer = self._for_types
        self._for_types = outer or ast.unparse(node.test).endswith("TYPE_CHECKING")
        for child in node.body:
            self.visit(child)
        self._for_types = outer
        for child in node.orelse:
            self.visit(child)

    def _visit_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        outer, self._in_function = self._in_function, True
        self.generic_visit(node)
        self._in_function = outer

    def _add(self, target: str, node: ast.stmt) -> None:
        on_load = not (self._in_function or self._for_types)
        self.found.append(Import(target, node.lineno, on_load, self._for_types))


def _modules(root: Path) -> list[Path]:
    return sorted(root.rglob("*.py"))


def _dotted(path: Path, root: Path) -> tuple[str, ...]:
    parts = path.relative_to(root).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def _imports(path: Path, root: Path) -> Iterator[Import]:
    dotted = _dotted(path, root)
    reader = _Reader(dotted if path.name == "__init__.py" else dotted[:-1])
    reader.visit(ast.parse(path.read_text(encoding="utf-8"), str(path)))
    yield from reader.found


def _floor(dotted: tuple[str, ...]) -> int | None:
    """The floor of ``("trunkline", "pool", ...)``; of the face, for a name that is no module."""
    part = dotted[1] if len(dotted) > 1 else "trunkline"
    for number, floor in enumerate(FLOORS):
        if part in floor:
            return number
    home = CORE / "trunkline" / part
    return None if home.is_dir() or home.with_suffix(".py").is_file() else FACE


def _at(path: Path, found: Import) -> str:
    return f"{path.relative_to(ROOT)}:{found.line} imports {found.target}"


def _named(path: Path) -> str:
    return str(path.relative_to(ROOT))


every_core_module = pytest.mark.parametrize("path", _modules(CORE), ids=_named)
every_backend_module = pytest.mark.parametrize("path", _modules(BACKENDS), ids=_named)


@every_core_module
def test_every_module_has_a_floor(path: Path) -> None:
    dotted = _dotted(path, CORE)

    assert _floor(dotted) is not None, (
        f"{_named(path)} is on no floor: place {dotted[1]!r} in FLOORS of "
        f"{_named(Path(__file__))}, above all it imports, below all that import it"
    )


@every_core_module
def test_imports_go_downward(path: Path) -> None:
    floor = _floor(_dotted(path, CORE))
    if floor is None:
        pytest.skip("on no floor yet: the test above says so")
    if floor == FACE:
        return

    upward = [
        f"{_at(path, found)} (floor {above} from floor {floor})"
        for found in _imports(path, CORE)
        if found.package == "trunkline"
        and (above := _floor(tuple(found.target.split(".")))) is not None
        and above > floor
    ]

    assert not upward, "\n".join(["an import goes up:", *upward])


def _may_import(floor: int, part: str, found: Import) -> bool:
    if part == "adapters":  # they serve these libraries' users, in these libraries' own types
        return True
    if part == "http2":  # sans-IO, and loaded by the backends that speak it
        return found.package == "h2"
    if part == "dns" and found.package == "aiodns":
        return not found.on_load
    return floor > FACE and not found.on_load


@every_core_module
def test_the_core_imports_no_http_library(path: Path) -> None:
    dotted = _dotted(path, CORE)
    floor = _floor(dotted) or 0

    wrong = [
        _at(path, found)
        for found in _imports(path, CORE)
        if found.package in LIBRARIES and not _may_import(floor, "".join(dotted[1:2]), found)
    ]

    assert not wrong, "\n".join(["an HTTP library belongs in a backend:", *wrong])


@every_core_module
def test_nobody_imports_a_backend(path: Path) -> None:
    """The registry loads backends by entry point; the face may name their types to checkers."""
    face = _dotted(path, CORE) == ("trunkline",)
    by_statement = [
        _at(path, found)
        for found in _imports(path, CORE)
        if found.package in OWN_LIBRARIES and not (face and found.for_types)
    ]
    name = re.compile(rf"({'|'.join(OWN_LIBRARIES)})([.:]\w+)*")
    by_string = [
        f"{_named(path)}:{node.lineno} names {node.value}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if name.fullmatch(node.value)
    ]

    wrong = by_statement + by_string

    assert not wrong, "\n".join(["backends come by entry point, never by name:", *wrong])


def _is_public(target: str) -> bool:
    return not any(part.startswith("_") for part in target.split("."))


def _suits_a_backend(found: Import, backend: str) -> bool:
    if found.package == "trunkline":
        floor = _floor(tuple(found.target.split(".")))
        return _is_public(found.target) and floor is not None and floor <= FACE
    own = OWN_LIBRARIES.get(backend, frozenset[str]()) | {backend}
    return found.package in own or found.package in sys.stdlib_module_names


@every_backend_module
def test_a_backend_imports_public_trunkline_and_its_own_library(path: Path) -> None:
    backend = _dotted(path, BACKENDS)[0]

    wrong = [
        _at(path, found)
        for found in _imports(path, BACKENDS)
        if not _suits_a_backend(found, backend)
    ]

    assert not wrong, "\n".join(
        ["neither public trunkline nor a library in OWN_LIBRARIES of this test:", *wrong]
    )


def test_importing_trunkline_loads_no_http_library() -> None:
    script = f"import sys, trunkline; print(*sys.modules.keys() & {set(NOT_LOADED)!r})"

    loaded = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )

    assert loaded.stdout.split() == []


# Where click is installed, httpx imports its command line and rich with it. It is left out, so
# that the measure is of the library and the same on every machine.
HTTPX = "sys.modules['click'] = None; import httpx"
TRUNKLINE = "import trunkline"


def _cpu_seconds(statement: str, bytecode: Path) -> float:
    """Processor time of an import in a fresh interpreter, apart from the interpreter's start."""
    script = (
        "import sys, time; started = time.process_time(); "
        f"{statement}; print(time.process_time() - started)"
    )
    # Bytecode is kept apart from the tree, so that neither import pays for compiling.
    command = [sys.executable, "-I", "-X", f"pycache_prefix={bytecode}", "-c", script]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_importing_trunkline_costs_no_more_than_importing_httpx(tmp_path: Path) -> None:
    costs: dict[str, list[float]] = {HTTPX: [], TRUNKLINE: []}
    for statement in costs:
        _cpu_seconds(statement, tmp_path)  # compiles

    for _ in range(7):
        for statement, taken in costs.items():
            taken.append(_cpu_seconds(statement, tmp_path))

    ours, theirs = statistics.median(costs[TRUNKLINE]), statistics.median(costs[HTTPX])
    noise = 1.1
    assert ours <= theirs * noise, f"trunkline took {ours * 1e3:.0f} ms, httpx {theirs * 1e3:.0f}"
