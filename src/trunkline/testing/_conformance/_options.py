"""Options that a backend cannot honour are refused when the transport is made, and by name."""

from __future__ import annotations

import importlib.util
import ssl
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from trunkline._config import Tls, TransportConfig
from trunkline._errors import UnsupportedOption
from trunkline.testing._conformance._base import Conformance
from trunkline.testing._promises import keeps
from trunkline.testing._script import response, serve

_CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "http2": ("http2", {"http2": True}),
    "proxy": ("proxy", {"proxy": "http://127.0.0.1:3128"}),
    "socks": ("proxy", {"proxy": "socks5://127.0.0.1:1080"}),
    "uds": ("uds", {"uds": Path("/run/server")}),
    "tls_context": ("tls.context", {"tls": Tls(context=_CONTEXT)}),
}


class Options(Conformance):
    promise = 10

    @pytest.mark.parametrize("capability", OPTIONS)
    def test_an_option_is_refused_unless_the_backend_can_honour_it(self, capability: str) -> None:
        option, given = OPTIONS[capability]
        if getattr(self.capabilities(), capability):
            self.open_transport(self.config(**given))
            return
        with pytest.raises(UnsupportedOption) as caught:
            self.open_transport(self.config(**given))

        assert option in str(caught.value)
        assert self.capabilities().name in str(caught.value)
        assert isinstance(caught.value, ValueError)

    def test_a_loop_is_refused_unless_the_backend_runs_on_it(self) -> None:
        if self.capabilities().trio or importlib.util.find_spec("trio") is None:
            pytest.skip("the backend runs on every loop that is installed")

        async def make() -> None:
            self.open_transport(self.config())

        with pytest.raises(UnsupportedOption, match="trio"):
            anyio.run(make, backend="trio")

    def test_a_certificate_that_is_none_is_refused(self, tmp_path: Path) -> None:
        nothing = tmp_path / "nothing.pem"
        nothing.write_text("no certificate\n")
        for tls in (Tls(ca_file=nothing), Tls(client_cert=nothing)):
            with pytest.raises(UnsupportedOption, match=r"ca_file|client_cert"):
                self.open_transport(self.config(tls=tls))

    @keeps(15)
    def test_a_transport_says_what_it_can_do(self) -> None:
        transport = self.open_transport(self.config())

        assert transport.capabilities == self.capabilities()
        assert transport.capabilities.name == self.backend

    @keeps(16)
    def test_a_transport_may_be_made_before_the_event_loop_runs(self) -> None:
        transport = self.open_transport(TransportConfig(backend=self.backend))

        now = transport.snapshot()
        assert (now.open, now.created, now.max_connections) == (0, 0, 100)

    @keeps(16)
    async def test_a_transport_made_before_the_loop_works_in_it(self) -> None:
        async with self.rig(serve(response(200, b"page"))) as rig:
            made = await anyio.to_thread.run_sync(self.open_transport, self.config())
            async with await made.send(rig.request()) as answered:
                assert await answered.aread() == b"page"
            await made.aclose()
