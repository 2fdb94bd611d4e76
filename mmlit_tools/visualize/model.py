"""Build the network of a config, and read images as its test pipeline does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose
from torch import nn

from mmlit.errors import UserError
from mmlit.models.lit import LIT
from mmlit.visualization.image import SingleImage, load_image
from mmlit.visualization.probe import ProbeResult, find_lit, probe
from mmlit_tools.configs import test_dataset
from mmlit_tools.models import (
    SEED,
    ModelError,
    build_model,
    load_strict,
    open_checkpoint,
)


@dataclass
class Subject:
    """A network to look into.

    Args:
        lit: The network.
        preprocessor: What normalises and pads its images.
        transforms: What reads and resizes them.
        weights: Where the weights come from, in words.
    """

    lit: LIT
    preprocessor: nn.Module
    transforms: list
    weights: str

    def probe(self, path: Path) -> tuple[SingleImage, ProbeResult]:
        """Read an image and record what the network does with it."""
        image = load_image(path, self.transforms, self.preprocessor)
        return image, probe(self.lit, image.inputs)


def open_subject(
    config: Config, checkpoint: str | None = None, max_side: int | None = None
) -> Subject:
    """Build the config's model, with initial weights or those of a checkpoint.

    Raises:
        UserError: There is no LIT, no test pipeline, or the checkpoint does not fit.
    """
    model = build_model(config)
    try:
        lit = find_lit(model)
    except ValueError as error:
        raise UserError(f'the config {config.filename}: {error}') from error
    if checkpoint is None:
        weights = f'initial, seed {SEED} (no --checkpoint): all offsets are zero'
    else:
        load_weights(model, lit, checkpoint)
        weights = Path(checkpoint).name
    transforms = Compose(test_pipeline(config, max_side)).transforms
    return Subject(lit, model.data_preprocessor, transforms, weights)


def load_weights(model: nn.Module, lit: LIT, checkpoint: str) -> None:
    """Load LIT's part of a checkpoint, all of which it must hold."""
    (name,) = (name for name, module in model.named_modules() if module is lit)
    try:
        # A classifier's file lacks output norms.
        load_strict(
            model, open_checkpoint(checkpoint), [name], 'out_norm|num_batches_tracked'
        )
    except ModelError as error:
        raise ModelError(f'checkpoint {checkpoint}: {error}') from error


def test_pipeline(config: Config, max_side: int | None) -> list[ConfigDict]:
    """Return the transforms that read an image for testing, resized as told."""
    pipeline = test_dataset(config).pipeline
    if max_side is not None:
        resizes = [step for step in pipeline if step.type == 'Resize']
        if len(resizes) != 1:
            raise UserError(
                f'--max-side wants one Resize in the test pipeline, not {len(resizes)}'
            )
        resizes[0].scale = (max_side, max_side)
        resizes[0].keep_ratio = True
    return pipeline
