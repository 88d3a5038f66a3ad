"""What you need not read to understand the method."""
