"""The program: ``quarterdeck``, and ``python -m quarterdeck``, which is the same."""

import sys


def main() -> int:
    """Run the command line and return its exit code; an interrupt while it is being imported is one, too."""
    try:
        from quarterdeck.cli.main import main as run  # here, where an interrupt is caught

        return run()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
