"""Training of MiniWorld's miniature models; `tools/train_miniworld.py` is the command."""
