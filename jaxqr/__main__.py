"""Factor, differentiate, check and time real matrices: ``python -m jaxqr [FILE.mtx ...]``."""

import sys

from jaxqr.cli import main

if __name__ == "__main__":
    sys.exit(main())
