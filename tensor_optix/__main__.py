"""`python -m tensor_optix` is `tensor-optix`."""

import sys

from tensor_optix.cli import main

sys.exit(main())
