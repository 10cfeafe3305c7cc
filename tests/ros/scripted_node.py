"""The grounding node with a scripted pipeline instead of a model: each command says what the pipeline does."""

import sys
import time
from dataclasses import replace

import numpy as np
import torch

from flmm_core.errors import CommandCancelledError, CommandError, MemoryFullError
from flmm_core.requests.callbacks import Callbacks
from flmm_core.types import GroundedAnswer, GroundedPhrase, StageSeconds
from flmm_ros.grounding_node import main


class ScriptedPipeline:
    """Answers with one phrase over the left half; "sleep S" takes S seconds, "fail" raises, "many N" names N things."""

    def __init__(self, config):
        self.config = config
        self.images = self.calls = 0
        self.history = []
        if config.refer_prompt == "slow":  # a model that takes long to load
            time.sleep(60)
        if config.refer_prompt == "brief":  # long enough for what is said meanwhile to arrive
            time.sleep(1)
        if config.refer_prompt == "broken":
            raise ValueError("scripted: broken")

    def encode(self, image):
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
        self.image = image
        self.images += 1
        return image

    def chat(self, image, text, *, max_new_tokens=None, max_phrases=None, callbacks=None):
        callbacks = callbacks or Callbacks()
        callbacks.on_stage("lmm")
        self.history.append(f"chat {text}")
        word, _, argument = text.partition(" ")
        if word == "history":
            return self._answer(", ".join(self.history[:2]), 0)
        if word == "last":
            return self._answer(self.history[-2], 0)
        if word == "fail":
            raise RuntimeError("scripted\nfailure")
        if word == "sleep":
            time.sleep(float(argument))
        if word == "write":  # a word every 50 ms
            for i in range(int(argument)):
                time.sleep(0.05)
                if callbacks.cancelled():
                    self.history.append(f"stopped after {i}")
                    raise CommandCancelledError("command: cancelled")
                callbacks.on_text(" ".join(["word"] * (i + 1)))
        if word == "forbidden":
            raise CommandError("text: expected other words")
        if word == "memory":
            raise MemoryFullError("command: expected enough free memory, got too little")
        if word == "left":
            return replace(self._answer("one two three", 1), left_out=("two", "three"))
        if word == "quit":
            raise SystemExit("scripted end")
        if word == "unsendable":
            return self._answer("\ud800", 0)
        if word == "count":
            self.calls += 1
            return self._answer(f"call {self.calls}", 0)
        if word == "thresholds":
            return self._answer(f"{self.config.presence_threshold} {self.config.mask_threshold}", 0)
        if word == "nothing":
            return replace(self._answer("Nothing.", 0), reason="no phrase was picked")
        if word == "many":
            return self._answer("thing " * int(argument), int(argument), len("thing "))
        if word == "tokens":
            return self._answer(f"limit {max_new_tokens}", 0)
        if word == "phrases":
            return self._answer(f"limit {max_phrases}", 0)
        if word == "mean":
            return self._answer(" ".join(str(round(v)) for v in self.image.reshape(-1, 3).mean(axis=0)), 0)
        return self._answer(f"It said: {text}", 1)

    def set_thresholds(self, **thresholds):
        self.config = replace(self.config, **thresholds)

    def describe(self):
        return {"lmm": "scripted", "device": "imagination", "heads backend": "none"}

    def device_memory(self):
        return 5_000_000

    def refer(self, image, phrases, *, callbacks=None):
        self.history.append(f"refer {phrases[0]}")
        return self._answer(phrases[0], 1, len(phrases[0]))

    def _answer(self, text, count, length=2):
        height, width = self.image.shape[:2]
        mask = torch.zeros(height, width, dtype=torch.bool)
        mask[:, : max(1, width // 2)] = True
        box = (0, 0, max(1, width // 2), height)
        phrases = tuple(
            GroundedPhrase(text[i * length : (i + 1) * length].strip(), i * length, (i + 1) * length, mask, box, 0.75)
            for i in range(count)
        )
        return GroundedAnswer(text, phrases, height, width, StageSeconds(image=0.1, lmm=0.2))


if __name__ == "__main__":
    sys.exit(main(load=ScriptedPipeline))
