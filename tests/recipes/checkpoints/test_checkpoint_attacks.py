"""Checkpoints that were made to be read otherwise than they look, or to take more than they are."""

import os
import pickle
import re
import struct
import time
import zipfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from recipes.checkpoints.load import FORMAT_VERSION, load_checkpoint, save_checkpoint

pytestmark = pytest.mark.fault
SAVED = {"format_version": FORMAT_VERSION, "network": torch.arange(10.0)}
GLOBAL_TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
GLOBAL_ORDERED = b"ccollections\nOrderedDict\n"
FLOATS = b"ctorch\nFloatStorage\n"


def refused(path, reason):
    with pytest.raises(
        ValueError, match=rf"x.ckpt cannot be read as a checkpoint of this library \(.*(?:{reason})"
    ) as error:
        load_checkpoint(path)
    for cause in (error.value, error.value.__cause__):
        assert "weights_only" not in str(cause), "what torch's page advises is the opposite of safe"


@pytest.fixture
def path(tmp_path):
    torch.save(SAVED, tmp_path / "x.ckpt")
    return tmp_path / "x.ckpt"


def records_of(path):
    with zipfile.ZipFile(path) as archive:
        return [(record.filename, archive.read(record)) for record in archive.infolist()]


def write(path, records):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records:
            archive.writestr(name, data)


def write_pickle(path, data, storages=()):
    """An archive around a pickle: a dict with the format, and ``value`` from these instructions."""
    content = b"\x80\x02}(X\x0e\0\0\0format_versionK\x01X\x05\0\0\0value" + data + b"u."
    pairs = [("x/data.pkl", content), ("x/version", b"3\n")]
    write(path, pairs + [(f"x/data/{n}", storage) for n, storage in enumerate(storages)])


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value):
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def tensor(elements, size, stride, offset=0, key="0"):
    """Instructions of a float tensor."""
    storage = b"(" + text("storage") + FLOATS + text(key) + text("cpu") + number(elements) + b"tQ"
    numbers = [b"(" + b"".join(map(number, values)) + b"t" for values in (size, stride)]
    return GLOBAL_TENSOR + b"(" + storage + number(offset) + b"".join(numbers) + b"\x89" + GLOBAL_ORDERED + b")RtR"


def test_the_pieces_of_these_tests_are_sound(path):
    """What the attacks change is read where it is not changed."""
    write(path, records_of(path))
    assert torch.equal(load_checkpoint(path)["network"], SAVED["network"])
    write_pickle(path, tensor(6, (2, 3), (3, 1)), [torch.arange(6.0).numpy().tobytes()])
    assert torch.equal(load_checkpoint(path)["value"], torch.arange(6.0).view(2, 3))
    assert torch.equal(torch.load(path, weights_only=True)["value"], torch.arange(6.0).view(2, 3))


@pytest.mark.parametrize("place", ["front", "behind"])
def test_a_second_file_in_the_same_one(path, place):
    """A legacy pickle in front of a zip file is what torch reads; something behind it is what others may read."""
    whole, legacy = path.read_bytes(), pickle.dumps(SAVED["format_version"], protocol=2)
    path.write_bytes(legacy + whole if place == "front" else whole + legacy)
    refused(path, "it is not a zip file, or something stands before one" if place == "front" else "it does not end as")
    path.write_bytes(whole + whole)
    refused(path, "its table is not where it should be|the two ends of its table")
    path.write_bytes(whole[:-2] + b"\x05\0" + b"hello")
    refused(path, "it does not end as a zip file does")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("{folder}/DATA.PKL", "it has a record '.*/DATA.PKL', which no checkpoint has"),
        ("{folder}/Data/0", "it has a record '.*/Data/0'"),
        ("other/data.pkl", "it has a record '.*/(data.pkl|version|.format_version)'"),
        ("data.pkl", "it has a record 'data.pkl'"),
        ("{folder}/data.pkl", "it has two records data.pkl"),
        ("{folder}/data/0", "it has two records data/0"),
        ("{folder}/data/00", "it has a record '.*/data/00'"),
        ("{folder}/data/7", "nothing in it uses its record data/7"),
        ("{folder}/constants.pkl", "it has a record '.*/constants.pkl'"),
        ("{folder}/../data.pkl", "it has a record"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_of_records(path, name, reason):
    """torch finds names without regard to case; each is one of a list here, and stands once."""
    records = records_of(path)
    for place in (0, len(records)):
        added = (name.format(folder=records[0][0].partition("/")[0]), b"\x80\x02N.")
        write(path, [*records[:place], added, *records[place:]])
        refused(path, reason)


def test_one_record_under_many_names(path):
    """The table of 500 case variants points at the same bytes."""
    records = [("x/data.pkl", b"\x80\x02N."), ("x/version", b"3"), ("x/DATA/0", bytes(1000))]
    write(path, records)
    refused(path, "it has a record 'x/DATA/0'")


@pytest.mark.parametrize("missing", ["data.pkl", "version"])
def test_records_that_are_not_there(path, missing):
    write(path, [pair for pair in records_of(path) if not pair[0].endswith(missing)])
    refused(path, f"it has no record {missing}")


def test_another_byte_order(path):
    write(path, [(name, b"big" if name.endswith("byteorder") else data) for name, data in records_of(path)])
    refused(path, "its byte order is b'big'")


#: (what is looked for, how far behind it, the new bytes): in the table at the end, and in the first record's header.
OFF = "the header of its record .* contradicts its table"
EDITS = {
    "method of the table": (b"PK\1\2", 10, b"\x08\0", "it is compressed"),
    "encryption": (b"PK\1\2", 8, b"\x01\0", "its table holds what torch.save does not write"),
    "a comment": (b"PK\1\2", 32, b"\x01\0", "its table holds what torch.save does not write"),
    "another disk": (b"PK\1\2", 34, b"\x01\0", "its table holds what torch.save does not write"),
    "place of the header": (b"PK\1\2", 42, b"\x07\0\0\0", f"{OFF}|a place it names lies outside of it"),
    "far place": (b"PK\1\2", 42, b"\xf0\xff\xff\0", "a place it names lies outside of it"),
    "a size elsewhere": (b"PK\1\2", 24, b"\xff\xff\xff\xff", "its table lacks a size"),
    "two sizes": (b"PK\1\2", 24, b"\x01\0\0\0", "its table gives two sizes for one record"),
    "check sum": (b"PK\1\2", 16, b"\0\0\0\0", f"damaged: the check sum of data.pkl inside of it differs|{OFF}"),
    "method of the header": (b"PK\3\4", 8, b"\x08\0", OFF),
    "name in the header": (b"PK\3\4", 30, b"z", OFF),
    "size in the header": (b"PK\3\4", 22, b"\x07\0\0\0", OFF),
    "longer header": (b"PK\3\4", 28, b"\x01\0", "its record .* does not begin where|its table does not begin where"),
    "count": (b"PK\5\6", 8, b"\x01\0\x01\0", "its table says that it has 1 records|the two ends of its table"),
    "place of the table": (b"PK\5\6", 16, b"\x01\0\0\0", "its table is not where|the two ends of its table"),
    "a comment at the end": (b"PK\5\6", 20, b"\x01\0", "it does not end as a zip file does"),
}


@pytest.mark.parametrize("writer", ["torch", "zipfile"])
@pytest.mark.parametrize("edit", EDITS)
def test_fields_that_lead_elsewhere(path, edit, writer):
    if writer == "zipfile":
        write(path, records_of(path))
    sign, offset, new, reason = EDITS[edit]
    data = bytearray(path.read_bytes())
    at = data.index(sign) + offset
    assert bytes(data[at : at + len(new)]) != new
    data[at : at + len(new)] = new
    path.write_bytes(data)
    refused(path, reason)


def test_the_wide_end_of_the_table(path):
    data = path.read_bytes()
    for offset, new in ((8, b"\x01"), (32, b"\x01"), (40, b"\x01"), (48, b"\x01"), (4, b"\x2d")):
        at = data.index(b"PK\6\6") + offset
        path.write_bytes(data[:at] + new + data[at + 1 :])
        refused(path, "the two ends of its table contradict each other|its table is not where")


@pytest.mark.parametrize(
    ("instructions", "reason"),
    [
        (text("posix") + text("system") + b"\x93", "it holds the instruction STACK_GLOBAL, .* nothing of it was run"),
        (b"(" + text("true") + b"iposix\nsystem\n", "it holds the instruction INST, which torch.save does not write"),
        (b"(" + GLOBAL_ORDERED + b"o", "it holds the instruction OBJ"),
        (b"\x82\x01", "it holds the instruction EXT1"),
        (b"\x83\x01\0", "it holds the instruction EXT2"),
        (b"\x84\x01\0\0\0", "it holds the instruction EXT4"),
        (GLOBAL_ORDERED + b")\x81", "it holds the instruction NEWOBJ"),
        (b"Ptext\n", "it holds the instruction PERSID"),
        (b"\x8b\x01\0\0\0\x01", "it holds the instruction LONG4"),
        (b"I1\n", "it holds the instruction INT"),
        (b"N0", "it holds the instruction POP"),
        (b"\x95" + bytes(8), "it holds the instruction FRAME"),
        (b"\xff", "at position .* unknown"),
        (b"I" + b"9" * 5000 + b"\n", "Exceeds the limit|it holds the instruction INT"),
        (b"cposix\nsystem\n", "it names posix.system, which no checkpoint of this library does; nothing of it was run"),
        (b"ctorch\nBFloat16Storage\nN\x85R", "REDUCE at byte .* has no operands that fit"),
        (GLOBAL_ORDERED + b"]\x85R", "REDUCE at byte .* has no operands that fit"),
        (GLOBAL_ORDERED + b"NR", "REDUCE at byte .* has no operands that fit"),
        (b"]NR", "REDUCE at byte .* has no operands that fit"),
        (b"]}b", "BUILD at byte .* has no operands that fit"),
        (GLOBAL_ORDERED + b")R}" + text("x") + b"Nsb", "BUILD at byte .* has no operands that fit"),
        (b"h\x63", "BINGET at byte .* has no operands that fit"),
        (b"N]a", "APPEND at byte .* has no operands that fit"),
        (b"NK\x01Ns", "SETITEM at byte .* has no operands that fit"),
        (b"}]Ns", "it has a key of type list"),
        (b"}\x8a\x09" + b"\x01" * 9 + b"Ns", "it has a key of type int; keys are text or small integers"),
        (b"}K\x01NsK\x01Ns", "it gives the key 1 twice"),
        (b"}(K\x01u", "SETITEMS at byte .* has no operands that fit|zip"),
        (b"u", "TUPLE|SETITEMS"),
        (b"NN", "it has a key of type NoneType|SETITEMS at byte"),
        (GLOBAL_ORDERED, "value is a recipes.checkpoints.pickle_reader._Name; a checkpoint holds"),
    ],
    ids=range(31),
)
def test_instructions_that_torch_save_does_not_write(path, instructions, reason):
    write_pickle(path, instructions)
    refused(path, reason)


@pytest.mark.parametrize("data", [b"", b".", b"N.", b"\x80\x02", b"\x80\x03N.", b"\x80\x02N.N.", b"\x80\x02NN.", b"(."])
def test_pickles_without_a_beginning_or_an_end(path, data):
    write(path, [("x/data.pkl", data), ("x/version", b"3")])
    with pytest.raises(ValueError, match=r"cannot be read as a checkpoint|is no checkpoint of this library"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("instructions", "reason"),
    [
        (tensor(10**15, (1,), (1,)), "it declares 4,000,000,000,000,000 bytes for the record data/0, which has 24"),
        (tensor(5, (1,), (1,)), "it declares 20 bytes for the record data/0, which has 24"),
        (tensor(6, (1,), (1,), key="1"), "it declares 24 bytes for the record data/1, which is not there"),
        (tensor(6, (1,), (1,), key="../version"), "for the record data/../version, which is not there"),
        (tensor(6, (7,), (1,)), r"a tensor of shape \[7\] does not lie inside of its record"),
        (tensor(6, (2, 3), (4, 1)), r"a tensor of shape \[2, 3\] does not lie inside"),
        (tensor(6, (2,), (1,), offset=5), r"a tensor of shape \[2\] does not lie inside"),
        (tensor(6, (0,), (1,), offset=7), r"a tensor of shape \[0\] does not lie inside"),
        (tensor(6, (10**18,), (0,)), "value is an expanded tensor"),
        (tensor(6, (2**62, 2**62), (0, 0)), "has no operands that fit|value is an expanded tensor"),
        (tensor(6, (3, 2), (1, 1)), "value is an expanded tensor"),
        (tensor(6, (2,), (-1,)), "REDUCE at byte .* has no operands that fit"),
        (tensor(6, (-1,), (1,)), "REDUCE at byte .* has no operands that fit"),
        (tensor(6, (1,), (1,), offset=-1), "REDUCE at byte .* has no operands that fit"),
        (tensor(6, (2, 2), (1,)), "REDUCE at byte .* has no operands that fit"),
        (tensor(6, (1,) * 9, (1,) * 9), "REDUCE at byte .* has no operands that fit"),
        (tensor(-6, (1,), (1,)), "BINPERSID at byte .* has no operands that fit"),
        (tensor(6, (1,), (1,)).replace(b"\x89", b"N"), "REDUCE at byte .* has no operands that fit"),
        (tensor(6, (1,), (1,)).replace(b"storage", b"module_"), "BINPERSID at byte .* has no operands that fit"),
        (b"(" + tensor(6, (1,), (1,)) + tensor(7, (1,), (1,)) + b"t", "it declares two sizes for the record data/0"),
    ],
    ids=range(20),
)
def test_tensors_that_claim_more_than_there_is(path, instructions, reason):
    write_pickle(path, instructions, [bytes(24)])
    refused(path, reason)


def doubling(levels):
    """A list that holds the same list twice, and so on: a tree of ``2 ** levels`` leaves in a few bytes."""
    return b"".join(
        b"]q" + bytes([n]) + b"(h" + bytes([n - 1]) + b"h" + bytes([n - 1]) + b"e" for n in range(1, levels)
    )


@pytest.mark.parametrize("kind", ["shared", "itself", "nested", "tuples"])
def test_content_that_would_be_walked_for_ever(path, kind):
    """Each object is looked at once, and depth has a limit, also on writing."""
    lists = b"(" + b"]q\0" + doubling(60) + b"t"
    instructions = {
        "shared": lists,
        "itself": b"]q\0h\0a",
        "nested": b"]" * 5000 + b"a" * 4999,
        "tuples": b")" + b"\x85" * 100_000,
    }[kind]
    write_pickle(path, instructions)
    start, began = time.process_time(), time.monotonic()
    if kind == "shared":
        assert len(load_checkpoint(path)["value"]) == 60 and path.stat().st_size < 2000
    else:
        refused(path, "value.* is nested more than 64 levels deep, or in itself")
    assert time.process_time() - start < 5 and time.monotonic() - began < 60, "works or waits too long"


def test_content_in_itself_is_not_written(tmp_path):
    content = {"a": []}
    content["a"].append(content["a"])
    with pytest.raises(TypeError, match=r"a.0.0.0 is nested more than 64 levels deep, or in itself"):
        save_checkpoint(tmp_path / "x.ckpt", content)
    shared = [1, 2]
    save_checkpoint(tmp_path / "x.ckpt", {"a": [shared] * 3, "b": OrderedDict(c=shared)})
    assert load_checkpoint(tmp_path / "x.ckpt")["a"] == [[1, 2]] * 3


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        (2**2001, "a is a builtins.int of more than 2000 bits"),
        (torch.zeros((1,) * 9), "a is a tensor of 9 dimensions; at most 8 are stored"),
        (torch.zeros(2, dtype=torch.complex64).conj(), r"a is a lazily conjugated tensor; pass tensor.resolve_conj"),
        (torch.zeros(4).as_strided((2, 2), (1, 1)), "a is an expanded tensor"),
        ({2**31: 1}, "a has the key 2147483648; keys of a checkpoint are text or integers"),
    ],
)
def test_what_could_not_be_read_is_not_written(tmp_path, value, seen):
    with pytest.raises(TypeError, match=seen):
        save_checkpoint(tmp_path / "x.ckpt", {"a": value})


def peak_bytes(path):
    """Memory that reading takes at its worst, beside what this process has."""

    def status(key):
        return int(re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))[1]) * 1024

    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak so far is forgotten
    before = status("VmRSS")
    with suppress(ValueError):
        load_checkpoint(path)
    return status("VmHWM") - before


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak of memory cannot be reset")
def test_memory_is_bounded_by_the_size_of_the_file(path):
    """Tensors once. Of the rest, at most 150 bytes for one: no instruction makes more."""
    size = 2**18
    ordered, view = GLOBAL_ORDERED + b"q\0", tensor(6, (1,) * 8, (1,) * 8)
    worst = {
        "dicts": b"(" + b"}" * size + b"t",
        "ordered": b"(" + ordered + b"h\0)R" * (size // 4) + b"t",
        "lists": b"(" + b"]Na" * (size // 3) + b"t",
        "in turn": b"(" + b"])\x85a" * (size // 4) + b"t",
        "names": b"(" + GLOBAL_ORDERED * (size // len(GLOBAL_ORDERED)) + b"t",
        "tensors": b"(" + GLOBAL_TENSOR + b"q\0" + view.removeprefix(GLOBAL_TENSOR)[:-1] + b"q\1R"
                   + b"h\0h\1R" * (size // 5) + b"t",
        "text": b"(" + text("\U0001f600" + "a" * size) + b"t",
    }  # fmt: skip
    for name, instructions in worst.items():
        write_pickle(path, instructions, [bytes(24)] if name == "tensors" else [])
        assert peak_bytes(path) < 150 * path.stat().st_size, name
    torch.save({"format_version": 1, "value": torch.zeros(2**24)}, path)
    assert 0.9 < peak_bytes(path) / 2**26 < 1.2, "one copy of 64 MB"


def test_what_is_checked_is_what_is_read(path, monkeypatch):
    """The file is opened once: one that takes its place meanwhile is not read."""
    opened, other = [], path.with_name("other")
    other.write_bytes(b"")

    def swapping(name, *rest):
        file = open(name, *rest)  # noqa: SIM115
        opened.append(name)
        os.replace(other, path)
        return file

    monkeypatch.setattr("recipes.checkpoints.read.open", swapping, raising=False)
    assert torch.equal(load_checkpoint(path)["network"], SAVED["network"])
    assert opened == [path]
