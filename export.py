"""`python export.py --help`."""

from recipes.cli import export

if __name__ == "__main__":
    raise SystemExit(export())
