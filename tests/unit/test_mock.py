"""The mock transport: a function in the place of the network, with the contract's promises."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest

from trunkline import (
    ConnectError,
    InvalidRequest,
    PoolSnapshot,
    Request,
    Response,
    Transport,
    TransportClosed,
)
from trunkline.testing import MockTransport

pytestmark = pytest.mark.anyio

GET = Request("GET", "https://h/")


async def test_a_plain_function_answers_with_a_tuple() -> None:
    transport = MockTransport(lambda request: (201, {"X-Path": request.path}, b"body"))

    response = await transport.send(Request("GET", "https://h/x?y"))

    assert isinstance(transport, Transport)
    assert response.status_code == 201
    assert response.headers["x-path"] == "/x?y"
    assert await response.aread() == b"body"


async def test_an_async_function_answers_with_a_response() -> None:
    async def answer(request: Request) -> Response:
        await anyio.lowlevel.checkpoint()
        return Response(202, headers={"X-A": "1"}, content="text")

    response = await MockTransport(answer).send(GET)

    assert (response.status_code, response.headers["X-A"]) == (202, "1")
    assert await response.aread() == b"text"


async def test_an_async_function_may_answer_with_a_tuple_too() -> None:
    async def answer(request: Request) -> tuple[int, dict[str, str], bytes]:
        return 200, {}, b"body"

    assert await (await MockTransport(answer).send(GET)).aread() == b"body"


async def test_an_answer_may_be_produced_piece_by_piece() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"data: 1\n\n"
        yield b"data: 2\n\n"

    transport = MockTransport(lambda request: Response(200, content=pieces()))
    response = await transport.send(GET)

    assert [event.data async for event in response.aiter_sse()] == ["1", "2"]


async def test_an_answer_knows_its_request_unless_it_names_another() -> None:
    other = Request("GET", "https://other/")
    plain = MockTransport(lambda request: Response(200))
    named = MockTransport(lambda request: Response(200, request=other))

    assert (await plain.send(GET)).request is GET
    assert (await named.send(GET)).request is other


async def test_what_was_sent_is_remembered_in_order_errors_included() -> None:
    def answer(request: Request) -> Response:
        if request.path == "/1":
            raise ConnectError("refused")
        return Response(200)

    transport = MockTransport(answer)
    requests = [Request("GET", f"https://h/{number}") for number in range(3)]
    for request in requests:
        try:
            await transport.send(request)
        except ConnectError:
            assert request.path == "/1"

    assert transport.requests == requests


async def test_what_the_function_raises_is_raised() -> None:
    failure = KeyError("of the test's own")

    def answer(request: Request) -> Response:
        raise failure

    with pytest.raises(KeyError) as caught:
        await MockTransport(answer).send(GET)

    assert caught.value is failure


async def test_a_closed_one_sends_nothing() -> None:
    transport = MockTransport(lambda request: Response(200))
    await transport.aclose()
    await transport.aclose()

    with pytest.raises(TransportClosed):
        await transport.send(GET)
    assert transport.requests == []


async def test_there_is_nothing_to_warm_or_to_see() -> None:
    transport = MockTransport(lambda request: Response(200))

    assert await transport.warm("https://h/", 4) == 0
    assert transport.snapshot() == PoolSnapshot()
    assert transport.capabilities.name == "mock"


async def test_warming_refuses_what_a_real_one_refuses() -> None:
    transport = MockTransport(lambda request: Response(200))

    with pytest.raises(InvalidRequest, match="connections"):
        await transport.warm("https://h/", 0)
    with pytest.raises(InvalidRequest, match="url"):
        await transport.warm("/x")
    await transport.aclose()
    with pytest.raises(TransportClosed):
        await transport.warm("https://h/")
