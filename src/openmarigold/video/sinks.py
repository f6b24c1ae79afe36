# SPDX-License-Identifier: Apache-2.0
"""Where frames go: into segments of a folder's videos and files, or into one pipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from openmarigold.config import OutputConfig
from openmarigold.files import make_directory, remove_leftovers, write_atomically
from openmarigold.images.png import save_png
from openmarigold.modalities import Modality
from openmarigold.modalities.codes import LARGEST_CODE, Range, to_codes
from openmarigold.predictor.stream_state import StreamedFrame
from openmarigold.results.provenance import RECORD_NAME, to_json
from openmarigold.results.writers import with_open_file, write_prediction
from openmarigold.video.clip import ClipFacts, ClipFrame, exact
from openmarigold.video.decoding import require_av
from openmarigold.video.encoding import TrackEncoder, written
from openmarigold.video.products import Picture, Track, frame_record, picture_of, tracks_of
from openmarigold.video.settings import VideoConfig
from openmarigold.video.work import Progress, Work

_RAW = {"libx264": "rgb24", "ffv1": None}


@runtime_checkable
class Sink(Protocol):
    """Takes frames in order."""

    def write(self, frame: ClipFrame, item: StreamedFrame) -> None:
        """Writes one frame."""
        ...

    def end_segment(self, progress: Progress, state: Mapping[str, np.ndarray] | None) -> None:
        """Finishes the frames that were written so far."""
        ...


class Shown:
    """Pictures and times of frames, as all sinks write them."""

    def __init__(self, *, modality: Modality, facts: ClipFacts, config: VideoConfig, output: OutputConfig) -> None:
        self.modality, self.facts, self.config, self.output = modality, facts, config, output
        self.tracks = tracks_of(modality, config)
        self._first = facts.origin + round(exact(config.start or 0) / facts.time_base)

    def picture(self, frame: ClipFrame, item: StreamedFrame) -> Picture:
        """Colors and codes of a frame."""
        maps = item.prediction.maps
        return picture_of(
            frame.rgb,
            maps,
            exported=self.modality.exported(maps, self.output),
            modality=self.modality,
            bounds=item.bounds,
            colors=self.config.color_map,
        )

    def pts(self, frame: ClipFrame) -> int:
        """The frame's time in the written files: from the requested start."""
        return frame.pts - self._first

    def start_s(self) -> Fraction:
        """The clip's time [s] that is 0 in the files."""
        return self._first * self.facts.time_base

    def encoder(self, track: Track, target: Path | Any, frame: ClipFrame, **more: Any) -> TrackEncoder:
        """An encoder of a track, for this frame and those after it."""
        facts = self.facts
        settings: dict[str, Any] = {"time_base": facts.time_base, "rate": facts.rate, "crf": self.config.crf}
        return TrackEncoder(track, target, **settings, pixel_aspect=frame.pixel_aspect, **more)


class FolderSink:
    """Writes segments of videos into the work folder, and files of single frames into another folder."""

    def __init__(
        self, shown: Shown, work: Work, *, frames_dir: Path, record_of: Callable[[StreamedFrame], dict[str, Any]]
    ) -> None:
        """`record_of` returns the provenance of a frame's files."""
        self._shown, self._work, self._frames_dir, self._record_of = shown, work, frames_dir, record_of
        self._numbers = tuple(name for name in ("npy", "exr") if name in shown.config.format)
        self._partial: Path | None = None
        self._encoders: list[TrackEncoder] = []
        self._lines: list[dict[str, Any]] = []

    def write(self, frame: ClipFrame, item: StreamedFrame) -> None:
        """See `Sink`.

        Raises:
            OutputError: a file cannot be written.
        """
        if self._partial is None:
            self._partial = self._work.begin()
            self._encoders = [
                self._shown.encoder(track, self._partial / f"{place}.nut", frame)
                for place, track in enumerate(self._shown.tracks)
            ]
            if not self._work.segments:
                text = to_json(self._record_of(item))
                write_atomically(self._partial / "record.json", lambda path: path.write_text(text, encoding="ascii"))
        picture = self._shown.picture(frame, item)
        for track, encoder in zip(self._shown.tracks, self._encoders, strict=True):
            encoder.write(track.pixels(picture), self._shown.pts(frame))
        line = frame_record(frame, item, picture.ranges)
        self._write_files(item, picture, {**line, "bounds": item.bounds})
        self._lines.append(line)

    def end_segment(self, progress: Progress, state: Mapping[str, np.ndarray] | None) -> None:
        """See `Sink`.

        Raises:
            OutputError: a file cannot be written.
        """
        if self._partial is None:
            self._partial = self._work.begin()
        for encoder in self._encoders:
            encoder.close()
        self._work.commit(self._partial, frames=self._lines, progress=progress, state=state)
        self._partial, self._encoders, self._lines = None, [], []

    def _write_files(self, item: StreamedFrame, picture: Picture, line: Mapping[str, Any]) -> None:
        """The files of one frame: numbers, and 16-bit pictures of codes."""
        formats = self._shown.config.format
        if not set(formats) & {"npy", "exr", "png"}:
            return
        prediction, stem = item.prediction, f"{item.number:06d}"
        facts = {name: line[name] for name in ("number", "time_s", "scale", "shift", "shot")}
        record = {**self._record_of(item), "frame": facts}
        if self._numbers:
            write_prediction(
                prediction.maps,
                prediction.uncertainties,
                modality=self._shown.modality,
                output_dir=self._frames_dir,
                stem=stem,
                output=replace(self._shown.output, format=self._numbers),
                provenance=record,
                overwrite=True,
                camera=prediction.camera,
            )
        if "png" in formats:
            make_directory(self._frames_dir)
            for kind in self._shown.modality.maps:
                low, high = picture.ranges[kind.name]
                codes = to_codes(picture.maps[kind.name], (low, high))
                content = f"{kind.name} = {low} + code / {LARGEST_CODE} * {high - low}"
                texts = {RECORD_NAME: to_json({**record, "content": content})}
                path = self._frames_dir / f"{stem}_{kind.file_name}.png"
                remove_leftovers(path)
                write_atomically(path, with_open_file(partial(save_png, pixels=codes, texts=texts)))


class PipeSink:
    """One video on a pipe: Matroska, or raw frames. Nothing is resumed."""

    def __init__(self, shown: Shown, file: Any, note: Callable[[str], object]) -> None:
        """`file` takes bytes."""
        self._shown, self._file, self._note = shown, file, note
        self._track = shown.tracks[0]
        self._encoder: TrackEncoder | None = None
        self._range: Range | None = None

    def write(self, frame: ClipFrame, item: StreamedFrame) -> None:
        """See `Sink`.

        Raises:
            OutputError: the pipe cannot be written.
            BrokenPipeError: its reader closed it.
        """
        picture = self._shown.picture(frame, item)
        name = self._track.map_name
        if name is not None and picture.ranges[name] != self._range:
            self._range = picture.ranges[name]
            self._note(f"from frame {item.number} on, code 0 is {self._range[0]:g} and 65535 is {self._range[1]:g}")
        pixels = self._track.pixels(picture)
        if self._encoder is None and self._shown.config.pipe == "matroska":
            self._encoder = self._shown.encoder(self._track, _Written(self._file), frame, container="matroska")
        if self._encoder is not None:
            self._encoder.write(pixels, self._shown.pts(frame))
            return
        with written("the pipe", require_av()):
            little = pixels.astype("<u2", copy=False) if pixels.dtype == np.uint16 else pixels
            self._file.write(np.ascontiguousarray(little).tobytes())
            self._file.flush()

    def end_segment(self, progress: Progress, state: Mapping[str, np.ndarray] | None) -> None:
        """See `Sink`; at the end of the clip, the video is closed."""
        if progress.is_complete and self._encoder is not None:
            self._encoder.close()
            with written("the pipe", require_av()):
                self._file.flush()


class _Written:
    """A pipe for PyAV, which can only write it in order."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, content: bytes) -> int:
        self._file.write(content)
        return len(content)
