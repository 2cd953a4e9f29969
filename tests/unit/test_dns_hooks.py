"""What a failed dial does to the addresses it was made with, on the built-in backends."""

from __future__ import annotations

import anyio
import pytest

import trunkline.dns
from trunkline import Client, ConnectError, Dns, TransportConfig
from trunkline.testing._dns_server import DNSServer, addresses
from trunkline.testing._script import response, serve
from trunkline.testing._servers import ScriptedServer


@pytest.mark.parametrize("backend", ["aiohttp", "httpx"])
def test_a_name_that_led_to_no_connection_is_asked_again(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trunkline.dns, "NEGATIVE_SECONDS", 0.0)

    async def call(names: DNSServer, port: int) -> int:
        config = TransportConfig(backend=backend, dns=Dns(nameservers=(names.address,)))
        async with Client(config) as client:
            with pytest.raises(ConnectError):
                await client.get(f"http://api.test:{port}/")
            names.names["api.test"] = addresses("127.0.0.1")
            return (await client.get(f"http://api.test:{port}/")).status_code

    with (
        DNSServer({"api.test": addresses("127.0.0.2")}) as names,
        ScriptedServer(serve(response(200, b"page"))) as server,
    ):
        assert anyio.run(call, names, server.port) == 200
