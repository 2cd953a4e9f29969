"""Ways to the origin: through proxies, over Unix sockets, and what the environment has to say."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path

import pytest

from trunkline._config import Timeouts, Tls
from trunkline._contract import Transport
from trunkline._errors import ConnectError, ConnectTimeout, ProxyError
from trunkline._messages import Request, Response
from trunkline.testing._certificates import Certificates
from trunkline.testing._conformance._base import Conformance, needs
from trunkline.testing._conformance._helpers import closed_port
from trunkline.testing._promises import keeps
from trunkline.testing._script import (
    close,
    expect_head,
    hold,
    response,
    send,
    serve,
    socks5,
    tunnel,
)
from trunkline.testing._servers import Script, ScriptedServer

PAGE = response(200, b"page")
BASIC = "Basic " + b64encode(b"user:pass word").decode()
PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")

REFUSALS: dict[str, Script] = {
    "forbidden": [expect_head(), send(response(403, b"secret reason"))],
    "unavailable": [expect_head(), send(response(503))],
    "not-http": [expect_head(), send(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")],
    "hangs-up": [expect_head(), close()],
}


class Routes(Conformance):
    promise = 10

    # -- a proxy that forwards ---------------------------------------------------------------------

    @needs("proxy")
    async def test_a_proxy_is_asked_for_the_whole_url(self) -> None:
        with ScriptedServer(serve(PAGE)) as proxy:
            async with self.rig(serve(), proxy=_at(proxy)) as rig:
                answered = await rig.fetch_url("http://origin.invalid/path%2C?query=1")

                (request,) = proxy.requests
                assert answered.content == b"page"
                assert request.target == "http://origin.invalid/path%2C?query=1"
                assert request.all("Host") == ["origin.invalid"]
                assert rig.server.connections == 0

    @needs("proxy")
    async def test_a_forwarding_proxy_is_shown_the_credentials(self) -> None:
        with ScriptedServer(serve(PAGE)) as proxy:
            async with self.transport(proxy=_at(proxy, "user:pass%20word@")) as transport:
                await _get(transport, "http://origin.invalid/")

                assert proxy.requests[0].all("Proxy-Authorization") == [BASIC]

    @needs("proxy")
    async def test_a_proxy_may_be_spoken_to_over_tls(self) -> None:
        with Certificates() as certificates:
            tls = Tls(ca_file=Path(certificates.ca_file))
            with ScriptedServer(serve(PAGE), tls=certificates.server_context()) as proxy:
                url = _at(proxy, "user:pass%20word@").replace("http:", "https:")
                async with self.transport(proxy=url, tls=tls) as transport:
                    answered = await _get(transport, "http://origin.invalid/")

                assert answered.content == b"page"
                assert proxy.requests[0].target == "http://origin.invalid/"
                assert proxy.requests[0].all("Proxy-Authorization") == [BASIC]

    @needs("proxy", "tls_context")
    async def test_a_context_is_for_the_proxy_too(self) -> None:
        with Certificates() as certificates:
            tls = Tls(context=certificates.client_context())
            with ScriptedServer(serve(PAGE), tls=certificates.server_context()) as proxy:
                url = _at(proxy).replace("http:", "https:")
                async with self.transport(proxy=url, tls=tls) as transport:
                    assert (await _get(transport, "http://origin.invalid/")).content == b"page"

    @keeps(9)
    @needs("proxy", "tls_context", "http2")
    async def test_a_context_that_offers_http2_is_not_used_for_a_proxy_of_the_environment(
        self, no_proxy_variables: pytest.MonkeyPatch
    ) -> None:
        with Certificates() as certificates:
            tls = Tls(context=certificates.client_context())
            with ScriptedServer([tunnel()], tls=certificates.server_context()) as proxy:
                no_proxy_variables.setenv("http_proxy", _at(proxy).replace("http:", "https:"))
                async with self.transport(http2=True, trust_env=True, tls=tls) as transport:
                    with pytest.raises(ProxyError, match=r"tls\.context.*leave http2 out"):
                        await _get(transport, "http://origin.invalid/")

    @keeps(13)
    @needs("proxy")
    async def test_connections_to_a_proxy_are_used_again(self) -> None:
        with ScriptedServer(serve(PAGE)) as proxy:
            async with self.transport(proxy=_at(proxy)) as transport:
                for _ in range(3):
                    await _get(transport, "http://origin.invalid/")

                assert proxy.connections == 1

    @keeps(2)
    @needs("proxy")
    async def test_the_status_of_a_forwarding_proxy_is_a_response(self) -> None:
        with ScriptedServer(serve(response(502, b"no route"))) as proxy:
            async with self.transport(proxy=_at(proxy)) as transport:
                assert (await _get(transport, "http://origin.invalid/")).status_code == 502

    # -- a proxy that tunnels ----------------------------------------------------------------------

    @needs("proxy")
    async def test_https_goes_through_a_tunnel(self) -> None:
        with ScriptedServer([tunnel("user:pass word")]) as proxy:
            url = _at(proxy, "user:pass%20word@")
            async with self.secure_rig(serve(PAGE), proxy=url) as rig:
                answered = await rig.fetch("GET", "/path")

                assert answered.content == b"page"
                assert proxy.requests[0].target == f"127.0.0.1:{rig.server.port}"
                assert proxy.requests[0].all("Proxy-Authorization") == [BASIC]
                assert rig.received.target == "/path"
                assert rig.received.header("Proxy-Authorization") is None
                assert b"GET /path" not in proxy.received

    @keeps(13)
    @needs("proxy")
    async def test_a_tunnel_is_used_again(self) -> None:
        with ScriptedServer([tunnel()]) as proxy:
            async with self.secure_rig(serve(PAGE), proxy=_at(proxy)) as rig:
                for _ in range(3):
                    await rig.fetch()

                assert (proxy.connections, rig.server.connections) == (1, 1)

    @keeps(7)
    @needs("proxy")
    async def test_credentials_that_the_proxy_does_not_take_are_a_proxy_error(self) -> None:
        with ScriptedServer([tunnel("user:right")]) as proxy:
            async with self.secure_rig(serve(), proxy=_at(proxy, "user:secret@")) as rig:
                with pytest.raises(ProxyError) as caught:
                    await rig.fetch()

                assert (caught.value.phase, caught.value.replay) == ("proxy", "safe")
                assert "407" in str(caught.value)
                assert "secret" not in f"{caught.value} {caught.value!r}"
                assert rig.server.connections == 0

    @keeps(7)
    @needs("proxy")
    @pytest.mark.parametrize("refusal", REFUSALS)
    async def test_a_proxy_that_refuses_to_connect_is_a_proxy_error(self, refusal: str) -> None:
        with ScriptedServer(REFUSALS[refusal]) as proxy:
            async with self.secure_rig(serve(), proxy=_at(proxy)) as rig:
                with pytest.raises(ProxyError) as caught:
                    await rig.fetch()

                assert (caught.value.request_sent, caught.value.replay) == (False, "safe")
                assert rig.transport.snapshot().connecting == 0

    @keeps(7)
    @needs("proxy")
    async def test_a_proxy_that_is_not_there_is_a_proxy_error(self) -> None:
        async with self.rig(serve(), proxy=f"http://127.0.0.1:{closed_port()}") as rig:
            with pytest.raises(ProxyError) as caught:
                await rig.fetch()

            assert caught.value.replay == "safe"
            assert rig.server.connections == 0

    @keeps(8)
    @needs("proxy", "pooled")
    async def test_a_proxy_that_stalls_is_a_connect_timeout(self) -> None:
        with ScriptedServer([expect_head(), hold()]) as proxy:
            timeouts = Timeouts(connect=0.2)
            async with self.secure_rig(serve(), proxy=_at(proxy), timeouts=timeouts) as rig:
                with pytest.raises(ConnectTimeout) as caught:
                    await rig.fetch()

                assert (caught.value.phase, caught.value.replay) == ("proxy", "safe")

    # -- SOCKS -------------------------------------------------------------------------------------

    @needs("socks")
    @pytest.mark.parametrize("credentials", [None, "user:password"], ids=["open", "login"])
    async def test_a_socks_proxy_connects_to_the_origin(self, credentials: str | None) -> None:
        with ScriptedServer([socks5(credentials)]) as proxy:
            login = f"{credentials}@" if credentials else ""
            url = f"socks5://{login}127.0.0.1:{proxy.port}"
            async with self.rig(serve(PAGE), proxy=url) as rig:
                for _ in range(2):
                    assert (await rig.fetch("GET", "/path")).content == b"page"

                assert (proxy.connections, rig.server.connections) == (1, 1)
                assert rig.server.requests[0].target == "/path"

    @needs("socks")
    async def test_socks5h_leaves_the_name_to_the_proxy(self) -> None:
        with ScriptedServer([socks5()]) as proxy:
            url = f"socks5h://127.0.0.1:{proxy.port}"
            async with self.rig(serve(PAGE), proxy=url) as rig:
                await rig.fetch_url(f"http://localhost:{rig.server.port}/")

                assert b"localhost" in proxy.received

    @keeps(7)
    @needs("socks")
    async def test_a_socks_proxy_that_refuses_is_a_proxy_error(self) -> None:
        with ScriptedServer([socks5("user:right")]) as proxy:
            url = f"socks5://user:secret@127.0.0.1:{proxy.port}"
            async with self.rig(serve(), proxy=url) as rig:
                with pytest.raises(ProxyError) as caught:
                    await rig.fetch()

                assert "secret" not in f"{caught.value} {caught.value!r}"
                assert rig.server.connections == 0

    # -- Unix sockets ------------------------------------------------------------------------------

    @needs("uds")
    async def test_a_unix_socket_takes_the_place_of_the_host(self, tmp_path: Path) -> None:
        async with self.rig(serve(PAGE), uds=tmp_path / "server") as rig:
            answered = await rig.fetch_url("http://some.name.invalid:81/path")

            assert answered.content == b"page"
            assert rig.received.target == "/path"
            assert rig.received.all("Host") == ["some.name.invalid:81"]

    @keeps(13)
    @needs("uds")
    async def test_connections_over_a_unix_socket_are_used_again(self, tmp_path: Path) -> None:
        async with self.rig(serve(PAGE), uds=tmp_path / "server") as rig:
            for _ in range(3):
                await rig.fetch()

            assert rig.server.connections == 1

    @needs("uds")
    async def test_tls_goes_over_a_unix_socket_too(self, tmp_path: Path) -> None:
        with Certificates() as certificates:
            async with self.rig(
                serve(PAGE),
                context=certificates.server_context(),
                uds=tmp_path / "server",
                tls=Tls(ca_file=Path(certificates.ca_file)),
            ) as rig:
                assert (await rig.fetch()).content == b"page"

    @keeps(7)
    @needs("uds")
    async def test_a_unix_socket_that_is_not_there_is_a_connect_error(self, tmp_path: Path) -> None:
        async with self.transport(uds=tmp_path / "nobody") as transport:
            with pytest.raises(ConnectError) as caught:
                await _get(transport, "http://localhost/")

            assert (caught.value.phase, caught.value.replay) == ("connect", "safe")

    # -- the environment ---------------------------------------------------------------------------

    @pytest.fixture
    def no_proxy_variables(self, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
        for name in PROXY_VARIABLES:
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.lower(), raising=False)
        return monkeypatch

    @keeps(9)
    async def test_the_environment_is_not_read(
        self, no_proxy_variables: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        netrc = tmp_path / "netrc"
        netrc.write_text("machine 127.0.0.1 login user password secret\n")
        no_proxy_variables.setenv("NETRC", str(netrc))
        no_proxy_variables.setenv("HTTP_PROXY", f"http://127.0.0.1:{closed_port()}")
        no_proxy_variables.setenv("ALL_PROXY", f"http://127.0.0.1:{closed_port()}")
        async with self.rig(serve(PAGE)) as rig:
            assert (await rig.fetch()).content == b"page"
            assert rig.received.header("Authorization") is None

    @keeps(9)
    @needs("proxy")
    async def test_trust_env_takes_the_proxy_from_the_environment(
        self, no_proxy_variables: pytest.MonkeyPatch
    ) -> None:
        with ScriptedServer(serve(PAGE)) as proxy:
            no_proxy_variables.setenv("http_proxy", _at(proxy))
            async with self.transport(trust_env=True) as transport:
                await _get(transport, "http://origin.invalid/")

                assert proxy.requests[0].target == "http://origin.invalid/"

    @keeps(9)
    @needs("proxy")
    async def test_trust_env_spares_the_hosts_of_no_proxy(
        self, no_proxy_variables: pytest.MonkeyPatch
    ) -> None:
        no_proxy_variables.setenv("http_proxy", f"http://127.0.0.1:{closed_port()}")
        no_proxy_variables.setenv("no_proxy", "localhost,127.0.0.1")
        async with self.rig(serve(PAGE), trust_env=True) as rig:
            assert (await rig.fetch()).content == b"page"


def _at(proxy: ScriptedServer, login: str = "") -> str:
    return f"http://{login}127.0.0.1:{proxy.port}"


async def _get(transport: Transport, url: str) -> Response:
    async with await transport.send(Request("GET", url)) as response:
        await response.aread()
    return response
