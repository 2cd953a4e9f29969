"""Trunkline's backend on httpx2, for asyncio and trio: all that `trunkline_httpx` is, on httpx2."""

from trunkline_httpx2._transport import Httpx2Transport as Httpx2Transport
