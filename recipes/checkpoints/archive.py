"""The zip file that ``torch.save`` writes, read by its own rules alone: nothing in it that another reader could see."""

from __future__ import annotations

import os
import re
import struct
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import torch

_LOCAL = struct.Struct("<4s5H3I2H")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END_64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR_64 = struct.Struct("<4sIQI")
_IN_64 = 0xFFFFFFFF  # stands where the value is in 64 bits elsewhere
_DESCRIPTORS = (0, 16, 24)  # bytes that may follow the data of a record: none, or its sizes in 32 or 64 bits
_DATA = re.compile(r"data/(0|[1-9]\d{0,8})")
NAMES = ("data.pkl", "version", "byteorder", ".format_version", ".storage_alignment", ".data/serialization_id")


@dataclass(frozen=True, slots=True)
class Record:
    """Where the bytes of one record lie, and their check sum."""

    start: int
    size: int
    crc: int


class Archive:
    """The records of a checkpoint, by their names inside of its folder.

    The file begins with its first record, the records lie one after another, uncompressed, in the order of the table,
    the table follows and ends the file. What is read later is read from the same open file.

    Args:
        file: open for reading, from its beginning.

    Raises:
        ValueError: a file of another form.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        if self._at(0, 4) != b"PK\x03\x04":
            raise ValueError("it is not a zip file, or something stands before one")
        start, table, count = self._table()
        self.records = self._records(table, start)
        if len(self.records) != count:
            raise ValueError(f"its table says that it has {count} records, and has {len(self.records)}")
        if absent := [name for name in ("data.pkl", "version") if name not in self.records]:
            raise ValueError(f"it has no record {absent[0]}")
        if "byteorder" in self.records and (order := self.read("byteorder", 16)) != sys.byteorder.encode():
            raise ValueError(f"its byte order is {order!r}, that of this machine is {sys.byteorder}")

    def read(self, name: str, limit: int = sys.maxsize) -> bytes:
        """The bytes of a record, compared with its check sum."""
        record = self.records[name]
        if record.size > limit:
            raise ValueError(f"its record {name} has {record.size:,} bytes")
        data = self._at(record.start, record.size)
        _check_sum(name, record, data)
        return data

    def storage(self, key: str, nbytes: int) -> torch.UntypedStorage:
        """The memory of tensors: the record ``data/KEY``, which must have the declared size."""
        name = f"data/{key}"
        record = self.records.get(name)
        if record is None or record.size != nbytes:
            held = "is not there" if record is None else f"has {record.size:,}"
            raise ValueError(f"it declares {nbytes:,} bytes for the record {name[:80]}, which {held}")
        buffer = torch.empty(nbytes, dtype=torch.uint8, device="cpu")
        self._file.seek(record.start)
        view: Any = buffer.numpy()  # on the same memory
        if self._file.readinto(view) != nbytes:  # type: ignore[attr-defined]
            raise ValueError("it became shorter while it was read")
        _check_sum(name, record, view)
        return buffer.untyped_storage()

    def keys(self) -> set[str]:
        """Of all records of tensors."""
        return {name.removeprefix("data/") for name in self.records if _DATA.fullmatch(name)}

    def _at(self, start: int, size: int) -> bytes:
        if not 0 <= start <= start + size <= self._size:
            raise ValueError("it is cut short, or a place it names lies outside of it")
        self._file.seek(start)
        if len(data := self._file.read(size)) != size:
            raise ValueError("it became shorter while it was read")
        return data

    def _table(self) -> tuple[int, bytes, int]:
        """Where the table of the records begins, its bytes, and how many records it says it has."""
        at = self._size - _END.size
        sign, *disks, here, count, size, start, comment = _END.unpack(self._at(at, _END.size))
        if sign != b"PK\x05\x06" or any(disks) or here != count or comment:
            raise ValueError("it does not end as a zip file does: it is cut short, or something was appended")
        if at >= _LOCATOR_64.size + _END_64.size:
            sign, disk, at_64, disks_64 = _LOCATOR_64.unpack(self._at(at - _LOCATOR_64.size, _LOCATOR_64.size))
            if sign == b"PK\x06\x07":
                at -= _LOCATOR_64.size + _END_64.size
                sign, length, _, _, *disks, here, total, size_64, start_64 = _END_64.unpack(self._at(at, _END_64.size))
                narrow = ((count, total, 0xFFFF), (size, size_64, _IN_64), (start, start_64, _IN_64))
                same = all(value in (wide, ones) for value, wide, ones in narrow)
                form = (sign, length, at_64, disk, disks_64) == (b"PK\x06\x06", _END_64.size - 12, at, 0, 1)
                if not form or any(disks) or here != total or not same:
                    raise ValueError("the two ends of its table contradict each other")
                count, size, start = total, size_64, start_64
        if start + size != at:
            raise ValueError("its table is not where it should be")
        return start, self._at(start, size), count

    def _records(self, table: bytes, end: int) -> dict[str, Record]:
        """The records, which must fill the file up to ``end``, with one folder and each name once."""
        records: dict[str, Record] = {}
        folder, place = None, 0
        for name, header, flags, size, crc in _entries(table):
            inside, slash, inner = name.partition("/")
            folder = inside if folder is None else folder
            if not slash or inside != folder or not (inner in NAMES or _DATA.fullmatch(inner)):
                raise ValueError(f"it has a record {name[:80]!r}, which no checkpoint has")
            if inner in records:
                raise ValueError(f"it has two records {inner}")
            start = self._start(name, header, flags, size, crc)
            if header - place not in (_DESCRIPTORS if records else (0,)):
                raise ValueError(f"its record {inner} does not begin where the one before it ends")
            records[inner], place = Record(start, size, crc), start + size
        if end - place not in _DESCRIPTORS:
            raise ValueError("its table does not begin where the last record ends")
        return records

    def _start(self, name: str, header: int, flags: int, size: int, crc: int) -> int:
        """Where the data of a record begin; its own header must say what the table says."""
        sign, _, own_flags, method, _, _, own_crc, packed, full, name_size, extra = _LOCAL.unpack(
            self._at(header, _LOCAL.size)
        )
        own_name = self._at(header + _LOCAL.size, name_size)
        sizes = (packed, full) in ((size, size), (0, 0), (_IN_64, _IN_64)) and own_crc in (crc, 0)
        if sign != b"PK\x03\x04" or own_name != name.encode() or (own_flags, method) != (flags, 0) or not sizes:
            raise ValueError(f"the header of its record {name[:80]!r} contradicts its table")
        return header + _LOCAL.size + name_size + extra


def _entries(table: bytes) -> Iterator[tuple[str, int, int, int, int]]:
    """Name, place of the header, flags, size and check sum of every record in the table."""
    at = 0
    while at < len(table):
        if len(table) - at < _ENTRY.size:
            raise ValueError("its table is cut short")
        sign, _, _, flags, method, _, _, crc, packed, size, n_name, n_extra, n_comment, disk, _, _, header = (
            _ENTRY.unpack_from(table, at)
        )
        at += _ENTRY.size
        raw, extra = table[at : at + n_name], table[at + n_name : at + n_name + n_extra]
        at += n_name + n_extra + n_comment
        if sign != b"PK\x01\x02" or n_comment or disk or flags & ~0x0808 or at > len(table):
            raise ValueError("its table holds what torch.save does not write (a comment, encryption, another part)")
        size, packed, header = _wide((size, packed, header), extra)
        if method:
            raise ValueError("it is compressed, which no checkpoint is")
        if packed != size:
            raise ValueError(f"its table gives two sizes for one record: {packed:,} and {size:,} bytes")
        yield raw.decode("utf-8"), header, flags, size, crc


def _wide(values: tuple[int, ...], extra: bytes) -> list[int]:
    """Sizes and place, those that did not fit into 32 bits from the extra field."""
    at, wide = 0, b""
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        wide = extra[at + 4 : at + 4 + length] if kind == 1 else wide
        at += 4 + length
    needed = sum(value == _IN_64 for value in values)
    if len(wide) < 8 * needed:
        raise ValueError("its table lacks a size")
    numbers = iter(struct.unpack_from(f"<{needed}Q", wide))
    return [next(numbers) if value == _IN_64 else value for value in values]


def _check_sum(name: str, record: Record, data: Any) -> None:
    if zlib.crc32(data) != record.crc:
        raise ValueError(f"damaged: the check sum of {name} inside of it differs")
