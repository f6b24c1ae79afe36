# SPDX-License-Identifier: Apache-2.0
"""`python -m openmarigold_render`, the same as `openmarigold-render`."""

from openmarigold_render.cli import main

if __name__ == "__main__":
    main()
