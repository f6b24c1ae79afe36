# SPDX-License-Identifier: Apache-2.0
from tiny import (  # noqa: F401 - fixtures
    kl_checkpoint,
    kl_onnx_checkpoint,
    onnx_checkpoint,
    photo_dir,
    tiny_checkpoint,
)
