"""The `trunkline` command: `compare`, `serve` and `sizing`.

Knows the command line. Importing it imports no library of the `cli` extra; `main` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer

_EXTRA = frozenset({"typer", "rich", "hypercorn", "starlette", "trustme", "pytest"})


def main() -> None:
    """Run the command line. Ends with SystemExit, as a console script does.

    Where the `cli` extra is not installed, it says how to install it.
    """
    try:
        _app()()
    except ModuleNotFoundError as missing:
        if missing.name not in _EXTRA:
            raise
        reason = f"trunkline: this command needs {missing.name}: pip install 'trunkline[cli]'"
        raise SystemExit(reason) from missing


def _app() -> typer.Typer:
    import typer

    from trunkline.cli._compare import compare
    from trunkline.cli._serve import serve
    from trunkline.cli._sizing import sizing

    # A traceback with the locals in it would show the values of headers.
    app = typer.Typer(
        help="One HTTP transport layer, one pool: measure what it saves, try it on a server.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="markdown",  # else the lines of a docstring are not refilled
        pretty_exceptions_enable=False,
    )
    app.command()(compare)
    app.command()(serve)
    app.command()(sizing)
    return app
