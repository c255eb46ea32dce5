"""isr: the Immunization Success Rate of immunized images under text-guided editing."""

from __future__ import annotations

from pathlib import Path as _Path

# A source checkout keeps attacks/, editors/, judges/ and human_study/ beside isr/; an installed copy has them inside.
# There (and only there) the package path is extended, so that `isr.judges` works in both without a second import name.
_root = _Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "judges" / "__init__.py").is_file():
    __path__.append(str(_root))

__version__ = "0.1.0"
