# SPDX-License-Identifier: Apache-2.0
"""Makes videos and files of a clip: `openmarigold video`. A killed run can be resumed and gives the same bytes."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from openmarigold import __version__
from openmarigold.config import FileFormat, OutputConfig, PredictConfig
from openmarigold.errors import ImageError, InvalidValueError, OutputError
from openmarigold.files import as_path, write_atomically
from openmarigold.images.exr import require_exr
from openmarigold.predictor.stream_state import StreamedFrame
from openmarigold.results.inputs import make_output_dir
from openmarigold.results.manifest import file_size
from openmarigold.results.provenance import to_json
from openmarigold.temporal.settings import StreamConfig
from openmarigold.text_files import parse_json
from openmarigold.video.clip import Clip, Watch, exact
from openmarigold.video.earlier import Earlier
from openmarigold.video.encoding import Sound, check_encoders, join
from openmarigold.video.model import LoadedModel, StreamModel, VideoEvent, VideoResult
from openmarigold.video.pipeline import run_pipeline
from openmarigold.video.products import Track, frame_arrays, tracks_of, write_frames
from openmarigold.video.reading import PIPE, clip_sha256, open_clip, stem_of
from openmarigold.video.settings import VideoConfig
from openmarigold.video.sinks import FolderSink, PipeSink, Shown
from openmarigold.video.work import Progress, Work

# Settings that do not change the bytes of a finished segment.
_WITHOUT_EFFECT = frozenset({"segment", "pipe"})
_MAX_NAME_BYTES = 255  # of a file name, on the usual file systems


def video_file(
    source: Path | str,
    output_dir: Path | str,
    *,
    config: PredictConfig | None = None,
    stream: StreamConfig | None = None,
    video: VideoConfig | None = None,
    overwrite: bool = False,
    report: Callable[[VideoEvent], object] = lambda event: None,
) -> VideoResult:
    """Predicts a clip frame by frame, in constant memory, and writes the files of `video.format` into a folder.

    Args:
        source: a video file, a folder of pictures, a pattern such as `frames/*.png`, or `-` for a pipe.
        output_dir: created if missing; `-` writes one video to stdout.
        config: the model and its settings.
        stream: how frames are joined; docs/video.md.
        video: which frames, and what is written.
        overwrite: repeat finished work, and replace results of another clip.
        report: called with the progress.

    Raises:
        ImageError: a clip that cannot be read, or holds no frame.
        InvalidValueError: a setting that is not accepted.
        MissingExtraError: without PyAV, or another package that the settings need.
        CheckpointError: the checkpoint cannot be used.
        OutputError: the folder cannot be written. Finished frames are kept for the next run.
    """
    config, video = config or PredictConfig(), video or VideoConfig()
    if len(set(config.modality)) > 1:
        raise InvalidValueError(f"modality: {', '.join(config.modality)} were given; a clip takes one at a time")
    target = as_path(output_dir, "the output folder")
    model = LoadedModel(config, stream or StreamConfig(), output_config(video), target)
    result = make_video(
        as_path(source, "the clip"),
        target,
        model=model,
        video=video,
        background=config.background,
        overwrite=overwrite,
        report=report,
    )
    result.engine, result.load_s = model.engine, model.load_s
    result.predict_s = max(0.0, result.predict_s - result.load_s)
    return result


def make_video(
    source: Path,
    output_dir: Path,
    *,
    model: StreamModel,
    video: VideoConfig,
    background: str = "white",
    overwrite: bool = False,
    report: Callable[[VideoEvent], object] = lambda event: None,
    watch: Watch = lambda number: None,
) -> VideoResult:
    """`video_file` with any model.

    `watch` is called, in a thread, with the number of frames that were read, whether taken or not, of a file, a
    pipe or pictures. What it raises ends the run.
    """
    if "exr" in video.format:
        require_exr()
    model.check()
    tracks = tracks_of(model.modality, video)
    check_encoders(tracks)
    run = _Run(source, output_dir, model, video, background, report, watch)
    return run.to_pipe(tracks) if output_dir == PIPE else run.to_folder(tracks, overwrite=overwrite)


def output_config(video: VideoConfig) -> OutputConfig:
    """The settings of files of single frames."""
    formats: list[FileFormat] = [name for name in ("npy", "exr", "png") if name in video.format]
    return OutputConfig(
        format=tuple(formats) or ("png",), color_map=video.color_map, normal_frame=video.normal_frame, green=video.green
    )


class _Run:
    """One run over a clip."""

    def __init__(
        self,
        source: Path,
        output_dir: Path,
        model: StreamModel,
        video: VideoConfig,
        background: str,
        report: Callable[[VideoEvent], object],
        watch: Watch,
    ) -> None:
        self.source, self.output_dir, self.model, self.video = source, output_dir, model, video
        self.background, self.report, self.watch = background, report, watch
        self.result = VideoResult()
        self.stem = f"{stem_of(source)}_{model.modality.name}"
        self.total: int | None = None

    # Into a folder

    def to_folder(self, tracks: Sequence[Track], *, overwrite: bool) -> VideoResult:
        """The results in the output folder."""
        self._check_folder()
        sha256 = clip_sha256(self.source)
        request = self._request(sha256)
        before = Earlier(self.output_dir, self.stem, request)
        names = [*(self._path(track.suffix).name for track in tracks), f"{self.stem}_frames.npz"]
        _check_lengths(self.source, names)
        if not overwrite:
            folder = [self._frames_dir.name] if self._has_frame_files else []
            if before.are_done(self.video.format, [*names, *folder]):
                return self._skipped(before.record or {})
            before.check_owner(self.source, names)
        work = Work(self.output_dir / f".{self.stem}.work", request if sha256 else {"pipe": True, **request})
        try:
            return self._make(work, request, tracks, before)
        finally:
            work.close()

    def _make(self, work: Work, request: Mapping[str, Any], tracks: Sequence[Track], before: Earlier) -> VideoResult:
        if request["input_sha256"] is None and work.segments:  # a pipe cannot be read again
            work.drop()
            self._note("an interrupted run from a pipe cannot be continued; it starts again")
        elif not work.segments and set(self.video.format) - set(before.formats) and before.formats:
            self._note(f"{self.stem}: the clip is predicted again for other formats; existing ones stay")
        elif not work.segments and (before.record is not None or work.is_renewed):
            self._note(f"{self.stem}: results of other settings or of another clip, or incomplete ones, are made again")
        if not work.segments:
            before.remove_frames()
        clip = self._opened()
        try:
            self.total = clip.facts.num_frames
            progress = work.progress()
            if work.segments:
                self.result.resumed_at = progress.emitted
                self._note(f"{self.stem}: continues after {progress.emitted} frames that an interrupted run finished")
            shown = self._shown(clip)
            if not progress.is_complete:
                sink = FolderSink(shown, work, frames_dir=self._frames_dir, record_of=self._frame_record(request))
                progress = self._predict(clip, sink, progress, work.state())
            if not progress.emitted:
                raise ImageError(self._about_no_frame(clip))
            self._finish(work, shown, progress, tracks, before)
        finally:
            clip.close()
        return self.result

    def _finish(self, work: Work, shown: Shown, progress: Progress, tracks: Sequence[Track], before: Earlier) -> None:
        """Joins the segments. The record is written last; its presence means that the results are complete."""
        frames, facts = frame_arrays(work.frames()), shown.facts
        base: Any = parse_json((work.segments[0] / "record.json").read_bytes())
        self.result.num_frames = len(frames["number"])
        self.result.cuts = frames["number"][frames["is_cut"]].tolist()
        self.result.problem = progress.problem
        for place, track in enumerate(tracks):
            path = self._path(track.suffix)
            segments = [one / f"{place}.nut" for one in work.segments if (one / f"{place}.nut").exists()]
            comment = to_json({**base, "content": track.content})
            sound = self._sound(shown, int(frames["pts"][-1]), progress) if track.with_sound else None
            join(segments, path, container=track.container, time_base=facts.time_base, comment=comment, sound=sound)
            self.result.written.append(path)
        if self._has_frame_files:
            self.result.written.append(self._frames_dir)
        path = self.output_dir / f"{self.stem}_frames.npz"
        write_frames(path, frames, time_base=facts.time_base, record=base)
        self.result.written.append(path)
        outputs: dict[str, int | None] = {one.name: file_size(one) for one in self.result.written}
        request = {**before.request}
        if kept := before.kept(list(outputs)):
            outputs |= kept
            request["video"] = {**request["video"], "format": sorted({*before.formats, *self.video.format})}
        height, width = int(base["height"]), int(base["width"])
        record = {
            **base,
            "request": request,
            "input": str(self.source),
            "input_path": str(self.source.resolve()),
            "clip": facts.stated,
            "num_frames": self.result.num_frames,
            "size": [width, height],
            "padded_size": [width + width % 2, height + height % 2],
            "cuts": self.result.cuts,
            "problem": progress.problem,
            "outputs": outputs,
        }
        final = self.output_dir / f"{self.stem}.json"
        text = json.dumps(record, indent=2, default=str) + "\n"
        write_atomically(final, lambda one: one.write_text(text, encoding="ascii"))
        self.result.written.append(final)
        work.remove()

    def _sound(self, shown: Shown, last: int, progress: Progress) -> Sound | None:
        """The sound of the frames that are written."""
        if not shown.facts.sound:
            if shown.facts.stated.get("sound"):
                self._note("the sound of a pipe is not kept; give a file")
            return None
        begin = shown.facts.origin * shown.facts.time_base
        end = None if self.video.end is None else begin + exact(self.video.end)
        if progress.problem is not None:
            end = last * shown.facts.time_base + 1 / shown.facts.rate
        rate, is_cut = shown.facts.rate, bool(self.video.start)
        return Sound(self.source, start=shown.start_s(), end=end, rate=rate, is_cut=is_cut)

    # Into a pipe

    def to_pipe(self, tracks: Sequence[Track]) -> VideoResult:
        """One video on stdout."""
        if len(tracks) != 1 or len(self.video.format) != 1:
            raise InvalidValueError(
                f"format: {', '.join(self.video.format)} was given with - for stdout, which takes one video; give "
                "colored, sidebyside or ffv1"
            )
        if sys.stdout.isatty():
            raise InvalidValueError("- writes a video to stdout, which is a terminal; pipe it, or give a folder")
        clip = self._opened()
        try:
            self.total = clip.facts.num_frames
            sink = PipeSink(self._shown(clip), sys.stdout.buffer, self._note)
            progress = self._predict(clip, sink, Progress(), None)
            if not progress.emitted:
                raise ImageError(self._about_no_frame(clip))
            self.result.num_frames, self.result.problem = progress.emitted, progress.problem
        finally:
            clip.close()
        return self.result

    # Both

    def _opened(self) -> Clip:
        return open_clip(self.source, config=self.video, background=self.background, note=self._note, watch=self.watch)

    def _predict(
        self, clip: Clip, sink: FolderSink | PipeSink, progress: Progress, state: dict[str, np.ndarray] | None
    ) -> Progress:
        started, before = time.perf_counter(), progress.emitted

        def advance(done: int) -> None:
            self.report(VideoEvent(done=done, total=self.total))

        end = run_pipeline(
            clip, self.model.open(state), sink, progress=progress, segment=self.video.segment, advance=advance
        )
        self.result.num_predicted = end.emitted - before
        self.result.predict_s = time.perf_counter() - started
        return end

    def _shown(self, clip: Clip) -> Shown:
        output = output_config(self.video)
        return Shown(modality=self.model.modality, facts=clip.facts, config=self.video, output=output)

    def _frame_record(self, request: Mapping[str, Any]) -> Callable[[StreamedFrame], dict[str, Any]]:
        base = {"software": f"openmarigold {__version__}", **self.model.facts, **request}

        def record(item: StreamedFrame) -> dict[str, Any]:
            height, width = next(iter(item.prediction.maps.values())).shape[:2]
            return {**base, **item.prediction.settings, "width": width, "height": height}

        return record

    def _request(self, sha256: str | None) -> dict[str, Any]:
        settings = asdict(self.video)
        kept = {name: value for name, value in settings.items() if name not in _WITHOUT_EFFECT}
        background = {"background": self.background}
        return {"input_sha256": sha256, **background, **self.model.request, "video": kept, "version": __version__}

    def _note(self, text: str) -> None:
        if text not in self.result.notes:
            self.result.notes.append(text)
            self.report(VideoEvent(done=0, total=self.total, note=text))

    def _path(self, suffix: str) -> Path:
        return self.output_dir / f"{stem_of(self.source)}{suffix}"

    @property
    def _frames_dir(self) -> Path:
        return self.output_dir / f"{self.stem}_frames"

    @property
    def _has_frame_files(self) -> bool:
        return bool(set(self.video.format) & {"npy", "exr", "png"})

    def _check_folder(self) -> None:
        inside = self.source.is_dir() and self.source.resolve() == self.output_dir.resolve()
        if inside:
            raise InvalidValueError(f"output folder {self.output_dir} is also the clip; choose another")
        make_output_dir(self.output_dir)

    def _skipped(self, record: Mapping[str, Any]) -> VideoResult:
        self.result.skipped = True
        self.result.num_frames = int(record.get("num_frames", 0))
        self.result.cuts = list(record.get("cuts", ()))
        self.result.problem = record.get("problem")
        self.result.written = [self.output_dir / name for name in record["outputs"]]
        return self.result

    def _about_no_frame(self, clip: Clip) -> str:
        video = self.video
        asked = f"from {video.start or 0:g} s" + ("" if video.end is None else f" to {video.end:g} s")
        return f"{clip.facts.name} has no frame {asked}; choose another start and end"


def _check_lengths(source: Path, names: Sequence[str]) -> None:
    """Raises OutputError, before anything is predicted, if a temporary name of a result would be too long."""
    over = max(len(os.fsencode(name)) for name in names) - (_MAX_NAME_BYTES - len("..partial"))
    if over > 0:
        raise OutputError(
            f"the name of {source} is {over} bytes too long for the names of its results; rename it, or link to it"
        )
