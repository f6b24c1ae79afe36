# SPDX-License-Identifier: Apache-2.0
"""A network recorded as CUDA graphs: its kernels start together instead of one by one from Python.

torch.compile records graphs too (`mode="reduce-overhead"`), but overwrites an output when the next network runs, and
before torch 2.12 fails in every thread but the one that imported it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_NUM_WARMUPS = 2  # the first run compiles and chooses algorithms, which a recording may not do


class RecordedNetwork:
    """A function of CUDA tensors to one tensor, recorded at the first call for each shape of its inputs.

    The function must do the same work for all values of one shape, without random numbers. Only one thread may call it
    at a time. All recordings share their memory: each call copies its inputs in and its output out.
    """

    def __init__(self, network: Callable[..., Tensor]) -> None:
        self._network = network
        self._recordings: dict[Any, tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]] = {}
        self._pool: Any = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        key = tuple((value.shape, value.dtype, value.device) for value in inputs)
        if key not in self._recordings:
            self._recordings[key] = self._record([value.clone() for value in inputs])
        graph, places, output = self._recordings[key]
        for place, value in zip(places, inputs, strict=True):
            place.copy_(value)
        graph.replay()
        return output.clone()

    def _record(self, places: list[Tensor]) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]:
        with torch.cuda.device(places[0].device):
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            # Recordings need another stream than the default one; libraries keep workspaces for each stream.
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_NUM_WARMUPS):
                    self._network(*places)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # Other threads may allocate memory meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                output = self._network(*places)
        return graph, places, output
