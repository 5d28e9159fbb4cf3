"""What is claimed about speed, as programs that print a table. Run from the checkout: python -m benchmarks.NAME."""
