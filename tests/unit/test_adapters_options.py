"""The arguments of the adapters' clients: carried into the config, or refused with a remedy.

This module knows what the arguments of httpx's and httpx2's clients mean. Nothing is sent here
except through a proxy.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import httpx
import httpx2
import pytest

import trunkline.adapters.httpx
import trunkline.adapters.httpx2
from trunkline import (
    CertificateError,
    Limits,
    Timeouts,
    Tls,
    TransportConfig,
    UnsupportedOption,
)
from trunkline.proxy import Proxy, parse_proxy
from trunkline.testing import Certificates, MockTransport
from trunkline.testing._script import response, serve
from trunkline.testing._servers import ScriptedServer

FAMILIES: dict[str, tuple[Any, Any]] = {
    "httpx2": (httpx2, trunkline.adapters.httpx2),
    "httpx": (httpx, trunkline.adapters.httpx),
}


@pytest.fixture(params=FAMILIES)
def library(request: pytest.FixtureRequest) -> Any:
    return FAMILIES[request.param][0]


@pytest.fixture(params=["AsyncClient", "Client"])
def make(library: Any, request: pytest.FixtureRequest) -> Any:
    return getattr(FAMILIES[library.__name__][1], request.param)


@pytest.fixture(scope="module")
def certificates() -> Iterator[Certificates]:
    with closing(Certificates()) as made:
        yield made


def config_of(client: Any) -> TransportConfig:
    config = client.transport.config
    assert isinstance(config, TransportConfig)
    return config


def test_without_arguments_it_is_like_the_sdks_own_client(make: Any, library: Any) -> None:
    openai = pytest.importorskip("openai._constants")
    client = make()

    defaults = openai.DEFAULT_TIMEOUT
    assert client.timeout == library.Timeout(**defaults.as_dict())
    assert client.follow_redirects
    limits, theirs = config_of(client).limits, openai.DEFAULT_CONNECTION_LIMITS
    assert limits.max_connections == theirs.max_connections
    assert limits.max_keepalive_connections == theirs.max_keepalive_connections
    assert config_of(client).trust_env


def test_what_a_config_says_is_kept_and_the_rest_is_the_sdks(make: Any, library: Any) -> None:
    given = TransportConfig(
        backend="httpx",
        http2=True,
        limits=Limits(max_connections=7),
        timeouts=Timeouts(read=30, total=90),
        trust_env=False,
    )
    client = make(given)

    config = config_of(client)
    assert (config.backend, config.http2, config.trust_env) == ("httpx", True, False)
    assert (config.limits.max_connections, config.limits.max_keepalive_connections) == (7, 100)
    assert config.timeouts.total == 90
    assert client.timeout == library.Timeout(connect=5, read=30, write=600, pool=600)


def test_the_arguments_go_before_the_config(make: Any, library: Any) -> None:
    limits = library.Limits(max_connections=3, max_keepalive_connections=2, keepalive_expiry=1)
    client = make(
        TransportConfig(limits=Limits(max_connections=9, max_waiting=4), trust_env=True),
        limits=limits,
        timeout=8,
        http2=True,
        trust_env=False,
        follow_redirects=False,
    )

    config = config_of(client)
    assert config.limits == Limits(
        max_connections=3, max_keepalive_connections=2, keepalive_expiry=1, max_waiting=4
    )
    assert (config.http2, config.trust_env) == (True, False)
    assert client.timeout == library.Timeout(8)
    assert not client.follow_redirects


def test_no_limits_are_no_limits(make: Any, library: Any) -> None:
    limits = config_of(make(limits=library.Limits(keepalive_expiry=None))).limits

    assert (limits.max_connections, limits.max_keepalive_connections) == (None, None)
    assert limits.keepalive_expiry is None


def test_tls_arguments_arrive(make: Any, certificates: Certificates) -> None:
    mine = certificates.server()
    client = make(
        TransportConfig(tls=Tls(min_version="1.3")),
        verify=mine.ca_file,
        cert=(mine.cert_file, mine.key_file),
    )

    assert config_of(client).tls == Tls(
        ca_file=Path(mine.ca_file),
        client_cert=Path(mine.cert_file),
        client_key=Path(mine.key_file),
        min_version="1.3",
    )


def test_a_context_is_carried_as_it_is(make: Any) -> None:
    context = ssl.create_default_context()

    assert config_of(make(verify=context)).tls == Tls(context=context)
    with pytest.raises(ValueError, match="min_version cannot go with context"):
        make(TransportConfig(tls=Tls(min_version="1.3")), verify=context)
    with pytest.raises(UnsupportedOption, match=r"tls\.context.*another backend"):
        make(TransportConfig(backend="pyreqwest"), verify=context)


@pytest.mark.parametrize("backend", ["aiohttp", "httpx"])
def test_a_context_says_whom_a_client_trusts(
    make: Any, library: Any, backend: str, certificates: Certificates
) -> None:
    def fetch(context: ssl.SSLContext, url: str) -> str:
        client = make(TransportConfig(backend=backend), verify=context, trust_env=False)
        if hasattr(client, "aclose"):

            async def get() -> str:
                async with client:
                    return str((await client.get(url)).text)

            return anyio.run(get)
        with client:
            return str(client.get(url).text)

    page = serve(response(200, b"page"))
    with ScriptedServer(page, tls=certificates.server_context()) as server:
        assert fetch(certificates.client_context(), server.url) == "page"
        with pytest.raises(library.ConnectError) as caught:
            fetch(ssl.create_default_context(), server.url)
        assert isinstance(caught.value.__cause__, CertificateError)


def test_verify_false_is_carried(make: Any) -> None:
    assert not config_of(make(verify=False)).tls.verify
    assert config_of(make(verify=True)).tls.verify


def test_a_proxy_is_carried_with_its_credentials(make: Any, library: Any) -> None:
    plain = make(proxy="http://proxy.test:3128")
    secret = make(proxy=library.Proxy("http://proxy.test:3128", auth=("us:er", "p@ss")))

    assert config_of(plain).proxy == "http://proxy.test:3128"
    assert parse_proxy(config_of(secret).proxy or "") == Proxy(
        "http", "proxy.test", 3128, "us:er", "p@ss"
    )


@pytest.mark.parametrize(
    ("url", "port"), [("http://proxy.test", 80), ("https://p.test/", 443), ("http://[::1]", 80)]
)
def test_a_proxy_has_the_port_of_its_scheme(make: Any, url: str, port: int) -> None:
    assert parse_proxy(config_of(make(proxy=url)).proxy or "").port == port


@pytest.mark.parametrize("url", ["ftp://user:secret@p.test:1", "http://user:secret@p.test:99999"])
def test_a_proxy_that_is_none_is_named_and_not_shown(make: Any, url: str) -> None:
    with pytest.raises(ValueError, match="\nproxy\n") as raised:
        make(proxy=url)

    assert "secret" not in str(raised.value)


def refused(library: Any) -> dict[str, tuple[dict[str, Any], str]]:
    """Arguments we cannot honour, and what the message has to name."""
    return {
        "certificate": (
            {"verify": ssl.create_default_context(), "cert": "client.pem"},
            "cert.*load_cert_chain",
        ),
        "folder": ({"verify": "/"}, "verify.*PEM file"),
        "http1": ({"http1": False}, "http1"),
        "proxy headers": (
            {"proxy": library.Proxy("http://proxy.test:1", headers={"a": "b"})},
            "proxy: headers",
        ),
        "proxy context": (
            {"proxy": library.Proxy("https://p.test:1", ssl_context=ssl.create_default_context())},
            "proxy: ssl_context",
        ),
        "transport": ({"transport": library.MockTransport(str)}, "transport"),
    }


@pytest.mark.parametrize("case", refused(httpx2))
def test_what_cannot_be_honoured_is_refused(make: Any, library: Any, case: str) -> None:
    options, message = refused(library)[case]

    with pytest.raises(UnsupportedOption, match=message):
        make(**options)


@pytest.mark.parametrize("given", ["httpx", {"backend": "httpx"}])
def test_what_is_neither_config_nor_transport_is_refused(make: Any, given: Any) -> None:
    with pytest.raises(UnsupportedOption, match=r"is neither.*TransportConfig"):
        make(given)


def test_a_transport_of_another_kind_of_client_is_refused(make: Any, library: Any) -> None:
    adapter = FAMILIES[library.__name__][1]
    other = adapter.SyncTransport if make.__name__ == "AsyncClient" else adapter.AsyncTransport
    with pytest.raises(UnsupportedOption, match="is neither"):
        make(other())
    with pytest.raises(UnsupportedOption, match="transport: give"):
        make(transport=other())


def test_no_transport_is_none_as_in_the_library(make: Any) -> None:
    assert config_of(make(transport=None, http2=True)).http2


@pytest.mark.parametrize("as_keyword", [True, False])
def test_an_adapter_may_be_a_clients_transport(make: Any, library: Any, as_keyword: bool) -> None:
    adapter = FAMILIES[library.__name__][1]
    kind = adapter.AsyncTransport if make.__name__ == "AsyncClient" else adapter.SyncTransport
    sender = kind(TransportConfig(timeouts=Timeouts(read=7)))
    client = make(transport=sender) if as_keyword else make(sender)

    assert client.transport is sender.transport
    assert client._transport is sender  # which the library's client closes
    assert client.timeout.read == 7
    with pytest.raises(UnsupportedOption, match=r"http2.*set it there"):
        make(transport=sender, http2=True)


def test_an_unknown_argument_is_refused(make: Any) -> None:
    with pytest.raises(TypeError, match="retries"):
        make(retries=3)


def test_a_transport_that_is_made_already_takes_no_options(make: Any, library: Any) -> None:
    transport = MockTransport(lambda request: (200, {}, b""))

    assert make(transport).timeout == library.Timeout(600, connect=5)
    with pytest.raises(UnsupportedOption, match=r"limits, http2.*set it there"):
        make(transport, limits=library.Limits(), http2=True)


def test_a_unix_socket_has_no_proxy_from_the_environment(make: Any, tmp_path: Path) -> None:
    assert not config_of(make(TransportConfig(uds=tmp_path / "api.sock"))).trust_env


@pytest.mark.parametrize("backend", ["aiohttp", "httpx"])
def test_the_proxy_of_the_environment_is_ours_to_find(
    library: Any, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def get(**options: Any) -> str:
        adapter = FAMILIES[library.__name__][1]
        async with adapter.AsyncClient(TransportConfig(backend=backend), **options) as client:
            assert not client._mounts
            answered = await client.get("http://127.0.0.1:1/path")
            return str(answered.text)

    with ScriptedServer(serve(response(200, b"proxied"))) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)

        assert anyio.run(get) == "proxied"
        assert proxy.requests[0].target == "http://127.0.0.1:1/path"
        with pytest.raises(library.ConnectError):
            anyio.run(lambda: get(trust_env=False))


def test_mounts_stay_the_clients_own(library: Any) -> None:
    async def get() -> list[str]:
        def answer(request: Any) -> Any:
            return library.Response(200, text="mounted")

        transport = MockTransport(lambda request: (200, {}, b"ours"))
        adapter = FAMILIES[library.__name__][1]
        mounts = {"http://a.test": library.MockTransport(answer)}
        async with adapter.AsyncClient(transport, mounts=mounts) as client:
            return [(await client.get(f"http://{name}.test/")).text for name in "ab"]

    assert anyio.run(get) == ["mounted", "ours"]


@pytest.mark.parametrize("origin", ["proxy=", "HTTP_PROXY"])
def test_what_none_is_mounted_for_goes_round_the_proxy(
    library: Any, origin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        ScriptedServer(serve(response(200, b"proxied"))) as proxy,
        ScriptedServer(serve(response(200, b"direct"))) as server,
        FAMILIES[library.__name__][1].Client(
            mounts={server.url: None}, **({"proxy": proxy.url} if origin == "proxy=" else {})
        ) as client,
    ):
        monkeypatch.setenv("HTTP_PROXY", proxy.url if origin == "HTTP_PROXY" else "")

        assert client.get(server.url).text == "direct"
        assert client.get("http://api.test/").text == "proxied"
