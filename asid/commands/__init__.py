"""The command `asid`: the list of verbs, and the one place where a run of it ends.

Each verb is a module of this package with an attribute `command`; it is imported when it is asked for, so that
`asid status` does not pay for what `asid explore` needs. See `session` for what a verb is given.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from difflib import get_close_matches
from typing import Any, NoReturn, TextIO

import click

from asid import __version__, signals
from asid.commands.session import Session, Usage, json_option
from asid.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, AsidError, HostUnsuitable, crash_of

EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE: the reader of our output went away
EXIT_SIGNALLED = 128  # and the number of the signal: 129, 130, 143

# Heading, then (verb, what it does). tests/test_commands.py asserts that every module is here.
VERBS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    (
        "First steps",
        (
            ("demo", "a tour of a minute: leaks with policy none, gone with policy asi"),
            ("doctor", "check this host: cores, clocks, limits, permissions"),
        ),
    ),
    (
        "Daemon",
        (
            ("up", "start the daemon (--detach returns when it is ready)"),
            ("down", "drain, stop, audit"),
            ("status", "one screen; --expect ready|healthy for health checks"),
            ("ls", "instances of this user"),
        ),
    ),
    (
        "Act on a live daemon",
        (
            ("inject", "exit|nmi|mce|irq|stall|kill TARGET: make something happen to a hyperthread"),
            ("gate", "show|hold|release CORE"),
            ("policy", "list|show|set|test"),
            ("ht", "ls, or plug|unplug|attach|detach TARGET"),
        ),
    ),
    (
        "Observe",
        (
            ("stat", "table per exit reason, in the shape of perf kvm stat"),
            ("watch", "events as lines"),
        ),
    ),
    (
        "Run and check",
        (
            ("run", "up, drive, down and verdict of one configuration"),
            ("sim", "many seeds of a configuration in virtual time, with faults; what fails is made small"),
            ("assess", "what each policy would cost a recording, a table or a configuration"),
            ("replay", "play a recorded trace, or a schedule of explore, by real processes"),
            ("compare", "the same load under several policies, interleaved repeats"),
            ("sweep", "every combination of a matrix in virtual time, here or on a Dask cluster; --resume"),
            ("explore", "every interleaving within bounds; counterexamples as schedules"),
            ("audit", "check every guarantee again from the journal of a run"),
            ("bench", "speed of this build beside the bare limit of this machine"),
        ),
    ),
    (
        "Address spaces",
        (("space", "show|audit|diff|learn|dump|map|unmap: what a VM's isolated space maps and exposes"),),
    ),
    (
        "Artefacts",
        (
            ("trace", "record VM exits of this host; show a run with KVM's own events"),
            ("runs", "ls|show|diff|rm"),
            ("config", "show [--origin] FILE"),
            ("schema", "ops|events|config|run"),
        ),
    ),
)

NAMES = tuple(name for _, verbs in VERBS for name, _ in verbs)


class Terminated(BaseException):
    """SIGTERM or SIGHUP, raised where the command happens to be, so that its `finally` blocks run."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = EXIT_SIGNALLED + number


class ReaderGone(BaseException):
    """Nobody reads our output any more. click would turn the OSError into exit code 1, which means FAIL here."""


class Verbs(click.Group):
    """The group of verbs, each imported when it is asked for."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise ReaderGone from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(NAMES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in NAMES:
            return None
        command: click.Command = importlib.import_module(f"asid.commands.{cmd_name}").command
        _finish(command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in NAMES and not args[0].startswith("-"):
            near = get_close_matches(args[0], NAMES, 1)
            hint = f"Did you mean {near[0]}?" if near else "asid --help"
            raise Usage(f"there is no verb {args[0]!r}", hint=hint)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs under their headings, from the list above: help imports no verb."""
        for heading, verbs in VERBS:
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(8), summary) for name, summary in verbs])


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="asid", message="%(prog)s %(version)s")
@json_option
def cli() -> None:
    """KVM address space isolation, emulated live: processes as hyperthreads, a gate per core, a journal to audit.

    Targets: c0 c0h1 vm1 vm1/2, lists c0h0,c0h1, ranges c0-3, globs c*h1. Durations 250us 10ms 2s, rates 500/s.
    """


def main() -> NoReturn:
    """Entry point of the executable."""
    if not __debug__:
        # Assertions are part of the emulator: each process checks what it can see of the guarantees.
        print("asid: python -O removes the checks that asid relies on\nhint: run without -O", file=sys.stderr)
        sys.exit(2)
    signals.on_endings(_on_ending)
    sys.exit(_last(sys.argv[1:]))


def _last(args: list[str]) -> int:
    """Run one command line. Once its exit code is known, no signal changes it or adds a word."""
    try:
        try:
            return invoke(args)
        finally:
            _ignore_endings()
    except KeyboardInterrupt:  # another one, while the first was told
        return EXIT_INTERRUPTED
    except Terminated as ended:
        return ended.exit_code
    finally:
        _ignore_endings()
        _drop_talk()


def invoke(args: list[str]) -> int:
    """Run one command line and return its exit code; every way to end is here, or in `_ended`."""
    # An error before the options are parsed must still be told in the form that was asked for.
    session = Session(as_json="--json" in args)
    try:
        code = _ended(session, args)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except (BrokenPipeError, ReaderGone):
        return _reader_gone()
    except OSError as fault:  # of stdout, else `_ended` had reported it there; 1 would mean FAIL
        return _unwritable(session, fault)


def _ended(session: Session, args: list[str]) -> int:
    try:
        result: Any = cli.main(args, prog_name="asid", standalone_mode=False, obj=session)
        return result if isinstance(result, int) and not isinstance(result, bool) else EXIT_OK
    except AsidError as error:
        return session.report(error)
    except click.exceptions.NoArgsIsHelpError as error:
        session.note(error.format_message())
        return EXIT_USAGE
    except click.UsageError as error:
        return session.report(_usage(error))
    except click.ClickException as error:
        return session.report(Usage(error.format_message()))
    except click.exceptions.Exit as end:
        return end.exit_code
    except (click.Abort, KeyboardInterrupt):
        session.note("asid: interrupted")
        return EXIT_INTERRUPTED
    except Terminated as ended:
        session.note("asid: terminated")
        return ended.exit_code
    except Exception as fault:
        if isinstance(fault, OSError) and _of_output(fault):
            raise
        if os.environ.get("ASID_DEBUG"):
            raise
        return session.report(crash_of(fault))


def _usage(error: click.UsageError) -> Usage:
    context = error.ctx
    path = context.command_path if context is not None else "asid"
    message = error.format_message().rstrip(".")
    message = message[:1].lower() + message[1:]
    usage = context.command.get_usage(context).removeprefix("Usage: ") if context is not None else ""
    return Usage(message, where=path, allowed=" ".join(usage.split()), hint=f"{path} --help")


def _on_ending(number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)


def _ignore_endings() -> None:
    for signum in signals.ENDINGS:
        signal.signal(signum, signal.SIG_IGN)


def _reader_gone() -> int:
    """The reader of our output has left (`asid ... | head`): end quietly."""
    _drop_output()
    return EXIT_BROKEN_PIPE


def _of_output(fault: OSError) -> bool:
    """Whether it was raised where stdout is written to, by us or by click's own help."""
    trace = fault.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code in (click.echo.__code__, Session._write.__code__)


def _unwritable(session: Session, fault: OSError) -> int:
    """Say on stderr that stdout takes nothing, whatever form was asked for."""
    _drop_output()
    session.json = False
    return session.report(
        HostUnsuitable(
            "standard output cannot be written",
            state=fault.strerror or str(fault),
            allowed="open, with room for the answer",
            hint="The command itself may have done its work: look with asid status, asid runs ls.",
        )
    )


def _drop_output() -> None:
    """What is still to be written to stdout must not fail again at exit."""
    _drop(sys.stdout)


def _drop_talk() -> None:
    """Nor what nobody could be told: the interpreter would end with 120 for it."""
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    except OSError:
        _drop(sys.stderr)


def _drop(stream: TextIO | None) -> None:
    if stream is not None:
        with contextlib.suppress(OSError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


def _finish(command: click.Command) -> None:
    """Give a verb and its parts `--json`, and show the lines of an epilog as examples, one a line."""
    if isinstance(command, click.Group):
        for part in command.commands.values():
            _finish(part)
    elif not any("--json" in parameter.opts for parameter in command.params):
        json_option(command)
    if command.epilog and not command.epilog.startswith("\b"):
        # \b keeps click from filling the lines into one paragraph.
        command.epilog = "\n".join(["\b", "Examples:", *(f"  {line}" for line in command.epilog.splitlines())])
