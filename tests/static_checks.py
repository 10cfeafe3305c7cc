"""Decoding in static shapes gives what decoding gives; run here pass by pass, as there is no GPU to capture a graph."""

import torch

from flmm_core.lmm.cuda_graphs import StaticDecoder, allows_static_decoding
from flmm_core.lmm.frozen_lmm import FrozenLmm

QUESTIONS = ("where is the lemon?", "a")


def check_static(lmm: FrozenLmm, images, *, tokens: int = 6) -> None:
    """Ids, mixed states and maps of a model that allows it; one step serves several commands."""
    if not allows_static_decoding(lmm.model):
        return
    static = FrozenLmm(
        model=lmm.model,
        tokenizer=lmm.words.tokenizer,
        family=lmm.family,
        reuse_prefix=lmm.decoder.reuse_prefix,
        cuda_graphs=False,
    )
    decoder = static.decoder.static = StaticDecoder(lmm.model)
    layer_weights = torch.rand(2, lmm.shape.layers)
    for _ in range(2):
        encoded, other = lmm.encode_images(images), static.encode_images(images)
        for question in QUESTIONS:
            expected = lmm.generate(encoded, question, max_new_tokens=tokens, layer_weights=layer_weights)
            got = static.generate(other, question, max_new_tokens=tokens, layer_weights=layer_weights)
            assert got.token_ids == expected.token_ids and got.ended == expected.ended
            if not got.token_ids:
                continue
            torch.testing.assert_close(got.states, expected.states, atol=1e-4, rtol=1e-4)
            spans = [(0, 1), (0, len(got.token_ids))]
            for i in range(len(images)):
                maps = got.merged_attention(spans, image=i)
                torch.testing.assert_close(maps, expected.merged_attention(spans, image=i), atol=1e-5, rtol=0)
            assert decoder._usable and (decoder._step is not None or len(got.token_ids) <= 1)
