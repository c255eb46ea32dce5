"""The miniature editors: what each is, and in which folders of the work folder its parts are trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from isr.data.miniworld import Style

__all__ = ["MODELS", "Model"]

Kind = Literal["ip2p", "img2img", "instruct"]


@dataclass(frozen=True)
class Model:
    """One miniature editor.

    Attributes:
        kind: "ip2p" (UNet, InstructPix2Pix), "img2img" (SD3 transformer, image to image) or "instruct" (the same with the
            image latent as extra channels).
        style: of the pictures it learns from. seed: of those pictures, and of its training.
        autoencoder: folder name; models of one name share it.
    """

    name: str
    kind: Kind
    autoencoder: str
    style: Style = "plain"
    seed: int = 0

    @property
    def pairs(self) -> str:
        """Folder name of its training pairs."""
        return "pairs" if self.style == "plain" else f"pairs-{self.style}"

    def folder(self, work: Path) -> Path:
        """Where its curve and checkpoint lie."""
        return work / self.name

    def pipeline(self, work: Path) -> Path:
        """Its diffusers folder."""
        return self.folder(work) / "pipeline"


MODELS: Mapping[str, Model] = {
    m.name: m
    for m in (
        Model("mini-ip2p", "ip2p", "autoencoder"),
        Model("mini-hq", "ip2p", "autoencoder-canvas", style="canvas", seed=1),
        Model("mini-sd3", "img2img", "autoencoder-flow", seed=2),
        Model("mini-sd3-instruct", "instruct", "autoencoder-flow", seed=3),
    )
}
