"""Products of OpenVINO with one matrix, timed on request: the process behind `kernels.py --peers openvino`.

    kernels_peer_openvino.py ROWS COLS WEIGHTS

Runs in an environment with OpenVINO and numpy alone. Questions and answers are those of kernels_peer_ggml.c, the one
type of weights is f32, and a product is one call of an infer request, with x and y in its own memory.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import openvino
from openvino import opset13 as ops

TURN_SECONDS, COLD_CALLS, EVICTING_BYTES = 0.002, 3, 96 << 20  # as in kernels_timing.py


def compiled(weights: np.ndarray, x: np.ndarray, threads: int) -> openvino.InferRequest:
    """A request that multiplies x (tokens, cols) by the transpose of constant weights (rows, cols)."""
    parameter = ops.parameter(x.shape, np.float32)
    product = ops.matmul(parameter, ops.constant(weights), transpose_a=False, transpose_b=True)
    model = openvino.Model([product], [parameter])
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # it would take bfloat16 where the processor has that
    }
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
    request.input_tensors[0].data[:] = x
    return request


def seconds_of_calls(run: Callable[[], object]) -> list[float]:
    """Seconds of each call in TURN_SECONDS."""
    calls = []
    begin = start = time.perf_counter()
    while start - begin < TURN_SECONDS:
        run()
        end = time.perf_counter()
        calls.append(end - start)
        start = end
    return calls


def turn(run: Callable[[], object], before: Callable[[], object] | None, evicting: np.ndarray) -> float:
    """Seconds of one call, as in kernels_timing.py; cold if something is to run before."""
    if before is None:
        seconds_of_calls(run)
        return statistics.median(seconds_of_calls(run))
    run()
    calls = []
    for _ in range(COLD_CALLS):
        evicting.sum()
        before()
        start = time.perf_counter()
        run()
        calls.append(time.perf_counter() - start)
    return statistics.median(calls)


def main() -> None:
    rows, cols = int(sys.argv[1]), int(sys.argv[2])
    weights = np.fromfile(sys.argv[3], np.float32).reshape(rows, cols)
    request, before, evicting = None, None, np.ones(EVICTING_BYTES // 8, np.int64)
    for line in sys.stdin:
        question, first, *rest = line.rstrip("\n").split(" ", 3 if line.startswith("case") else 2)
        if question == "case":
            x = np.fromfile(rest[1], np.float32).reshape(int(rest[0]), cols)
            request, before = compiled(weights, x, int(first)), compiled(weights.copy(), x, int(first))
            answer = "ok"
        elif question == "result" and request is not None:
            request.infer()
            np.asarray(request.output_tensors[0].data).tofile(rest[0])
            answer = "ok"
        elif question in ("warm", "cold") and request is not None and before is not None:
            answer = f"{turn(request.infer, before.infer if question == 'cold' else None, evicting):.6e}"
        else:
            raise SystemExit(f"unknown question {line!r}")
        print(answer, flush=True)


if __name__ == "__main__":
    main()
