"""Damage files at random: JSON by structure, any file by its bytes or its kind."""

import copy
import json
import os
import random
import struct
from pathlib import Path
from typing import Any

from portllm.weights.safetensors_file import SafetensorsFile

NUMBERS = (0, -1, 1, 2**31, 2**63, 10**400, 0.5, 1e39, float("nan"), float("inf"))
TEXTS = ("", "x", "../x", "/etc/passwd", "line\nbreak", "\x1b[31m", "nul\0", "\ud800", "x" * 300)
VALUES = (*NUMBERS, *TEXTS, None, True, False, (), [], [[]], {}, {"x": {}}, [None], ["x", "x"])


def _places(value: Any) -> list[tuple[Any, Any]]:
    """List container and key of every value inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, part in items:
        found.append((value, key))
        if isinstance(part, dict | list):
            found += _places(part)
    return found


def mutated(value: Any, draw: random.Random) -> tuple[Any, str]:
    """Return a damaged copy of a JSON value, and what was done."""
    value = copy.deepcopy(value)
    done = []
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        places = _places(value) if isinstance(value, dict | list) else []
        if not places or draw.random() < 0.03:
            value = copy.deepcopy(draw.choice(VALUES))
            done.append(f"all = {value!r:.40}")
            continue
        container, key = draw.choice(places)
        action = draw.choice(("replace", "replace", "replace", "delete", "rename", "nest", "swap"))
        done.append(f"{action} {key!r:.60}")
        if action == "replace":
            container[key] = copy.deepcopy(draw.choice(VALUES))
            done[-1] += f" = {container[key]!r:.40}"
        elif action == "delete":
            del container[key]
        elif action == "rename" and isinstance(container, dict):
            container[draw.choice(TEXTS)] = container.pop(key)
        elif action == "nest":
            depth = draw.choice((1, 800))
            for _ in range(depth):
                container[key] = [container[key]]
            if depth > 1:
                break  # any more would be too deep for this function
        else:
            other, name = draw.choice(places)
            container[key] = copy.deepcopy(other[name]) if name in _keys(other) else None
    return value, "; ".join(done)


def _keys(container: Any) -> Any:
    return container if isinstance(container, dict) else range(len(container))


def damage_json(path: Path, draw: random.Random) -> str:
    """Damage a JSON file by its structure; return what was done."""
    value, done = mutated(json.loads(path.read_text()), draw)
    path.write_text(json.dumps(value))
    return f"{path.name}: {done}"


def damage_header(path: Path, draw: random.Random) -> str:
    """Damage the header of a safetensors file by its structure; return what was done."""
    file = SafetensorsFile.open(path)
    content = path.read_bytes()[len(file.header) :]
    value, done = mutated(file.parsed_header, draw)
    text = json.dumps(value).encode()
    length = draw.choice((len(text), len(text), len(text), 0, 2**40, 2**63))
    path.write_bytes(struct.pack("<Q", length) + text + content)
    return f"{path.name}: {done}, header of {length}"


def damage_bytes(path: Path, draw: random.Random) -> str:
    """Damage any file by its bytes or its kind; return what was done."""
    content = bytearray(path.read_bytes())
    action = draw.choice(("cut", "flip", "insert", "empty", "fifo", "folder", "link", "deep"))
    position = draw.randrange(len(content) or 1)
    path.unlink()
    if action == "fifo":
        os.mkfifo(path)
    elif action == "folder":
        path.mkdir()
    elif action == "link":
        path.symlink_to(draw.choice(("absent", path.name, "/dev/zero", "/etc/passwd")))
    else:
        if action == "cut":
            content = content[:position]
        elif action == "flip" and content:
            content[position] ^= 1 << draw.randrange(8)
        elif action == "insert":
            content[position:position] = draw.choice((b"\xff", b"\0", b"\xef\xbb\xbf", b"[" * 2000))
        elif action == "empty":
            content = bytearray()
        elif action == "deep":
            content = bytearray(b'{"a":' * 100_000)
        path.write_bytes(content)
    return f"{path.name}: {action} at {position}"
