"""isr.reporting."""
