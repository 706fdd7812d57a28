"""Memory that ``varscale plan`` states against what the runs then record (``peak_mem_bytes``), on a CPU.

    python benchmarks/bench_plan_memory.py TOKENIZER CACHE [--widths 8 64 256] [--batches 16 64] [--steps 100]

TOKENIZER and CACHE: of the quickstart (outputs/quickstart/tokenizer and cache). Plans and trains each case in processes
of their own and prints a table. A CPU's record is the peak of the whole process, imported libraries among it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

import pandas as pd
from alternation import markdown_table
from tqdm import tqdm

from varscale.records import read_run

FAMILY = ["tokenizer=patch32", "data=dead_leaves", "model=ladder", "optim=ladder", "trainer=cpu"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--widths", type=int, nargs="+", default=[8, 64, 256])
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    found = [f"paths.tokenizer={options.tokenizer.resolve()}", f"paths.cache={options.cache.resolve()}"]
    rows = []
    with tempfile.TemporaryDirectory() as outputs:
        for width, batch in tqdm(list(product(options.widths, options.batches)), unit="case"):
            study = f"w{width}b{batch}"
            case = [f"study={study}", f"paths.outputs={outputs}", f"model.width={width}", f"train.batch={batch}"]
            case += [*FAMILY, *found, f"train.steps={options.steps}", "train.evaluations=1", "logger.mode=disabled"]
            for verb in ("plan", "train"):
                subprocess.run([sys.executable, "-m", "varscale", verb, *case], check=True, stdout=sys.stderr)
            (planned,) = json.loads((Path(outputs) / study / "plan.json").read_text())["runs"]
            (record,) = (Path(outputs) / study / "runs").glob("*/run.json")
            measured = read_run(record.parent).peak_mem_bytes
            assert measured is not None
            sizes = {"planned GB": planned["memory_bytes"] / 1e9, "measured GB": measured / 1e9}
            rows.append({"width": width, "images": batch, **sizes, "ratio": planned["memory_bytes"] / measured})
    print(markdown_table(rows))
    print(f"ratio {pd.DataFrame(rows)['ratio'].min():.3f} to {pd.DataFrame(rows)['ratio'].max():.3f}")


if __name__ == "__main__":
    main()
