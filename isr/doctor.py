"""`isr doctor`: what is installed, what would get in the way, and what to do about it. Changes nothing, prints no secret."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from .errors import DISTRIBUTION

__all__ = ["Finding", "examine", "render", "worst"]

Level = Literal["ok", "warn", "error"]
#: Environment variables that hold a key this package uses by itself, and what for.
KEY_VARIABLES = {
    "GEMINI_API_KEY": "Gemini judges",
    "GOOGLE_API_KEY": "Gemini judges",
    "OPENAI_API_KEY": "OpenAI judges",
}
_MIN_PYTHON = (3, 11)
_SUBPROCESS_SECONDS = 180


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: "ok", "warn" (works, but know this) or "error" (something will fail).
        topic: what was looked at, one or two words.
        text: what was found; never a key's value.
        advice: what to do, or "".
    """

    level: Level
    topic: str
    text: str
    advice: str = ""


def examine(*, deep: bool = True) -> list[Finding]:
    """Look at everything.

    Args:
        deep: also start Python processes that import torch, torchvision and every plugin (seconds); False: only read
            metadata.

    Returns:
        Findings in a fixed order; a check that cannot be made is a finding of its own, never an exception.
    """
    checks: list[Callable[[], Iterable[Finding]]] = [_python, _requirements, _extras, _shadow, _aiohttp, _keys, _cache]
    if deep:
        checks += [_torch, _torchvision, _plugins]
    findings: list[Finding] = []
    for check in checks:
        try:
            findings += check()
        except (OSError, ValueError, metadata.PackageNotFoundError) as error:
            findings.append(Finding("warn", check.__name__.strip("_"), f"could not be checked: {error}"))
    return findings


def worst(findings: Iterable[Finding]) -> Level:
    """The gravest level among the findings ("ok" where there are none)."""
    levels = {finding.level for finding in findings}
    return "error" if "error" in levels else "warn" if "warn" in levels else "ok"


def render(findings: Iterable[Finding]) -> str:
    """Plain text, one finding per line, advice indented below."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.level:5}  {finding.topic}: {finding.text}")
        if finding.advice:
            lines.append(f"       → {finding.advice}")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------- python and distributions


def _python() -> Iterable[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < _MIN_PYTHON:
        yield Finding("error", "python", f"{version} at {sys.executable}", "install Python 3.11 or newer")
    else:
        yield Finding("ok", "python", f"{version} at {sys.executable}")


@dataclass(frozen=True)
class _Requirement:
    name: str
    bounds: tuple[tuple[str, str], ...]
    extra: str = ""

    def unmet_by(self, version: str) -> list[str]:
        return [f"{op}{bound}" for op, bound in self.bounds if not _holds(version, op, bound)]


def _parse(requirement: str) -> _Requirement:
    """A requirement of our own metadata: name, optional [extras], version bounds, at most an `extra == "…"` marker."""
    head, _, marker = requirement.partition(";")
    found = re.match(r"\s*([A-Za-z0-9._-]+)\s*(?:\[[^\]]*\])?\s*(.*)$", head)
    if found is None:
        raise ValueError(f"requirement {requirement!r} in the metadata of {DISTRIBUTION} cannot be read")
    bounds = tuple(re.findall(r"(>=|<=|==|!=|~=|<|>)\s*([^\s,()]+)", found[2]))
    extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", marker)
    return _Requirement(found[1], bounds, extra[1] if extra else "")


def _release(version: str) -> tuple[int, ...]:
    """The numeric release segment: "2.13.0+cpu" → (2, 13, 0). Pre-releases count as their release."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _holds(version: str, op: str, bound: str) -> bool:
    have, want = _release(version), _release(bound)
    width = max(len(have), len(want))
    a, b = have + (0,) * (width - len(have)), want + (0,) * (width - len(want))
    if op == "~=":
        return a >= b and have[: len(want) - 1] == want[:-1]
    return {">=": a >= b, "<=": a <= b, "==": a == b, "!=": a != b, "<": a < b, ">": a > b}[op]


def _declared() -> list[_Requirement]:
    """Requirements from the installed metadata, or from pyproject.toml in a checkout that was never installed."""
    try:
        return [_parse(r) for r in metadata.requires(DISTRIBUTION) or []]
    except metadata.PackageNotFoundError:
        pyproject = Path(__file__).resolve().parent.parent / "pyproject.toml"
        project: Mapping[str, Any] = tomllib.loads(pyproject.read_text("utf-8"))["project"]
        extras: Mapping[str, list[str]] = project["optional-dependencies"]
        return [_parse(r) for r in project["dependencies"]] + [
            _parse(f'{r}; extra == "{extra}"') for extra, group in extras.items() for r in group
        ]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _requirements() -> Iterable[Finding]:
    own = _version(DISTRIBUTION)
    where = Path(__file__).resolve().parent
    if own is None:
        yield Finding("ok", "isr", f"running from the checkout at {where.parent}; not installed")
    else:
        yield Finding("ok", "isr", f"{DISTRIBUTION} {own}, imported from {where}")
    wrong = False
    for requirement in (r for r in _declared() if not r.extra):
        version = _version(requirement.name)
        bounds = ",".join(op + bound for op, bound in requirement.bounds)
        if version is None:
            wrong = True
            yield Finding("error", requirement.name, "not installed", f"pip install '{requirement.name}{bounds}'")
        elif requirement.unmet_by(version):
            wrong = True
            yield Finding("error", requirement.name, f"{version} is installed, {bounds} is needed", f"pip install '{requirement.name}{bounds}'")  # fmt: skip
    if not wrong:
        yield Finding("ok", "requirements", "all required packages are there, in versions that fit")


def _extras() -> Iterable[Finding]:
    groups: dict[str, list[_Requirement]] = {}
    for requirement in _declared():
        if requirement.extra and requirement.name.replace("_", "-").lower() != DISTRIBUTION:
            groups.setdefault(requirement.extra, []).append(requirement)
    for extra, members in sorted(groups.items()):
        have = {r: _version(r.name) for r in members}
        missing = [r.name for r, version in have.items() if version is None]
        unfit = [f"{r.name} {v} (needs {', '.join(r.unmet_by(v))})" for r, v in have.items() if v and r.unmet_by(v)]
        install = f"pip install '{DISTRIBUTION}[{extra}]'"
        if unfit:
            yield Finding("warn", f"extra {extra}", "; ".join(unfit), install)
        elif not missing:
            yield Finding("ok", f"extra {extra}", "installed")
        else:
            text = "not installed" if len(missing) == len(members) else f"incomplete: {', '.join(missing)} missing"
            yield Finding("ok", f"extra {extra}", text, f"if you need it: {install}")


def _shadow() -> Iterable[Finding]:
    """Another project's distribution `ISR` puts a folder ISR/ beside our isr/: one folder on case-insensitive disks."""
    for dist in metadata.distributions():
        if (dist.metadata["Name"] or "").lower() == "isr":
            ours = Path(__file__).resolve().parent
            insensitive = ours.with_name(ours.name.swapcase()).exists() and ours.with_name(
                ours.name.swapcase()
            ).samefile(ours)
            yield Finding(
                "error" if insensitive else "warn",
                "distribution ISR",
                f"another project, ISR {dist.version} (image super-resolution), is installed in this environment; "
                + ("this file system ignores case, so its files and ours lie mixed in one folder" if insensitive else "`import ISR` is that one, `import isr` is this one"),
                f"pip uninstall ISR, then pip install --force-reinstall --no-deps {DISTRIBUTION}; or use an environment of its own",
            )  # fmt: skip


def _aiohttp() -> Iterable[Finding]:
    version = _version("aiohttp")
    if version is not None:
        yield Finding(
            "ok", "aiohttp",
            f"{version} is installed (ray and datasets bring it); our Gemini judge keeps to httpx2 and its own retries, "
            "but other code that uses google-genai in this environment will go through aiohttp",
        )  # fmt: skip


# -------------------------------------------------------------------------------------------------- keys and the cache


def _keys() -> Iterable[Finding]:
    for variable, use in KEY_VARIABLES.items():
        given = os.environ.get(variable)
        if given is None:
            yield Finding("ok", variable, f"not set ({use})")
        elif given.strip() != given or not given:
            yield Finding("warn", variable, f"set, but empty or with blanks around it ({use})", f"set {variable} again")
        else:
            yield Finding("ok", variable, f"set ({use})")
    if os.environ.get("GEMINI_API_KEY") and os.environ.get("GOOGLE_API_KEY"):
        same = os.environ["GEMINI_API_KEY"] == os.environ["GOOGLE_API_KEY"]
        if not same:
            yield Finding(
                "warn", "Gemini keys", "GEMINI_API_KEY and GOOGLE_API_KEY are both set and differ", "unset one of them"
            )


def _cache() -> Iterable[Finding]:
    from .engine.cache import CACHE_ENV, default_cache_dir

    folder = default_cache_dir()
    if not folder.exists():
        yield Finding("ok", "cache", f"{folder} (not made yet; ${CACHE_ENV} moves it)")
        return
    files = [f for f in folder.rglob("*") if f.is_file() and not f.is_symlink()]
    size = sum(f.stat().st_size for f in files)
    text = f"{folder}, {size / 1e6:.1f} MB"
    mode = stat.S_IMODE(folder.stat().st_mode)
    if os.name == "posix" and mode & 0o077:
        yield Finding("warn", "cache", f"{text}, but others may look inside (mode {mode:04o})", f"chmod 700 {folder}")
    elif not os.access(folder, os.W_OK | os.X_OK):
        yield Finding(
            "error", "cache", f"{text}, but it cannot be written", f"chown it, or set ${CACHE_ENV} to another folder"
        )
    else:
        yield Finding("ok", "cache", f"{text}, mode {mode:04o}")


# ------------------------------------------------------------------------------ what only an import can tell (processes)


def _try(code: str) -> tuple[int, str, str]:
    """Run code in a fresh interpreter: a broken binary package may crash, and must not take this process along.

    Isolated from the working directory unless this is a checkout that was never installed.
    """
    root = Path(__file__).resolve().parent.parent
    # A plugin has no use for a key just to be imported, and so cannot repeat one in its error message.
    env = {k: v for k, v in os.environ.items() if not re.search(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", k.upper())}
    prelude = f"import sys; sys.path.insert(0, {str(root)!r})\n" if (root / "pyproject.toml").is_file() else ""
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and our own code
            [sys.executable, "-P", "-c", prelude + code], capture_output=True, text=True, check=False, timeout=_SUBPROCESS_SECONDS,
            stdin=subprocess.DEVNULL, env=env,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return -1, "", f"no answer within {_SUBPROCESS_SECONDS} s"
    return done.returncode, done.stdout, done.stderr


def _last_line(text: str, fallback: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else fallback


def _torch() -> Iterable[Finding]:
    if importlib.util.find_spec("torch") is None:
        yield Finding(
            "ok",
            "torch",
            "not installed (judging needs none)",
            f"for editors and immunizers: pip install '{DISTRIBUTION}[attacks]'",
        )
        return
    code, out, err = _try(
        "import json, torch\n"
        "gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []\n"
        "mps = torch.backends.mps.is_available()\n"
        "print(json.dumps([torch.__version__, torch.version.cuda, gpus, mps, torch.get_num_threads()]))"
    )
    if code != 0:
        yield Finding(
            "error",
            "torch",
            f"cannot be imported: {_last_line(err, f'exit status {code}')}",
            "pip install --force-reinstall torch",
        )
        return
    version, cuda, gpus, mps, threads = json.loads(out.splitlines()[-1])
    build = f"built for CUDA {cuda}" if cuda else "CPU build"
    seen = f"GPUs: {', '.join(gpus)}" if gpus else "Apple GPU (mps)" if mps else f"no GPU; {threads} CPU threads"
    yield Finding("ok", "torch", f"{version}, {build}; {seen}")


def _torchvision() -> Iterable[Finding]:
    version = _version("torchvision")
    if version is None and importlib.util.find_spec("torchvision") is None:
        yield Finding("ok", "torchvision", "not installed (nothing here needs it; LPIPS and FID do)")
        return
    # Its compiled operators must match torch; when they do not, the import of every diffusers pipeline fails too.
    code, _, err = _try("import torchvision; from torchvision.ops import nms")
    if code == 0:
        yield Finding("ok", "torchvision", f"{version or 'unknown version'}, fits torch")
    else:
        yield Finding(
            "error", "torchvision",
            f"{version or 'unknown version'} does not fit torch {_version('torch')} ({_last_line(err, f'exit status {code}')}); "
            "with it, no diffusers pipeline can be imported",
            "pip uninstall torchvision (nothing here needs it), or install the build that belongs to your torch",
        )  # fmt: skip


_LOAD_PLUGINS = """
import json
from isr import registry
from isr.errors import IsrError, MissingExtraError
results = []
for table in vars(registry).values():
    if not isinstance(table, registry.Registry):
        continue
    try:
        plugins = table.list()
    except IsrError as error:
        results.append([table.noun, "*", "", "broken", str(error)])
        continue
    for plugin in plugins:
        try:
            table.load(plugin.name)
            state, text = "ok", ""
        except MissingExtraError as error:
            absent = getattr(error.__cause__, "name", None)
            state, text = ("absent:" + absent if absent else "extra"), str(error)
        except BaseException as error:  # a plugin may do anything, SystemExit included; it is named, and the rest go on
            cause = error.__cause__
            absent = getattr(cause, "name", None) if isinstance(cause, ModuleNotFoundError) else None
            state, text = ("absent:" + absent if absent else "broken"), f"{type(error).__name__}: {error}"
        results.append([table.noun, plugin.name, plugin.distribution, state, text])
print(json.dumps(results))
"""


def _plugins() -> Iterable[Finding]:
    code, out, err = _try(_LOAD_PLUGINS)
    if code != 0:
        yield Finding(
            "error",
            "plugins",
            f"loading them ended Python: {_last_line(err, f'exit status {code}')}",
            "uninstall the last plugin you installed",
        )
        return
    optional = {re.sub(r"[-.]", "_", r.name).lower() for r in _declared() if r.extra}
    loaded: dict[str, int] = {}
    waiting: dict[tuple[str, str], list[str]] = {}
    for noun, name, distribution, state, text in json.loads(out.splitlines()[-1]):
        absent = state.removeprefix("absent:").split(".")[0] if state.startswith("absent:") else ""
        origin = f" (from {distribution})" if distribution and distribution != DISTRIBUTION else ""
        if state == "ok":
            loaded[noun] = loaded.get(noun, 0) + 1
        elif state == "extra" or absent.lower() in optional:
            waiting.setdefault((noun, absent or text), []).append(name)
        else:
            advice = f"update or uninstall {distribution or 'it'}"
            yield Finding("error", f"{noun} {name}", f"cannot be loaded{origin}: {text}", advice)
    for (noun, need), names in waiting.items():
        yield Finding("ok", noun, f"an extra that is not installed is needed for {', '.join(names)}: {need}")
    if loaded:
        yield Finding(
            "ok", "plugins", "these load: " + ", ".join(f"{noun} × {count}" for noun, count in loaded.items())
        )
