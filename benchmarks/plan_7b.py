"""Plans for the 7B models on TPU slices: what fits, and how pruning compares with the formula.

    python benchmarks/plan_7b.py [--models qwen2-vl-7b qwen2.5-vl-7b] [--batch-size 8] [--search]

Everything is compiled ahead of time by libtpu; no TPU, no weights. For each model on v5e:2x4, with
4,096 visual tokens a sample: once with the vision tower, with --search looking for the largest
batch, and once without, where time can be compared with the operations of the decoder's blocks;
`uniform` prunes before the decoder, so that all of it shrinks. The other generations are planned
once each. The record is written anew after each part.
Expected on two CPU cores: 10 to 20 minutes, 5 GB of memory; three times that with --search.
"""

import argparse
from pathlib import Path
from typing import Any

from record import ROOT, write_report
from rich.console import Console

METHODS = ("dense", "ivc:keep_ratio=0.5")
UPFRONT = "uniform:layer=0,keep_ratio=0.5"
OTHERS = {"v4:2x2x1": "data=1,model=4", "v5p:2x2x1": "data=1,model=4", "v6e:2x2": "data=1,model=4"}


def plan(
    model: str,
    batch_size: int,
    console: Console,
    topology: str,
    mesh: str,
    methods: tuple[str, ...],
    no_search: bool,
    no_tower: bool = False,
) -> dict[str, Any]:
    """Make one plan."""
    from ivc_jax.commands.plan import (
        Arguments,
        DeviceOptions,
        ModelOptions,
        RunOptions,
        make_plan,
    )

    arguments = Arguments(
        ModelOptions(model=model, no_tower=no_tower),
        DeviceOptions(topology, mesh),
        RunOptions(methods=methods, batch_size=batch_size, no_search=no_search),
    )
    options = f"topology={topology} mesh={mesh} methods={methods} no_search={no_search}"
    options += " no_tower=True" if no_tower else ""
    console.print(f"{model}: {options}", markup=False)
    return make_plan(arguments, f"plan {model} {options}", console)


def compare(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Set the decoder's part of a pruned prefill against dense and against the formula."""
    dense, *others = rows
    found = {}
    for row in others:
        formula = row["decoder_formula_flops"] / dense["decoder_formula_flops"]
        time = row["prefill"]["estimated_ms"] / dense["prefill"]["estimated_ms"]
        found[row["method"]] = {
            "formula_flops_ratio": round(formula, 4),
            "estimated_time_ratio": round(time, 4),
            "time_over_formula": round(time / formula, 4),
            "saving_over_formula": round((1 - time) / (1 - formula), 4),
            **{
                f"{name}_ratio": round(row[name] / dense[name], 4)
                for name in ("cache_bytes", "peak_bytes")
            },
            **{
                f"{name}_{part}_ratio": round(row[name][part] / dense[name][part], 4)
                for name in ("prefill", "decode")
                for part in ("temporaries", "hbm_bytes", "estimated_ms")
            },
        }
    return found


def check(model: str, rows: list[dict[str, Any]], devices: int) -> dict[str, Any]:
    """Say what a plan must show: weights split over `model`, none gathered in a decode."""
    from ivc_jax.studies.planning.sizes import find_config
    from ivc_jax.weights.keymap import flatten
    from ivc_jax.weights.placement import abstract_params
    from ivc_jax.weights.source import DTYPES

    params = flatten(abstract_params(find_config(model), DTYPES["bfloat16"]))
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in params.values())
    gathered = [
        each["nbytes"]
        for row in rows
        for each in row["decode"]["collectives"]
        if each["kind"] == "all-gather"
    ]
    return {
        "fits": all(row["fits"] for row in rows),
        "weights_bytes": total,
        "device_share_of_weights": round(rows[0]["weights_bytes"] / total, 4),
        "model_axis": devices,
        "largest_all_gather_in_decode_bytes": max(gathered, default=0),
    }


def main() -> None:
    """Run and write benchmarks/results/plan_7b.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["qwen2-vl-7b", "qwen2.5-vl-7b"])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/plan_7b.json")
    chosen = parser.parse_args()
    console = Console(width=140)
    found: dict[str, Any] = {}
    for model in chosen.models:
        slice_ = {"topology": "v5e:2x4", "mesh": "data=2,model=4"}
        decoder = plan(
            model, chosen.batch_size, console, **slice_,
            methods=(*METHODS, UPFRONT), no_tower=True, no_search=True,
        )  # fmt: skip
        whole = plan(
            model, chosen.batch_size, console, **slice_, methods=METHODS,
            no_search=not chosen.search,
        )  # fmt: skip
        rows = whole["methods"]
        found[model] = {
            "checks": check(model, rows, whole["meta"]["mesh"]["model"]),
            "decoder_alone_against_formula": compare(decoder["methods"]),
            "plans": [whole, decoder],
        }
        write_report(chosen.out, "plan_7b", models=found, other_generations=[])
    others = []
    for name, mesh in OTHERS.items():
        options = {"topology": name, "mesh": mesh, "methods": METHODS, "no_search": True}
        others.append(plan(chosen.models[0], 4, console, **options))
        write_report(chosen.out, "plan_7b", models=found, other_generations=others)


if __name__ == "__main__":
    main()
