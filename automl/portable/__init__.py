"""What an export holds a copy of: from raw rows to predictions, with torch alone."""
