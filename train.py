"""`python train.py --help`."""

from recipes.cli import train

if __name__ == "__main__":
    raise SystemExit(train())
