"""LLaVA on tiny random models: the checks of every family."""

import family_checks
import pytest
from family_checks import REGIONS, SIZES
from tiny_models import random_image, save_llava

from flmm_core.lmm.frozen_lmm import FrozenLmm


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_llava(tmp_path_factory.mktemp("llava"), kv_heads=2)


@pytest.fixture(scope="module")
def lmm(folder):
    return FrozenLmm.from_pretrained(folder)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_rows_are_those_of_eager_attention(folder, size):
    family_checks.check_rows(folder, random_image(*size))


def test_answers_that_share_a_pass_are_those_of_each_alone(folder):
    family_checks.check_batches(folder, random_image(*SIZES["landscape"]))


@pytest.mark.parametrize("region", REGIONS.values(), ids=REGIONS)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_a_region_of_the_image_is_the_same_region_of_the_maps(lmm, size, region):
    family_checks.check_position_truth(lmm, random_image(*size), region)


def test_greedy_answers_are_those_of_the_plain_model(folder):
    family_checks.check_greedy(folder, [random_image(*size, seed=i) for i, size in enumerate(SIZES.values())])


def test_a_tiny_head_trains(folder):
    family_checks.check_training(folder)
