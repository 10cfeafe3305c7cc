"""What the tests of families share whose models and processors are those of transformers."""

from pathlib import Path

from tiny_models import TEXTS, random_image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from flmm_core.lmm.frozen_lmm import FrozenLmm

TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 4096, "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3,
}  # fmt: skip
"""Of a decoder, but for its layers."""
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3}


def words(*special: str, start: str = "<s>", begins: bool = True, **named: str) -> PreTrainedTokenizerFast:
    """A tokenizer with a family's markers.

    Args:
        special: markers.
        start: first token of a text.
        begins: whether the tokenizer writes it by itself.
        named: markers that the tokenizer knows by a name, for instance ``image_token``.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    markers = ["<unk>", start, "</s>", "<pad>", *special, *named.values()]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    texts = [*TEXTS, "\n\n\n user\n\n"]
    core.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=400, special_tokens=markers, initial_alphabet=alphabet))
    if begins:
        core.post_processor = processors.TemplateProcessing(single=f"{start} $A", special_tokens=[(start, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=start, eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
        additional_special_tokens=list(special), extra_special_tokens=named,
    )  # fmt: skip


def save(folder: Path, model, tokenizer, image_processor, template: str | None = None) -> Path:
    """A checkpoint as people have them."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor.save_pretrained(folder)
    if template:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def turn(text: str, images: int = 1):
    """A user's turn as chat templates take it."""
    return [{"role": "user", "content": [{"type": "image"}] * images + [{"type": "text", "text": text}]}]


def check_turns(lmm: FrozenLmm, template: str, *, kept: tuple[str, str] = ("", "")) -> None:
    """Later turns of a conversation are those of the chat template, from the first question's end on.

    Args:
        lmm: of the family.
        template: renders a whole conversation.
        kept: how the template begins an answer that was given, and how the model began it when it gave it: that is what it
            reads again, where the two differ.
    """
    said = [{"role": "assistant", "content": [{"type": "text", "text": "a red mug"}]}]
    later = {"add_generation_prompt": True, "enable_thinking": False, "tokenize": False}
    chat = [*turn("what is it?"), *said, *turn("where is it?", images=0), *said, *turn("why?", images=0)]
    theirs = lmm.words.tokenizer.apply_chat_template(chat, chat_template=template, **later)
    layouts = lmm.family.prepare([random_image(64, 64)]).layouts
    history = [("what is it?", "a red mug"), ("where is it?", "a red mug")]
    ours = lmm.words.prompt_text("why?", layouts, chat=True, history=history)
    if kept[0]:
        theirs = theirs.replace(kept[0] + "a red mug", kept[1] + "a red mug")
    assert ours.split("what is it?")[1] == theirs.split("what is it?")[1]
