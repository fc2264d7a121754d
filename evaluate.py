"""`python evaluate.py --help`."""

from recipes.cli import evaluate

if __name__ == "__main__":
    raise SystemExit(evaluate())
