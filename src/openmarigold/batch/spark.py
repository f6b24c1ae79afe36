# SPDX-License-Identifier: Apache-2.0
"""A factory for `predict_batch_udf` of Spark (3.4 or newer): a column of photos to codes, ranges and errors.

    predict = SparkFactory(PredictConfig())
    udf = predict_batch_udf(predict, return_type=predict.schema(), batch_size=16)
    photos.select("path", udf("content").alias("maps"))   # of spark.read.format("binaryFile")

This module does not import Spark.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from openmarigold.batch.settings import BatchConfig
from openmarigold.batch.shard_files import names_of_maps
from openmarigold.batch.sources import Row
from openmarigold.batch.worker import ShardWorker
from openmarigold.checkpoints.configured import read_configured
from openmarigold.config import PredictConfig
from openmarigold.errors import DataError


@dataclass(frozen=True)
class SparkFactory:
    """Can be pickled; each Python worker of Spark calls it once, which loads the model there."""

    config: PredictConfig

    def columns(self) -> dict[str, str]:
        """What a photo becomes: names of fields, and their types in Spark's words.

        For each map there are its 16-bit PNG in base64, since `predict_batch_udf` gives no bytes (Spark's `unbase64`
        does), `<map>_lo` and `<map>_hi`: value = lo + code / 65535 * (hi - lo).

        Raises:
            CheckpointError: the model cannot be read.
        """
        fields = {"status": "string", "input_sha256": "string", "width": "int", "height": "int"}
        fields |= {"error_class": "string", "error": "string"}
        for name in self._maps():
            fields |= {name: "string", f"{name}_lo": "double", f"{name}_hi": "double"}
        return fields

    def schema(self) -> Any:
        """`columns` as Spark's StructType.

        Raises:
            CheckpointError: the model cannot be read.
            ModuleNotFoundError: pyspark is not installed.
        """
        types = import_module("pyspark.sql.types")
        known = {"string": "StringType", "int": "IntegerType", "double": "DoubleType"}
        fields = [types.StructField(name, getattr(types, known[kind])()) for name, kind in self.columns().items()]
        return types.StructType(fields)

    def __call__(self) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        """The function of a batch: an array of the photos' bytes to an array for each of `columns`.

        Raises:
            CheckpointError: the model cannot be loaded.
        """
        worker = ShardWorker(self.config, BatchConfig(), "")
        worker.load()
        names, kinds = list(self.columns()), self._maps()

        def predict(photos: np.ndarray) -> dict[str, np.ndarray]:
            entries = [worker.entry(Row("", "photo", lambda content=content: _bytes(content))) for content in photos]
            maps = [{name: b64encode(png).decode() for name, png in entry.maps.items()} for entry in entries]
            rows = [entry.record(kinds) | pngs for entry, pngs in zip(entries, maps, strict=True)]
            found = {name: np.empty(len(rows), dtype=object) for name in names}
            for place, row in enumerate(rows):
                for name in names:
                    found[name][place] = row.get(name)
            return found

        return predict

    def _maps(self) -> list[str]:
        return names_of_maps(read_configured(self.config), self.config)


def _bytes(content: Any) -> bytes:
    if isinstance(content, (bytes, bytearray, memoryview)):
        return bytes(content)
    raise DataError("the row holds no photo; the column must hold the bytes of files")
