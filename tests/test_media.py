"""Files are whole or absent, play everywhere, and show what they should."""

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

from accel.files import atomic, writable, write_text
from accel.media import enlarge, side_by_side, to_uint8, write_picture, write_video


def ramp(frames=3, height=10, width=14):
    """Frames whose colour tells their number and the side they are on."""
    video = np.zeros((frames, height, width, 3), np.uint8)
    video[..., 0] = 60 * np.arange(frames)[:, None, None]
    video[:, :, width // 2 :, 1] = 200
    return video


def test_atomic_replaces_only_when_done(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic(path) as part:
        part.write_text("half")
        assert part.parent == path.parent and part.suffix == path.suffix
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "old"
    with atomic(path) as part:
        part.write_text("new")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["new"]


def test_interrupted_video_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_video(tmp_path / "a.mp4", ramp(), 10)
    assert list(tmp_path.iterdir()) == []


def test_writable_makes_the_folder_and_leaves_it_empty(tmp_path):
    folder = writable(tmp_path / "a/b")
    assert folder.is_dir() and list(folder.iterdir()) == []
    (tmp_path / "file").write_text("")
    for wrong in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(OSError):
            writable(wrong)


def test_to_uint8_rounds_and_clips():
    values = np.array([[-0.1, 0.0, 0.5 / 255 + 1e-6, 1.0, 1.2]])
    assert to_uint8(values).tolist() == [[0, 0, 1, 255, 255]]


@pytest.mark.parametrize(
    "height, width, expected", [(64, 64, 256), (100, 60, 300), (256, 20, 256), (480, 832, 480)]
)
def test_enlarge_scales_by_a_whole_number(height, width, expected):
    large = enlarge(ramp(2, height, width))
    factor = expected // height
    assert large.shape == (2, expected, width * factor, 3)


def test_picture_is_exact(tmp_path):
    frame = ramp()[1]
    path = write_picture(tmp_path / "a.png", frame)
    assert np.array_equal(np.asarray(Image.open(path)), frame)


def test_video_plays_in_browsers(tmp_path):
    video = ramp(height=33, width=47)
    path = write_video(tmp_path / "a.mp4", video, 8)
    meta = iio.immeta(path, plugin="FFMPEG")
    assert (meta["codec"], meta["fps"]) == ("h264", 8)
    assert meta["pix_fmt"].startswith("yuv420p")
    read = iio.imread(path, plugin="FFMPEG")
    assert read.shape == (3, 34, 48, 3)  # odd sides are padded
    assert np.abs(read[:, :33, :47].astype(int) - video).mean() < 6
    assert path.read_bytes().index(b"moov") < path.read_bytes().index(b"mdat")


def test_side_by_side_shows_both_under_their_labels():
    left, right = ramp(2, 20, 20), 255 - ramp(2, 20, 20)
    both = side_by_side(left, right, ("plain", "fast"))
    large = enlarge(left)
    height, width = large.shape[1:3]
    count, full, total, _ = both.shape
    assert count == 2 and full % 2 == 0 and total % 2 == 0
    bar = (full - height) // 2 * 2
    assert np.array_equal(both[:, bar : bar + height, :width], large)
    assert np.array_equal(both[:, bar : bar + height, -width:], enlarge(right))
    label = both[0, :bar].max(axis=(0, 2)) > 150
    assert label[:width].any() and label[-width:].any()


def test_long_labels_stay_in_their_half():
    frames = ramp(1, 256, 256)
    both = side_by_side(frames, frames, ("TaylorSeer + SparseAttention  12.34 s  (2.10x)", ""))
    bar = both.shape[1] - 256
    assert (both[0, :bar, 256:].max(axis=(0, 2)) < 150).all()
    assert (both[0, :bar, :256].max(axis=(0, 2)) > 150).any()


def test_text_is_whole_and_goes_through_links_and_devices(tmp_path, monkeypatch):
    path, link = tmp_path / "a.txt", tmp_path / "link.txt"
    path.write_text("old")
    link.symlink_to(path)
    write_text(link, "new")
    assert link.is_symlink() and path.read_text() == "new"
    (tmp_path / "null").symlink_to("/dev/null")
    write_text(tmp_path / "null", "gone")
    assert (tmp_path / "null").is_symlink() and (tmp_path / "null").is_char_device()
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path, "new")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "newer")
    assert path.read_text() == "new" and len(list(tmp_path.iterdir())) == 3
