"""Keys that several kinds of tables or figures declare."""

from collections.abc import Mapping
from typing import Any

from portllm.study.exhibits import FILE

PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "published": {
        "description": "A CSV of published values, each with its source, to show next to ours.",
        "type": "string",
        "format": FILE,
    }
}
