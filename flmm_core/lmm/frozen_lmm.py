"""The frozen LMM: an image is encoded once, then answers about it are generated or read.

Nothing in the model changes: weights need no gradient, the attention recorder only looks on, and generation is
``model.generate`` itself. This file knows sequences and caches; what is special to a model is in its family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from flmm_core import config
from flmm_core.common.tensor_memory import tensor_bytes
from flmm_core.config import GroundingConfig
from flmm_core.errors import CommandError
from flmm_core.families import Checkpoint, LmmFamily, LmmShape, LoadedLmm, family_of
from flmm_core.families.load_options import LoadOptions
from flmm_core.lmm import attention_recorder
from flmm_core.lmm.attention_recorder import AttentionRecorder, RecordedAttention
from flmm_core.lmm.cuda_graphs import StaticDecoder, allows_static_decoding
from flmm_core.lmm.encoded_image import EncodedImage, Prefix, can_be_cut, crop_cache, fork_cache, stack_left_padded
from flmm_core.lmm.hidden_states import StateMixer, mixing
from flmm_core.lmm.streaming import CancelCriteria, LengthCriteria, TokenStreamer
from flmm_core.lmm.tokens import AnswerTokens, Exchange, LmmWords, PromptTokens
from flmm_core.lmm.trace import LmmTrace
from flmm_core.types import KeywordSpan

_COPIES = 2**29
"""Bytes for copies of an image's keys and values, where several answers are read at once."""


def lmm_shape(source: str | Path) -> LmmShape:
    """Numbers of an LMM from the config of a folder or a Hugging Face name, without its weights."""
    checkpoint = Checkpoint(source)
    family = family_of(checkpoint)
    return family.shape(family.text_config(checkpoint))


def load_plain(
    source: str | Path,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    quantization: str = "none",
    settings: Mapping[str, Any] | None = None,
) -> LoadedLmm:
    """An LMM as transformers loads it, without the recorder; arguments as of :meth:`FrozenLmm.from_pretrained`."""
    checkpoint = Checkpoint(source, settings)
    family = family_of(checkpoint)
    if unknown := sorted(set(checkpoint.settings) - set(family.settings)):
        raise ValueError(f"settings: expected some of {sorted(family.settings)}, got {', '.join(unknown)}")
    how = LoadOptions(dtype, device, quantization)
    if quantization != "none" and not family.quantizes:
        kind = family.model_type
        raise ValueError(f"quantization: expected none for {kind}, which does not load with fewer bits, got {quantization}")
    loaded = family.load(checkpoint, how)
    if quantization == "none":
        loaded.model.to(device)  # type: ignore[arg-type]
    return loaded


@dataclass(frozen=True)
class Question:
    """What an answer is to be generated for; :meth:`FrozenLmm.question` makes it."""

    image: EncodedImage
    prompt: PromptTokens
    max_new_tokens: int
    on_text: Callable[[str], None] | None = None
    on_trace: Callable[[LmmTrace], None] | None = None
    cancelled: Callable[[], bool] | None = None


class FrozenLmm:
    """An LMM of one of the families, in evaluation mode, with the attention recorder installed."""

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        family: LmmFamily,
        refer_prompt: str = GroundingConfig.refer_prompt,
        reuse_prefix: bool = GroundingConfig.reuse_prefix,
        cuda_graphs: bool = GroundingConfig.cuda_graphs,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.words = LmmWords(tokenizer=tokenizer, family=family)
        self.family = family
        self.refer_prompt = refer_prompt
        self.reuse_prefix = reuse_prefix and family.reuses_prefix
        attention_recorder.install(model)
        text: Any = model.config.get_text_config()
        self.shape = family.shape(text)
        self.map_layers = family.map_layers(text)
        self._static: StaticDecoder | None = None
        if cuda_graphs and model.device.type == "cuda" and allows_static_decoding(model):
            self._static = StaticDecoder(model)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        quantization: str = "none",
        settings: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> FrozenLmm:
        """Load from a folder or a Hugging Face name.

        Args:
            source: folder or name.
            device: where the model goes.
            dtype: number format of the model.
            quantization: of the decoder's matrices: none, int8 or int4.
            settings: in place of the family's ``settings``, which the checkpoint's files do not say.
            options: ``refer_prompt``, ``reuse_prefix`` and ``cuda_graphs``.
        """
        loaded = load_plain(source, device=device, dtype=dtype, quantization=quantization, settings=settings)
        return cls(model=loaded.model, tokenizer=loaded.tokenizer, family=loaded.family, **options)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def encode_image(self, image: Image.Image) -> EncodedImage:
        """Encode the one image of the prompts to come; see :meth:`encode_images`."""
        return self.encode_images([image])

    @torch.no_grad()
    def encode_images(self, images: Sequence[Image.Image]) -> EncodedImage:
        """Run the vision tower.

        Args:
            images: RGB, in the order of the prompt. Each keeps columns and maps of its own.
        """
        prepared = self.family.prepare(images)
        return EncodedImage(prepared.layouts, self.family.encode(self.model, prepared))

    @torch.no_grad()
    def read_prefix(self, image: EncodedImage, prompt: PromptTokens) -> Prefix | None:
        """Run the decoder over a prompt up to its last image's end, once for each beginning; the image keeps the result.

        Returns:
            None if images are read anew each time.
        """
        if not self.reuse_prefix:
            return None
        ids = _beginning_ids(image, prompt)
        if ids not in image.prefixes:
            inputs = self.family.model_inputs(self.model, self._tensor(ids), image.features)
            output = self.model(**inputs, cache=self.family.new_cache(self.model), use_cache=True, logits_to_keep=1)
            image.prefixes[ids] = Prefix(ids, output.cache, self.family.model_state(self.model))
        return image.prefixes[ids]

    def question(
        self,
        image: EncodedImage,
        text: str,
        *,
        max_new_tokens: int = GroundingConfig.max_new_tokens,
        history: Sequence[Exchange] = (),
        on_text: Callable[[str], None] | None = None,
        on_trace: Callable[[LmmTrace], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Question:
        """What :meth:`generate_batch` answers; checked here, so that one that cannot be answered stops no other.

        Args:
            image: from :meth:`encode_image`.
            text: the user's words.
            max_new_tokens: longest answer.
            history: questions about the image and their answers before this one, the oldest first.
            on_text: called with the whole answer so far after each token.
            on_trace: called with the trace of the answer so far after each token; with it, none is decoded in static shapes.
            cancelled: asked after each token; once it says yes the answer ends there.

        Raises:
            CommandError: ``text`` holds special tokens, or more than the context.
        """
        config.check("max_new_tokens", max_new_tokens)
        prompt = self.words.prompt_tokens(text, image.layouts, chat=True, history=history)
        self._check_length(len(prompt.ids), image.image_tokens, max_new_tokens)
        return Question(image, prompt, max_new_tokens, on_text, on_trace, cancelled)

    def generate(self, image: EncodedImage, text: str, *, layer_weights: Tensor | None = None, **options: Any) -> LmmTrace:
        """Answer greedily, with the same token ids that ``model.generate`` gives without us.

        Args:
            image: from :meth:`encode_image`.
            text: the user's words.
            layer_weights: ``[k, l]`` float32, mixtures of hidden states to keep; None for each layer by itself.
            options: the others of :meth:`question`, which says what is refused.
        """
        return self._generate_alone(self.question(image, text, **options), layer_weights)

    @torch.no_grad()
    def _generate_alone(self, question: Question, layer_weights: Tensor | None) -> LmmTrace:
        image, prompt, ids = question.image, question.prompt, question.prompt.ids
        most, kept = question.max_new_tokens, layer_weights is not None and question.on_trace is None
        cache, inputs = self._start(image, prompt, ids)
        with (
            self._keeping(image, prompt, cache),
            self._record(start=len(ids), cache=cache) as recorder,
            self._mixing(len(ids), cache, layer_weights) as mixer,
            self._decoding(cache, recorder, mixer, len(ids) + most, kept=kept),
        ):
            output = self.model.generate(
                self._tensor(ids),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=self.device),
                cache=cache,
                **{name: value for name, value in inputs.items() if name != "input_ids"},
                do_sample=False,
                max_new_tokens=most,
                return_dict_in_generate=True,
                streamer=self._streamer([question], recorder, mixer),
                stopping_criteria=_criteria([question]),
            )
            emitted = output.sequences[0, len(ids) :].tolist()
            if emitted and emitted[-1] not in self._end_ids():
                # At the length limit the last word was never fed back. Feed it, so that its row exists too.
                self.model(input_ids=self._tensor(emitted[-1:]), cache=output.cache, use_cache=True)
        return self._answers([question], [emitted], recorder, mixer)[0]

    @property
    def can_batch(self) -> bool:
        """Whether several answers may be written in one batch: not where images look at words, nor where layers are linear."""
        return self.family.reuses_prefix and self.family.reads_batches

    @torch.no_grad()
    def generate_batch(self, questions: Sequence[Question], *, layer_weights: Tensor | None = None) -> tuple[LmmTrace, ...]:
        """Answer several questions about any images, each as :meth:`generate` does but for rounding, in one batch if it may.

        Prompts are read one by one; then each step of the decoder writes one token of every answer. Static shapes are not used.

        Args:
            questions: from :meth:`question`.
            layer_weights: as for :meth:`generate`.
        """
        if len(questions) < 2 or not self.can_batch:
            return tuple(self._generate_alone(question, layer_weights) for question in questions)
        caches, states = zip(*(self._read_up_to_last(question) for question in questions), strict=True)
        cache, start = stack_left_padded(caches), max(len(question.prompt.ids) for question in questions)
        self.family.restore_state(self.model, None if states[0] is None else torch.cat(states))
        # Padding repeats the sequence's first token: penalties on what was said already see nothing new.
        paddings = [start - len(question.prompt.ids) for question in questions]
        ids = [padding * q.prompt.ids[:1] + q.prompt.ids for padding, q in zip(paddings, questions, strict=True)]
        # One token more than is wanted: then the last one that is wanted was fed back, and has a row.
        ends = torch.tensor([start + question.max_new_tokens + 1 for question in questions], device=self.device)
        with self._record(start=start, cache=cache) as recorder, self._mixing(start, cache, layer_weights) as mixer:
            output = self.model.generate(
                self._tensor(*ids),
                attention_mask=self._tensor(*([0] * padding + [1] * (start - padding) for padding in paddings)),
                cache=cache,
                do_sample=False,
                max_length=int(ends.max()),
                return_dict_in_generate=True,
                streamer=self._streamer(questions, recorder, mixer),
                stopping_criteria=_criteria(questions, LengthCriteria(ends)),
            )
        return self._answers(questions, output.sequences[:, start:].tolist(), recorder, mixer)

    def _read_up_to_last(self, question: Question) -> tuple[DynamicCache, Any]:
        """Keys and values of a prompt but for its last token, and what the model itself keeps of it."""
        image, prompt, ids = question.image, question.prompt, question.prompt.ids[:-1]
        cache, inputs = self._start(image, prompt, ids)
        with self._keeping(image, prompt, cache):
            if inputs or cache.get_seq_length() < len(ids):
                self.model(**(inputs or self._rest([ids], cache)), cache=cache, use_cache=True, logits_to_keep=1)
        return cache, self.family.model_state(self.model)

    def _streamer(self, questions: Sequence[Question], recorder: AttentionRecorder, mixer: StateMixer) -> TokenStreamer | None:
        """Shows answers as they are written; None if nobody looks, as every token's text costs time."""
        if not any(question.on_text or question.on_trace for question in questions):
            return None

        def look(emitted: Sequence[Sequence[int]]) -> None:
            for i, (question, ids) in enumerate(zip(questions, emitted, strict=True)):
                own, _ = self._cut(question, ids)
                if question.on_text and len(own) == len(ids):
                    question.on_text(self.words.decode(own).strip())
                if question.on_trace and len(own) == len(ids) > 1:  # the last token was not read yet, and has no row
                    before = [ids[:-1] for ids in emitted]
                    question.on_trace(self._answers(questions, before, recorder, mixer)[i])

        return TokenStreamer(look)

    def _cut(self, question: Question, emitted: Sequence[int]) -> tuple[Sequence[int], bool]:
        """What belongs to the answer, without the end token, and whether the LMM ended it itself."""
        ends = self._end_ids()
        wanted = emitted[: question.max_new_tokens]
        end = next((i for i, token in enumerate(wanted) if token in ends), None)
        return (wanted, False) if end is None else (wanted[:end], True)

    def _answers(
        self,
        questions: Sequence[Question],
        emitted: Sequence[Sequence[int]],
        recorder: AttentionRecorder,
        mixer: StateMixer,
    ) -> tuple[LmmTrace, ...]:
        """What was written and recorded in a batch whose prompts end in one column."""
        start = max(len(question.prompt.ids) for question in questions)
        answers = [self._cut(question, ids) for question, ids in zip(questions, emitted, strict=True)]
        ranges = [(start, start + len(ids)) for ids, _ in answers]
        kept = recorder.split(ranges, [start - len(question.prompt.ids) for question in questions])
        traces = []
        for question, (ids, ended), rows, states in zip(questions, answers, kept, mixer.split(ranges), strict=True):
            text, offsets = self.words.decode_with_offsets(ids)
            traces.append(self._trace(text, ids, offsets, ended, states, question.image, question.prompt, rows))
        return tuple(traces)

    def teacher_force(self, image: EncodedImage, prompt: str, answer: str, *, layer_weights: Tensor | None = None) -> LmmTrace:
        """Let the LMM read a given answer, teacher-forced; nothing is generated.

        Args:
            image: from :meth:`encode_image`; many answers about one image share its cache.
            prompt: the user's words.
            answer: the assistant's words, exactly these.
            layer_weights: as for :meth:`generate`.
        """
        return self.teacher_force_tokens(
            image, self.words.answer_tokens(prompt, answer, image.layouts), answer, layer_weights=layer_weights
        )

    def teacher_force_tokens(
        self, image: EncodedImage, tokens: AnswerTokens, answer: str, *, layer_weights: Tensor | None = None
    ) -> LmmTrace:
        """Let the LMM read an answer that is tokenised already.

        Args:
            image: from :meth:`encode_image`.
            tokens: prompt and answer; the prompt with or without what stands before a chat.
            answer: text of the answer's tokens.
            layer_weights: as for :meth:`generate`.
        """
        return self._read(image, [tokens], [answer], layer_weights)[0]

    def teacher_force_batch(
        self, image: EncodedImage, turns: Sequence[tuple[str, str]], *, layer_weights: Tensor | None = None
    ) -> tuple[LmmTrace, ...]:
        """Let the LMM read several answers, each as :meth:`teacher_force` does, in one pass if it may go on from the image.

        Args:
            image: from :meth:`encode_image`.
            turns: prompts and answers.
            layer_weights: as for :meth:`generate`.
        """
        batch = [(self.words.answer_tokens(prompt, answer, image.layouts), answer) for prompt, answer in turns]
        size = 1
        if batch and self.family.reads_batches and (prefix := self.read_prefix(image, batch[0][0].prompt)):
            size = max(1, _COPIES // tensor_bytes(prefix.cache))
        traces: list[LmmTrace] = []
        for i in range(0, len(batch), size):
            tokens, answers = zip(*batch[i : i + size], strict=True)
            traces += self._read(image, tokens, answers, layer_weights)
        return tuple(traces)

    @torch.no_grad()
    def _read(
        self, image: EncodedImage, batch: Sequence[AnswerTokens], answers: Sequence[str], layer_weights: Tensor | None
    ) -> tuple[LmmTrace, ...]:
        """Read answers whose prompts begin alike, padded at their right."""
        sequences = [tokens.prompt.ids + tokens.ids for tokens in batch]
        ranges = [(len(tokens.prompt.ids), len(ids)) for tokens, ids in zip(batch, sequences, strict=True)]
        longest, start = max(map(len, sequences)), min(first for first, _ in ranges)
        self._check_length(longest, image.image_tokens, 0)
        cache, inputs = self._start(image, batch[0].prompt, sequences[0])
        inputs = inputs or self._rest(sequences, cache)
        with (
            self._keeping(image, batch[0].prompt, cache),
            self._record(start=start, cache=cache) as recorder,
            self._mixing(start, cache, layer_weights) as mixer,
        ):
            self.model(**inputs, cache=cache, use_cache=True, logits_to_keep=1)
            kept, states = recorder.split(ranges), mixer.split(ranges)
        return tuple(
            self._trace(answer, tokens.ids, tokens.offsets, True, own, image, tokens.prompt, rows)
            for tokens, answer, rows, own in zip(batch, answers, kept, states, strict=True)
        )

    def teacher_force_phrases(
        self, image: EncodedImage, phrases: Sequence[str], *, layer_weights: Tensor | None = None
    ) -> tuple[LmmTrace, tuple[KeywordSpan, ...]]:
        """Let the LMM read phrases as the answer to :attr:`refer_prompt`, each followed by a full stop.

        Args:
            image: from :meth:`encode_image`.
            phrases: what to look for; each phrase's tokens see the phrases before it.
            layer_weights: as for :meth:`generate`.

        Returns:
            The trace and one span for each phrase, in order.
        """
        answer, ranges = "", []
        separator = "" if self.family.reads_apart else self.family.phrase_separator
        for phrase in phrases:
            answer += separator if answer else ""
            ranges.append((len(answer), len(answer) + len(phrase)))
            answer += phrase + "."
        tokens = self.words.answer_tokens(self.refer_prompt, answer, image.layouts, [start for start, _ in ranges])
        trace = self.teacher_force_tokens(image, tokens, answer, layer_weights=layer_weights)
        spans = []
        for phrase, (start, end) in zip(phrases, ranges, strict=True):
            first, last = trace.span_of(start, end)
            spans.append(KeywordSpan(phrase, start, end, first, last))
        return trace, tuple(spans)

    def fits(self, image: EncodedImage, text: str, *, max_new_tokens: int, history: Sequence[Exchange] = ()) -> bool:
        """Whether the context holds a question behind its history; arguments as of :meth:`generate`."""
        length = len(self.words.prompt_tokens(text, image.layouts, chat=True, history=history).ids)
        return (limit := self._context()) is None or length + max_new_tokens <= limit

    def _context(self) -> int | None:
        """Positions that the decoder can hold; None if its config does not say."""
        limit: int | None = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return limit

    def _check_length(self, length: int, image_tokens: int, new_tokens: int) -> None:
        limit = self._context()
        if limit is None or length + new_tokens <= limit:
            return
        if (room := limit - image_tokens - new_tokens) < 1:
            raise ValueError(
                f"max_new_tokens: expected fewer than {limit - image_tokens} (context of {limit}, less {image_tokens} for the"
                f" image), got {new_tokens}"
            )
        raise CommandError(
            f"text: expected at most {room} tokens with the prompt's own (context of {limit}, less {image_tokens} for the"
            f" image and {new_tokens} for the answer), got {length - image_tokens}"
        )

    def _start(self, image: EncodedImage, prompt: PromptTokens, ids: Sequence[int]) -> tuple[DynamicCache, dict[str, Any]]:
        """The cache to go on from, and what the model takes if the sequence is to be read from its beginning, else nothing."""
        cache = self.family.new_cache(self.model)
        # A first command reads its whole prompt in one pass, as plain generation does; what it read of the image is cut out.
        if _beginning_ids(image, prompt) in image.prefixes or not can_be_cut(cache):
            prefix = self.read_prefix(image, prompt)
            if prefix is not None:
                self.family.restore_state(self.model, prefix.state)
                return fork_cache(prefix.cache), {}
        return cache, self.family.model_inputs(self.model, self._tensor(ids), image.features)

    @contextmanager
    def _keeping(self, image: EncodedImage, prompt: PromptTokens, cache: DynamicCache) -> Iterator[None]:
        """Let the image keep the prompt's beginning, if the first pass inside the block reads it into ``cache``."""
        ids = _beginning_ids(image, prompt)
        if not self.reuse_prefix or ids in image.prefixes:
            yield
            return

        def keep(*_: Any) -> None:
            if ids not in image.prefixes:
                image.prefixes[ids] = Prefix(ids, crop_cache(cache, len(ids)), self.family.model_state(self.model))

        hook = self.model.register_forward_hook(keep)
        try:
            yield
        finally:
            hook.remove()

    def _rest(self, sequences: Sequence[Sequence[int]], cache: DynamicCache) -> dict[str, Tensor]:
        """What the model takes of sequences behind the beginning that they share, which is in the cache."""
        seen, longest = cache.get_seq_length(), max(map(len, sequences))
        assert all(ids[:seen] == sequences[0][:seen] for ids in sequences)
        rest = [[*ids[seen:], *[0] * (longest - len(ids))] for ids in sequences]
        if len(sequences) > 1:
            cache.batch_repeat_interleave(len(sequences))
        # What fills up the shorter ones comes last, so causality hides it from all that is wanted: no mask is needed.
        return {"input_ids": torch.tensor(rest, device=self.device)}

    def _record(self, *, start: int, cache: DynamicCache) -> AbstractContextManager[AttentionRecorder]:
        return attention_recorder.record(start, seen=cache.get_seq_length(), layers=self.map_layers)

    def _mixing(self, start: int, cache: DynamicCache, layer_weights: Tensor | None) -> AbstractContextManager[StateMixer]:
        layer_weights = torch.eye(self.shape.layers, device=self.device) if layer_weights is None else layer_weights
        return mixing(self.model, start=start, seen=cache.get_seq_length(), layer_weights=layer_weights)

    def _decoding(
        self,
        cache: DynamicCache,
        recorder: AttentionRecorder,
        mixer: StateMixer,
        positions: int,
        *,
        kept: bool,
    ) -> AbstractContextManager[None]:
        """Decode in static shapes where that pays; ``kept`` says whether the layer weights are those of other commands, too."""
        if self._static is None or not kept:
            return nullcontext()
        return self._static.decoding(cache, recorder, mixer, positions=positions)

    def forget(self) -> None:
        """Free what is kept from command to command apart from images."""
        if self._static:
            self._static.forget()

    def _tensor(self, *sequences: Sequence[int]) -> Tensor:
        return torch.tensor([list(ids) for ids in sequences], dtype=torch.long, device=self.device)

    def _end_ids(self) -> set[int]:
        ends = self.model.generation_config.eos_token_id
        return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)

    def _trace(
        self,
        text: str,
        token_ids: Sequence[int],
        offsets: tuple[tuple[int, int], ...],
        ended: bool,
        states: Tensor,
        image: EncodedImage,
        prompt: PromptTokens,
        attention: RecordedAttention,
    ) -> LmmTrace:
        return LmmTrace(
            text=text,
            token_ids=tuple(token_ids),
            token_offsets=offsets,
            ended=ended,
            states=states,
            layouts=image.layouts,
            image_starts=prompt.image_starts,
            attention=attention,
        )


def _criteria(questions: Sequence[Question], *more: StoppingCriteria) -> StoppingCriteriaList:
    """What ends answers beside the LMM itself."""
    asked = [question.cancelled for question in questions]
    return StoppingCriteriaList([*([CancelCriteria(asked)] if any(asked) else []), *more])


def _beginning_ids(image: EncodedImage, prompt: PromptTokens) -> tuple[int, ...]:
    """A prompt's ids up to the end of its last image."""
    return prompt.ids[: prompt.image_starts[-1] + len(image.layouts[-1].ids)]
