"""Configurations of the bundled model ask it for nothing that it cannot do."""

import pytest

from ivc_jax.commands.settings import list_configs, load_config
from ivc_jax.engine.plan import make_plan
from ivc_jax.engine.tower_signals import choose_tap
from ivc_jax.methods import BudgetError, parse
from ivc_jax.methods.requests import TowerRequest
from ivc_jax.model import find_bundled, read_config

NAMES = [name for name in list_configs() if load_config(name).model is None]


@pytest.mark.parametrize("name", NAMES)
def test_every_method_fits_the_bundled_model(name):
    config, settings = read_config(find_bundled()), load_config(name)
    reached = 0
    for spec in settings.methods:
        try:
            method = parse(spec).resolve(config)
        except BudgetError:
            assert settings.skip_unreachable, spec
            continue
        reached += 1
        make_plan(config.decoder.num_layers, method)
        for stage in method.stages:
            for request in method.requests(stage):
                if isinstance(request, TowerRequest):
                    choose_tap(request, config.vision)  # or an error that says what is missing
    assert reached > len(settings.methods) / 2


def test_configs_of_the_bundled_model_are_looked_at():
    assert {"default", "methods", "removal", "rules"} < {*NAMES}
    assert {"paper", "grounding"} & {*NAMES} == set()
