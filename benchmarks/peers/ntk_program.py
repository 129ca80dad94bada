"""One kernel of one network, on request: the part that all sides of benchmarks/ntk.py share.

The first line written tells versions; "start" compiles and runs once, "run" times one call, "check"
returns the kernel of the first 20 samples, taken from a call on all of them.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

CHECKED = 20


def peak_bytes():
    """Return this process's peak memory; getrusage's would start from its parent's."""
    (line,) = (
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    return int(line.split()[1]) * 1024


def serve(versions, kernel_of, params, x):
    """Answer requests; `kernel_of(params, x)` returns (N, N) or (N, N, K, K) when it is done."""
    print(json.dumps(versions), flush=True)
    last = None
    for line in sys.stdin:
        begin, work = time.perf_counter(), time.process_time()
        if line.strip() == "check":
            head = np.asarray(last[:CHECKED, :CHECKED], np.float64)
            answer = {"kernel": head.ravel().tolist(), "shape": head.shape}
        else:
            last = None
            last = kernel_of(params, x)
            answer = {"seconds": time.perf_counter() - begin}
            answer["core_seconds"] = time.process_time() - work
        answer["peak_bytes"] = peak_bytes()
        print(json.dumps(answer), flush=True)
