"""A warm start keeps what was learnt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))


def _autoencoder(*, ends: bool) -> Any:
    torch.manual_seed(int(ends))
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        use_quant_conv=ends,
        use_post_quant_conv=ends,
    ).eval()


@torch.no_grad()
def test_an_autoencoder_without_the_outer_convolutions_computes_what_the_other_did(tmp_path: Path) -> None:
    from miniworld_training.warm import autoencoder_from

    old, new = _autoencoder(ends=True), _autoencoder(ends=False)
    for part in (old.quant_conv, old.post_quant_conv):
        part.weight.normal_()
        part.bias.normal_()
    old.save_pretrained(tmp_path)
    assert autoencoder_from(tmp_path, new) == len(new.state_dict())
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    z = old.encode(x).latent_dist.parameters
    torch.testing.assert_close(new.encode(x).latent_dist.parameters, z, atol=1e-4, rtol=1e-4)
    mean = old.encode(x).latent_dist.mean
    # the decoder's first convolution pads with zeros what the other offset: away from the border they agree
    want, got = (v.decoder.conv_in(p(mean)) for v, p in ((old, old.post_quant_conv), (new, lambda m: m)))
    torch.testing.assert_close(got[..., 1:-1, 1:-1], want[..., 1:-1, 1:-1], atol=1e-4, rtol=1e-4)
