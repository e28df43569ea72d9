"""What things cost: seconds, bytes, memory. Never quality."""
