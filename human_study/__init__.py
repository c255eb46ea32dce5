"""isr.human_study."""

if __name__ == "human_study":
    raise ImportError(
        "import isr.human_study, not the bare folder name 'human_study' (a second copy of every class would exist)"
    )
