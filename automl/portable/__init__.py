"""The code that every export contains: from raw rows to predictions, with only torch required."""
