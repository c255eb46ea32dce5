"""Every way of installing, and every place to run from, gives one and the same `isr` (docs/design.md, packaging).

Wheel and sdist are built once from a clean copy of the tree. Each install goes into a fresh environment whose other
packages are borrowed, by links, from the environment that runs the tests: quick, and nothing is downloaded.
"""

from __future__ import annotations

import email.parser
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.packaging

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = Path(__file__).resolve().parent / "sample_plugin"
DISTRIBUTION = "immunization-success-rate"
ROOMS = ("attacks", "editors", "human_study", "judges")
NOT_SHIPPED = ("tests", "docs", "benchmarks", "tools", "packages", *ROOMS)

sys.path.insert(0, str(ROOT / "tools"))
from check_packages import on_disk, problems  # noqa: E402


def _run(*command: str | Path, cwd: Path, **env: str) -> str:
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=clean | {"PYTHONDONTWRITEBYTECODE": "1"} | env,
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Environment:
    """A fresh virtual environment that holds nothing of this project until something is installed into it."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def pip(self, *args: str | Path, cwd: Path) -> None:
        _run(
            sys.executable, "-m", "pip", "--python", self.python, "--disable-pip-version-check", "install", "--quiet",
            "--no-deps", "--no-build-isolation", "--no-index", *args, cwd=cwd,
        )  # fmt: skip

    def run(self, code: str, *args: str, cwd: Path) -> str:
        return _run(self.python, "-c", code, *args, cwd=cwd)


def _ours(name: str) -> bool:
    lowered = name.lower().replace("-", "_")
    return lowered.startswith(("__editable__", "immunization_success_rate", "isr_sample")) or lowered in (
        "isr",
        "__pycache__",
    )


@pytest.fixture(scope="module")
def borrowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of links to every installed package but ours (a .pth in it has no effect: it is not a site folder)."""
    farm = tmp_path_factory.mktemp("borrowed")
    for folder in dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))):
        for entry in Path(folder).iterdir():
            if not _ours(entry.name) and not (farm / entry.name).exists():
                (farm / entry.name).symlink_to(entry)
    return farm


@pytest.fixture(scope="module")
def new_environment(tmp_path_factory: pytest.TempPathFactory, borrowed: Path) -> Callable[[], Environment]:
    def make() -> Environment:
        folder = tmp_path_factory.mktemp("venv") / "v"
        venv.create(folder, with_pip=False, symlinks=True)
        site = next((folder / "lib").glob("python3*/site-packages"))
        (site / "borrowed.pth").write_text(f"{borrowed}\n", "utf-8")
        return Environment(folder)

    return make


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean copy of the tree as a fresh clone would have it (no build outputs, no weights)."""
    copy = tmp_path_factory.mktemp("tree") / "checkout"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode == 0:
        names = [n for n in listed.stdout.decode("utf-8").split("\0") if n and not n.startswith("packages/")]
        for name in names:
            if (ROOT / name).is_file():  # a tracked file may be deleted in the working tree
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, copy / name)
    else:  # an unpacked sdist has no git
        skip = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "site", "out", "packages", "*.egg-info")
        shutil.copytree(ROOT, copy, ignore=skip)
    return copy


@pytest.fixture(scope="module")
def built(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel (built from the sdist, as `python -m build` does) and the sdist."""
    out = tmp_path_factory.mktemp("dist")
    source = tmp_path_factory.mktemp("source") / "checkout"
    shutil.copytree(tree, source)
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source, cwd=out)
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def sdist(built: Path) -> Path:
    (found,) = built.glob("*.tar.gz")
    return found


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A research repository with modules of the same names as our folders, all of which raise when imported."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "attacks.py").write_text("raise RuntimeError('the wrong attacks was imported')\n", "utf-8")
    for name in ("judges", "editors", "human_study"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(f"raise RuntimeError('the wrong {name} was imported')\n", "utf-8")
    return folder


@pytest.fixture(scope="module")
def from_wheel(new_environment: Callable[[], Environment], wheel: Path, hostile: Path) -> Environment:
    made = new_environment()
    made.pip(wheel, cwd=hostile)
    return made


@pytest.fixture(scope="module")
def editable(new_environment: Callable[[], Environment], tree: Path, hostile: Path) -> tuple[Environment, Path]:
    made = new_environment()
    checkout = tree.parent / "editable"
    shutil.copytree(tree, checkout)
    made.pip("-e", checkout, cwd=hostile)
    return made, checkout


# Imports every room by name, loads a plugin of ours through the registry, and says where everything came from.
PROBE = """
import importlib.util, json, pathlib, sys
import isr, isr.judges, isr.registry, isr.schema
rooms = {}
for room in ("attacks", "editors", "human_study", "judges"):
    spec = importlib.util.find_spec("isr." + room)
    rooms[room] = spec.origin
judges = [p.name for p in isr.registry.JUDGES.list()]
loaded = isr.registry.JUDGES.load("function").__module__
print(json.dumps({"isr": isr.__file__, "rooms": rooms, "judges": judges, "loaded": loaded, "modules": [m for m in sys.modules if m.split(".")[0] in ("attacks", "judges", "editors", "human_study")]}))
"""


def _probe(environment: Environment, cwd: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads(environment.run(PROBE, cwd=cwd))
    assert found["modules"] == [], "a bare folder name was imported beside isr"
    assert found["loaded"] == "isr.judges.function"
    assert {"gemini", "openai", "function", "replay"} <= set(found["judges"])  # type: ignore[call-overload]
    return found


def _inside(found: dict[str, object], folder: Path) -> bool:
    rooms = found["rooms"]
    assert isinstance(rooms, dict)
    return all(
        Path(str(origin)).resolve().is_relative_to(folder.resolve()) for origin in [found["isr"], *rooms.values()]
    )


# --------------------------------------------------------------------------------------------------- what is in them


def test_packaging_list_equals_the_folders() -> None:
    assert problems() == []


def test_packaging_list_check_finds_what_is_wrong(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "isr", tmp_path / "isr", ignore=shutil.ignore_patterns("__pycache__"))
    for room in ROOMS:
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    text = (ROOT / "pyproject.toml").read_text("utf-8").replace('"isr.stats", ', "")
    (tmp_path / "pyproject.toml").write_text(text, "utf-8")
    (tmp_path / "isr" / "forgotten").mkdir()
    (tmp_path / "isr" / "forgotten" / "module.py").write_text("", "utf-8")
    found = "\n".join(problems(tmp_path))
    assert "isr/stats/ is missing from [tool.setuptools] packages" in found
    assert "isr/forgotten/ holds module.py but no __init__.py" in found


def test_packaging_distribution_name_is_our_own(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        metadata = email.parser.Parser().parsestr(archive.read(name).decode("utf-8"))
    assert metadata["Name"] == DISTRIBUTION
    # `ISR` on the public index is another project (image super-resolution); index names ignore case and punctuation.
    assert metadata["Name"].lower().replace("-", "").replace("_", "") != "isr"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    required = [r for r in metadata.get_all("Requires-Dist", []) if "extra ==" not in r]
    assert not [r for r in required if r.startswith(("torch", "diffusers", "transformers", "ray"))]


def test_packaging_wheel_ships_every_file_of_every_room(wheel: Path, tree: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        shipped = {n for n in archive.namelist() if ".dist-info/" not in n}
    wanted = {
        "/".join([*prefix, *file.relative_to(tree / top).parts])
        for top, prefix in [("isr", ["isr"]), *((room, ["isr", room]) for room in ROOMS)]
        for file in (tree / top).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    # Data of a new kind or in a new subfolder needs a pattern in [tool.setuptools.package-data].
    assert wanted - shipped == set(), "these files are in the tree but in no wheel"
    assert shipped - wanted == set(), "the wheel installs nothing but isr and its rooms"
    assert {"isr/py.typed", "isr/rubrics/default.toml", "isr/judges/__init__.py"} <= shipped


def test_packaging_core_wheel_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size < 2_000_000


def test_packaging_sdist_holds_what_a_build_needs(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {n.partition("/")[2] for n in archive.getnames()}
        assert not [m.name for m in archive.getmembers() if m.issym() or m.islnk()]
    assert {
        "pyproject.toml",
        "LICENSE",
        "README.md",
        "isr/__init__.py",
        "attacks/__init__.py",
        "judges/__init__.py",
    } <= names


# ------------------------------------------------------------------------------------------------------ every install


def test_packaging_wheel_works_beside_folders_of_the_same_names(from_wheel: Environment, hostile: Path) -> None:
    assert _inside(_probe(from_wheel, hostile), from_wheel.folder)


def test_packaging_wheel_works_from_the_repository_root(from_wheel: Environment, tree: Path) -> None:
    assert _inside(_probe(from_wheel, tree), tree)  # the checkout's own isr/ comes first there, complete


def test_packaging_wheel_does_not_install_bare_names(from_wheel: Environment, tmp_path: Path) -> None:
    code = "import importlib.util, json; print(json.dumps([n for n in ('attacks','editors','judges','human_study','tests','docs') if importlib.util.find_spec(n)]))"
    assert json.loads(from_wheel.run(code, cwd=tmp_path)) == []


def test_packaging_console_script_runs(from_wheel: Environment, hostile: Path) -> None:
    shown = _run(from_wheel.folder / "bin" / "isr", "--help", cwd=hostile)
    assert "isr" in shown
    assert "evaluate" in shown


def test_packaging_editable_works_beside_folders_of_the_same_names(
    editable: tuple[Environment, Path], hostile: Path
) -> None:
    environment, checkout = editable
    assert _inside(_probe(environment, hostile), checkout)


def test_packaging_editable_works_from_the_repository_root(editable: tuple[Environment, Path]) -> None:
    environment, checkout = editable
    assert _inside(_probe(environment, checkout), checkout)


def test_packaging_editable_sees_a_new_file_without_reinstall(
    editable: tuple[Environment, Path], hostile: Path
) -> None:
    environment, checkout = editable
    (checkout / "judges" / "fresh_from_the_editor.py").write_text("VALUE = 41 + 1\n", "utf-8")
    assert environment.run("import isr.judges.fresh_from_the_editor as f; print(f.VALUE)", cwd=hostile).strip() == "42"


def test_packaging_pip_install_of_the_folder(
    new_environment: Callable[[], Environment], tree: Path, hostile: Path
) -> None:
    source = tree.parent / "folder"
    shutil.copytree(tree, source)
    environment = new_environment()
    environment.pip(".", cwd=source)
    shutil.rmtree(source)
    assert _inside(_probe(environment, hostile), environment.folder)


def test_packaging_sdist_installs(new_environment: Callable[[], Environment], sdist: Path, hostile: Path) -> None:
    environment = new_environment()
    environment.pip(sdist, cwd=hostile)
    assert _inside(_probe(environment, hostile), environment.folder)


def test_packaging_runs_from_the_root_without_any_install(
    new_environment: Callable[[], Environment], tree: Path
) -> None:
    assert _inside(_probe(new_environment(), tree), tree)


@pytest.mark.parametrize("room", ROOMS)
def test_packaging_bare_folder_name_refuses_to_be_imported(
    new_environment: Callable[[], Environment], tree: Path, room: str
) -> None:
    code = f"""
try:
    import {room}
except ImportError as error:
    print(error)
else:
    raise SystemExit("imported")
"""
    assert f"import isr.{room}" in _run(sys.executable, "-c", code, cwd=tree)


def test_packaging_required_dependencies_suffice(tmp_path: Path, wheel: Path, tree: Path) -> None:
    """With the required dependencies alone (no extra), the core, every judge transport and the registry import."""
    from packaging.requirements import Requirement

    closure: dict[str, importlib.metadata.Distribution] = {}
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        metadata = email.parser.Parser().parsestr(archive.read(name).decode("utf-8"))
    waiting = [(Requirement(r), "") for r in metadata.get_all("Requires-Dist", []) if "extra ==" not in r]
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        found = importlib.metadata.distribution(requirement.name)
        assert requirement.specifier.contains(found.version, prereleases=True), f"{requirement} but {found.version}"
        closure[requirement.name.lower()] = found
        for wanted in ["", *requirement.extras]:
            if (requirement.name, wanted) not in seen:
                seen.add((requirement.name, wanted))
                waiting += [(Requirement(r), wanted) for r in found.requires or []]

    farm = tmp_path / "farm"
    farm.mkdir()
    for distribution in closure.values():
        for file in distribution.files or []:
            top = file.parts[0]
            source = Path(str(distribution.locate_file(top)))
            if top not in ("..", "__pycache__") and not _ours(top) and not (farm / top).exists():
                if top == "google":  # a namespace that several distributions fill
                    shutil.copytree(source, farm / top, symlinks=True)
                else:
                    (farm / top).symlink_to(source)
    folder = tmp_path / "v"
    venv.create(folder, with_pip=False, symlinks=True)
    site = next((folder / "lib").glob("python3*/site-packages"))
    (site / "borrowed.pth").write_text(f"{farm}\n", "utf-8")
    environment = Environment(folder)
    environment.pip(wheel, cwd=tmp_path)
    core = [
        name
        for name in on_disk(tree)
        if not name.startswith(("isr.attacks", "isr.editors", "isr.human_study", "isr.metrics", "isr.transforms"))
    ]
    code = """
import importlib, json, sys
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
import isr.registry
for plugin in isr.registry.JUDGES.list():
    if plugin.name in ("gemini", "openai", "function", "replay"):
        isr.registry.JUDGES.load(plugin.name)
assert not {"torch", "fastapi", "pyarrow", "matplotlib"} & set(sys.modules)
"""
    environment.run(code, json.dumps(core), cwd=tmp_path)


# -------------------------------------------------------------------------------------------------- a stranger's judge


@pytest.fixture(scope="module")
def with_plugin(
    new_environment: Callable[[], Environment], wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Environment:
    work = tmp_path_factory.mktemp("plugin")
    shutil.copytree(PLUGIN, work / "plugin")
    _run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", work, work / "plugin", cwd=work)
    (plugin_wheel,) = work.glob("*.whl")
    environment = new_environment()
    environment.pip(wheel, plugin_wheel, cwd=work)
    return environment


def test_packaging_sample_plugin_is_listed_and_loaded_by_name(with_plugin: Environment, tmp_path: Path) -> None:
    code = """
import json, sys
from isr.registry import JUDGES
listed = {p.name: p.distribution for p in JUDGES.list()}
assert "isr_sample_judge" not in sys.modules, "listing imports nothing"
judge = JUDGES.create("sample", threshold=3.0)
print(json.dumps([listed["sample"], judge.name, judge.identity()["threshold"]]))
"""
    assert json.loads(with_plugin.run(code, cwd=tmp_path)) == ["isr-sample-judge", "sample", 3.0]


def test_packaging_broken_plugin_is_named_and_stops_no_other(with_plugin: Environment, tmp_path: Path) -> None:
    code = """
from isr.errors import RegistryError
from isr.registry import JUDGES
try:
    JUDGES.load("sample-broken")
except RegistryError as error:
    print(error)
JUDGES.load("sample")
"""
    shown = with_plugin.run(code, cwd=tmp_path)
    assert "sample-broken" in shown
    assert "isr-sample-judge" in shown


def test_packaging_sample_plugin_judges_through_evaluate(with_plugin: Environment, tmp_path: Path) -> None:
    # Two of four edits equal their originals (mismatch: the prompt had no effect), two differ by 40 levels: ISR = 2/4.
    code = """
import json
import numpy as np
from PIL import Image
import isr
rng = np.random.default_rng(0)
originals = [Image.fromarray(rng.integers(40, 200, (16, 16, 3), dtype=np.uint8)) for _ in range(4)]
edits = [o if i < 2 else Image.fromarray(np.asarray(o) + np.uint8(40)) for i, o in enumerate(originals)]
report = isr.evaluate(edits, ["make it snow"] * 4, originals=originals, judges=["sample"])
print(json.dumps([report.isr, report.n_no_verdict, report.n_undetermined]))
"""
    assert json.loads(with_plugin.run(code, cwd=tmp_path).splitlines()[-1]) == [0.5, 0, 0]
