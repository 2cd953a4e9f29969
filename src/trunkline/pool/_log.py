"""What is written to the log while connections are being lent: it costs nobody one.

This module knows the log, and that its handlers may raise. It does not know what is told.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable


def tell(log: Callable[..., None], message: str, *args: object) -> None:
    """Call `log`, a method of a logger, with the others.

    A handler that raises is shown on stderr where `logging.raiseExceptions` is set, as `logging`
    shows what goes wrong within its own.
    """
    try:
        log(message, *args, stacklevel=2)
    except Exception:  # noqa: BLE001 - the caller is in the middle of lending a connection
        if logging.raiseExceptions:
            traceback.print_exc()
