"""The trainer of the heads: what it reads of images, what each loss learns from, and what the held-out figures count."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_checks import compare
from PIL import Image
from safetensors.torch import load_file
from tiny_dataset import make_strip, write_tiny_dataset
from tiny_models import tiny_heads, tiny_sam
from torch.nn import functional as F

from flmm_cli.main import main
from flmm_core.data.samples import REFER, Expression, Sample, Turn, refer_turn
from flmm_core.data.tabletop import read_dataset
from flmm_core.engines.export import export_networks
from flmm_core.engines.onnx_engine import OnnxEngine
from flmm_core.images.geometry import unpad
from flmm_core.lmm.frozen_lmm import FrozenLmm
from flmm_core.pipeline import GroundingPipeline
from flmm_core.sam.refiner import SamRefiner
from flmm_core.training import heads as heads_module
from flmm_core.training.attention_heads import best_channels
from flmm_core.training.batches import Batches
from flmm_core.training.examples import Example, ExampleReader, TraceCache
from flmm_core.training.heads import limited, train_heads
from flmm_core.training.heads_stage import HeadsStage, figures_of
from flmm_core.training.loop import accelerator_on
from flmm_core.training.settings import HeadsSettings
from flmm_core.training.traces import choose_turns, read_turns

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tiny_dataset(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture(scope="module")
def samples(data):
    return list(read_dataset(data))


@pytest.fixture(scope="module")
def lmm(tiny_llava):
    return tiny_llava


@pytest.fixture(scope="module")
def model(lmm):
    return FrozenLmm.from_pretrained(lmm)


@pytest.fixture(scope="module")
def sam(tiny_model):
    return Path(tiny_model["sam"])


@pytest.fixture(scope="module")
def examples(samples, model):
    refiner = SamRefiner(sam=tiny_sam(1))
    return [
        Example(sample, read_turns(model, sample, sample.turns), refiner.encode_image(sample.image())) for sample in samples
    ]


# --- what is read ----------------------------------------------------------------------------------------------------------


def test_answers_are_read_as_the_lmm_reads_them(samples, model):
    sample = samples[1]
    (asked,) = [one for one in sample.turns if one.kind == "where"]
    (stored,) = read_turns(model, sample, [asked])
    read = model.teacher_force(model.encode_image(Image.fromarray(sample.image())), asked.question, asked.answer)
    assert torch.allclose(stored.states.float(), read.states, atol=1e-2)
    expected = read.merged_attention([read.span_of(span.start, span.end) for span in asked.spans])
    assert torch.allclose(stored.maps.float(), expected, atol=1e-3)
    assert torch.equal(stored.phrase_states(0), stored.states[:, slice(*stored.spans[0])])


def test_expressions_are_read_as_refer_mode_reads_them(samples, model):
    (turn,) = [one for one in samples[0].turns if one.kind == REFER]
    (stored,) = read_turns(model, samples[0], [turn])
    trace, spans = model.teacher_force_phrases(model.encode_image(Image.fromarray(samples[0].image())), turn.phrases)
    assert stored.spans == tuple((span.token_start, span.token_end) for span in spans)
    assert torch.allclose(stored.maps.float(), trace.merged_attention(list(stored.spans)), atol=1e-3)


def test_a_selector_chooses_what_an_answer_asserts(examples):
    """Names of what is not there are chosen in a wrong answer only: "there is no pan" points at nothing."""
    absent = [(trace, *trace.spans[trace.objects.index(())]) for trace in examples[0].traces if () in trace.objects]
    assert len(absent) == 3
    assert sorted(bool(trace.named[start:end].any()) for trace, start, end in absent) == [False, False, True]
    for trace in (trace for example in examples for trace in example.traces):
        inside = torch.zeros_like(trace.named)
        for start, end in trace.spans:
            inside[start:end] = True
        assert not (trace.named & ~inside).any()
        assert all(trace.named[start] for (start, _), objects in zip(trace.spans, trace.objects, strict=True) if objects)


def sample_of(turns):
    return Sample(path=None, turns=tuple(turns), names=(), rles=())


def test_every_kind_has_its_turn_first():
    sample = sample_of(
        Turn(kind, f"{kind} {i}", "", ()) for kind, count in (("where", 9), ("list", 1), ("count", 2)) for i in range(count)
    )
    for seed in range(5):
        chosen = choose_turns(sample, 5, np.random.default_rng(seed))
        assert sorted(one.kind for one in chosen[:3]) == ["count", "list", "where"]
        assert sorted(one.kind for one in chosen[3:]) == ["count", "where"]
    assert len(choose_turns(sample, 50, np.random.default_rng(0))) == 12


def test_one_expression_for_each_thing_in_a_sequence():
    words = [("a", (0,)), ("b", (0,)), ("c", (1,)), ("none", ()), ("neither", ()), ("both", (0, 1))]
    sample = sample_of([refer_turn([Expression(*one) for one in words])])
    seen = set()
    for seed in range(20):
        (turn,) = choose_turns(sample, 4, np.random.default_rng(seed))
        assert turn.phrases[1:] == ("c", "none", "neither", "both")
        seen.add(turn.phrases[0])
    assert seen == {"a", "b"}


def reader_of(datasets, model, cache=None, told=None, **changes):
    options = {"turns": 3, "variants": 2, "seed": 0, **changes}
    return ExampleReader(
        datasets,
        lmm=model,
        refiner=SamRefiner(sam=tiny_sam()),
        cache=cache,
        tell=([] if told is None else told).append,
        **options,
    )


def alike(one, other):
    return all(
        torch.equal(a.maps, b.maps) and torch.equal(a.states, b.states) and torch.equal(a.named, b.named)
        and (a.objects, a.spans, a.geometry) == (b.objects, b.spans, b.geometry)
        for a, b in zip(one.traces, other.traces, strict=True)
    ) and torch.equal(one.image.embedding, other.image.embedding)  # fmt: skip


def test_what_was_read_is_kept_and_never_stale(data, model, tmp_path, monkeypatch):
    made_from = {"lmm": "a", "turns": 3}
    reader = reader_of([read_dataset(data)], model, TraceCache(tmp_path / "c", made_from, 10**9))
    first = [reader.read(index, epoch) for epoch in range(2) for index in range(3)]
    assert len(list((tmp_path / "c").glob("*.pt"))) == 6
    again = reader_of([read_dataset(data)], model, TraceCache(tmp_path / "c", made_from, 10**9))
    monkeypatch.setattr(model, "encode_image", lambda _: pytest.fail("expected what was kept"))
    kept = [again.read(index, epoch) for epoch in range(2, 4) for index in range(3)]  # two choices take turns
    assert all(alike(one, other) for one, other in zip(first, kept, strict=True))
    with pytest.raises(ValueError, match=r"turns: expected 4, got 3; delete .* to recreate them"):
        TraceCache(tmp_path / "c", {"lmm": "a", "turns": 4}, 10**9)


def test_a_damaged_file_of_the_cache_is_made_again(data, model, tmp_path, caplog):
    reader = reader_of([read_dataset(data)], model, TraceCache(tmp_path / "c", {}, 10**9))
    first = reader.read(0, 0)
    (path,) = (tmp_path / "c").glob("*.pt")
    whole = path.read_bytes()
    for damaged in (whole[:-100], b"", b"no archive"):
        path.write_bytes(damaged)
        assert alike(first, reader.read(0, 0)) and path.stat().st_size == len(whole)
        (record,) = caplog.records
        assert f"{path}: expected a whole file of traces, got a damaged one" in record.getMessage()
        caplog.clear()


def test_the_cache_is_bounded(data, model, tmp_path):
    roomy = reader_of([read_dataset(data)], model, TraceCache(tmp_path / "a", {}, 10**9))
    expected = [roomy.read(index, 0) for index in range(3)]
    size = max(path.stat().st_size for path in (tmp_path / "a").glob("*.pt"))
    reader = reader_of([read_dataset(data)], model, TraceCache(tmp_path / "b", {}, size + size // 2))
    for _ in range(2):
        assert all(alike(one, reader.read(index, 0)) for index, one in enumerate(expected))
    assert len(list((tmp_path / "b").glob("*.pt"))) == 2
    full = reader_of([read_dataset(data)], model, TraceCache(tmp_path / "b", {}, size))
    full.read(2, 0)
    assert len(list((tmp_path / "b").glob("*.pt"))) == 2


def test_broken_images_are_told_once_and_replaced(tmp_path, model):
    folder = write_tiny_dataset(tmp_path / "set", count=3)
    (folder / "images" / "000001.png").write_bytes(b"no image")
    told = []
    reader = ExampleReader(
        [read_dataset(folder)], lmm=model, refiner=SamRefiner(sam=tiny_sam()), turns=3, variants=1, seed=0, cache=None,
        tell=told.append,
    )  # fmt: skip
    for _ in range(2):
        assert reader.read(1, 0).sample.path.name == "000002.png"
    assert len(told) == 1 and "000001.png" in told[0] and reader.skipped == {1}
    for path in (folder / "images").glob("*.png"):
        path.unlink()
    with pytest.raises(ValueError, match="got none that can be used"):
        reader.read(0, 0)


def test_an_image_that_a_processor_refuses_costs_itself(strip_data, tiny_qwen, tmp_path, capsys):
    told = []
    reader = reader_of([read_dataset(strip_data)], FrozenLmm.from_pretrained(tiny_qwen["lmm"]), told=told)
    assert [reader.read(index, 0).sample.path.name[5] for index in range(4)] == ["0", "2", "2", "3"]
    assert len(told) == 1 and "000001.png: cannot be used (" in told[0] and "aspect ratio" in told[0]
    options = options_of(strip_data, tiny_qwen["lmm"], tiny_qwen["sam"], tmp_path / "out", epochs=0.5, batch=2)
    assert main(["train", "heads", *options]) == 0
    assert "skipped images: 1" in capsys.readouterr().out


@pytest.mark.parametrize("size", [(5, 1093), (1093, 5), (1, 300)])
def test_strips_are_learned_from(tmp_path, model, size):
    """LLaVA pads them to a square: of its map a strip of one cell is the image."""
    folder = write_tiny_dataset(tmp_path / "set", count=2)
    make_strip(folder, 0, *size)
    reader = reader_of([read_dataset(folder)], model)
    batch = [reader.read(index, 0) for index in range(2)]
    assert not reader.skipped
    stage = stage_of(tiny_heads())
    losses = stage(batch, [np.random.default_rng(0)] * 2)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert torch.isfinite(stage.sums(batch)).all() and stage.draw(batch).any()


def test_a_full_disk_is_no_fault_of_a_sample(data, model, tmp_path, monkeypatch):
    def full(*_):
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(torch, "save", full)
    reader = reader_of([read_dataset(data)], model, TraceCache(tmp_path / "c", {}, 10**9))
    with pytest.raises(RuntimeError, match="file write failed"):
        reader.read(0, 0)
    assert not reader.skipped


def test_a_step_sees_what_its_number_says(monkeypatch):
    class Processes:
        def __init__(self, count, index):
            self.num_processes, self.process_index = count, index

    settings = HeadsSettings(batch=2, epochs=3.0)
    alone = Batches(10, settings, Processes(1, 0), 2)
    assert alone.steps == 8  # 3 x 10 images, 4 in a step
    for epoch in range(3):
        seen = [alone.image(place) for step in range(5 * epoch, 5 * epoch + 5) for place in alone.at(step)]
        assert sorted(seen) == [(image, epoch) for image in range(10)]
    pair = [Batches(10, settings, Processes(2, index), 1) for index in range(2)]
    together = [place for step in range(5) for one in pair for place in one.at(step)]
    assert together == [place for step in range(10) for place in alone.at(step)]
    assert [pair[1].image(17), pair[1].image(3), pair[1].image(17)] == [alone.image(17), alone.image(3), alone.image(17)]


def test_fewer_images_are_spread_over_a_data_set(data):
    dataset = read_dataset(data)
    assert [sample.path.name for sample in limited(dataset, 2)] == ["000000.png", "000001.png"]
    assert len(limited(dataset, 0)) == len(limited(dataset, 9)) == 3


# --- losses and figures ----------------------------------------------------------------------------------------------------


def stage_of(heads, **changes):
    return HeadsStage(heads, replace(HeadsSettings(phrases=3, refined=1), **changes))


def rngs(seed, count):
    return [np.random.default_rng([seed, i]) for i in range(count)]


def test_every_loss_reaches_its_part(examples):
    heads = tiny_heads().train()
    losses = stage_of(heads)(examples, rngs(0, 3))
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
    examples = examples[:2]
    heads = tiny_heads().train()
    stage = stage_of(heads, refined=2)
    sam = [parameter for parameter in heads.sam.parameters() if parameter.requires_grad]
    others = [parameter for name, parameter in heads.named_parameters() if not name.startswith("sam.")]
    optimizer = torch.optim.AdamW([{"params": others}, {"params": sam, "lr": 2e-3}], lr=1e-2)
    before = figures_of(stage.sums(examples))
    for step in range(75):  # the U-Net's masks appear after some 55
        losses = stage(examples, rngs(step, 2))
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    after = figures_of(stage.sums(examples))
    assert after["selector_f1"] > 0.95 > before["selector_f1"]
    assert after["present_kept"] > 0.95 and after["absent_caught"] > 0.95
    assert after["unet_ciou"] > before["unet_ciou"] and after["sam_ciou"] > before["sam_ciou"]
    assert heads.training


def test_images_of_other_shapes_are_learned_from_together(examples):
    """Families that read tiles have maps of another size for each shape of image."""
    first, second = examples[:2]
    traces = tuple(replace(trace, maps=trace.maps.repeat_interleave(3, dim=-1)) for trace in second.traces)
    losses = stage_of(tiny_heads())([first, replace(second, traces=traces)], rngs(0, 2))
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
    figures = figures_of(stage.sums(examples[:1]))
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


def test_it_does_not_matter_which_images_share_a_batch(examples):
    stage = stage_of(tiny_heads())
    apart = [stage([example], [rng]) for example, rng in zip(examples, rngs(0, 3), strict=True)]
    together = stage(examples, rngs(0, 3))
    for name, loss in together.items():
        assert torch.allclose(loss, torch.stack([losses[name] for losses in apart]).mean(), atol=1e-5), name


def test_an_image_without_anything_teaches_presence_alone(examples):
    nothing = [trace for trace in examples[0].traces if not any(trace.objects)]
    losses = stage_of(tiny_heads())([replace(examples[0], traces=tuple(nothing))], rngs(0, 1))
    assert losses["bce"] == losses["sam_dice"] == 0
    assert losses["presence"] > 0 and losses["presence"].requires_grad


def test_held_out_masks_are_drawn(examples):
    sheet = stage_of(tiny_heads()).draw(examples[:2])
    assert sheet.ndim == 3 and sheet.dtype == np.uint8 and sheet.shape[1] > sheet.shape[0]


# --- whole runs ------------------------------------------------------------------------------------------------------------


def options_of(data, lmm, sam, out, **changes):
    options = {
        "lmm": lmm, "sam": sam, "data": f"tabletop={data}", "val": data, "out": out, "epochs": 2, "base-channels": 4,
        "turns": 3, "variants": 1, "refined": 1, "device": "cpu", "learning-rate": 1e-3,
    }  # fmt: skip
    return [str(part) for name, value in {**options, **changes}.items() for part in (f"--{name}", value)]


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(tmp_path, lmm, sam, capsys):
    """The same steps, whether one process takes all images of a step, or takes them one by one, or two share them."""
    data = write_tiny_dataset(tmp_path / "data", count=4)
    for name, changes in (("one", {"batch": 2}), ("accumulated", {"batch": 1, "accumulate": 2})):
        assert main(["train", "heads", *options_of(data, lmm, sam, tmp_path / name, epochs=0.5, **changes)]) == 0
        assert capsys.readouterr().out.count("LMM: unchanged") == 1
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "flmm_cli"]
    command = [*launch, "train", "heads", *options_of(data, lmm, sam, tmp_path / "two", epochs=0.5, batch=1)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("LMM: unchanged") == 1
    # After one step AdamW's first moment is the gradient.
    moments = [
        [state["exp_avg"] for state in torch.load(tmp_path / name / "checkpoint.pt")["states"][0]["state"].values()]
        for name in ("one", "accumulated", "two")
    ]
    assert all(len(one) == len(moments[0]) > 50 for one in moments)
    for other in moments[1:]:
        for expected, got in zip(moments[0], other, strict=True):
            assert torch.allclose(expected, got, atol=1e-6, rtol=1e-3)
    assert load_file(tmp_path / "two" / "heads" / "model.safetensors")
    steps = [json.loads(line)["step"] for line in (tmp_path / "two" / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 1]
    assert list((tmp_path / "two" / "pictures").glob("step_*.png"))
    assert list((tmp_path / "two" / "tensorboard").glob("events*"))


def test_a_changed_lmm_is_found_out(data, lmm, sam, tmp_path, monkeypatch):
    checksums = iter(("before", "after"))
    monkeypatch.setattr(heads_module, "_checksum", lambda _: next(checksums))
    settings = HeadsSettings((str(data),), (str(data),), str(lmm), str(sam), epochs=0.1, base_channels=4, turns=2, refined=1)
    with pytest.raises(RuntimeError, match="expected weights as before, before, got after"):
        train_heads(tmp_path / "out", settings, settings.LOOP, CPU)
    assert not (tmp_path / "out" / "heads").exists()
    assert accelerator_on(CPU).num_processes == 1


def test_attention_heads_are_chosen_by_where_they_look(examples):
    """Two channels are made to look at what is named, and nowhere else."""

    def pointing(example):
        traces = []
        for trace in example.traces:
            maps = torch.rand_like(trace.maps.float())
            for i, objects in enumerate(trace.objects):
                if objects:
                    frame = torch.zeros(maps.shape[-2:])
                    image = unpad(frame, trace.geometry)  # a view
                    mask = torch.from_numpy(example.sample.mask(objects)).float()
                    image[...] = F.interpolate(mask[None, None], image.shape, mode="area")[0, 0]
                    maps[i, [3, 7]] = frame
            traces.append(replace(trace, maps=maps))
        return replace(example, traces=tuple(traces))

    class Reader(list):
        def read(self, index, epoch):
            return self[index]

    reader = Reader(map(pointing, examples))
    assert best_channels(reader, 2) == (3, 7)
    count = reader[0].traces[0].maps.shape[1]
    assert best_channels(reader, count) == tuple(range(count))
    with pytest.raises(ValueError, match=f"attention_heads: expected at most {count}, got {count + 1}"):
        best_channels(reader, count + 1)


def test_heads_of_few_attention_heads_are_trained_saved_and_used(data, lmm, sam, tmp_path):
    options = {"epochs": 0.2, "base_channels": 4, "turns": 2, "refined": 1, "attention_heads": 3, "sink_quantile": 0.9}
    settings = HeadsSettings((str(data),), (str(data),), str(lmm), str(sam), val_samples=1, **options)
    train_heads(tmp_path / "out", settings, settings.LOOP, CPU)
    parts = {"lmm": lmm, "heads": tmp_path / "out" / "heads", "sam": sam}
    pipeline = GroundingPipeline.from_pretrained(**parts, device="cpu", presence_threshold=0.0)
    unet = pipeline.heads.config.unet
    assert len(unet.kept) == 3 and unet.sink_quantile == 0.9
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    mask = pipeline.refer(pipeline.encode(image), "red mug").phrases[0].mask
    assert mask.shape == (48, 64)
    # The same in another runtime: of the networks, the U-Net alone reads attention heads.
    export_networks(pipeline.heads, tmp_path / "engines", what=("unet",))
    engine = OnnxEngine(tmp_path / "engines", pipeline.heads, device=CPU, networks=("unet",))
    compare(engine, pipeline.heads, "unet", phrases=2, grid=(24, 40), tokens=1)
    pipeline.heads.mask_head.engine = lambda *inputs: engine.run("unet", inputs)[0]
    assert (mask == pipeline.refer(pipeline.encode(image), "red mug").phrases[0].mask).mean() > 0.99
