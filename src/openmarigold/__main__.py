# SPDX-License-Identifier: Apache-2.0
"""`python -m openmarigold`, the same as `openmarigold`."""

from openmarigold.cli import main

if __name__ == "__main__":
    main()
