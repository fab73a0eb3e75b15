"""`python -m glassmoe` is `glassmoe`; it is also what torchrun starts."""

from glassmoe.cli.main import main

raise SystemExit(main())
