"""Interface of a family of LMMs: its prompt, preprocessing, image layouts and the layers that give maps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

from PIL import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    DynamicCache,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from flmm_core.errors import LoadError
from flmm_core.families.boxes import SHARES, BoxFormat
from flmm_core.families.checkpoint import Checkpoint
from flmm_core.families.layouts import ImageLayout
from flmm_core.families.load_options import LoadOptions


@dataclass(frozen=True)
class LmmShape:
    """Sizes of an LMM that grounding heads must fit."""

    layers: int
    heads: int
    """Query heads of each layer."""
    hidden_size: int
    maps_per_head: int = 1
    """2 if each head gives a coarse and a fine map."""
    mapless_layers: int = 0
    """Decoder layers that give no maps."""

    @property
    def channels(self) -> int:
        """Attention channels ``c`` of the maps."""
        return self.maps_per_head * (self.layers - self.mapless_layers) * self.heads


@dataclass(frozen=True)
class PreparedImages:
    """The images of one prompt as inputs of the model, and their places in the sequence."""

    inputs: Mapping[str, Tensor]
    """Inputs by the model's own names: ``pixel_values``, float32 and normalised, and others such as image sizes and grids."""
    layouts: tuple[ImageLayout, ...]
    """One for each image, in the order of the prompt."""


@dataclass(frozen=True)
class ImageFeatures:
    """Output of the vision tower for the images of one prompt."""

    views: tuple[Tensor, ...]
    """Projected features ``[tokens, d]`` of each view (whole image or tile), as the projector gives them; for
    inspection.
    """
    given: Any
    """The value that :meth:`LmmFamily.model_inputs` passes to the model."""


@dataclass(frozen=True)
class LoadedLmm:
    """A model with its tokenizer and family; not frozen yet, and without the attention recorder."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    family: LmmFamily
    ignored_settings: Mapping[str, str] = field(default_factory=dict)
    """Generation settings of the checkpoint that are ignored, by name, with the reason."""


class ModelOutline:
    """A model's config and the names of its weights, in place of the model where a family is used without one."""

    def __init__(self, config: Any, weights: Collection[str]) -> None:
        self.config = config
        self.weights = weights

    def named_parameters(self) -> Iterator[tuple[str, None]]:
        """Names of the weights, without their values."""
        return ((name, None) for name in self.weights)


class LmmFamily(ABC):
    """One kind of LMM. An instance belongs to one loaded model and reads all its numbers from that model's configs."""

    model_type: str
    """``model_type`` of the raw config; :meth:`claims` may look at more."""
    prompt_marks: ClassVar[tuple[str, ...]] = ()
    """Parts that the checkpoint's chat template must write, if it has one; see :meth:`doubt`."""
    answer_separator: str = " "
    """Text between the prompt and an answer that is read rather than generated."""
    phrase_separator: ClassVar[str] = " "
    """Text after the full stop between phrases that are read together."""
    system: ClassVar[str] = ""
    """Text before the prompt in a chat; phrases are read without it, as in the training of the published heads."""
    turn_end: str | None = None
    """Text between an answer and the next turn of a conversation; None for a model of single questions."""
    reads_apart: ClassVar[bool] = False
    """Whether an answer, and each phrase of it, is tokenised separately from the text before it, without separators."""
    decoder_folder: ClassVar[str] = ""
    """Folder of a checkpoint with the decoder's files; empty where they are beside those of the whole."""
    quantizes: ClassVar[bool] = True
    """Whether its decoder can be quantized: its files are those of one transformers model."""
    settings: ClassVar[Mapping[str, Any]] = {}
    """Settings that the files of a checkpoint do not contain, with the values used in the training of the published heads."""
    maps_per_head: ClassVar[int] = 1
    """Maps that an image layout makes of each head's attention: 2 for coarse and fine."""
    reuses_prefix: ClassVar[bool] = True
    """Whether keys and values up to the last image may be reused for other prompts: not if the image attends to words."""
    reads_batches: bool = True
    """Whether several answers may be read in one batch behind the keys and values of an image: not where layers are linear."""
    boxes: ClassVar[BoxFormat] = SHARES
    """How it is prompted for boxes and writes them, for the comparison with grounding."""
    image_tokens: int = 0
    """Most tokens that an image may take; 0 for as many as the checkpoint's own processor gives."""
    image_token_id: int
    """Token that marks an image in a prompt; the image's layout replaces it."""
    image_token: str

    # --- before the weights are read ---

    @classmethod
    def claims(cls, checkpoint: Checkpoint) -> bool:
        """Whether a checkpoint is of the family's kind, judged by its raw config."""
        return checkpoint.config.get("model_type") == cls.model_type

    @classmethod
    def doubt(cls, checkpoint: Checkpoint) -> str:
        """The reason, in one line, why a checkpoint of the kind does not belong to this family; empty if it does.

        Models of one kind may have been trained on different prompts, so the chat template decides. Without one the family's
        own prompt is used.
        """
        missing = [mark for mark in cls.prompt_marks if mark not in checkpoint.prompt]
        if not checkpoint.chat_template or not missing:
            return ""
        return f"expected a chat template that writes {' ... '.join(cls.prompt_marks)}, got {checkpoint.prompt!r:.120}"

    @classmethod
    def text_config(cls, checkpoint: Checkpoint) -> PreTrainedConfig:
        """Config of the decoder, with the defaults of its kind filled in."""
        return AutoConfig.from_pretrained(checkpoint.source).get_text_config()

    @classmethod
    def map_layers(cls, text: PreTrainedConfig) -> tuple[int, ...]:
        """Decoder layers that give maps, in order: all of them, except those with sliding-window or linear attention."""
        return tuple(range(int(text.num_hidden_layers)))

    @classmethod
    def shape(cls, text: PreTrainedConfig) -> LmmShape:
        """Sizes that heads must fit, from the decoder's config."""
        layers = int(text.num_hidden_layers)
        mapless = layers - len(cls.map_layers(text))
        return LmmShape(layers, int(text.num_attention_heads), int(text.hidden_size), cls.maps_per_head, mapless)

    @classmethod
    def unloaded(cls, checkpoint: Checkpoint, weights: Collection[str]) -> LmmFamily:
        """The family as :meth:`load` builds it, but without a model: its prompt and layouts, from small files alone.

        Args:
            checkpoint: of the family.
            weights: names of its weights.
        """
        source, family = checkpoint.source, cast(Any, cls)
        made: LmmFamily = family(
            model=ModelOutline(AutoConfig.from_pretrained(source), weights),
            tokenizer=AutoTokenizer.from_pretrained(source),
            image_processor=AutoImageProcessor.from_pretrained(source, backend="pil"),
        )
        return made

    @classmethod
    def elsewhere(cls, checkpoint: Checkpoint) -> tuple[str, ...]:
        """Folders or Hugging Face names of other checkpoints whose weights belong to this one."""
        return ()

    @classmethod
    @abstractmethod
    def load(cls, checkpoint: Checkpoint, how: LoadOptions) -> LoadedLmm:
        """Load model and tokenizer."""

    # --- words and images ---

    @abstractmethod
    def prompt(self, text: str, images: int = 1) -> str:
        """The user's text in the family's chat format, with one image token for each image."""

    def later_prompt(self, text: str) -> str:
        """The user's text in a later turn of a conversation, without an image."""
        return self.prompt(text, images=0)

    @abstractmethod
    def prepare(self, images: Sequence[Image.Image]) -> PreparedImages:
        """Preprocess RGB images as the published heads were trained."""

    def limit_image_tokens(self, most: int) -> None:
        """Let an image take at most ``most`` tokens, those between its cells included.

        Raises:
            LoadError: the processor cannot give an image so few.
        """
        if (fewest := self.set_most_tokens(most)) > most:
            raise LoadError(
                f"image_tokens: expected at least {fewest}, to which this checkpoint of {self.model_type} can limit an image,"
                f" got {most}"
            )
        self.image_tokens = most

    def set_most_tokens(self, most: int) -> int:
        """Set the processor to the largest sizes with which no image takes more than ``most`` tokens, or else to its smallest.

        Here nothing can be set: every image takes the tokens of one grid.

        Returns:
            The most tokens that an image takes then.
        """
        return len(self.prepare([Image.new("RGB", (64, 64))]).layouts[0].ids)

    @abstractmethod
    def encode(self, model: PreTrainedModel, prepared: PreparedImages) -> ImageFeatures:
        """Run the vision tower and the projector."""

    # --- the decoder ---

    def model_inputs(self, model: PreTrainedModel, ids: Tensor, features: ImageFeatures) -> dict[str, Any]:
        """Keywords of ``model`` (and, but for ``input_ids``, of ``generate``) for a sequence from its beginning.

        Args:
            model: of the family.
            ids: ``[1, s]`` with the images' tokens in their places.
            features: from :meth:`encode`.
        """
        return {"input_ids": ids, "mm_encoder_outputs": {"image": features.given}}

    def new_cache(self, model: PreTrainedModel) -> DynamicCache:
        """An empty cache. Without a config it keeps every position in all layers, sliding ones included, as maps need it."""
        return DynamicCache()

    def model_state(self, model: PreTrainedModel) -> Any:
        """State of the last sequence inside the model (for instance ``rope_deltas``), for :meth:`restore_state`."""
        return None

    def restore_state(self, model: PreTrainedModel, state: Any) -> None:  # noqa: B027 - most models have no such state
        """Restore a result of :meth:`model_state` before the model continues from that sequence's cache."""


def check_complete(report: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that lacks weights; transformers would only warn and initialise them at random.

    Args:
        report: the loading info of ``from_pretrained``.
    """
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(f"expected every weight of the model, but {len(missing)} are missing ({', '.join(missing[:2])} ...)")
