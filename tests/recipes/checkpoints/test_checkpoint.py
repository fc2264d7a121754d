"""Checkpoints: read in safe mode only, every damage explained, and nothing in a file can ask for more than its size."""

import collections
import hashlib
import os
import pickle
import random
import re
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from recipes.checkpoints.load import FORMAT_VERSION, load_checkpoint, save_checkpoint
from recipes.checkpoints.read import check_content, tensor_bytes

STORED = Path(__file__).parents[2] / "reference" / "checkpoints" / "format_1.ckpt"

CONTENT = {"network": {"weight": torch.arange(64.0)}, "config": "seed: 0\n", "metrics": {"val/loss": [1, 2.5, None]}}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "last.ckpt"
    save_checkpoint(path, CONTENT)
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_is_read(saved):
    content = load_checkpoint(saved)
    assert content.pop("format_version") == FORMAT_VERSION
    assert torch.equal(content["network"].pop("weight"), CONTENT["network"]["weight"])
    assert content == CONTENT | {"network": {}}
    assert names(saved.parent) == ["last.ckpt", "last.ckpt.sha256"]


def test_a_second_one_keeps_the_first(saved):
    save_checkpoint(saved, {"step": 7})
    assert load_checkpoint(saved)["step"] == 7
    assert load_checkpoint(saved.with_name("last.previous.ckpt"))["config"] == CONTENT["config"]
    files = [saved, saved.with_name("last.previous.ckpt")]
    assert names(saved.parent) == [f"{file.name}{end}" for file in files for end in ("", ".sha256")]
    for file in files:
        line = f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n"
        assert file.with_name(f"{file.name}.sha256").read_text() == line, "what sha256sum --check reads"


def test_a_name_must_say_that_it_is_a_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=r"last.pt must end in .ckpt"):
        save_checkpoint(tmp_path / "last.pt", CONTENT)


def test_a_run_directory_means_its_best_checkpoint(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*checkpoints/best.ckpt; give a file such as"):
        load_checkpoint(tmp_path)
    for name in ("best", "last"):
        save_checkpoint(tmp_path / "checkpoints" / f"{name}.ckpt", {"name": name})
    assert load_checkpoint(str(tmp_path))["name"] == "best"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing.ckpt", "there is no checkpoint .*nothing.ckpt; give a file such as runs/RECIPE"),
        ("folder", "folder is a folder and no run's directory: it has no checkpoints/best.ckpt"),
    ],
)
def test_missing(tmp_path, name, message):
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileNotFoundError, match=message):
        load_checkpoint(tmp_path / name)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_cut_short(saved, share):
    saved.write_bytes(saved.read_bytes()[: int(share * saved.stat().st_size)])
    with pytest.raises(ValueError, match=r"last.ckpt is damaged: its bytes do not match last.ckpt.sha256; no other"):
        load_checkpoint(saved)
    saved.with_name("last.ckpt.sha256").unlink()
    with pytest.raises(ValueError, match=r"last.ckpt cannot be read as a checkpoint of this library \(.+\)"):
        load_checkpoint(saved)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_garbage_of_any_kind_has_one_message(tmp_path):
    source, path = random.Random(0), tmp_path / "x.ckpt"
    starts = (b"", b"\x80\x02", b"PK\x03\x04", b"{", b"# yaml\n")
    for start in starts:
        for length in (1, 2, 5, 40, 400):
            for _ in range(8):
                path.write_bytes(start + source.randbytes(length))
                with pytest.raises(ValueError, match=r"x.ckpt (cannot be read as a|is no) checkpoint of this library"):
                    load_checkpoint(path)


@pytest.mark.parametrize(
    "content", [{"state_dict": {}}, [1, 2], torch.zeros(3), {}], ids=lambda kind: type(kind).__name__
)
def test_files_of_others(tmp_path, content):
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"is no checkpoint of this library; weights .* backbone.pretrained=FILE"):
        load_checkpoint(tmp_path / "other.ckpt")


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 99, "1", None, 2.5, True, 0])
def test_a_format_from_the_future(tmp_path, version):
    torch.save({"format_version": version}, tmp_path / "new.ckpt")
    with pytest.raises(ValueError, match=rf"has format {version!r}, this one reads up to {FORMAT_VERSION}; update"):
        load_checkpoint(tmp_path / "new.ckpt")


class Payload:
    """Calls something on being unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.fault
@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_nothing_in_a_file_is_executed(tmp_path, writer):
    path, trap = tmp_path / "evil.ckpt", tmp_path / "executed"
    content = {"format_version": FORMAT_VERSION, "network": Payload(os.mkdir, str(trap))}
    if writer == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    reason = {"torch": "it names posix.mkdir, which no .* nothing of it was run", "pickle": "it is not a zip file.*"}
    with pytest.raises(
        ValueError, match=rf"evil.ckpt cannot be read as a checkpoint of this library \(.*{reason[writer]}\)"
    ):
        load_checkpoint(path)
    assert not trap.exists()
    torch.load(path, weights_only=False) if writer == "torch" else pickle.loads(path.read_bytes())  # noqa: S301
    assert trap.exists(), "the trap itself does not work, and the test proves nothing"


HUGE = 10**13  # bytes


@pytest.mark.fault
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (Payload(bytearray, HUGE), "it names __builtin__.bytearray"),  # torch's own list allows it
        (Payload(torch.FloatTensor, HUGE), "it names torch.FloatTensor"),
        (lambda: torch.eye(2).to_sparse(), "it names torch"),
        (torch.empty(HUGE, device="meta"), "it names torch"),
        (torch.zeros(1).expand(HUGE), "network is an expanded tensor"),
        (torch.Size([3]), "it names torch.Size"),
        (b"bytes", "it names _codecs.encode"),
        (collections.Counter(), "it names collections.Counter"),
    ],
    ids=["bytearray", "constructor", "sparse", "meta", "expanded", "size", "bytes", "counter"],
)
def test_what_safe_mode_of_torch_would_let_through(tmp_path, value, reason):
    content = {"format_version": FORMAT_VERSION, "network": value() if callable(value) else value}
    torch.save(content, tmp_path / "x.ckpt")
    assert (tmp_path / "x.ckpt").stat().st_size < 5000
    with pytest.raises(ValueError, match=rf"x.ckpt cannot be read as a checkpoint of this library \({reason}"):
        load_checkpoint(tmp_path / "x.ckpt")


def rewrite(path, change=lambda name, data: data, method=zipfile.ZIP_STORED):
    """The archive again, record by record."""
    with zipfile.ZipFile(path) as archive:
        records = [(record.filename, archive.read(record)) for record in archive.infolist()]
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in records:
            archive.writestr(name, change(name, data))


def claim(storage, shape):
    """Changes the declared length of a storage of 1000 elements and of the tensor on it."""

    def change(name, data):
        parts = data.split(b"M" + struct.pack("<H", 1000)) if name.endswith("data.pkl") else [data]
        if len(parts) == 1:
            return data
        number = [b"\x8a\x08" + struct.pack("<q", value) for value in (storage, shape)]
        return parts[0] + number[0] + parts[1] + number[1] + parts[2]

    return change


@pytest.mark.fault
@pytest.mark.parametrize(("storage", "shape"), [(HUGE, HUGE), (HUGE, 1000), (1000, HUGE), (1000, 1001), (999, 999)])
def test_declared_sizes_are_those_of_the_file(tmp_path, storage, shape):
    path = tmp_path / "x.ckpt"
    torch.save({"format_version": FORMAT_VERSION, "network": torch.arange(1000.0)}, path)
    rewrite(path, claim(1000, 1000))
    assert torch.equal(load_checkpoint(path)["network"], torch.arange(1000.0)), "rewriting alone does no harm"
    torch.save({"format_version": FORMAT_VERSION, "network": torch.arange(1000.0)}, path)
    rewrite(path, claim(storage, shape))
    with pytest.raises(ValueError, match=r"x.ckpt cannot be read as a checkpoint of this library \(.+\)"):
        load_checkpoint(path)


@pytest.mark.fault
def test_archives_that_unpack_to_more_than_they_are(tmp_path):
    path = tmp_path / "x.ckpt"
    torch.save({"format_version": FORMAT_VERSION, "network": torch.zeros(10**6)}, path)
    rewrite(path, method=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 20_000 and torch.load(path, weights_only=True)["network"].numel() == 10**6
    with pytest.raises(ValueError, match=r"x.ckpt cannot be read .* \(it is compressed, which no checkpoint is\)"):
        load_checkpoint(path)
    torch.save({"format_version": FORMAT_VERSION, "network": torch.zeros(2000)}, path)
    data = path.read_bytes()
    entry = data.rindex(b"PK\x01\x02", 0, data.rindex(b"data/0"))  # of the table at the end; the size is at + 24
    path.write_bytes(data[: entry + 24] + struct.pack("<I", 10**9) + data[entry + 28 :])
    with pytest.raises(ValueError, match=r"x.ckpt cannot be read .* two sizes for one record: 8,000 and 1,000,000,000"):
        load_checkpoint(path)


@pytest.mark.fault
def test_a_flipped_bit_is_found_even_without_the_sha256(saved):
    """In a file that was copied alone the check sums of the archive remain."""
    whole = saved.read_bytes()
    at = whole.index(CONTENT["network"]["weight"].numpy().tobytes()) + 100
    flipped = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    copy = saved.with_name("copy.ckpt")
    copy.write_bytes(flipped)
    assert not torch.equal(torch.load(copy, weights_only=True)["network"]["weight"], CONTENT["network"]["weight"])
    with pytest.raises(ValueError, match=r"copy.ckpt cannot be read .* check sum of .*data/0 inside of it differs"):
        load_checkpoint(copy)
    copy.write_bytes(whole)
    assert torch.equal(load_checkpoint(copy)["network"]["weight"], CONTENT["network"]["weight"])


class Odd(dict):
    """A dict by another name."""


class OddTensor(torch.Tensor):
    """A tensor by another name."""


def marked():
    tensor = torch.zeros(2)
    tensor.note = "x"
    return tensor


ALLOWED = "a checkpoint holds tensors and plain values only"


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        (np.float64(1.0), rf"a.0.b is a numpy.float64; {ALLOWED} .*store it as these"),
        (np.zeros(2), "a.0.b is a numpy.ndarray"),
        ({1, 2}, "a.0.b is a builtins.set"),
        (b"x", "a.0.b is a builtins.bytes"),
        (Path("x"), r"a.0.b is a pathlib\."),
        (nn.Linear(1, 1), "a.0.b is a torch.nn.modules.linear.Linear"),
        (torch.Size([1]), "a.0.b is a torch.Size"),
        (torch.float32, "a.0.b is a torch.dtype"),
        (Odd(), r"a.0.b is a .*Odd; "),
        (torch.zeros(1).as_subclass(OddTensor), "a.0.b is a .*OddTensor; "),
        ({"c": [0, (1, {"d": print})]}, "a.0.b.c.1.1.d is a builtins.builtin_function_or_method"),
        ({1.5: 0}, r"a.0.b has the key 1.5; keys of a checkpoint are text or integers"),
        ({True: 0}, "a.0.b has the key True"),
        (torch.zeros(1).expand(3), r"a.0.b is an expanded tensor: .* pass tensor.contiguous\(\)"),
        (torch.zeros(2).to_sparse(), r"a.0.b is a tensor of torch.float32, torch.sparse_coo, on cpu; .*dense tensors"),
        (torch.zeros(2, device="meta"), "a.0.b is a tensor of torch.float32, torch.strided, on meta; "),
        (torch.zeros(2).to(torch.float8_e5m2), "a.0.b is a tensor of torch.float8_e5m2"),
        (marked(), r"a.0.b is a tensor with the attributes note; .* pass tensor.detach\(\)"),
    ],
)
def test_content_that_could_not_be_read_again_is_not_written(tmp_path, value, seen):
    with pytest.raises(TypeError, match=seen):
        save_checkpoint(tmp_path / "last.ckpt", {"a": [{"b": value}]})
    assert names(tmp_path) == []


def test_everything_that_may_be_written_is_read(tmp_path):
    """Every dtype of the list, views, parameters, state dicts with their metadata, and the state of an optimizer."""
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(4, 3)).square().sum().backward()
    optimizer.step()
    base = torch.arange(12).view(3, 4)
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16]
    kinds += [torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128]
    tensors = {f"{kind}": base.to(kind) for kind in kinds} | {"t": base.t(), "slice": base[1:, ::2], "none": base[:0]}
    plain = {"n": None, "b": True, "i": -(2**70), "f": float("inf"), "s": "ü\ud800", "t": (1, [2, ()]), 3: {}}
    content = {"tensors": tensors, "plain": plain, "network": model.state_dict(), "optimizer": optimizer.state_dict()}
    save_checkpoint(tmp_path / "x.ckpt", {**content, "parameter": model[0].weight})
    read = load_checkpoint(tmp_path / "x.ckpt")
    assert read["plain"] == plain and read["network"]._metadata == content["network"]._metadata
    for group in ("tensors", "network"):
        assert list(read[group]) == list(content[group])
        for name, tensor in content[group].items():
            assert read[group][name].dtype == tensor.dtype and torch.equal(read[group][name], tensor), name
    assert read["optimizer"]["param_groups"] == content["optimizer"]["param_groups"]
    assert torch.equal(read["optimizer"]["state"][1]["exp_avg"], content["optimizer"]["state"][1]["exp_avg"])
    assert torch.equal(read["parameter"], model[0].weight)
    check_content(read)


def test_bytes_of_a_content_count_shared_memory_once():
    base = torch.zeros(100)
    assert tensor_bytes({"a": base, "b": [base[:3], {"c": base.view(10, 10)}], "d": torch.zeros(2), "e": "x"}) == 408


@pytest.mark.fault
def test_a_stored_file_of_format_1(tmp_path):
    """As an earlier version of this library wrote it, without a sha256."""
    assert STORED.stat().st_size < 20_000
    shutil.copytree(STORED.parent, tmp_path / "checkpoints")
    (tmp_path / "checkpoints" / STORED.name).rename(tmp_path / "checkpoints" / "best.ckpt")
    content = load_checkpoint(tmp_path)
    assert content["format_version"] == 1 and content["classes"] == ["apple", "pear", "Kürbis"]
    assert (content["epoch"], content["update"], content["metrics"]["val/accuracy"]) == (4, 125, 0.5)
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3))
    model.load_state_dict(content["network"])
    for parameter in model.parameters():
        assert torch.equal(parameter.flatten(), torch.arange(parameter.numel()) / 10)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    optimizer.load_state_dict(content["training"]["optimizers"][0])
    assert optimizer.param_groups[0]["lr"] == 0.1 and optimizer.param_groups[0]["momentum"] == 0.9
    assert all(torch.equal(state["momentum_buffer"], torch.ones_like(p)) for p, state in optimizer.state.items())
    assert re.match(r"recipe: grocery_baseline\nseed: 3\n", content["config"])
