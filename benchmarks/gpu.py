# SPDX-License-Identifier: Apache-2.0
"""Our predictions and `diffusers.MarigoldDepthPipeline` on a GPU: time, arithmetic, memory and difference.

    python benchmarks/gpu.py [--minutes 8.5] [--output FILE.json]
    python benchmarks/gpu.py --device cpu --tiny     # the same code on a CPU with tiny networks, to try it out

Weights are random, at the full Stable Diffusion 2 architecture (0.95 billion), made on the GPU and saved to a temporary
folder (2 GB), so that our own loader reads them. Each row predicts whole photos of 768x576, one step, from uint8 arrays
to float32 depth in main memory, and is the median of several calls after a warm-up. "encode", "U-Net" and "decode" are
the networks alone, by the GPU's clock, with their inputs on the GPU. FLOP are those of the plain networks, also where
a rewritten one needs fewer. The ceilings are a matrix product of 8192 and a copy, measured at the start.

What rows show: default (of ours), channels_last (the same in that memory layout), plain (default with rewritten layers
off), graphs (default, recorded as CUDA graphs), compiled (torch.compile), compiled+graphs (`compile="full"` of ours).
The peer is diffusers as a user calls it, and in its documented recipe: half precision, a tiny autoencoder,
torch.compile of the U-Net with "reduce-overhead".

Differences of a single prediction are to diffusers in float32 (without TF32), from zeros as starting noise, on the
first photo of the batch. Those of an ensemble are to the first row of its kind: the two packages merge members by
different objectives. The most important rows come first; what does not fit into --minutes is left out. A row that
fails becomes a row with its error.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Setup:
    """How a pipeline is loaded."""

    who: str
    """ours or diffusers."""
    vae: str
    """full or tiny, both ways."""
    dtype: str
    way: str
    """default, channels_last, plain, graphs, compiled, compiled+graphs (ours); plain, recipe (diffusers)."""

    @property
    def is_recorded(self) -> bool:
        """Whether the first calls record what later ones replay."""
        return self.way not in ("plain", "default", "channels_last")

    def name(self, case: tuple[int, int]) -> str:
        """A row's name."""
        return f"{self.who} {self.vae} {self.dtype} {self.way} photos={case[0]} members={case[1]}"


# Photos and members of each prediction.
ONE, FOUR, SIXTEEN, ENSEMBLE = (1, 1), (4, 1), (16, 1), (1, 10)
ALL = (ONE, FOUR, SIXTEEN, ENSEMBLE)
PLAN: list[tuple[Setup, tuple[tuple[int, int], ...]]] = [
    (Setup("diffusers", "full", "float32", "plain"), (ONE,)),
    (Setup("diffusers", "tiny", "float32", "plain"), (ONE,)),
    (Setup("ours", "full", "float16", "default"), ALL),
    (Setup("diffusers", "full", "float16", "plain"), ALL),
    (Setup("ours", "tiny", "float16", "default"), ALL),
    (Setup("diffusers", "tiny", "float16", "plain"), ALL),
    (Setup("ours", "full", "float16", "channels_last"), (SIXTEEN, ONE)),
    (Setup("ours", "tiny", "float16", "channels_last"), (SIXTEEN, FOUR)),
    (Setup("ours", "tiny", "float16", "graphs"), ALL),
    (Setup("ours", "full", "float16", "graphs"), (ONE, SIXTEEN)),
    (Setup("diffusers", "tiny", "float16", "recipe"), (ONE,)),
    (Setup("ours", "tiny", "float16", "compiled+graphs"), (ONE,)),
    (Setup("ours", "full", "bfloat16", "default"), ALL),
    (Setup("ours", "full", "float16", "plain"), (ONE, SIXTEEN)),
    (Setup("ours", "full", "float16", "compiled+graphs"), (ONE,)),
    (Setup("ours", "tiny", "bfloat16", "default"), (ONE, SIXTEEN)),
    (Setup("ours", "full", "float32", "plain"), (ONE,)),
    (Setup("diffusers", "tiny", "float16", "recipe"), (SIXTEEN,)),
    (Setup("ours", "tiny", "float16", "compiled+graphs"), (SIXTEEN,)),
    (Setup("diffusers", "tiny", "float16", "recipe"), (ENSEMBLE,)),
    (Setup("ours", "tiny", "float16", "compiled+graphs"), (ENSEMBLE,)),
    (Setup("ours", "tiny", "float16", "compiled"), (ONE,)),
    (Setup("diffusers", "full", "float16", "recipe"), (ONE, SIXTEEN)),
    (Setup("ours", "full", "float16", "compiled+graphs"), (SIXTEEN, ENSEMBLE)),
    (Setup("ours", "full", "float16", "compiled"), (ONE, SIXTEEN)),
    (Setup("diffusers", "tiny", "float16", "recipe"), (FOUR,)),
    (Setup("ours", "tiny", "float16", "compiled+graphs"), (FOUR,)),
]
SHORT_PLAN = [  # each way once
    (setup, cases)
    for place, (setup, cases) in enumerate(PLAN)
    if not setup.is_recorded or (setup.who, setup.way) not in {(other.who, other.way) for other, _ in PLAN[:place]}
]
_SPARE_S = 4.0  # kept for the table at the end
_PROGRESS = "progress.json"


def main() -> None:
    """Measures what fits into the time and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="tiny networks and photos: does everything run?")
    parser.add_argument("--minutes", type=float, default=8.5, help="when to stop")
    parser.add_argument("--output", type=Path, help="JSON file, written anew after each row")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="rows whose name has all these words")
    parser.add_argument("--continues", type=Path, help=argparse.SUPPRESS)  # after an error that ends a process
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            f"torch {torch.__version__} finds no CUDA device; use --device cpu --tiny to try the script out"
        )
    folder = arguments.continues or Path(tempfile.mkdtemp(prefix="openmarigold-gpu-"))
    earlier = json.loads((folder / _PROGRESS).read_text(encoding="utf-8")) if arguments.continues else {}
    report = Report(arguments.output, folder, earlier.get("rows", []), earlier.get("facts", {}))
    ends_at = earlier.get("ends_at") or time.time() + 60 * arguments.minutes - _SPARE_S
    watch = threading.Timer(max(0.1, ends_at - time.time()), report.stop)  # also a compiler does not outlast it
    watch.daemon = True
    watch.start()
    try:
        measure(arguments, report, ends_at)
    finally:
        watch.cancel()
        report.close()


def measure(arguments: argparse.Namespace, report: Report, ends_at: float) -> None:
    """Measures the ceilings and row after row."""
    from gpu_pipelines import machine, make_weights, network_flops

    bench = Bench(arguments.device, tiny=arguments.tiny, folder=report.folder)
    if not report.facts:
        report.at = "the ceilings"
        report.facts = machine(arguments.device) | ceilings(bench)
        report.at = "the weights"
        make_weights(report.folder, bench.photos[0], device=arguments.device, tiny=arguments.tiny)
        report.facts |= {"flops": network_flops(report.folder, bench.size), "size": bench.size}
        report.write()
    done = {row["name"] for row in report.rows}
    for setup, cases in SHORT_PLAN if arguments.tiny else PLAN:
        cases = [case for case in cases if setup.name(case) not in done]
        cases = [case for case in cases if all(word in setup.name(case) for word in arguments.only)]
        if not cases:
            continue
        report.at = setup.name(cases[0])
        pipeline: Any = None
        try:
            pipeline = bench.open(setup)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next rows are measured
            report.fail(setup, cases, error)
            cases = []
        for case in cases:
            report.at = setup.name(case)
            started = time.perf_counter()
            try:
                row = bench.row(pipeline, setup, case, report.facts)
                report.add({**row, "took_s": round(time.perf_counter() - started, 2)})
            except Exception as error:  # noqa: BLE001
                report.fail(setup, [case], error)
                bench.clean()
                if not bench.is_healthy():
                    break
        pipeline = None
        bench.clean()
        if not bench.is_healthy():  # such as an illegal address: every later call of this process fails too
            progress = {"rows": report.rows, "facts": report.facts, "ends_at": ends_at}
            (report.folder / _PROGRESS).write_text(json.dumps(progress), encoding="utf-8")
            print("the device does not answer any more: continuing in a new process", flush=True)
            os.execv(sys.executable, [sys.executable, *sys.argv, "--continues", str(report.folder)])


class Report:
    """The rows so far: a JSON file after each, a table at the end."""

    def __init__(self, path: Path | None, folder: Path, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
        self.path, self.folder, self.rows, self.facts = path, folder, rows, facts
        self.at = "the start"
        self._stopped: str | None = None
        self._lock, self._writing = threading.Lock(), threading.Lock()

    def add(self, row: dict[str, Any]) -> None:
        """Keeps a row."""
        self.rows.append(row)
        print(f"{row['name']}: {row.get('error') or summary(row)}", flush=True)
        self.write()

    def fail(self, setup: Setup, cases: Any, error: Exception) -> None:
        """Keeps rows that were not measured."""
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        for case in cases:
            self.add({"name": setup.name(case), **asdict(setup), "photos": case[0], "members": case[1], "error": text})

    def write(self) -> None:
        """Writes the file, whole or not at all."""
        with self._writing:  # the clock ends the process, and no half of a file may stay
            if self.path is None:
                return
            temporary = self.path.with_name(f".{self.path.name}.part")
            content = {**self.facts, "stopped_at": self._stopped, "rows": self.rows}
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            temporary.replace(self.path)

    def stop(self) -> None:
        """Ends the process where it stands; called by the clock."""
        self._stopped = self.at
        self.close()
        os._exit(0)

    def close(self) -> None:
        """Writes and prints everything, once."""
        if not self._lock.acquire(blocking=False):
            return
        self.write()
        with self._writing:
            self.path = None
        print("\n" + "\n".join(table(self.facts, self.rows)), flush=True)
        if self._stopped is not None:
            print(f"\nStopped by the clock at {self._stopped}.", flush=True)
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass
class Peak:
    """The most memory allocated, also over the resets of the engine, which measures its batches itself."""

    device: str
    highest: int = 0

    def __enter__(self) -> Peak:
        self._reset = torch.cuda.reset_peak_memory_stats
        if self.device == "cuda":
            self._reset()
            torch.cuda.reset_peak_memory_stats = self._keep
        return self

    def __exit__(self, *_: object) -> None:
        torch.cuda.reset_peak_memory_stats = self._reset
        self._keep()

    def _keep(self, *_: object) -> None:
        if self.device == "cuda":
            self.highest = max(self.highest, torch.cuda.max_memory_allocated())
            self._reset()


class Bench:
    """Photos, clocks and references."""

    def __init__(self, device: str, *, tiny: bool, folder: Path) -> None:
        self.device, self.tiny, self.folder = device, tiny, folder
        self.size = (24, 32) if tiny else (576, 768)
        from gpu_pipelines import photo

        self.photos = [photo(number, self.size) for number in range(16)]
        shape = (10, 4, self.size[0] // 8, self.size[1] // 8)
        self.latents = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        self.references: dict[Any, tuple[str, np.ndarray]] = {}

    def open(self, setup: Setup) -> Any:
        """The pipeline of a row, loaded."""
        from gpu_pipelines import Ours, Theirs

        torch.backends.cudnn.allow_tf32 = setup.dtype != "float32"  # float32 is the reference
        return (Ours if setup.who == "ours" else Theirs)(setup, self.folder, self.device, self.size)

    def row(self, pipeline: Any, setup: Setup, case: tuple[int, int], facts: dict[str, Any]) -> dict[str, Any]:
        """Everything about one row."""
        count, members = case
        photos = self.photos[:count]
        first = time.perf_counter()
        with Peak(self.device) as peak:
            for _ in range(3 if setup.is_recorded else 1):
                pipeline.predict(photos, members)
            warm_up_s = time.perf_counter() - first
            times = self.time(lambda: pipeline.predict(photos, members), limit_s=1.5, most=15)
        reserved = torch.cuda.memory_reserved() if self.device == "cuda" else 0
        networks = {
            name: statistics.median(self.time(call, limit_s=0.5, most=15, on_device=True))
            for name, call in pipeline.networks(photos, members).items()
        }
        flop = {name: facts["flops"][setup.vae][name] for name in ("encode", "denoise", "decode")}
        useful = count * (flop["encode"] + members * (flop["denoise"] + flop["decode"]))
        seconds = statistics.median(times)
        ceiling = facts["matmul_tflops"].get(pipeline.dtype)
        return {
            "name": setup.name(case),
            **asdict(setup),
            "photos": count,
            "members": members,
            "dtype_used": pipeline.dtype,
            "ms": 1000 * seconds,
            "fastest_ms": 1000 * min(times),
            "slowest_ms": 1000 * max(times),
            "repeats": len(times),
            "photos_per_s": count / seconds,
            "tflops": useful / seconds / 1e12,
            "share_of_matmul": useful / seconds / 1e12 / ceiling if ceiling else None,
            "network_ms": {name: 1000 * value for name, value in networks.items()},
            "network_share_of_matmul": {
                name: count * (1 if name == "encode" else members) * flop[name] / value / 1e12 / ceiling
                for name, value in networks.items()
            },
            "warm_up_s": warm_up_s,
            "peak_gib": peak.highest / 2**30,
            "reserved_gib": reserved / 2**30,
            **self.difference(pipeline, setup, case, photos),
        }

    def difference(self, pipeline: Any, setup: Setup, case: tuple[int, int], photos: Any) -> dict[str, Any]:
        """How far the first photo's depth is from the reference; the first row of a kind is the reference."""
        members = case[1]
        if members > 1:
            key, depth = (setup.who, setup.vae, members), pipeline.predict(photos, members, latents=self.latents)
        else:
            key, depth = (setup.vae, members), pipeline.predict(photos, members, zeros=True)
        depth = depth[0].astype(np.float32)
        if not np.isfinite(depth).all():
            raise ValueError("the depth is not finite")
        label, expected = self.references.setdefault(key, (setup.name(case), depth))
        apart = np.abs(depth - expected)
        return {
            "difference_to": label,
            "max_difference": float(apart.max()),
            "mean_difference": float(apart.mean()),
            "depth_std": float(depth.std()),
        }

    def time(self, call: Callable[[], object], *, limit_s: float, most: int, on_device: bool = False) -> list[float]:
        """Seconds of repeated calls, at least two and as many as fit into `limit_s`; by the GPU's clock if asked."""
        if self.device == "cpu":
            limit_s, most = limit_s / 50, 2
        elif on_device:
            call()
        found: list[float] = []
        while len(found) < 2 or (len(found) < most and sum(found) < limit_s):
            if on_device and self.device == "cuda":
                start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                start.record()
                call()
                end.record()
                torch.cuda.synchronize()
                found.append(start.elapsed_time(end) / 1000)
                continue
            if self.device == "cuda":
                torch.cuda.synchronize()
            before = time.perf_counter()
            call()
            found.append(time.perf_counter() - before)
        return found

    def clean(self) -> None:
        """Gives back what a row took."""
        gc.collect()
        if self.device == "cuda":
            from torch._inductor.cudagraph_trees import reset_cudagraph_trees

            try:
                torch._dynamo.reset()
                reset_cudagraph_trees()
                gc.collect()
                torch.cuda.empty_cache()
            except Exception as error:  # noqa: BLE001 - of a broken context, which is_healthy finds
                print(f"cleaning failed: {type(error).__name__}", flush=True)

    def is_healthy(self) -> bool:
        """Whether the device still answers."""
        if self.device == "cpu":
            return True
        try:
            torch.ones(1, device="cuda").sum().item()
            torch.cuda.synchronize()
        except Exception:  # noqa: BLE001
            return False
        return True


def ceilings(bench: Bench) -> dict[str, Any]:
    """Matrix products of random numbers in each precision, and a copy."""
    side = 256 if bench.tiny else 8192
    found: dict[str, float] = {}
    torch.backends.cuda.matmul.allow_tf32 = False
    for name in ("float16", "bfloat16", "float32"):
        if name == "float16" and bench.device == "cpu":
            continue  # hundreds of times slower
        first, second = (torch.randn(side, side, device=bench.device).to(getattr(torch, name)) for _ in range(2))
        times = bench.time(lambda a=first, b=second: a @ b, limit_s=0.7, most=20, on_device=True)
        found[name] = 2 * side**3 / statistics.median(times) / 1e12
    source = torch.randn((2**20 if bench.tiny else 2**30), device=bench.device)
    target = torch.empty_like(source)
    times = bench.time(lambda: target.copy_(source), limit_s=0.5, most=20, on_device=True)
    copied = 2 * source.numel() * source.element_size() / statistics.median(times) / 1e12
    return {"matmul_side": side, "matmul_tflops": found, "copy_tb_per_s": copied}


def summary(row: dict[str, Any]) -> str:
    """A measured row in a line."""
    return (
        f"{row['ms']:.1f} ms, {row['photos_per_s']:.1f} photos/s, {row['tflops']:.0f} TFLOP/s, "
        f"{row['peak_gib']:.2f} GiB, mean difference {row['mean_difference']:.1e} (warm-up {row['warm_up_s']:.1f} s)"
    )


def table(facts: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """Lines of Markdown: the machine, the ceilings, a row each."""
    if not facts:
        return ["Nothing was measured."]
    names = ("device", "driver", "cuda", "torch", "diffusers", "python", "date")
    rates = ", ".join(f"{name} {rate:.3g}" for name, rate in facts["matmul_tflops"].items())
    lines = [
        ", ".join(f"{name} {facts[name]}" for name in names if name in facts),
        f"Matrix product of {facts['matmul_side']} [TFLOP/s]: {rates}; copy, read and written: "
        f"{facts['copy_tb_per_s']:.3g} TB/s",
        "",
        "| pipeline | autoencoder | precision | way | photos | members | ms | photos/s | TFLOP/s | of matmul "
        "| encode, U-Net, decode [ms] | peak GiB | max difference | mean | std of depth |",
        "|" + "---|" * 15,
    ]
    for row in rows:
        start = f"| {row['who']} | {row['vae']} | {row['dtype']} | {row['way']} | {row['photos']} | {row['members']} |"
        if "error" in row:
            lines.append(f"{start} {row['error'].replace('|', '/')[:120]} |" + " |" * 8)
            continue
        share = "" if row["share_of_matmul"] is None else f"{100 * row['share_of_matmul']:.1f} %"
        networks = ", ".join(f"{value:.1f}" for value in row["network_ms"].values())
        is_reference = row["difference_to"] == row["name"]
        apart = "reference | " if is_reference else f"{row['max_difference']:.1e} | {row['mean_difference']:.1e}"
        lines.append(
            f"{start} {row['ms']:.1f} | {row['photos_per_s']:.1f} | {row['tflops']:.3g} | {share} | {networks} "
            f"| {row['peak_gib']:.2f} | {apart} | {row['depth_std']:.2f} |"
        )
    return lines


if __name__ == "__main__":
    main()
