"""What holds for every family; each family's tests call these with a tiny random model of its kind."""

import copy

import torch
from family_checks import check_batch, with_prefix
from static_checks import check_static

from flmm_core.lmm.frozen_lmm import FrozenLmm

QUESTION, ANSWER = "where is the lemon?", "The yellow lemon is left of the can."


def plain_model(lmm: FrozenLmm, attention: str):
    """A copy of the model without the recorder."""
    model = copy.deepcopy(lmm.model)
    text = model.config.get_text_config()
    names = [name for name in model.config.sub_configs if getattr(model.config, name, None) is text]
    model.set_attn_implementation({names[0]: attention} if names else attention)
    return model


def check_rows(lmm: FrozenLmm, images, *, tolerance: float = 1e-5) -> None:
    """What is captured, read or written, with and without the cached prefix, is eager attention of layers that give maps."""
    eager = plain_model(lmm, "eager")
    for one in (with_prefix(lmm, False), with_prefix(lmm, True)):
        encoded = one.encode_images(images)
        for chat in (False, True):
            written = one.generate(encoded, QUESTION, max_new_tokens=5) if chat else None
            trace = written or one.teacher_force(encoded, QUESTION, ANSWER)
            prompt = one.words.prompt_tokens(QUESTION, encoded.layouts, chat=chat)
            ids = torch.tensor([[*prompt.ids, *trace.token_ids]])
            with torch.no_grad():
                inputs = one.family.model_inputs(eager, ids, encoded.features)
                attentions = eager(**inputs, cache=one.family.new_cache(eager), output_attentions=True).attentions
            assert [layer.layer for layer in trace.attention.layers] == list(one.decoder.map_layers)
            for i, layer in enumerate(one.decoder.map_layers):
                got = trace.attention.rows(i, range(len(trace.token_ids)), torch.arange(ids.shape[1]))
                expected = attentions[layer][0, :, len(prompt.ids) :]
                torch.testing.assert_close(got, expected, atol=tolerance, rtol=0)
            spans = [(0, 1), (0, len(trace.token_ids))]
            for i, layout in enumerate(encoded.layouts):
                maps = trace.merged_attention(spans, image=i)
                grid = (layout.geometry.grid_height, layout.geometry.grid_width)
                assert maps.shape == (2, one.shape.channels, *grid)
                assert trace.merged_attention([], image=i).shape == (0, one.shape.channels, *grid)
                assert maps.std() > 0
        check_batch(one, encoded, tolerance=tolerance)
        check_static(one, images)


def check_greedy(lmm: FrozenLmm, images, *, questions=(QUESTION, "a"), tokens: int = 8) -> None:
    """Ids are those of ``model.generate`` without this project, from the same inputs."""
    plain = plain_model(lmm, "sdpa")
    for reuse in (False, True):
        one = with_prefix(lmm, reuse)
        encoded = one.encode_images(images)
        for question in questions:
            ids = torch.tensor([one.words.prompt_tokens(question, encoded.layouts, chat=True).ids])
            with torch.no_grad():
                inputs = one.family.model_inputs(plain, ids, encoded.features)
                inputs.pop("input_ids", None)
                expected = plain.generate(
                    ids, attention_mask=torch.ones_like(ids), **inputs, do_sample=False, max_new_tokens=tokens
                )[0, ids.shape[1] :].tolist()
            trace = one.generate(encoded, question, max_new_tokens=tokens)
            assert list(trace.token_ids) == (expected[:-1] if trace.ended else expected)


def cells(layout, columns, *, layers: int = 1, heads: int = 1) -> torch.Tensor:
    """How much each cell of a layout's maps ``[c, h, w]`` takes from the given columns, where each gives 1."""
    rows = torch.zeros(layers, heads, 1, len(layout.ids))
    rows[..., list(columns)] = 1
    return layout.maps(rows)[0]


def changed_columns(lmm: FrozenLmm, encoded, features) -> list[int]:
    """Columns of the first image whose embeddings change when the image's features are replaced, counted from its first."""
    prompt = lmm.words.prompt_tokens(QUESTION, encoded.layouts)
    ids = torch.tensor([prompt.ids])
    seen = []
    text = lmm.model.get_decoder() if hasattr(lmm.model, "get_decoder") else lmm.model
    layer = next(module for name, module in text.named_modules() if name.endswith("layers.0"))
    hook = layer.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    with torch.no_grad():
        for own in (encoded.features, features):
            lmm.model(**lmm.family.model_inputs(lmm.model, ids, own))
    hook.remove()
    start, count = prompt.image_starts[0], len(encoded.layouts[0].ids)
    differs = (seen[0] != seen[1]).any(dim=-1)[0]
    assert not differs[:start].any() and not differs[start + count :].any()
    return differs[start : start + count].nonzero().flatten().tolist()
