"""Reads the text of a compiled XLA program: instructions, and how often each one runs.

    ENTRY %main (...) -> ... {
      %while.1 = (...) while(%tuple), condition=%cond, body=%body      28 times, says %cond
      %fusion.2 = bf16[4,128]{1,0} fusion(%a, %b), calls=%fused
    }

Loops over layers count up to a constant; a loop that may end early, such as that over generated
tokens, is counted once and marked open.
"""

import dataclasses
import re
from collections.abc import Iterator

# "%body (p: f32[2]) -> f32[2] {" begins a computation
_HEADER = re.compile(r"^(ENTRY )?%?([^ (]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([^ ]+) = (.*)$")  # "  ROOT %add.1 = ..."
# "bf16[4,128]{1,0:T(8,128)S(1)}"; pred has no number of bits
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\](\{[^}]*\})?")
_BITS = re.compile(r"\d+")
# Called once wherever they stand; what `fusion` and `reduce` call is part of one instruction.
_CALLS = re.compile(r"\b(?:calls|to_apply|called_computations=\{)=?%?([^ ,}]+)")
# "branch_computations={%a, %b}" of a switch; a conditional of two names them one by one
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_TWO_BRANCHES = re.compile(r"\b(?:true|false)_computation=%?([^ ,}]+)")


@dataclasses.dataclass(frozen=True)
class Array:
    """An array as an instruction sees it.

    Attributes:
        dtype: XLA's name of it, such as bf16.
        shape: on one device.
        space: 0 is HBM, others are memories on the chip.
    """

    dtype: str
    shape: tuple[int, ...]
    space: int = 0

    @property
    def size(self) -> int:
        """Number of elements."""
        count = 1
        for length in self.shape:
            count *= length
        return count

    @property
    def nbytes(self) -> int:
        """Bytes without the padding of tiles."""
        bits = 8 if self.dtype == "pred" else int(_BITS.search(self.dtype)[0])
        return self.size * bits // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction: its results, opcode, names of operands, and the rest of the line."""

    name: str
    results: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    root: bool = False

    def called(self, key: str) -> str | None:
        """Return the name of the computation given as `key=%name`."""
        found = re.search(rf"\b{key}=%?([^ ,}}]+)", self.attributes)
        return found[1] if found else None


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Execution:
    """An instruction outside of fusions, and how often a run executes it.

    Attributes:
        computation: where the instruction stands.
        instruction: itself.
        times: product of the known trip counts of the loops around it.
        open: a loop of unknown length is around it: `times` is for one round of that.
    """

    computation: Computation
    instruction: Instruction
    times: int
    open: bool


@dataclasses.dataclass(frozen=True)
class Program:
    """A parsed program."""

    computations: dict[str, Computation]
    entry: str

    def executions(self) -> Iterator[Execution]:
        """Yield what a run executes. Of branches, all: one of them runs."""
        yield from self._walk(self.entry, 1, False)

    def _walk(self, name: str, times: int, is_open: bool) -> Iterator[Execution]:
        computation = self.computations[name]
        for instruction in computation.values():
            yield Execution(computation, instruction, times, is_open)
            if instruction.opcode == "while":
                count = self.trip_count(instruction)
                # unknown: one round, and marked open
                around = (times * (count or 1), is_open or count is None)
                # The condition runs once more than the body; that round is too cheap to count.
                for part in ("condition", "body"):
                    yield from self._walk(instruction.called(part), *around)
            elif instruction.opcode == "conditional":
                for branch in _find_branches(instruction):
                    yield from self._walk(branch, times, is_open)
            # fusions are not entered: they are one instruction
            elif instruction.opcode in ("call", "async-start"):
                found = _CALLS.search(instruction.attributes)
                yield from self._walk(found[1], times, is_open) if found else ()

    def trip_count(self, loop: Instruction) -> int | None:
        """Return how often a loop runs, if its condition says `counter < constant`."""
        # condition { ..., ROOT compare(counter, constant), direction=LT }, perhaps in a fusion
        condition = self.computations[loop.called("condition")]
        # The root is compare(counter, bound), direction=LT. It may sit in a fusion, and its bound
        # outside of that.
        test = next(i for i in condition.values() if i.root)
        if test.opcode == "fusion":
            inner = self.computations[test.called("calls")]
            outer = test.operands
            test = next(i for i in inner.values() if i.root)
            bound = inner.get(test.operands[-1])
            if bound is not None and bound.opcode == "parameter":
                # parameter n of the fusion is its operand n
                bound = condition.get(outer[int(bound.attributes)])
        else:
            bound = condition.get(test.operands[-1]) if test.operands else None
        # such as "and(not done, counter < n)": it may end early
        if test.opcode != "compare" or "direction=LT" not in test.attributes:
            return None
        if bound is None or bound.opcode != "constant":
            return None
        return int(bound.attributes)


def _find_branches(instruction: Instruction) -> list[str]:
    found = _BRANCHES.search(instruction.attributes)
    if found:
        return [name.strip().lstrip("%") for name in found[1].split(",")]
    return _TWO_BRANCHES.findall(instruction.attributes)


def parse(text: str) -> Program:
    """Parse what `compiled.as_text()` returns.

    Raises:
        ValueError: there is no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry = None
    current: Computation = {}
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif found := _INSTRUCTION.match(line):
            instruction = _parse_instruction(found[2], found[3], root=bool(found[1]))
            current[instruction.name] = instruction
    if entry is None:
        raise ValueError("this is no text of an XLA program: it has no ENTRY computation")
    return Program(computations, entry)


def _parse_instruction(name: str, text: str, *, root: bool) -> Instruction:
    """Split `TYPE opcode(operands), attributes`; a constant's value counts as attributes."""
    # a tuple type is in parentheses; any other ends at the first space
    end = _find_closing(text) if text.startswith("(") else text.index(" ")
    results, rest = text[:end], text[end:].lstrip()
    # "(" is cut off: it goes back on for the count of parentheses
    opcode, _, rest = rest.partition("(")
    end = _find_closing("(" + rest) - 2
    inside, attributes = rest[:end], rest[end + 1 :]
    # %names alone, whether or not their types are written
    operands = tuple(re.findall(r"%([^ ,()]+)", inside))
    # constant(28), parameter(0): the number is what is asked for
    if opcode in ("constant", "parameter"):
        attributes = inside
    return Instruction(name, parse_arrays(results), opcode, operands, attributes, root)


def _find_closing(text: str) -> int:
    """Return the index behind the parenthesis that closes the first one."""
    depth = 0
    for index, character in enumerate(text):
        # +1 for "(", -1 for ")"
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return index + 1  # the slice [:index + 1] holds both parentheses
    return len(text)


def parse_arrays(text: str) -> tuple[Array, ...]:
    """List the arrays of a type, tuples flattened."""
    found = []
    for dtype, shape, layout in _ARRAY.findall(text):
        space = re.search(r"S\((\d+)\)", layout)  # S(1) is a memory on the chip; HBM is not written
        lengths = tuple(int(length) for length in shape.split(",") if length)
        found.append(Array(dtype, lengths, int(space[1]) if space else 0))
    return tuple(found)
