"""python -m isr"""

from .cli import main

raise SystemExit(main())
