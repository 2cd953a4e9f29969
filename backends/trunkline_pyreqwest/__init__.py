"""Trunkline's backend on pyreqwest (Rust), for asyncio: a `Transport` with a pool of its own."""

from trunkline_pyreqwest._transport import PyreqwestTransport as PyreqwestTransport
