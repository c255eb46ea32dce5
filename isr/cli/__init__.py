"""isr.cli."""
