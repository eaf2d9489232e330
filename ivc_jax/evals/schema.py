"""What a run leaves behind, typed: records, and the rows and meta of `results.json`.

A field is a key on disk, in this order. Files of earlier versions lack some keys, which then have
the defaults; keys that are not known here are an error.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

_T = TypeVar("_T")


class SchemaError(ValueError):
    """A record or a result file that does not hold what it should."""


@dataclasses.dataclass(frozen=True)
class Record:
    """The outcome of one example under one method: a line of `records/*.jsonl`.

    Times are those of the batch divided by its size. `kept` lists the surviving visual tokens,
    counted from 0 within the sample; `cached_share` is the mean over layers of the share of them in
    the cache, `flops` counts the operations of the decoder in the prefill. Examples with equal
    `picture` ask about the same images. `cells` holds what the benchmark's score needs of the row
    beside the answer. A failed row has `error` and no prediction.
    """

    task: str
    split: str
    example_id: str
    model: str
    method: str
    keep_ratio: float
    prediction: str | None
    parsed: Any
    score: float | None  # 0 to 1; None if the row failed
    target: str | None
    question: str | None
    category: str
    visual_tokens: int
    kept_tokens: int
    kept: list[int]  # visual tokens, counted from 0
    grids: list[list[int]]  # (frames, rows, columns) in tokens, of each image
    kv_bytes: float
    prefill_ms: float
    decode_ms: float
    decode_steps: int
    seconds: float
    seed: int
    commit: str
    row: int  # from 1, in the file
    cached_share: float = 1.0
    flops: float = 0.0
    picture: str = ""
    cells: Mapping[str, str] = dataclasses.field(default_factory=dict)
    failed: bool = False
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """One method on one task, or on the average of several.

    Attributes:
        task: "average" and "average/GROUP" are means over tasks.
        n: examples that count: failed ones do not.
        score: the headline metric of the task, from 0 to 1.
        metrics: all of them, by name; "measure/part" is of a part of the examples.
        retention: score / dense score; None without dense, or where it scores 0.
        prefill_ms: a median, as `decode_ms_per_token`; the other costs are means.
    """

    task: str
    method: str
    keep_ratio: float
    n: int
    score: float
    metrics: Mapping[str, float]
    retention: float | None
    visual_tokens: float
    kept_tokens: float
    kv_bytes: float
    prefill_ms: float
    decode_ms_per_token: float

    @property
    def kept_share(self) -> float:
        """Share of the visual tokens left after the last cut, as counted; 1 where there are none.

        A keep ratio is what was asked for; counts of tokens are whole, so this may be less or more.
        """
        return self.kept_tokens / self.visual_tokens if self.visual_tokens else 1.0


@dataclasses.dataclass
class Statistics:
    """Where the time of a run went, in seconds.

    Attributes:
        survey: measuring the rows.
        compile: first runs of new programs.
        device: transfer, shared tower, prefill and decode, waited for.
        wait: for batches that were not loaded in time.
        total: from the first batch to the last record.
        buckets: padded shapes.
        batches: that ran.
    """

    survey: float = 0.0
    compile: float = 0.0
    device: float = 0.0
    wait: float = 0.0
    total: float = 0.0
    buckets: int = 0
    batches: int = 0

    @property
    def busy_share(self) -> float | None:
        """Share of the time without compiling in which the devices worked; None if nothing ran."""
        worked = self.total - self.compile
        return self.device / worked if self.batches and worked > 0 else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Meta:
    """What a run was.

    Attributes:
        weights: "int8" if they are; `dtype` is that of all else.
        protocol: "released" if pictures and cells were treated as the released evaluation does.
        pixel_bounds: by task, the least and the largest area of a resized picture.
        limit: rows of each task, None for all.
        compiled_programs: of the prefill; `compiled_decodes` are of the decode.
        unreachable: by method that cannot reach its budget, why.
        studies: as `dataclasses.asdict` writes them.
        files: the benchmark file of each task.
        rope: "head_dim" and "theta" of the model.
        image_start: position id at which the first image of the first readable example starts.
        paper: what the paper's tables show; of no other run.
        failures: the errors of the first failed rows.
        commits: of all records.
    """

    model: str
    device: str
    dtype: str
    weights: str | None = None
    jax_version: str
    commit: str
    date: str
    seed: int
    batch_size: int
    shared_tower: bool = False
    protocol: str = "own"
    pixel_bounds: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
    limit: int | None
    compiled_programs: int
    compiled_decodes: int | None = None
    statistics: Statistics | None = None
    mesh: Mapping[str, int] | None = None
    processes: int | None = None
    tasks: Sequence[str]
    methods: Sequence[str]
    unreachable: Mapping[str, str] = dataclasses.field(default_factory=dict)
    studies: Sequence[Mapping[str, Any]] = ()
    files: Mapping[str, str]
    rope: Mapping[str, float]
    image_start: int | None
    # Known when the run has ended: None is no key before that.
    paper: Mapping[str, Any] | None = None
    command: str | None = None
    wall_seconds: float | None = None
    failed_rows: int | None = None
    failures: Sequence[str] | None = None
    commits: Sequence[str] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what `results.json` holds."""
        found = dataclasses.asdict(self)
        if self.statistics is not None:
            found["statistics"]["busy_share"] = self.statistics.busy_share
        return {name: found[name] for name in found if name not in _LATE or found[name] is not None}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Meta":
        """Read what `to_dict` returned.

        Raises:
            SchemaError: a key is missing or unknown.
        """
        statistics = content.get("statistics")
        if statistics is not None:
            # busy_share is computed, never read
            measured = {name: statistics[name] for name in statistics if name != "busy_share"}
            content = {**content, "statistics": build(Statistics, measured)}
        return build(cls, content)


# not yet known while the run goes on
_LATE = ("paper", "command", "wall_seconds", "failed_rows", "failures", "commits")


def build(kind: type[_T], content: Mapping[str, Any]) -> _T:
    """Make a dataclass of the keys of a file.

    Raises:
        SchemaError: a key is missing or unknown.
    """
    try:
        return kind(**content)  # a wrong key is a TypeError of the constructor
    except TypeError as error:
        raise SchemaError(f"no {kind.__name__.lower()}: {error}") from None
