"""Copies accepted weights into the weights distribution, with a model card and the training curve for each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from .editor import GUIDANCE, IMAGE_GUIDANCE, STEPS, assemble
from .referees import REFEREES

__all__ = ["export_weights"]

_WARNING = "64×64 procedural scenes, trained referees: orderings need not carry over to photographs and real editors."


def export_weights(work: Path, package: Path | None) -> None:
    """Write `package/mini-ip2p` and `package/referee-*` from a work folder (float16 safetensors, curves, cards).

    Thresholds that a referee in the package already has are kept.

    Raises:
        SystemExit: no package folder was named.
    """
    if package is None:
        raise SystemExit("--package is missing: name the folder that gets the weights")
    package.mkdir(parents=True, exist_ok=True)
    if (work / "editor" / "mini-ip2p").is_dir():
        _editor(work, package / "mini-ip2p")
    for name in REFEREES:
        if (work / f"referee-{name}" / "model.safetensors").is_file():
            _referee(name, work / f"referee-{name}", package / f"referee-{name}")
    for path in package.rglob("*"):
        if path.is_file():
            path.chmod(0o644)


def _records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []


def _last(records: list[dict[str, Any]], key: str) -> Any:
    return next((r[key] for r in reversed(records) if key in r), None)


def _curve(records: list[dict[str, Any]], path: Path) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), "utf-8")


def _editor(work: Path, folder: Path) -> None:
    import torch

    pipe = assemble(work)
    sizes = {name: sum(p.numel() for p in getattr(pipe, name).parameters()) for name in ("unet", "vae", "text_encoder")}
    pipe.to(torch.float16).save_pretrained(folder)
    training: dict[str, Any] = {}
    for name, place in (
        ("autoencoder", work / "autoencoder"),
        ("decoder", work / "autoencoder" / "decoder"),
        ("editor", work / "editor"),
    ):
        records = _records(place / "curve.jsonl")
        if not records:
            continue
        _curve(records, folder / f"curve_{name}.jsonl")
        done = json.loads((place / "training.json").read_text("utf-8")) if (place / "training.json").is_file() else {}
        training[name] = {
            "steps": _last(records, "step"),
            "seconds": _last(records, "seconds"),
            **{k: done[k] for k in ("batch", "warm_started_tensors", "fold_error", "note") if k in done},
            **{
                k: _last(records, k)
                for k in ("psnr", "nearer_target", "relative_error", "held_out_loss")
                if _last(records, k) is not None
            },
        }
    (folder / "training.json").write_text(json.dumps(training, indent=1) + "\n", "utf-8")
    lines = [
        "---", "license: apache-2.0", "library_name: diffusers", "---", "",
        "# mini-ip2p", "",
        "A miniature InstructPix2Pix for MiniWorld: `StableDiffusionInstructPix2PixPipeline`, 64×64 pixels, "
        f"{pipe.vae.config.latent_channels}×16×16 latents, stored in float16 (load with float32 on a CPU). "
        f"Parameters: UNet {sizes['unet']:,}, autoencoder {sizes['vae']:,}, text encoder {sizes['text_encoder']:,}.", "",
        f"Settings of all figures: {STEPS} DDIM steps, text guidance {GUIDANCE}, image guidance {IMAGE_GUIDANCE}.", "",
        "Trained by `tools/train_miniworld.py` on pictures of MiniWorld's train split alone. Autoencoder and UNet began, "
        "where shapes agree, from an earlier prototype of the same kind (trained on an earlier version of the same world); "
        "the figures of the record `training.json`:", "",
        *(f"- {name}: " + ", ".join(f"{k} {v}" for k, v in row.items()) for name, row in training.items()), "",
        "`psnr` is in dB, mean over held-out pictures (renders) against the autoencoder's copy. `nearer_target` is the share "
        "of held-out pairs whose edit is nearer the exact target than the source in the latents that should change; "
        "`relative_error` the median squared error left there, relative to no edit at all.", "", _WARNING, "",
    ]  # fmt: skip
    (folder / "README.md").write_text("\n".join(lines), "utf-8")


def _referee(name: str, source: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((source / "config.json").read_text("utf-8"))
    if (folder / "config.json").is_file():
        config["thresholds"] = json.loads((folder / "config.json").read_text("utf-8"))["thresholds"]
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", "utf-8")
    shutil.copyfile(source / "model.safetensors", folder / "model.safetensors")
    held: dict[str, float] = {}
    steps = {}
    for part in ("attributes", "degradation"):
        records = _records(source / part / "curve.jsonl")
        _curve(records, folder / f"curve_{part}.jsonl")
        held |= {k: v for k, v in records[-1].items() if k.startswith(("accuracy", "degradation"))}
        steps[part] = records[-1]["step"]
    use = "kept for final measurements; no design decision looks at it" if name == "c" else "one of the two that decide"
    lines = [
        "---", "license: apache-2.0", "---", "",
        f"# referee-{name}", "",
        f"A MiniWorld referee ({use}): network kind `{config['kind']}`, {steps['attributes']} steps for the attribute heads and {steps['degradation']} for the degradation head. It reads the edited "
        "picture, the original and the prompt, never the description of the scene. Its degradation head learnt from the "
        "editor's own edits of randomly disturbed image latents and from generic corruptions; no attacked picture was among them.", "",
        "On held-out pictures (attribute heads: renders; degradation: area under the ROC curve, edits of disturbed against "
        "undisturbed latents):", "",
        *(f"- {k}: {v:.3f}" for k, v in held.items()), "",
        f"Thresholds: {json.dumps(config['thresholds'])}.", "", _WARNING, "",
    ]  # fmt: skip
    (folder / "README.md").write_text("\n".join(lines), "utf-8")
