"""What the libraries' clients are made with, so that they are like the SDKs' own.

This module knows which argument is the client's and which shapes the transport. It does not know
what an argument means.
"""

from __future__ import annotations

from typing import Any

from trunkline import Transport, TransportConfig, UnsupportedOption
from trunkline.adapters._family import Family, Given
from trunkline.adapters._options import SHAPING, make_config, timeout_arguments


def client_arguments(
    family: Family, adapter: Any, given: Given, options: dict[str, Any]
) -> tuple[Transport, dict[str, Any]]:
    """The transport of a client, and the arguments to make the client with.

    Args:
        adapter: the class of the library's transport.
        given: the config, or the transport, that the client was called with.
        options: what else it was called with.

    Raises:
        UnsupportedOption: an argument cannot be honoured; the message says what to do instead.
    """
    arguments = {name: value for name, value in options.items() if name not in SHAPING}
    shaping = {name: value for name, value in options.items() if name in SHAPING}
    theirs = arguments.pop("transport", None)
    if theirs is not None and (given is not None or not isinstance(theirs, adapter)):
        raise UnsupportedOption(
            "transport: give a trunkline transport, or a config, as the first argument; another "
            f"library's transport goes into {family.library.__name__}'s own client, or into mounts"
        )
    given = theirs or given
    if given is None or isinstance(given, TransportConfig):
        given = make_config(given, shaping)
        arguments["mounts"] = _mounts(adapter, given, arguments.get("mounts") or {})
    elif shaping:
        raise UnsupportedOption(
            f"{', '.join(shaping)}: the transport that was given is made already; set it there"
        )
    made: Any = given if isinstance(given, adapter) else adapter(given)
    config = make_config(getattr(made.transport, "config", None), {})
    arguments.setdefault("timeout", family.library.Timeout(**timeout_arguments(config.timeouts)))
    arguments.setdefault("follow_redirects", True)
    arguments["transport"] = made
    return made.transport, arguments


def _mounts(adapter: Any, config: TransportConfig, mounts: dict[str, Any]) -> dict[str, Any]:
    """None mounts a transport without a proxy; in the library that is the one that is not mounted.

    Ours finds the proxies itself, so that one without is another.
    """
    if None not in mounts.values() or not (config.proxy or config.trust_env):
        return mounts
    direct = adapter(config.model_copy(update={"proxy": None, "trust_env": False}))
    return {pattern: direct if mounted is None else mounted for pattern, mounted in mounts.items()}
