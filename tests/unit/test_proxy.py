"""Which proxy a request goes through, by config or environment, and that no secret leaks."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

import trunkline
from trunkline import Origin, ProxyError, Tls, TransportConfig
from trunkline._urls import parse_url
from trunkline.proxy import find_proxy
from trunkline.tls import make_ssl_context

HTTP = Origin("http", "api.test", 80)
HTTPS = Origin("https", "api.test", 443)
TRUSTING = TransportConfig(trust_env=True)


def test_the_environment_is_not_asked_unless_it_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.test:3128")

    assert find_proxy(TransportConfig(), HTTP) is None


def test_each_scheme_has_its_variable_and_all_is_the_last_resort(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@proxy.test:3128")
    monkeypatch.setenv("ALL_PROXY", "fallback.test:8080")

    secure, plain = find_proxy(TRUSTING, HTTPS), find_proxy(TRUSTING, HTTP)

    assert secure is not None
    assert (secure.url, secure.username) == ("http://proxy.test:3128", "user")
    assert "secret" not in repr(secure)
    assert plain is not None
    assert plain.url == "http://fallback.test:8080"


@pytest.mark.parametrize("excluded", ["api.test", "api.test:80", ".test", "*"])
def test_no_proxy_names_hosts_with_a_port_or_without(
    excluded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.test:3128")
    monkeypatch.setenv("NO_PROXY", excluded)

    assert find_proxy(TRUSTING, HTTP) is None


@pytest.mark.parametrize(
    ("excluded", "url", "is_direct"),
    [
        ("10.0.0.0/8", "http://10.1.2.3:8080", True),
        ("10.0.0.1/8", "http://10.1.2.3:8080", True),
        ("10.0.0.0/8", "http://11.1.2.3:8080", False),
        ("10.0.0.0/8", "http://[::1]:8080", False),
        ("10.0.0.0/8", "http://10.test:8080", False),
        ("fd00::/8", "http://[fd00::1]:8080", True),
        ("::1", "http://[::1]:8080", True),
        ("[::1]", "http://[::1]:8080", True),
        ("[::1]:8080", "http://[::1]:8080", True),
        ("[::1]:80", "http://[::1]:8080", False),
        ("0:0:0:0:0:0:0:1", "http://[::1]:8080", True),
        ("http://127.0.0.1", "http://127.0.0.1:8080", True),
        ("https://127.0.0.1", "http://127.0.0.1:8080", False),
        ("HTTP://api.test:8080/", "http://api.test:8080", True),
        ("http://api.test:80", "http://api.test:8080", False),
        ("all://api.test", "http://api.test:8080", True),
        ("other.test, *", "http://api.test:8080", True),
        (" other.test , 127.0.0.1 ", "http://127.0.0.1:8080", True),
        ("", "http://api.test:8080", False),
        (",", "http://api.test:8080", False),
    ],
)
def test_no_proxy_has_networks_ipv6_addresses_and_schemes_too(
    excluded: str, url: str, is_direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.test:3128")
    monkeypatch.setenv("NO_PROXY", excluded)

    assert (find_proxy(TRUSTING, parse_url(url).origin) is None) is is_direct


@pytest.mark.parametrize("url", ["socks4://user:secret@proxy.test:1", "http://user:secret@:1"])
def test_what_is_no_proxy_in_the_environment_is_a_proxy_error(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", url)

    with pytest.raises(ProxyError, match="HTTP_PROXY") as caught:
        find_proxy(TRUSTING, HTTP)

    assert "secret" not in f"{caught.value} {caught.value.__cause__}"


def test_a_socks_proxy_of_the_environment_is_refused_where_it_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")

    async def call() -> None:
        async with trunkline.Client(backend="aiohttp", trust_env=True) as client:
            await client.get("http://api.test/")

    with pytest.raises(ProxyError, match="SOCKS"):
        anyio.run(call)


def test_no_tls_secret_is_written_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "keys.log"
    monkeypatch.setenv("SSLKEYLOGFILE", str(keys))

    context = make_ssl_context(Tls())

    assert context.keylog_filename is None
    assert not keys.exists()
