"""An LMM whose layers are on several devices: when it is spread, and that recording works then.

On this machine layers are spread over memory and disk, by accelerate, and over two GPUs of fake tensors, which have no values
but refuse operations on tensors of different devices. No real GPU takes part.
"""

import pytest
import tiny_models
import torch
from tiny_models import random_image, save_llava
from torch._subclasses.fake_tensor import FakeTensorMode

from flmm_core.common.devices import is_spread, room_for_weights
from flmm_core.errors import LoadError
from flmm_core.families import Checkpoint, family_of
from flmm_core.families.load_options import LoadOptions
from flmm_core.lmm import loading
from flmm_core.lmm.attention_rows import LayerQueries, RecordedAttention
from flmm_core.lmm.cuda_graphs import allows_static_decoding
from flmm_core.lmm.frozen_lmm import FrozenLmm
from flmm_core.lmm.hidden_states import StateMixer
from flmm_core.pipeline import GroundingPipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_llava(tmp_path_factory.mktemp("lmm"))


def spread_lmm(folder) -> FrozenLmm:
    """With the vision tower in memory and the last layers on the disk."""
    checkpoint = Checkpoint(folder)
    size = (folder / "model.safetensors").stat().st_size
    loaded = family_of(checkpoint).load(checkpoint, LoadOptions(room={"cpu": int(0.7 * size)}))
    places = loaded.model.hf_device_map
    assert set(places.values()) == {"cpu", "disk"} and is_spread(loaded.model)
    return FrozenLmm(model=loaded.model, tokenizer=loaded.tokenizer, family=loaded.family)


def test_layers_on_the_disk_are_recorded(folder):
    """Answers, states, maps and masks are those of the whole model; with and without a cached prefix, and in a batch."""
    spread, whole = spread_lmm(folder), FrozenLmm.from_pretrained(folder)
    assert allows_static_decoding(whole.model) and not allows_static_decoding(spread.model)
    images = [lmm.encode_image(random_image()) for lmm in (spread, whole)]
    for _ in range(2):
        for method, *words in (("teacher_force", "what?", "a red mug"), ("generate", "what is there?")):
            got, expected = (getattr(lmm, method)(image, *words) for lmm, image in zip((spread, whole), images, strict=True))
            assert got.token_ids == expected.token_ids and torch.equal(got.states, expected.states)
            assert torch.equal(got.merged_attention([(0, 2)]), expected.merged_attention([(0, 2)]))
    batches = [
        lmm.generate_batch([lmm.question(image, text, max_new_tokens=4) for text in ("what?", "where is the lemon?")])
        for lmm, image in zip((spread, whole), images, strict=True)
    ]
    for got, expected in zip(*batches, strict=True):
        assert got.token_ids == expected.token_ids and torch.equal(got.states, expected.states)
    masks = []
    for lmm in (spread, whole):
        pipeline = GroundingPipeline(lmm=lmm, heads=tiny_models.tiny_heads())
        masks.append(pipeline.refer(pipeline.encode(random_image()), ["the lemon"]).phrases[0].mask)
    assert (masks[0] == masks[1]).all()


def test_rows_and_states_of_layers_on_two_gpus_meet_on_one():
    with FakeTensorMode():
        gpus = [torch.device("cuda", i) for i in (0, 1, 1)]
        layers = tuple(
            LayerQueries(
                queries=torch.empty(4, 3, 8, device=gpu),
                key_parts=(torch.empty(2, 6, 8, device=gpu), torch.empty(2, 3, 8, device=gpu)),
                scaling=0.3,
                layer=i,
                visible=torch.ones(3, 9, dtype=torch.bool, device=gpu) if i == 1 else None,
            )
            for i, gpu in enumerate(gpus)
        )
        columns = torch.arange(1, 5, device=gpus[0])
        rows = RecordedAttention(6, layers).mean_rows([(0, 2), (1, 3)], columns)
        assert (rows.device, rows.shape) == (gpus[0], (3, 4, 2, 4))
        mixer = StateMixer(start=2, seen=0, layer_weights=torch.empty(2, 3, device=gpus[0]))
        for length in (5, 1, 1):
            for layer, gpu in enumerate(gpus):
                mixer.add(layer, torch.empty(1, length, 16, device=gpu))
        (states,) = mixer.split([(2, 7)])
        assert (states.device, states.shape) == (gpus[0], (2, 5, 16))


def test_an_lmm_is_spread_only_if_the_first_gpu_cannot_hold_it():
    assert room_for_weights(10, ()) is room_for_weights(100, (80,)) is room_for_weights(60, (80, 80)) is None
    assert room_for_weights(61, (80, 40)) == {0: 60, 1: 30}
    with pytest.raises(
        LoadError, match=r"^device auto: expected GPUs with room for 15\.0 GB of weights, got 12\.0 GB \(75% of"
    ):
        room_for_weights(15 * 10**9, (8 * 10**9,) * 2)


@pytest.mark.parametrize(("free", "options", "spread"), [
    ((10**5, 10**9), {"spread": True}, True),
    ((10**9, 10**9), {"spread": True}, False),
    ((10**5, 10**9), {"spread": False}, False),
    ((10**5,), {"spread": True}, False),
])  # fmt: skip
def test_what_accelerate_is_asked_for(folder, monkeypatch, free, options, spread):
    asked = []

    def load(cls, checkpoint, how):
        asked.append(how)
        raise LoadError("enough")

    monkeypatch.setattr(loading, "free_memory", lambda: free)
    monkeypatch.setattr(family_of(Checkpoint(folder)), "load", classmethod(load))
    with pytest.raises(LoadError, match="enough"):
        loading.load_plain(folder, device="cuda", dtype=torch.float32, **options)
    given = asked[0].given
    assert given["device_map"] == ("auto" if spread else {"": torch.device("cuda")})
    assert given.get("max_memory") == ({0: 75_000, 1: 750_000_000} if spread else None)


def test_layers_that_fit_no_gpu_are_refused(folder):
    with pytest.raises(LoadError, match=r"^device auto: expected GPUs with room for all layers, got none for "):
        loading._check_placed(spread_lmm(folder).model)
