"""Arrays, images and sounds as calibration data."""

from __future__ import annotations

import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from halfbyte.calibration_data import DataRequest, read_calibration
from halfbyte.calibration_media import MediaOptions, read_sound
from halfbyte.errors import BackendError, FormatError, HalfbyteError
from halfbyte.ir.model import Model
from support.integer_models import Net
from support.model_folders import tiny_model

GENERATOR = np.random.default_rng(0)


def graph_of(**inputs: tuple[int | str, ...]) -> Model:
    net = Net(**inputs)
    outputs = [net.op("Relu", value) for value in net.inputs.values()]
    net.graph.outputs = outputs
    return Model({}, build=lambda model: net.graph)


def read(model: Model, *sources: Any, **options: Any) -> Any:
    return read_calibration(model, DataRequest(tuple(map(str, sources)), **options))


def arrays(*shape: int) -> NDArray[np.float32]:
    return GENERATOR.standard_normal(shape).astype(np.float32)


def test_samples_lie_along_the_first_axis(tmp_path: Path) -> None:
    model = graph_of(image=("n", 3, 4, 5))
    whole = arrays(21, 3, 4, 5)
    np.savez(tmp_path / "all.npz", image=whole)
    found = read(model, tmp_path / "all.npz")
    assert [len(run["image"]) for run in found.batches.runs] == [8, 8, 5]
    assert np.array_equal(np.concatenate([r["image"] for r in found.batches.runs]), whole)
    assert found.facts["samples"] == 21 and found.facts["sources"] == ["all.npz"]
    few = read(model, tmp_path / "all.npz", samples=5)
    rows = np.concatenate([run["image"] for run in few.batches.runs])
    places = [int(np.flatnonzero((whole == row).all((1, 2, 3)))[0]) for row in rows]
    assert places == sorted(places) and len(places) == 5 and places[-1] > 8
    for part in range(3):
        np.savez(tmp_path / f"part{part}.npz", whole[7 * part : 7 * part + 7])
    (tmp_path / "all.npz").unlink()
    (tmp_path / "notes").write_text("not data")
    again = read(model, tmp_path)
    assert again.facts["sha256"] == found.facts["sha256"], "names by place, files by name"


def test_fixed_first_axes_and_several_inputs(tmp_path: Path) -> None:
    model = graph_of(a=(2, 3), b=(1, "t"))
    a, b = arrays(6, 3), arrays(3, 7)
    np.savez(tmp_path / "x.npz", a=a, b=b)
    runs = read(model, tmp_path / "x.npz").batches.runs
    assert [(r["a"].shape, r["b"].shape) for r in runs] == [((2, 3), (1, 7))] * 3
    assert np.array_equal(runs[1]["a"], a[2:4]) and np.array_equal(runs[1]["b"], b[1:2])
    np.savez(tmp_path / "x.npz", a=a[:2], b=b[:1, :5])
    np.savez(tmp_path / "y.npz", a=a[2:4], b=b[1:2])
    np.savez(tmp_path / "z.npz", a=arrays(3, 2, 3), b=b)
    with pytest.raises(FormatError, match=r"3x2x3, 2x3 \(or several along the first axis\) was"):
        read(model, tmp_path / "z.npz")
    mixed = read(model, tmp_path / "x.npz", tmp_path / "y.npz").batches.runs
    assert [r["b"].shape for r in mixed] == [(1, 5), (1, 7)]


def test_token_ids_in_arrays(tmp_path: Path) -> None:
    ids = GENERATOR.integers(0, 300, (4, 12))
    mask = np.ones((4, 12), np.int64)
    mask[1, 5:] = 0
    np.savez(tmp_path / "ids.npz", input_ids=ids, attention_mask=mask)
    (run,) = (found := read(tiny_model("bert", 3), tmp_path / "ids.npz")).batches.runs
    assert np.array_equal(run["input_ids"], ids)
    (counted,) = found.batches.masks
    assert np.array_equal(counted, mask != 0)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "name": ({"picture": arrays(2, 3, 4, 4)}, "array 'picture' is no input.*inputs are image"),
    "rank": ({"image": arrays(3, 4, 4)}, r"'image' is 3x4x4, \?x3x4x4 was required"),
    "shape": ({"image": arrays(2, 4, 4, 3)}, r"'image' is 2x4x4x3, \?x3x4x4 was required"),
    "scalar": ({"image": np.float32(1)}, "is a single number"),
    "nan": ({"image": np.full((1, 3, 4, 4), np.nan)}, "holds NaN or infinities"),
    "infinite": ({"image": np.full((1, 3, 4, 4), np.inf)}, "holds NaN or infinities"),
    "empty": ({"image": arrays(0, 3, 4, 4)}, "is empty"),
    "text": ({"image": np.full((1, 3, 4, 4), "a")}, "float32 was required"),
    "integers": ({"image": arrays(1, 3, 4, 4).astype(int)}, "holds int64, float32 was required"),
    "none": ({}, "holds no array"),
    "objects": ({"image": np.array([{}], object)}, "it holds Python objects"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arrays(name: str, tmp_path: Path) -> None:
    given, said = WRONG[name]
    np.savez(tmp_path / "x.npz", **given)
    with pytest.raises(FormatError, match=f"x.npz: .*{said}"):
        read(graph_of(image=("n", 3, 4, 4)), tmp_path / "x.npz")


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    model = graph_of(a=(1, 3), b=(1, 3))
    with pytest.raises(HalfbyteError, match="holds no data that can be read"):
        read(model, tmp_path)
    np.savez(tmp_path / "x.npz", a=arrays(1, 3))
    np.savez(tmp_path / "y.npz", b=arrays(1, 3))
    with pytest.raises(HalfbyteError, match="some files hold a, others b"):
        read(model, tmp_path)
    (tmp_path / "z.txt").write_text("text")
    with pytest.raises(HalfbyteError, match=r"arrays \(x.npz\) and texts \(z.txt\), one kind"):
        read(model, tmp_path)
    with pytest.raises(HalfbyteError, match="arrays and texts were given together"):
        read(model, tmp_path / "x.npz", tmp_path / "z.txt")
    with pytest.raises(HalfbyteError, match="is a text, the model takes a, b"):
        read(model, tmp_path / "z.txt")


def test_files_beyond_the_samples_are_not_read(tmp_path: Path) -> None:
    for number in range(12):
        np.savez(tmp_path / f"{number:02}.npz", a=np.full((1, 3), number, np.float32))
    model = graph_of(a=("n", 3))
    (run,) = read(model, tmp_path, samples=5, seed=2).batches.runs
    taken = run["a"][:, 0].astype(int).tolist()
    assert len(taken) == 5 and taken == sorted(taken)
    unread = next(n for n in range(12) if n not in taken)
    (tmp_path / f"{unread:02}.npz").write_bytes(b"nonsense")
    assert read(model, tmp_path, samples=5, seed=2).facts["samples"] == 5
    with pytest.raises(FormatError, match="is not an .npz"):
        read(model, tmp_path)


def picture(path: Path, height: int, width: int, mode: str = "RGB") -> NDArray[np.uint8]:
    pixels = GENERATOR.integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return pixels


def test_images_take_the_form_of_the_input(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "a.png", 6, 8)
    picture(tmp_path / "b.png", 12, 30, "L")
    media = MediaOptions(image_mean=(0.5, 0.25, 0.0), image_std=(0.5, 1.0, 2.0))
    (run,) = read(graph_of(image=("n", 3, 6, 8)), tmp_path, media=media).batches.runs
    assert run["image"].shape == (2, 3, 6, 8) and run["image"].dtype == np.float32
    wanted = (pixels / 255 - [0.5, 0.25, 0.0]) / [0.5, 1.0, 2.0]
    np.testing.assert_allclose(run["image"][0], wanted.transpose(2, 0, 1), atol=1e-6)
    last = read(graph_of(image=(1, 6, 8, 3)), tmp_path, media=media).batches.runs
    assert [r["image"].shape for r in last] == [(1, 6, 8, 3)] * 2
    np.testing.assert_allclose(last[0]["image"][0], wanted, atol=1e-6)
    grey = read(graph_of(image=(1, 1, 4, 4)), tmp_path).batches.runs
    assert grey[0]["image"].shape == (1, 1, 4, 4)
    sized = MediaOptions(image_size=(5, 7))
    open_size = read(graph_of(image=(1, 3, "h", "w")), tmp_path, media=sized)
    assert open_size.batches.runs[1]["image"].shape == (1, 3, 5, 7)


def test_images_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png", 6, 8)
    with pytest.raises(HalfbyteError, match="'image': its height and width are open; give --image"):
        read(graph_of(image=(1, 3, "h", "w")), tmp_path)
    wrong = MediaOptions(image_size=(5, 7))
    with pytest.raises(HalfbyteError, match="'image': takes 6x8, not 5x7"):
        read(graph_of(image=(1, 3, 6, 8)), tmp_path, media=wrong)
    with pytest.raises(HalfbyteError, match="an unknown number of channels"):
        read(graph_of(image=(1, "c", 6, 8)), tmp_path)
    with pytest.raises(HalfbyteError, match="2 values of --image-mean"):
        media = MediaOptions(image_mean=(0.1, 0.2))
        read(graph_of(image=(1, 3, 6, 8)), tmp_path, media=media)
    with pytest.raises(HalfbyteError, match="0 inputs could take images"):
        read(graph_of(x=(1, 3)), tmp_path)
    (tmp_path / "b.png").write_bytes(b"\x89PNG nonsense")
    with pytest.raises(FormatError, match=r"b\.png: is no image that can be read"):
        read(graph_of(image=(1, 3, 6, 8)), tmp_path)
    monkeypatch.setattr("halfbyte.calibration_media.MOST_PIXELS", 10)
    with pytest.raises(FormatError, match="has 8x6 pixels, at most 10"):
        read(graph_of(image=(1, 3, 6, 8)), tmp_path)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(BackendError, match="reading images needs Pillow"):
        read(graph_of(image=(1, 3, 6, 8)), tmp_path)


def sound(path: Path, values: NDArray[np.float64], width: int = 2, rate: int = 8000) -> None:
    """Write values [samples, channels] between -1 and 1."""
    whole = np.round(values * (2 ** (8 * width - 1) - 1)).astype(np.int64)
    raw = (whole + 128 * (width == 1)).astype("<i8")[..., None].view(np.uint8)[..., :width]
    with wave.open(str(path), "wb") as file:
        file.setparams((values.shape[1], width, rate, 0, "NONE", ""))
        file.writeframes(raw.tobytes())


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_sounds_are_averaged_to_one_channel(width: int, tmp_path: Path) -> None:
    values = GENERATOR.uniform(-1, 1, (50, 2))
    sound(tmp_path / "x.wav", values, width)
    found, rate = read_sound(tmp_path / "x.wav")
    assert rate == 8000 and found.dtype == np.float32
    np.testing.assert_allclose(found, values.mean(1), atol=2.0 ** (2 - 8 * width) + 1e-6)


def test_sounds_are_cut_to_the_input(tmp_path: Path) -> None:
    values = GENERATOR.uniform(-1, 1, (50, 1))
    sound(tmp_path / "a.wav", values)
    sound(tmp_path / "b.wav", values[:20])
    (run,) = read(graph_of(x=("n", 1, 20)), tmp_path).batches.runs
    assert run["x"].shape == (4, 1, 20)
    np.testing.assert_allclose(run["x"][:3].reshape(-1)[:50], values[:, 0], atol=1e-4)
    assert not run["x"][2, 0, 10:].any(), "silence"
    free = read(graph_of(x=(1, "t")), tmp_path).batches.runs
    assert [r["x"].shape for r in free] == [(1, 50), (1, 20)]


def test_sounds_that_cannot_be_used(tmp_path: Path) -> None:
    model, values = graph_of(x=(1, "t")), np.zeros((9, 1))
    sound(tmp_path / "a.wav", values)
    asked = MediaOptions(sample_rate=16000)
    with pytest.raises(FormatError, match=r"a\.wav: has 8000 samples per second, 16000"):
        read(model, tmp_path, media=asked)
    sound(tmp_path / "b.wav", values, rate=16000)
    with pytest.raises(FormatError, match=r"b\.wav: has 16000 samples per second, 8000"):
        read(model, tmp_path)
    sound(tmp_path / "b.wav", values[:0])
    with pytest.raises(FormatError, match="holds no samples"):
        read(model, tmp_path)
    (tmp_path / "b.wav").write_bytes(b"RIFF1234WAVE")
    with pytest.raises(FormatError, match="is no .wav file of whole numbers"):
        read(model, tmp_path)
