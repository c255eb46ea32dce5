"""Copies accepted weights into the weights distribution, with a model card and the training curve for each.

A card is written from the files beside it alone (and a referee's from the record of the labels), so that it can be written
again, and tests can compare.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from . import editor, mmdit
from .models import MODELS, Model
from .referees import REFEREES

__all__ = ["editor_card", "export_weights", "referee_card"]

#: The record of the labelled edits that thresholds were set on.
LABELS = Path(__file__).resolve().parents[2] / "tests" / "data" / "miniworld_labels.json"
#: The record of labelled edits of all editors that set none.
HELD = LABELS.with_name("miniworld_labels_editors.json")

_WARNING = "64×64 procedural scenes, trained referees: orderings need not carry over to photographs and real editors."


def export_weights(work: Path, package: Path | None) -> None:
    """Write `package/<editor>` and `package/referee-*` from a work folder (float16 safetensors, curves, cards).

    Thresholds that a referee in the package already has are kept.

    Raises:
        SystemExit: no package folder was named.
    """
    if package is None:
        raise SystemExit("--package is missing: name the folder that gets the weights")
    package.mkdir(parents=True, exist_ok=True)
    for model in MODELS.values():
        if model.pipeline(work).is_dir():
            _editor(model, work, package / model.name)
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


_WHAT = {
    "ip2p": "A miniature InstructPix2Pix for MiniWorld: `StableDiffusionInstructPix2PixPipeline`",
    "img2img": "A miniature SD3 for MiniWorld, edited with image to image: `StableDiffusion3Img2ImgPipeline` without T5 "
    "(`max_sequence_length=0`), trained on the way from noised sources to what an instruction asks for, and on pictures told by their captions",
    "instruct": "A miniature SD3 for MiniWorld with the image as extra channels, as UltraEdit's pipeline "
    "(`StableDiffusion3InstructPix2PixPipeline`, which `isr.editors` has and diffusers has not), without T5 (`max_sequence_length=0`)",
}


def _settings(model: Model) -> str:
    if model.kind == "ip2p":
        return f"{editor.STEPS} DDIM steps, text guidance {editor.GUIDANCE}, image guidance {editor.IMAGE_GUIDANCE}"
    if model.kind == "img2img":
        return f"{mmdit.STEPS} Euler steps at strength {mmdit.STRENGTH}, guidance {mmdit.GUIDANCE}"
    return f"{mmdit.STEPS} Euler steps, text guidance {mmdit.INSTRUCT_GUIDANCE}, image guidance {mmdit.IMAGE_GUIDANCE}"


def _editor(model: Model, work: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(model.pipeline(work), folder)
    later = work / model.autoencoder / "vae-decoder"
    if later.is_dir():  # a decoder trained further fits the same latents
        import torch
        from diffusers import AutoencoderKL

        AutoencoderKL.from_pretrained(later).to(torch.float16).save_pretrained(folder / "vae")
    for place in folder.glob("*/config.json"):  # where a part was loaded from is nobody's business
        kept = {k: v for k, v in json.loads(place.read_text("utf-8")).items() if k != "_name_or_path"}
        place.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", "utf-8")
    training: dict[str, Any] = {}
    for name, place in (
        ("autoencoder", work / model.autoencoder),
        ("decoder", work / model.autoencoder / "decoder"),
        ("editor", model.folder(work)),
    ):
        records = _records(place / "curve.jsonl")
        if not records:
            continue
        _curve(records, folder / f"curve_{name}.jsonl")
        done = json.loads((place / "training.json").read_text("utf-8")) if (place / "training.json").is_file() else {}
        training[name] = {
            "steps": _last(records, "step"),
            "seconds": _last(records, "seconds"),
            **{
                k: done[k]
                for k in ("batch", "world", "device", "warm_started_tensors", "fold_error", "note")
                if k in done
            },
            **{
                k: _last(records, k)
                for k in sorted({k for r in records for k in r} - {"step", "seconds", "loss", "rate", "final"})
            },
        }
    (folder / "training.json").write_text(json.dumps(training, indent=1) + "\n", "utf-8")
    (folder / "README.md").write_text(editor_card(model, folder), "utf-8")


def editor_card(model: Model, folder: Path) -> str:
    """The model card of the exported editor in `folder`."""
    from safetensors.torch import load_file

    sizes = {
        place.parent.name: sum(v.numel() for v in load_file(place).values())
        for place in sorted(folder.glob("*/*.safetensors"))
    }
    training = json.loads((folder / "training.json").read_text("utf-8"))
    config = json.loads((folder / "vae" / "config.json").read_text("utf-8"))
    lines = [
        "---", "license: apache-2.0", "library_name: diffusers", "---", "",
        f"# {model.name}", "",
        f"{_WHAT[model.kind]}. 64×64 pixels, {config['latent_channels']}×16×16 latents, stored in float16 (load with float32 "
        "on a processor). Parameters: " + ", ".join(f"{k} {v:,}" for k, v in sizes.items()) + ".", "",
        f"Settings of all figures: {_settings(model)}.", "",
        "Trained by `tools/train_miniworld.py` on pictures of MiniWorld's train split alone "
        f"(style `{model.style}`). Where `warm_started_tensors` is above 0, that many tensors began from earlier weights of "
        "the same kind, which the note names where they are another editor's. The figures of the record `training.json`:", "",
        *(f"- {name}: " + ", ".join(f"{k} {v}" for k, v in row.items()) for name, row in training.items()), "",
        "`psnr` is in dB, mean over held-out pictures (renders) against the autoencoder's copy. `nearer_target` is the share "
        "of held-out pairs whose edit is nearer the exact target than the source in the latents that should change; "
        "`relative_error` the median squared error left there, relative to no edit at all. `held_out_loss` is the squared error "
        "of the same pairs, weighted as in training, at the end of the set and never trained on. They are few (64 on a processor), and others where the "
        "number of pairs is another, so that small differences between trainings say little.", "",
        "Success on held-out edits, by family and by referee: `success_*.json` beside this card." + _labels_of(model.name), "",
        _WARNING, "",
    ]  # fmt: skip
    return "\n".join(lines)


def _labels_of(name: str) -> str:
    """What the labels of `HELD` say of an editor's edits, on which no threshold was set."""
    record: dict[str, Any] = json.loads(HELD.read_text("utf-8")) if HELD.is_file() else {}
    found = record.get("by_editor", {}).get(name)
    if found is None:
        return " None of its edits are labelled, so it is not known how far the referees hold on them."
    first, second = (f"{100 * row['share']:.0f} %" for row in found["none"]["ok_by_labels"])
    right = [found["all"]["degraded"][f"referee_{referee}"]["where_labellings_agree"] for referee in "ab"]
    agreed = " and ".join(
        f"{100 * row['share']:.0f} % ({100 * row['low']:.0f} to {100 * row['high']:.0f})" for row in right
    )
    return (
        f" By labels, {first} and {second} of {found['none']['n']} unattacked validation edits are ok, by both referees "
        f"{100 * found['none']['ok_by_both_referees']['share']:.0f} %. On {found['all']['n']} edits, attacked and not, that set no threshold, "
        f"referees a and b agree on degradation with {agreed} of the {right[0]['n']} answers that two labellings agree on; more in "
        f"`tests/data/{HELD.name}` and docs/miniworld.md. Who labelled: {record['labeller']}."
    )


def _referee(name: str, source: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((source / "config.json").read_text("utf-8"))
    if (folder / "config.json").is_file():
        config["thresholds"] = json.loads((folder / "config.json").read_text("utf-8"))["thresholds"]
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", "utf-8")
    shutil.copyfile(source / "model.safetensors", folder / "model.safetensors")
    for part in ("attributes", "degradation"):
        _curve(_records(source / part / "curve.jsonl"), folder / f"curve_{part}.jsonl")
    (folder / "README.md").write_text(referee_card(name, folder), "utf-8")


def _labelled(name: str, thresholds: dict[str, float]) -> str:
    """Where the thresholds come from, and how often the referee is right by the labels: from `LABELS`, if it is theirs."""
    record = json.loads(LABELS.read_text("utf-8")) if LABELS.is_file() else {"thresholds": {}}
    if abs(record["thresholds"].get(name, {}).get("degradation", 1e9) - thresholds["degradation"]) > 1e-3:
        return "No record of labels belongs to them."
    found = record["measuring_half_at_the_referees_own_thresholds"]["all"]
    right = [
        f"{100 * row['share']:.1f} % ({100 * row['low']:.0f} to {100 * row['high']:.0f}) on {criterion}"
        for criterion, row in (
            ("mismatch", found["mismatch"][f"referee_{name}"]["where_labellings_agree"]),
            ("degradation", found["degraded"][f"referee_{name}"]["where_labellings_agree"]),
        )
    ]
    own = "The one for mismatch (`asked`) is as trained; the one" if thresholds["asked"] == 0 else "The one"
    half = record["threshold_half"]
    earlier = half["n"] - half["of_this_set"]
    also = f", and on {earlier} of earlier editors, labelled in the same way" if earlier else ""
    return (
        f"{own} for degradation was set on one half of {record['items']} edits, each labelled twice{also}. On the other half, where "
        f"both labellings agree, the referee agrees with them in {right[0]} and {right[1]} (95 % intervals), over attacked "
        f"and unattacked edits alike; by method: `tests/data/miniworld_labels.json`. Who labelled: {record['labeller']}."
    )


def referee_card(name: str, folder: Path) -> str:
    """The model card of the exported referee in `folder`."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    held: dict[str, float] = {}
    steps = {}
    for part in ("attributes", "degradation"):
        records = _records(folder / f"curve_{part}.jsonl")
        held |= {k: v for k, v in records[-1].items() if k.startswith(("accuracy", "rank_correlation"))}
        steps[part] = records[-1]["step"]
    use = "kept for final measurements; no design decision looks at it" if name == "c" else "one of the two that decide"
    lines = [
        "---", "license: apache-2.0", "---", "",
        f"# referee-{name}", "",
        f"A MiniWorld referee ({use}): network kind `{config['kind']}`, {steps['attributes']} steps for the attribute "
        f"heads and {steps['degradation']} for the degradation head. It reads the edited picture, the original and the prompt, never "
        "the description of the scene. Its degradation head paints a map of local damage; it learnt how far, in structure, a "
        "picture is from the nearer of source and target: of the editor's own edits of randomly disturbed and of undisturbed "
        "image latents, of copies and of generic corruptions; no attacked picture was among them. Degradation is the logarithm "
        "of the map's root mean square.", "",
        "On held-out pictures (attribute heads: renders; degradation: rank correlation with that distance, over edits of "
        "disturbed and undisturbed latents, and over the latter alone):", "",
        *(f"- {k}: {v:.3f}" for k, v in held.items()), "",
        f"Thresholds: {json.dumps(config['thresholds'])}. {_labelled(name, config['thresholds'])}", "", _WARNING, "",
    ]  # fmt: skip
    return "\n".join(lines)
