"""The rules of the house, as tests. Each ban names what to use instead.

What needs the graph of imports is in pyproject.toml under importlinter, and is run from here; the rest reads source.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = sorted((ROOT / "asid").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
CLIENTS = sorted(path for path in (ROOT / "clients").iterdir() if path.is_file() and path.suffix in ("", ".py"))
PURE = [
    path for path in PACKAGE if path.is_relative_to(ROOT / "asid/core") or path.is_relative_to(ROOT / "asid/mm")
] + [path for path in PACKAGE if path == ROOT / "asid/wire.py"]

PURE_MAY_IMPORT = {
    "__future__",
    "bisect",
    "collections",
    "dataclasses",
    "enum",
    "functools",
    "heapq",
    "itertools",
    "math",
    "operator",
    "re",
    "typing",
}
WIRE_MAY_IMPORT = PURE_MAY_IMPORT | {"msgpack", "msgspec"}
PURE_MAY_IMPORT_OF_ASID = ("asid.core", "asid.mm", "asid.errors")

# Called or imported name -> what to use instead. Holds in asid/; those in BANNED_IN_TESTS hold in tests/ too.
BANNED_CALLS = {
    "print": "text given to session.show, .line or .note; only commands/__init__.py prints",
    "eval": "msgspec.convert",
    "exec": "a function",
    "time.sleep": "a wait on a socket, pidfd or condition with a deadline",
    "time.time": "time.monotonic_ns; wall time is in the manifest and `y.clock.` alone",
    "random.seed": "a random.Random(seed) owned by the caller",
    "random.random": "a random.Random(seed) owned by the caller",
    "random.choice": "a random.Random(seed) owned by the caller",
    "random.randint": "a random.Random(seed) owned by the caller",
    "zmq.Context.instance": "the context of the process, made after it has started",
    "msgpack.Unpacker": "msgpack.unpackb of one frame (an Unpacker is not safe after an error)",
    "os.fork": "asid.live.spawn (a forked child inherits a dead ZeroMQ context)",
    "os.system": "subprocess with a list of arguments",
}
BANNED_IMPORTS = {
    "pickle": "msgpack with a struct to check it",
    "marshal": "msgpack with a struct to check it",
    "multiprocessing.shared_memory": "a memfd handed down (a visitor's resource tracker unlinks named segments)",
    "asyncio": "one poll loop",
}
BANNED_IN_TESTS = {"time.sleep", "random.seed", "zmq.Context.instance", "os.fork"}
BANNED_WORDS = {
    "TODO": "an issue number, or the work itself",
    "FIXME": "an issue number, or the work itself",
    "XXX": "an issue number, or the work itself",
    "/work" + "/": "a path relative to the repository, and a skip with its reason where the data is absent",
}
BANNED_FILE_NAMES = ("util", "utils", "helper", "helpers", "manager", "misc", "common")
MAY_PRINT = {ROOT / "asid/commands/__init__.py"}

LINES_MAX = 400
# One machine, one file: cutting these would put one automaton's rules, or one table, into two places.
LONG_FILES = {"core/gate.py", "core/hyperthread.py", "live/hyperthread.py", "optypes.py"}
LONG_LINES_MAX = 640


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports_of(path: Path) -> Iterator[str]:
    """Every module named by an import statement, wherever it is; but not those for type checkers alone."""
    package = ".".join(path.relative_to(ROOT).with_suffix("").parts[:-1])
    skipped = {
        inner
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for inner in ast.walk(node)
        if isinstance(inner, ast.Import | ast.ImportFrom)
    }
    skipped_lines = {node.lineno for node in skipped}
    for node in ast.walk(tree_of(path)):
        if getattr(node, "lineno", 0) in skipped_lines:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            yield module if not node.level else f"{package}.{module}".rstrip(".")
            if module == "asid":
                yield from (f"asid.{alias.name}" for alias in node.names)


def calls_of(path: Path) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of every call of a built-in or of an imported module's function."""
    imported = {module.split(".")[0] for module in imports_of(path)} - local_names(path)
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            name = ast.unparse(node.func)
            if "." not in name or name.split(".")[0] in imported:
                yield name, node.lineno


def local_names(path: Path) -> set[str]:
    """Names that the file gives to its own parameters and variables."""
    tree = tree_of(path)
    stored = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return stored | {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}


def impure(path: Path) -> list[str]:
    may = WIRE_MAY_IMPORT if path.name == "wire.py" else PURE_MAY_IMPORT
    return [
        module
        for module in imports_of(path)
        if module.split(".")[0] not in may
        and not any(f"{module}.".startswith(f"{allowed}.") for allowed in PURE_MAY_IMPORT_OF_ASID)
        and module != "asid"
    ]


@pytest.mark.parametrize("path", PURE, ids=name_of)
def test_the_core_knows_of_no_input_output_clock_or_chance(path):
    assert not impure(path), f"{name_of(path)} imports {impure(path)}; the core may import {sorted(PURE_MAY_IMPORT)}"


def test_the_purity_check_can_see(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    bad = tmp_path / "asid" / "core" / "bad.py"
    bad.parent.mkdir(parents=True)
    bad.write_text("import enum, time\nfrom os import path\nfrom asid.live import node\nfrom asid.core import gate\n")
    assert impure(bad) == ["time", "os", "asid.live"]


@pytest.mark.parametrize("path", PACKAGE, ids=name_of)
def test_what_is_banned_in_the_package(path):
    found = [f"line {line}: {call}: use {BANNED_CALLS[call]}" for call, line in calls_of(path) if call in BANNED_CALLS]
    if path in MAY_PRINT:
        found = [entry for entry in found if ": print:" not in entry]
    found += [
        f"import {module}: use {BANNED_IMPORTS[module]}" for module in imports_of(path) if module in BANNED_IMPORTS
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", TESTS + CLIENTS, ids=name_of)
def test_what_is_banned_in_tests_and_clients(path):
    banned = BANNED_IN_TESTS if path in TESTS else BANNED_IN_TESTS | {"eval", "exec", "os.system"}
    found = [f"line {line}: {call}: use {BANNED_CALLS[call]}" for call, line in calls_of(path) if call in banned]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", CLIENTS, ids=name_of)
def test_client_scripts_know_the_client_alone(path):
    ours = {module for module in imports_of(path) if module.split(".")[0] == "asid"}
    assert ours <= {"asid", "asid.client"}, f"{name_of(path)} imports {sorted(ours)}"
    foreign = {module.split(".")[0] for module in imports_of(path)} - sys.stdlib_module_names - {"asid"}
    assert not foreign, f"{name_of(path)} imports {sorted(foreign)}: a client needs asid and Python"


def test_nothing_unfinished_and_no_path_of_one_machine():
    suffixes = (".py", ".toml", ".md", ".txt", "")
    places = [
        *ROOT.glob("*"),
        *(path for top in ("asid", "clients", "configs", "docs", "tests") for path in (ROOT / top).rglob("*")),
    ]
    found = []
    for path in places:
        if (
            not path.is_file()
            or path.suffix not in suffixes
            or path == Path(__file__)
            or path.name == ".git"
            or "data" in path.parts
        ):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            found += [
                f"{name_of(path)}:{number}: {word}: write {BANNED_WORDS[word]}" for word in BANNED_WORDS if word in line
            ]
    assert not found, "\n".join(found)


def test_files_are_named_for_what_is_in_them():
    assert not [name_of(path) for path in PACKAGE + TESTS if path.stem in BANNED_FILE_NAMES]


def test_test_files_have_names_of_their_own():
    twice = [
        name
        for name, times in Counter(path.name for path in TESTS if path.stem not in ("conftest", "__init__")).items()
        if times > 1
    ]
    assert not twice, f"pytest imports test files by their base name: {twice}"


@pytest.mark.parametrize("path", PACKAGE, ids=name_of)
def test_no_file_is_too_long_to_read(path):
    allowed = LONG_LINES_MAX if str(path.relative_to(ROOT / "asid")) in LONG_FILES else LINES_MAX
    assert len(path.read_text(encoding="utf-8").splitlines()) <= allowed, "split it at a seam that has a name"


@pytest.mark.parametrize(
    "path", [path for path in PACKAGE + TESTS if path.read_text(encoding="utf-8").strip()], ids=name_of
)
def test_every_file_says_what_it_is_and_evaluates_annotations_late(path):
    tree = tree_of(path)
    assert ast.get_docstring(tree), "a module begins with what it is for"
    only_words = all(isinstance(node, ast.Expr) for node in tree.body)
    assert only_words or "from __future__ import annotations" in path.read_text(encoding="utf-8")


def checks_something(function: ast.FunctionDef, checkers: frozenset[str] = frozenset()) -> bool:
    """Whether an assertion is in the function, or in what it calls: one of `checkers`, a wait with a deadline."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call):
            callee = ast.unparse(node.func).rpartition(".")[2]
            if callee in checkers or callee.startswith(("raises", "assert_", "wait_", "check_")):
                return True
    return False


@pytest.mark.parametrize("path", [path for path in TESTS if path.stem.startswith("test_")], ids=name_of)
def test_every_test_can_fail(path):
    functions = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.FunctionDef)]
    checkers = frozenset(node.name for node in functions if checks_something(node))
    idle = [node.name for node in functions if node.name.startswith("test_") and not checks_something(node, checkers)]
    assert not idle, f"tests without an assertion: {idle}"


@pytest.mark.slow
@pytest.mark.live
def test_the_layers_hold():
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-logo", "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 broken" in done.stdout


# --- nothing that nobody uses ---------------------------------------------------------------------------------

# Imported by name: a verb by the command line, a benchmark by `asid bench`; run by Python, by pytest, or for docs/.
IMPORTED_BY_NAME = ("asid.commands.", "asid.bench.")
IMPORTED_FROM_OUTSIDE = {
    "asid.__main__",
    "asid.pytest_plugin",
    "asid.explore.diagram",
    "asid.report.costs_page",
    "asid.report.leaks_page",
    "asid.report.validation_page",
}
# The live machine has no TLB yet.
IMPORTED_LATER = {"asid.mm.tlb"}


def test_every_module_is_imported_by_somebody():
    used = {module for path in [*PACKAGE, *CLIENTS] for module in every_import_of(path)}
    texts = "".join(path.read_text(encoding="utf-8") for path in PACKAGE)
    lonely = [
        module
        for path in PACKAGE
        if (module := module_of(path)) not in used
        and path.stem != "__init__"
        and not module.startswith(IMPORTED_BY_NAME)
        and module not in IMPORTED_FROM_OUTSIDE | IMPORTED_LATER
        and f'"{module}"' not in texts
    ]
    assert not lonely, f"nobody imports {lonely}: use them or remove them"


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def every_import_of(path: Path) -> Iterator[str]:
    """Every module that an import may name, those for type checkers left out: they are no use of it."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
    yield from imports_of(path)


# --- what the texts name is there -------------------------------------------------------------------------------

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
TOPS = ("asid", "clients", "configs", "docs", "tests")
QUOTED = re.compile(r"`([^`\n]+)`")
PATH = re.compile(r"(?:[A-Za-z0-9_.-]+/)+[A-Za-z0-9_.*-]*|[A-Za-z0-9_]+\.(?:py|toml|md)")
MODULE = re.compile(r"asid(?:\.[a-z_]+)+")


def named_in(text: str) -> Iterator[str]:
    """Paths and modules in backticks; of a command, each word."""
    for quoted in QUOTED.findall(text):
        for word in quoted.split():
            yield word.rstrip(",;:")


def is_there(word: str) -> bool:
    """Whether a word that looks like a path or module of this project names one; True for every other word."""
    if MODULE.fullmatch(word):
        place = ROOT.joinpath(*word.split("."))
        if place.is_dir() or place.with_suffix(".py").exists():
            return True
        # A name in a module, or in the package's own file.
        within = [place.parent.with_suffix(".py"), place.parent / "__init__.py"]
        return any(re.search(rf"\b{place.name}\b", file.read_text()) for file in within if file.exists())
    if not PATH.fullmatch(word):
        return True
    top = word.split("/")[0]
    if "/" in word and top in TOPS:
        return any(ROOT.glob(word.rstrip("/")))
    if word.endswith(".py"):
        return any(ROOT.glob(f"asid/**/{word}")) or any(ROOT.glob(f"*/{word}")) or any(ROOT.glob(f"tests/**/{word}"))
    return True


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_a_page_names_is_there(page):
    missing = [word for word in named_in(page.read_text(encoding="utf-8")) if not is_there(word)]
    assert not missing, f"{name_of(page)} names what is not there: {missing}"


def test_the_look_at_the_pages_can_see():
    assert [word for word in ("asid/nothing", "tests/explore/explore_mutants.py", "asid.live.nothing", "nothing.py")
            if is_there(word)] == []  # fmt: skip
    assert all(is_there(word) for word in ("asid/core/gate.py", "configs/*.toml", "asid.client", "x/y.txt", "docs/"))
