"""isr: the Immunization Success Rate of immunized images under text-guided editing.

>>> import isr
>>> report = isr.evaluate(edits, prompts)  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module as _import_module
from pathlib import Path as _Path
from typing import TYPE_CHECKING, Any

# A source checkout keeps attacks/, editors/, judges/ and human_study/ beside isr/; an installed copy has them inside.
# There (and only there) the package path is extended, so that `isr.judges` works in both without a second import name.
_root = _Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "judges" / "__init__.py").is_file():
    __path__.append(str(_root))

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import batching as batch  # noqa: F401
    from .agreeing import agreement as agreement
    from .cases import EditCase as EditCase
    from .comparing import bridge as bridge
    from .comparing import compare as compare
    from .errors import IsrError as IsrError
    from .estimation import estimate as estimate
    from .evaluation import aevaluate as aevaluate
    from .evaluation import evaluate as evaluate
    from .immunization import immunize as immunize
    from .merging import merge as merge
    from .metric_class import ImmunizationSuccessRate as ImmunizationSuccessRate
    from .probing import probe as probe
    from .protocols import AskJudge as AskJudge
    from .protocols import Judge as Judge
    from .protocols import JudgeLimits as JudgeLimits
    from .replaying import replay as replay
    from .report import Report as Report
    from .rubric import Rubric as Rubric
    from .schema import NotAsked as NotAsked
    from .schema import NoVerdict as NoVerdict
    from .schema import Verdict as Verdict
    from .stats.power import sample_size as sample_size
    from .streaming import astream as astream
    from .streaming import stream as stream

#: Public name → the module that holds it. Imported on first use: `import isr` stays light (no torch, no client).
_PUBLIC = {
    "AskJudge": "protocols",
    "EditCase": "cases",
    "ImmunizationSuccessRate": "metric_class",
    "IsrError": "errors",
    "Judge": "protocols",
    "JudgeLimits": "protocols",
    "NoVerdict": "schema",
    "NotAsked": "schema",
    "Report": "report",
    "Rubric": "rubric",
    "Verdict": "schema",
    "aevaluate": "evaluation",
    "agreement": "agreeing",
    "astream": "streaming",
    "batch": "batching",
    "bridge": "comparing",
    "compare": "comparing",
    "estimate": "estimation",
    "evaluate": "evaluation",
    "immunize": "immunization",
    "merge": "merging",
    "probe": "probing",
    "replay": "replaying",
    "sample_size": "stats.power",
    "stream": "streaming",
}

__all__ = ["__version__", *_PUBLIC]  # noqa: PLE0604 - names only


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'isr' has no attribute {name!r}; public names: {', '.join(sorted(_PUBLIC))}")
    module = _import_module(f".{_PUBLIC[name]}", __name__)
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
