"""Checks every stage of one image of a reference case, from its pixels through LMM and heads to SAM's masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from flmm_core.heads.grounding_heads import GroundingHeads
from flmm_core.lmm.encoded_image import EncodedImage
from flmm_core.lmm.frozen_lmm import FrozenLmm
from flmm_core.lmm.tokens import AnswerTokens
from flmm_core.lmm.trace import LmmTrace
from flmm_core.pipeline import GroundingPipeline
from flmm_core.sam.refiner import SamImage
from flmm_core.verification.reference_data import Check, Wanted, missed_iou, wrong


@dataclass(frozen=True)
class LmmSample:
    """An image of a case with its phrases."""

    image: Image.Image
    sample: dict[str, Any]
    manifest: dict[str, Any]
    inputs: dict[str, Any]
    want: Wanted
    lmm: FrozenLmm
    """Without a prefix cache."""
    heads: GroundingHeads

    def run(self) -> Iterator[Check]:
        """Check all stages, then the maps with a prefix cache and of generated answers, and the whole pipeline."""
        yield from self._images()
        encoded = self.lmm.encode_image(self.image)
        yield from self._features(encoded)
        trace, spans = self.lmm.teacher_force_phrases(encoded, self.sample["phrases"])
        ranges = [(span.token_start, span.token_end) for span in spans]
        yield from self._sequence(trace, ranges)
        yield from self._states(trace)
        sam = self.heads.sam.encode_image(np.asarray(self.image))
        yield from self._masks(trace, ranges, self.want, sam)
        family, model, tokenizer = self.lmm.family, self.lmm.model, self.lmm.words.tokenizer
        again = FrozenLmm(model=model, tokenizer=tokenizer, family=family, refer_prompt=self.lmm.refer_prompt)
        prefixed = again.encode_image(self.image)
        maps = again.teacher_force_phrases(prefixed, self.sample["phrases"])[0].merged_attention(ranges)
        yield self.want.check("merged maps", maps, self.want["mask_attentions"], "mask_attentions, cached prefix")
        for name, one, begun in (("whole", self.lmm, encoded), ("cached prefix", again, prefixed)):
            yield from self._generated(name, one, begun, sam)
        pipeline = GroundingPipeline(lmm=again, heads=self.heads)
        masks = [phrase.mask for phrase in pipeline.refer(pipeline.encode(self.image), self.sample["phrases"]).phrases]
        for mask, logits in zip(masks, self.want["sam_pred_masks"], strict=True):
            yield Check(self.want.sample, "mask IoU", missed_iou(mask, logits), "sam_pred_masks > 0, whole path")

    def _images(self) -> Iterator[Check]:
        prepared = self.lmm.family.prepare([self.image])
        for key, name in {
            "pixel_values": "pixel_values", "image_tensor": "pixel_values", "image_tensor_aux": "pixel_values_aux",
        }.items():  # fmt: skip
            yield from self.want.compare("pixel values", key, prepared.inputs.get(name, torch.zeros(0)))
        yield from self.want.compare("pixel values", "chat_pixel_values", prepared.inputs.get("pixel_values", torch.zeros(0)))

    def _features(self, encoded: EncodedImage) -> Iterator[Check]:
        expected = self.want["projected_image_features"]
        got = torch.cat(encoded.features.views)
        got = got.reshape(expected.shape) if got.numel() == expected.size else got
        yield self.want.check("image features", got, expected, "projected_image_features")

    def _sequence(self, trace: LmmTrace, ranges: Sequence[tuple[int, int]]) -> Iterator[Check]:
        """Ids and positions, for reference ids with one token for the image or with all of its tokens."""
        start, stop = int(trace.image_columns()[0]), int(trace.image_columns()[-1]) + 1
        prompt = self.lmm.words.prompt_tokens(self.lmm.refer_prompt, trace.layouts).ids
        got, expected = [*prompt, *trace.token_ids], self.want["input_ids"].tolist()
        marks = len(expected) - (len(got) - (stop - start))
        outside = [*expected[:start], *expected[start + marks :]]
        yield Check(self.want.sample, "token ids", wrong([*got[:start], *got[stop:]], outside), "input_ids")
        groups = self.want["expanded_mask_ids" if "expanded_mask_ids" in self.want else "mask_ids"]
        for i, (first, last) in enumerate(ranges):
            own = range(trace.attention.start + first, trace.attention.start + last)
            yield Check(self.want.sample, "token positions", wrong(own, np.flatnonzero(groups == i)), f"phrase {i}")
        if "image_positions" in self.want:
            positions = self.want["image_positions"]
        elif marks > 1:
            positions = np.flatnonzero(self.want["input_ids"] == self.want["input_ids"][start])
        else:
            positions = np.flatnonzero(groups == -100)
        yield Check(self.want.sample, "image positions", wrong(trace.image_columns().tolist(), positions), "image positions")

    def _states(self, trace: LmmTrace) -> Iterator[Check]:
        """Hidden states and attention of the answer's tokens, as far as the reference contains them."""
        states, rows = self.want.last("hidden_states"), self.want.last("attention_rows_mean_over_heads")
        if states is not None:
            count = min(len(trace.token_ids), states.shape[1])
            yield self.want.check("hidden states", trace.states[:, -count:], states[1:, -count:], "hidden_states")
        logits = self.want.last("logits")
        if logits is not None:
            got, count = self.lmm.model.get_output_embeddings()(trace.states[-1]), min(len(trace.token_ids), len(logits))
            yield self.want.check("word logits", got[-count:], logits[-count:], "logits")
        mixed = self.want.last("layer_weighted_hidden_states")
        if mixed is not None:
            got, count = self._mixed(trace), min(len(trace.token_ids), len(mixed))
            yield self.want.check("hidden states", got[-count:], mixed[-count:], "layer_weighted_hidden_states")
        if rows is not None and len(rows) == len(trace.attention.layers):
            count, columns = min(len(trace.token_ids), rows.shape[1]), torch.arange(rows.shape[2])
            tokens = range(len(trace.token_ids) - count, len(trace.token_ids))
            got = torch.stack([trace.attention.rows(layer, tokens, columns).mean(dim=0) for layer in range(len(rows))])
            yield self.want.check("attention rows", got, rows[:, -count:], "attention rows")

    def _mixed(self, trace: LmmTrace) -> Tensor:
        """``[t, d]`` sum of the layers' outputs by the text prompt's weights."""
        return self.heads.mix(trace.states)[0]

    def _masks(self, trace: LmmTrace, ranges: Sequence[tuple[int, int]], want: Wanted, sam: SamImage) -> Iterator[Check]:
        """The stages from attention to masks."""
        maps = trace.merged_attention(ranges)
        yield from want.compare("merged maps", "mask_attentions", maps)
        yield from want.compare("U-Net output", "mask_head_output", self.heads.mask_head(maps))
        states = self.heads.mix(trace.states)
        texts = [self.heads.text_tokens(states[:, first:last]) for first, last in ranges]
        for i, text in enumerate(texts):
            yield from want.compare("text tokens", f"text_embeds_{i}", text)
        coarse = self.heads.coarse_masks(maps, trace.geometry).logits
        size = want["pred_masks"].shape[-2:]
        seen = coarse if coarse.shape[-2:] == size else F.interpolate(coarse[:, None], self.image.size[::-1], mode="bilinear")
        yield from want.compare("un-padded logits", "pred_masks", seen)
        yield from want.compare("boxes", "boxes", self.heads.sam.prompts(sam, coarse, texts).boxes)
        refined = self.heads.sam(sam, coarse, texts)
        yield from want.compare("SAM predicted IoU", "iou_predictions", refined.iou)
        logits = self.heads.sam.to_image(refined.low_res, sam)
        yield from want.compare("SAM logits", "sam_pred_masks", logits)
        for mask, expected in zip((logits > 0).numpy(), want["sam_pred_masks"], strict=True):
            yield Check(want.sample, "mask IoU", missed_iou(mask, expected), f"{want.prefix}sam_pred_masks > 0")

    def _generated(self, path: str, lmm: FrozenLmm, encoded: EncodedImage, sam: SamImage) -> Iterator[Check]:
        """Maps of a generated answer against those of the same answer when read, and against the reference if it has them."""
        question = self.inputs.get("question", self.lmm.refer_prompt)
        trace = lmm.generate(encoded, question, max_new_tokens=self.manifest.get("config", {}).get("max_new_tokens", 8))
        if not trace.token_ids:
            return
        prompt = lmm.words.prompt_tokens(question, encoded.layouts, chat=True)
        each = [(i, i + 1) for i in range(len(trace.token_ids))]
        maps = trace.merged_attention(each)
        if lmm.family.image_token_id not in trace.token_ids:  # a random model may generate it, but a prompt cannot contain it
            read = lmm.teacher_force_tokens(encoded, AnswerTokens(prompt, trace.token_ids, trace.token_offsets), trace.text)
            yield self.want.check("merged maps", maps, read.merged_attention(each), f"generated = read, {path}")
        if "answer_output_ids" not in self.want:
            return
        if "chat_input_ids" in self.want:
            yield Check(
                self.want.sample, "token ids", wrong(prompt.ids, self.want["chat_input_ids"]), f"chat_input_ids, {path}"
            )
        count = len(self.want["answer_output_ids"])
        ids = wrong(trace.token_ids[:count], self.want["answer_output_ids"])
        yield Check(self.want.sample, "token ids", ids, f"answer_output_ids, {path}")
        yield from self.want.compare("merged maps", "answer_attention_maps", maps[:count].transpose(0, 1))
        yield from self.want.compare("hidden states", "answer_hidden_states", self._mixed(trace)[:count])
        yield from self._masks(trace, [tuple(span) for span in self.inputs["spans"]], self.want.part("ground_"), sam)
