"""Text to SQL with a mixture-of-experts decoder."""
