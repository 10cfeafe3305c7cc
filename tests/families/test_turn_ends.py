"""Answers end with the assistant's turn, whichever end tokens a checkpoint's files name."""

import json

import hugging_face_models
import pytest
import test_smolvlm
import torch
from tiny_models import random_image
from tiny_qwen import save_qwen

from flmm_core.families import Checkpoint
from flmm_core.lmm.frozen_lmm import FrozenLmm
from flmm_core.lmm.generation_settings import first_mark

TURN = (
    "{% for m in messages %}{{ m['role'] }}: {% for p in m['content'] %}{{ p['text'] if p['type'] == 'text' else '<image>' }}"
)
ENDINGS = {
    "mark": (TURN + "{% endfor %}<|im_end|>\n{% endfor %}", "<|im_end|>"),
    "tokenizer's": (TURN + "{% endfor %} {{ eos_token }}\n{% endfor %}", "</s>"),
    "of plain text": ("{% for m in messages %}{{ m['content'] + '<|im_end|>' }}{% endfor %}", "<|im_end|>"),
    "next turn": (TURN.replace("{{ m['role'] }}: ", "<|{{ m['role'] }}|>") + "{% endfor %}\n{% endfor %}", "<|user|>"),
    "words": (TURN + "{% endfor %}\n{% endfor %}", None),
    "cannot be rendered": ("{{ messages[9]['content'] }}", None),
}


@pytest.mark.parametrize("kind", ENDINGS)
def test_the_template_says_which_token_ends_an_answer(kind, tmp_path):
    template, end = ENDINGS[kind]
    (tmp_path / "chat_template.jinja").write_text(template)
    known = hugging_face_models.words("<image>", "<|im_end|>", "<|im_end|>x", "<|user|>")
    found = first_mark(known, Checkpoint(tmp_path).turn_end("</s>"))
    assert found == (None if end is None else known.convert_tokens_to_ids(end))


@pytest.mark.parametrize("kind", ["qwen3_5", "smolvlm"])
def test_without_a_generation_config_answers_end_with_the_turn(kind, tmp_path):
    """As Qwen3.5 and SmolVLM, whose config.json names another end token."""
    folder = save_qwen(tmp_path, kind) if kind == "qwen3_5" else test_smolvlm.save(tmp_path, kind)
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 5
    (folder / "config.json").write_text(json.dumps(config))
    lmm = FrozenLmm.from_pretrained(folder)
    mark = lmm.words.tokenizer.convert_tokens_to_ids("<|im_end|>" if kind == "qwen3_5" else "<end_of_utterance>")
    assert lmm.model.generation_config.eos_token_id == [5, mark] and mark not in (5, lmm.words.tokenizer.unk_token_id)
    with torch.no_grad():  # the model writes its turn's end at once
        lmm.model.get_output_embeddings().weight.zero_()
        lmm.model.get_output_embeddings().weight[mark] = 1.0
        lmm.model.get_output_embeddings().register_forward_hook(lambda _, __, scores: scores.abs())
    trace = lmm.generate(lmm.encode_image(random_image()), "where is the lemon?", max_new_tokens=4)
    assert trace.ended and trace.token_ids == ()
