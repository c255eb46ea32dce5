"""Training of MiniWorld's miniature models; `tools/train_miniworld.py` is the command."""

import sys

if "torchvision" not in sys.modules:
    # Not used here, and a torchvision that does not fit its torch makes every diffusers import fail.
    sys.modules["torchvision"] = None  # type: ignore[assignment]
