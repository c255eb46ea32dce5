"""isr.attacks."""

if __name__ == "attacks":
    raise ImportError(
        "import isr.attacks, not the bare folder name 'attacks' (a second copy of every class would exist)"
    )
