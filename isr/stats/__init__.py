"""isr.stats."""
