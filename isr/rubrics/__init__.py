"""isr.rubrics."""
