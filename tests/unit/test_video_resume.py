"""A killed run continues and ends in the same bytes; memory does not grow with the clip."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clips import GrayModel, patterns, write_clip
from openmarigold.errors import OutputError
from openmarigold.video.run import make_video
from openmarigold.video.settings import VideoConfig
from openmarigold.video.work import Progress, Work

pytest.importorskip("av")
ALL: dict[str, Any] = {"format": ("colored", "sidebyside", "ffv1", "npy", "png"), "segment": 4}
_SLOW = """
import sys
from pathlib import Path
from clips import GrayModel
from openmarigold.video.run import make_video
from openmarigold.video.settings import VideoConfig
source, out, late = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
formats = ("colored", "sidebyside", "ffv1", "npy", "png")
make_video(source, out, model=GrayModel(late=late, wait_s=0.05), video=VideoConfig(format=formats, segment=4))
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_frames_and_segments_do_not_depend_on_interruptions(tmp_path: Path) -> None:
    """The stream stops after each possible number of frames."""
    source = write_clip(tmp_path / "room.mkv", patterns(11), tone_s=0.4)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    make_video(source, whole, model=GrayModel(late=1), video=VideoConfig(**ALL))

    class Stopping(GrayModel):
        def open(self, state: dict[str, np.ndarray] | None) -> Any:
            stream, end = super().open(state), len(self.opened)
            follow = stream.follow

            def some(frames: Any) -> Any:
                for index, ready in enumerate(follow(frames)):
                    yield ready
                    if index == 4 + end:
                        raise KeyboardInterrupt

            stream.follow = some
            return stream

    model, interruptions = Stopping(late=1), 0
    while interruptions < 10:
        try:
            make_video(source, parts, model=model, video=VideoConfig(**ALL))
            break
        except KeyboardInterrupt:
            interruptions += 1
    assert interruptions >= 1 and model.opened[0] is False and all(model.opened[1:])
    assert contents(parts) == contents(whole)


@pytest.mark.parametrize("late", [0, 2])
def test_killed_run_ends_in_the_same_bytes(tmp_path: Path, late: int) -> None:
    source = write_clip(tmp_path / "room.mkv", patterns(30), tone_s=1.0)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    make_video(source, whole, model=GrayModel(late=late), video=VideoConfig(**ALL))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", _SLOW, str(source), str(parts), str(late)]
    run = subprocess.Popen(command, env=environment)
    try:
        until = time.monotonic() + 60
        while not (parts / ".room_depth.work" / "000001").is_dir():
            assert time.monotonic() < until and run.poll() is None
            time.sleep(0.01)
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    assert not (parts / "room_depth.json").exists() and not (parts / "room_depth_colored.mp4").exists()
    model = GrayModel(late=late)
    result = make_video(source, parts, model=model, video=VideoConfig(**ALL))
    assert result.resumed_at is not None and 8 <= result.resumed_at < 30 and model.opened == [True]
    assert result.num_predicted == 30 - result.resumed_at
    assert contents(parts) == contents(whole)


def test_two_runs_give_the_same_bytes(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "room.mkv", patterns(6), tone_s=0.2, tone_codec="pcm_s16le")
    for name in ("a", "b"):
        make_video(source, tmp_path / name, model=GrayModel(), video=VideoConfig(**ALL))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def interrupted(source: Path, out: Path, **video: Any) -> None:
    """Leaves a run that was killed after its first segment."""

    class Killed(GrayModel):
        def open(self, state: dict[str, np.ndarray] | None) -> Any:
            stream = super().open(state)
            follow = stream.follow

            def some(frames: Any) -> Any:
                for index, ready in enumerate(follow(frames)):
                    yield ready
                    if index == 5:
                        raise KeyboardInterrupt

            stream.follow = some
            return stream

    with pytest.raises(KeyboardInterrupt):
        make_video(source, out, model=Killed(), video=VideoConfig(**{**ALL, **video}))


def test_other_settings_start_anew(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "room.mkv", patterns(8))
    interrupted(source, tmp_path)
    result = make_video(source, tmp_path, model=GrayModel(), video=VideoConfig(**{**ALL, "crf": 30}))
    assert result.resumed_at is None and result.num_predicted == 8
    assert result.notes == [
        "room_depth: results of other settings or of another clip, or incomplete ones, are made again"
    ]


def test_what_a_killed_run_left_of_a_file_goes(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "room.mkv", patterns(8))
    interrupted(source, tmp_path / "out")
    (tmp_path / "out" / "room_depth_frames" / ".000007_depth.png.1-2.partial").write_bytes(b"half")
    make_video(source, tmp_path / "out", model=GrayModel(), video=VideoConfig(**ALL))
    assert not [path for path in (tmp_path / "out").rglob("*") if path.name.startswith(".")]


def test_another_clip_starts_anew(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "room.mkv", patterns(8))
    interrupted(source, tmp_path)
    write_clip(source, patterns(6, height=40))
    result = make_video(source, tmp_path, model=GrayModel(), video=VideoConfig(**ALL))
    assert result.resumed_at is None and result.num_frames == 6
    assert len(list((tmp_path / "room_depth_frames").iterdir())) == 12  # none of the other clip


def test_kill_before_joining(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_clip(tmp_path / "room.mkv", patterns(8))
    import openmarigold.video.run as module

    def fail(*args: Any, **more: Any) -> None:
        raise OutputError("cannot write x: No space left on device; check the folder and free space")

    monkeypatch.setattr(module, "join", fail)
    with pytest.raises(OutputError, match="No space left"):
        make_video(source, tmp_path, model=GrayModel(), video=VideoConfig(**ALL))
    monkeypatch.undo()
    model = GrayModel()
    result = make_video(source, tmp_path, model=model, video=VideoConfig(**ALL))
    assert result.resumed_at == 8 and result.num_predicted == 0 and model.opened == []
    assert (tmp_path / "room_depth_colored.mp4").exists() and not (tmp_path / ".room_depth.work").exists()


def test_two_runs_at_once_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    work = Work(tmp_path / "work", {"a": 1})
    with pytest.raises(OutputError, match="another run is making these results"):
        Work(tmp_path / "work", {"a": 1})
    work.close()
    Work(tmp_path / "work", {"a": 1}).close()


def test_a_segment_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    work = Work(tmp_path / "work", {"a": 1})
    (work.begin() / "0.nut").write_bytes(b"half")
    work.close()
    again = Work(tmp_path / "work", {"a": 1})
    assert again.segments == [] and again.progress() == Progress() and again.state() is None
    partial = again.begin()
    assert not list(partial.iterdir())
    again.commit(partial, frames=[{"number": 0}], progress=Progress(pushed=2, emitted=1), state={"x": np.arange(3)})
    again.close()
    later = Work(tmp_path / "work", {"a": 1})
    state = later.state()
    assert later.progress() == Progress(pushed=2, emitted=1) and state is not None and state["x"].tolist() == [0, 1, 2]
    assert list(later.frames()) == [[{"number": 0}]]
    later.close()
    assert Work(tmp_path / "work", {"a": 2}).segments == []


_MEMORY = """
import resource, sys
from pathlib import Path
from clips import GrayModel, patterns, write_clip
from openmarigold.video.run import make_video
from openmarigold.video.settings import VideoConfig
folder, number = Path(sys.argv[1]), int(sys.argv[2])
source = write_clip(folder / "long.mkv", patterns(8, height=240, width=320) * (number // 8))
video = VideoConfig(format=("colored", "ffv1"), segment=8)
make_video(source, folder / "out", model=GrayModel(), video=video)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
source = write_clip(folder / "longer.mkv", patterns(8, height=240, width=320) * (number // 2))
make_video(source, folder / "out", model=GrayModel(), video=video)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_memory_does_not_grow_with_the_clip(tmp_path: Path) -> None:
    """Four times the frames, of 0.5 MB with their map, need not even what ten of them take."""
    pytest.importorskip("resource")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", _MEMORY, str(tmp_path), "32"]
    grown = int(subprocess.run(command, env=environment, capture_output=True, check=True, text=True).stdout)
    assert grown < 10 * 320 * 240 * 7


def test_a_run_resumed_where_the_size_changes_keeps_what_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    pictures, out = tmp_path / "pictures", tmp_path / "out"
    pictures.mkdir()
    for number, width in enumerate((24, 24, 24, 24, 30, 30)):
        Image.new("RGB", (width, 16), (number, 0, 0)).save(pictures / f"{number}.png")
    commit = Work.commit

    def stopping(self: Work, *given: Any, **more: Any) -> None:
        if len(self.segments) == 2:
            raise KeyboardInterrupt
        commit(self, *given, **more)

    settings = VideoConfig(format=("colored",), segment=2)
    monkeypatch.setattr(Work, "commit", stopping)
    with pytest.raises(KeyboardInterrupt):
        make_video(pictures, out, model=GrayModel(), video=settings)
    monkeypatch.undo()
    result = make_video(pictures, out, model=GrayModel(), video=settings)
    assert result.resumed_at == result.num_frames == 4
    assert result.problem is not None and "from 24x16 to 30x16 at frame 4" in result.problem
