"""isr.data."""
