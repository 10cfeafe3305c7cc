"""U-Net: shapes, padding, normalisation and names of its weights."""

import pytest
import torch
from torch.nn import functional as F

from flmm_core.heads.unet import UNetConfig, UNetHead, prepare_maps


@pytest.fixture(scope="module")
def head():
    torch.manual_seed(0)
    return UNetHead(UNetConfig(in_channels=6, base_channels=8)).eval()


@pytest.mark.parametrize(
    ("grid", "output"),
    [((24, 24), (64, 64)), ((17, 29), (37, 64)), ((12, 12), (64, 64)), ((64, 48), (64, 48)), ((70, 100), (70, 100))],
)
def test_output_size(head, grid, output):
    with torch.no_grad():
        assert head(torch.rand(2, 6, *grid)).shape == (2, *output)


def test_input_is_normalised_then_enlarged():
    maps = torch.rand(2, 3, 17, 29)
    maps[0, 1] = 0
    prepared = prepare_maps(maps)
    assert prepared.shape == (2, 3, 37, 64)
    sums = maps.sum((2, 3), keepdim=True)
    expected = F.interpolate(maps / sums.clamp_min(1e-12), scale_factor=64 / 29, mode="bilinear", align_corners=False)
    torch.testing.assert_close(prepared, expected)
    assert prepared[0, 1].abs().max() == 0
    # The given scale factor places the samples; the size alone would give other values at 37 of 37.5 rows.
    by_size = F.interpolate(maps / sums.clamp_min(1e-12), size=(37, 64), mode="bilinear", align_corners=False)
    assert (prepared - by_size).abs().max() > 1e-6


def test_scale_of_the_attention_does_not_matter(head):
    maps = torch.rand(1, 6, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(head(maps), head(maps * 0.01), atol=1e-4, rtol=1e-4)


def test_padding_takes_part_in_the_norms(head):
    """37 rows become 40: the three rows of zeros change the statistics of the norms, so the output is not that of a
    network which pads nothing; it is that of an image which is zero there."""
    maps = torch.rand(1, 6, 40, 64)
    maps[:, :, 37:] = 0
    with torch.no_grad():
        assert torch.equal(head(maps[:, :, :37]), head(maps)[:, :37])


def test_no_phrases(head):
    assert head(torch.zeros(0, 6, 12, 16)).shape == (0, 48, 64)


def test_wrong_channels(head):
    with pytest.raises(ValueError, match=r"maps: expected \[n, 6, h, w\], got \[1, 5, 8, 8\]"):
        head(torch.rand(1, 5, 8, 8))


def test_names_of_the_published_heads():
    names = set(UNetHead(UNetConfig(in_channels=4, base_channels=2)).state_dict())
    expected = {"conv_seg.weight", "conv_seg.bias"}
    blocks = [f"encoder.{i}.{min(i, 1)}.convs.{j}" for i in range(4) for j in range(2)]
    blocks += [f"decoder.{i}.conv_block.convs.{j}" for i in range(3) for j in range(2)]
    blocks += [f"decoder.{i}.upsample.interp_upsample.1" for i in range(3)]
    expected |= {f"{block}.{leaf}" for block in blocks for leaf in ("conv.weight", "gn.weight", "gn.bias")}
    assert names == expected


def test_published_size():
    count = sum(p.numel() for p in UNetHead(UNetConfig(in_channels=1024)).parameters())
    assert 7.3e6 < count < 8.4e6


def test_kept_channels_are_all_that_is_seen():
    maps = torch.rand(2, 6, 16, 16)
    head = UNetHead(UNetConfig(in_channels=6, base_channels=4, kept=(4, 1))).eval()
    alone = UNetHead(UNetConfig(in_channels=2, base_channels=4)).eval()
    alone.load_state_dict(head.state_dict())
    with torch.no_grad():
        assert torch.equal(head(maps), alone(maps[:, [4, 1]]))
        other = maps.clone()
        other[:, [0, 2, 3, 5]] = torch.rand(2, 4, 16, 16)
        assert torch.equal(head(other), head(maps))


def test_sinks_are_cut_down_to_the_quantile():
    maps = torch.full((1, 1, 8, 8), 0.5)
    maps[0, 0, 0, 0] = 100.0
    maps[0, 0, 4, 4] = 0.6
    cut = prepare_maps(maps, 0.97)
    even = prepare_maps(torch.full((1, 1, 8, 8), 0.5))
    assert torch.allclose(cut, even, rtol=0.2), "neither the sink nor what is next to it sticks out"
    assert torch.equal(prepare_maps(maps, 1.0), prepare_maps(maps))
    assert prepare_maps(maps).amax() > 100 * cut.amax() / 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kept": (0, 6)}, r"U-Net: expected different channels of 0 to 5, got \[0, 6\]"),
        ({"kept": (1, 1)}, r"U-Net: expected different channels of 0 to 5, got \[1, 1\]"),
        ({"sink_quantile": 0.0}, "U-Net: expected a quantile above 0 and up to 1 for attention sinks, got 0.0"),
    ],
)
def test_impossible_heads_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        UNetConfig(in_channels=6, **options)
