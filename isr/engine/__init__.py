"""isr.engine."""
