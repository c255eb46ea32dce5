"""isr.metrics."""
