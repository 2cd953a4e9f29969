"""The aiohttp backend: `AiohttpTransport`."""

from trunkline_aiohttp._transport import AiohttpTransport as AiohttpTransport

__all__ = ["AiohttpTransport"]
