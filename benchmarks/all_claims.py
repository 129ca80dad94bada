"""How long all claims take on this machine, cold and warm, and which take longest.

    python benchmarks/all_claims.py --jobs 2

Cold is without any compiled program, warm with those that the cold run left. The start of
`python -m experiments list` is timed as well. Records go to a folder that is thrown away; the
table lands in benchmarks/results/all_claims.json.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from experiments import catalogue, contract, records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("patterns", nargs="*", default=["*"])
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    names = [entry.name for entry in catalogue.find(arguments.patterns)]
    table = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "jobs": arguments.jobs,
        "claims": len(names),
        "listing_seconds": round(listing_seconds(), 2),
    }
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "TRAINING_DYNAMICS_CACHE": f"{folder}/cache"}
        for turn in ("cold", "warm"):
            table[turn] = run(names, arguments.jobs, Path(folder, turn), environment)
            print(turn, json.dumps(table[turn], indent=1), flush=True)
    target = Path(__file__).parent / "results" / "all_claims.json"
    target.write_text(json.dumps(table, indent=1) + "\n")


def run(names: list[str], jobs: int, out: Path, environment: dict[str, str]) -> dict:
    """Run the claims once; return the wall time, the verdicts and the slowest ten."""
    command = [sys.executable, "-m", "experiments", "run", *names, f"--jobs={jobs}"]
    start = time.perf_counter()
    done = subprocess.run([*command, f"--out={out}"], env=environment, check=False)
    minutes = (time.perf_counter() - start) / 60
    seconds, verdicts = {}, []
    for entry in catalogue.find(names):
        try:
            record = records.load_record(
                records.Paths(out, entry.tree, entry.theme, entry.slug).record
            )
        except contract.CallError:
            verdicts.append("none")
            continue
        verdicts.append(record["verdict"])
        seconds[entry.name] = record["seconds"]["total"]
    slowest = sorted(seconds.items(), key=lambda item: -item[1])[:10]
    return {
        "minutes": round(minutes, 2),
        "status": done.returncode,
        "verdicts": {verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))},
        "slowest_seconds": {name: round(value, 1) for name, value in slowest},
    }


def listing_seconds() -> float:
    """Return the median seconds of `python -m experiments list`."""
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        command = [sys.executable, "-m", "experiments", "list"]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
