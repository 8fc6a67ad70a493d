"""What is here: GPU, driver, processor, and the versions of packages, found without importing one of them.

The packages of another interpreter are read from the metadata in its site-packages; nothing of it runs.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ckpttool.doctor.gpus import Gpu, nvidia, processor, several
from ckpttool.errors import InputError, UsageError

PACKAGES = {
    "torch": ("torch",),
    "triton": ("triton", "pytorch-triton", "pytorch-triton-rocm", "triton-rocm", "triton-windows"),
    "transformers": ("transformers",),
    "kernels": ("kernels",),
    "accelerate": ("accelerate",),
    "numpy": ("numpy",),
    "vllm": ("vllm",),
    "flashinfer_python": ("flashinfer-python",),
    "humming_kernels": ("humming-kernels",),
    "amd_quark": ("amd-quark",),
    "unsloth": ("unsloth",),
    "unsloth_zoo": ("unsloth-zoo",),
    "triton_kernels": ("triton-kernels",),
    "gpt_oss": ("gpt-oss",),
    "llama.cpp": (),
    "llama_cpp_python": ("llama-cpp-python",),
    "xllamacpp": ("xllamacpp",),
}
"""The names the rules ask for, and the distributions that stand for each."""

UNKNOWN = "?"
"""The version of what is there without saying which it is."""

_SECONDS = 10


@dataclass(frozen=True)
class Environment:
    """Where a checkpoint is to run. `packages` has a version for each that is installed ("?" where it is not said).

    `traits` are properties that no version tells, such as triton_kernels:matmul_ogs; None in `amx` is not known.
    `assumed` means that the GPU was named, not found.
    """

    gpu: Gpu
    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    packages: Mapping[str, str] = field(default_factory=dict)
    traits: Mapping[str, bool] = field(default_factory=dict)
    python: str | None = None
    amx: bool | None = None
    assumed: bool = False
    notes: tuple[str, ...] = ()


def probe(gpu: str | None = None, python: str | Path | None = None, extra: Sequence[str] = ()) -> Environment:
    """This machine, but for what is given: a GPU by name, the packages of `python`, and `extra` ones (NAME=VERSION).

    Raises:
        UsageError: no such GPU or package is known.
        InputError: `python` is no environment.
    """
    gpus, driver, notes = _gpus()
    if gpu is not None:
        gpus, driver, notes = several(gpu), None, ()
    folders = site_packages(Path(python)) if python is not None else [Path(p) for p in sys.path if p]
    packages = versions(folders)
    traits = _traits(folders, packages)
    packages |= _llama_cpp(packages)
    here = Environment(
        gpus[0] if gpus else processor(),
        gpus,
        driver,
        packages,
        traits,
        str(python) if python is not None else sys.executable,
        _amx(),
        gpu is not None,
        notes,
    )
    return with_packages(here, dict(map(_asked, extra)))


def canonical(name: str) -> str:
    """The name by which `PACKAGES` knows a package, whatever its case and dashes."""
    name = name.strip().lower()
    return name if name == "llama.cpp" else re.sub(r"[-_.]+", "_", name)


def _asked(text: str) -> tuple[str, str | None]:
    """`NAME=VERSION` of --with; VERSION "none" takes the package away."""
    name, _, version = text.replace("==", "=", 1).partition("=")
    name, version = canonical(name), version.strip()
    if name not in PACKAGES:
        raise UsageError(f"--with {text}: no rule asks for this package", hint="known: " + ", ".join(PACKAGES))
    if version.lower() in ("none", "missing"):
        return name, None
    from ckpttool.doctor.versions import Version

    try:
        return name, str(Version(version))
    except ValueError as e:
        raise UsageError(f"--with {text}: {e}", hint="give it as --with triton=3.3, or triton=none") from e


def versions(folders: Iterable[Path]) -> dict[str, str]:
    """The version of every package of `PACKAGES` that the metadata in `folders` names; the first folder wins."""
    wanted = {canonical(d): name for name, distributions in PACKAGES.items() for d in distributions}
    rank = {canonical(d): i for ds in PACKAGES.values() for i, d in enumerate(ds)}
    found: dict[str, tuple[int, int, str]] = {}
    for place, folder in enumerate(folders):
        for info in _metadata_folders(folder):
            # dist-info is NAME-VERSION.dist-info; what else a name may hold, the metadata says.
            key = canonical(info.name.split("-")[0])
            if key not in wanted:
                continue
            version = importlib.metadata.PathDistribution(info).metadata["Version"] or UNKNOWN
            row = (place, rank[key], version)
            name = wanted[key]
            if name not in found or row < found[name]:
                found[name] = row
    out = {name: row[2] for name, row in found.items()}
    return {name: out[name] for name in PACKAGES if name in out}


def _metadata_folders(folder: Path) -> list[Path]:
    try:
        paths = sorted(folder.iterdir())
    except OSError:  # zip files, and folders of sys.path that are not there
        return []
    return [p for p in paths if p.name.endswith((".dist-info", ".egg-info"))]


def site_packages(python: Path) -> list[Path]:
    """The folders in which the interpreter, environment or site-packages folder `python` has its packages.

    Raises:
        InputError: nothing there, or no packages.
    """
    if not python.exists():
        raise InputError("does not exist", file=str(python), hint=_PYTHON_HINT)
    if python.is_dir() and (python.name in ("site-packages", "dist-packages") or _metadata_folders(python)):
        return [python]
    # A venv's bin/python is a link to the base's: what counts is where the link lies.
    roots = [python] if python.is_dir() else [python.absolute().parent.parent, python.resolve().parent.parent]
    out: list[Path] = []
    for root in roots:
        out = _below(root)
        config = root / "pyvenv.cfg"
        if config.is_file() and (home := _base(config)) is not None:
            out += _below(home)
        if out:
            return out
    raise InputError("has no site-packages", file=str(python), hint=_PYTHON_HINT)


_PYTHON_HINT = "give an interpreter (venv/bin/python), an environment's folder or a site-packages folder"


def _below(root: Path) -> list[Path]:
    patterns = (
        "lib/python3*/site-packages", "lib64/python3*/site-packages", "local/lib/python3*/dist-packages",
        "lib/python3*/dist-packages", "lib/python3/dist-packages", "Lib/site-packages",
    )  # fmt: skip
    found = [p for pattern in patterns for p in sorted(root.glob(pattern)) if p.is_dir()]
    return list({p.resolve(): p for p in found}.values())


def _base(config: Path) -> Path | None:
    """The environment below a venv that lets its packages through."""
    lines = (line.partition("=") for line in config.read_text("utf-8", "replace").splitlines())
    values = {key.strip().lower(): value.strip() for key, _, value in lines}
    if values.get("include-system-site-packages", "false").lower() != "true" or "home" not in values:
        return None
    return Path(values["home"]).parent


def _traits(folders: Iterable[Path], packages: dict[str, str]) -> dict[str, bool]:
    """What the files of triton_kernels tell, which has no version of its own; its folder counts as installed."""
    packages.pop("triton_kernels", None)  # PyPI's package of that name is another
    for folder in folders:
        root = folder / "triton_kernels"
        details = root / "tensor_details"
        if not details.is_dir():
            continue
        packages["triton_kernels"] = UNKNOWN
        kernels = [root / "matmul_ogs_details" / "_matmul_ogs.py", root / "matmul_details" / "_matmul.py"]
        refuses = any("Only Hopper swizzling" in p.read_text("utf-8", "replace") for p in kernels if p.is_file())
        swizzles = (details / "layout_details" / "blackwell_value.py").is_file()
        return {
            "triton_kernels:matmul_ogs": (root / "matmul_ogs.py").is_file(),
            "triton_kernels:hopper-values-only": refuses and swizzles,
        }
    return {"triton_kernels:matmul_ogs": False, "triton_kernels:hopper-values-only": False}


def _ask(*command: str) -> str | None:
    """What a program prints, or None where it fails, is not there, or takes too long."""
    program = shutil.which(command[0])
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, *command[1:]], capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout + done.stderr if done.returncode == 0 else None


def _llama_cpp(packages: Mapping[str, str]) -> dict[str, str]:
    """llama.cpp's build number: of the first of its programs on PATH, or of a Python package that has it inside."""
    for program in ("llama-server", "llama-cli"):
        if found := re.search(r"version: (\d+)", _ask(program, "--version") or ""):
            return {"llama.cpp": found[1]}
    if found := re.fullmatch(r"\d+\.\d+\.(\d{4,})", packages.get("xllamacpp", "")):
        return {"llama.cpp": found[1]}
    return {"llama.cpp": UNKNOWN} if "llama_cpp_python" in packages else {}


_QUERY = "--query-gpu=name,compute_cap,memory.total,driver_version"


def _gpus() -> tuple[tuple[Gpu, ...], str | None, tuple[str, ...]]:
    """The GPUs of this machine, their driver, and what is odd about them."""
    if shutil.which("nvidia-smi"):
        text = _ask("nvidia-smi", _QUERY, "--format=csv,noheader,nounits")
        rows = [[c.strip() for c in line.split(",")] for line in (text or "").splitlines() if line.count(",") == 3]
        if rows:
            gpus = tuple(nvidia(name, cap, memory) for name, cap, memory, _ in rows)
            seen, note = _visible(gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
            return seen, rows[0][3], (note,) if note else ()
        amd = _amd()
        return amd, None, ("nvidia-smi is there and finds no GPU: is the driver loaded?",)
    return _amd(), None, ()


def _visible(gpus: tuple[Gpu, ...], variable: str | None) -> tuple[tuple[Gpu, ...], str | None]:
    """The GPUs that runtimes see by CUDA_VISIBLE_DEVICES, in its order, and what to say of the others."""
    if variable is None:
        return gpus, None
    words = [w.strip() for w in variable.split(",")]
    if variable.strip() and not all(re.fullmatch(r"-?\d+", w) for w in words):  # UUIDs, which were not asked for
        return gpus, f"CUDA_VISIBLE_DEVICES={variable} may hide some of these GPUs"
    seen: list[Gpu] = []
    for word in words:
        if not word or not 0 <= int(word) < len(gpus):  # CUDA sees none from the first that is not there on
            break
        seen.append(gpus[int(word)])
    note = f"CUDA_VISIBLE_DEVICES={variable} leaves {len(seen)} of the {len(gpus)} GPUs here to be seen"
    return tuple(seen), note if len(seen) < len(gpus) else None


def _amd(root: Path = Path("/sys/class/kfd/kfd/topology/nodes")) -> tuple[Gpu, ...]:
    """AMD's GPUs, as the kernel lists them."""
    out = []
    for node in sorted(root.glob("*"), key=lambda p: p.name):
        values = _properties(node / "properties")
        version = values.get("gfx_target_version", 0)
        if version:
            gfx = f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}"
            banks = [_properties(p) for p in node.glob("mem_banks/*/properties")]
            memory = max((b.get("size_in_bytes", 0) for b in banks), default=0)
            out.append(Gpu(f"AMD {gfx}", "rocm", gfx=gfx, memory=memory or None))
    return tuple(out)


def _properties(path: Path) -> dict[str, int]:
    try:
        rows = (line.split() for line in path.read_text().splitlines())
    except OSError:
        return {}
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}


def _amx() -> bool | None:
    """Whether this processor has AMX tiles; None where it cannot be told."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return None
    return "amx_tile" in text.split()


def with_packages(
    environment: Environment, changes: Mapping[str, str | None], traits: Mapping[str, bool] | None = None
) -> Environment:
    """The same environment after packages are installed, or with None removed; their `traits` are then as given."""
    packages = dict(environment.packages)
    kept = {k: v for k, v in environment.traits.items() if k.partition(":")[0] not in changes}
    for name, version in changes.items():
        if version is None:
            packages.pop(name, None)
        else:
            packages[name] = version
    return replace(environment, packages=packages, traits={**kept, **(traits or {})})
