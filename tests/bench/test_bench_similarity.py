"""Similarity of unseen prompts to the optimised one: words, CLIP's text encoder, and n/a with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bench_help import run, toy
from hypothesis import given
from hypothesis import strategies as st

from isr.bench.results import Results
from isr.bench.similarity import clip_text, prompt_similarity
from isr.bench.similarity_table import similarity_table
from isr.bench.tables import make_tables

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@given(st.text(max_size=30), st.text(max_size=30))
def test_similarity_is_symmetric_and_bounded(a: str, b: str) -> None:
    assert 0 <= prompt_similarity(a, b) <= 1
    assert prompt_similarity(a, b) == prompt_similarity(b, a)
    assert prompt_similarity(a, a) == 1


def test_similarity_by_hand() -> None:
    # {make, him, a, zombie} and {make, her, a, witch}: 2 of 6 words.
    assert prompt_similarity("Make him a zombie", "make her a witch!") == pytest.approx(2 / 6)


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of random weights, as it lies in a cache."""
    folder = tmp_path_factory.mktemp("clip")
    words = [
        "<|startoftext|>",
        "<|endoftext|>",
        *(chr(c) for c in range(97, 123)),
        *(f"{chr(c)}</w>" for c in range(97, 123)),
    ]
    tokenizer = transformers.CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=32)
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    text = {
        **small,
        "vocab_size": len(words),
        "max_position_embeddings": 32,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    config = transformers.CLIPConfig(
        text_config=text, vision_config={**small, "image_size": 32, "patch_size": 16}, projection_dim=12
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_clip_text_is_the_cosine_of_transformers_own_features(tiny_clip: Path) -> None:
    a, b = ["add a hat", "add a hat", "paint it"], ["add a hat", "make it snow", "add a hat"]
    found = clip_text(a, b, tiny_clip)
    model = transformers.CLIPModel.from_pretrained(tiny_clip)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_clip)

    def features(text: str) -> Any:  # one text at a time: no padding at all
        with torch.no_grad():
            out = model.get_text_features(**tokenizer([text], return_tensors="pt"))
        return getattr(out, "pooler_output", out)[0]

    wanted = [float(torch.cosine_similarity(features(x), features(y), dim=0)) for x, y in zip(a, b, strict=True)]
    assert found["values"] == pytest.approx(wanted, abs=1e-5)
    assert found["values"][0] == pytest.approx(1, abs=1e-5)
    assert found["reason"] == ""


def test_without_weights_clip_text_is_absent_with_the_reason(tmp_path: Path) -> None:
    run(toy(similarity=["words", "clip-text"]), tmp_path / "run")
    results = Results(tmp_path / "run", n_boot=200)
    table = next(t for t in make_tables(results) if t.key == "similarity")
    assert {row[0].text for row in table.rows} == {"words"}
    assert any(
        n.startswith("clip-text n/a: openai/clip-vit-large-patch14 is not in the Hugging Face cache")
        for n in table.notes
    )


def test_clip_text_is_measured_once_per_pair_of_prompts_and_tabled(
    tmp_path: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isr.metrics.clip.CLIP_MODEL", str(tiny_clip))
    made = run(toy(similarity=["clip-text"], purifiers=["jpeg:50"]), tmp_path / "run")
    results = Results(tmp_path / "run", n_boot=200)
    # 3 pictures × 1 unseen prompt, whatever the arms and purifiers.
    assert len(results.prompt_measures) <= 3
    assert sum(r.kind == "measure" for r in results.steps.values()) == len(results.prompt_measures)
    assert made.failed == []
    frame = similarity_table(results)
    assert set(frame["measure"]) == {"clip-text"}
    assert frame["similarity_low"].between(-1, 1).all()
    # Every unseen edit without purifier is in exactly one share.
    assert frame.groupby("method")["n"].sum().to_dict() == {"noise": 3, "toy-shift": 3}
    assert list(dict.fromkeys(frame["method"])) == ["noise", "toy-shift"]
