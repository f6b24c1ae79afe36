# SPDX-License-Identifier: Apache-2.0
"""All that the renderer uses of openmarigold, in one place; no other module here imports from it.

The README lists the same names ("Interface to the core"), and import-linter checks that there are no others.
"""

from __future__ import annotations

from openmarigold.data.archives import Archive, open_archive
from openmarigold.data.encodings import MapEncoding
from openmarigold.data.shard_writer import NewSample, Rejection, ShardWriter
from openmarigold.errors import DataError, InvalidValueError, OpenMarigoldError, one_line
from openmarigold.files import only_run, user_cache_dir, write_atomically
from openmarigold.images.exr import read_exr
from openmarigold.seeding import generator_for
from openmarigold.text_files import parse_json, with_current_keys

__all__ = [
    "Archive",
    "DataError",
    "InvalidValueError",
    "MapEncoding",
    "NewSample",
    "OpenMarigoldError",
    "Rejection",
    "ShardWriter",
    "generator_for",
    "one_line",
    "only_run",
    "open_archive",
    "parse_json",
    "read_exr",
    "user_cache_dir",
    "with_current_keys",
    "write_atomically",
]
