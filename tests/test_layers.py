"""Imports point down only and never in circles, and the wheel holds three packages."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = {
    "shardload": ROOT / "shardload",
    "shardload_server": ROOT / "server" / "shardload_server",
    "shardload_native": ROOT / "native" / "shardload_native",
}

# From the top down; a unit imports from lower layers, and from those beside it in its own.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("shardload_server",),
    ("shardload",),
    ("shardload.api", "shardload.generation", "shardload.runtime"),
    ("shardload.assembly",),
    ("shardload.service", "shardload.answer", "shardload.plan", "shardload.prompts", "shardload.requests"),
    ("shardload.routing",),
    ("shardload.library",),
    ("shardload.engine", "shardload.chat"),
    ("shardload.llama",),
    ("shardload.shards",),
    ("shardload.memory", "shardload.gguf", "shardload.demo"),
    ("shardload.config", "shardload.quantities", "shardload.toml_lines"),
    ("shardload.errors", "shardload.folders", "shardload._version", "shardload.work_thread"),
)
LEVEL = {unit: level for level, units in enumerate(LAYERS) for unit in units}
NATIVE = "shardload_native"
# The engine knows llama.cpp's layer by a protocol alone, and who implements it names the types in it.
PROTOCOLS = {("shardload.llama", "shardload.engine.runner"), ("shardload.llama", "shardload.engine.sampling")}
# Made of llama.cpp's layer, and imported by whoever opens a model, not before.
OF_LLAMA = {"shardload.library.llama_paging"}
ABOVE_NATIVE = ("shardload.llama", "shardload.shards", "shardload.memory")


def modules() -> dict[str, Path]:
    found = {}
    for package, folder in SOURCES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


MODULES = modules()


def imports(module: str, path: Path, *, at_import: bool = False) -> Iterator[str]:
    """The modules of ours that a module imports; only those that run as it is imported if ``at_import``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in _nodes(tree, at_import=at_import):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in SOURCES)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            name = node.module or ""
            if name.split(".")[0] in SOURCES:
                for alias in node.names:
                    inner = f"{name}.{alias.name}"
                    yield inner if inner in MODULES else name


def module_of(name: str) -> str:
    return name if name in MODULES else name.rpartition(".")[0]


def _nodes(tree: ast.AST, *, at_import: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if at_import and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _nodes(node, at_import=at_import)


def unit_of(module: str) -> str:
    """What the layers are made of: packages of shardload, its modules, and the other two as a whole."""
    parts = module.split(".")
    return parts[0] if parts[0] != "shardload" else ".".join(parts[:2])


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    unit = unit_of(module)
    running = {(unit, module_of(name)) for name in imports(module, MODULES[module], at_import=True)}
    for imported in imports(module, MODULES[module]):
        target = unit_of(imported)
        if target == unit or (unit, module_of(imported)) in PROTOCOLS - running:
            continue
        if target == NATIVE:
            assert unit in ABOVE_NATIVE, f"{module} imports {imported}, which is for llama.cpp's own layer"
        elif unit == NATIVE:
            assert target in LAYERS[-1], f"{module} imports {imported}"
        else:
            assert unit in LEVEL, f"{unit} has no layer: give it one"
            assert target in LEVEL, f"{target} has no layer: give it one"
            assert LEVEL[unit] <= LEVEL[target], f"{module} imports {imported} from a layer above"


def test_no_circles() -> None:
    graph = {
        module: {name for name in imports(module, path, at_import=True) if name != module}
        for module, path in MODULES.items()
    }
    # The package's own names gather what is below; whoever imports a submodule does not depend on them.
    for names in graph.values():
        names.discard("shardload")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_everything_above_llama_is_importable_without_it() -> None:
    above = [module for module in MODULES if module.startswith("shardload.")]
    for module in above:
        if unit_of(module) in ABOVE_NATIVE:
            continue
        direct = set(imports(module, MODULES[module], at_import=True))
        assert not direct & OF_LLAMA, module
        if module in OF_LLAMA:
            continue
        assert not any(unit_of(name) in ("shardload.llama", NATIVE) for name in direct), module


def test_the_wheel_installs_three_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {Path(package).name for package in packages} == set(SOURCES)
    for folder in ("server", "native", "tests", "tools"):
        assert not (ROOT / folder / "__init__.py").exists(), f"{folder} must not be a package"
