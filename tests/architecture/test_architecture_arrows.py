"""The arrows of the house (docs/design.md), read from the source; and what an import may cost, tried in fresh processes."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("attacks", "editors", "human_study", "judges")

#: What `import isr` and the pure modules must never pull in.
HEAVY = frozenset(
    {
        "torch", "torchvision", "torchmetrics", "diffusers", "transformers", "accelerate", "openai", "google", "httpx", "httpx2",
        "requests", "aiohttp", "urllib3", "pandas", "matplotlib", "pyarrow", "sklearn", "skimage", "statsmodels", "fastapi",
        "starlette", "sqlalchemy", "uvicorn", "ray", "datasets", "tqdm", "jinja2", "diskcache", "tenacity",
    }
)  # fmt: skip
#: The modules that define what the rooms share: numbers and records only.
PURE = ("isr.schema", "isr.protocols", "isr.consensus", "isr.registry", "isr.errors", "isr.stats")
#: isr.stats works on tidy tables, so pandas is its material there (`import isr` still does not load it).
PANDAS_AT_TOP = ("isr.stats",)
#: Network clients stay out of isr/ altogether: a judge's transport is the only place that talks.
CLIENTS = frozenset({"openai", "google", "httpx", "httpx2", "requests", "aiohttp", "urllib3"})
TORCH = frozenset(
    {"torch", "torchvision", "torchmetrics", "diffusers", "transformers", "accelerate", "safetensors", "tokenizers"}
)
#: Prefixes of modules that may import torch at the top; everywhere else it is imported where it is used.
TORCH_ROOMS = (
    "isr.attacks",
    "isr.editors",
    "isr.metrics",
    "isr.transforms",
    "isr.judges.referee",
    "isr.judges._referee",
)
STUDY = frozenset({"fastapi", "starlette", "sqlalchemy", "uvicorn", "multipart", "python_multipart"})


def modules() -> dict[str, Path]:
    """Import name → file of everything that ships."""
    found: dict[str, Path] = {}
    for top, name in [("isr", "isr"), *((room, f"isr.{room}") for room in ROOMS)]:
        for source in sorted((ROOT / top).rglob("*.py")):
            parts = source.relative_to(ROOT / top).with_suffix("").parts
            found[".".join([name, *(p for p in parts if p != "__init__")])] = source
    return found


MODULES = modules()


def room(name: str) -> str:
    """The room of a module: one of ROOMS, or "isr" for the core."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "isr" and parts[1] in ROOMS else "isr"


def _type_checking_only(tree: ast.AST) -> set[int]:
    """ids of nodes under `if TYPE_CHECKING:`, which never run."""
    hidden: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            hidden.update(id(inner) for statement in node.body for inner in ast.walk(statement))
    return hidden


def _in_functions(tree: ast.AST) -> set[int]:
    """ids of nodes inside function bodies, which do not run at import."""
    return {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for inner in ast.walk(node)
        if inner is not node
    }


def imported(name: str, source: str, *, is_package: bool, at_import_only: bool) -> Iterator[tuple[str, int]]:
    """Absolute names that a module imports, with line numbers; `from a import b` gives both "a" and "a.b"."""
    tree = ast.parse(source)
    skip = _type_checking_only(tree) | (_in_functions(tree) if at_import_only else set())
    package = name.split(".") if is_package else name.split(".")[:-1]
    for node in ast.walk(tree):
        if id(node) in skip:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            target = ".".join([*base, *([node.module] if node.module else [])])
            yield target, node.lineno
            yield from ((f"{target}.{alias.name}", node.lineno) for alias in node.names)
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in {"importlib.import_module", "import_module", "__import__"}
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield str(node.args[0].value), node.lineno


def _imports(name: str, *, at_import_only: bool) -> list[tuple[str, int]]:
    path = MODULES[name]
    return list(
        imported(name, path.read_text("utf-8"), is_package=path.name == "__init__.py", at_import_only=at_import_only)
    )


def test_architecture_scanner_sees_every_form_of_import() -> None:
    source = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import hidden\nimport a.b\nfrom ..judges import x\n"
        "def f():\n    import late\n    importlib.import_module('isr.editors.mini')\n"
    )
    every = {n for n, _ in imported("isr.attacks.pgd", source, is_package=False, at_import_only=False)}
    assert {"a.b", "isr.judges", "isr.judges.x", "late", "isr.editors.mini"} <= every
    assert "hidden" not in every
    early = {n for n, _ in imported("isr.attacks.pgd", source, is_package=False, at_import_only=True)}
    assert "late" not in early
    assert "a.b" in early


def test_architecture_rooms_import_the_core_and_never_one_another() -> None:
    wrong = [
        f"{name}:{line} imports {target}"
        for name in MODULES
        if room(name) != "isr"
        for target, line in _imports(name, at_import_only=False)
        if room(target) not in ("isr", room(name))
    ]
    assert not wrong, "rooms import isr only, never one another (what they share lives in isr/): " + "; ".join(wrong)


def test_architecture_core_never_imports_a_room() -> None:
    wrong = [
        f"{name}:{line} imports {target}"
        for name in MODULES
        if room(name) == "isr"
        for target, line in _imports(name, at_import_only=False)
        if room(target) != "isr"
    ]
    assert not wrong, "isr/ reaches rooms by name through isr.registry, never by import: " + "; ".join(wrong)


def test_architecture_no_module_uses_a_bare_folder_name() -> None:
    bare = {*ROOMS, "tests", "tools", "benchmarks"}
    wrong = [
        f"{name}:{line} imports {target}"
        for name in MODULES
        for target, line in _imports(name, at_import_only=False)
        if target.split(".")[0] in bare
    ]
    assert not wrong, "; ".join(wrong)


def test_architecture_pure_modules_import_nothing_heavy() -> None:
    wrong = [
        f"{name}:{line} imports {target}"
        for name in MODULES
        if any(name == pure or name.startswith(pure + ".") for pure in PURE)
        for target, line in _imports(name, at_import_only=True)
        if target.split(".")[0] in HEAVY and not (target.startswith("pandas") and name.startswith(PANDAS_AT_TOP))
    ]
    assert not wrong, "; ".join(wrong)


def test_architecture_core_holds_no_network_client() -> None:
    wrong = [
        f"{name}:{line} imports {target}"
        for name in MODULES
        if room(name) == "isr"
        for target, line in _imports(name, at_import_only=False)
        if target.split(".")[0] in CLIENTS
    ]
    assert not wrong, "network clients belong to judges/ and editors/: " + "; ".join(wrong)


def test_architecture_torch_is_imported_at_the_top_only_in_torch_rooms() -> None:
    wrong = [
        f"{name}:{line} imports {target}"
        for name in MODULES
        if not name.startswith(TORCH_ROOMS)
        for target, line in _imports(name, at_import_only=True)
        if target.split(".")[0] in TORCH
    ]
    assert not wrong, "import torch where it is used: " + "; ".join(wrong)


def _python(code: str, *, cwd: Path = ROOT) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_architecture_import_isr_is_light() -> None:
    loaded = set(json.loads(_python("import isr, sys, json; print(json.dumps(sorted(sys.modules)))")))
    assert "isr" in loaded
    # `google` alone is a namespace package that .pth files of other distributions may create; a client is below it.
    heavy = {n for n in loaded if n.split(".")[0] in HEAVY - {"google"} or n.startswith("google.genai")}
    assert not heavy, f"`import isr` pulls in {sorted(heavy)}"


def test_architecture_every_public_name_of_isr_resolves_lazily() -> None:
    names = json.loads(
        _python("import isr, json; print(json.dumps([n for n in getattr(isr, '__all__', []) if not hasattr(isr, n)]))")
    )
    assert names == []


_BLOCKED_IMPORT = """
import importlib, json, sys
names, blocked = json.loads(sys.argv[1])
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
failed = {}
for name in names:
    try:
        importlib.import_module(name)
    except Exception as error:
        missing = getattr(error, "name", None) or ""
        failed[name] = [missing.split(".")[0], f"{type(error).__name__}: {error}"]
print(json.dumps(failed))
"""


def optional_packages() -> frozenset[str]:
    """Import names of everything that only an extra brings (by naming convention of the distributions)."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

    def bare(requirement: str) -> str:
        for cut in "[<>=!~; ":
            requirement = requirement.split(cut, maxsplit=1)[0]
        return requirement.strip().lower()

    required = {bare(r) for r in project["dependencies"]}
    extra = {bare(r) for group in project["optional-dependencies"].values() for r in group}
    rename = {"scikit-image": "skimage", "scikit-learn": "sklearn", "python-multipart": "python_multipart"}
    own = {"immunization-success-rate"}
    return frozenset(rename.get(n, n.replace("-", "_")) for n in extra - required - own) | TORCH | STUDY


@pytest.fixture(scope="module")
def import_failures() -> dict[str, tuple[str, str]]:
    names = [n for n in MODULES if not n.endswith("__main__")]
    done = subprocess.run(
        [sys.executable, "-c", _BLOCKED_IMPORT, json.dumps([names, sorted(optional_packages())])],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {name: (missing, text) for name, (missing, text) in json.loads(done.stdout).items()}


def test_architecture_modules_import_without_optional_extras(import_failures: dict[str, tuple[str, str]]) -> None:
    """Only rooms that are made of an extra may need it; there the error names the missing package."""
    wrong = []
    for name, (missing, text) in import_failures.items():
        allowed = (
            TORCH if name.startswith(TORCH_ROOMS) else STUDY if name.startswith("isr.human_study") else frozenset()
        )
        if missing not in allowed and not ("pip install" in text and allowed):
            wrong.append(f"{name}: {text}")
    assert not wrong, "these modules need an optional package just to be imported:\n" + "\n".join(wrong)


def test_architecture_optional_packages_are_really_blocked() -> None:
    assert {"torch", "diffusers", "fastapi", "pyarrow", "matplotlib", "ray"} <= optional_packages()
    assert not {"numpy", "pandas", "pydantic", "openai", "scipy"} & optional_packages()
