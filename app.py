"""python app.py: the page that hears digits."""

import sys

from digit_detector.serve import main

if __name__ == "__main__":
    sys.exit(main())
