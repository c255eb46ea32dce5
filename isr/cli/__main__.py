"""python -m isr.cli"""

from . import main

raise SystemExit(main())
