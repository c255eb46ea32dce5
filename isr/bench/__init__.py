"""isr.bench."""
