"""isr.transforms."""
