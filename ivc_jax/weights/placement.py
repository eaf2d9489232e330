"""Where parameters go: they arrive block by block and end up in the form that devices want.

apart      put("decoder/layers/1/norm/scale", array)    the array is the parameter
stacked    stack [L, out, in]   0 0 0 0                 a stack is allocated once and written
                                0 1 0 0                 in place: no second one anywhere
"""

import bisect
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from ivc_jax.config import ModelConfig
from ivc_jax.nn.blocks import Params, find_sections, stack_sections, stacks
from ivc_jax.nn.decoder import init_params
from ivc_jax.nn.layers import is_quantized
from ivc_jax.parallel.mesh import shard_param
from ivc_jax.weights import keymap, quantize


def abstract_params(
    config: ModelConfig, dtype: np.dtype, mesh: Mesh | None = None, weights: str | None = None
) -> Params:
    """Return the parameter tree on its devices as `jax.ShapeDtypeStruct` leaves with shardings.

    Without a mesh every leaf lives on the default device.

    Args:
        config: of the model.
        dtype: of every parameter that is not quantised.
        mesh: devices to shard over, by the table of `ivc_jax.parallel.mesh`.
        weights: "int8" for the quantised matrices of `ivc_jax.weights.quantize`.
    """
    return _arrange(_list_apart(config, dtype, mesh), _find_device(mesh).platform, weights)


def _arrange(params: Params, platform: str, weights: str | None) -> Params:
    """Turn the shapes of floats, blocks apart, into the form that devices want."""
    vision, decoder = params["vision"], params["decoder"]
    if stacks(platform):
        vision = {**vision, "blocks": stack_sections(vision["blocks"], _stack)}
    if stacks(platform, quantized=weights is not None):
        decoder = {**decoder, "layers": stack_sections(decoder["layers"], _stack)}

    def turn(path: tuple, leaf: Any) -> Any:
        matrix = quantize.is_matrix(keymap.join(path))
        return quantize.abstract_weight(leaf) if weights and matrix else leaf

    tree = {"vision": vision, "decoder": decoder}
    return jax.tree_util.tree_map_with_path(turn, tree)


def _find_device(mesh: Mesh | None) -> jax.Device:
    # jax.devices() lists every host's devices; the first local one is where a lone array goes.
    return mesh.devices.flat[0] if mesh else jax.local_devices()[0]


def _list_apart(config: ModelConfig, dtype: np.dtype, mesh: Mesh | None) -> Params:
    """Return the shapes of floats, blocks apart."""
    # nothing is allocated: the shapes alone
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    alone = SingleDeviceSharding(_find_device(mesh))

    def place(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        name = keymap.join(path)
        sharding = shard_param(name, leaf.shape, mesh) if mesh else alone
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, shapes)


def _stack(blocks: tuple[Params, ...]) -> Params:
    """Return the shapes of stacked blocks: every leaf [L, ...], L whole on each device."""

    def deepen(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = leaf.sharding
        if isinstance(sharding, NamedSharding):
            sharding = NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))
        return jax.ShapeDtypeStruct((len(blocks), *leaf.shape), leaf.dtype, sharding=sharding)

    return jax.tree.map(deepen, blocks[0])


class Placement:
    """Parameters on their way to devices.

    Attributes:
        wanted: what has to come, by path; blocks apart, floats.
    """

    def __init__(
        self, config: ModelConfig, dtype: np.dtype, mesh: Mesh | None, weights: str | None
    ) -> None:
        """Prepare places for all parameters; arguments as for `load_safetensors`."""
        apart = _list_apart(config, dtype, mesh)
        self.wanted = keymap.flatten(apart)
        self._weights = weights
        self._apart = apart
        tree = _arrange(apart, _find_device(mesh).platform, weights)
        paths, self._structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_quantized)
        # path -> abstract leaf, and from what first arrives on the array
        self._leaves = {keymap.join(path): leaf for path, leaf in paths}

    def quantizes(self, path: str) -> bool:
        """Tell whether the parameter at this path becomes int8."""
        return self._weights is not None and quantize.is_matrix(path)

    @property
    def takes_all(self) -> bool:
        """Whether arrays stay as they come, so that all of them may come at once."""
        return self._weights is None and self.wanted.keys() == self._leaves.keys()

    def part(self, path: str, axes: int) -> tuple[tuple[int, ...], Sharding]:
        """Return shape and sharding of one part of a parameter: without its first axes."""
        leaf = self.wanted[path]
        sharding = leaf.sharding
        if isinstance(sharding, NamedSharding):
            sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[axes:]))
        return leaf.shape[axes:], sharding

    def put(self, path: str, array: jax.Array, place: tuple[int, ...] = ()) -> None:
        """Take a parameter of one block, or what lies at a place in its first axes."""
        array = quantize.quantize(array) if self.quantizes(path) else array
        if path not in self._leaves:  # stacked: the number of the block is one more axis
            path, number = self._find_stack(path)
            place = (number, *place)
        if place:
            array = jax.tree.map(functools.partial(_write, place), self._leaves[path], array)
        # One array in flight: transfers that queue up would each hold a host copy.
        self._leaves[path] = jax.block_until_ready(array)

    @functools.cached_property
    def _starts(self) -> list[int]:
        """The first blocks of the decoder's sections."""
        return [run.start for run in find_sections(self._apart["decoder"]["layers"])]

    def _find_stack(self, path: str) -> tuple[str, int]:
        """Return the path of the stack that a block's parameter lies in, and its place there."""
        (number,) = keymap.find_block(path)
        if (stack := keymap.drop_block(path)) in self._leaves:
            return stack, number
        section = bisect.bisect(self._starts, number) - 1
        stack = path.replace(f"/{number}/", f"/parts/{section}/", 1)
        return stack, number - self._starts[section]

    def finish(self) -> Params:
        """Return the parameters; all have come."""
        return jax.tree.unflatten(self._structure, self._leaves.values())


def _write(index: tuple[int, ...], stack: Any, part: jax.Array) -> jax.Array:
    """Write a part into its stack, which is allocated if it is abstract yet."""
    if isinstance(stack, jax.ShapeDtypeStruct):
        stack = jnp.zeros(stack.shape, stack.dtype, device=stack.sharding)
    return _writer(stack.sharding)(stack, part, index)  # donated: written in place


@functools.cache
def _writer(sharding: Sharding) -> Any:
    def write(stack: jax.Array, part: jax.Array, index: tuple[jax.Array, ...]) -> jax.Array:
        # As integers: XLA's CPU back end rewrites the whole stack to update it in half precision.
        kind = jnp.dtype(f"uint{8 * stack.dtype.itemsize}")
        stack_bits, part_bits = (jax.lax.bitcast_convert_type(x, kind) for x in (stack, part))
        part_bits = jnp.expand_dims(part_bits, tuple(range(len(index))))  # [1, (1,) ...]
        start = (*index, *[0] * part.ndim)  # [axes of the stack] + whole part
        written = jax.lax.dynamic_update_slice(stack_bits, part_bits, start)
        return jax.lax.bitcast_convert_type(written, stack.dtype)

    return jax.jit(write, donate_argnums=0, out_shardings=sharding)
