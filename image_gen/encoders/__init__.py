"""Frozen encoders whose features the drifting loss compares. Import from the modules."""
