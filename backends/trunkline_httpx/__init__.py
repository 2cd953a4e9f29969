"""Trunkline's backend on httpx, for asyncio and trio."""

from trunkline_httpx._transport import HttpxTransport as HttpxTransport
