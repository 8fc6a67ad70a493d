"""Who may import whom, and what loads only when it is needed: by each module's syntax, and by running commands."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import builders
import pytest

import ckpttool

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ckpttool"

HEAVY = frozenset(
    {"torch", "triton", "transformers", "numba", "llvmlite", "gguf", "huggingface_hub", "httpx", "httpx2", "fsspec",
     "safetensors", "ray", "rich", "tqdm", "yaml", "scipy", "jsonschema", "vl_convert"}
)  # fmt: skip
"""Loaded on first use: never by a module's own imports, but for the kernels'."""

KERNELS = {
    "codecs.cpu_": {"numba", "llvmlite"}, "codecs.gpu": {"torch", "triton"}, "validator.fused": {"torch", "triton"},
    "validator.logit_kernel": {"torch", "triton"}, "validator.": {"torch"},
}  # fmt: skip
"""What compiled kernels and the forward pass, themselves loaded on first use, may import as they are."""

UTILITIES = frozenset({"utils", "helpers", "common", "base", "manager", "core"})


def modules() -> list[str]:
    """Every module, without the package's name: "codecs.formats", "" for the package itself."""
    found = (p.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".") for p in PACKAGE.rglob("*.py"))
    return sorted("" if n == "__init__" else n.removesuffix(".__init__") for n in found)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(node: ast.AST, lazy: bool = False) -> Iterator[tuple[str, bool]]:
    """Every imported name, and whether the import waits for a call; imports for type checkers alone do not count."""
    for child in ast.iter_child_nodes(node):
        if is_type_checking(child):
            continue
        if isinstance(child, ast.Import):
            yield from ((a.name, lazy) for a in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0 and child.module, "imports are absolute"
            yield child.module, lazy
            yield from ((f"{child.module}.{a.name}", lazy) for a in child.names)
        yield from imports(child, lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


@cache
def parsed(module: str) -> tuple[tuple[str, bool], ...]:
    path = PACKAGE / module.replace(".", "/") if module else PACKAGE
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return tuple(imports(ast.parse(path.read_text("utf-8"))))


def inner(module: str, *, lazy: bool) -> set[str]:
    """The package's own modules that `module` imports: as it loads, or with `lazy` whenever."""
    known = set(modules()) - {""}
    found = {name.removeprefix("ckpttool.") for name, late in parsed(module) if lazy or not late}
    return (found & known) - {module}


def outer(module: str) -> set[str]:
    """The other packages that `module` imports as it loads."""
    return {name.split(".")[0] for name, late in parsed(module) if not late} - {"ckpttool"}


def rank(module: str) -> int:
    """cli -> API -> plan, execute, inspector ... -> archs -> containers, codecs -> tensors, errors."""
    top = module.split(".")[0]
    ranks = {"errors": 0, "threads": 0, "tensors": 0, "containers": 1, "codecs": 1, "archs": 2, "api": 4, "render": 4}
    ranks |= {"cli": 5, "cli_process": 5, "__main__": 5}
    return ranks.get(top, 3)


@pytest.mark.parametrize("module", [m for m in modules() if m])
def test_imports_go_one_way(module: str) -> None:
    for other in inner(module, lazy=True):
        assert rank(other) <= rank(module), f"{module} imports {other}"
    if module.startswith("containers."):
        assert not [m for m in inner(module, lazy=True) if m.startswith("codecs")]
    if module.startswith("codecs."):
        assert {m for m in inner(module, lazy=True) if m.startswith("containers")} <= {
            "containers",
            "containers.ggml_types",
        }
    if not module.startswith("cli"):
        assert "click" not in {name.split(".")[0] for name, _ in parsed(module)}


def test_no_cycles() -> None:
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, f"{' -> '.join((*above, module))}"
        if module not in done:
            for other in sorted(inner(module, lazy=False)):
                visit(other, (*above, module))
            done.add(module)

    for module in modules():
        visit(module, ())
    assert done == set(modules())


@pytest.mark.parametrize("module", modules())
def test_heavy_packages_load_on_first_use(module: str) -> None:
    allowed = next((names for prefix, names in KERNELS.items() if module.startswith(prefix)), set[str]())
    assert outer(module) & HEAVY <= allowed
    if not allowed:
        # What imports a kernel as it loads would load its compiler.
        assert not [m for m in inner(module, lazy=False) if m.startswith(tuple(KERNELS)) and outer(m) & HEAVY]


def test_only_one_module_writes_checkpoints() -> None:
    assert {m for m in modules() if "containers.source.LocalTarget" in {n[9:] for n, _ in parsed(m)}} <= {
        "execute",
        "staged",
        "readback",
        "workplace",
    }


def test_no_module_takes_the_place_of_a_function() -> None:
    """A submodule, once loaded, is the package's attribute of its name: `ckpttool.plan` must stay the function."""
    assert not set(ckpttool.__all__) & {m.split(".")[0] for m in modules()}


def test_names_say_something() -> None:
    assert not UTILITIES & {m.split(".")[-1] for m in modules()}


def test_the_walk_sees_what_is_there() -> None:
    assert "codecs.formats" in inner("target", lazy=False)
    assert "render" in inner("cli", lazy=True) - inner("cli", lazy=False)
    assert "numba" in outer("codecs.cpu_jit")
    assert ("gguf", True) in parsed("archs.general")


RUN = """
import sys
from ckpttool import cli
try:
    cli.main()
except SystemExit as e:
    assert e.code == 0, e.code
sys.stdout.flush()
print("LOADED", *sorted({m.split(".")[0] for m in sys.modules}), file=sys.stderr)
"""


def loaded(*argv: str | Path) -> set[str]:
    """What a process that ran `ckpttool ARGV` has imported."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, *map(str, argv)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return set(done.stderr.rsplit("LOADED ", 1)[1].split())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builders.write(builders.Model(builders.Sizes(layers=1)), tmp_path_factory.mktemp("imports") / "hf", "hf")


def test_help_loads_next_to_nothing() -> None:
    for argv in ("--help",), ("convert", "--help"), ("--version",):
        assert not loaded(*argv) & (HEAVY | {"numpy"}), argv


def test_inspect_loads_no_compiler_and_no_hub(checkpoint: Path) -> None:
    for argv in ((), ("--json",), ("--tensors", "*norm*")):
        assert not loaded("inspect", checkpoint, *argv) & (HEAVY | {"numpy"}), argv
    assert not loaded("inspect", checkpoint, "--check") & (HEAVY | {"ssl"})


def test_a_plan_to_safetensors_loads_no_compiler(checkpoint: Path) -> None:
    gone = HEAVY - {"rich"}
    assert not loaded("convert", checkpoint, checkpoint.parent / "dry", "--to", "bf16", "--dry-run") & gone


def test_convert_loads_no_torch(checkpoint: Path) -> None:
    never = {"torch", "triton", "transformers", "safetensors", "fsspec"}
    assert not loaded("convert", checkpoint, checkpoint.parent / "a", "--to", "bf16") & never
    assert not loaded("convert", checkpoint, checkpoint.parent / "a.gguf") & never


def test_validate_below_the_forward_pass_loads_no_torch(checkpoint: Path) -> None:
    for level in ("structure", "values"):
        assert not loaded("validate", checkpoint, checkpoint, "--level", level) & {"torch", "triton", "tokenizers"}


def test_the_package_alone_loads_nothing() -> None:
    code = "import sys, ckpttool; dir(ckpttool); print(*sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert not set(done.stdout.split()) & (HEAVY | {"numpy", "click"})
