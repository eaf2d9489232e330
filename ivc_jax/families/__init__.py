"""The families of models that can be loaded, ours and those of installed packages.

A package adds a family with an entry point of the group `ivc_jax.families` that names a `Family`
(docs/families.md).
"""

import dataclasses
import functools
import importlib.metadata
import logging
from collections.abc import Mapping
from typing import Any

from ivc_jax.config import ConfigError, ModelConfig
from ivc_jax.families.base import Family
from ivc_jax.families.deepseek import DEEPSEEK_VL2
from ivc_jax.families.internvl import INTERNVL, INTERNVL_CHAT
from ivc_jax.families.llava import LLAVA
from ivc_jax.families.qwen import QWEN2_5_VL, QWEN2_VL
from ivc_jax.families.qwen3 import QWEN3_VL

_log = logging.getLogger(__name__)
_ENTRY_POINTS = "ivc_jax.families"

# ours come first: a package cannot take one of their model types
FAMILIES: tuple[Family, ...] = (
    *(QWEN2_VL, QWEN2_5_VL, QWEN3_VL),
    *(LLAVA, INTERNVL_CHAT, INTERNVL),
    DEEPSEEK_VL2,
)


@functools.cache
def list_families() -> dict[str, Family]:
    """Return the families by model type, first ours, then those of installed packages."""
    table = {kind: family for family in FAMILIES for kind in family.model_types}
    for entry in importlib.metadata.entry_points(group=_ENTRY_POINTS):
        try:
            family = entry.load()
            if not isinstance(family, Family):
                raise TypeError(f"{entry.value} is a {type(family).__name__}, not a Family")
        except Exception as error:  # any: it is somebody else's code
            _log.warning("family %r of %s does not load: %s", entry.name, entry.value, error)
            continue
        for kind in family.model_types:
            if kind in table:
                _log.warning("%s: the model type %r is taken; left out", entry.value, kind)
            table.setdefault(kind, family)
    return table


def find_family(config: Mapping[str, Any] | str) -> Family:
    """Return the family of a parsed `config.json`, with the rules for it, or of a model type.

    Raises:
        ConfigError: no family has it; the message lists those known.
    """
    table = list_families()
    model_type = config.get("model_type") if isinstance(config, Mapping) else config
    if not isinstance(model_type, str) or model_type not in table:
        raise ConfigError(
            f"unknown architecture model_type={model_type!r}; supported: {', '.join(table)}"
        )
    family = table[model_type]
    if family.choose_rules is None or not isinstance(config, Mapping):
        return family
    return dataclasses.replace(family, rules=family.choose_rules(config))


def parse_config(config: Mapping[str, Any]) -> ModelConfig:
    """Read the sizes of a model from a parsed Hugging Face `config.json`.

    Raises:
        ConfigError: unknown architecture, missing or inconsistent field.
    """
    family = find_family(config.get("model_type"))
    try:
        return family.read_config(config)
    except KeyError as error:
        raise ConfigError(f"config.json lacks the field {error.args[0]!r}") from None


def list_sizes() -> dict[str, Mapping[str, Any]]:
    """Return the `config.json` of published models by lower-case name, such as "qwen2-vl-7b"."""
    families = dict.fromkeys(list_families().values())
    return {name: sizes for family in families for name, sizes in family.sizes.items()}
