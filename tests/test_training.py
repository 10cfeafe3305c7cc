"""The trainers: data sets on disk, losses, the loop's promise to go on exactly, and each stage on a few images."""

import json
import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_dataset import COLORS, HEIGHT, WIDTH, write_tiny_dataset
from torch import nn
from transformers import AutoModel

from flmm_core.data.samples import MISTAKE, REFER, REFER_ABSENT
from flmm_core.data.tabletop import read_dataset
from flmm_core.lmm.frozen_lmm import FrozenLmm
from flmm_core.loading.checkpoints import load_heads, load_lmm
from flmm_core.pipeline import GroundingPipeline
from flmm_core.sam.checkpoints import load_sam
from flmm_core.sam.refiner import SamRefiner
from flmm_core.sam.refiner_config import RefinerConfig
from flmm_core.sam.transformers_sam import Sam2, SamHq
from flmm_core.training import loop
from flmm_core.training.heads import train_heads
from flmm_core.training.loop import accelerator_on, adamw, parameter_groups, train
from flmm_core.training.losses import mask_losses
from flmm_core.training.settings import HeadsSettings, LoopConfig
from flmm_tabletop.sam_kinds import KINDS
from flmm_tabletop.training.frames import load_frames, normalised
from flmm_tabletop.training.lmm import train_lmm
from flmm_tabletop.training.sam import imitate_coarse, sharpened, train_sam
from flmm_tabletop.training.settings import LmmSettings, SamSettings, TowerSettings
from flmm_tabletop.training.tower import WORDS, train_tower

CPU = torch.device("cpu")
TINY = {"hidden_size": 96, "layers": 3, "heads": 2, "head_size": 16, "intermediate_size": 64, "vocabulary": 320}


# --- data sets -------------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read(samples):
    assert len(samples) == 8
    for sample in samples:
        image = sample.image()
        assert image.shape == (HEIGHT, WIDTH, 3)
        for index, name in enumerate(sample.names):
            assert (image[sample.mask((index,))] == COLORS[name.split()[0]]).all()
        assert not (sample.mask((0,)) & sample.mask((1,))).any()
        assert (sample.mask((0, 1)) == (sample.mask((0,)) | sample.mask((1,)))).all()
        for turn in sample.turns:
            for span in turn.spans:
                words = turn.answer[span.start : span.end]
                named = words == "two objects" or words.startswith(tuple(sample.names[i] for i in span.objects))
                assert named if span.objects else words not in sample.names
        kinds = ["list", "where", "relation", "count", "absence", REFER, REFER_ABSENT, MISTAKE]
        assert [turn.kind for turn in sample.turns] == kinds
        assert [sum(not span.objects for span in turn.spans) for turn in sample.turns] == [0, 0, 0, 0, 1, 0, 1, 1]


def test_no_data_set(tmp_path):
    with pytest.raises(ValueError, match=r"expected a data set of `flmm scenes` at .*, got a folder without questions.json"):
        next(read_dataset(tmp_path))


def test_frames_are_what_the_lmm_sees(data, samples, llava):
    frames = load_frames(data, samples, 64)
    assert frames.shape == (8, 64, 64, 3) and (data / "frames-64" / "frames.npy").exists()
    seen = llava.family.prepare([Image.fromarray(samples[3].image())]).inputs["pixel_values"]
    assert torch.allclose(normalised(frames[3:4], CPU), seen, atol=1e-5)
    with pytest.raises(ValueError, match=r"manifest\.json: images: expected 7, got 8; delete .*frames-64 to recreate them"):
        load_frames(data, samples[:7], 64)


def test_frames_of_changed_images_are_refused(tmp_path):
    folder = write_tiny_dataset(tmp_path / "set", count=2)
    changed = list(read_dataset(folder))
    before = load_frames(folder, changed, 16).copy()
    shutil.copytree(folder, tmp_path / "copy")
    copied = list(read_dataset(tmp_path / "copy"))
    assert (load_frames(tmp_path / "copy", copied, 16) == before).all()
    Image.fromarray(255 - changed[1].image()).save(changed[1].path)
    with pytest.raises(ValueError, match=r"manifest\.json: files: expected .*; delete .*frames-16 to recreate them"):
        load_frames(folder, changed, 16)
    shutil.rmtree(folder / "frames-16")
    after = load_frames(folder, changed, 16)
    assert (after[0] == before[0]).all() and (after[1] != before[1]).any()


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    from tiny_models import save_llava

    return load_lmm(save_llava(tmp_path_factory.mktemp("llava"), tower="tabletop"), device=CPU, dtype=torch.float32)


# --- losses ----------------------------------------------------------------------------------------------------------------


def test_losses_by_hand():
    logits = torch.tensor([[[0.0, math.log(3)]], [[0.0, 0.0]]])
    targets = torch.tensor([[[0.0, 1.0]], [[1.0, 1.0]]])
    bce, dice = mask_losses(logits, targets)
    assert float(bce) == pytest.approx((math.log(2) + math.log(4 / 3) + 2 * math.log(2)) / 4)
    assert float(dice) == pytest.approx(((1 - (1.5 + 1) / (1.25 + 1 + 1)) + (1 - (2 + 1) / (1 + 2 + 1))) / 2)
    perfect = mask_losses(targets * 80 - 40, targets)
    assert float(perfect[0]) < 1e-6 and float(perfect[1]) < 1e-6


def test_imitated_coarse_masks_lie_where_the_true_ones_do():
    mask = torch.zeros(120, 160)
    mask[30:80, 60:120] = 1
    coarse = torch.stack([imitate_coarse(mask, np.random.default_rng(seed), 16) for seed in range(8)])
    assert coarse.shape == (8, 48, 64)
    found = nn.functional.interpolate(coarse[None], mask.shape, mode="bilinear")[0] > 0
    ious = [(float((f & (mask > 0)).sum()) / float((f | (mask > 0)).sum())) for f in found]
    assert min(ious) > 0.25 and np.mean(ious) > 0.5


# --- the loop --------------------------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


def run_loop(out, *, stop_at=None, **changes):
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 1))

    def loss_at(step):
        if step == stop_at:
            raise Stop
        x = torch.from_numpy(np.random.default_rng(step).standard_normal((16, 4)).astype(np.float32))
        return {"fit": ((module(x) - x.sum(1, keepdim=True)) ** 2).mean(), "_logged": torch.tensor(1e6)}

    config = replace(LoopConfig(steps=6, learning_rate=0.05, checkpoint_seconds=0.0), **changes)
    settings = LmmSettings(data=out, val=out, tower=out)
    measured = []
    train(
        module, loss_at, out=out, config=config, settings=settings, accelerator=accelerator_on(CPU),
        every=(4, lambda step: measured.append(step) or {"figure": 1.0}),
        optimizers=[adamw(parameter_groups(module.parameters(), config), config)],
    )  # fmt: skip
    return module.state_dict(), measured


def test_the_first_ten_steps_tell_how_long_the_rest_takes(tmp_path, monkeypatch, capsys):
    """Of a new run, and of one that goes on; a run that ends with them is silent."""
    now, accumulated = [0.0], loop._accumulated

    def step(*given):
        now[0] += 40.0
        return accumulated(*given)

    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(loop, "_accumulated", step)
    for stop, left in ((12, 1000), (24, 988)):
        with pytest.raises(Stop):
            run_loop(tmp_path / "long", steps=1010, stop_at=stop)
        (line,) = [line for line in capsys.readouterr().out.splitlines() if "at this pace" in line]
        assert line.endswith(f"10 steps took 6.7 min: at this pace the other {left} take about {left * 40 / 3600:.1f} h")
    run_loop(tmp_path / "short", steps=10)
    assert "at this pace" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (119.0, "119.0 s"), (120.0, "2.0 min"), (9_000.0, "2.5 h"), (200_000.0, "2.3 days")]
)
def test_durations_have_a_unit_of_their_size(seconds, text):
    assert loop._duration(seconds) == text


def test_a_stopped_run_goes_on_exactly(tmp_path):
    unbroken, measured = run_loop(tmp_path / "whole")
    assert measured == [4, 6]
    with pytest.raises(Stop):
        run_loop(tmp_path / "parts", stop_at=3)
    resumed, _ = run_loop(tmp_path / "parts")
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)
    again, measured = run_loop(tmp_path / "parts")
    assert measured == [] and all(torch.equal(unbroken[name], again[name]) for name in unbroken)
    logged = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert logged[-1] == {"step": 6, "figure": 1.0} and logged[-2]["step"] == 6 and logged[-2]["_logged"] == 1e6
    kept = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert kept["loop"]["steps"] == 6 and kept["settings"]["batch"] == LmmSettings.batch


def test_the_learning_rate_changes_the_result(tmp_path):
    one, _ = run_loop(tmp_path / "a")
    other, _ = run_loop(tmp_path / "b", learning_rate=0.01)
    assert not torch.equal(one["0.weight"], other["0.weight"])


def test_the_learning_rate_over_time(tmp_path):
    module = nn.Linear(1, 1)
    rates = {}
    for fall in (0.0, 0.5):
        loop = LoopConfig(steps=10, learning_rate=2.0, warmup=0.2, fall=fall)
        optimizer = adamw(parameter_groups(module.parameters(), loop), loop)
        rates[fall] = []

        def loss_at(_, optimizer=optimizer, seen=rates[fall]):
            seen.append(optimizer.param_groups[0]["lr"])
            return {"loss": module.weight.sum()}

        train(
            module,
            loss_at,
            out=tmp_path / str(fall),
            config=loop,
            settings=loop,
            accelerator=accelerator_on(CPU),
            optimizers=[optimizer],
        )
    assert rates[0.5] == pytest.approx([1, 2, 2, 2, 2, 2, 1.6, 1.2, 0.8, 0.4])
    assert rates[0.0] == pytest.approx([1, 2] + [1 + math.cos(math.pi * i / 8) for i in range(8)])


def test_a_run_goes_on_under_its_own_configuration_only(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(Stop):
        run_loop(out, stop_at=3)
    checkpoint = (out / "checkpoint.pt").read_bytes()
    for changes, words in (
        ({"steps": 7}, r"config\.json: loop\.steps: expected 7, got 6; give another folder, or delete .*checkpoint\.pt"),
        ({"beta2": 0.98}, r"loop\.beta2: expected 0\.98, got 0\.999"),
    ):
        with pytest.raises(ValueError, match=words):
            run_loop(out, **changes)
    assert (out / "checkpoint.pt").read_bytes() == checkpoint
    (out / "config.json").rename(tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"expected the run's config\.json beside it, got none"):
        run_loop(out)
    (tmp_path / "config.json").rename(out / "config.json")
    (out / "checkpoint.pt").write_bytes(checkpoint[:-100])
    with pytest.raises(
        ValueError, match=r"checkpoint\.pt: expected a checkpoint, got a damaged file .*; delete it to start over"
    ):
        run_loop(out)
    # Without a checkpoint there is nothing to go on with.
    (out / "checkpoint.pt").unlink()
    run_loop(out, steps=7)
    assert json.loads((out / "config.json").read_text())["loop"]["steps"] == 7


def test_bad_loops(tmp_path):
    with pytest.raises(ValueError, match="steps: expected at least 1, got 0"):
        LoopConfig(steps=0, learning_rate=1.0)
    with pytest.raises(FloatingPointError, match="step 0: expected a finite loss, got nan"):
        train(
            nn.Linear(1, 1), lambda _: {"loss": torch.tensor(math.nan, requires_grad=True)}, out=tmp_path / "nan",
            config=LoopConfig(steps=1, learning_rate=1.0), settings=LmmSettings(tmp_path, tmp_path, tmp_path),
            accelerator=accelerator_on(CPU),
            optimizers=[],
        )  # fmt: skip
    other = tmp_path / "other"
    run_loop(other)
    with pytest.raises(ValueError, match="expected weights of this stage's model, got"):
        train(
            nn.Linear(1, 1), lambda _: {}, out=other, config=LoopConfig(6, 0.05, checkpoint_seconds=0.0),
            settings=LmmSettings(other, other, other), accelerator=accelerator_on(CPU), optimizers=[],
        )  # fmt: skip


# --- the stages, one after the other ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """A model of all four stages, two steps each; every stage takes the results of those before."""
    root = tmp_path_factory.mktemp("runs")
    loop = LoopConfig(steps=2, learning_rate=1e-3, bf16=False)
    train_tower(root / "tower", TowerSettings(data, data, batch=4, vote_steps=2), loop, CPU)
    train_lmm(root / "lmm", LmmSettings(data, data, root / "tower" / "tower", batch=2, **TINY), loop, CPU)
    train_sam(root / "sam", SamSettings(data, data, batch=1, objects=1), loop, CPU)
    lmm, sam = (str(root / name / name) for name in ("lmm", "sam"))
    settings = HeadsSettings((str(data),), (str(data),), lmm, sam, turns=4, batch=2, epochs=0.1, base_channels=4)
    train_heads(root / "heads", settings, loop, CPU)
    return root


@pytest.mark.parametrize(("kind", "adapter"), [("sam2", Sam2), ("sam_hq", SamHq)])
def test_other_sams_learn_to_sharpen(data, samples, tmp_path, kind, adapter):
    loop = LoopConfig(steps=1, learning_rate=1e-3)
    settings = SamSettings(data, data, kind=kind, batch=1, objects=1)
    train_sam(tmp_path, settings, loop, CPU)
    sam = load_sam(tmp_path / "sam")
    assert isinstance(sam, adapter)
    torch.manual_seed(settings.seed)
    before = dict(KINDS[kind][0]().named_parameters())
    after = {name: value for name, value in sam.named_parameters() if name.startswith("image_encoder.vision_encoder")}
    assert after and not any(torch.equal(value, before[name.removeprefix("image_encoder.")]) for name, value in after.items())
    refiner = SamRefiner(sam=sam, config=RefinerConfig(use_text=False)).eval()
    (overlap,) = sharpened(refiner, samples[0], 3, settings)
    assert overlap.union and sharpened(refiner, samples[0], 3, settings) == [overlap]


def test_a_sam_of_an_unknown_kind_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match="kind: expected one of sam, sam2, sam_hq, got 'sam3'"):
        train_sam(tmp_path, SamSettings(data, data, kind="sam3"), LoopConfig(steps=1, learning_rate=1e-3), CPU)


def test_tower_and_lmm_load(runs, samples):
    tower = AutoModel.from_pretrained(runs / "tower" / "tower")
    lmm = FrozenLmm.from_pretrained(runs / "lmm" / "lmm")
    assert tuple(tower.config.words) == WORDS and len(WORDS) == 24
    kept = lmm.model.model.vision_tower.state_dict()
    assert all(torch.allclose(kept.pop(name), value, rtol=1e-3, atol=1e-3) for name, value in tower.state_dict().items())
    assert not kept
    image = lmm.encode_image(Image.fromarray(samples[0].image()))
    trace = lmm.generate(image, "What do you see?", max_new_tokens=4)
    assert len(trace.token_ids) <= 4 and not lmm.model.training
    assert trace.merged_attention([(0, 1)]).shape[1] == TINY["layers"] * TINY["heads"] if trace.token_ids else True
    answer = samples[0].turns[0].answer
    assert lmm.teacher_force(image, "What do you see?", answer).text == answer


def test_the_whole_model_grounds(runs, samples):
    lmm = load_lmm(runs / "lmm" / "lmm", device=CPU, dtype=torch.float32)
    heads = load_heads(runs / "heads" / "heads", shape=lmm.shape, sam=load_sam(runs / "sam" / "sam"))
    pipeline = GroundingPipeline(lmm=lmm, heads=heads)
    handle = pipeline.encode(samples[0].image())
    (found,) = pipeline.refer(handle, "the red mug").phrases
    assert found.mask.shape == (HEIGHT, WIDTH)
    for stage in ("tower", "tower/votes", "lmm", "sam", "heads"):
        figures = [json.loads(line) for line in (runs / stage / "log.jsonl").read_text().splitlines()]
        assert all(math.isfinite(value) for line in figures for value in line.values())
