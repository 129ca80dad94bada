"""Run claims on base seeds that no bound was set on, and keep what each check measured.

    python benchmarks/base_seeds.py '*' --seeds 1 2 3 4 5 --out FOLDER

Records land in FOLDER/SEED; what is there already is not run again. The rows of these claims are
put in the table benchmarks/results/base_seeds.json; those of others stay.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from experiments import catalogue, records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("patterns", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    target = Path(__file__).parent / "results" / "base_seeds.json"
    table = json.loads(target.read_text()) if target.exists() else {}
    for entry in catalogue.find(arguments.patterns):
        table[entry.name] = {"pilot_seeds": entry.pilot_seeds, "seeds": {}}
    for seed in arguments.seeds:
        out = arguments.out / str(seed)
        command = [sys.executable, "-m", "experiments", "run", *arguments.patterns]
        subprocess.run([*command, f"--seed={seed}", f"--out={out}", "--resume"], check=False)
        for entry in catalogue.find(arguments.patterns):
            paths = records.Paths(out, entry.tree, entry.theme, entry.slug)
            record = records.load_record(paths.record)
            table[entry.name]["seeds"][seed] = {
                "verdict": record["verdict"],
                **{check["name"]: check["measured"] for check in record["checks"]},
            }
    target.write_text(json.dumps(dict(sorted(table.items())), indent=1) + "\n")
    for name, row in table.items():
        print(name, {seed: found["verdict"] for seed, found in row["seeds"].items()})


if __name__ == "__main__":
    main()
