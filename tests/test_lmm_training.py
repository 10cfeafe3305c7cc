"""How flmm-tabletop learns words: the tower's votes, the LMM's start, where heads are told to look, packing, Muon."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModel, LlavaForConditionalGeneration

from flmm_core.data.samples import MISTAKE, REFER, REFER_ABSENT, Turn
from flmm_core.training.settings import LoopConfig
from flmm_tabletop import MODEL
from flmm_tabletop.training import packed_turns
from flmm_tabletop.training.frames import load_frames, normalised
from flmm_tabletop.training.image_votes import load_votes
from flmm_tabletop.training.lmm import KIND_WEIGHTS, hidden_states, lmm_losses, lmm_optimizers
from flmm_tabletop.training.lmm_start import build_lmm, build_tokenizer
from flmm_tabletop.training.looking import LookingTargets, Name, find_names, looking_loss, looking_share
from flmm_tabletop.training.muon import Muon, orthogonalised
from flmm_tabletop.training.packed_turns import Packing, WatchedHeads
from flmm_tabletop.training.settings import LmmSettings, TowerSettings
from flmm_tabletop.training.tower import WORDS, count_targets, fit_votes
from flmm_tabletop.training.turn_packer import IGNORED, TurnPacker, looking_targets
from flmm_tabletop.vision_tower import TabletopTower, TabletopTowerConfig

CPU = torch.device("cpu")
GROUPS = ((3, 20), (2, 28), (1, 42))
SETTINGS = LmmSettings(
    turns=GROUPS, hidden_size=96, layers=6, heads=4, head_size=32, intermediate_size=64, vocabulary=640
)  # fmt: skip
VISION = TabletopTowerConfig(words=WORDS, hidden_size=len(WORDS) + 32, stage_widths=[8, 16, 32], stage_blocks=[1, 1, 1])


@pytest.fixture(scope="module")
def tokenizer(samples):
    turns = [turn for sample in samples for turn in sample.turns]
    return build_tokenizer([*turns, *(replace(turn, question="How many mugs, lemons and boxes?") for turn in turns)], 640)


@pytest.fixture(scope="module")
def built(tokenizer):
    torch.manual_seed(0)
    return build_lmm(tokenizer, VISION, SETTINGS).eval()


@pytest.fixture
def model(built):
    """An LMM at its start; a test may change it."""
    return copy.deepcopy(built)


# --- the tower -------------------------------------------------------------------------------------------------------------


def test_the_votes_are_fitted_to_the_finished_cells(data, samples, tmp_path):
    torch.manual_seed(0)
    tower = TabletopTower(TabletopTowerConfig.from_dict({**VISION.to_dict(), "image_size": 64})).eval()
    tower.requires_grad_(False)
    tower.votes.requires_grad_(True)
    stages = {name: value.clone() for name, value in tower.stages.state_dict().items()}
    frames = load_frames(data, samples, 64)
    learnt = (frames, count_targets(samples, WORDS))
    settings = TowerSettings(data, data, vote_steps=150, vote_batch=8)
    fit_votes(tower, learnt, learnt, tmp_path / "fit", settings, LoopConfig(steps=2, learning_rate=1e-3))
    assert all(torch.equal(value, stages[name]) for name, value in tower.stages.state_dict().items())
    tower.save_pretrained(tmp_path / "tower")
    votes = load_votes(tmp_path / "votes", tmp_path / "tower", samples, frames, CPU)
    assert votes.shape == (8, 16, 24) and votes.dtype == np.float16
    counts = torch.from_numpy(votes.astype(np.float32)).logsumexp(1).exp().mean(0)
    assert float(counts[WORDS.index("object")]) == pytest.approx(2, abs=0.3)
    assert float(counts[WORDS.index("banana")]) < 0.2 < float(counts[WORDS.index("mug")])
    with torch.no_grad():
        again = AutoModel.from_pretrained(tmp_path / "tower").eval()
        seen = again(normalised(frames[2:3], CPU)).last_hidden_state
    assert torch.allclose(tower.features(torch.from_numpy(votes[2:3].astype(np.float32))), seen, atol=0.02)
    with pytest.raises(ValueError, match=r"manifest\.json: images: expected 7, got 8; delete .*votes to recreate them"):
        load_votes(tmp_path / "votes", tmp_path / "tower", samples[:7], frames, CPU)


# --- the start -------------------------------------------------------------------------------------------------------------


def test_the_defaults_are_the_shipped_architecture(tokenizer):
    shipped = LlavaForConditionalGeneration.from_pretrained(MODEL / "lmm")
    built = build_lmm(tokenizer, shipped.config.vision_config, LmmSettings())
    sizes = [
        {name: value.shape for name, value in m.state_dict().items() if "embed_tokens" not in name and "lm_head" not in name}
        for m in (shipped, built)
    ]
    assert sizes[0] == sizes[1] and tuple(shipped.config.vision_config.words) == WORDS
    text = (shipped.config.text_config, built.config.text_config)
    assert text[0].rope_parameters == text[1].rope_parameters and not built.config.text_config.tie_word_embeddings


@torch.no_grad()
def test_a_word_and_the_sight_of_it_are_alike(model, tokenizer):
    sights, spoken = [], []
    known = [word for word in WORDS if len(tokenizer(" " + word, add_special_tokens=False).input_ids) == 1]
    assert {"mug", "lemon", "box", "red", "green", "blue"} <= set(known)
    empty = model.model.multi_modal_projector(torch.zeros(1, 56))
    for word in known:
        cell = torch.zeros(1, 56)
        cell[0, WORDS.index(word)] = 3.0
        sights.append((model.model.multi_modal_projector(cell) - empty)[0])
        spoken.append(model.get_input_embeddings().weight[tokenizer(" " + word, add_special_tokens=False).input_ids[0]])
    alike = nn.functional.cosine_similarity(torch.stack(sights)[:, None], torch.stack(spoken)[None], dim=-1)
    assert (alike.argmax(1) == torch.arange(len(known))).all() and float(alike.diagonal().min()) > 0.4
    (plural,) = tokenizer(" mugs", add_special_tokens=False).input_ids
    plural = model.get_input_embeddings().weight[plural]
    assert float(nn.functional.cosine_similarity(plural, sights[known.index("mug")], 0)) > 0.4


@torch.no_grad()
def test_positions_pass_the_projector_unbent(model):
    cell = torch.zeros(3, 56)
    cell[:, 24:] = torch.randn(32)
    cell *= torch.tensor([[-1.0], [1.0], [2.0]])
    zero, projector = torch.zeros(1, 56), model.model.multi_modal_projector
    projector.linear_1.weight[24 + 64 :] = 0  # what starts at random may bend
    back, there, twice = projector(cell) - projector(zero)
    assert torch.allclose(back, -there, atol=1e-4) and torch.allclose(twice, 2 * there, atol=1e-4)
    assert float(there.norm()) > 0.5


def test_mimetic_heads_share_a_projection(model, tokenizer):
    slow = [i for i in range(32) if i % 16 >= 7]
    layers = model.model.language_model.layers
    (token,) = tokenizer(" mug", add_special_tokens=False).input_ids
    word = model.get_input_embeddings().weight[token].detach()
    for layer in layers:
        query, key = (p.weight.detach().unflatten(0, (4, 32)) for p in (layer.self_attn.q_proj, layer.self_attn.k_proj))
        shared = [torch.equal(query[head, slow], key[head, slow]) for head in range(4)]
        assert shared == ([False] * 4 if layer is layers[-1] else [True, True, True, False])
        assert not torch.equal(query[0], key[0])
        assert not layer.self_attn.o_proj.weight.any() and not layer.mlp.down_proj.weight.any()
        if shared[0]:
            rows = query[0, slow]
            assert torch.allclose(rows @ rows.T, 0.73**2 * torch.eye(18), atol=1e-4)
            assert float((rows @ word).norm()) > 0.73 * 0.4 * float(word.norm())  # the projection sees words
    assert all(p.requires_grad for p in model.model.language_model.parameters())


def test_too_narrow_for_the_tower(tokenizer):
    with pytest.raises(ValueError, match="expected a hidden size of at least 88 for the tower's channels, got 64"):
        build_lmm(tokenizer, VISION, replace(SETTINGS, hidden_size=64))


# --- where to look ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Where is the red mug?", [("red mug", "red", "mug")]),
        ("can you find the CUP", [("CUP", None, "mug")]),
        ("Is there a can left of the blue thing?", [("can", None, "can"), ("blue thing", "blue", "object")]),
        ("What can i see? two objects", []),
        (
            "The Green frying pan is near orange boxes.",
            [("Green frying pan", "green", "pan"), ("orange boxes", "orange", "box")],
        ),
        ("a frying pan, cancan, the mug is red", [("frying pan", None, "pan"), ("mug", None, "mug")]),
    ],
)
def test_names(text, names):
    assert [(text[n.start : n.end], n.color, n.kind) for n in find_names(text)] == names


def cells(**votes):
    """Votes ``[4, words]`` of an image: almost nothing but the given log-counts of each of the four cells."""
    given = torch.full((4, len(WORDS)), -12.0)
    for word, values in votes.items():
        given[:, WORDS.index(word)] = torch.tensor(values).log()
    return given


def test_where_to_look():
    mug, red = [1e-6, 0.6, 0.3, 1e-6], [0.2, 0.15, 1e-6, 1e-6]
    votes = cells(mug=mug, red=red, ball=[0.1, 0.1, 1e-6, 1e-6])
    assert torch.allclose(
        looking_share(Name(0, 3, None, "mug"), votes, WORDS), torch.tensor([0, 0, 2 / 3, 1 / 3, 0]), atol=1e-4
    )
    mass = (torch.tensor(mug) * torch.tensor(red)).sqrt()
    expected = torch.cat([torch.zeros(1), mass / mass.sum()])
    assert float(mass.sum()) < 0.35 and looking_share(Name(0, 7, "red", "mug"), votes, WORDS) is None
    votes[:, WORDS.index("red")] += 1.0
    assert torch.allclose(looking_share(Name(0, 7, "red", "mug"), votes, WORDS), expected, atol=1e-4)
    assert looking_share(Name(0, 4, None, "ball"), votes, WORDS) is None  # 0.2: who knows
    assert looking_share(Name(0, 3, None, "pan"), votes, WORDS).tolist() == [1, 0, 0, 0, 0]


def test_looking_loss_by_hand():
    attention = torch.full((2, 3, 6), 0.1)
    attention[1, 2] = torch.tensor([0.2, 0.1, 0.0, 0.4, 0.1, 0.0])  # first token, one more, four cells
    targets = LookingTargets(torch.tensor([[1, 2], [0, 0]]), torch.tensor([[0, 0, 0.5, 0.5, 0], [1.0, 0, 0, 0, 0]]))
    total, terms = looking_loss({1: attention, 3: attention}, targets)
    by_hand = -2 * (0.5 * np.log(0.4) + 0.5 * np.log(0.1) + np.log(0.1))
    assert terms == 4 and float(total) == pytest.approx(by_hand, abs=1e-3)
    assert looking_loss({}, targets) == (torch.zeros(()), 0)


# --- packing ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed(data, samples, built, tokenizer):
    """Two images' turns, packed, with votes of a random tower."""
    packer = TurnPacker(tokenizer, image_tokens=256, groups=GROUPS)
    encoded = [packer.encode(sample.turns) for sample in samples[:2]]
    batch = packer.pack(encoded, np.random.default_rng(0))
    pixels = normalised(load_frames(data, samples, 256)[:2], CPU)
    with torch.no_grad():
        votes = built.model.vision_tower.votes(built.model.vision_tower.content(pixels))
    return packer, batch, pixels, votes


def test_a_packed_turn_is_the_prompt_of_the_family(packed, samples, tokenizer):
    packer, batch, *_ = packed
    turns = {(turn.question, turn.answer) for turn in samples[0].turns}
    placed = [place for place in batch.turns if place.image == 0]
    assert len(placed) >= 4
    for place in placed:
        text = tokenizer.decode(place.turn.ids)
        question, answer = text.split(" ASSISTANT:")
        assert (question.strip(), answer.removeprefix(" ").removesuffix("</s>")) in turns
        assert tokenizer.decode(place.turn.ids[place.turn.answer :]) == answer
        labels = batch.labels[0, place.predicting]
        assert labels.tolist() == place.turn.ids[place.turn.answer :].tolist()
        assert (batch.ids[0, place.start : place.start + len(place.turn.ids)] == torch.from_numpy(place.turn.ids)).all()
    full = tokenizer(f"USER: <image>\n{placed[0].turn.kind} ASSISTANT:").input_ids
    assert tuple(full[: len(packer.before_image)]) == packer.before_image
    assert (batch.labels != IGNORED).sum() == sum(len(p.turn.ids) - p.turn.answer for p in batch.turns)


def test_turns_go_where_they_fit_most_closely(tokenizer, samples):
    packer = TurnPacker(tokenizer, image_tokens=4, groups=((2, 12), (1, 30)))
    turns = packer.encode([Turn("talk", "hi", "hi", ())] * 5 + [Turn("where", "x" * 10, "y " * 4, ())] * 3)
    short, long = len(turns[0].ids), len(turns[-1].ids)
    assert short <= 12 < long <= 30
    batch = packer.pack([turns, turns[:1]], np.random.default_rng(0))
    assert [(p.image, p.start, len(p.turn.ids)) for p in batch.turns] == [
        (0, 0, short),
        (0, 12, short),
        (0, 24, long),
        (1, 0, short),
    ]
    assert batch.ids.shape == (2, 54)


def test_only_right_answers_are_learnt_and_one_list_of_names(tokenizer):
    packer = TurnPacker(tokenizer, image_tokens=4, groups=((6, 60),))
    kinds = (MISTAKE, REFER_ABSENT, REFER, "where", REFER)
    encoded = packer.encode([Turn(kind, "Where?", "the mug.", ()) for kind in kinds])
    assert [turn.kind for turn in encoded] == [REFER, "where", REFER]
    assert packer.encode([Turn(MISTAKE, "Where?", "the mug.", ())]) == []
    batch = packer.pack([encoded], np.random.default_rng(0))
    assert sorted(place.turn.kind for place in batch.turns) == [REFER, "where"]


def test_names_are_found_among_tokens(tokenizer):
    packer = TurnPacker(tokenizer, image_tokens=4, groups=((2, 60),))
    (turn,) = packer.encode([Turn("where", "Where is the RED MUG?", "The red mug is on the left.", ())])
    asked, answered = turn.names
    assert asked.before is None and asked.last < turn.answer
    assert tokenizer.decode(turn.ids[: asked.last + 1]).endswith("RED MUG")
    assert tokenizer.decode(turn.ids[: answered.last + 1]).endswith("The red mug")
    assert tokenizer.decode(turn.ids[: answered.before + 1]).endswith("The")
    batch = packer.pack([[turn]], np.random.default_rng(0))
    votes = cells(red=[1.0, 1e-6, 1e-6, 1e-6], mug=[1.0, 1e-6, 1e-6, 1e-6])[None]
    assert looking_targets(batch, votes, WORDS, ahead=False).at.tolist() == [[0, asked.last], [0, answered.last]]
    assert looking_targets(batch, votes, WORDS, ahead=True).at.tolist() == [[0, answered.before]]
    absent = looking_targets(batch, cells()[None], WORDS, ahead=False)
    assert absent.share[:, 0].tolist() == [1, 1] and absent.at.shape == (2, 2)
    none = looking_targets(batch, cells()[None], WORDS, ahead=True)
    assert none.at.shape == (0, 2) and none.share.shape == (0, 5)


@torch.no_grad()
def test_packed_attention_is_causal_attention_of_each_turn(model, packed):
    packer, batch, pixels, votes = packed
    for layer in model.model.language_model.layers:  # else the layers would add nothing yet
        layer.self_attn.o_proj.weight.normal_(std=0.05)
    model.set_attn_implementation({"text_config": packed_turns.NAME})
    watched = WatchedHeads({0: 1, 4: 2})
    together = model.lm_head(hidden_states(model, packer, votes, batch, watched))
    answer, _ = lmm_losses(model, packer, votes, batch)
    model.set_attn_implementation({"text_config": "eager"})
    total = weight = 0.0
    for place in batch.turns:
        ids = [*packer.before_image, *[model.config.image_token_id] * 256, *place.turn.ids]
        alone = model(
            input_ids=torch.tensor([ids]), pixel_values=pixels[place.image, None], output_attentions=True
        )  # fmt: skip
        tokens = slice(place.start, place.start + len(place.turn.ids))
        logits = alone.logits[0, -len(place.turn.ids) :]
        assert torch.allclose(together[place.image, tokens], logits, atol=1e-4)
        for layer, head in watched.heads.items():
            expected = alone.attentions[layer][0, head, -len(place.turn.ids) :, : batch.packing.prefix]
            assert torch.allclose(watched.seen[layer][place.image, tokens], expected, atol=1e-5)
        targets = torch.from_numpy(place.turn.ids[place.turn.answer :])
        factor = KIND_WEIGHTS.get(place.turn.kind, 1.0)
        total += factor * float(nn.functional.cross_entropy(logits[place.turn.answer - 1 : -1], targets, reduction="sum"))
        weight += factor * len(targets)
    assert float(answer) == pytest.approx(total / weight, rel=1e-4)


def test_positions_continue_the_prefix():
    packing = Packing(3, ((2, 2), (1, 4)))
    assert packing.length == 11
    assert packing.positions(CPU).tolist() == [[0, 1, 2, 3, 4, 3, 4, 3, 4, 5, 6]]


# --- steps -----------------------------------------------------------------------------------------------------------------


def test_muon_is_that_of_torch():
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 24 * 40).view(24, 40).clone()) for _ in range(2))
    pair = (
        Muon([ours], lr=0.1, weight_decay=0.5),
        torch.optim.Muon([theirs], lr=0.1, weight_decay=0.5, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(3):
        gradient = torch.randn(24, 40)
        for matrix, optimizer in zip((ours, theirs), pair, strict=True):
            matrix.grad = gradient.clone()
            optimizer.step()
    assert torch.allclose(ours, theirs, atol=0.01)
    values = torch.linalg.svdvals(orthogonalised(torch.randn(40, 24)))
    assert float(values.min()) > 0.6 and float(values.max()) < 1.3
    with pytest.raises(ValueError, match=r"expected matrices, got a parameter of shape \(3,\)"):
        Muon([nn.Parameter(torch.zeros(3))], lr=0.1, weight_decay=0.0)


def test_each_weight_has_one_optimizer(model):
    model.model.vision_tower.requires_grad_(False)
    muon, adam = lmm_optimizers(model, SETTINGS, LmmSettings.LOOP)
    stepped = [id(p) for optimizer in (muon, adam) for group in optimizer.param_groups for p in group["params"]]
    assert len(stepped) == len(set(stepped)) and set(stepped) == {id(p) for p in model.parameters() if p.requires_grad}
    assert sum(len(group["params"]) for group in muon.param_groups) == 7 * 6
    (held,) = [g for g in adam.param_groups if any(p is model.get_input_embeddings().weight for p in g["params"])]
    assert (held["lr"], held["weight_decay"]) == (4e-3, 0.0) and muon.param_groups[0]["lr"] == 4e-3
    assert {(g["lr"], g["weight_decay"]) for g in adam.param_groups} == {(2e-3, 0.05), (2e-3, 0.0), (4e-3, 0.0)}


def test_a_few_steps_teach_to_look_and_to_answer(model, packed):
    packer, batch, _, _ = packed
    torch.manual_seed(0)
    model.set_attn_implementation({"text_config": packed_turns.NAME})
    votes = torch.full((2, 256, 24), -12.0)
    for column in range(24):
        votes[0, column * 3, column] = votes[1, 200 - column * 3, column] = 0.5
    optimizers = lmm_optimizers(model, SETTINGS, LmmSettings.LOOP)
    losses = []
    for _ in range(8):
        answer, looking = lmm_losses(model, packer, votes, batch)
        losses.append((answer.item(), looking.item()))
        model.zero_grad()
        (answer + looking).backward()
        for optimizer in optimizers:
            optimizer.step()
    assert losses[-1][0] < 0.75 * losses[0][0] and losses[-1][1] < 0.9 * losses[0][1]
