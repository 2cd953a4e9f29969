"""From a name to a backend: through entry points, and with the right word when that fails.

Knows the registry and the names of the built-in backends. Does not know what a backend does. A
stranger's backend comes here as it would anywhere: as an installed distribution.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest

import trunkline
from trunkline import (
    BackendUnavailable,
    Client,
    Request,
    Transport,
    TransportConfig,
    UnsupportedOption,
    available_backends,
    open_transport,
)
from trunkline._registry import capabilities_of, choose, load_backend

T = TypeVar("T")

STRANGER = """
from trunkline import Capabilities
from trunkline.testing import MockTransport

class StrangersTransport(MockTransport):
    capabilities = Capabilities(name="stranger", trio=True, http2=True)

    def __init__(self, config):
        super().__init__(lambda request: (200, {"X-From": "stranger"}, b""))
        self.config = config
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Install a distribution with one backend, whose module has the given text."""

    def install_backend(name: str, text: str) -> None:
        info = tmp_path / f"{name}_transport-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: {name}-transport\nVersion: 1.0\n", "utf-8")
        (info / "entry_points.txt").write_text(
            f"[trunkline.backends]\n{name} = {name}_transport:StrangersTransport\n", "utf-8"
        )
        (tmp_path / f"{name}_transport.py").write_text(text, "utf-8")
        monkeypatch.syspath_prepend(tmp_path)  # pyright: ignore[reportUnknownMemberType]
        monkeypatch.delitem(sys.modules, f"{name}_transport", raising=False)

    return install_backend


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make libraries as if they were not installed."""

    def remove(*libraries: str) -> None:
        for library in libraries:
            monkeypatch.setitem(sys.modules, library, None)
            for module in list(sys.modules):
                if module.partition(".")[0] == f"trunkline_{library}":
                    monkeypatch.delitem(sys.modules, module)
        for name in ("AiohttpTransport", "HttpxTransport"):
            monkeypatch.delitem(vars(trunkline), name, raising=False)

    return remove


def on(loop: str, function: Callable[[], T]) -> T:
    """What `function` returns when it is called inside an event loop."""

    async def call() -> T:
        return function()

    return anyio.run(call, backend=loop)


def chosen(**options: Any) -> tuple[str, str]:
    """The backend that is chosen, and why."""
    transport, reason = choose(TransportConfig(**options))
    return transport.capabilities.name, reason


# --- by name


def test_the_built_in_backends_are_there_the_preferred_one_first() -> None:
    assert available_backends()[:2] == ("aiohttp", "httpx")


@pytest.mark.parametrize("name", ["aiohttp", "httpx"])
def test_a_backend_is_opened_by_name(name: str) -> None:
    transport = open_transport(TransportConfig(backend=name))

    assert isinstance(transport, Transport)
    assert transport.capabilities.name == name
    assert capabilities_of(name) == transport.capabilities
    assert isinstance(transport, load_backend(name))


def test_the_reason_for_a_named_backend_is_its_name() -> None:
    name, reason = chosen(backend="aiohttp")

    assert name == "aiohttp"
    assert reason == "aiohttp: the config names it"


@pytest.mark.parametrize("use", [load_backend, capabilities_of])
def test_an_unknown_backend_is_refused_with_those_there_are(use: Callable[[str], object]) -> None:
    with pytest.raises(BackendUnavailable, match=r"no 'curl'.*aiohttp, httpx.*'auto'"):
        use("curl")


def test_an_unknown_backend_of_a_config_is_refused() -> None:
    with pytest.raises(UnsupportedOption, match="backend: there is no 'curl'"):
        open_transport(TransportConfig(backend="curl"))
    with pytest.raises(BackendUnavailable, match="backend: there is no 'curl'"):
        Client(backend="curl")


# --- without its library


@pytest.mark.parametrize("name", ["aiohttp", "httpx"])
def test_a_missing_library_is_named_with_the_command_that_installs_it(
    name: str, without: Callable[..., None]
) -> None:
    without(name)

    with pytest.raises(BackendUnavailable) as caught:
        open_transport(TransportConfig(backend=name))

    assert str(caught.value).startswith(f"backend '{name}' needs {name}: pip install 'trunkline")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_the_httpx_backend_names_its_extra(without: Callable[..., None]) -> None:
    without("httpx")

    with pytest.raises(BackendUnavailable, match=r"pip install 'trunkline\[httpx\]'$"):
        open_transport(TransportConfig(backend="httpx"))


def test_the_command_for_aiohttp_is_one_that_works(without: Callable[..., None]) -> None:
    """It is a base dependency: there is no extra of that name."""
    without("aiohttp")

    with pytest.raises(BackendUnavailable) as caught:
        open_transport(TransportConfig(backend="aiohttp"))

    assert "trunkline[aiohttp]" not in str(caught.value)


def test_the_lazy_name_says_the_same(without: Callable[..., None]) -> None:
    without("httpx")

    with pytest.raises(BackendUnavailable, match="needs httpx"):
        _ = trunkline.HttpxTransport


def test_a_name_that_is_nothing_is_an_attribute_error() -> None:
    name = "CurlTransport"
    with pytest.raises(AttributeError, match=name):
        getattr(trunkline, name)


# --- automatically


def test_auto_prefers_aiohttp() -> None:
    name, reason = chosen()

    assert name == "aiohttp"
    assert reason.startswith("aiohttp: ")
    assert chosen() == on("asyncio", chosen)


def test_auto_under_trio_takes_one_that_runs_there() -> None:
    name, reason = on("trio", chosen)

    assert name == "httpx"
    assert reason.startswith("httpx: ")
    assert "aiohttp" in reason
    assert "trio" in reason


def test_auto_takes_one_that_can() -> None:
    name, reason = chosen(proxy="socks5://p.example:1")

    assert name == "httpx"
    assert reason.startswith("httpx: ")
    assert "aiohttp" in reason
    assert "proxy" in reason


@pytest.mark.parametrize("http2", [True, "prior_knowledge"])
def test_auto_takes_aiohttp_for_http2_on_asyncio_and_httpx_on_trio(http2: Any) -> None:
    assert chosen(http2=http2)[0] == "aiohttp"
    assert on("trio", lambda: chosen(http2=http2))[0] == "httpx"


@pytest.mark.parametrize("options", [{"http2": True}, {"proxy": "socks5://p.example:1"}])
def test_the_reason_gives_no_advice(options: dict[str, Any]) -> None:
    """Whoever reads it has chosen "auto" already, and got what was asked for."""
    for reason in (chosen(**options)[1], on("trio", chosen)[1]):
        assert "backend='auto'" not in reason
        assert "leave the option out" not in reason


def test_auto_passes_over_a_backend_without_its_library(without: Callable[..., None]) -> None:
    without("aiohttp")

    name, reason = chosen()

    assert name == "httpx"
    assert "aiohttp" in reason


def test_auto_says_of_each_backend_why_it_will_not_do(without: Callable[..., None]) -> None:
    without("httpx")
    without("httpx2")

    with pytest.raises(UnsupportedOption) as caught:
        on("trio", lambda: open_transport(TransportConfig(http2="prior_knowledge")))

    assert "aiohttp on trio" in str(caught.value)
    assert "trunkline[httpx]" in str(caught.value)


def test_a_named_backend_that_cannot_is_refused_not_replaced() -> None:
    with pytest.raises(UnsupportedOption, match=r"proxy.*aiohttp"):
        open_transport(TransportConfig(backend="aiohttp", proxy="socks5://p.example:1"))
    with pytest.raises(UnsupportedOption, match="aiohttp on trio"):
        on("trio", lambda: open_transport(TransportConfig(backend="aiohttp")))


def test_no_refusal_shows_the_proxy() -> None:
    proxy = "socks5://user:hunter2@proxy.example:1080"

    with pytest.raises(UnsupportedOption) as caught:
        open_transport(TransportConfig(backend="aiohttp", proxy=proxy))

    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in chosen(proxy=proxy)[1]


# --- a stranger's


def test_a_strangers_backend_comes_through_the_same_door(
    install: Callable[[str, str], None],
) -> None:
    install("stranger", STRANGER)
    config = TransportConfig(backend="stranger")

    transport = open_transport(config)

    assert available_backends()[:2] == ("aiohttp", "httpx")
    assert "stranger" in available_backends()
    assert capabilities_of("stranger").http2
    assert vars(transport)["config"] == config


def test_a_client_sends_through_a_strangers_backend(install: Callable[[str, str], None]) -> None:
    async def use() -> tuple[str, str, str]:
        async with Client(backend="stranger") as client:
            response = await client.get("http://example.com/")
            return client.backend, client.backend_reason, response.headers["X-From"]

    install("stranger", STRANGER)

    for loop in ("asyncio", "trio"):
        assert anyio.run(use, backend=loop) == (
            "stranger",
            "stranger: the config names it",
            "stranger",
        )


def test_auto_takes_a_strangers_backend_when_ours_will_not_do(
    install: Callable[[str, str], None], without: Callable[..., None]
) -> None:
    install("stranger", STRANGER)
    assert chosen()[0] == "aiohttp"

    without("aiohttp", "httpx", "httpx2", "pyreqwest")

    assert chosen()[0] == "stranger"


def test_a_library_that_a_stranger_misses_is_named_without_an_extra_of_ours(
    install: Callable[[str, str], None],
) -> None:
    install("stranger", "import no_such_library_anywhere\n")

    with pytest.raises(BackendUnavailable) as caught:
        open_transport(TransportConfig(backend="stranger"))

    assert "'stranger' needs no_such_library_anywhere" in str(caught.value)
    assert "trunkline[stranger]" not in str(caught.value)


def test_a_fault_in_a_strangers_own_module_is_not_taken_for_a_missing_library(
    install: Callable[[str, str], None],
) -> None:
    install("stranger", "import stranger_transport.parts\n")

    with pytest.raises(ModuleNotFoundError) as caught:
        open_transport(TransportConfig(backend="stranger"))

    assert not isinstance(caught.value, BackendUnavailable)


# --- the face


def test_every_public_name_is_where_it_is_announced() -> None:
    for name in trunkline.__all__:
        assert getattr(trunkline, name) is not None
        assert name in dir(trunkline)


def test_a_name_stays_the_same_object() -> None:
    assert trunkline.AiohttpTransport is load_backend("aiohttp")
    assert trunkline.Request is Request
    assert importlib.import_module("trunkline._messages").Request is Request
