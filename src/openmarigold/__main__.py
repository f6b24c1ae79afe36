# SPDX-License-Identifier: Apache-2.0
"""`openmarigold`, and `python -m openmarigold`: handles signals before the commands are imported."""

from openmarigold import workers


def main() -> None:
    """Runs the command line and exits."""
    workers.claim()
    from openmarigold import cli

    cli.main()


if __name__ == "__main__":
    main()
