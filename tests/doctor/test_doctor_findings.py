"""`isr doctor` names what is wrong and what to do, changes nothing, survives broken packages and prints no key."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from isr import doctor
from isr.doctor import Finding


def _fake_distribution(folder: Path, name: str, version: str, entry_points: str = "") -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", "utf-8")
    if entry_points:
        (info / "entry_points.txt").write_text(entry_points, "utf-8")


@pytest.fixture
def extra_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that this process and its children import from first."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def _one(findings: list[Finding], topic: str) -> Finding:
    (found,) = [f for f in findings if f.topic == topic]
    return found


@pytest.mark.parametrize(
    ("version", "op", "bound", "holds"),
    [
        ("2.13.0+cpu", "==", "2.13.0", True),
        ("2.13.0+cpu", ">=", "2.6", True),
        ("2.4", ">=", "2.13", False),  # 4 < 13: numbers, not text
        ("1.9", ">=", "1.9.0", True),
        ("0.43.0", "<", "0.43", False),
        ("3.0.1", "<", "4", True),
        ("1.4.7", "~=", "1.4", True),
        ("2.0", "~=", "1.4", False),
        ("5.23.0", "!=", "5.23", False),
    ],
)
def test_doctor_compares_versions_as_numbers(version: str, op: str, bound: str, holds: bool) -> None:
    assert doctor._holds(version, op, bound) is holds


def test_doctor_version_rule_agrees_with_packaging_on_plain_releases() -> None:
    from packaging.specifiers import SpecifierSet

    versions = ["0.9", "1.0", "1.0.1", "1.4", "1.4.2", "1.10", "2", "2.0.0", "2.13.0"]
    for version in versions:
        for bound in versions:
            for op in (">=", "<=", "==", "!=", "<", ">"):
                assert doctor._holds(version, op, bound) == SpecifierSet(f"{op}{bound}").contains(version), (
                    version,
                    op,
                    bound,
                )


def test_doctor_reads_requirements_of_our_own_metadata() -> None:
    parsed = doctor._parse('diffusers<0.43,>=0.42; extra == "attacks"')
    assert (parsed.name, set(parsed.bounds), parsed.extra) == ("diffusers", {("<", "0.43"), (">=", "0.42")}, "attacks")
    assert doctor._parse("ray[data]>=2.60").bounds == ((">=", "2.60"),)
    with pytest.raises(ValueError, match="cannot be read"):
        doctor._parse(" ; ")


def test_doctor_finds_a_requirement_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: {"openai": "1.99.0", "scipy": None}.get(name, "99999"))
    monkeypatch.setattr(
        doctor, "_declared", lambda: [doctor._parse(r) for r in ("openai>=3.52,<4", "scipy>=1.13", "pillow>=11")]
    )
    found = list(doctor._requirements())
    old, missing = _one(found, "openai"), _one(found, "scipy")
    assert (old.level, old.text) == ("error", "1.99.0 is installed, >=3.52,<4 is needed")
    assert (missing.level, missing.text, missing.advice) == ("error", "not installed", "pip install 'scipy>=1.13'")
    assert not [f for f in found if f.topic in ("pillow", "requirements")]


def test_doctor_names_the_other_project_called_isr(extra_site: Path) -> None:
    assert list(doctor._shadow()) == []
    _fake_distribution(extra_site, "ISR", "2.2.0")
    (found,) = doctor._shadow()
    assert found.level in ("warn", "error")
    assert "super-resolution" in found.text
    assert "pip uninstall ISR" in found.advice


def test_doctor_says_whether_keys_are_set_and_never_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-live-0123456789abcdef")
    monkeypatch.setenv("GEMINI_API_KEY", " AIza-padded ")
    monkeypatch.setenv("GOOGLE_API_KEY", "AIza-other")
    found = doctor.examine(deep=False)
    assert _one(found, "OPENAI_API_KEY").text.startswith("set")
    assert _one(found, "GEMINI_API_KEY").level == "warn"
    assert _one(found, "Gemini keys").level == "warn"
    shown = doctor.render(found)
    for secret in ("sk-live", "0123456789abcdef", "padded", "AIza"):
        assert secret not in shown


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_doctor_cache_folder_size_and_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache"
    monkeypatch.setenv("ISR_CACHE", str(folder))
    (absent,) = doctor._cache()
    assert "not made yet" in absent.text
    folder.mkdir(mode=0o700)
    (folder / "cache.db").write_bytes(b"x" * 2_500_000)
    (good,) = doctor._cache()
    assert (good.level, "2.5 MB, mode 0700" in good.text) == ("ok", True)
    folder.chmod(0o755)
    (open_to_others,) = doctor._cache()
    assert (open_to_others.level, open_to_others.advice) == ("warn", f"chmod 700 {folder}")


def test_doctor_broken_torchvision_is_found_without_importing_it_here(extra_site: Path) -> None:
    _fake_distribution(extra_site, "torchvision", "0.1.0")
    (extra_site / "torchvision").mkdir()
    (extra_site / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')\n", "utf-8"
    )
    (found,) = doctor._torchvision()
    assert found.level == "error"
    assert "operator torchvision::nms does not exist" in found.text
    assert "pip uninstall torchvision" in found.advice
    assert "torchvision" not in sys.modules


def test_doctor_names_broken_plugins_and_goes_on(extra_site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = "[isr.judges]\nbad-module = nowhere_to_be_found:J\nbad-exit = quits_at_import:J\nfine = good_plugin:J\n"
    _fake_distribution(extra_site, "strange-plugins", "1.0", points)
    (extra_site / "quits_at_import.py").write_text(
        "import os\nraise SystemExit(f'key {os.environ.get(\"OPENAI_API_KEY\")}')\n", "utf-8"
    )
    (extra_site / "good_plugin.py").write_text("class J: pass\n", "utf-8")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-live-0123456789abcdef")
    found = list(doctor._plugins())
    module, quits = _one(found, "judge bad-module"), _one(found, "judge bad-exit")
    assert (module.level, quits.level) == ("error", "error")
    assert "strange-plugins" in module.text
    assert "nowhere_to_be_found" in module.text
    assert not [f for f in found if f.topic == "judge fine"]
    assert "judge × " in _one(found, "plugins").text
    assert "sk-live" not in doctor.render(found)


def test_doctor_a_check_that_fails_becomes_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> list[object]:
        raise OSError("disk on fire")

    monkeypatch.setattr("isr.engine.cache.default_cache_dir", refuse)
    found = _one(doctor.examine(deep=False), "cache")
    assert (found.level, found.text) == ("warn", "could not be checked: disk on fire")


def test_doctor_worst_and_render() -> None:
    findings = [Finding("ok", "a", "fine"), Finding("warn", "b", "odd", "look")]
    assert (doctor.worst([]), doctor.worst(findings), doctor.worst([*findings, Finding("error", "c", "bad")])) == (
        "ok",
        "warn",
        "error",
    )
    assert doctor.render(findings) == "ok     a: fine\nwarn   b: odd\n       → look"


def test_doctor_module_is_light() -> None:
    code = "import sys, isr.doctor; assert not {'torch', 'openai', 'pandas', 'diskcache'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_doctor_plugins_that_only_lack_an_extra_are_no_error(extra_site: Path) -> None:
    points = "[isr.judges]\nlacks-a = lacks_ray:J\nlacks-b = lacks_ray:J\n"
    _fake_distribution(extra_site, "lacking-plugins", "1.0", points)
    (extra_site / "lacks_ray.py").write_text("import ray.nothing_of_that_name\n", "utf-8")
    (extra_site / "ray.py").write_text("raise ModuleNotFoundError(\"No module named 'ray'\", name='ray')\n", "utf-8")
    (found,) = [f for f in doctor._plugins() if f.topic == "judge"]
    assert (found.level, found.text) == ("ok", "an extra that is not installed is needed for lacks-a, lacks-b: ray")
