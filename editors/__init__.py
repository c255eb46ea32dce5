"""isr.editors."""

if __name__ == "editors":
    raise ImportError(
        "import isr.editors, not the bare folder name 'editors' (a second copy of every class would exist)"
    )
