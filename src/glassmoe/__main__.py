"""`python -m glassmoe` is `glassmoe`; it is also what torchrun starts."""

from glassmoe.cli import main

raise SystemExit(main())
