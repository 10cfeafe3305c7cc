"""The trainer of the heads: what is stored once, what each loss learns from, and what the held-out figures count."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_dataset import write_tiny_dataset
from tiny_models import SAM_CONFIG, save_llava, tiny_heads, tiny_sam

from flmm_core.data.samples import Turn
from flmm_core.data.tabletop import read_dataset
from flmm_core.frozen_lmm import FrozenLmm
from flmm_core.sam_refiner import SamRefiner
from flmm_core.training.embeddings import load_embeddings
from flmm_core.training.heads import Example, HeadsStage
from flmm_core.training.settings import HeadsSettings
from flmm_core.training.traces import Reader, _choose, load_traces
from flmm_tabletop.sam_tiny import save_tiny_sam

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tiny_dataset(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture(scope="module")
def lmm(tmp_path_factory):
    return save_llava(tmp_path_factory.mktemp("lmm"))


@pytest.fixture(scope="module")
def traced(data, lmm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache") / "traces"
    return folder, load_traces(folder, Reader(str(lmm), CPU, torch.float32), data=data, samples=3, turns=8, seed=0)


@pytest.fixture(scope="module")
def sam(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sam")
    save_tiny_sam(tiny_sam(), SAM_CONFIG, folder)
    return folder


@pytest.fixture(scope="module")
def examples(data, traced):
    refiner = SamRefiner(sam=tiny_sam(1))
    samples = list(read_dataset(data))
    return [
        Example(sample, tuple(trace for trace in traced[1] if trace.sample == i), refiner.encode_image(sample.image()))
        for i, sample in enumerate(samples)
    ]


# --- what is stored --------------------------------------------------------------------------------------------------------


def test_stored_traces_are_what_the_lmm_reads(data, lmm, traced):
    _, traces = traced
    assert [sum(trace.sample == i for trace in traces) for i in range(3)] == [8, 8, 8]
    model = FrozenLmm.from_pretrained(lmm)
    sample = list(read_dataset(data))[1]
    image = model.encode_image(Image.fromarray(sample.image()))
    (asked,) = [one for one in sample.turns if one.kind == "where"]
    read = model.read_answer(image, asked.question, asked.answer)
    objects = tuple(span.objects for span in asked.spans)
    alike = [trace for trace in traces if trace.sample == 1 and trace.objects == objects]
    (stored,) = [trace for trace in alike if trace.states.shape[1] == len(read.token_ids)]
    assert torch.allclose(stored.states.float(), read.states, atol=1e-2)
    expected = read.merged_attention([read.span_of(span.start, span.end) for span in asked.spans])
    assert torch.allclose(stored.maps.float(), expected, atol=1e-3)
    assert torch.equal(stored.phrase_states(0), stored.states[:, slice(*stored.spans[0])])


def test_a_selector_chooses_what_an_answer_asserts(traced):
    """Names of what is not there are chosen in a wrong answer only: "there is no pan" points at nothing."""
    absent = [
        (trace, *trace.spans[trace.objects.index(())]) for trace in traced[1] if trace.sample == 0 and () in trace.objects
    ]
    assert len(absent) == 3
    assert sorted(bool(trace.named[start:end].any()) for trace, start, end in absent) == [False, False, True]
    for trace in traced[1]:
        inside = torch.zeros_like(trace.named)
        for start, end in trace.spans:
            inside[start:end] = True
        assert not (trace.named & ~inside).any()
        assert all(trace.named[start] for (start, _), objects in zip(trace.spans, trace.objects, strict=True) if objects)


def test_traces_are_read_once_and_never_stale(data, lmm, traced, monkeypatch):
    folder, traces = traced
    reader = Reader(str(lmm), CPU, torch.float32)
    again = load_traces(folder, reader, data=data, samples=3, turns=8, seed=0)
    assert len(again) == len(traces)
    for changes, words in (
        ({"turns": 7}, "turns: expected 7, got 8"),
        ({"seed": 1}, "seed: expected 1, got 0"),
        ({"samples": 2}, "samples: expected 2, got 3"),
    ):
        with pytest.raises(ValueError, match=f"{words}; delete .*traces to make them anew"):
            load_traces(folder, reader, **{"data": data, "samples": 3, "turns": 8, "seed": 0, **changes})
    other = save_llava(data / "other", seed=5)
    for changed, words in (
        (replace(reader, lmm=str(other)), "lmm: expected .*"),
        (replace(reader, dtype=torch.bfloat16), r'dtype: expected "torch\.bfloat16", got "torch\.float32"'),
    ):
        with pytest.raises(ValueError, match=rf"{words}; delete .*traces to make them anew"):
            load_traces(folder, changed, data=data, samples=3, turns=8, seed=0)


def test_every_kind_has_its_turn_first():
    turns = [
        Turn(kind, f"{kind} {i}", "", ()) for kind, count in (("where", 9), ("list", 1), ("count", 2)) for i in range(count)
    ]
    for seed in range(5):
        chosen = _choose(turns, 5, np.random.default_rng(seed))
        assert sorted(one.kind for one in chosen[:3]) == ["count", "list", "where"]
        assert sorted(one.kind for one in chosen[3:]) == ["count", "where"]
    assert len(_choose(turns, 50, np.random.default_rng(0))) == 12


def test_embeddings_are_computed_once(data, sam, tmp_path, monkeypatch):
    refiner = SamRefiner(sam=tiny_sam())
    samples = list(read_dataset(data))
    paths = [sample.path for sample in samples]
    first = load_embeddings(tmp_path / "kept", paths, sam=str(sam), refiner=refiner)
    for sample, kept in zip(samples, first, strict=True):
        expected = refiner.encode_image(sample.image())
        assert replace(kept, embedding=expected.embedding) == expected
        assert torch.allclose(kept.to(CPU).embedding, expected.embedding, atol=1e-2)
    monkeypatch.setattr(refiner, "encode_image", lambda _: pytest.fail("expected the kept embeddings"))
    again = load_embeddings(tmp_path / "kept", paths, sam=str(sam), refiner=refiner)
    assert all(torch.equal(one.embedding, other.embedding) for one, other in zip(first, again, strict=True))
    with pytest.raises(ValueError, match=r"expected .* delete .*kept to make them anew"):
        load_embeddings(tmp_path / "kept", paths[:2], sam=str(sam), refiner=refiner)


# --- losses and figures ----------------------------------------------------------------------------------------------------


def stage_of(heads, **changes):
    return HeadsStage(heads, CPU, replace(HeadsSettings(), **changes))


def test_every_loss_reaches_its_part(examples):
    heads = tiny_heads().train()
    losses = stage_of(heads).losses(examples, np.random.default_rng(0))
    parts = {
        "bce": ("mask_head.",), "dice": ("mask_head.",), "selector": ("keyword_selector.",), "presence": ("presence.",),
        "sam_bce": ("mask_head.", "text_proj.", "text_layer_weights", "sam.model.mask_decoder.", "sam.model.prompt_encoder."),
    }  # fmt: skip
    for name, prefixes in parts.items():
        heads.zero_grad(set_to_none=True)
        losses[name].backward(retain_graph=True)
        touched = {key for key, parameter in heads.named_parameters() if parameter.grad is not None and parameter.grad.any()}
        assert all(key.startswith(prefixes) for key in touched), name
        assert all(any(key.startswith(prefix) for key in touched) for prefix in prefixes), name


def test_heads_learn_from_stored_traces(examples):
    torch.manual_seed(0)
    heads = tiny_heads().train()
    stage = stage_of(heads, refined=2)
    sam = [parameter for parameter in heads.sam.parameters() if parameter.requires_grad]
    others = [parameter for name, parameter in heads.named_parameters() if not name.startswith("sam.")]
    optimizer = torch.optim.AdamW([{"params": others}, {"params": sam, "lr": 2e-3}], lr=1e-2)
    before = stage.measure(examples)
    for step in range(100):
        losses = stage.losses(examples, np.random.default_rng(step))
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    after = stage.measure(examples)
    assert after["selector_f1"] > 0.95 > before["selector_f1"]
    assert after["present_kept"] > 0.95 and after["absent_caught"] > 0.95
    assert after["unet_ciou"] > before["unet_ciou"] and after["sam_ciou"] > before["sam_ciou"]
    assert heads.training


def test_images_of_other_shapes_are_learned_from_together(examples):
    """Families that read tiles have maps of another size for each shape of image."""
    first, second = examples[:2]
    traces = tuple(replace(trace, maps=trace.maps.repeat_interleave(3, dim=-1)) for trace in second.traces)
    losses = stage_of(tiny_heads()).losses([first, replace(second, traces=traces)], np.random.default_rng(0))
    assert all(loss.isfinite() for loss in losses.values())


def test_figures_by_hand(examples, monkeypatch):
    """Masks that are right, a selector that chooses everything, and a presence score that believes everything."""
    heads = tiny_heads()
    stage = stage_of(heads)
    truth = {}

    def right(groups):
        (phrases,) = groups
        truth["masks"] = examples[0].targets(phrases)
        return [truth["masks"] * 2 - 1]

    monkeypatch.setattr(stage, "_coarse", right)
    monkeypatch.setattr(stage, "_refined", lambda example, phrases, coarse: torch.ones_like(truth["masks"]))
    monkeypatch.setattr(stage, "_keywords", lambda trace: torch.ones(trace.states.shape[1]))
    monkeypatch.setattr(stage, "_presence", lambda phrases: torch.ones(len(phrases)))
    figures = stage.measure(examples[:1])
    named = torch.cat([trace.named for trace in examples[0].traces]).float()
    assert figures["unet_ciou"] == 1.0
    assert figures["sam_ciou"] == pytest.approx(float(truth["masks"].mean()), abs=1e-6)
    assert figures["selector_f1"] == pytest.approx(2 * float(named.sum()) / (len(named) + float(named.sum())))
    assert figures["present_kept"] == 1.0 and figures["absent_caught"] == 0.0


def test_heads_without_probes_cannot_be_trained():
    for lacking in ({"selector": False}, {"presence": False}):
        with pytest.raises(
            ValueError, match="expected a keyword selector and a presence score to train, got heads without them"
        ):
            stage_of(tiny_heads(**lacking))
