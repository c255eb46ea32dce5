"""Data: manifests, the paper's protocol, and MiniWorld. Needs numpy and Pillow, never torch."""

# The function shadows its own module as an attribute of this package, on purpose: `isr.data.miniworld(n=100)` is the
# public call, and `from isr.data.miniworld import …` still finds the module.
from .miniworld import miniworld as miniworld
