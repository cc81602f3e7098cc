"""The layering of the rooms, read from the source: who may import whom, and what values are.

Knows: the table of the rooms (it is the one in docs/architecture.md).
Does not know: what any room does.
"""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "moerun"

BASE = ("moerun.units", "moerun.errors", "moerun.codec")
DESCRIPTIONS = ("moerun.model.description", "moerun.machine.description", "moerun.planning")
# What a room may import of moerun beside itself; the first prefix that matches counts.
ROOMS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("moerun.units", ()),
    ("moerun.errors", ()),
    ("moerun.codec", ()),
    ("moerun.places", BASE),
    ("moerun.model.description", BASE),
    ("moerun.machine.description", BASE),
    ("moerun.planning", (*BASE, "moerun.model", "moerun.machine.description")),
    ("moerun.model", BASE),
    ("moerun.machine", (*BASE, "moerun.places")),
    ("moerun.settings", (*BASE, "moerun.places", "moerun.planning.strategy")),
    ("moerun.store", (*BASE, "moerun.places", "moerun.model")),
    (
        "moerun.engine",
        (
            *BASE,
            *DESCRIPTIONS,
            "moerun.model",
            "moerun.machine",
            "moerun.places",
            "moerun.settings",
        ),
    ),
    (
        "moerun.experts",
        (
            *BASE,
            *DESCRIPTIONS,
            "moerun.engine.interface",
            "moerun.places",
            "moerun.machine",
            "moerun.model",
        ),
    ),
    ("moerun.worker", (*BASE, "moerun.places", "moerun.machine", "moerun.engine")),
    (
        "moerun.runner",
        (
            *BASE,
            *DESCRIPTIONS,
            "moerun.worker",
            "moerun.engine",
            "moerun.experts",
            "moerun.places",
            "moerun.machine",
            "moerun.model",
            "moerun.store",
        ),
    ),
    (
        "moerun.report",
        (
            *BASE,
            *DESCRIPTIONS,
            "moerun.model.catalog",
            "moerun.settings",
            "moerun.engine",
            "moerun.experts",
            "moerun.runner",
        ),
    ),
    (
        "moerun.server",
        (
            *BASE,
            *DESCRIPTIONS,
            "moerun.settings",
            "moerun.store",
            "moerun.engine",
            "moerun.experts",
            "moerun.places",
            "moerun.machine",
            "moerun.model",
            "moerun.worker",
            "moerun.runner",
            "moerun.data",
        ),
    ),
    (
        "moerun.repl",
        (
            *BASE,
            "moerun.places",
            "moerun.engine.interface",
            "moerun.store.parameters",
            "moerun.report",
        ),
    ),
    ("moerun.cli", ("moerun",)),
    ("moerun.__main__", ("moerun.cli",)),
    ("moerun.data", ()),
)
# Values and decisions: no input or output, no clock, no chance, no log.
PURE = (
    "moerun.units",
    "moerun.errors",
    "moerun.codec",
    "moerun.model.description",
    "moerun.machine.description",
    "moerun.planning",
    "moerun.engine.arguments",
    "moerun.settings.description",
    "moerun.repl.commands",
    "moerun.repl.settings",
    "moerun.report.word_wrap",
    "moerun.experts.book",
    "moerun.experts.budget",
    "moerun.experts.counters",
    "moerun.experts.layout",
    "moerun.experts.order",
    "moerun.experts.policy",
    "moerun.experts.routes",
    "moerun.experts.simulate",
)
IMPURE_MODULES = {
    "os", "io", "sys", "time", "datetime", "random", "secrets", "logging", "pathlib", "subprocess",
    "socket", "threading", "multiprocessing", "tempfile", "shutil", "ctypes", "json",
}  # fmt: skip
IMPURE_CALLS = {"open", "print", "input"}
# Packages from elsewhere, and the only places that may import them.
THIRD_PARTY: dict[str, tuple[str, ...]] = {
    "llama_cpp": ("moerun.engine",),
    "numpy": ("moerun.engine", "moerun.experts"),
    "jinja2": ("moerun.engine",),
    "gguf": ("moerun.engine", "moerun.model"),
    "pynvml": ("moerun.machine.probe_nvml", "moerun.machine.probe_processes"),
    "psutil": (
        "moerun.machine.probe_host",
        "moerun.machine.storage",
        "moerun.runner.statistics",
        "moerun.machine.probe_processes",
    ),
    "yaml": ("moerun.settings.nodes",),
    "typer": ("moerun.cli",),
    "prompt_toolkit": ("moerun.repl.terminal",),
    "starlette": ("moerun.server",),
    "uvicorn": ("moerun.server",),
    "rich": ("moerun.report", "moerun.cli"),
}
# What Windows does not have.
UNIX_MODULES = {
    "crypt", "curses", "fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "spwd",
    "syslog", "termios", "tty",
}  # fmt: skip
UNIX_NAMES = {
    *(f"signal.SIG{name}" for name in ("KILL", "HUP", "USR1", "USR2", "PIPE", "ALRM", "CHLD",
                                       "CONT", "STOP", "TSTP", "QUIT", "WINCH")),
    *(f"os.{name}" for name in ("fork", "geteuid", "getuid", "killpg", "mkfifo", "setsid",
                                "sched_getaffinity", "statvfs", "sysconf", "uname")),
}  # fmt: skip
# Typer gives only the command line's functions their values, so booleans and lists are theirs.
NOUNS = (
    "moerun.model.description",
    "moerun.machine.description",
    "moerun.planning",
    "moerun.settings.description",
    "moerun.engine.arguments",
    "moerun.engine.interface",
)
# Not values: these hold what C structs point to, and free it.
HANDLES = {"moerun.engine.load.LoadedModel"}
# Counts that are no bytes although a word in them is, and one whose unit stands before its verb.
OTHER_UNITS = {"vocabulary_size", "expert_bytes_moved"}
MUTABLE = {"list", "dict", "set", "bytearray", "List", "Dict", "Set"}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(SOURCES[module].read_text(encoding="utf-8"))


def is_within(module: str, prefixes: tuple[str, ...]) -> bool:
    return any(module == prefix or module.startswith(f"{prefix}.") for prefix in prefixes)


def imports_of(module: str, *, at_start: bool = False) -> Iterator[str]:
    """Yield what a module imports, by full name; `at_start` leaves out functions and typing."""
    for node in nodes_of(tree_of(module), at_start=at_start):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively in line {node.lineno}"
            source = node.module or ""
            for alias in node.names:
                full = f"{source}.{alias.name}"
                yield full if full in SOURCES else source


def nodes_of(node: ast.AST, *, at_start: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if at_start and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if at_start and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield child
        yield from nodes_of(child, at_start=at_start)


def room_of(module: str) -> tuple[str, tuple[str, ...]]:
    return next((room, allowed) for room, allowed in ROOMS if is_within(module, (room,)))


@pytest.mark.parametrize("module", SOURCES)
def test_a_room_imports_only_what_it_may(module: str):
    if module == "moerun":
        assert not list(imports_of(module))
        return
    room, allowed = room_of(module)
    for imported in imports_of(module):
        if imported.partition(".")[0] != "moerun":
            continue
        # the version of the package is everybody's
        assert imported == "moerun" or is_within(imported, (room, *allowed)), (
            f"{module} imports {imported}"
        )


@pytest.mark.parametrize("module", SOURCES)
def test_packages_from_elsewhere_have_their_places(module: str):
    for imported in imports_of(module):
        package = imported.partition(".")[0]
        if package == "moerun" or package in sys.stdlib_module_names:
            continue
        assert package in THIRD_PARTY, f"{module} imports {imported}"
        assert is_within(module, THIRD_PARTY[package]), f"{module} imports {imported}"


@pytest.mark.parametrize("module", [name for name in SOURCES if is_within(name, PURE)])
def test_pure_modules_touch_nothing(module: str):
    loaded = {imported.partition(".")[0] for imported in imports_of(module)}
    assert not loaded & IMPURE_MODULES
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in IMPURE_CALLS, f"{module}:{node.lineno}"


@pytest.mark.parametrize("module", SOURCES)
def test_only_reports_and_verbs_print(module: str):
    if is_within(module, ("moerun.report", "moerun.cli")):
        return
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"{module}:{node.lineno}"


def is_verb(module: str) -> bool:
    """Whether a module of the command line holds a function of its own name."""
    return is_within(module, ("moerun.cli",)) and any(
        isinstance(node, ast.FunctionDef) and node.name == module.rpartition(".")[2]
        for node in tree_of(module).body
    )


@pytest.mark.parametrize(
    "module",
    [
        *filter(is_verb, SOURCES),
        *(f"moerun.cli.{name}" for name in ("app", "verbs", "options", "planning_steps")),
    ],
)
def test_verbs_import_other_rooms_only_when_called(module: str):
    cheap = (*BASE, "moerun.cli", "moerun.places", "moerun.settings.description", "moerun.report")
    heavy = [
        imported
        for imported in imports_of(module, at_start=True)
        if imported.startswith("moerun.") and not is_within(imported, cheap)
    ]
    assert not heavy, f"{module} imports {heavy}"


def test_there_are_no_circles():
    graph = {
        module: {i for i in imports_of(module, at_start=True) if i in SOURCES} for module in SOURCES
    }
    while leaves := {module for module, needed in graph.items() if not needed - {"moerun"}}:
        graph = {
            module: needed - leaves for module, needed in graph.items() if module not in leaves
        }
    assert not graph, f"these import one another in a circle: {sorted(graph)}"


@pytest.mark.parametrize("module", SOURCES)
def test_every_system_can_import_it(module: str):
    """What only some systems have is asked for when it is needed, never at import."""
    at_start = list(nodes_of(tree_of(module), at_start=True))
    assert not {i.partition(".")[0] for i in imports_of(module, at_start=True)} & UNIX_MODULES
    for node in at_start:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            assert name not in UNIX_NAMES, f"{module}:{node.lineno} uses {name} at import"


def dataclasses_of(module: str) -> Iterator[tuple[ast.ClassDef, ast.expr]]:
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.ClassDef):
            for decorator in node.decorator_list:
                called = decorator.func if isinstance(decorator, ast.Call) else decorator
                if ast.unparse(called) in ("dataclass", "dataclasses.dataclass"):
                    yield node, decorator


def fields_of(node: ast.ClassDef) -> Iterator[tuple[str, ast.expr]]:
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            yield statement.target.id, statement.annotation


@pytest.mark.parametrize("module", SOURCES)
def test_values_are_frozen_and_named(module: str):
    for node, decorator in dataclasses_of(module):
        if f"{module}.{node.name}" in HANDLES:
            continue
        asked = ast.unparse(decorator)
        for word in ("frozen=True", "slots=True", "kw_only=True"):
            assert word in asked, f"{module}: {node.name} lacks {word}"


@pytest.mark.parametrize("module", [name for name in SOURCES if is_within(name, NOUNS)])
def test_nouns_hold_nothing_that_can_change(module: str):
    for node, _ in dataclasses_of(module):
        if node.name.startswith("_"):  # the workings of one module, not a noun
            continue
        for field, annotation in fields_of(node):
            names = {n.id for n in ast.walk(annotation) if isinstance(n, ast.Name)}
            assert not names & MUTABLE, f"{module}: {node.name}.{field}"


@pytest.mark.parametrize("module", SOURCES)
def test_counts_of_bytes_say_so(module: str):
    for node, _ in dataclasses_of(module):
        for field, annotation in fields_of(node):
            names = {n.id for n in ast.walk(annotation) if isinstance(n, ast.Name)}
            if not names & {"int", "float"} or field in OTHER_UNITS:
                continue
            words = field.lstrip("_").split("_")
            assert words[-1] not in ("size", "memory", "vram", "ram"), (
                f"{module}: {node.name}.{field} should end with its unit"
            )
            if "bytes" in words:
                assert field.endswith(("_bytes", "_bytes_per_s", "_bytes_per_token")), (
                    f"{module}: {node.name}.{field} should end with its unit"
                )


@pytest.mark.parametrize("module", SOURCES)
def test_a_module_says_what_it_knows_and_what_not(module: str):
    docstring = ast.get_docstring(tree_of(module)) or ""
    assert docstring, f"{module} has no docstring"
    if SOURCES[module].name != "__init__.py" and not is_verb(module):
        assert "Knows: " in docstring, f"{module} does not say what it knows"
        assert "Does not know: " in docstring, f"{module} does not say what it does not know"


def test_the_walk_sees_what_it_should():
    assert "moerun.planning.planner" in SOURCES
    assert "moerun.planning.plan" in set(imports_of("moerun.planning.planner"))
    assert "rich.console" in set(imports_of("moerun.report.console", at_start=True))
    lazy = set(imports_of("moerun.cli.plan")) - set(imports_of("moerun.cli.plan", at_start=True))
    assert "moerun.planning.planner" in lazy
