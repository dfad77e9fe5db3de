"""``python -m concordet`` is ``concordet``."""

from concordet.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
