"""The two models that schedules are simulated on: a fake one, for volume, and a tiny real one."""

from __future__ import annotations

from samebits.config import ModelConfig
from samebits.engine.decoder_runner import DecoderRunner
from samebits.engine.runner import Runner
from samebits.models.load import load_model
from samebits.numerics.operators import Operators
from samebits.verify.simulation.fake_runner import FakeRunner
from samebits.verify.simulation.generate import Recipe
from samebits.verify.simulation.simulate import SimulatedModel

FAKE_RECIPE = Recipe(
    model="fake",
    vocabulary=211,
    page_tokens=(1, 2, 3, 4, 5, 8, 16),
    longest_prompt=40,
    longest_output=12,
    most_groups=4,
    step_tokens=(1, 3, 5, 8, 16, 33, 64),
    breaking_token=7,
    unsound_token=11,
)
TINY_PAGE_TOKENS = (64, 128, 192, 320)
TINY_STEP_TOKENS = (40, 97, 128, 300, 700)


def fake_model(operators: Operators) -> SimulatedModel:
    """Logits that hash what a row can see; `operators` sample from them."""

    def make_runner(pages: int, page_tokens: int) -> Runner:
        return FakeRunner(operators, FAKE_RECIPE.vocabulary, pages, page_tokens)

    return SimulatedModel(FAKE_RECIPE, 4096, (2,), make_runner)


def tiny_model(operators: Operators) -> SimulatedModel:
    """A three-layer decoder with dummy weights and the numerics of `operators`."""
    loaded = load_model(ModelConfig(model="tiny", load_format="dummy"), operators)
    recipe = Recipe(
        model="tiny",
        vocabulary=loaded.spec.vocabulary,
        page_tokens=TINY_PAGE_TOKENS,
        longest_prompt=400,
        longest_output=8,
        most_groups=3,
        step_tokens=TINY_STEP_TOKENS,
        breaking_token=7,
        unsound_token=11,
    )

    def make_runner(pages: int, page_tokens: int) -> Runner:
        kv = operators.allocate_kv(loaded.spec.layers, pages, page_tokens, loaded.spec.heads)
        return DecoderRunner(loaded.spec, loaded.weights, operators, loaded.rope, kv)

    return SimulatedModel(recipe, loaded.files.context_length, loaded.files.end_tokens, make_runner)
