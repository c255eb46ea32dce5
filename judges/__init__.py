"""isr.judges."""

if __name__ == "judges":
    raise ImportError("import isr.judges, not the bare folder name 'judges' (a second copy of every class would exist)")
