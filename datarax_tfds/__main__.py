"""`python -m datarax_tfds`."""

import sys

from datarax_tfds.cli import main

sys.exit(main())
