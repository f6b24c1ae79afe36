# SPDX-License-Identifier: Apache-2.0
from command_line import photo  # noqa: F401 - a fixture
from tiny import (  # noqa: F401 - fixtures
    kl_checkpoint,
    kl_onnx_checkpoint,
    onnx_checkpoint,
    photo_dir,
    tiny_checkpoint,
)
from trained import in_workspace, workspace  # noqa: F401 - fixtures
