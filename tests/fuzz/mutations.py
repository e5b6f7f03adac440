"""Small damages to valid input: bytes that are flipped, cut or put in, and values of documents in place of others."""

from __future__ import annotations

import gzip
import io
import json
import warnings
import zipfile
import zlib
from random import Random
from typing import Any

import yaml

Mutated = bytes

_HEADER_BYTES = 400
_NUMBERS: tuple[Any, ...] = (
    *(-1, 0, 1, 2**15, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**30, 10**400, -(10**18)),
    *(0.5, -0.0, 1e-300, 1e9, 1e300, float("inf"), float("-inf"), float("nan")),
)
_TEXTS = (
    *(
        "",
        " ",
        ".",
        "..",
        "../../x",
        "/etc/hostname",
        "a" * 300,
        "a/b\\c",
        "x" * 5000,
        "C:\\x",
        "\0",
        "a\0b",
        "\x1b[31m",
    ),
    *("\n", "\u202eabc", "\ud800", "٣", "²", "9" * 5000, "1e999", "nan", "None", "%d%s{0}", "~", "*", "-", "#", "null"),
    *("image", "label", "liver", "2020-01-01", "0x10", "1_000", "yes", "sha256", "=", "<<"),
)
_WORDS = (b"\0", b"\xff" * 4, b"\x00" * 8, b"\xff" * 8, b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"9" * 12, b"\n\n", b"-1")
_PIECES = ("@", ":", "+", "-", "x", "mm", "mL", "%", "/", "0.3", "1e9", "9" * 400, "liver", " ", "²", "\0", ".", "٣")
_YAML_WORDS = (": !!int ", ": !!timestamp ", ": &a ", ": *a ", ": !!python/name:os ", ": !!binary ")
_MAX_LINES = 40


def mutate(name: str, content: bytes, random: Random) -> Mutated:
    """Damage a file as its kind allows: by its bytes, or by its structure.

    Args:
        name: Of the file; its ending tells its kind.
        content: Of the file, valid.
        random: Decides everything.
    """
    kind = name.rpartition(".")[2]
    if kind in _BY_STRUCTURE and random.random() < 0.7:
        return _BY_STRUCTURE[kind](content, random)
    return mutate_bytes(content, random)


def mutate_bytes(content: bytes, random: Random) -> bytes:
    """One to four damages to bytes, in the first few hundred as often as anywhere."""
    damaged = bytearray(content)
    for _ in range(random.randint(1, 4)):
        end = len(damaged) if random.random() < 0.5 else min(len(damaged), _HEADER_BYTES)
        place = random.randrange(end) if end else 0
        kind = random.randrange(6)
        if kind == 0 and damaged:
            damaged[place] ^= 1 << random.randrange(8)
        elif kind == 1 and damaged:
            damaged[place] = random.randrange(256)
        elif kind == 2:
            del damaged[place:]
        elif kind == 3:
            damaged[place:place] = random.choice(_WORDS)
        elif kind == 4:
            word = random.choice(_WORDS)
            damaged[place : place + len(word)] = word
        else:
            del damaged[place : place + random.randint(1, 16)]
    return bytes(damaged)


def mutate_document(document: Any, random: Random) -> Any:
    """Plain containers with one to three of their values replaced, dropped, doubled or put into others."""
    holder = [document]
    for _ in range(random.randint(1, 3)):
        places = list(_places_in(holder))
        container, key = places[random.randrange(len(places))]
        kind = random.randrange(8)
        if kind == 0 and isinstance(container, dict):
            del container[key]
        elif kind == 1 and isinstance(container, dict):
            container[random.choice(_TEXTS)] = container.pop(key)
        elif kind == 2 and isinstance(container, list):
            container.append(container[key])
        elif kind == 3:
            container[key] = _nest(container[key], random.choice((2, 30, 70, 1500)), random)
        elif kind == 4:
            container[key] = [container[key]]
        elif kind == 5:
            container[key] = {"a": container[key]}
        else:
            container[key] = _draw_value(random)
    return holder[0]


def mutate_text(text: str, random: Random) -> str:
    """Text with pieces of a grammar put in, taken out and doubled."""
    for _ in range(random.randint(1, 4)):
        place = random.randint(0, len(text))
        kind = random.randrange(3)
        if kind == 0:
            text = text[:place] + random.choice(_PIECES) + text[place:]
        elif kind == 1:
            text = text[:place] + text[place + random.randint(1, 4) :]
        else:
            text = text[:place] + text[max(0, place - random.randint(1, 8)) :]
    return text


def _places_in(holder: Any) -> Any:
    """Every value that can be replaced, as its container and its key; not below what is nested by the hundred."""
    level = [holder]
    for _ in range(20):
        inner = []
        for container in level:
            for key in list(container) if isinstance(container, dict) else range(len(container)):
                yield container, key
                if isinstance(container[key], dict | list):
                    inner.append(container[key])
        level = inner


def _draw_value(random: Random) -> Any:
    kind = random.randrange(6)
    if kind < 2:
        return random.choice(_NUMBERS)
    if kind < 4:
        return random.choice(_TEXTS)
    return random.choice((None, True, False, [], {}, [[]], [None], {"": None}, [1] * 200, {"a": [1, "x"]}))


def _nest(value: Any, depth: int, random: Random) -> Any:
    for _ in range(depth):
        value = [value] if random.random() < 0.99 else {"a": value}
    return value


def _write(document: Any) -> str:
    """JSON, whatever its depth: the library's own writer stops at some hundred levels."""
    closing = []
    text = []
    while isinstance(document, list | dict) and len(document) == 1:
        if isinstance(document, list):
            text.append("[")
            closing.append("]")
            document = document[0]
        else:
            ((key, document),) = document.items()
            text.append("{" + json.dumps(key) + ":")
            closing.append("}")
    if isinstance(document, list):
        text.append("[" + ",".join(map(_write, document)) + "]")
    elif isinstance(document, dict):
        text.append("{" + ",".join(json.dumps(key) + ":" + _write(value) for key, value in document.items()) + "}")
    elif isinstance(document, int) and not isinstance(document, bool) and abs(document) > 10**300:
        text.append("1" + "0" * 400)
    else:
        text.append(json.dumps(document))
    return "".join(text) + "".join(reversed(closing))


def _mutate_json(content: bytes, random: Random) -> bytes:
    return _write(mutate_document(json.loads(content), random)).encode("utf-8", "surrogatepass")


def _mutate_yaml(content: bytes, random: Random) -> bytes:
    """YAML in the manner of JSON, sometimes with aliases, tags and repeated keys of its own."""
    document = mutate_document(yaml.load(content, getattr(yaml, "CSafeLoader", yaml.SafeLoader)), random)
    text = _write(document)
    kind = random.randrange(8)
    if kind == 0 and isinstance(document, dict):
        text = "a0: &a0 [1, 2]\n" + "".join(
            f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, random.randint(2, 12))
        )
        text += "".join(f"{json.dumps(key)}: {_write(value)}\n" for key, value in document.items())
    elif kind == 1:
        text = text.replace(":", random.choice(_YAML_WORDS), 1)
    elif kind == 2 and isinstance(document, dict) and document:
        key = next(iter(document))
        text = "".join(f"{json.dumps(key)}: {_write(document[key])}\n" for _ in range(2))
    return text.encode("utf-8", "surrogatepass")


def _mutate_lines(content: bytes, random: Random) -> bytes:
    """Lines of JSON: one of them damaged, doubled, dropped or moved."""
    lines = content.splitlines()
    place = random.randrange(len(lines))
    kind = random.randrange(5)
    if kind == 0:
        lines.insert(random.randint(0, len(lines)), lines[place])
    elif kind == 1:
        del lines[place]
    else:
        lines[place] = _mutate_json(lines[place], random)
    return b"\n".join(lines[:_MAX_LINES]) + b"\n"


def _mutate_gzip(content: bytes, random: Random) -> bytes:
    """What is inside, packed again; sometimes with far more behind it, or cut."""
    inner = mutate_bytes(gzip.decompress(content), random)
    if random.random() < 0.1:
        inner += bytes(50_000_000)
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    packed = packer.compress(inner) + packer.flush()
    return packed if random.random() < 0.8 else mutate_bytes(packed, random)


def _mutate_zip(content: bytes, random: Random) -> bytes:
    """One member damaged, renamed, packed or doubled."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    place = random.randrange(len(members))
    name, inner = members[place]
    kind = random.randrange(5)
    packing = zipfile.ZIP_DEFLATED if kind == 0 else zipfile.ZIP_STORED
    if kind == 1:
        name = random.choice((*_TEXTS[:8], "a/" * 2000 + name, name + "x"))
    elif kind == 2:
        inner += bytes(20_000_000)
    elif kind == 3:
        members.append(members[random.randrange(len(members))])
    else:
        inner = mutate_bytes(inner, random)
    members[place] = (name.replace("\0", "0").encode("utf-8", "replace").decode() or "x", inner)
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", packing, compresslevel=1) as archive:
        warnings.simplefilter("ignore")  # a name twice
        for member, data in members:
            archive.writestr(zipfile.ZipInfo(member), data, packing)
    return buffer.getvalue()


def _mutate_text_file(content: bytes, random: Random) -> bytes:
    return mutate_text(content.decode("utf-8"), random).encode("utf-8", "surrogatepass")


_BY_STRUCTURE = {
    "json": _mutate_json,
    "yaml": _mutate_yaml,
    "jsonl": _mutate_lines,
    "gz": _mutate_gzip,
    "zip": _mutate_zip,
    "pt": _mutate_zip,
    "txt": _mutate_text_file,
}
