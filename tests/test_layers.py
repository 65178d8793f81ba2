"""The house rules that can be read off the source: imports point down, nothing is global, names are documented."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import trio_sd

PACKAGE = "trio_sd"
ROOT = Path(trio_sd.__file__).parent

TOP = 7
FLOORS = {
    "messages": 0,
    "errors": 0,
    "limits": 0,
    "extras": 0,
    "durations": 0,
    "secrets": 0,
    "tls": 0,
    "http_config": 0,
    "proxies": 0,
    "targets": 0,
    "regexes": 0,
    "relabel": 0,
    "target_labels": 0,
    "damping": 0,
    "snapshots": 1,
    "store": 1,
    "discoverer": 1,
    "set_configs": 1,
    "resources": 1,
    "oauth2": 1,
    "config": 2,
    "target_lists": 2,
    "polling": 2,
    "http_client": 2,
    "state": 2,
    "provider": 3,
    "subscription": 3,
    "relabeled": 3,
    "state_file": 3,
    "last_known_good": 3,
    "manager": 4,
    "discovery": 5,
    "reload": 6,
    "outputs": 6,
    "web": 6,
    "cli": TOP,
    "demo": TOP,
    "__main__": TOP,
    "blocking": TOP,
    "__init__": TOP,
    "testing": TOP,
}
"""The floor of each room: a module or a package right below ``trio_sd``. A new room needs a floor here."""

NEIGHBOURS = {
    ("durations", "messages"),
    ("errors", "messages"),
    ("regexes", "messages"),
    ("relabel", "messages"),
    ("relabel", "errors"),
    ("relabel", "regexes"),
    ("relabel", "targets"),
    ("extras", "errors"),
    ("secrets", "messages"),
    ("secrets", "errors"),
    ("tls", "messages"),
    ("tls", "errors"),
    ("tls", "secrets"),
    ("http_config", "errors"),
    ("http_config", "messages"),
    ("http_config", "secrets"),
    ("http_config", "tls"),
    ("proxies", "errors"),
    ("proxies", "http_config"),
    ("proxies", "secrets"),
    ("target_labels", "messages"),
    ("target_labels", "durations"),
    ("target_labels", "targets"),
    ("target_labels", "relabel"),
    ("damping", "targets"),
    ("discoverer", "resources"),
    ("set_configs", "discoverer"),
    ("store", "snapshots"),
    ("state_file", "subscription"),
    ("relabeled", "subscription"),
    ("web", "outputs"),
    ("web", "reload"),
}
"""Rooms of one floor of which the first may import the second."""

ENGINE = {"manager", "provider", "store", "subscription"}
"""What no mechanism knows."""

MODULES = {
    ".".join((PACKAGE, *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}


def room_of(module: str) -> str:
    """Return the room of ``trio_sd.room.…``; the package itself is the room ``__init__``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def mechanism_of(module: str) -> str | None:
    """Return the mechanism of ``trio_sd.discovery.mechanism.…``, or ``None`` for the registry and other rooms."""
    parts = module.split(".")
    return parts[2] if len(parts) > 2 and parts[1] == "discovery" else None


def imports_of(module: str, path: Path, tree: ast.AST) -> Iterator[str]:
    """Yield the modules of the package that ``module`` imports, wherever in it the import stands."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == PACKAGE)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1])
                base = f"{base}.{node.module}" if node.module else base
            else:
                base = node.module or ""
            if base.split(".")[0] == PACKAGE:
                for alias in node.names:
                    inner = f"{base}.{alias.name}"
                    yield inner if inner in MODULES else base


def complaint(module: str, imported: str) -> str | None:
    """Return what is wrong with an import, or ``None``."""
    here, there = room_of(module), room_of(imported)
    if here == there:
        mine, other = mechanism_of(module), mechanism_of(imported)
        if mine is not None and other != mine:
            return "one mechanism knows of another, or of the registry"
        return None
    if here == "discovery" and there in ENGINE:
        return "a mechanism knows the engine"
    if not {here, there} <= FLOORS.keys():
        return None  # told by test_every_room_has_a_floor
    if FLOORS[here] == FLOORS[there] and FLOORS[here] != TOP and (here, there) not in NEIGHBOURS:
        return "it is next door"
    if FLOORS[here] < FLOORS[there]:
        return "it is upstairs"
    return None


def test_every_room_has_a_floor() -> None:
    assert {room_of(module) for module in MODULES} - FLOORS.keys() == set()


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    path = MODULES[module]
    tree = ast.parse(path.read_text())
    complaints = [
        f"{module} imports {imported}: {found}"
        for imported in imports_of(module, path, tree)
        if (found := complaint(module, imported)) is not None
    ]
    assert complaints == []


@pytest.mark.parametrize(
    ("module", "imported", "allowed"),
    [
        ("trio_sd.store", "trio_sd.targets", True),
        ("trio_sd.targets", "trio_sd.store", False),
        ("trio_sd.targets", "trio_sd.errors", False),
        ("trio_sd.discoverer", "trio_sd.resources", True),
        ("trio_sd.resources", "trio_sd.discoverer", False),
        ("trio_sd.provider", "trio_sd.subscription", False),
        ("trio_sd.config.decode", "trio_sd.config.nodes", True),
        ("trio_sd.discovery.file.scan", "trio_sd.discovery.file.parse", True),
        ("trio_sd.discovery.file", "trio_sd.discovery.static", False),
        ("trio_sd.discovery.file.scan", "trio_sd.discovery", False),
        ("trio_sd.discovery", "trio_sd.discovery.file", True),
        ("trio_sd.discovery.file", "trio_sd.discoverer", True),
        ("trio_sd.discovery.file", "trio_sd.manager", False),
        ("trio_sd.discovery.file", "trio_sd.store", False),
        ("trio_sd.discovery.zookeeper.ensemble", "trio_sd.tls", True),
        ("trio_sd.tls", "trio_sd.secrets", True),
        ("trio_sd.secrets", "trio_sd.tls", False),
        ("trio_sd.reload", "trio_sd.outputs.console", False),
        ("trio_sd.outputs.console", "trio_sd.cli", False),
        ("trio_sd.__main__", "trio_sd.cli", True),
        ("trio_sd.manager", "trio_sd", False),
    ],
)
def test_the_rule_itself(module: str, imported: str, allowed: bool) -> None:
    assert (complaint(module, imported) is None) == allowed


def test_the_finder_of_imports() -> None:
    source = """
import trio_sd.store, trio, trio_sdx.manager
from trio_sd import targets
from . import errors
from .limits import Limits
def f():
    from ..store import Reader
    from ...manager import Manager
"""
    found = list(imports_of("trio_sd.a.b.c", Path("c.py"), ast.parse(source)))
    assert found == [
        "trio_sd.store",
        "trio_sd.targets",
        "trio_sd.a.b",
        "trio_sd.a.b.limits",
        "trio_sd.a.store",
        "trio_sd.manager",
    ]
    in_package = list(imports_of("trio_sd.a", Path("__init__.py"), ast.parse("from .b import c\nfrom ..d import e")))
    assert in_package == ["trio_sd.a.b", "trio_sd.d"]


# --- public names ---


def is_public(module: str) -> bool:
    return not any(part.startswith("_") for part in module.split("."))


PUBLIC = [module for module in MODULES if is_public(module)]


@pytest.mark.parametrize("module", PUBLIC)
def test_public_modules_say_what_is_public_and_document_it(module: str) -> None:
    loaded = importlib.import_module(module)
    assert loaded.__doc__, "a module tells what it is for"
    if not any(
        isinstance(
            node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.ImportFrom)
        )
        for node in ast.parse(MODULES[module].read_text()).body
    ):
        return  # nothing but a docstring
    names = loaded.__all__
    assert len(set(names)) == len(names)
    for name in names:
        value = getattr(loaded, name)
        if inspect.isclass(value) or inspect.isroutine(value):
            assert value.__doc__, f"{module}.{name} has no docstring"


SERVER = ("hypercorn", "starlette", "prometheus_client", "bcrypt")


@pytest.mark.parametrize("module", ["trio_sd", "trio_sd.manager", "trio_sd.testing"])
def test_importing_the_engine_does_not_import_what_it_does_not_need(module: str) -> None:
    assert imported_by(f"import {module}", "rich", "click", "yaml", "re2", "kazoo", "anyio", *SERVER) == "[]"


def test_the_command_does_not_import_a_server_before_it_serves() -> None:
    assert imported_by("import trio_sd.cli", *SERVER) == "[]"


def test_knowing_a_mechanism_does_not_import_what_only_its_discoverer_needs() -> None:
    assert imported_by("from trio_sd.discovery import default_registry; default_registry()", "kazoo") == "[]"


def imported_by(statement: str, *names: str) -> str:
    """Return which of ``names`` a fresh interpreter has imported after ``statement``, as it prints that list."""
    code = f"import sys; {statement}; print([name for name in {names} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_names_that_are_imported_late_are_all_there() -> None:
    assert set(trio_sd._LATER) <= set(trio_sd.__all__)
    for name in trio_sd.__all__:
        assert getattr(trio_sd, name).__module__.startswith(("trio_sd", "typing", "collections")), name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = trio_sd.nonsense


# --- no globals ---

MUTABLE_MAKERS = {"list", "dict", "set", "bytearray", "defaultdict", "deque", "Counter", "OrderedDict", "ChainMap"}


def mutable(value: ast.expr) -> bool:
    """Tell whether an expression makes something that can be changed in place."""
    if isinstance(value, (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)):
        return True
    if isinstance(value, ast.IfExp):
        return mutable(value.body) or mutable(value.orelse)
    if isinstance(value, ast.Call):
        function = value.func
        if isinstance(function, ast.Subscript):  # dict[str, int]()
            function = function.value
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        return name in MUTABLE_MAKERS
    return False


def module_state(tree: ast.Module) -> Iterator[str]:
    """Yield the names at the top of a module that are bound to something mutable, and every ``global``."""
    pending: list[ast.stmt] = list(tree.body)
    while pending:
        node = pending.pop(0)
        if isinstance(node, ast.Assign):
            if mutable(node.value):
                yield from (ast.unparse(target) for target in node.targets if ast.unparse(target) != "__all__")
        elif isinstance(node, ast.AnnAssign):
            if node.value is not None and mutable(node.value) and ast.unparse(node.target) != "__all__":
                yield ast.unparse(node.target)
        elif isinstance(node, (ast.If, ast.Try, ast.With, ast.For, ast.While)):
            pending = [
                child
                for part in ("body", "orelse", "finalbody")
                for child in getattr(node, part, [])
                if isinstance(child, ast.stmt)
            ] + pending
            if isinstance(node, ast.Try):
                pending = [child for handler in node.handlers for child in handler.body] + pending
    yield from (f"global {name}" for node in ast.walk(tree) if isinstance(node, ast.Global) for name in node.names)


@pytest.mark.parametrize("module", MODULES)
def test_no_globals_contract_no_module_holds_state(module: str) -> None:
    assert list(module_state(ast.parse(MODULES[module].read_text()))) == []


def test_the_finder_of_state() -> None:
    source = """
__all__ = ["a"]
a = []
b: dict[str, int] = {}
c = (1, 2)
d = MappingProxyType({"a": 1})
e = frozenset({1})
f = defaultdict(list)
if True:
    g = {x for x in c}
else:
    h = "text"
try:
    import i
except ImportError:
    i = dict()
k = collections.Counter[str]()
def function():
    global m
    local = []
"""
    assert sorted(module_state(ast.parse(source))) == ["a", "b", "f", "g", "global m", "i", "k"]
