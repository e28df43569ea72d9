"""What benchmarks found, as documents."""
