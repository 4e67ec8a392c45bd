"""What every verb needs of the outside: where its output goes, in which form, and how it ends.

A verb is one module with one attribute, `command`. It takes the session with `@click.pass_obj` and calls

    session.show(document, text)       the answer: a JSON document with --json, else the text (or a function giving it)
    session.line(document, text)       one item of a stream: a JSON line with --json, else a line of text
    session.note(text)                 talk: to stderr, never part of the answer
    session.finish(code)               end with an exit code of asid.errors other than 0
    session.client(), session.instance the daemon, after @instance_option

and raises errors of asid.errors; `report` turns each into the words and the exit code of docs. `--json` need not be
declared: the command tree adds it to every verb.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

import click
from click.core import ParameterSource

from asid import __version__
from asid.errors import EXIT_USAGE, AsidError

if TYPE_CHECKING:
    from asid.client import Client
    from asid.config_costs import Level

INSTANCE_DEFAULT = "default"
QUIET_S = 3.0  # what takes longer says so, even where nobody may be watching

F = TypeVar("F", bound=Callable[..., Any])


class Session:
    """One invocation of `asid`."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.json = as_json
        self._streams = False  # a line of a stream was written
        self.instance = os.environ.get("ASID_INSTANCE", INSTANCE_DEFAULT)

    @property
    def is_tty(self) -> bool:
        """True when a person reads stdout: tables may be coloured, progress may be drawn."""
        return sys.stdout is not None and sys.stdout.isatty() and not self.json

    @property
    def colour(self) -> bool:
        return self.is_tty and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def style(self, text: str, **style: Any) -> str:
        """`text` in a colour on a terminal, else as it is. style: as click.style."""
        return click.style(text, **style) if self.colour else text

    def show(self, document: Mapping[str, Any], text: str | Callable[[], str], *, schema: str = "") -> None:
        """Write the answer. schema: name of the document's shape, by default the verb's own words (`config.show/1`)."""
        if self.json:
            self._write(json.dumps(self.envelope(document, schema), ensure_ascii=False, indent=2))
        else:
            self._write(text if isinstance(text, str) else text())

    def line(self, document: Mapping[str, Any], text: str | Callable[[], str], *, schema: str = "") -> None:
        """Write one item of a stream and flush, so that a reader at the other end of a pipe sees it now."""
        self._streams = True
        if self.json:
            self._write(json.dumps(self.envelope(document, schema), ensure_ascii=False, separators=(",", ":")))
        else:
            self._write(text if isinstance(text, str) else text())

    def note(self, text: str) -> None:
        """Talk to the person: never part of the answer, nor a reason to fail when nobody can hear it."""
        with contextlib.suppress(OSError):
            click.echo(text, err=True)

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[Callable[[float], None]]:
        """Give a function that, told the seconds so far, says so: on a terminal again and again, else once."""
        drawn = said = False

        def tell(seconds: float) -> None:
            nonlocal drawn, said
            if sys.stderr is not None and sys.stderr.isatty():
                drawn = True
                click.echo(f"\r{what}: {seconds:.0f} s so far ", nl=False, err=True)
            elif seconds > QUIET_S and not said:
                said = True
                self.note(f"asid: {what} takes a while")

        try:
            yield tell
        finally:
            if drawn:
                click.echo("\r" + " " * 78 + "\r", nl=False, err=True)

    def finish(self, code: int) -> NoReturn:
        """End the command with `code`. Partial answers already shown stay shown."""
        raise click.exceptions.Exit(code)

    def envelope(self, document: Mapping[str, Any], schema: str = "") -> dict[str, Any]:
        """The document with asid's version, its schema's name and `ok` in front. A document's own `ok` wins."""
        return {"asid": __version__, "schema": schema or f"{_verb()}/1", "ok": True, **document}

    def client(self) -> Client:
        """A client of the instance, connected. Raise NotRunning when no daemon answers."""
        from asid.client import connect

        return connect(self.instance)

    def report(self, error: AsidError) -> int:
        """Say an error on the channel that fits and return its exit code."""
        name = type(error).__name__
        if self.json:
            failure = {
                "class": name,
                "msg": str(error),
                "where": error.where,
                "what": error.what,
                "state": error.state,
                "allowed": error.allowed,
                "hint": error.hint,
                "data": error.data,
                "applied": error.applied,
                "retry": error.retry,
                "exit": error.exit_code,
            }
            document = self.envelope({"ok": False, "error": failure}, "error/1")
            # The end of a stream of lines is one line too.
            form: dict[str, Any] = {"separators": (",", ":")} if self._streams else {"indent": 2}
            self._write(json.dumps(document, ensure_ascii=False, **form))
        else:
            self.note(f"asid: {name}: {error}")
            if error.hint:
                self.note(f"hint: {error.hint}")
        return error.exit_code

    def _write(self, text: str) -> None:
        if sys.stdout is None:
            raise OSError(errno.EBADF, "it is closed")
        click.echo(text.rstrip("\n"))  # and flush


class Usage(AsidError):
    """The command line itself cannot be understood."""

    exit_code = EXIT_USAGE


def instance_option(command: F) -> F:
    """`--instance NAME`: which daemon of this user; also the environment's ASID_INSTANCE."""

    def take(context: click.Context, _: click.Parameter, value: str | None) -> None:
        if value is not None:
            context.ensure_object(Session).instance = value

    return click.option(
        "--instance", metavar="NAME", expose_value=False, callback=take, help="The daemon to talk to. [default]"
    )(command)


def require_alone(option: str, *but: str) -> None:
    """Raise Usage when the command line has, besides `option`, anything that it would leave aside.

    but: names of parameters that go with it; `--json` always does.
    """
    context = click.get_current_context()
    with_it = {option.lstrip("-").replace("-", "_"), "json", *but}
    for parameter in context.command.params:
        name = parameter.name or ""
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if given and name not in with_it and context.params.get(name, True) not in ((), None):
            word = parameter.opts[0] if isinstance(parameter, click.Option) else parameter.make_metavar(context)
            raise Usage(
                f"{word} with {option}", where=context.command_path, state="it would change nothing",
                allowed=f"{option} without it", hint=f"Leave one of them out. {context.command_path} --help",
            )  # fmt: skip


def json_option(command: F) -> F:
    """`--json`: one document, or JSON lines for a stream. The command tree adds it to every verb that lacks it."""
    option = click.option("--json", is_flag=True, expose_value=False, callback=_take_json, help="Answer in JSON.")
    return option(command)


def _take_json(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.ensure_object(Session).json = True


def columns(headings: Sequence[str], rows: Iterable[Sequence[object]], right: Iterable[int] = ()) -> str:
    """A plain table: two spaces between columns, columns in `right` aligned to the right, no trailing blanks."""
    cells = [list(headings), *([str(cell) for cell in row] for row in rows)]
    assert all(len(row) == len(headings) for row in cells), "a row with a missing column"
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    to_right = set(right)
    lines = [
        "  ".join(
            cell.rjust(width) if column in to_right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return "\n".join(lines)


def _verb() -> str:
    """`asid config show` -> `config.show`."""
    context = click.get_current_context(silent=True)
    return ".".join(context.command_path.split()[1:]) if context is not None else "asid"


class ChosenCosts(NamedTuple):
    """The column of the cost table, and a file instead of [costs] of the configuration ("" for none)."""

    level: Level
    file: str = ""

    @property
    def word(self) -> str:
        """What was given."""
        return self.file or self.level


class CostsType(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions of click only
    """`low`, `typical`, `high`, or a file with [costs]; what is in that is looked at with the configuration."""

    name = "LEVEL|FILE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> ChosenCosts:
        from asid.config_costs import LEVELS

        if isinstance(value, ChosenCosts):
            return value
        for level in LEVELS:
            if value == level:
                return ChosenCosts(level)
        if Path(value).is_file():
            return ChosenCosts("typical", value)
        near = get_close_matches(value, LEVELS, 1)
        raise Usage(
            f"--costs {value}", state="no such file", allowed="low, typical or high, or a file with [costs]",
            hint=f"Did you mean {near[0]}?" if near else "asid doctor --calibrate -o FILE.toml writes one.",
        )  # fmt: skip


costs_option = click.option(
    "--costs",
    type=CostsType(),
    default="typical",
    show_default=True,
    help="sim: low, typical or high, a column of the cost table (docs/costs.md), or a file with [costs].",
)
engine_option = click.option(
    "--engine",
    type=click.Choice(["live", "sim"]),
    default="live",
    show_default=True,
    help="live: real processes. sim: virtual time.",
)


class Drawn:
    """A line on stderr that is drawn anew while something goes on; only where a person watches."""

    def __init__(self, session: Session) -> None:
        self.on = session.is_tty

    def draw(self, text: str) -> None:
        if self.on:
            click.echo(f"\r{text[:78]:<78}", nl=False, err=True)

    def clear(self) -> None:
        if self.on:
            click.echo("\r" + " " * 78 + "\r", nl=False, err=True)
