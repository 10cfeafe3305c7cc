"""The presence score: a phrase is as present as its least present token, by its words and by where it looks."""

import pytest
import torch
from tiny_models import tiny_heads

from flmm_core.heads.presence import PresenceHead


@pytest.fixture
def presence():
    torch.manual_seed(0)
    return PresenceHead(3, 8, 4)


@torch.no_grad()
def test_one_absent_token_makes_the_phrase_absent(presence):
    states, maps = torch.randn(4, 8), torch.rand(1, 4, 5, 6)
    each = torch.cat([presence([states[i : i + 1]], maps) for i in range(4)])
    together = presence([states], maps)
    assert together.item() == pytest.approx(-torch.logsumexp(-each, 0).item(), abs=1e-5)
    assert together.item() <= each.min().item()


@torch.no_grad()
def test_each_phrase_has_its_own_words_and_map(presence):
    states, maps = [torch.randn(n, 8) for n in (1, 3, 2)], torch.rand(3, 4, 5, 6)
    together = presence(states, maps)
    alone = torch.cat([presence([tokens], maps[i : i + 1]) for i, tokens in enumerate(states)])
    assert together.shape == (3,) and torch.allclose(together, alone, atol=1e-6)
    assert not torch.allclose(presence(states, maps.flip(0)), together, atol=1e-3)  # it looks
    assert not torch.allclose(presence([-tokens for tokens in states], maps), together, atol=1e-3)  # and it reads


@torch.no_grad()
def test_nothing_to_judge_and_no_attention_at_all(presence):
    assert presence([], torch.zeros(0, 4, 5, 6)).shape == (0,)
    assert presence([torch.zeros(1, 8)], torch.zeros(1, 4, 5, 6)).isfinite().all()


@torch.no_grad()
def test_heads_may_be_without_a_presence_score():
    states, maps = [torch.randn(3, 2, 32)] * 2, torch.rand(2, 12, 4, 4)
    assert tiny_heads(presence=False).presence_logits(states, maps) is None
    logits = tiny_heads().presence_logits(states, maps)
    assert logits.shape == (2,) and logits.isfinite().all()
